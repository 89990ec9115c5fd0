//! Watches this node's own address: one task that listens to the kernel's events, reads the current state,
//! and writes the address to advertise into a watch. It is that watch's only writer. It keeps nothing that
//! another read would not bring back, so it can be stopped anywhere.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::kernel::interface;
use super::{Interface, fallback, reachable};
use crate::lifecycle::Lifecycle;
use crate::netlink::KernelChanges;

/// Replacing an address takes two events, remove and add; a read between them would see neither.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Polling, in case an event is lost.
const REREAD: Duration = Duration::from_secs(30);
/// Without events there is only polling.
const REREAD_BLIND: Duration = Duration::from_secs(5);

/// Keeps `out` at the address that other nodes may use: `wanted` while `iface` is up and has it, else another
/// of the same family that it has (unless `pinned`), else None.
pub(crate) fn watch_own(
    iface: String,
    wanted: IpAddr,
    pinned: bool,
    life: &Lifecycle,
) -> watch::Receiver<Option<IpAddr>> {
    let (out, address) = watch::channel(None);
    let stopping = life.draining.clone();
    let own = OwnAddress { iface, wanted, pinned, out, degraded: false };
    life.supervise("net", own, move |own| {
        let stopping = stopping.clone();
        // After leaving the cluster there is no address to watch.
        Box::pin(async move {
            stopping.run_until_cancelled(own.watch_address()).await;
        })
    });
    address
}

struct OwnAddress {
    iface: String,
    wanted: IpAddr,
    pinned: bool,
    out: watch::Sender<Option<IpAddr>>,
    degraded: bool,
}

impl OwnAddress {
    async fn watch_address(&mut self) {
        loop {
            // Subscribed before the read, so that changes in between are seen.
            let mut changes = KernelChanges::subscribe().ok();
            loop {
                self.read();
                let Some(changes) = &mut changes else {
                    sleep(REREAD_BLIND).await;
                    break;
                };
                match timeout(REREAD, changes.next()).await {
                    // What has changed does not matter: the current state is read, so no change has to be
                    // kept.
                    Ok(Ok(_)) => debounce(changes).await,
                    Ok(Err(_)) => {
                        sleep(REREAD_BLIND).await;
                        break;
                    }
                    Err(_elapsed) => {}
                }
            }
        }
    }

    fn read(&mut self) {
        let now = match interface(&self.iface) {
            Ok(found) => self.decide(found.as_ref()),
            Err(error) => {
                if !self.degraded {
                    self.degraded = true;
                    tracing::warn!("{error}; can only check whether {} exists", self.wanted);
                }
                let here = fallback::is_here(self.wanted);
                (here.then_some(self.wanted), "the address was removed")
            }
        };
        self.publish_address(now);
    }

    fn decide(&self, interface: Option<&Interface>) -> (Option<IpAddr>, &'static str) {
        own_address(interface, self.wanted, *self.out.borrow(), self.pinned)
    }

