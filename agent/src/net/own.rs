//! Watches this node's own address: one task that listens to the kernel's events, reads the current state,
//! and writes the address to advertise, and the interface that has it or why none has, into two watches. It is
//! their only writer. It keeps nothing that another read would not bring back, but which interface it last was, so it
//! can be stopped anywhere.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::kernel::{interface, interfaces};
use super::{Interface, NetError, fallback, reachable};
use crate::lifecycle::Lifecycle;
use crate::netlink::route::AddressMessage;
use crate::netlink::{KernelChanges, messages};

/// Replacing an address takes two events, remove and add; a read between them would see neither.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Polling, in case an event is lost.
const REREAD: Duration = Duration::from_secs(30);
/// Without events there is only polling.
const REREAD_BLIND: Duration = Duration::from_secs(5);

/// Which address is this node's, and where it was.
#[derive(Debug, Clone)]
pub(crate) struct OwnAddressRule {
    /// The interface of the mesh when the node joined.
    pub(crate) interface: String,
    /// The address that others were told.
    pub(crate) wanted: IpAddr,
    /// No other address takes its place.
    pub(crate) pinned: bool,
    /// The interface was chosen after the address, which therefore counts only there, until that interface has one.
    pub(crate) moved: bool,
}

/// Where this node is reached now.
#[derive(Clone)]
pub(crate) struct OwnAddressWatch {
    /// The address, while an interface that is up has it.
    pub(crate) address: watch::Receiver<Option<IpAddr>>,
    /// The interface that it is on.
    pub(crate) interface: watch::Receiver<OwnInterface>,
}

/// The interface of this node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnInterface {
    /// The one that has the address, or had it last.
    pub(crate) name: String,
    /// Why there is no address, once that was looked for.
    pub(crate) missing: Option<NoOwnAddress>,
}

/// Keeps watching the address that other nodes may use: the wanted one on any interface that is up, since an
/// interface is renamed, made anew or put into a bond, and the others send to the address; else another one of the
/// same family on the same interface, unless `pinned`; else None.
pub(crate) fn watch_own(rule: OwnAddressRule, life: &Lifecycle) -> OwnAddressWatch {
    let (address_in, address) = watch::channel(None);
    let (interface_in, interface) =
        watch::channel(OwnInterface { name: rule.interface.clone(), missing: None });
    let stopping = life.draining.clone();
    let own = OwnAddress { rule, index: None, address: address_in, interface: interface_in, degraded: false };
    life.supervise("net", own, move |own| {
        let stopping = stopping.clone();
        // After leaving the cluster there is no address to watch.
        Box::pin(async move {
            stopping.run_until_cancelled(own.watch_address()).await;
        })
    });
    OwnAddressWatch { address, interface }
}

