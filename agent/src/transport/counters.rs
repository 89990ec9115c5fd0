//! What was counted on the link since the start, for status.

use std::sync::atomic::{AtomicU64, Ordering};

use proto::control::LinkStatus;

/// One of the counters.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    SentBytes,
    ReceivedBytes,
    SentDatagrams,
    ReceivedDatagrams,
    RefusedStranger,
    RefusedKey,
    RefusedSeal,
    RefusedReplay,
    RefusedUnproven,
    RefusedFlood,
    RefusedConnections,
    SentGossipBytes,
    SentPulses,
    ReceivedAnswers,
}

/// How many there are.
const COUNTS: usize = Count::ReceivedAnswers as usize + 1;

/// All counters. They only grow.
#[derive(Debug, Default)]
pub(crate) struct LinkCounters([AtomicU64; COUNTS]);

impl LinkCounters {
    /// Counts so many more.
    pub(super) fn add(&self, count: Count, by: usize) {
        self.0[count as usize].fetch_add(by as u64, Ordering::Relaxed);
    }

    /// Counts one more.
    pub(super) fn one(&self, count: Count) {
        self.add(count, 1);
    }

    /// What one has come to.
    pub(super) fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }

    /// All of them, as status shows them.
    pub(crate) fn status(&self) -> LinkStatus {
        LinkStatus {
            sent_bytes: self.get(Count::SentBytes),
            received_bytes: self.get(Count::ReceivedBytes),
            sent_datagrams: self.get(Count::SentDatagrams),
            received_datagrams: self.get(Count::ReceivedDatagrams),
            refused_stranger: self.get(Count::RefusedStranger),
            refused_key: self.get(Count::RefusedKey),
            refused_seal: self.get(Count::RefusedSeal),
            refused_replay: self.get(Count::RefusedReplay),
            refused_unproven: self.get(Count::RefusedUnproven),
            refused_flood: self.get(Count::RefusedFlood),
            refused_connections: self.get(Count::RefusedConnections),
            sent_gossip_bytes: self.get(Count::SentGossipBytes),
            sent_pulses: self.get(Count::SentPulses),
            received_answers: self.get(Count::ReceivedAnswers),
        }
    }
}
