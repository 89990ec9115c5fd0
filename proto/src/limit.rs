//! Rate limits: token buckets, and a bounded table of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Moment;

/// A rate: one per `every`, and bursts of up to `burst` after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Average time between two.
    pub every: Duration,
    /// Most at once.
    pub burst: u32,
}

impl Rate {
    /// So many per second, and as many at once.
    pub const fn per_second(count: u32) -> Rate {
        Rate { every: Duration::from_millis(1000 / count as u64), burst: count }
    }
}

/// One bucket, by the generic cell rate algorithm: the moment at which it will be full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateBucket {
    full: Moment,
}

impl RateBucket {
    /// Takes one if it fits within the rate; false if not.
    pub fn take(&mut self, rate: Rate, now: Moment) -> bool {
        let next = self.full.max(now).after(rate.every);
        let fits = next.since(now) <= rate.every.saturating_mul(rate.burst);
        if fits {
            self.full = next;
        }
        fits
    }

    /// Whether nothing was taken lately, so that it need not be kept.
    pub fn is_full(&self, now: Moment) -> bool {
        self.full <= now
    }
}

/// A bucket for each key, none for idle ones. Beyond `most` all are forgotten, so a peer that can invent that
/// many keys gains a burst for each and takes nothing from others.
#[derive(Debug, Clone)]
pub struct RateLimiter<K> {
    rate: Rate,
    most: usize,
    buckets: BTreeMap<K, RateBucket>,
}

impl<K: Ord> RateLimiter<K> {
    /// A limiter of this rate per key, which remembers up to `most`.
    pub fn new(rate: Rate, most: usize) -> RateLimiter<K> {
        RateLimiter { rate, most, buckets: BTreeMap::new() }
    }

    /// Takes one for this key if it fits within its rate; false if not.
    pub fn take(&mut self, key: K, now: Moment) -> bool {
        if self.buckets.len() >= self.most && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= self.most {
                self.buckets.clear();
            }
        }
        self.buckets.entry(key).or_default().take(self.rate, now)
    }

    /// Number of remembered keys.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

/// Descriptors for all but the proxy's connections: listeners, checks, the link, the control socket, the page, files.
const RESERVED: u64 = 512;

/// How a process with so many descriptors divides them, so that clients never take those of checks, the link and the
/// control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Most connections of the proxy, of two descriptors each.
    pub connections: u64,
    /// Most pipes that move bulk data, of two descriptors each.
    pub pipes: u64,
}

impl DescriptorBudget {
    /// Of a limit of open files.
    pub fn of(limit: u64) -> DescriptorBudget {
        let pipes = (limit / 16).min(256);
        // Of a limit that is hardly enough for anything, most goes to what keeps the node a member.
        let reserved = RESERVED.min((limit / 4).max(128));
        let connections = limit.saturating_sub(reserved + 2 * pipes) / 2;
        DescriptorBudget { connections: connections.max(4), pipes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_burst_fits_and_then_the_rate() {
        let rate = Rate { every: Duration::from_millis(100), burst: 3 };
        let mut bucket = RateBucket::default();
        let taken = |bucket: &mut RateBucket, ms| (0..10).filter(|_| bucket.take(rate, at(ms))).count();
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(taken(&mut bucket, 99), 0);
        assert_eq!(taken(&mut bucket, 100), 1);
        assert_eq!(taken(&mut bucket, 1_000), 3, "a pause saves no more than a burst");
        assert!(!bucket.is_full(at(1_000)) && bucket.is_full(at(1_300)));
    }

    #[test]
    fn a_flooding_key_takes_nothing_from_others_and_the_table_stays_small() {
        let mut limiter = RateLimiter::new(Rate::per_second(10), 4);
        assert_eq!((0..100).filter(|_| limiter.take(1, at(0))).count(), 10);
        assert!(limiter.take(2, at(0)));
        for key in 0..1_000 {
            assert!(limiter.take(key + 10, at(1)));
            assert!(limiter.len() <= 4);
        }
    }

    #[test]
    fn clients_take_no_descriptors_that_others_need() {
        for (limit, connections, pipes) in [
            (0, 4, 0),
            (64, 4, 4),
            (200, 24, 12),
            (1024, 320, 64),
            (4096, 1536, 256),
            (20_000, 9488, 256),
            (1 << 20, 523_776, 256),
            (u64::MAX, (u64::MAX - 1024) / 2, 256),
        ] {
            let budget = DescriptorBudget::of(limit);
            assert_eq!(budget, DescriptorBudget { connections, pipes }, "{limit}");
        }
    }
}
