//! Datagrams: sealed on the way out, opened and judged on the way in. What does not open is counted and
//! dropped without a word.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::elsewhere::AliveProof;
use proto::heard::{HeardBook, PeerReports};
use proto::node::NodeId;
use proto::pulse::PulseStatus;
use proto::session::{BootVerdict, EchoVerdict};
use proto::time::{Moment, UnixMs};
use proto::transport::{DatagramFrame, DatagramHeader, MAX_DATAGRAM};
use tokio::sync::{oneshot, watch};

use super::addresses::AddressBook;
use super::counters::{Count, LinkCounters};
use super::inbox::{Arrivals, TopologyFrame};
use super::places::IdentityPlaces;
use super::proofs::PeerProofs;
use super::repeats::RepeatedBeats;
use super::responder::PulseResponder;
use super::riding_beats::RidingBeats;
use super::sealer::{DatagramSealer, Unopened};
use super::socket::DatagramSocket;
use super::tls::Identity;
use super::{TrustedKeys, lock};
use crate::lifecycle::{Lifecycle, wall};

/// The way of datagrams between the socket and the rest of the agent.
pub(crate) struct Datagrams {
    socket: DatagramSocket,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    addresses: Arc<AddressBook>,
    sealer: DatagramSealer,
    proofs: PeerProofs,
    places: IdentityPlaces,
    responder: PulseResponder,
    riding_beats: RidingBeats,
    heard: Mutex<HeardBook>,
    arrivals: Arc<Arrivals>,
    counters: Arc<LinkCounters>,
}

impl Datagrams {
    /// Nothing was sent or received yet.
    pub(super) fn new(
        socket: DatagramSocket,
        identity: Arc<Identity>,
        trust: watch::Receiver<Arc<TrustedKeys>>,
        addresses: Arc<AddressBook>,
        arrivals: Arc<Arrivals>,
        counters: Arc<LinkCounters>,
        (began, before): (UnixMs, Option<(u64, u64)>),
    ) -> Datagrams {
        Datagrams {
            socket,
            trust,
            places: IdentityPlaces::new(identity.clone(), began),
            sealer: DatagramSealer::new(identity, before),
            proofs: PeerProofs::new(addresses.clone()),
            responder: PulseResponder::default(),
            riding_beats: RidingBeats::default(),
            heard: Mutex::default(),
            addresses,
            arrivals,
            counters,
        }
    }

    /// The boot, and a number above all of its datagrams.
    pub(super) fn boot(&self) -> (u64, u64) {
        self.sealer.hand_over()
    }

    /// The port.
    pub(super) fn socket(&self) -> &DatagramSocket {
        &self.socket
    }

    /// Reads datagrams until the life is over.
    pub(super) fn serve(self: &Arc<Datagrams>, life: &Lifecycle) {
        let (datagrams, own) = (self.clone(), life.clone());
        life.supervise_each("link-udp", move || {
            let (datagrams, life) = (datagrams.clone(), own.clone());
            async move {
                life.shutdown.run_until_cancelled(datagrams.read(&life)).await;
            }
        });
    }

    async fn read(&self, life: &Lifecycle) {
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        loop {
            let taken = |datagram: &mut [u8], from| self.received(datagram, from, life.now());
            tokio::select! {
                // What came of an earlier send says nothing about what comes next.
                _ = self.socket.receive(&mut buffer, taken) => {}
                at = self.socket.refused(|header| self.sealer.has_sealed(header)) => {
                    if let Some(peer) = self.addresses.who(at) {
                        self.arrivals.no_agent(peer);
                    }
                }
            }
        }
    }

    fn received(&self, datagram: &mut [u8], from: SocketAddr, now: Moment) {
        self.counters.one(Count::ReceivedDatagrams);
        self.counters.add(Count::ReceivedBytes, datagram.len());
        let trust = self.trust.borrow().clone();
        match self.sealer.open(&trust, datagram, wall()) {
            Ok(opened) => {
                if self.handle_frames(&opened.header, opened.plaintext, from, now) {
                    self.sealer.keep(opened);
                }
            }
            Err(Unopened::Stranger) => self.counters.one(Count::RefusedStranger),
            Err(Unopened::UnknownKey(sender)) => {
                self.counters.one(Count::RefusedKey);
                self.arrivals.unknown_key(sender);
            }
            Err(Unopened::BadSeal) => self.counters.one(Count::RefusedSeal),
        }
    }

