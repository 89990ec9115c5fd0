//! Questions to the kernel, by rtnetlink. Each opens a socket of its own: they are rare, and nothing has to
//! be kept alive or put right in between.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::pin;

use futures_util::TryStreamExt;
use futures_util::future::{Either, select};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use rustix::io::Errno;

use super::{Address, Interface, NetError, fallback};

/// The kernel's way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The address that packets would leave with.
    pub(crate) source: IpAddr,
    /// The interface they would leave by; the loopback for an address of this node.
    pub(crate) interface: String,
}

/// All interfaces with their addresses, in the kernel's order.
pub(crate) async fn interfaces() -> Result<Vec<Interface>, NetError> {
    ask(async |handle| {
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.map_err(links_failed)?;
        let all: Vec<AddressMessage> =
            handle.address().get().execute().try_collect().await.map_err(addresses_failed)?;
        Ok(links.iter().map(|link| interface_of(link, &all)).collect())
    })
    .await
}

/// One interface; None when there is none of this name.
pub(super) async fn interface(name: &str) -> Result<Option<Interface>, NetError> {
    ask(async |handle| {
        let mut links = pin!(handle.link().get().match_name(name).execute());
        let link = match links.try_next().await {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(error) if errno(&error) == Some(Errno::NODEV) => return Ok(None),
            Err(error) => return Err(links_failed(error)),
        };
        let addresses = handle.address().get().set_link_index_filter(link.header.index).execute();
        let addresses: Vec<AddressMessage> = addresses.try_collect().await.map_err(addresses_failed)?;
        Ok(Some(interface_of(&link, &addresses)))
    })
    .await
}

/// The route to an address, and the address that this node would be seen with.
pub(crate) async fn route_to(to: IpAddr) -> Result<Route, NetError> {
    match route_by_netlink(to).await {
        Err(NetError::NotPermitted { .. }) => fallback::route_to(to),
        answer => answer,
    }
}

async fn route_by_netlink(to: IpAddr) -> Result<Route, NetError> {
    let act = "ask for the route";
    let prefix = if to.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, prefix)
        .map_err(|error| NetError::Answer { act, why: error.to_string() })?
        .build();
    ask(async |handle| {
        let mut answers = pin!(handle.route().get(question).execute());
        let route = answers.try_next().await.map_err(|error| match errno(&error) {
            Some(why) => NetError::NoRoute { to, why: io::Error::from(why).to_string() },
            None => NetError::Answer { act, why: error.to_string() },
        })?;
        let route = route.ok_or_else(|| NetError::Answer { act, why: "no answer".to_owned() })?;
        if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local) {
            return Err(NetError::NoRoute { to, why: format!("{:?} route", route.header.kind) });
        }
        let (source, index) = source_and_index(&route);
        let source = source.ok_or_else(|| NetError::NoRoute { to, why: "no source address".to_owned() })?;
        let mut links = pin!(handle.link().get().match_index(index).execute());
        let link = links.try_next().await.map_err(links_failed)?;
        let link = link.ok_or_else(|| NetError::Answer { act, why: "its interface is gone".to_owned() })?;
        Ok(Route { source, interface: name_of(&link) })
    })
    .await
}

/// Word from the kernel that a link or an address has changed. What has changed is not said: whoever
/// listens reads what is now, so nothing is lost by losing an event, and none has to be queued.
pub(super) struct Changes {
    socket: TokioSocket,
}

impl Changes {
    pub(super) fn subscribe() -> Result<Changes, NetError> {
        let closed = |source| NetError::NotPermitted { source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(closed)?;
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let bits = groups.iter().fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, bits)).map_err(closed)?;
        Ok(Changes { socket })
    }

    /// Waits for one. Losing it to cancellation loses no more than one event of many.
    pub(super) async fn next(&self) -> Result<(), NetError> {
        // The rest of the message is thrown away by the kernel, unread here.
        let mut start = Vec::with_capacity(16);
        match self.socket.recv(&mut start).await {
            // Events came faster than they were read. That, too, says that something has changed.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(()),
            Err(source) => Err(NetError::Ask { act: "watch the interfaces", source }),
            Ok(()) => Ok(()),
        }
    }
}

/// Runs the questions and the connection that carries them side by side, so that no task outlives them.
async fn ask<T, F>(questions: impl FnOnce(Handle) -> F) -> Result<T, NetError>
where
    F: Future<Output = Result<T, NetError>>,
{
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|source| NetError::NotPermitted { source })?;
    match select(pin!(questions(handle)), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => {
            Err(NetError::Answer { act: "ask the kernel", why: "netlink closed the socket".to_owned() })
        }
    }
}