struct OwnAddress {
    rule: OwnAddressRule,
    /// The number of the interface that had it last, which a new name does not change.
    index: Option<u32>,
    address: watch::Sender<Option<IpAddr>>,
    interface: watch::Sender<OwnInterface>,
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
                match timeout(REREAD, self.next_that_matters(changes)).await {
                    // What has changed does not matter: the current state is read, so no change has to be
                    // kept.
                    Ok(Ok(())) => debounce(changes).await,
                    Ok(Err(_)) => {
                        sleep(REREAD_BLIND).await;
                        break;
                    }
                    Err(_elapsed) => {}
                }
            }
        }
    }

    /// Waits for a change that may be one of the address. Virtual IPs are renewed all the time.
    async fn next_that_matters(&self, changes: &mut KernelChanges) -> io::Result<()> {
        loop {
            let bytes = changes.next().await?;
            let held = (*self.address.borrow()).filter(|ip| *ip == self.rule.wanted);
            if bytes.is_none_or(|bytes| matters(bytes, held)) {
                return Ok(());
            }
        }
    }

    fn read(&mut self) {
        match self.find() {
            Ok(Ok(found)) => {
                self.index = Some(found.index);
                if std::mem::take(&mut self.rule.moved) {
                    self.rule.wanted = found.address;
                }
                self.publish(Ok((found.address, Some(found.interface))));
            }
            Ok(Err(why)) => self.publish(Err(why)),
            Err(error) => {
                let wanted = self.rule.wanted;
                if !self.degraded {
                    self.degraded = true;
                    tracing::warn!("{error}; can only check whether {wanted} exists");
                }
                let here = fallback::is_here(wanted);
                self.publish(if here { Ok((wanted, None)) } else { Err(NoOwnAddress::Removed) });
            }
        }
    }

    /// Where it is. A node may have hundreds of interfaces, so the one that had it last is asked first.
    fn find(&self) -> Result<Result<OwnPlace, NoOwnAddress>, NetError> {
        let last = interface(&self.interface.borrow().name)?;
        let last = last.filter(|one| one.up && one.holds(self.rule.wanted));
        let all = last.map_or_else(interfaces, |one| Ok(vec![one]))?;
        Ok(own_place(&all, &self.rule, (*self.address.borrow(), self.index)))
    }

    fn publish(&self, now: Result<(IpAddr, Option<String>), NoOwnAddress>) {
        let (now, name, missing) = match now {
            Ok((address, name)) => (Some(address), name, None),
            Err(why) => (None, None, Some(why)),
        };
        let mut on = self.interface.borrow().clone();
        if let Some(name) = name.filter(|name| *name != on.name) {
            tracing::info!("this node's address is on {name} now, no longer on {}", on.name);
            on.name = name;
        }
        on.missing = missing;
        let interface = on.name.clone();
        self.interface.send_if_modified(|held| {
            let changed = *held != on;
            *held = on;
            changed
        });
        let mut before = None;
        let changed = self.address.send_if_modified(|held| {
            before = *held;
            *held = now;
            before != now
        });
        match (before, now, missing) {
            (Some(old), Some(new), _) if changed => {
                tracing::info!("address on {interface} changed from {old} to {new}");
            }
            (None, Some(new), _) => tracing::info!("address {new} appeared on {interface}"),
            (Some(old), None, Some(why)) => {
                tracing::warn!("address {old} is no longer advertised: {interface}: {why}");
            }
            _ => {}
        }
    }
}

/// Whether changes can be news: while the wanted address is `held`, those of others are none, unless one is removed.
fn matters(changes: &[u8], held: Option<IpAddr>) -> bool {
    messages(changes).any(|message| {
        let address = AddressMessage::read(message.kind, message.body);
        held.is_none() || address.is_none_or(|address| address.gone || Some(address.ip) == held)
    })
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

/// An address that may be advertised.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnPlace {
    address: IpAddr,
    interface: String,
    index: u32,
}

/// Why none may be: the end of a sentence about the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoOwnAddress {
    /// Neither it nor the address is on this node.
    #[error("there is no such interface, and no other has the address")]
    NoInterface,
    /// The interface is down, or has no carrier.
    #[error("it is down or has no carrier")]
    Down,
    /// It has others, and none may take its place.
    #[error("it no longer has the address")]
    Removed,
    /// None of its addresses is of use to others.
    #[error("it has no address that other nodes can reach")]
    Useless,
}

