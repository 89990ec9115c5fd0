//! How much one member may say: more is dropped before anything looks at it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::node::NodeId;
use crate::time::Moment;

/// Messages of one sender a second for each VIP. A candidate in doubt asks some twenty times in its first
/// second, an owner beats twenty times, each question of up to 16 candidates is answered; all of that is
/// less than half of this.
pub const RATE: u64 = 200;

/// Senders that are remembered: who sends at all are candidates, masters and those that are asked.
const MAX_SENDERS: usize = 1_024;

/// A bucket for each sender, in thousandths of a message.
#[derive(Debug, Clone, Copy)]
struct SenderBucket {
    left: u64,
    at: Moment,
}

/// How much each sender has left.
#[derive(Debug, Clone, Default)]
pub struct MessageLimiter {
    buckets: BTreeMap<NodeId, SenderBucket>,
    vips: u64,
    dropped: u64,
}

impl MessageLimiter {
    /// For so many VIPs.
    pub fn set_vips(&mut self, vips: usize) {
        self.vips = vips as u64;
    }

    /// Whether so many messages of this sender, which came in one datagram, are within its rate.
    pub fn admit(&mut self, now: Moment, from: NodeId, messages: usize) -> bool {
        // One second's worth may come at once: what has waited while this node was busy comes so.
        let full = RATE * 1_000 * self.vips.max(1);
        if !self.buckets.contains_key(&from) && self.buckets.len() >= MAX_SENDERS {
            // Who has been silent for a second has a full one anyway.
            self.buckets.retain(|_, bucket| now.since(bucket.at) < Duration::from_secs(1));
        }
        let known = self.buckets.get(&from).copied();
        let admitted = match known {
            None if self.buckets.len() >= MAX_SENDERS => None,
            None => Some(full),
            Some(bucket) => {
                let gained = now.since(bucket.at).as_millis() as u64 * (full / 1_000);
                Some(bucket.left.saturating_add(gained).min(full))
            }
        };
        let left = admitted.and_then(|left| left.checked_sub(messages as u64 * 1_000));
        if let Some(left) = left.or(admitted) {
            self.buckets.insert(from, SenderBucket { left, at: now });
        }
        self.dropped += u64::from(left.is_none());
        left.is_some()
    }

    /// How many datagrams have been dropped, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_sender_costs_nobody_else_anything_and_ends_with_it() {
        let (flood, calm) = (NodeId([1; 10]), NodeId([2; 10]));
        let mut intake = MessageLimiter::default();
        intake.set_vips(2);
        let mut admitted = 0;
        for ms in 0..10_000 {
            let now = Moment::from_millis(ms);
            admitted += (0..10).filter(|_| intake.admit(now, flood, 2)).count() as u64 * 2;
            if ms % 50 == 0 {
                assert!(intake.admit(now, calm, 2), "at {ms}");
            }
        }
        // One second's worth at once, and that of ten seconds.
        assert!((RATE * 2 * 11 - 2..=RATE * 2 * 11).contains(&admitted), "{admitted}");
        assert!(intake.admit(Moment::from_millis(10_010), flood, 2));
        assert_eq!(intake.dropped(), 100_000 - admitted / 2);
    }

    #[test]
    fn senders_beyond_the_bound_are_not_remembered() {
        let mut intake = MessageLimiter::default();
        for n in 0..5_000_u16 {
            let [a, b] = n.to_be_bytes();
            intake.admit(Moment::from_millis(10), NodeId([a, b, 0, 0, 0, 0, 0, 0, 0, 0]), 1);
        }
        assert_eq!(intake.buckets.len(), MAX_SENDERS);
        assert!(intake.admit(Moment::from_millis(1_010), NodeId([9; 10]), 1), "the silent have made room");
    }
}
