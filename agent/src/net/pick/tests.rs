use super::super::InterfaceAddress;
use super::*;

pub(in crate::net) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// An interface that is up, with addresses like `10.0.0.1/24`.
pub(in crate::net) fn iface(name: &str, kind: &str, addresses: &[&str]) -> Interface {
    let address = |s: &&str| {
        let (ip_part, prefix) = s.split_once('/').unwrap();
        InterfaceAddress { ip: ip(ip_part), prefix: prefix.parse().unwrap(), temporary: false }
    };
    Interface {
        name: name.to_owned(),
        index: 7,
        kind: (!kind.is_empty()).then(|| kind.to_owned()),
        up: true,
        loopback: false,
        point_to_point: false,
        broadcast: true,
        no_arp: false,
        mtu: 1420,
        addresses: addresses.iter().map(address).collect(),
    }
}

fn lo() -> Interface {
    Interface { loopback: true, ..iface("lo", "", &["127.0.0.1/8", "::1/128"]) }
}
fn eth0() -> Interface {
    iface("eth0", "", &["203.0.113.9/24", "fe80::9/64"])
}
fn eth1() -> Interface {
    iface("eth1", "", &["192.168.7.9/24"])
}
fn wg0() -> Interface {
    iface("wg0", "wireguard", &["10.0.0.9/24", "fd00::9/64"])
}
fn down(interface: Interface) -> Interface {
    Interface { up: false, ..interface }
}
fn bare(name: &str, kind: &str) -> Interface {
    iface(name, kind, &[])
}
fn p2p(interface: Interface) -> Interface {
    Interface { point_to_point: true, ..interface }
}

#[test]
fn without_a_seed_the_only_vpn_is_chosen_else_the_only_other() {
    let cluster = || {
        vec![
            iface("docker0", "bridge", &["172.17.0.1/16"]),
            iface("cni0", "bridge", &["10.42.0.1/24"]),
            iface("flannel.1", "vxlan", &["10.42.0.0/32"]),
            iface("flannel-wg", "wireguard", &["10.42.0.0/32"]),
            iface("wireguard.cali", "wireguard", &["10.42.0.1/32"]),
            iface("cilium_wg0", "wireguard", &["10.42.0.1/32"]),
            p2p(iface("tunl0", "ipip", &["10.42.9.1/32"])),
            iface("veth12ab", "veth", &["169.254.1.1/16"]),
            iface("virbr0", "bridge", &["192.168.122.1/24"]),
            iface("kube-ipvs0", "dummy", &["10.43.0.1/32"]),
            iface("br-0a1b2c", "bridge", &["172.18.0.1/16"]),
        ]
    };
    let with = |mut interfaces: Vec<Interface>| {
        interfaces.extend(cluster());
        interfaces
    };
    let cases: Vec<(&str, Vec<Interface>, &str, &str)> = vec![
        ("a VPN", vec![lo(), eth0(), wg0()], "10.0.0.9", "wg0"),
        ("a VPN among cluster networks", with(vec![lo(), eth0(), wg0()]), "10.0.0.9", "wg0"),
        ("no VPN among cluster networks", with(vec![lo(), eth0()]), "203.0.113.9", "eth0"),
        (
            "tailscale",
            vec![lo(), eth0(), p2p(iface("tailscale0", "tun", &["100.64.0.9/32"]))],
            "100.64.0.9",
            "tailscale0",
        ),
        (
            "an unknown kind by its name",
            vec![eth0(), iface("nebula1", "", &["10.8.0.9/24"])],
            "10.8.0.9",
            "nebula1",
        ),
        (
            "an unknown name by its kind",
            vec![eth0(), iface("mesh", "wireguard", &["10.8.0.9/24"])],
            "10.8.0.9",
            "mesh",
        ),
        (
            "an unknown name by its one peer",
            vec![eth0(), p2p(iface("x0", "", &["10.8.0.9/32"]))],
            "10.8.0.9",
            "x0",
        ),
        ("a VPN without an address does not count", vec![eth0(), bare("tun0", "tun")], "203.0.113.9", "eth0"),
        (
            "IPv6 alone",
            vec![lo(), iface("wg0", "wireguard", &["fe80::9/64", "fd00::9/64"])],
            "fd00::9",
            "wg0",
        ),
        (
            "a bridge that carries the node's address",
            vec![lo(), iface("br-lan", "bridge", &["192.168.7.9/24"])],
            "192.168.7.9",
            "br-lan",
        ),
        (
            "a virtual IP is not this node's",
            vec![iface("eth1", "", &["192.168.7.50/32", "192.168.7.9/24"])],
            "192.168.7.9",
            "eth1",
        ),
        ("one of two is down", vec![eth0(), down(eth1())], "203.0.113.9", "eth0"),
    ];
    for (what, interfaces, address, name) in cases {
        let picked = pick_for_init(&interfaces, None, None).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(picked, PickedAddress::new(ip(address), name), "{what}");
    }
}

