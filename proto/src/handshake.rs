//! Whether an instance answers TLS hellos at all: a process that hangs leaves them unanswered while its kernel
//! accepts connections, and one that is slow answers them and then takes its time.
//!
//! ```text
//!   one check without a byte for LATE, none had any for QUIET     Late: not ready at once
//!   none of the checks had a byte for the patience                Hung: down at once
//! ```
//!
//! Silence is counted from the last byte of any check, or from the first hello after it. So a handshake that takes
//! two seconds is late and never hung, and where every one takes that long it is not even late again.
//!
//! And whether a check needs a whole handshake or may resume the session of the last one: [`SessionReuse`].

use std::collections::BTreeSet;
use std::time::Duration;

use crate::time::Moment;

/// Longest time to the first byte of a handshake, on this machine or beside it, of an instance that is well.
const LATE: Duration = Duration::from_millis(400);

/// Shortest time without a byte of any check: a little more than the usual interval.
const QUIET: Duration = Duration::from_millis(1_100);

/// Shortest time without a byte after which it hangs.
const HUNG: Duration = Duration::from_millis(2_500);

/// A deadline that is missed by this much was missed by this agent, whatever arrived meanwhile.
const STALLED: Duration = Duration::from_millis(100);

/// Longest time from one whole handshake to the next while checks succeed: ten checks a second apart, however late one
/// of them is. It is also how long an expired or changed certificate, or a rewritten file, can go unnoticed.
const WHOLE: Duration = Duration::from_millis(10_500);

/// When a check may resume the TLS session of an earlier one. That spares both sides their signatures, but shows no
/// certificate. So the first check is a whole handshake, so is each one after a failure, and one every ten seconds.
#[derive(Debug, Clone, Default)]
pub struct SessionReuse {
    /// The last whole handshake, unless a check since then has failed or has not ended.
    whole: Option<Moment>,
    /// The same if the check in progress succeeds.
    begun: Option<Moment>,
    /// When the last check began.
    last: Moment,
}

impl SessionReuse {
    /// A check begins: whether it may resume a session.
    pub fn begin(&mut self, now: Moment) -> bool {
        let whole = self.whole.take();
        // The next one may come as long after this one.
        let next = now.after(now.since(std::mem::replace(&mut self.last, now)));
        let resumes = whole.is_some_and(|at| next.since(at) <= WHOLE);
        self.begun = if resumes { whole } else { Some(now) };
        resumes
    }

    /// The check has ended well. One that ends otherwise, or never, is followed by a whole handshake.
    pub fn succeeded(&mut self) {
        self.whole = self.begun.take();
    }
}

/// What the silence of all checks means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandshakeSilence {
    /// It should not get new connections.
    Late,
    /// It does not answer at all.
    Hung,
}

/// The hellos of all checks of one instance.
#[derive(Debug, Clone)]
pub struct HandshakeWatch {
    patience: Duration,
    /// Checks whose hello was sent and that had no byte yet.
    waiting: BTreeSet<u64>,
    /// The first hello after the last byte, or that byte, while any is waiting.
    since: Option<Moment>,
    /// The last byte.
    answered: Option<Moment>,
    /// What was reported since the last byte.
    reported: Option<HandshakeSilence>,
}

impl HandshakeWatch {
    /// Nothing was sent yet. `timeout` is that of a check: who waits longer there waits as long here.
    pub fn new(timeout: Duration) -> HandshakeWatch {
        HandshakeWatch {
            patience: timeout.max(HUNG),
            waiting: BTreeSet::new(),
            since: None,
            answered: None,
            reported: None,
        }
    }

    /// A check has sent its hello.
    pub fn sent(&mut self, check: u64, now: Moment) {
        self.waiting.insert(check);
        self.since.get_or_insert(now);
    }

    /// A check has its first byte, or its connection was closed: somebody is there.
    pub fn answered(&mut self, check: u64, now: Moment) {
        self.waiting.remove(&check);
        self.since = (!self.waiting.is_empty()).then_some(now);
        self.answered = Some(now);
        self.reported = None;
    }

    /// A check has ended. Unless it `timed_out`, that is an answer.
    pub fn ended(&mut self, check: u64, timed_out: bool, now: Moment) {
        if self.waiting.remove(&check) && !timed_out {
            self.answered(check, now);
        }
    }

    /// When [`HandshakeWatch::poll`] is due.
    pub fn deadline(&self) -> Option<Moment> {
        let since = self.since?;
        let late = since.after(LATE).max(self.answered.map_or(Moment::ZERO, |at| at.after(QUIET)));
        match self.reported {
            None => Some(late.min(since.after(self.patience))),
            Some(HandshakeSilence::Late) => Some(since.after(self.patience)),
            Some(HandshakeSilence::Hung) => None,
        }
    }

