//! Datagrams: sealed on the way out, opened and judged on the way in. What does not open is counted and
//! dropped without a word.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::next_wire;
use proto::node::NodeId;
use proto::pulse::PulseStatus;
use proto::session::BootVerdict;
use proto::time::Moment;
use proto::transport::{
    DatagramFrame, DatagramHeader, HEADER_LEN, KeyHint, MAX_BODY, MAX_DATAGRAM, MAX_PLAINTEXT, TAG_LEN,
    version_for,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::addresses::{for_socket, unmapped};
use super::{Link, MemberTraffic, PendingProbe, PulseAnswer, PulsePeer, count, lock, random, refused};
use crate::lifecycle::{Lifecycle, wall};

/// Receive buffer asked of the kernel: a second of datagrams at 5,000 a second.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Who has not pulsed for this long has gone, and is not told of changes any more.
const ASKER: Duration = Duration::from_secs(5);

/// Time between two fingerprints of this node's record to one asker.
const FINGERPRINT: Duration = Duration::from_secs(1);

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
    pub(crate) fn serve_udp(self: &std::sync::Arc<Link>, life: &Lifecycle) {
        let (link, own) = (self.clone(), life.clone());
        life.supervise_each("link-udp", move || {
            let (link, life) = (link.clone(), own.clone());
            async move {
                life.shutdown.run_until_cancelled(link.read_datagrams(&life)).await;
            }
        });
    }

    async fn read_datagrams(&self, life: &Lifecycle) {
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        loop {
            let received = tokio::select! {
                received = self.udp.recv_from(&mut buffer) => received,
                at = refused::next(self) => {
                    self.refused_at(at);
                    continue;
                }
            };
            // Errors here are about earlier sends (ICMP): nothing to do with what comes next.
            if let Ok((length, from)) = received
                && let Some(datagram) = buffer.get_mut(..length)
            {
                self.received(datagram, unmapped(from), life);
            }
        }
    }

    fn received(&self, datagram: &mut [u8], from: SocketAddr, life: &Lifecycle) {
        count(&self.counters.received_datagrams, 1);
        count(&self.counters.received_bytes, datagram.len());
        let Some((header, _)) = DatagramHeader::parse(datagram) else {
            return count(&self.counters.refused_stranger, 1);
        };
        let trust = self.trust.borrow().clone();
        let peer = trust.document.member(&header.sender).map(|admitted| admitted.key);
        let Some(peer) = peer.filter(|_| header.sender != self.own()) else {
            return count(&self.counters.refused_stranger, 1);
        };
        let Some(ciphertext) = datagram.get_mut(HEADER_LEN..) else { return };
        let (mut held, mut opened) = (false, None);
        for gossip in trust.ring.hinted(header.key, wall()) {
            held = true;
            let key = self.pairs.from(&header, &peer, gossip);
            if let Some(key) = key.filter(|key| key.open(&header, ciphertext).is_some()) {
                opened = Some((gossip, key));
                break;
            }
        }
        if !held {
            count(&self.counters.refused_key, 1);
            // Not believed, only a hint to look for new keys, and that by TLS.
            let _ = self.inputs.unknown_key.try_send(header.sender);
            return;
        }
        let Some((gossip, key)) = opened else {
            return count(&self.counters.refused_seal, 1);
        };
        let plaintext = ciphertext.get(..ciphertext.len() - TAG_LEN).unwrap_or_default();
        if self.handle_frames(&header, plaintext, from, life) == BootVerdict::Fresh {
            self.pairs.keep(&header, gossip, key);
        }
    }

    /// Takes what an authentic datagram brings.
    fn handle_frames(
        &self,
        header: &DatagramHeader,
        plaintext: &[u8],
        from: SocketAddr,
        life: &Lifecycle,
    ) -> BootVerdict {
        let (sender, now) = (header.sender, life.now());
        let is_proof =
            |frame: DatagramFrame<'_>| matches!(frame, DatagramFrame::Challenge(_) | DatagramFrame::Echo(_));
        let proof_only = DatagramFrame::all(plaintext).all(is_proof);
        let verdict = lock(&self.sessions).evaluate(header, from, proof_only, now, number);
        match verdict {
            BootVerdict::Replayed => {
                count(&self.counters.refused_replay, 1);
                return verdict;
            }
            BootVerdict::Unproven if !proof_only => count(&self.counters.refused_unproven, 1),
            BootVerdict::Challenge(number) => {
                count(&self.counters.refused_unproven, 1);
                self.send(sender, from, &DatagramFrame::Challenge(number).to_bytes());
            }
            BootVerdict::Unproven => {}
            BootVerdict::Fresh => {
                lock(&self.heard).insert(sender, now);
                if !self.addresses.confirm_address(sender, from) {
                    // It may have moved, or someone passes its datagrams on.
                    self.prove_at(sender, from, now);
                }
            }
        }
        for frame in DatagramFrame::all(plaintext) {
            match frame {
                DatagramFrame::Challenge(number) => {
                    if lock(&self.sessions).answers(header, from, now) {
                        self.send(sender, from, &DatagramFrame::Echo(number).to_bytes());
                    } else {
                        count(&self.counters.refused_flood, 1);
                    }
                }
                DatagramFrame::Echo(number) => self.echoed(header, number, now),
                frame if verdict == BootVerdict::Fresh => self.fresh(sender, frame, from, now),
                _ => {}
            }
        }
        verdict
    }

    /// Takes an authentic echo.
    fn echoed(&self, header: &DatagramHeader, number: u64, now: Moment) {
        let sender = header.sender;
        let mut pending_probes = lock(&self.pending_probes);
        let probe = match pending_probes.get(&number) {
            Some(probe) if probe.peer == sender => pending_probes.remove(&number),
            _ => None,
        };
        drop(pending_probes);
        if let Some(probe) = probe {
            self.addresses.proven(sender, probe.to);
            let _ = probe.answered.send(());
        }
        let proven = lock(&self.sessions).echoed(header, number, now);
        if let Some(proven) = proven {
            self.addresses.proven(sender, proven.address);
            if proven.boot {
                self.addresses.confirm_address(sender, proven.address);
                lock(&self.heard).insert(sender, now);
                let _ = self.inputs.proven.try_send(sender);
            }
        }
    }

    /// Takes what has proven to be new, as much of it as a member may send.
    fn fresh(&self, sender: NodeId, frame: DatagramFrame<'_>, from: SocketAddr, now: Moment) {
        let fits = |flow| self.fits(flow, sender, now);
        match frame {
            DatagramFrame::Gossip(message) if fits(MemberTraffic::Gossip) => {
                let _ = self.inputs.gossip.try_send((sender, message.to_vec()));
            }
            DatagramFrame::Pulse(number) if fits(MemberTraffic::Pulse) => {
                self.answer(sender, number, from, now)
            }
            DatagramFrame::Answer(number, pulse_status) if fits(MemberTraffic::Answer) => {
                count(&self.counters.received_answers, 1);
                if let Some(pulse_status) = PulseStatus::from_bytes(pulse_status) {
                    let answer = PulseAnswer::Said { from: sender, number, pulse_status };
                    let _ = self.inputs.answers.try_send(answer);
                }
            }
            DatagramFrame::Vip(message) if fits(MemberTraffic::Vip) => {
                let _ = self.inputs.vips.try_send((sender, message.to_vec()));
            }
            DatagramFrame::RecordFingerprint(fingerprint) if fits(MemberTraffic::Fingerprint) => {
                let _ = self.inputs.fingerprints.try_send((sender, fingerprint));
            }
            // Above what one may send, or taken before.
            _ => {}
        }
    }

    /// Answers a pulse here, before anything else is waited for: the round trip is what is measured.
    fn answer(&self, to: NodeId, number: u64, from: SocketAddr, now: Moment) {
        let mut plaintext = DatagramFrame::Answer(number, &lock(&self.status)).to_bytes();
        let fingerprint = *lock(&self.fingerprint);
        let mut askers = lock(&self.askers);
        let asker = askers.entry(to).or_insert(PulsePeer { from, at: now, fingerprint: None });
        (asker.from, asker.at) = (from, now);
        if let Some(fingerprint) = fingerprint
            && asker.fingerprint.is_none_or(|at| now.since(at) >= FINGERPRINT)
            && DatagramFrame::RecordFingerprint(fingerprint).put(&mut plaintext)
        {
            asker.fingerprint = Some(now);
        }
        drop(askers);
        self.send(to, from, &plaintext);
    }

    /// Sends a message of virtual IPs to a peer, straight from the calling thread.
    pub(crate) fn send_vip(&self, to: NodeId, message: &[u8]) {
        if let Some(address) = self.addresses.best(&to) {
            self.send(to, address, &DatagramFrame::Vip(message).to_bytes());
        }
    }

    /// Sends a pulse to a peer.
    pub(crate) fn pulse(&self, to: NodeId, number: u64) {
        if let Some(address) = self.addresses.best(&to) {
            count(&self.counters.sent_pulses, 1);
            self.send(to, address, &DatagramFrame::Pulse(number).to_bytes());
        }
    }

    /// What this node says of itself from now on. Whoever has pulsed it lately is told at once.
    pub(crate) fn set_status(&self, pulse_status: &PulseStatus, now: Moment) {
        let bytes = pulse_status.to_bytes();
        *lock(&self.status) = bytes.clone();
        let mut askers = lock(&self.askers);
        askers.retain(|_, asker| now.since(asker.at) < ASKER);
        let addresses: Vec<(NodeId, SocketAddr)> =
            askers.iter().map(|(id, asker)| (*id, asker.from)).collect();
        drop(askers);
        let plaintext = DatagramFrame::Answer(0, &bytes).to_bytes();
        for (id, address) in addresses {
            self.send(id, address, &plaintext);
        }
    }

    /// Sends a gossip message to a peer: by datagram where it fits, else by TLS. Never waits; what can't be
    /// sent is dropped, since gossip repeats itself.
    pub(crate) fn send_gossip(self: &std::sync::Arc<Link>, to: NodeId, message: &[u8], life: &Lifecycle) {
        count(&self.counters.sent_gossip_bytes, message.len());
        if message.len() > MAX_BODY {
            return self.send_large(to, message.to_vec(), life);
        }
        if let Some(address) = self.addresses.best(&to) {
            self.send(to, address, &DatagramFrame::Gossip(message).to_bytes());
        }
    }

    /// Asks a member that is said to be at `at` to repeat a number that is sent there; what came of it shows
    /// in [`Link::proven_at`]. At most a few a second for each member, however many addresses it names.
    pub(crate) fn prove(&self, id: NodeId, at: SocketAddr, life: &Lifecycle) {
        self.prove_at(id, at, life.now());
    }

    fn prove_at(&self, id: NodeId, at: SocketAddr, now: Moment) {
        if self.trust.borrow().document.member(&id).is_none() {
            return;
        }
        let asked = lock(&self.sessions).probe_number(id, at, now, number);
        if let Some(number) = asked {
            self.send(id, at, &DatagramFrame::Challenge(number).to_bytes());
        }
    }

    /// Asks the peer, which should be at `address`, to repeat a number. What is returned resolves when it
    /// does, under the seal.
    pub(crate) fn probe_address(&self, peer: NodeId, address: SocketAddr) -> oneshot::Receiver<()> {
        let (heard, echo) = oneshot::channel();
        let number = number();
        let mut pending_probes = lock(&self.pending_probes);
        pending_probes.retain(|_, probe| !probe.answered.is_closed());
        pending_probes.insert(number, PendingProbe { peer, to: address, answered: heard });
        drop(pending_probes);
        self.send(peer, address, &DatagramFrame::Challenge(number).to_bytes());
        echo
    }

    /// Seals frames for a peer and sends them. Whoever is no member is sent nothing.
    fn send(&self, peer: NodeId, to: SocketAddr, plaintext: &[u8]) {
        let trust = self.trust.borrow().clone();
        let Some(admitted) = trust.document.member(&peer) else { return };
        let Some(gossip) = trust.ring.sealing(&trust.document) else { return };
        let Some(key) = self.pairs.to(peer, &admitted.key, gossip) else { return };
        let header = DatagramHeader {
            version: version_for(lock(&self.versions).get(&peer).cloned()),
            key: KeyHint::of(gossip.id),
            sender: self.own(),
            boot: self.boot,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let plaintext = next_wire::frames(plaintext, MAX_PLAINTEXT);
        let Some(datagram) = key.seal(&header, &plaintext) else { return };
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

/// A number that nobody can guess.
fn number() -> u64 {
    u64::from_be_bytes(random())
}