fn interface_of(link: &LinkMessage, addresses: &[AddressMessage]) -> Interface {
    let flags = link.header.flags;
    let mut mtu = 0;
    let mut kind = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let own = addresses.iter().filter(|a| a.header.index == link.header.index);
    Interface {
        name: name_of(link),
        index: link.header.index,
        kind,
        up: flags.contains(LinkFlags::Up | LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        point_to_point: flags.contains(LinkFlags::Pointopoint),
        broadcast: flags.contains(LinkFlags::Broadcast),
        no_arp: flags.contains(LinkFlags::Noarp),
        mtu,
        addresses: own.filter_map(address_of).collect(),
    }
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_else(|| format!("#{}", link.header.index))
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point interface IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL without a peer.
    let ip = local.or(address)?;
    let unproven = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    if unproven || flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    // The bit that says secondary for IPv4 says temporary for IPv6 (IFA_F_TEMPORARY).
    let passing = flags.intersects(AddressFlags::Deprecated | AddressFlags::Secondary);
    Some(Address { ip, prefix: message.header.prefix_len, passing })
}

fn source_and_index(route: &RouteMessage) -> (Option<IpAddr>, u32) {
    let (mut source, mut index) = (None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(IpAddr::V4(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(oif) => index = *oif,
            _ => {}
        }
    }
    (source, index)
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Errno::from_io_error(&message.to_io()),
        _ => None,
    }
}

fn links_failed(error: rtnetlink::Error) -> NetError {
    failed("list the interfaces", &error)
}

fn addresses_failed(error: rtnetlink::Error) -> NetError {
    failed("list the addresses", &error)
}

fn failed(act: &'static str, error: &rtnetlink::Error) -> NetError {
    match error {
        rtnetlink::Error::NetlinkError(message) => NetError::Ask { act, source: message.to_io() },
        other => NetError::Answer { act, why: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::in_namespaces;

    #[tokio::test]
    async fn the_loopback_is_found_with_its_address() {
        let all = interfaces().await.unwrap();
        let lo = all.iter().find(|i| i.name == "lo").unwrap();
        assert!(lo.up && lo.loopback && !lo.vpn_like() && lo.mtu > 0 && lo.kind.is_none(), "{lo:?}");
        for held in ["127.0.0.1", "127.0.0.9", "127.200.3.4"] {
            assert!(lo.holds(held.parse().unwrap()), "{held}");
        }
        assert!(!lo.holds("10.0.0.1".parse().unwrap()));
        assert_eq!(interface("lo").await.unwrap().as_ref(), Some(lo));
        assert_eq!(interface("no-such-one").await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_route_to_a_loopback_address_starts_there() {
        let to: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(route_to(to).await.unwrap(), Route { source: to, interface: "lo".to_owned() });
    }

    fn run_ip(lines: &[&str]) {
        for line in lines {
            let status = Command::new("ip").args(line.split(' ')).status().expect("needs `ip` of iproute2");
            assert!(status.success(), "ip {line}");
        }
    }

    #[test]
    fn the_kernel_is_asked_right_in_a_network_of_its_own() {
        let test = "net::kernel::tests::the_kernel_is_asked_right_in_a_network_of_its_own";
        if in_namespaces(test, &["--net"], "ip link set lo up").is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ip = |s: &str| -> IpAddr { s.parse().unwrap() };
        let route = |to: &str| runtime.block_on(route_to(ip(to)));
        for to in ["10.9.0.7", "fd09::7"] {
            let error = route(to).unwrap_err();
            assert!(matches!(error, NetError::NoRoute { .. }), "{error:?}");
            assert!(
                error.to_string().starts_with(&format!("no route to {to} (Network is unreach")),
                "{error}"
            );
        }
        run_ip(&[
            "link add w0 mtu 1420 type veth peer name w1",
            "addr add 10.9.0.1/24 dev w0",
            "addr add fd09::1/64 dev w0 nodad",
            "addr add 10.8.0.1 peer 10.8.0.2 dev w1",
        ]);
        let down = runtime.block_on(interface("w0")).unwrap().unwrap();
        assert!(!down.up);
        run_ip(&["link set w0 up"]);
        assert!(!runtime.block_on(interface("w0")).unwrap().unwrap().up, "no carrier");
        run_ip(&["link set w1 up", "route add blackhole 10.7.0.0/16"]);
        let up = runtime.block_on(interface("w0")).unwrap().unwrap();
        assert!(up.up && up.broadcast && up.mtu == 1420 && up.kind.as_deref() == Some("veth"), "{up:?}");
        assert!(up.holds(ip("10.9.0.1")) && up.holds(ip("fd09::1")) && !up.holds(ip("10.9.0.2")));
        let peer = runtime.block_on(interface("w1")).unwrap().unwrap();
        assert!(peer.holds(ip("10.8.0.1")) && !peer.holds(ip("10.8.0.2")), "{peer:?}");
        // The route leads over w0, and the fallback finds the same without netlink.
        for (to, source) in [("10.9.0.7", "10.9.0.1"), ("fd09::7", "fd09::1")] {
            let expected = Route { source: ip(source), interface: "w0".to_owned() };
            assert_eq!(route(to).unwrap(), expected);
            assert_eq!(fallback::route_to(ip(to)).unwrap(), expected);
        }
        let own = route("10.9.0.1").unwrap();
        assert_eq!((own.source, own.interface.as_str()), (ip("10.9.0.1"), "lo"));
        let picked = runtime.block_on(super::super::pick_for_seed(ip("10.9.0.1"), None, None)).unwrap();
        assert_eq!((picked.interface.as_str(), picked.warning), ("w0", None));
        let picked = runtime.block_on(super::super::pick_for_seed(ip("10.8.0.2"), None, None)).unwrap();
        assert_eq!((picked.address, picked.interface.as_str()), (ip("10.8.0.1"), "w1"));
        assert!(matches!(route("10.7.0.1"), Err(NetError::NoRoute { .. })), "a black hole is no route");
    }
}
