//! Places for connections: so many for each client, and some that only this machine can take.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::source::ClientSource;

/// Connections at once from other machines: a hundred collectors and the people who look. At 16 kB each, 2 MB.
pub(super) const OTHERS: usize = 128;

/// Of these from one client: two browsers (six each) and some scripts, and still so few that it takes eight
/// clients to fill the page.
pub(super) const EACH: usize = 16;

/// Connections at once from this machine, which others can't take: probes, an exporter, a proxy before it that
/// speaks for a hundred collectors. At 16 kB each, 4 MB.
pub(super) const OWN: usize = 256;

/// The places.
#[derive(Default)]
pub(super) struct WebSlots(Mutex<BTreeMap<ClientSource, usize>>);

/// A place that is taken, until it is dropped.
pub(super) struct WebSlot {
    places: Arc<WebSlots>,
    source: ClientSource,
}

impl WebSlots {
    /// A place for a client; none: it holds as many as it may, or all hold as many as there are.
    pub(super) fn take(self: &Arc<WebSlots>, from: IpAddr) -> Option<WebSlot> {
        let source = ClientSource::of(from);
        let mut taken = self.taken();
        let own = taken.get(&source).copied().unwrap_or(0);
        let free = match source {
            ClientSource::Loopback => own < OWN,
            _ => own < EACH && others(&taken) < OTHERS,
        };
        if !free {
            return None;
        }
        taken.insert(source, own + 1);
        Some(WebSlot { places: self.clone(), source })
    }

    /// By client; those without any are not kept, so there are never more than places.
    fn taken(&self) -> MutexGuard<'_, BTreeMap<ClientSource, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn others(taken: &BTreeMap<ClientSource, usize>) -> usize {
    taken.iter().filter(|(source, _)| **source != ClientSource::Loopback).map(|(_, count)| count).sum()
}

impl Drop for WebSlot {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match taken.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_its_share_and_nobody_takes_this_machines() {
        let places = Arc::new(WebSlots::default());
        let take = |text: &str| places.take(text.parse().unwrap());
        let mut held: Vec<WebSlot> = (0..EACH).filter_map(|i| take(&format!("2001:db8::{i:x}"))).collect();
        assert_eq!(held.len(), EACH);
        assert!(take("2001:db8::ffff").is_none(), "another address of the same /64");
        let others = || (0..OTHERS).filter_map(|i| take(&format!("10.0.{}.{}", i / 200, i % 200)));
        let more: Vec<WebSlot> = others().collect();
        assert_eq!(more.len(), OTHERS - EACH);
        assert!(take("192.0.2.1").is_none(), "there are no more");
        let own: Vec<WebSlot> = (0..OWN + 9).filter_map(|_| take("127.0.0.1")).collect();
        assert_eq!(own.len(), OWN, "kept for this machine");
        held.pop();
        assert!(take("192.0.2.1").is_some(), "and free again");
        drop((held, more, own));
        assert!(places.taken().is_empty());
    }
}
