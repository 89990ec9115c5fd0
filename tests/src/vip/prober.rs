//! A client that probes an address a hundred times a second, and records who answered.
//!
//! ```text
//!   every 10 ms   an echo to the address, through the kernel: what a client gets, ARP cache and all
//!                 an ARP question about it from a made-up station: who on the wire says that it is his
//! ```
//!
//! Kernels alone answer both, so only the ownership of the address is measured. Owners are distinguished by
//! the Ethernet address of their answers. The ARP replies go to the made-up station, so they teach this
//! node's kernel nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};

use super::packet::{Arp, Frame, Link, Mac, Says, Tap, echo};
use crate::lab::Node;

/// Between two probes.
pub const EVERY: Duration = Duration::from_millis(10);

/// A later answer is as bad as none.
const LATE: Duration = Duration::from_millis(100);

/// The made-up station that sends ARP requests.
const STATION: Mac = Mac([0x02, 0x41, 0x53, 0x4b, 0x00, 0x01]);

/// Its addresses: as many as there can be requests in flight, so that each reply identifies its request.
const STATIONS: usize = 64;

/// The host part of the first of these, in the node's own /24.
const FIRST: u8 = 128;

/// One probe.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent.
    pub at: Instant,
    /// Who answered the echo, and when.
    pub answers: Vec<(Instant, Mac)>,
    /// Who answered the ARP request.
    pub owners: Vec<Mac>,
}

impl Sample {
    /// When it was answered in time.
    fn served(&self) -> Option<(Instant, Mac)> {
        self.answers.iter().copied().find(|(when, _)| when.saturating_duration_since(self.at) < LATE)
    }

    /// Whether two nodes answered the same probe.
    fn by_two(&self) -> bool {
        let two = |all: BTreeSet<Mac>| all.len() > 1;
        two(self.owners.iter().copied().collect()) || two(self.answers.iter().map(|one| one.1).collect())
    }
}

/// What was seen in a period.
#[derive(Debug, Clone, Default)]
pub struct Record(pub Vec<Sample>);

impl Record {
    /// The part from one moment to another.
    pub fn between(&self, from: Instant, to: Instant) -> Record {
        Record(self.0.iter().filter(|one| one.at >= from && one.at < to).cloned().collect())
    }

    /// Probes that were not answered, or too late.
    pub fn lost(&self) -> usize {
        self.0.iter().filter(|one| one.served().is_none()).count()
    }

    /// The longest time without service: from the first lost probe to the next answer, or to the last probe
    /// without one.
    pub fn outage(&self) -> Duration {
        let (mut longest, mut since) = (Duration::ZERO, None);
        for one in &self.0 {
            let first = *since.get_or_insert(one.at);
            match one.served() {
                Some(_) if first == one.at => since = None,
                Some((when, _)) => {
                    longest = longest.max(when - first);
                    since = None;
                }
                None => longest = longest.max(one.at - first + EVERY),
            }
        }
        longest
    }

    /// Samples that two nodes answered.
    pub fn by_two(&self) -> usize {
        self.0.iter().filter(|one| one.by_two()).count()
    }

    /// The first answer to a client from any node but `old`.
    pub fn taken_over(&self, old: Mac) -> Option<Instant> {
        let answers = self.0.iter().flat_map(|one| &one.answers);
        answers.filter(|(_, mac)| *mac != old).map(|(when, _)| *when).min()
    }

    /// The last answer of this node, to either probe.
    pub fn last_of(&self, mac: Mac) -> Option<Instant> {
        let its = |one: &&Sample| one.owners.contains(&mac) || one.answers.iter().any(|(_, by)| *by == mac);
        self.0.iter().rfind(its).map(|one| one.at)
    }

    /// How often the answering node changed.
    pub fn moves(&self) -> usize {
        let by: Vec<Mac> = self.0.iter().filter_map(|one| Some(one.served()?.1)).collect();
        by.windows(2).filter(|two| two[0] != two[1]).count()
    }

