//! When this node speaks, and to whom: beats at a steady pace, and news at once and a few times again.

use std::time::Duration;

use super::rank::{CandidateState, NEAR_WITNESSES, VipRules};
use crate::node::NodeId;
use crate::time::Moment;

/// Time between two beats of an owner to candidates. All ticks of all VIPs fall on its multiples.
pub const BEAT: Duration = Duration::from_millis(50);

/// Time between two beats of a candidate that is not the owner: they only tell how it stands.
const BACKUP_BEAT: Duration = Duration::from_millis(200);

/// Time between two beats of an owner to the witnesses that are asked, or to half of them where there are many.
const NEAR_BEAT: Duration = Duration::from_millis(100);

/// Most witnesses that all hear each of these beats. Of more, every other one hears one and the rest the next: three at
/// least always know of the owner within 0.1 s, as candidates do who ask all of them.
const ALL_NEAR: usize = 5;

/// The same to all other members, which only want to know who the owner is: a share of them at each beat,
/// since a thousand datagrams in one go would make the owner itself late.
const FAR_BEAT: Duration = Duration::from_secs(1);

/// News is said again after these times, since one message may be lost.
const REPEATS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(50), Duration::from_millis(200)];

/// Who is to hear news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NewsAudience {
    Candidates,
    Everyone,
}

/// How often a node beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BeatPace {
    /// Not at all.
    Silent,
    Backup,
    Owner,
}

/// Which of the witnesses that are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NearWitnesses {
    None,
    /// Where there are many, only those at even places (0), or at odd ones (1).
    Half(u64),
    All,
}

/// Which of the witnesses that are not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FarWitnesses {
    None,
    Share(u64),
    All,
}

/// The other candidates, and some witnesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Audience {
    near: NearWitnesses,
    far: FarWitnesses,
}

impl Audience {
    /// Whom a candidate asks.
    pub(super) const ASKED: Audience = Audience { near: NearWitnesses::All, far: FarWitnesses::None };

    /// The nodes.
    pub(super) fn nodes(self, own: NodeId, rules: &VipRules) -> Vec<NodeId> {
        let shares = millis(FAR_BEAT) / millis(BEAT);
        let all_near = rules.witnesses.len() <= ALL_NEAR;
        let wanted = |at: usize| match self.far {
            _ if at < NEAR_WITNESSES => match self.near {
                NearWitnesses::None => false,
                NearWitnesses::Half(half) => all_near || at as u64 % 2 == half,
                NearWitnesses::All => true,
            },
            FarWitnesses::None => false,
            FarWitnesses::Share(share) => at as u64 % shares == share,
            FarWitnesses::All => true,
        };
        let candidates = rules.candidates.iter().map(|one| one.node);
        let witnesses = rules.witnesses.iter().enumerate().filter(|(at, _)| wanted(*at));
        candidates.filter(|node| *node != own).chain(witnesses.map(|(_, node)| *node)).collect()
    }
}

/// News that is being said.
#[derive(Debug, Clone, Copy)]
struct News {
    to: NewsAudience,
    /// How often it was said.
    said: usize,
    next: Moment,
}

/// What was said last, and what is next.
#[derive(Debug, Clone)]
pub(super) struct BeatSchedule {
    /// The state that others know of.
    state: CandidateState,
    next_beat: Moment,
    news: Option<News>,
}

impl BeatSchedule {
    /// A witness that has said nothing.
    pub(super) fn new(now: Moment) -> BeatSchedule {
        BeatSchedule { state: CandidateState::Witness, next_beat: now, news: None }
    }

    /// Says what this node knows now, and a few times again.
    pub(super) fn announce(&mut self, now: Moment, to: NewsAudience) {
        let to = self.news.map_or(to, |before| before.to.max(to));
        self.news = Some(News { to, said: 0, next: now });
    }

