//! Places for connections: so many at once, so many for each source or member, and who has to go for a new one.
//!
//! A place that is taken is never refused to one who comes later: the one that has shown least goes. So
//! whoever opens connections and says nothing displaces itself, and what is in use stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proto::time::Moment;
use tokio_util::sync::CancellationToken;

use super::lock;

/// What a connection has shown; a smaller one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SlotPriority {
    /// It is in use: it has sent something, or waits for an answer.
    busy: bool,
    /// Since when.
    since: Moment,
}

#[derive(Debug)]
struct TakenSlot<K> {
    of: K,
    worth: SlotPriority,
    gone: CancellationToken,
}

#[derive(Debug)]
struct SlotTable<K> {
    next: u64,
    taken: BTreeMap<u64, TakenSlot<K>>,
}

/// A table of places.
#[derive(Debug)]
pub(super) struct ConnectionSlots<K> {
    most: usize,
    each: usize,
    inner: Mutex<SlotTable<K>>,
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot<K: Copy + Ord> {
    table: Arc<ConnectionSlots<K>>,
    number: u64,
    /// Someone else has got the place.
    pub(super) gone: CancellationToken,
}

impl<K: Copy + Ord> ConnectionSlots<K> {
    /// `most` places, of which one key may have `each`.
    pub(super) fn new(most: usize, each: usize) -> Arc<ConnectionSlots<K>> {
        Arc::new(ConnectionSlots {
            most,
            each,
            inner: Mutex::new(SlotTable { next: 0, taken: BTreeMap::new() }),
        })
    }

    /// Takes a place. When all are taken, or all of this key, the one of least worth among them goes for it.
    pub(super) fn take(self: &Arc<ConnectionSlots<K>>, of: K, now: Moment) -> ConnectionSlot<K> {
        let mut inner = lock(&self.inner);
        let own = inner.taken.values().filter(|taken| taken.of == of).count();
        if own >= self.each || inner.taken.len() >= self.most {
            let candidates = inner.taken.iter().filter(|(_, taken)| own < self.each || taken.of == of);
            let victim = candidates.min_by_key(|(_, taken)| taken.worth).map(|(number, _)| *number);
            if let Some(taken) = victim.and_then(|number| inner.taken.remove(&number)) {
                taken.gone.cancel();
            }
        }
        let number = inner.next;
        inner.next += 1;
        let gone = CancellationToken::new();
        let worth = SlotPriority { busy: false, since: now };
        inner.taken.insert(number, TakenSlot { of, worth, gone: gone.clone() });
        ConnectionSlot { table: self.clone(), number, gone }
    }

    /// Takes a place if one is free.
    pub(super) fn take_free(self: &Arc<ConnectionSlots<K>>, of: K, now: Moment) -> Option<ConnectionSlot<K>> {
        let inner = lock(&self.inner);
        let own = inner.taken.values().filter(|taken| taken.of == of).count();
        let free = own < self.each && inner.taken.len() < self.most;
        drop(inner);
        free.then(|| self.take(of, now))
    }

    /// Whether half of the places are taken.
    pub(super) fn is_busy(&self) -> bool {
        lock(&self.inner).taken.len() * 2 >= self.most
    }
}

impl<K: Copy + Ord> ConnectionSlot<K> {
    /// What the connection shows now.
    pub(super) fn shows(&self, busy: bool, now: Moment) {
        if let Some(taken) = lock(&self.table.inner).taken.get_mut(&self.number) {
            taken.worth = SlotPriority { busy, since: now };
        }
    }
}

impl<K: Copy + Ord> Drop for ConnectionSlot<K> {
    fn drop(&mut self) {
        lock(&self.table.inner).taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn the_oldest_silent_one_goes_and_what_talks_stays() {
        let places = ConnectionSlots::new(3, 3);
        let talks = places.take(1, at(0));
        talks.shows(true, at(0));
        let (silent, later) = (places.take(2, at(1)), places.take(3, at(2)));
        let new = places.take(4, at(3));
        assert!(silent.gone.is_cancelled());
        assert!(!talks.gone.is_cancelled() && !later.gone.is_cancelled() && !new.gone.is_cancelled());
        drop(silent);
        drop(new);
        assert!(places.take_free(5, at(4)).is_some(), "what went and what ended is free");
    }

    #[test]
    fn one_that_takes_more_than_its_share_displaces_itself() {
        let places = ConnectionSlots::new(100, 2);
        let mut own: Vec<_> = (0..1_000).map(|n| places.take(1, at(n))).collect();
        assert_eq!(own.iter().filter(|place| !place.gone.is_cancelled()).count(), 2);
        assert!(!places.is_busy());
        assert!(places.take_free(1, at(2_000)).is_none());
        assert!(places.take_free(2, at(2_000)).is_some());
        own.clear();
        assert!(lock(&places.inner).taken.is_empty());
    }
}
