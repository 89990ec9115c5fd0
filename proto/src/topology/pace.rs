//! How often a node pulses masters, by its place: so that a master gets about as many pulses in a cluster of any size.

use std::time::Duration;

use super::core::SMALLEST;
use super::{Place, core_size};
use crate::pulse::Pace;

/// Most pulses per second that one master should get from the other masters, from all workers in the core, and from
/// all attached nodes.
const FROM_MASTERS: u32 = 200;
const FROM_CORE: u32 = 60;
const FROM_ATTACHED: u32 = 100;

/// The same of attached nodes that have all just started, and the time that this may take for them to pulse at once.
const STARTING: u32 = 140;
const AT_ONCE: Duration = Duration::from_secs(1);

/// The same of all nodes in a burst, while it does not answer.
const IN_BURST: u32 = 40_000;

/// Time between two pulses of a worker to one master where all nodes gossip: that a master is silent for all takes
/// longer than a worker's two pulses, whoever notices it first, and masters pulse each other twice as often.
const WORKER: Duration = Duration::from_millis(200);

/// Shortest time between two pulses of an attached node to one master.
const ATTACHED: Duration = Duration::from_secs(2);

/// The pace of a node in this place, which is one of so many masters or a worker.
///
/// | | interval |
/// |---|---|
/// | a master | 100 ms |
/// | a worker where all gossip | 200 ms |
/// | a worker in the core | so long that all of them together send 60 a second: 200 ms in a core of 12 |
/// | an attached node | 2 s, and so long that all together send 100 a second: 50 s at 5,000 |
pub fn pace(place: Place, is_master: bool, masters: usize, members: usize) -> Pace {
    let share = |nodes: usize, rate: u32| {
        Duration::from_secs(1).saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)) / rate
    };
    let fast = Pace::FAST;
    let interval = match place {
        _ if is_master => fast.interval.max(share(masters, FROM_MASTERS)),
        Place::Everyone => WORKER,
        Place::Core => WORKER.max(share(core_size(members), FROM_CORE)),
        Place::Attached => ATTACHED.max(share(members, FROM_ATTACHED)),
    };
    let start = match place {
        Place::Attached if !is_master => share(members, STARTING).saturating_sub(AT_ONCE),
        _ => Duration::ZERO,
    };
    Pace { interval, burst: fast.burst.max(share(members, IN_BURST)), start, ..fast }
}

/// Shortest time between two statements of a core member's record about round trips and losses: they vary all the time,
/// and each new record goes to all nodes. So long that all of a core state as much as one of 12 members.
pub fn measurements(members: usize) -> Duration {
    const SMALL: Duration = Duration::from_secs(30);
    let cores = core_size(members).max(SMALLEST).div_ceil(SMALLEST);
    SMALL.saturating_mul(u32::try_from(cores).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_gets_about_as_many_pulses_in_a_cluster_of_any_size() {
        let ms = |place, is_master, masters, members| {
            pace(place, is_master, masters, members).interval.as_millis()
        };
        assert_eq!(pace(Place::Everyone, true, 3, 32), Pace::FAST);
        assert_eq!(ms(Place::Everyone, false, 3, 32), 200);
        for members in [100, 1_000, 5_000] {
            assert_eq!(ms(Place::Core, true, 5, members), 100, "masters pulse each other as ever");
        }
        assert_eq!(ms(Place::Core, true, 100, 100), 500);
        assert_eq!([100, 5_000].map(|members| ms(Place::Core, false, 3, members)), [200, 1_666]);
        let attached = [100, 1_000, 5_000].map(|members| ms(Place::Attached, false, 3, members));
        assert_eq!(attached, [2_000, 10_000, 50_000]);
        assert_eq!(pace(Place::Attached, false, 3, 5_000).burst, Duration::from_millis(125));
        let start =
            [200, 1_000, 5_000].map(|members| pace(Place::Attached, false, 3, members).start.as_secs());
        assert_eq!(start, [0, 6, 34], "nodes that all start at once do not all pulse at once");
        assert_eq!(pace(Place::Core, false, 3, 5_000).start, Duration::ZERO);
        assert_eq!([4, 600, 1_000, 5_000].map(|members| measurements(members).as_secs()), [30, 30, 60, 270]);
    }
}