    /// This is how the node stands: the other candidates hear of a change at once. `off_segment`: without a
    /// segment nothing is said of this VIP, unless it was a candidate until now.
    pub(super) fn follow_state(&mut self, now: Moment, state: CandidateState, off_segment: bool) {
        if std::mem::discriminant(&state) == std::mem::discriminant(&self.state) {
            return;
        }
        let was_mute = off_segment && !self.state.is_eligible();
        self.state = state;
        if !was_mute {
            self.announce(now, NewsAudience::Candidates);
        }
    }

    /// A backup says at once that it has seen a new owner, so that it is not asked for it later.
    pub(super) fn owner_changed(&mut self, now: Moment) {
        if self.state.is_eligible() {
            self.next_beat = self.next_beat.min(now);
        }
    }

    /// Whether a beat is due, and to whom the node speaks now, for that or any other reason.
    pub(super) fn poll(&mut self, now: Moment, pace: BeatPace) -> (bool, Option<Audience>) {
        let news = self.poll_news(now);
        let beat = self.poll_beat(now, pace);
        if !beat && news.is_none() {
            return (false, None);
        }
        let all = news == Some(NewsAudience::Everyone);
        let tick = (beat && pace == BeatPace::Owner).then(|| now.as_millis());
        let near = match tick {
            _ if all => NearWitnesses::All,
            Some(ms) if ms % millis(NEAR_BEAT) < millis(BEAT) => {
                NearWitnesses::Half(ms / millis(NEAR_BEAT) % 2)
            }
            _ => NearWitnesses::None,
        };
        let far = match tick {
            _ if all => FarWitnesses::All,
            Some(ms) => FarWitnesses::Share(ms % millis(FAR_BEAT) / millis(BEAT)),
            None => FarWitnesses::None,
        };
        (beat, Some(Audience { near, far }))
    }

    fn poll_news(&mut self, now: Moment) -> Option<NewsAudience> {
        let News { to, said, .. } = self.news.filter(|news| now >= news.next)?;
        self.news = REPEATS.get(said).map(|wait| News { to, said: said + 1, next: now.after(*wait) });
        Some(to)
    }

    fn poll_beat(&mut self, now: Moment, pace: BeatPace) -> bool {
        let every = match pace {
            BeatPace::Silent => return false,
            BeatPace::Backup => BACKUP_BEAT,
            BeatPace::Owner => BEAT,
        };
        let due = now >= self.next_beat;
        // Multiples of the beat: all VIPs of a node speak in one datagram.
        let next = Moment::from_millis((now.as_millis() / millis(every) + 1) * millis(every));
        if due || self.next_beat > next {
            self.next_beat = next;
        }
        due
    }

    /// When something is due at this pace.
    pub(super) fn deadline(&self, pace: BeatPace) -> Option<Moment> {
        let beat = (pace != BeatPace::Silent).then_some(self.next_beat);
        self.news.map(|news| news.next).into_iter().chain(beat).min()
    }
}

const fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, id, rules};
    use super::*;
    use crate::cause::Cause;

    /// When it speaks to whom, of the first milliseconds.
    fn spoken(beats: &mut BeatSchedule, pace: BeatPace, until: u64) -> Vec<(u64, Audience)> {
        (0..until).filter_map(|ms| Some((ms, beats.poll(at(ms), pace).1?))).collect()
    }

    fn times(spoken: &[(u64, Audience)]) -> Vec<u64> {
        spoken.iter().map(|(ms, _)| *ms).collect()
    }

    #[test]
    fn beats_fall_on_multiples_and_a_new_owner_does_not_wait_for_its_next() {
        assert_eq!(times(&spoken(&mut BeatSchedule::new(at(0)), BeatPace::Backup, 700)), [0, 200, 400, 600]);
        assert_eq!(times(&spoken(&mut BeatSchedule::new(at(70)), BeatPace::Owner, 201)), [50, 100, 150, 200]);
        assert_eq!(spoken(&mut BeatSchedule::new(at(0)), BeatPace::Silent, 700), []);
        let mut beats = BeatSchedule::new(at(0));
        assert!(beats.poll(at(10), BeatPace::Backup).0);
        assert_eq!(beats.deadline(BeatPace::Backup), Some(at(200)));
        assert!(!beats.poll(at(20), BeatPace::Owner).0);
        assert_eq!(beats.deadline(BeatPace::Owner), Some(at(50)));
        assert_eq!(beats.deadline(BeatPace::Silent), None);
    }

    #[test]
    fn an_owner_beats_to_near_witnesses_every_second_time_and_to_each_other_once_a_second() {
        let beats = spoken(&mut BeatSchedule::new(at(0)), BeatPace::Owner, 1_000);
        let rules = |witnesses: u8| VipRules {
            witnesses: (10..10 + witnesses).map(id).collect(),
            ..rules(&[100, 100])
        };
        let times = |node, rules: &VipRules| -> Vec<u64> {
            let told = beats.iter().filter(|(_, to)| to.nodes(id(1), rules).contains(&id(node)));
            told.map(|(ms, _)| *ms).collect()
        };
        let count = |node, rules: &VipRules| times(node, rules).len();
        assert_eq!([1, 2, 10, 14].map(|node| count(node, &rules(5))), [0, 20, 10, 10]);
        let rules = rules(80);
        assert_eq!([1, 2, 10, 25, 26, 89].map(|node| count(node, &rules)), [0, 20, 5, 5, 1, 1]);
        assert_eq!(times(10, &rules), [0, 200, 400, 600, 800]);
        assert_eq!(times(25, &rules), [100, 300, 500, 700, 900], "one of them hears it every 0.1 s");
        assert_eq!(Audience::ASKED.nodes(id(1), &rules).len(), 1 + NEAR_WITNESSES);
    }

    #[test]
    fn news_is_said_four_times_to_the_larger_audience() {
        let mut beats = BeatSchedule::new(at(0));
        beats.announce(at(0), NewsAudience::Everyone);
        beats.announce(at(0), NewsAudience::Candidates);
        let said = spoken(&mut beats, BeatPace::Silent, 1_000);
        assert_eq!(times(&said), [0, 20, 70, 270]);
        assert!(
            said.iter().all(|(_, to)| *to == Audience { near: NearWitnesses::All, far: FarWitnesses::All })
        );
        beats.announce(at(0), NewsAudience::Candidates);
        let said = spoken(&mut beats, BeatPace::Silent, 1_000);
        assert!(
            said.iter().all(|(_, to)| *to == Audience { near: NearWitnesses::None, far: FarWitnesses::None })
        );
    }

    #[test]
    fn a_change_of_state_is_news_unless_nothing_was_ever_said() {
        let unfit = || CandidateState::Unfit(Cause::NoSegment.into());
        for (states, off_segment, news) in [
            (vec![CandidateState::Witness], false, false),
            (vec![unfit()], false, true),
            (vec![unfit()], true, false),
            (vec![CandidateState::Listening], true, false),
        ] {
            let mut beats = BeatSchedule::new(at(0));
            states.into_iter().for_each(|state| beats.follow_state(at(0), state, off_segment));
            assert_eq!(beats.deadline(BeatPace::Silent).is_some(), news);
        }
        let mut beats = BeatSchedule::new(at(0));
        beats.follow_state(at(0), CandidateState::Fit, false);
        spoken(&mut beats, BeatPace::Silent, 1_000);
        beats.follow_state(at(1_000), unfit(), true);
        assert_eq!(beats.deadline(BeatPace::Silent), Some(at(1_000)), "the others took it for eligible");
    }

    #[test]
    fn a_backup_says_at_once_that_it_has_seen_a_new_owner() {
        for (state, said) in [(CandidateState::Fit, true), (CandidateState::Listening, false)] {
            let mut beats = BeatSchedule::new(at(0));
            beats.follow_state(at(0), state, false);
            spoken(&mut beats, BeatPace::Backup, 301);
            beats.owner_changed(at(301));
            assert_eq!(beats.poll(at(301), BeatPace::Backup).0, said);
        }
    }
}