/// What may be advertised, given all interfaces, the address that is advertised now, and the number of the
/// interface that had it last.
fn own_place(
    interfaces: &[Interface],
    rule: &OwnAddressRule,
    (current, index): (Option<IpAddr>, Option<u32>),
) -> Result<OwnPlace, NoOwnAddress> {
    let place = |on: &Interface, address| OwnPlace { address, interface: on.name.clone(), index: on.index };
    let named = |one: &Interface| one.name == rule.interface;
    let allowed = |one: &Interface| !rule.moved || named(one);
    let numbered = |one: &Interface| Some(one.index) == index;
    let holders = interfaces.iter().filter(|one| allowed(one) && one.up && one.holds(rule.wanted));
    if let Some(holder) = holders.min_by_key(|one| (!numbered(one), !named(one), one.loopback)) {
        return Ok(place(holder, rule.wanted));
    }
    // A new name keeps the number, and an interface that is made anew keeps the name.
    let mut same: Vec<&Interface> = interfaces.iter().filter(|one| numbered(one) || named(one)).collect();
    same.sort_by_key(|one| (!one.up, !numbered(one)));
    match same.first() {
        None => return Err(NoOwnAddress::NoInterface),
        Some(best) if !best.up => return Err(NoOwnAddress::Down),
        Some(_) if rule.pinned || !(reachable(rule.wanted) || rule.moved) => {
            return Err(NoOwnAddress::Removed);
        }
        Some(_) => {}
    }
    let up = || same.iter().filter(|one| one.up);
    // After one change it does not change again while that address exists.
    if let Some(current) = current.filter(|ip| reachable(*ip))
        && let Some(holder) = up().find(|one| one.holds(current))
    {
        return Ok(place(holder, current));
    }
    let family = |ip: IpAddr| ip.is_ipv4() == rule.wanted.is_ipv4();
    let any = |_: IpAddr| rule.moved;
    let best = |one: &Interface| one.best(family).or_else(|| one.best(any));
    up().find_map(|one| Some(place(one, best(one)?))).ok_or(NoOwnAddress::Useless)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::pick::tests::{iface, ip};
    use super::*;
    use crate::testing::in_namespaces;

    fn rule(interface: &str, wanted: &str, pinned: bool) -> OwnAddressRule {
        OwnAddressRule { interface: interface.to_owned(), wanted: ip(wanted), pinned, moved: false }
    }

    /// The address and the interface that [`own_place`] finds.
    fn found(
        interfaces: &[Interface],
        rule: &OwnAddressRule,
        current: Option<&str>,
        index: Option<u32>,
    ) -> Result<(IpAddr, String), NoOwnAddress> {
        own_place(interfaces, rule, (current.map(ip), index)).map(|place| (place.address, place.interface))
    }

    #[test]
    fn the_address_follows_the_interface() {
        let up = |addresses: &[&str]| iface("wg0", "wireguard", addresses);
        let down = Interface { up: false, ..up(&["10.0.0.1/24"]) };
        // interface, wanted, current, pinned -> address
        let cases = [
            (Some(up(&["10.0.0.1/24"])), "10.0.0.1", None, false, Ok("10.0.0.1")),
            (Some(up(&["10.0.0.1/24"])), "10.0.0.1", None, true, Ok("10.0.0.1")),
            (None, "10.0.0.1", Some("10.0.0.1"), false, Err(NoOwnAddress::NoInterface)),
            (Some(down), "10.0.0.1", Some("10.0.0.1"), false, Err(NoOwnAddress::Down)),
            (Some(up(&[])), "10.0.0.1", Some("10.0.0.1"), false, Err(NoOwnAddress::Useless)),
            (Some(up(&["10.0.0.2/24"])), "10.0.0.1", Some("10.0.0.1"), false, Ok("10.0.0.2")),
            (Some(up(&["10.0.0.2/24"])), "10.0.0.1", Some("10.0.0.1"), true, Err(NoOwnAddress::Removed)),
            (Some(up(&["10.0.0.2/24", "10.0.0.3/24"])), "10.0.0.1", Some("10.0.0.3"), false, Ok("10.0.0.3")),
            (Some(up(&["10.0.0.2/24", "10.0.0.1/24"])), "10.0.0.1", Some("10.0.0.2"), false, Ok("10.0.0.1")),
            (Some(up(&["fd00::1/64"])), "10.0.0.1", Some("10.0.0.1"), false, Err(NoOwnAddress::Useless)),
            (Some(up(&["fe80::1/64", "fd00::2/64"])), "fd00::1", None, false, Ok("fd00::2")),
            (Some(up(&["fe80::1/64"])), "fd00::1", None, false, Err(NoOwnAddress::Useless)),
        ];
        for (i, (interface, wanted, current, pinned, expected)) in cases.into_iter().enumerate() {
            let found = found(interface.as_slice(), &rule("wg0", wanted, pinned), current, None);
            assert_eq!(found.map(|(address, _)| address), expected.map(ip), "case {i}");
        }
    }

    /// What happened, what there is, whether the address is pinned; where it is found.
    type Case<'a> = (&'a str, Vec<Interface>, bool, Result<(&'a str, &'a str), NoOwnAddress>);

    #[test]
    fn an_interface_may_be_renamed_made_anew_or_give_its_address_away() {
        let at = |index, name: &str, addresses: &[&str]| Interface { index, ..iface(name, "", addresses) };
        let down = |interface| Interface { up: false, ..interface };
        let own = "10.0.0.1/24";
        // It was eth0 with the number 7.
        let cases: [Case<'_>; 11] = [
            ("renamed", vec![at(7, "ens3", &[own])], true, Ok(("10.0.0.1", "ens3"))),
            (
                "renamed, another address",
                vec![at(7, "ens3", &["10.0.0.2/24"])],
                false,
                Ok(("10.0.0.2", "ens3")),
            ),
            ("the same, pinned", vec![at(7, "ens3", &["10.0.0.2/24"])], true, Err(NoOwnAddress::Removed)),
            ("made anew", vec![at(9, "eth0", &[own])], true, Ok(("10.0.0.1", "eth0"))),
            (
                "made anew, another address",
                vec![at(9, "eth0", &["10.0.0.2/24"])],
                false,
                Ok(("10.0.0.2", "eth0")),
            ),
            ("made anew under another name", vec![at(9, "ens3", &[own])], false, Ok(("10.0.0.1", "ens3"))),
            (
                "neither name, number nor address",
                vec![at(9, "ens3", &["10.0.0.2/24"])],
                false,
                Err(NoOwnAddress::NoInterface),
            ),
            ("in a bond", vec![at(7, "eth0", &[]), at(9, "bond0", &[own])], true, Ok(("10.0.0.1", "bond0"))),
            (
                "names swapped",
                vec![at(8, "eth0", &["10.9.0.1/24"]), at(7, "eth1", &[own])],
                false,
                Ok(("10.0.0.1", "eth1")),
            ),
            (
                "names swapped, another address",
                vec![at(8, "eth0", &["10.9.0.1/24"]), at(7, "eth1", &["10.0.0.2/24"])],
                false,
                Ok(("10.0.0.2", "eth1")),
            ),
            (
                "left on one that is down",
                vec![down(at(7, "eth0", &[own])), at(9, "eth1", &[own])],
                false,
                Ok(("10.0.0.1", "eth1")),
            ),
        ];
        for (what, interfaces, pinned, expected) in cases {
            let found = found(&interfaces, &rule("eth0", "10.0.0.1", pinned), Some("10.0.0.1"), Some(7));
            let expected = expected.map(|(address, name)| (ip(address), name.to_owned()));
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn an_interface_that_was_chosen_after_the_address_is_used_whatever_has_that_address() {
        let rule = OwnAddressRule { moved: true, ..rule("eth1", "10.0.0.1", false) };
        let old = || iface("eth0", "", &["10.0.0.1/24"]);
        let on = |new: Interface| found(&[old(), new], &rule, None, None).map(|(address, _)| address);
        assert_eq!(on(iface("eth1", "", &["fd00::7/64", "10.7.0.7/24"])), Ok(ip("10.7.0.7")));
        assert_eq!(on(iface("eth1", "", &["fd00::7/64"])), Ok(ip("fd00::7")));
        assert_eq!(on(iface("eth1", "", &["10.0.0.1/32", "10.7.0.7/24"])), Ok(ip("10.0.0.1")));
        assert_eq!(on(iface("eth1", "", &[])), Err(NoOwnAddress::Useless));
        assert_eq!(
            on(Interface { up: false, ..iface("eth1", "", &["10.7.0.7/24"]) }),
            Err(NoOwnAddress::Down)
        );
        assert_eq!(found(&[old()], &rule, None, None), Err(NoOwnAddress::NoInterface));
    }

    #[test]
    fn while_the_address_is_held_others_are_news_only_when_one_is_removed() {
        use nix::libc::{RTM_DELADDR, RTM_NEWADDR, RTM_NEWLINK};
        let message = |kind: u16, body: &[u8]| {
            let length = u32::try_from(16 + body.len()).unwrap().to_ne_bytes();
            [length.as_slice(), &kind.to_ne_bytes(), &[0; 10], body].concat()
        };
        let vip = AddressMessage::make(ip("10.0.0.50"), 2, None, (0, 2), 0);
        let own = AddressMessage::make(ip("10.0.0.1"), 2, None, (9, 9), 0);
        let held = Some(ip("10.0.0.1"));
        for (changes, held, expected) in [
            (vec![message(RTM_NEWADDR, &vip)], held, false),
            (vec![message(RTM_NEWADDR, &vip)], None, true),
            (vec![message(RTM_NEWADDR, &own)], held, true),
            (vec![message(RTM_DELADDR, &vip)], held, true),
            (vec![message(RTM_NEWLINK, &[0; 16])], held, true),
            (vec![message(RTM_NEWADDR, &vip), message(RTM_DELADDR, &own)], held, true),
            (vec![], held, false),
        ] {
            assert_eq!(matters(&changes.concat(), held), expected, "{changes:?} {held:?}");
        }
    }

    #[test]
    fn any_loopback_address_is_on_the_loopback_and_none_replaces_it() {
        let lo = Interface { loopback: true, ..iface("lo", "", &["127.0.0.1/8"]) };
        let on = |lo: &Interface, wanted| {
            found(std::slice::from_ref(lo), &rule("lo", wanted, false), None, None).ok().map(|(ip, _)| ip)
        };
        assert_eq!(on(&lo, "127.0.0.5"), Some(ip("127.0.0.5")));
        assert_eq!(on(&lo, "10.0.0.1"), None);
        let lo = Interface { addresses: Vec::new(), ..lo };
        assert_eq!(on(&lo, "127.0.0.5"), None);
    }

    #[tokio::test]
    async fn the_task_finds_a_loopback_address_and_ends_with_the_life() {
        let life = Lifecycle::new();
        let mut seen = watch_own(rule("lo", "127.0.0.5", false), &life).address;
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
            let OwnAddressWatch { address: mut seen, interface } =
                watch_own(rule("w0", "10.9.0.1", false), &life);
            let steps: [(&[&str], Option<&str>); 10] = [
                (&["addr add 10.9.0.1/24 dev w0", "link set w1 up", "link set w0 up"], Some("10.9.0.1")),
                (&["link set w1 down"], None),
                (&["link set w1 up"], Some("10.9.0.1")),
                (&["addr add 10.9.1.2/24 dev w0", "addr del 10.9.0.1/24 dev w0"], Some("10.9.1.2")),
                (&["addr del 10.9.1.2/24 dev w0"], None),
                (&["addr add 10.9.0.3/24 dev w0"], Some("10.9.0.3")),
                (&["link set w0 down"], None),
                (&["link set w0 name ens3", "link set ens3 up"], Some("10.9.0.3")),
                (&["link del ens3"], None),
                (
                    &[
                        "link add w0 type veth peer name w1",
                        "link set w1 up",
                        "link set w0 up",
                        "addr add 10.9.0.1/24 dev w0",
                    ],
                    Some("10.9.0.1"),
                ),
            ];
            for (lines, expected) in steps {
                lines.iter().for_each(|line| run_ip(line));
                // Far less than the 30 s of polling: it came by an event.
                let arrives = seen.wait_for(|now| *now == expected.map(ip));
                timeout(Duration::from_secs(10), arrives)
                    .await
                    .unwrap_or_else(|_| panic!("{lines:?}"))
                    .unwrap();
                let name = if lines.iter().any(|line| line.contains("ens3")) { "ens3" } else { "w0" };
                assert_eq!(interface.borrow().name, name, "{lines:?}");
            }
            life.draining.cancel();
            life.finished().await;
        });
    }
}