#[test]
fn a_temporary_address_is_the_last_choice() {
    let mut wg = iface("wg0", "wireguard", &["fd00::1/64", "fd00::2/64"]);
    wg.addresses[0].temporary = true;
    assert_eq!(pick_for_init(&[wg], None, None).unwrap().address, ip("fd00::2"));
}

#[test]
fn an_ambiguous_choice_is_asked_with_a_list() {
    let error = |interfaces: &[Interface]| pick_for_init(interfaces, None, None).unwrap_err().to_string();
    assert_eq!(
        error(&[lo(), eth0(), wg0(), iface("tailscale0", "tun", &["100.64.0.9/32"])]),
        "more than one interface may be the mesh:\n\
         \x20 wg0         wireguard  10.0.0.9 fd00::9\n\
         \x20 tailscale0  tun        100.64.0.9\n\
         \x20 eth0        ethernet   203.0.113.9 fe80::9\n\
         choose one with --iface NAME"
    );
    let two = error(&[lo(), eth0(), eth1()]);
    assert!(two.contains("  eth0  ethernet  203.0.113.9 fe80::9\n  eth1  ethernet  192.168.7.9\n"), "{two}");
    let none = error(&[lo(), down(eth0())]);
    assert!(none.starts_with("no interface has an address that other nodes can reach:\n  lo "), "{none}");
    assert!(none.contains("  eth0  ethernet  203.0.113.9 fe80::9 (down)\n"), "{none}");
    let empty = error(&[]);
    assert!(empty.starts_with("no interface has an address"), "{empty}");
    let vpn_down = error(&[lo(), eth0(), down(wg0())]);
    assert!(vpn_down.starts_with("wg0 looks like the VPN and is down; bring it up first"), "{vpn_down}");
    assert!(vpn_down.ends_with("eth0  ethernet  203.0.113.9 fe80::9"), "{vpn_down}");
}

