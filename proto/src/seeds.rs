//! Names of seeds, kept since the join: they are resolved anew while nobody is heard. All addresses of a cluster may
//! change at once, and then its names are all that still leads to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::time::Moment;

/// Most names that are kept, the latest first.
pub const MOST: usize = 8;

/// How long nobody is heard before names are resolved anew.
pub const SILENCE: Duration = Duration::from_secs(5);

/// Time between two rounds, which doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Whether this is the name of a host and no address, which would resolve to itself.
pub fn is_name(seed: &str) -> bool {
    let bare = seed.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_err() && seed.parse::<SocketAddr>().is_err()
}

/// Adds a name to those that are kept; false: nothing has changed.
pub fn remember(names: &mut Vec<String>, seed: &str) -> bool {
    if !is_name(seed) || names.first().is_some_and(|first| first == seed) {
        return false;
    }
    names.retain(|name| name != seed);
    names.insert(0, seed.to_owned());
    names.truncate(MOST);
    true
}

/// When the names are to be resolved.
#[derive(Debug, Clone, Copy)]
pub struct SeedSchedule {
    heard: Moment,
    next: Moment,
    pause: Duration,
}

impl SeedSchedule {
    /// Somebody may be heard yet.
    pub fn new(now: Moment) -> SeedSchedule {
        SeedSchedule { heard: now, next: now, pause: PAUSES.0 }
    }

    /// Whether a round is due. `anyone`: a member is heard.
    pub fn is_due(&mut self, now: Moment, anyone: bool) -> bool {
        if anyone {
            *self = SeedSchedule::new(now);
        }
        if now.since(self.heard) < SILENCE || now < self.next {
            return false;
        }
        self.next = now.after(self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_and_addresses_are_not() {
        for (seed, name) in [
            ("m1", true),
            ("m1.example:7646", true),
            ("10.0.0.1", false),
            ("10.0.0.1:7646", false),
            ("fd00::1", false),
            ("[fd00::1]", false),
            ("[fd00::1]:7646", false),
        ] {
            assert_eq!(is_name(seed), name, "{seed}");
        }
        let mut names = Vec::new();
        assert!(remember(&mut names, "m1") && remember(&mut names, "m2"));
        assert!(!remember(&mut names, "m2") && !remember(&mut names, "10.0.0.1"));
        assert!(remember(&mut names, "m1"), "it is the latest now");
        assert_eq!(names, ["m1", "m2"]);
        (0..20).for_each(|n| assert!(remember(&mut names, &format!("x{n}"))));
        assert_eq!(names.len(), MOST);
    }

    #[test]
    fn names_are_resolved_while_nobody_is_heard_ever_more_seldom() {
        let rounds = |heard_until: u64| {
            let mut schedule = SeedSchedule::new(Moment::ZERO);
            let due =
                |second: &u64| schedule.is_due(Moment::from_millis(second * 1000), *second < heard_until);
            (0..200).filter(due).collect::<Vec<u64>>()
        };
        assert_eq!(rounds(0), [5, 10, 20, 40, 80, 140]);
        assert_eq!(rounds(101)[..3], [105, 110, 120]);
        assert!(rounds(200).is_empty());
    }
}