    /// Takes what an authentic datagram brings. True: it is new, and of the live boot.
    fn handle_frames(
        &self,
        header: &DatagramHeader,
        plaintext: &[u8],
        from: SocketAddr,
        now: Moment,
    ) -> bool {
        let sender = header.sender;
        let proof_only = DatagramFrame::all(plaintext).all(|frame| frame.is_proof());
        let (verdict, challenge) = self.proofs.evaluate(header, from, proof_only, now);
        match verdict {
            BootVerdict::Replayed => {
                self.counters.one(Count::RefusedReplay);
                return false;
            }
            BootVerdict::Challenge(_) => self.counters.one(Count::RefusedUnproven),
            BootVerdict::Unproven if !proof_only => self.counters.one(Count::RefusedUnproven),
            BootVerdict::Unproven | BootVerdict::Fresh => {}
        }
        if let Some(number) = challenge {
            self.send(sender, from, &DatagramFrame::Challenge(number).to_bytes());
        }
        let fresh = verdict == BootVerdict::Fresh;
        for frame in DatagramFrame::all(plaintext) {
            match frame {
                DatagramFrame::Challenge(number) => {
                    if self.proofs.may_echo(header, from, now) {
                        self.send(sender, from, &DatagramFrame::Echo(number).to_bytes());
                    } else {
                        self.counters.one(Count::RefusedFlood);
                    }
                }
                DatagramFrame::Echo(number) => self.echoed(header, number, now),
                DatagramFrame::Beside(boot) => {
                    // Its own boot it would only be asked for by a member that lies.
                    if boot != self.sealer.boot()
                        && self.proofs.may_echo(header, from, now)
                        && let Some(proof) = self.places.proof(&self.cluster(), boot, now)
                    {
                        self.send(sender, from, &DatagramFrame::Elsewhere(&proof).to_bytes());
                    }
                }
                DatagramFrame::Elsewhere(body) => self.elsewhere(header, body, now),
                frame if fresh => self.fresh(sender, frame, from, now),
                _ => {}
            }
        }
        fresh
    }

    /// Takes an authentic echo.
    fn echoed(&self, header: &DatagramHeader, number: u64, now: Moment) {
        let (sender, boot) = (header.sender, header.boot);
        match self.proofs.echoed(header, number, now) {
            Some(EchoVerdict::Proven(proven)) if proven.boot => self.arrivals.proven(sender),
            Some(EchoVerdict::AskKnown { known_at }) => {
                self.send(sender, known_at, &DatagramFrame::Beside(boot).to_bytes());
            }
            Some(EchoVerdict::Refused { known, proof, known_at, sender_at }) => {
                let mut plaintext = DatagramFrame::Elsewhere(&proof.to_body(known_at)).to_bytes();
                DatagramFrame::Beside(known).put(&mut plaintext);
                self.send(sender, sender_at, &plaintext);
            }
            Some(EchoVerdict::Proven(_)) | None => {}
        }
    }

    /// Takes a proof of life: of another place of this node's identity, or of a member's for its other place.
    fn elsewhere(&self, header: &DatagramHeader, body: &[u8], now: Moment) {
        let Some((proof, at)) = AliveProof::from_body(body) else { return };
        if proof.beside == self.sealer.boot() {
            self.places.take(&self.cluster(), &proof, at, now);
        } else if let Some(other) = self.proofs.alive(header, &proof, now) {
            let body = proof.to_body(other.signer_at);
            self.send(header.sender, other.to, &DatagramFrame::Elsewhere(&body).to_bytes());
        }
    }

    fn cluster(&self) -> String {
        self.trust.borrow().document.id.to_string()
    }

    /// Where the other place is for which this node stands aside: one that was there first has its identity.
    pub(crate) fn aside(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.places.aside()
    }

    /// Identities that are used in two places, with the addresses of both. Of this node's own only the other is known.
    pub(crate) fn duplicates(&self, now: Moment) -> (Option<SocketAddr>, Vec<(NodeId, [SocketAddr; 2])>) {
        (self.places.other(now), self.proofs.duplicates(now))
    }