#[test]
fn a_given_address_is_taken_or_refused_with_a_reason() {
    let interfaces = [
        lo(),
        eth0(),
        wg0(),
        down(eth1()),
        bare("tun0", "tun"),
        iface("docker0", "bridge", &["172.17.0.1/16"]),
    ];
    let ok = [
        (Some("eth0"), None, "203.0.113.9", "eth0"),
        (Some("docker0"), None, "172.17.0.1", "docker0"),
        (None, Some("fd00::9"), "fd00::9", "wg0"),
        (Some("wg0"), Some("fd00::9"), "fd00::9", "wg0"),
        (Some("lo"), None, "127.0.0.1", "lo"),
        (None, Some("127.0.0.3"), "127.0.0.3", "lo"),
    ];
    for (name, address, expected, on) in ok {
        let picked = pick_for_init(&interfaces, name, address.map(ip)).unwrap();
        assert_eq!(picked, PickedAddress::new(ip(expected), on), "{name:?} {address:?}");
    }
    type Is = fn(&PickError) -> bool;
    let refused: [(Option<&str>, Option<&str>, Is); 9] = [
        (Some("wg1"), None, |is| matches!(is, PickError::NoInterface { name, .. } if name == "wg1")),
        (Some("eth1"), None, |is| matches!(is, PickError::Down { name } if name == "eth1")),
        (None, Some("192.168.7.9"), |is| matches!(is, PickError::Down { name } if name == "eth1")),
        (Some("tun0"), None, |is| matches!(is, PickError::NoAddress { name } if name == "tun0")),
        (None, Some("10.0.0.8"), |is| matches!(is, PickError::NotHere { .. })),
        (
            Some("eth0"),
            Some("10.0.0.9"),
            |is| matches!(is, PickError::Elsewhere { holder, named, .. } if holder == "wg0" && named == "eth0"),
        ),
        (None, Some("fe80::9"), |is| matches!(is, PickError::Useless { .. })),
        (None, Some("0.0.0.0"), |is| matches!(is, PickError::Useless { .. })),
        (None, Some("224.0.0.1"), |is| matches!(is, PickError::Useless { .. })),
    ];
    for (name, address, expected) in refused {
        let error = pick_for_init(&interfaces, name, address.map(ip)).unwrap_err();
        assert!(expected(&error), "{name:?} {address:?}: {error}");
    }
}

#[test]
fn with_a_seed_its_family_is_preferred() {
    let v6 = pick_wanted(&[wg0()], Some("wg0"), None, |ip| ip.is_ipv6()).unwrap();
    assert_eq!(v6.address, ip("fd00::9"));
    let v4_only = pick_wanted(&[eth1()], Some("eth1"), None, |ip| ip.is_ipv6()).unwrap();
    assert_eq!(v4_only.address, ip("192.168.7.9"));
}

#[test]
fn a_route_around_a_vpn_that_is_down_is_a_warning() {
    let doubt_of = |seed: &str, address: &str, name: &str, interfaces: &[Interface]| {
        vpn_down_hint(ip(seed), &PickedAddress::new(ip(address), name), interfaces)
    };
    let vpn_down = [lo(), eth0(), eth1(), down(wg0())];
    let around = doubt_of("10.0.0.1", "203.0.113.9", "eth0", &vpn_down).unwrap();
    assert!(around.contains("uses eth0 (203.0.113.9), but wg0 looks like the VPN and is down"), "{around}");
    let no_vpn = doubt_of("10.0.0.1", "203.0.113.9", "eth0", &[lo(), eth0()]).unwrap();
    assert!(
        no_vpn.contains("10.0.0.1 is a private address") && no_vpn.ends_with("is the VPN up?"),
        "{no_vpn}"
    );
    let tailscale = doubt_of("100.64.0.1", "203.0.113.9", "eth0", &[lo(), eth0()]);
    assert!(tailscale.is_some());
    let fine = [
        ("10.0.0.1", "10.0.0.9", "wg0", vec![lo(), eth0(), wg0()]),
        ("198.51.100.1", "203.0.113.9", "eth0", vpn_down.to_vec()),
        ("192.168.7.1", "192.168.7.9", "eth1", vpn_down.to_vec()),
        ("10.5.5.5", "192.168.7.9", "eth1", vec![lo(), eth1()]),
        ("127.0.0.1", "127.0.0.1", "lo", vec![lo()]),
        ("10.0.0.1", "10.0.0.9", "unlisted", vec![]),
    ];
    for (seed, address, name, interfaces) in fine {
        assert_eq!(doubt_of(seed, address, name, &interfaces), None, "{seed}");
    }
}

#[test]
fn a_loopback_seed_is_reached_on_the_loopback() {
    let picked = pick_for_seed(ip("127.0.0.1"), None, None).unwrap();
    assert_eq!(picked, PickedAddress::new(ip("127.0.0.1"), "lo"));
    let picked = pick_for_seed(ip("127.0.0.1"), None, Some(ip("127.0.0.4"))).unwrap();
    assert_eq!(picked, PickedAddress::new(ip("127.0.0.4"), "lo"));
}
