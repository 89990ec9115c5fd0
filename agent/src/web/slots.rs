//! Connection slots: a limit per client, and some reserved for this machine.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::source::ClientSource;

/// Concurrent connections from other machines: a hundred collectors and some people. At 16 kB each, 2 MB.
pub(super) const OTHERS: usize = 128;

/// Of these from one client: two browsers (six each) and some scripts, and still so few that it takes eight
/// clients to fill the page.
pub(super) const EACH: usize = 16;

/// Concurrent connections from this machine, which others can't take: probes, an exporter, a reverse proxy
/// for a hundred collectors. At 16 kB each, 4 MB.
pub(super) const OWN: usize = 256;

/// The slots.
#[derive(Default)]
pub(super) struct WebSlots(Mutex<BTreeMap<ClientSource, usize>>);

/// A slot, taken until it is dropped.
pub(super) struct WebSlot {
    places: Arc<WebSlots>,
    source: ClientSource,
}

impl WebSlots {
    /// A slot for a client; `None`: the client or all of them are at their limit.
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

    /// Slots by client; those without any are not kept, so there are never more entries than slots.
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
    fn one_client_takes_its_share_and_none_of_this_machines() {
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