    /// Takes what has proven to be new.
    fn fresh(&self, sender: NodeId, frame: DatagramFrame<'_>, from: SocketAddr, now: Moment) {
        match frame {
            DatagramFrame::Gossip(message) => self.arrivals.gossip(sender, message, now),
            // Answered here, before anything else is waited for: the round trip is what is measured.
            DatagramFrame::Pulse(number) if self.arrivals.pulse(sender, now) => {
                let mut answer = self.responder.answer(sender, number, from, now);
                self.put_report(sender, &mut answer, now);
                let beat = self.riding_beats.pulsed(sender, now);
                let alone = beat.filter(|beat| !DatagramFrame::Vip(beat).put(&mut answer));
                self.send(sender, from, &answer);
                if let Some(beat) = alone {
                    self.send_vip(sender, &beat);
                }
            }
            DatagramFrame::Answer(number, pulse_status) => {
                if number != 0 {
                    self.places.accepted(now);
                }
                self.arrivals.answer(sender, number, pulse_status, now);
            }
            DatagramFrame::Vip(message) => self.arrivals.vip(sender, message, now),
            DatagramFrame::RecordFingerprint(fingerprint) => {
                self.arrivals.fingerprint(sender, fingerprint, now);
            }
            DatagramFrame::Heard(report) if self.arrivals.report(sender, now) => {
                let is_master = self.trust.borrow().document.is_master(&sender);
                let last_heard = |peer: &NodeId| self.last_heard(peer);
                let doubted = lock(&self.heard).add(sender, is_master, report, last_heard, now);
                doubted.into_iter().for_each(|peer| self.arrivals.doubted(peer));
            }
            DatagramFrame::Attach(body) => {
                lock(&self.heard).attached(sender, now);
                self.arrivals.topology(sender, TopologyFrame::Attach(body.to_vec()), now);
            }
            DatagramFrame::Beacon(body) => {
                self.arrivals.topology(sender, TopologyFrame::Beacon(body.to_vec()), now);
            }
            // Above what one may send, or taken before.
            _ => {}
        }
    }

    /// Sends a message of virtual IPs to a peer, straight from the calling thread.
    pub(crate) fn send_vip(&self, to: NodeId, message: &[u8]) {
        self.send_to_best(to, &DatagramFrame::Vip(message));
    }

    /// The same of a beat that the peer has heard before: it goes with the answer to a pulse, if one is due now, and
    /// with others until [`Datagrams::cancel_beats`].
    pub(crate) fn send_beat(&self, to: NodeId, beat: &[u8], now: Moment) {
        if !self.riding_beats.offer(&to, beat, now) {
            self.send_vip(to, beat);
        }
    }

    /// What was last said by [`Datagrams::send_beat`] is still so; what has not gone yet goes now.
    pub(crate) fn keep_beats(&self, now: Moment) {
        self.riding_beats.keep_alive(now);
        for (to, beat) in self.riding_beats.take_overdue(now) {
            self.send_vip(to, &beat);
        }
    }

    /// It is not so any more, to some peers.
    pub(crate) fn cancel_beats(&self, whom: impl Fn(&NodeId) -> bool) {
        self.riding_beats.cancel(whom);
    }

    /// What is no news of virtual IPs.
    pub(crate) fn repeats(&self) -> &RepeatedBeats {
        &self.arrivals.repeats
    }

    /// Sends a pulse to a peer, whose answer may take as long as `slack`.
    pub(crate) fn pulse(&self, to: NodeId, number: u64, slack: Duration, now: Moment) {
        let Some(address) = self.addresses.best(&to) else { return };
        lock(&self.heard).asked(&to, slack, self.last_heard(&to), now);
        let mut plaintext = DatagramFrame::Pulse(number).to_bytes();
        self.put_report(to, &mut plaintext, now);
        self.send(to, address, &plaintext);
        self.counters.one(Count::SentPulses);
    }

    /// Adds whom this node hears, if there is room for it.
    fn put_report(&self, to: NodeId, plaintext: &mut Vec<u8>, now: Moment) {
        let report = lock(&self.heard).report(&to, |peer| self.last_heard(peer), now);
        if let Some(report) = report {
            DatagramFrame::Heard(&report).put(plaintext);
        }
    }

    /// On a member of this core: tells others at once which watched peers are silent, or are heard after all. True:
    /// something was told that may have to be taken back.
    pub(crate) fn alarm(&self, core: &BTreeSet<NodeId>, now: Moment) -> bool {
        let (alarm, told) = {
            let mut heard = lock(&self.heard);
            (heard.alarm(core, |peer| self.last_heard(peer), now), heard.has_told(now))
        };
        let Some(alarm) = alarm else { return told };
        for id in alarm.to {
            self.send_to_best(id, &DatagramFrame::Heard(&alarm.report));
        }
        told
    }

    /// Whom this node watches: of them it reports when it heard them, and believes what others report.
    pub(crate) fn watch(&self, peers: impl Iterator<Item = NodeId>, is_master: bool) {
        lock(&self.heard).watch(peers, is_master);
    }

    /// What others report about a peer that is watched.
    pub(crate) fn reports(&self, peer: &NodeId) -> PeerReports {
        lock(&self.heard).of(peer)
    }