    fn publish_address(&self, (now, why): (Option<IpAddr>, &'static str)) {
        let mut before = None;
        let changed = self.out.send_if_modified(|held| {
            before = *held;
            *held = now;
            before != now
        });
        if !changed {
            return;
        }
        let iface = &self.iface;
        match (before, now) {
            (Some(old), Some(new)) => tracing::info!("address on {iface} changed from {old} to {new}"),
            (None, Some(new)) => tracing::info!("address {new} appeared on {iface}"),
            (Some(old), None) => tracing::warn!("address {old} is no longer advertised: {iface}: {why}"),
            (None, None) => {}
        }
    }
}

/// Waits for a burst to end, but not forever: on a busy node some interface always changes.
async fn debounce(changes: &mut KernelChanges) {
    let quiet = async {
        while changes.next().await.is_ok() {}
        // A failed socket reports the error again at the next wait; here it must not cut the time short.
        std::future::pending::<()>().await;
    };
    let _ = timeout(DEBOUNCE, quiet).await;
}

/// What may be advertised, given the interface's current state, and why nothing may.
fn own_address(
    interface: Option<&Interface>,
    wanted: IpAddr,
    current: Option<IpAddr>,
    pinned: bool,
) -> (Option<IpAddr>, &'static str) {
    let Some(interface) = interface else { return (None, "the interface was removed") };
    if !interface.up {
        return (None, "the interface is down");
    }
    if interface.holds(wanted) {
        return (Some(wanted), "");
    }
    if pinned || !reachable(wanted) {
        return (None, "the address was removed");
    }
    // After one change it does not change again while that address exists.
    if let Some(current) = current.filter(|ip| reachable(*ip) && interface.holds(*ip)) {
        return (Some(current), "");
    }
    let other = interface.best(|ip| ip.is_ipv4() == wanted.is_ipv4());
    (other, "it has no address that other nodes can reach")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::pick::tests::{iface, ip};
    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn the_address_follows_the_interface() {
        let up = |addresses: &[&str]| iface("wg0", "wireguard", addresses);
        let down = Interface { up: false, ..up(&["10.0.0.1/24"]) };
        // interface, wanted, current, pinned -> address
        let cases = [
            (Some(up(&["10.0.0.1/24"])), "10.0.0.1", None, false, Some("10.0.0.1")),
            (Some(up(&["10.0.0.1/24"])), "10.0.0.1", None, true, Some("10.0.0.1")),
            (None, "10.0.0.1", Some("10.0.0.1"), false, None),
            (Some(down), "10.0.0.1", Some("10.0.0.1"), false, None),
            (Some(up(&[])), "10.0.0.1", Some("10.0.0.1"), false, None),
            (Some(up(&["10.0.0.2/24"])), "10.0.0.1", Some("10.0.0.1"), false, Some("10.0.0.2")),
            (Some(up(&["10.0.0.2/24"])), "10.0.0.1", Some("10.0.0.1"), true, None),
            (
                Some(up(&["10.0.0.2/24", "10.0.0.3/24"])),
                "10.0.0.1",
                Some("10.0.0.3"),
                false,
                Some("10.0.0.3"),
            ),
            (
                Some(up(&["10.0.0.2/24", "10.0.0.1/24"])),
                "10.0.0.1",
                Some("10.0.0.2"),
                false,
                Some("10.0.0.1"),
            ),
            (Some(up(&["fd00::1/64"])), "10.0.0.1", Some("10.0.0.1"), false, None),
            (Some(up(&["fe80::1/64", "fd00::2/64"])), "fd00::1", None, false, Some("fd00::2")),
            (Some(up(&["fe80::1/64"])), "fd00::1", None, false, None),
        ];
        for (i, (interface, wanted, current, pinned, expected)) in cases.into_iter().enumerate() {
            let (found, why) = own_address(interface.as_ref(), ip(wanted), current.map(ip), pinned);
            assert_eq!(found, expected.map(ip), "case {i}");
            assert!(found.is_some() || !why.is_empty(), "case {i}");
        }
    }

    #[test]
    fn any_loopback_address_is_on_the_loopback_and_none_replaces_it() {
        let lo = Interface { loopback: true, ..iface("lo", "", &["127.0.0.1/8"]) };
        assert_eq!(own_address(Some(&lo), ip("127.0.0.5"), None, false).0, Some(ip("127.0.0.5")));
        assert_eq!(own_address(Some(&lo), ip("10.0.0.1"), None, false).0, None);
        let lo = Interface { addresses: Vec::new(), ..lo };
        assert_eq!(own_address(Some(&lo), ip("127.0.0.5"), None, false).0, None);
    }

    #[tokio::test]
    async fn the_task_finds_a_loopback_address_and_ends_with_the_life() {
        let life = Lifecycle::new();
        let mut seen = watch_own("lo".to_owned(), ip("127.0.0.5"), false, &life);
        seen.wait_for(Option::is_some).await.unwrap();
        assert_eq!(*seen.borrow(), Some(ip("127.0.0.5")));
        life.draining.cancel();
        life.finished().await;
    }

    fn run_ip(line: &str) {
        let status = Command::new("ip").args(line.split(' ')).status().expect("needs `ip` of iproute2");
        assert!(status.success(), "ip {line}");
    }

    #[test]
    fn changes_of_a_real_interface_arrive_at_once() {
        let test = "net::own::tests::changes_of_a_real_interface_arrive_at_once";
        if in_namespaces(test, &["--net"], "ip link set lo up").is_none() {
            return;
        }
        run_ip("link add w0 type veth peer name w1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let life = Lifecycle::new();
            let mut seen = watch_own("w0".to_owned(), ip("10.9.0.1"), false, &life);
            let steps: [(&[&str], Option<&str>); 7] = [
                (&["addr add 10.9.0.1/24 dev w0", "link set w1 up", "link set w0 up"], Some("10.9.0.1")),
                (&["link set w1 down"], None),
                (&["link set w1 up"], Some("10.9.0.1")),
                (&["addr add 10.9.1.2/24 dev w0", "addr del 10.9.0.1/24 dev w0"], Some("10.9.1.2")),
                (&["addr del 10.9.1.2/24 dev w0"], None),
                (&["addr add 10.9.0.3/24 dev w0"], Some("10.9.0.3")),
                (&["link del w0"], None),
            ];
            for (lines, expected) in steps {
                lines.iter().for_each(|line| run_ip(line));
                // Far less than the 30 s of polling: it came by an event.
                let arrives = seen.wait_for(|now| *now == expected.map(ip));
                timeout(Duration::from_secs(10), arrives)
                    .await
                    .unwrap_or_else(|_| panic!("{lines:?}"))
                    .unwrap();
            }
            life.draining.cancel();
            life.finished().await;
        });
    }
}
