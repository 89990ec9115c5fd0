//! Datagrams: sealed on the way out, opened and judged on the way in. What does not open is counted and
//! dropped without a word.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use proto::link::{Header, MAX_DATAGRAM, MAX_PAYLOAD, Payload, Verdict};
use proto::node::NodeId;
use proto::pulse::Saying;
use proto::time::Moment;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::book::{for_socket, plain};
use super::{Answer, Link, count, lock, random, refused, seal};
use crate::lifecycle::{Life, wall};

/// Receive buffer asked of the kernel: a second of datagrams at 5,000 a second.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Who has not pulsed for this long has gone, and is not told of changes any more.
const ASKER: std::time::Duration = std::time::Duration::from_secs(5);

/// A socket of either family; both families where no address is given and the kernel has IPv6.
pub(super) fn socket(
    address: Option<IpAddr>,
    kind: Type,
    protocol: Protocol,
    port: u16,
) -> io::Result<(Socket, SocketAddr)> {
    let make = |ip: IpAddr| -> io::Result<(Socket, SocketAddr)> {
        let socket = Socket::new(Domain::for_address((ip, port).into()), kind, Some(protocol))?;
        if ip.is_ipv6() {
            socket.set_only_v6(address.is_some())?;
        }
        socket.set_nonblocking(true)?;
        Ok((socket, SocketAddr::new(ip, port)))
    };
    match address {
        Some(ip) => make(ip),
        None => make(IpAddr::V6(Ipv6Addr::UNSPECIFIED)).or_else(|_| make(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
    }
}

pub(super) fn bind(address: Option<IpAddr>, port: u16) -> io::Result<UdpSocket> {
    let (socket, at) = socket(address, Type::DGRAM, Protocol::UDP, port)?;
    // A smaller buffer than asked for is no reason not to start.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    // What waits in the kernel for a neighbour that does not answer takes this room from all others.
    let _ = socket.set_send_buffer_size(RECEIVE_BUFFER);
    refused::ask_for(&socket);
    match socket.bind(&at.into()) {
        // A kernel with IPv6 switched off still makes the socket and refuses the address.
        Err(_) if address.is_none() && at.is_ipv6() => {
            return bind(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        }
        bound => bound?,
    }
    UdpSocket::from_std(socket.into())
}

impl Link {
    /// Reads datagrams until the life is over.
    pub(crate) fn serve_udp(self: &std::sync::Arc<Link>, life: &Life) {
        let (link, life) = (self.clone(), life.clone());
        life.clone().spawn(async move {
            let mut buffer = vec![0; MAX_DATAGRAM + 1];
            loop {
                let received = tokio::select! {
                    received = link.udp.recv_from(&mut buffer) => received,
                    at = refused::next(&link) => {
                        link.refused_at(at);
                        continue;
                    }
                    () = life.over.cancelled() => return,
                };
                // Errors here are about earlier sends (ICMP): nothing to do with what comes next.
                if let Ok((length, from)) = received
                    && let Some(datagram) = buffer.get_mut(..length)
                {
                    link.received(datagram, plain(from), &life);
                }
            }
        });
    }

    fn received(&self, datagram: &mut [u8], from: SocketAddr, life: &Life) {
        count(&self.counters.received_datagrams, 1);
        count(&self.counters.received_bytes, datagram.len());
        let Some((header, _)) = Header::parse(datagram) else {
            return count(&self.counters.refused_stranger, 1);
        };
        let trust = self.trust.borrow().clone();
        if header.sender == self.own() || trust.document.member(&header.sender).is_none() {
            return count(&self.counters.refused_stranger, 1);
        }
        let Some(key) = trust.ring.get(header.key, wall()) else {
            count(&self.counters.refused_key, 1);
            // Not believed, only a hint to look for new keys, and that by TLS.
            let _ = self.outlets.unknown_key.try_send(header.sender);
            return;
        };
        let Some(ciphertext) = datagram.get_mut(proto::link::HEADER_LEN..) else { return };
        let openers = lock(&self.openers);
        let kept = openers.get(&header.sender).filter(|opener| opener.fits(key, &header));
        let made = if kept.is_none() { seal::Opener::new(key, &header) } else { None };
        let plain = kept.or(made.as_ref()).and_then(|opener| opener.open(&header, ciphertext));
        drop(openers);
        let Some(plain) = plain else {
            return count(&self.counters.refused_seal, 1);
        };
        let Some(payload) = Payload::parse(plain) else { return };
        let proven = self.judge(&header, &payload, from, life);
        if let Some(opener) = made.filter(|_| proven) {
            lock(&self.openers).insert(header.sender, opener);
        }
    }

    /// Takes what an authentic datagram brings. True when it is new, of a boot that is proven.
    fn judge(&self, header: &Header, payload: &Payload<'_>, from: SocketAddr, life: &Life) -> bool {
        let payload = match payload {
            Payload::Challenge(number) => {
                self.send_payload(from, &Payload::Echo(*number));
                return false;
            }
            Payload::Echo(number) => {
                let knock = self.knocks.lock().unwrap_or_else(PoisonError::into_inner).remove(number);
                if let Some(heard) = knock {
                    let _ = heard.send(());
                }
                if self.sessions().echoed(header, *number) {
                    self.book.seen(header.sender, from);
                    self.heard().insert(header.sender, life.now());
                    let _ = self.outlets.proven.try_send(header.sender);
                }
                return false;
            }
            other => other,
        };
        let verdict = self.sessions().judge(header, life.now(), || u64::from_be_bytes(random()));
        match verdict {
            Verdict::Fresh => {
                self.book.seen(header.sender, from);
                self.heard().insert(header.sender, life.now());
                self.fresh(header.sender, payload, from, life);
            }
            Verdict::Challenge(number) => {
                count(&self.counters.refused_unproven, 1);
                self.send_payload(from, &Payload::Challenge(number));
            }
            Verdict::Unproven => count(&self.counters.refused_unproven, 1),
            Verdict::Replayed => count(&self.counters.refused_replay, 1),
        }
        verdict == Verdict::Fresh
    }

    /// Takes what has proven to be new.
    fn fresh(&self, sender: NodeId, payload: &Payload<'_>, from: SocketAddr, life: &Life) {
        match payload {
            Payload::Gossip(message) => {
                let _ = self.outlets.gossip.try_send((sender, message.to_vec()));
            }
            Payload::Pulse(number) => {
                // Answered here, before anything else is waited for: the round trip is what is measured.
                let saying = lock(&self.saying).clone();
                self.send_payload(from, &Payload::Answer(*number, &saying));
                lock(&self.askers).insert(sender, (from, life.now()));
            }
            Payload::Answer(number, saying) => {
                count(&self.counters.received_answers, 1);
                if let Some(saying) = Saying::from_bytes(saying) {
                    let answer = Answer::Said { from: sender, number: *number, saying };
                    let _ = self.outlets.answers.try_send(answer);
                }
            }
            Payload::Vip(message) => {
                let _ = self.outlets.vips.try_send((sender, message.to_vec()));
            }
            Payload::Challenge(_) | Payload::Echo(_) => {}
        }
    }

    /// Sends a message of virtual IPs to a peer, straight from the calling thread.
    pub(crate) fn send_vip(&self, to: NodeId, message: &[u8]) {
        if let Some(address) = self.book.best(&to) {
            self.send_payload(address, &Payload::Vip(message));
        }
    }

    /// Sends a pulse to a peer.
    pub(crate) fn pulse(&self, to: NodeId, number: u64) {
        if let Some(address) = self.book.best(&to) {
            count(&self.counters.sent_pulses, 1);
            self.send_payload(address, &Payload::Pulse(number));
        }
    }

    /// What this node says of itself from now on. Whoever has pulsed it lately is told at once.
    pub(crate) fn say(&self, saying: &Saying, now: Moment) {
        let bytes = saying.to_bytes();
        *lock(&self.saying) = bytes.clone();
        let mut askers = lock(&self.askers);
        askers.retain(|_, (_, at)| now.since(*at) < ASKER);
        let addresses: Vec<SocketAddr> = askers.values().map(|(address, _)| *address).collect();
        drop(askers);
        for address in addresses {
            self.send_payload(address, &Payload::Answer(0, &bytes));
        }
    }

    /// Sends a gossip message to a peer: by datagram where it fits, else by TLS. Never waits; what can't be
    /// sent is dropped, since gossip repeats itself.
    pub(crate) fn send_gossip(self: &std::sync::Arc<Link>, to: NodeId, message: &[u8], life: &Life) {
        count(&self.counters.sent_gossip_bytes, message.len());
        if message.len() > MAX_PAYLOAD {
            return self.send_large(to, message.to_vec(), life);
        }
        if let Some(address) = self.book.best(&to) {
            self.send_payload(address, &Payload::Gossip(message));
        }
    }

    /// Asks whoever listens at `address` to repeat a number. What is returned resolves when it does, under
    /// the seal.
    pub(crate) fn knock(&self, address: SocketAddr) -> oneshot::Receiver<()> {
        let (heard, echo) = oneshot::channel();
        let number = u64::from_be_bytes(random());
        let mut knocks = self.knocks.lock().unwrap_or_else(PoisonError::into_inner);
        knocks.retain(|_, heard| !heard.is_closed());
        knocks.insert(number, heard);
        drop(knocks);
        self.send_payload(address, &Payload::Challenge(number));
        echo
    }

    fn send_payload(&self, to: SocketAddr, payload: &Payload<'_>) {
        let trust = self.trust.borrow().clone();
        let Some(key) = trust.ring.sealing(&trust.document) else { return };
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let header = Header { key: key.id, sender: self.own(), boot: self.boot, sequence };
        let mut sealer = self.sealer.lock().unwrap_or_else(PoisonError::into_inner);
        if sealer.as_ref().is_none_or(|sealer| sealer.id() != key.id) {
            *sealer = seal::Sealer::new(key, &self.own(), self.boot);
        }
        let sealed = sealer.as_ref().and_then(|sealer| sealer.seal(&header, &payload.to_bytes()));
        drop(sealer);
        let Some(datagram) = sealed else { return };
        // Straight to the kernel: tokio would refuse the first datagram, since it has not been told yet that
        // the socket can be written to.
        let to = for_socket(to, self.v6);
        let send = || rustix::net::sendto(&self.udp, &datagram, rustix::net::SendFlags::DONTWAIT, &to);
        // The kernel also hands out here that an earlier datagram, to whomever, was refused, and then sends
        // nothing: once more, since this one may be fine.
        if send().or_else(|_| send()).is_ok() {
            count(&self.counters.sent_datagrams, 1);
            count(&self.counters.sent_bytes, datagram.len());
        }
    }
}