    /// Sends what an attached node and a core member say to each other.
    pub(crate) fn send_topology(&self, to: NodeId, frame: &TopologyFrame) {
        match frame {
            TopologyFrame::Attach(body) => self.send_to_best(to, &DatagramFrame::Attach(body)),
            TopologyFrame::Beacon(body) => self.send_to_best(to, &DatagramFrame::Beacon(body)),
        };
    }

    /// Sends a gossip message that fits into a datagram.
    pub(super) fn send_gossip(&self, to: NodeId, message: &[u8]) {
        self.send_to_best(to, &DatagramFrame::Gossip(message));
    }

    /// What this node says of itself from now on; [`Datagrams::send_status`] is due at once. `seldom`: some nodes pulse
    /// so seldom that they are told more than once.
    pub(crate) fn set_status(&self, pulse_status: &PulseStatus, seldom: bool, now: Moment) {
        self.responder.set_status(pulse_status, seldom, now);
    }

    /// Says whether this process is about to be replaced, and tells those that have pulsed this node lately.
    pub(crate) fn set_pausing(&self, pausing: bool, now: Moment) {
        self.responder.set_pausing(pausing, now);
        self.send_status(now);
    }

    /// Tells it to some of those that have pulsed this node lately. Returns when the next are due.
    pub(crate) fn send_status(&self, now: Moment) -> Option<Moment> {
        let (plaintext, askers, next) = self.responder.news(now);
        for (id, address) in askers {
            self.send(id, address, &plaintext);
        }
        next
    }

    /// The fingerprint of this node's current record, which goes with an answer a second.
    pub(crate) fn set_record_fingerprint(&self, fingerprint: u32) {
        self.responder.set_fingerprint(fingerprint);
    }

    /// Which versions of datagrams a peer says it speaks.
    pub(crate) fn speaks(&self, peer: NodeId, versions: RangeInclusive<u8>) {
        if self.is_member(&peer) {
            self.sealer.speaks(peer, versions);
        }
    }

    /// When this peer was last heard itself, by a fresh datagram.
    pub(crate) fn last_heard(&self, peer: &NodeId) -> Option<Moment> {
        self.proofs.last_heard(peer)
    }

    /// Whether it was heard within this time.
    pub(crate) fn has_heard(&self, peer: &NodeId, within: Duration, now: Moment) -> bool {
        self.last_heard(peer).is_some_and(|at| now.since(at) < within)
    }

    /// Asks a member that is said to be at `at` to repeat a number that is sent there; what came of it shows
    /// in [`AddressBook::is_proven`]. At most a few a second for each member, however many addresses it names.
    pub(crate) fn prove(&self, id: NodeId, at: SocketAddr, now: Moment) {
        if self.is_member(&id)
            && let Some(number) = self.proofs.number_for(id, at, now)
        {
            self.send(id, at, &DatagramFrame::Challenge(number).to_bytes());
        }
    }

    /// Asks the peer, which should be at `address`, to repeat a number. What is returned resolves when it
    /// does, under the seal.
    pub(super) fn probe(&self, peer: NodeId, address: SocketAddr) -> oneshot::Receiver<()> {
        let (number, echo) = self.proofs.probe(peer, address);
        self.send(peer, address, &DatagramFrame::Challenge(number).to_bytes());
        echo
    }

    /// Forgets what is known of nodes that are not members any more.
    pub(super) fn retain(&self, member: impl Fn(&NodeId) -> bool) {
        self.sealer.retain(&member);
        self.proofs.retain(&member);
        self.responder.retain(&member);
        self.riding_beats.retain(&member);
        lock(&self.heard).retain(&member);
        self.arrivals.retain(&member);
    }

    fn is_member(&self, id: &NodeId) -> bool {
        self.trust.borrow().document.member(id).is_some()
    }

    /// Sends one frame to a peer where it is reached best. False: no address of it is known.
    fn send_to_best(&self, to: NodeId, frame: &DatagramFrame<'_>) -> bool {
        let Some(address) = self.addresses.best(&to) else { return false };
        self.send(to, address, &frame.to_bytes());
        true
    }

    /// Seals frames for a peer and sends them. Whoever is no member is sent nothing.
    fn send(&self, peer: NodeId, to: SocketAddr, plaintext: &[u8]) {
        let trust = self.trust.borrow().clone();
        let Some(datagram) = self.sealer.seal(&trust, peer, plaintext, wall()) else { return };
        if self.socket.send(to, &datagram) {
            self.counters.one(Count::SentDatagrams);
            self.counters.add(Count::SentBytes, datagram.len());
        }
    }

    /// What tests look into.
    #[cfg(test)]
    pub(super) fn sealer(&self) -> &DatagramSealer {
        &self.sealer
    }
}
