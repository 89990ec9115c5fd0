//! Who has pulsed this node, and is told when its status changes: without being asked, in portions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::node::NodeId;
use crate::time::Moment;

/// Most nodes that are told at a time. A cluster of up to 200 hears of a change at once, one of 5,000 within 0.25 s.
/// All 5,000 datagrams at a time would be 4 MB of kernel memory, ten times what a socket may hold, so that most could
/// be lost; and no pulse would be answered while they are sealed. 200 take a third of that room.
const PORTION: usize = 200;

/// Time between two portions.
const PAUSE: Duration = Duration::from_millis(10);

/// When a change is said again to nodes that pulse seldom: one datagram may be lost.
const REPEATS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(600)];

/// Who has not pulsed for this long has gone, and is not told of changes any more: three intervals of an attached node
/// in a cluster of 5,000.
const GONE: Duration = Duration::from_secs(150);

/// Time between two fingerprints of this node's record to one asker.
const FINGERPRINT: Duration = Duration::from_secs(1);

/// A node that has pulsed this one.
#[derive(Debug, Clone, Copy)]
struct Asker {
    from: SocketAddr,
    at: Moment,
    /// When it was last sent the fingerprint of this node's record.
    fingerprint: Option<Moment>,
    /// The round in which it was last sent the status.
    told: u64,
}

/// The nodes that have pulsed this one. There is no queue of those yet to be told: a round is a number, and whoever has
/// a lower one is told, those first who have waited longest. So changes in quick succession leave nobody out.
#[derive(Debug, Clone, Default)]
pub struct Askers {
    nodes: BTreeMap<NodeId, Asker>,
    round: u64,
    /// Some are to be told.
    open: bool,
    /// When there may be another portion.
    next: Moment,
    /// When the next rounds begin, latest first.
    repeats: Vec<Moment>,
}

impl Askers {
    /// A node has pulsed this one, and is answered. Returns the fingerprint of this node's record, if it has one and it
    /// goes with the answer.
    pub fn pulsed(&mut self, id: NodeId, from: SocketAddr, record: Option<u32>, now: Moment) -> Option<u32> {
        let asker = self.nodes.entry(id).or_insert(Asker { from, at: now, fingerprint: None, told: 0 });
        (asker.from, asker.at, asker.told) = (from, now, self.round);
        let due = record.filter(|_| asker.fingerprint.is_none_or(|at| now.since(at) >= FINGERPRINT));
        asker.fingerprint = due.map_or(asker.fingerprint, |_| Some(now));
        due
    }

    /// This node's status has changed. `seldom`: some pulse so seldom that they are told three times.
    pub fn changed(&mut self, seldom: bool, now: Moment) {
        self.repeats = REPEATS.iter().rev().filter(|_| seldom).map(|wait| now.after(*wait)).collect();
        self.next = self.next.max(now);
        self.begin();
    }

    fn begin(&mut self) {
        self.round += 1;
        self.open = true;
    }

    /// When [`Askers::poll`] is due next.
    pub fn deadline(&self) -> Option<Moment> {
        let begins = if self.open { Some(self.next) } else { self.repeats.last().copied() };
        begins.map(|at| at.max(self.next))
    }

    /// Who is to be told this node's status now.
    pub fn poll(&mut self, now: Moment) -> Vec<(NodeId, SocketAddr)> {
        if !self.open && self.repeats.pop_if(|at| *at <= now).is_some() {
            self.begin();
        }
        if !self.open || now < self.next {
            return Vec::new();
        }
        self.nodes.retain(|_, asker| now.since(asker.at) < GONE);
        let round = self.round;
        let mut waiting: Vec<_> = self.nodes.iter_mut().filter(|(_, asker)| asker.told < round).collect();
        (self.open, self.next) = (waiting.len() > PORTION, now.after(PAUSE));
        waiting.sort_by_key(|(_, asker)| asker.told);
        let tell = |(id, asker): (&NodeId, &mut Asker)| {
            asker.told = round;
            (*id, asker.from)
        };
        waiting.into_iter().take(PORTION).map(tell).collect()
    }

    /// Forgets nodes that are not members any more.
    pub fn retain(&mut self, member: impl Fn(&NodeId) -> bool) {
        self.nodes.retain(|id, _| member(id));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(n: u16) -> NodeId {
        let mut id = NodeId([0; NodeId::LEN]);
        id.0[..2].copy_from_slice(&n.to_be_bytes());
        id
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 0], n))
    }

    fn pulsed(askers: &mut Askers, count: u16, ms: u64) {
        for n in 0..count {
            askers.pulsed(id(n), address(n), None, at(ms));
        }
    }

    fn askers(count: u16, ms: u64) -> Askers {
        let mut askers = Askers::default();
        pulsed(&mut askers, count, ms);
        askers
    }

    /// Polls whenever it is due, until nothing is: when each portion was sent, and its size.
    fn portions(askers: &mut Askers) -> Vec<(u64, usize)> {
        std::iter::from_fn(|| {
            let due = askers.deadline()?;
            Some((due.as_millis(), askers.poll(due).len()))
        })
        .collect()
    }

    #[test]
    fn who_has_pulsed_lately_is_told_of_a_change_where_it_was_last() {
        let mut askers = askers(1, 0);
        askers.pulsed(id(2), address(2), None, at(4_000));
        askers.pulsed(id(2), address(3), None, at(4_100));
        askers.changed(false, at(150_000));
        assert_eq!(askers.poll(at(150_000)), [(id(2), address(3))]);
        assert_eq!(askers.deadline(), None);
    }

    #[test]
    fn a_small_cluster_is_told_at_once_and_a_large_one_in_portions() {
        let mut small = askers(200, 0);
        small.changed(false, at(1_000));
        assert_eq!(portions(&mut small), [(1_000, 200)]);
        small.changed(true, at(2_000));
        assert_eq!(portions(&mut small), [(2_000, 200), (2_200, 200), (2_600, 200)]);
        let mut large = askers(5_000, 0);
        large.changed(true, at(1_000));
        let sent = portions(&mut large);
        assert!(sent.iter().all(|(_, nodes)| *nodes <= PORTION));
        assert_eq!(sent.iter().map(|(_, nodes)| nodes).sum::<usize>(), 3 * 5_000, "each three times");
        assert!(sent[24].0 <= 1_250 && sent[25].0 >= 1_250, "{sent:?}");
    }

    #[test]
    fn changes_in_quick_succession_leave_nobody_out_and_who_has_asked_knows() {
        let mut askers = askers(1_000, 0);
        let mut told = BTreeSet::new();
        for ms in (0..60).step_by(10) {
            askers.changed(false, at(ms));
            told.extend(askers.poll(at(ms)));
        }
        assert_eq!(told.len(), 1_000);
        askers.changed(false, at(100));
        pulsed(&mut askers, 900, 100);
        assert_eq!(portions(&mut askers), [(100, 100)], "the answer to a pulse has the status");
        askers.changed(false, at(200));
        askers.retain(|one| *one == id(7));
        assert_eq!(askers.poll(at(200)), [(id(7), address(7))]);
    }

    #[test]
    fn the_fingerprint_of_the_record_goes_with_an_answer_a_second() {
        let mut askers = askers(1, 0);
        let mut pulsed = |record, ms| askers.pulsed(id(0), address(0), record, at(ms));
        assert_eq!([pulsed(None, 100), pulsed(Some(7), 200), pulsed(Some(8), 1_199)], [None, Some(7), None]);
        assert_eq!(pulsed(Some(8), 1_200), Some(8));
    }
}