    /// The only node that answered every probe.
    ///
    /// # Errors
    /// There is none, with what was seen instead.
    pub fn sole_owner(&self) -> Result<Mac> {
        let by: BTreeSet<Mac> = self
            .0
            .iter()
            .flat_map(|one| one.answers.iter().map(|one| one.1).chain(one.owners.clone()))
            .collect();
        let (lost, all) = (self.lost(), self.0.len());
        match by.first() {
            Some(mac) if by.len() == 1 && lost == 0 => Ok(*mac),
            _ => Err(anyhow!("{lost} of {all} probes are lost, the others answered by {by:?}")),
        }
    }
}

/// What was seen since the last clear.
#[derive(Default)]
struct Seen {
    /// How often it was cleared: an earlier answer belongs to no sample.
    round: u64,
    samples: Vec<Sample>,
}

/// Probes until it is dropped.
pub struct Prober {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Prober {
    /// Starts on a node that is no candidate itself.
    ///
    /// # Errors
    /// No sockets can be had.
    pub fn start(node: &Node, address: IpAddr) -> Result<Prober> {
        let own = Link::of(node)?.mac;
        let tap = Tap::open(node, LATE)?;
        let voice = tap.try_clone()?;
        let socket = node.inside(|| {
            let (domain, protocol) = match address {
                IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
                IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
            };
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            // Answers are received by the other socket.
            socket.set_recv_buffer_size(1)?;
            // Never wait for ARP: a probe that can't be sent is lost.
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let over: Arc<AtomicBool> = Arc::default();
        let base = match node.mesh_ip() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let asks = Asks { socket, voice, address, base };
        let receiver = Receiver { tap, own, address, base };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).context("a thread")
        };
        let (all, end) = (Arc::clone(&seen), Arc::clone(&over));
        let first = spawn("asks", Box::new(move || asks.run(&all, &end)))?;
        let (all, end) = (Arc::clone(&seen), Arc::clone(&over));
        let second = spawn("receives", Box::new(move || receiver.run(&all, &end)))?;
        Ok(Prober { seen, over, threads: vec![first, second] })
    }

    /// Forgets what it has seen.
    pub fn clear(&self) {
        let mut seen = held(&self.seen);
        seen.round += 1;
        seen.samples.clear();
    }

    /// What was seen between two moments. Wait for answers in flight with [`Prober::settle`].
    pub fn between(&self, from: Instant, to: Instant) -> Record {
        let seen = held(&self.seen);
        Record(seen.samples.iter().filter(|one| one.at >= from && one.at < to).cloned().collect())
    }

    /// What was seen recently, without probes that may still be answered.
    pub fn last(&self, span: Duration) -> Record {
        let to = Instant::now() - LATE;
        self.between(to - span, to)
    }

    /// Waits until a probe sent now would count as lost.
    pub fn settle(&self) {
        std::thread::sleep(LATE);
    }

