//! When to look at the kernel's interfaces and addresses: soon after it says that something has changed, and now and
//! then without.

use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::libc::{RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};
use proto::time::Moment;
use tracing::warn;

use crate::netlink::route::AddressMessage;
use crate::netlink::{self, messages};

/// Time between a change of interfaces or addresses and the look at them: they come in bursts.
pub(super) const SETTLE: Duration = Duration::from_millis(20);

/// Between two looks without a cause.
const LOOK: Duration = Duration::from_secs(10);

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KernelChange {
    /// An interface, in whatever way, or addresses other than the one below.
    Something,
    /// An address is gone from an interface.
    Gone(IpAddr, u32),
}

/// Word of the kernel about addresses and interfaces.
struct KernelWatch(netlink::KernelChanges);

impl KernelWatch {
    fn subscribe() -> io::Result<KernelWatch> {
        Ok(KernelWatch(netlink::KernelChanges::subscribe()?))
    }

    /// Waits for changes. Nothing is lost by giving up waiting.
    async fn next(&mut self) -> io::Result<Vec<KernelChange>> {
        loop {
            let changes = match self.0.next().await? {
                Some(bytes) => changes(bytes),
                // Which are not known: look at everything.
                None => vec![KernelChange::Something],
            };
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

fn changes(bytes: &[u8]) -> Vec<KernelChange> {
    let mut changes = Vec::new();
    for message in messages(bytes) {
        let change = match (message.kind, AddressMessage::read(message.kind, message.body)) {
            (_, Some(gone)) if gone.gone => KernelChange::Gone(gone.ip, gone.index),
            // Every renewal of ours says so too.
            (_, Some(held)) if held.valid_seconds.is_some() => continue,
            (RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR, _) => KernelChange::Something,
            _ => continue,
        };
        if !changes.contains(&change) {
            changes.push(change);
        }
    }
    changes
}

/// What is listened to, and the next look.
pub(super) struct KernelLookout {
    watch: Option<KernelWatch>,
    next: Moment,
}

impl KernelLookout {
    /// A look is due.
    pub(super) fn new() -> KernelLookout {
        KernelLookout { watch: None, next: Moment::ZERO }
    }

    /// Listens for changes from now on, where that can be done; whether it has done so already.
    pub(super) fn listen(&mut self) -> bool {
        let did = self.watch.is_some();
        if !did {
            self.watch = KernelWatch::subscribe().ok();
        }
        did
    }

    /// Listens no more: there is nothing to look at.
    pub(super) fn stop(&mut self) {
        self.watch = None;
    }

    /// Waits for changes. Nothing is lost by giving up waiting.
    pub(super) async fn changed(&mut self) -> io::Result<Vec<KernelChange>> {
        match &mut self.watch {
            Some(watch) => watch.next().await,
            None => pending().await,
        }
    }

    /// Something has changed. `is_held`: whether this node has set an address on an interface; one that is gone is put
    /// back at once.
    pub(super) fn take(
        &mut self,
        now: Moment,
        changes: io::Result<Vec<KernelChange>>,
        is_held: impl Fn(IpAddr, u32) -> bool,
    ) {
        let changes = changes.unwrap_or_else(|error| {
            warn!("no notifications of interface changes, polling instead: {error}");
            self.watch = None;
            Vec::new()
        });
        let ours = |change: &KernelChange| matches!(change, KernelChange::Gone(ip, on) if is_held(*ip, *on));
        if changes.iter().any(ours) {
            self.look_by(now);
        } else if changes.contains(&KernelChange::Something) {
            self.look_by(now.after(SETTLE));
        }
    }

    /// A look is due then.
    pub(super) fn look_by(&mut self, at: Moment) {
        self.next = self.next.min(at);
    }

    /// Whether it is due now; then the next is due later.
    pub(super) fn is_due(&mut self, now: Moment) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now.after(LOOK);
        }
        due
    }

    /// When it is.
    pub(super) fn deadline(&self) -> Moment {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::libc::RTM_DELADDR;
    use proptest::prelude::*;

    use super::super::kernel::KernelAddresses;
    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn a_look_follows_a_change_soon_and_at_once_where_an_address_of_ours_is_gone() {
        let at = Moment::from_millis;
        let vip: IpAddr = [10, 9, 0, 50].into();
        for (changes, due) in [
            (vec![], 10_000),
            (vec![KernelChange::Something], 120),
            (vec![KernelChange::Gone(vip, 3)], 10_000),
            (vec![KernelChange::Gone(vip, 2)], 100),
            (vec![KernelChange::Something, KernelChange::Gone(vip, 2)], 100),
        ] {
            let mut lookout = KernelLookout::new();
            assert!(lookout.is_due(at(0)));
            lookout.take(at(100), Ok(changes.clone()), |ip, on| (ip, on) == (vip, 2));
            assert_eq!(lookout.deadline(), at(due), "{changes:?}");
            assert!(!lookout.is_due(at(due - 1)) && lookout.is_due(at(due)) && !lookout.is_due(at(due)));
        }
    }

    fn ip(line: &str) -> String {
        let ran = Command::new("ip").args(line.split(' ')).output().expect("needs `ip` of iproute2");
        assert!(ran.status.success(), "ip {line}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    const SETUP: &str = "
        ip link set lo up
        ip link add w0 address 02:00:00:00:00:01 type veth peer name w1
        ip addr add 10.9.0.1/24 dev w0; ip addr add fd09::1/64 dev w0 nodad
        ip link set w0 up; ip link set w1 up";

    #[test]
    fn an_address_that_goes_is_told_and_so_is_a_link() {
        let test = "vip::lookout::tests::an_address_that_goes_is_told_and_so_is_a_link";
        if in_namespaces(test, &["--net"], SETUP).is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut kernel = KernelAddresses::default();
            kernel.open();
            assert!(kernel.list());
            let w0 = kernel.interfaces().iter().find(|one| one.name == "w0").unwrap().index;
            let lifetime = Duration::from_secs(100);
            let mut changes = KernelWatch::subscribe().unwrap();
            for vip in ["10.9.0.50", "fd09::50"] {
                let gone: IpAddr = vip.parse().unwrap();
                for _ in 0..2 {
                    kernel.set(Moment::ZERO, gone, (w0, "w0"), None, lifetime).unwrap();
                }
                let prefix = if gone.is_ipv4() { 32 } else { 128 };
                ip(&format!("addr del {vip}/{prefix} dev w0"));
                // The interface may still be settling; the address itself is told of once.
                let mut told = Vec::new();
                while !told.contains(&KernelChange::Gone(gone, w0)) {
                    told.extend(changes.next().await.unwrap());
                }
                assert_eq!(told.iter().filter(|one| **one != KernelChange::Something).count(), 1, "{told:?}");
            }
            ip("link set w0 down");
            while !changes.next().await.unwrap().contains(&KernelChange::Something) {}
        });
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..200), kind in RTM_NEWLINK..=RTM_DELADDR,
        ) {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            let _ = changes(&bytes);
        }
    }
}