    /// What the silence means now, once each.
    pub fn poll(&mut self, now: Moment) -> Option<HandshakeSilence> {
        let deadline = self.deadline().filter(|deadline| now >= *deadline)?;
        if now.since(deadline) >= STALLED {
            self.since = Some(now);
            return None;
        }
        let hung = self.since.is_some_and(|since| now.since(since) >= self.patience);
        self.reported = Some(if hung { HandshakeSilence::Hung } else { HandshakeSilence::Late });
        self.reported
    }
}

#[cfg(test)]
mod tests {
    use super::HandshakeSilence::{Hung, Late};
    use super::*;

    /// Checks every second, whose hello is answered after what `answer` says of the moment; what is reported when.
    fn run(answer: impl Fn(u64) -> Option<u64>, until: u64) -> Vec<(u64, HandshakeSilence)> {
        let timeout = 2_500;
        let mut watch = HandshakeWatch::new(Duration::from_millis(timeout));
        let mut found = Vec::new();
        let mut checks: Vec<(u64, u64, bool)> = Vec::new();
        for ms in 0..until {
            let now = Moment::from_millis(ms);
            if ms % 1_000 == 0 {
                watch.sent(ms, now);
                let took = answer(ms).filter(|took| *took < timeout);
                checks.push((ms, ms + took.unwrap_or(timeout), took.is_some()));
            }
            for (check, _, good) in checks.iter().filter(|(_, at, _)| *at == ms) {
                if *good { watch.answered(*check, now) } else { watch.ended(*check, true, now) }
            }
            found.extend(watch.poll(now).map(|silence| (ms, silence)));
        }
        found
    }

    /// Which of some checks, so far apart, are whole handshakes; `failed`: those that do not succeed.
    fn whole(every: u64, failed: &[u64]) -> Vec<u64> {
        let mut reuse = SessionReuse::default();
        let mut begin = |check| {
            let resumes = reuse.begin(Moment::from_millis(3 + check * every + check % 2));
            if !failed.contains(&check) {
                reuse.succeeded();
            }
            !resumes
        };
        (0..25).filter(|check| begin(*check)).collect()
    }

    #[test]
    fn one_check_in_ten_seconds_is_a_whole_handshake_and_each_one_after_a_failure() {
        assert_eq!(whole(1_000, &[]), [0, 10, 20]);
        assert_eq!(whole(1_000, &[3, 4, 12]), [0, 4, 5, 13, 23]);
        assert_eq!(whole(4_000, &[]), (0..25).step_by(2).collect::<Vec<_>>(), "8 s, since 12 are too many");
        assert_eq!(whole(6_000, &[]), (0..25).collect::<Vec<_>>());
    }

    #[test]
    fn a_hang_is_late_within_one_and_a_half_seconds_and_hung_within_four() {
        assert_eq!(run(|_| Some(10), 20_000), []);
        // It hangs just after a check at 5 s.
        let hangs = |ms| (ms <= 5_000).then_some(10);
        assert_eq!(run(hangs, 20_000), [(6_400, Late), (8_500, Hung)]);
        // It goes on, and hangs again.
        let again = |ms| (ms <= 5_000 || (12_000..13_000).contains(&ms)).then_some(10);
        assert_eq!(run(again, 20_000), [(6_400, Late), (8_500, Hung), (13_110, Late), (14_510, Hung)]);
    }

    #[test]
    fn slow_handshakes_are_late_once_and_never_hung() {
        let slow = |ms| Some(if ms > 5_000 { 2_000 } else { 10 });
        assert_eq!(run(slow, 20_000), [(6_400, Late)]);
        assert_eq!(run(|ms| Some(if ms == 5_000 { 2_000 } else { 10 }), 20_000), [(5_400, Late)]);
    }

    #[test]
    fn a_closed_connection_is_an_answer_and_a_stall_of_this_agent_is_not() {
        let at = Moment::from_millis;
        let mut watch = HandshakeWatch::new(Duration::from_millis(500));
        watch.sent(1, at(0));
        watch.ended(1, false, at(10));
        assert_eq!(watch.deadline(), None);
        watch.sent(2, at(1_000));
        assert_eq!(watch.deadline(), Some(at(1_400)));
        assert_eq!(watch.poll(at(1_500)), None, "this agent was late itself");
        assert_eq!(watch.poll(at(1_900)), Some(Late));
        watch.ended(2, true, at(1_900));
        assert_eq!((watch.poll(at(3_999)), watch.poll(at(4_000))), (None, Some(Hung)), "at least 2.5 s");
    }
}