    /// The only node that answered all of the last `span`.
    ///
    /// # Errors
    /// Nobody has.
    pub fn sole_owner(&self, span: Duration) -> Result<Mac> {
        let record = self.last(span);
        let enough = (span.as_millis() / EVERY.as_millis() / 2) as usize;
        if record.0.len() < enough {
            return Err(anyhow!("only {} probes were sent", record.0.len()));
        }
        record.sole_owner()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn held(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Higher priority than everything that is measured: a late prober would blame others.
fn raise_priority() {
    // For this thread alone (setpriority(2)); without the permission it still measures.
    let _ = rustix::process::setpriority_process(None, -15);
}

/// The source address of ARP request number `i`.
fn station(base: Ipv4Addr, i: usize) -> Ipv4Addr {
    let [a, b, c, _] = base.octets();
    [a, b, c, FIRST + (i % STATIONS) as u8].into()
}

struct Asks {
    socket: Socket,
    voice: Tap,
    address: IpAddr,
    base: Ipv4Addr,
}

impl Asks {
    fn run(self, seen: &Mutex<Seen>, over: &AtomicBool) {
        raise_priority();
        let to = SocketAddr::new(self.address, 0).into();
        let mut next = Instant::now();
        while !over.load(Ordering::Relaxed) {
            let at = Instant::now();
            let (round, place) = {
                let mut seen = held(seen);
                seen.samples.push(Sample { at, answers: Vec::new(), owners: Vec::new() });
                (seen.round, seen.samples.len() - 1)
            };
            // Whatever can't be sent is lost, and counted.
            let _ = self.socket.send_to(&echo(self.address, round << 32 | place as u64), &to);
            if let IpAddr::V4(address) = self.address {
                let question = Arp::question((STATION, station(self.base, place)), address);
                let _ = self.voice.say(&question.frame(Mac::ALL));
            }
            // After a stall it continues from now: a burst would be no valid sample.
            next = (next + EVERY).max(at);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

struct Receiver {
    tap: Tap,
    own: Mac,
    address: IpAddr,
    base: Ipv4Addr,
}

impl Receiver {
    fn run(self, seen: &Mutex<Seen>, over: &AtomicBool) {
        raise_priority();
        let mut buffer = [0; 2048];
        while !over.load(Ordering::Relaxed) {
            let Ok(Some(frame)) = self.tap.hear(&mut buffer) else { continue };
            let now = Instant::now();
            let mut seen = held(seen);
            match frame.says {
                Says::Echo(from, number) if from == self.address && frame.to == self.own => {
                    let place = (number & 0xffff_ffff) as usize;
                    if number >> 32 == seen.round
                        && let Some(sample) = seen.samples.get_mut(place)
                    {
                        sample.answers.push((now, frame.from));
                    }
                }
                Says::Arp(arp) => {
                    if let Some(sample) = self.asked(&arp, &frame, &mut seen.samples) {
                        sample.owners.push(frame.from);
                    }
                }
                _ => {}
            }
        }
    }

    /// The sample of this reply: the latest of its station.
    fn asked<'a>(&self, arp: &Arp, frame: &Frame, all: &'a mut [Sample]) -> Option<&'a mut Sample> {
        if !arp.reply || frame.to != STATION || IpAddr::V4(arp.sender.1) != self.address {
            return None;
        }
        let which = |i: usize| station(self.base, i) == arp.target.1;
        let at = (0..all.len()).rev().take(STATIONS).find(|i| which(*i))?;
        all.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    /// Probes 10 ms apart: who answers the client a millisecond later, and who the ARP request.
    fn record(start: Instant, samples: &[(&[Mac], &[Mac])]) -> Record {
        let one = |(i, (answers, owners)): (usize, &(&[Mac], &[Mac]))| {
            let at = start + EVERY * i as u32;
            let answers = answers.iter().map(|mac| (at + Duration::from_millis(1), *mac)).collect();
            Sample { at, answers, owners: owners.to_vec() }
        };
        Record(samples.iter().enumerate().map(one).collect())
    }

    #[test]
    fn a_takeover_is_summarized() {
        let start = Instant::now();
        let (good, none) = ((&[A][..], &[A][..]), (&[][..], &[][..]));
        let all = record(
            start,
            &[good, good, none, none, none, (&[B], &[A, B]), (&[B], &[B]), (&[], &[B]), (&[B], &[B])],
        );
        assert_eq!((all.lost(), all.by_two(), all.moves()), (4, 1, 1));
        assert_eq!(all.outage(), Duration::from_millis(31));
        assert_eq!(all.taken_over(A), Some(start + Duration::from_millis(51)));
        assert_eq!(all.last_of(A), Some(start + Duration::from_millis(50)));
        assert!(all.sole_owner().is_err());
        let after = all.between(start + EVERY * 6, start + EVERY * 7);
        assert_eq!(after.sole_owner().unwrap(), B);
        assert_eq!(record(start, &[good, none, none]).outage(), EVERY * 2, "open at the end");
        assert_eq!(record(start, &[good, (&[A, B], &[A])]).by_two(), 1);
    }

    #[test]
    fn a_late_answer_counts_as_lost_and_still_ends_the_outage() {
        let start = Instant::now();
        let mut all = record(start, &[(&[A], &[A]), (&[A], &[A]), (&[A], &[A])]);
        all.0[1].answers[0].0 = all.0[1].at + LATE;
        assert_eq!((all.lost(), all.outage()), (1, Duration::from_millis(11)));
    }
}
