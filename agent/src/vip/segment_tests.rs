use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn eth(index: u32, name: &str) -> LinkState {
    LinkState {
        index,
        name: name.to_owned(),
        mac: Some(mac(index as u8)),
        flags: IFF_UP | IFF_RUNNING | IFF_BROADCAST,
        hardware: ETHERNET,
        ..LinkState::default()
    }
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn held(index: u32, text: &str) -> HeldAddress {
    let (address, prefix) = text.split_once('/').unwrap();
    HeldAddress { index, ip: ip(address), prefix: prefix.parse().unwrap(), ends: false }
}

fn refusal(result: Result<VipPlacement, NoSegment>) -> Unfit {
    match result.unwrap_err() {
        NoSegment::Own(why) | NoSegment::Segment(why) => why,
    }
}

#[test]
fn the_one_network_that_covers_the_address_is_its_place() {
    let all = [eth(1, "eth0"), eth(2, "eth1")];
    let addresses =
        [held(1, "10.9.0.1/24"), held(1, "10.0.0.1/8"), held(2, "10.8.0.1/24"), held(2, "fd09::1/64")];
    let found = place(ip("10.9.0.50"), Some("eth0"), &all, &addresses).unwrap();
    assert_eq!(
        (found.name.as_str(), found.source, found.prefix, found.up),
        ("eth0", ip("10.9.0.1"), 24, true)
    );
    assert_eq!(place(ip("fd09::50"), None, &all, &addresses).unwrap().name, "eth1");
    assert_eq!(place(ip("10.9.0.50"), None, &all, &addresses).unwrap().name, "eth0");
    let several = refusal(place(ip("10.8.0.50"), None, &all, &addresses));
    assert_eq!(several.cause, Cause::SeveralInterfaces);
    assert_eq!(
        several.to_string(),
        "several interfaces are in the network of 10.8.0.50 (eth1 10.8.0.1/24, eth0 10.0.0.1/8); \
         choose one: agent set vip.10.8.0.50.interface=NAME"
    );
    assert_eq!(place(ip("10.8.0.50"), Some("eth1"), &all, &addresses).unwrap().name, "eth1");
    let nowhere = refusal(place(ip("192.168.1.50"), None, &all, &addresses));
    assert_eq!(nowhere.cause, Cause::NoInterface);
    assert_eq!(
        nowhere.to_string(),
        "192.168.1.50 is in no network of this node; \
         the networks are: eth0 10.9.0.1/24, eth0 10.0.0.1/8, eth1 10.8.0.1/24"
    );
    let missing = refusal(place(ip("10.8.0.50"), Some("eth7"), &all, &addresses));
    assert_eq!(missing.cause, Cause::NoInterface);
}

#[test]
fn an_own_address_is_refused_and_a_leftover_is_not() {
    let all = [eth(1, "eth0")];
    let own = [held(1, "10.9.0.1/24")];
    assert_eq!(refusal(place(ip("10.9.0.1"), None, &all, &own)).cause, Cause::OwnAddress);
    let ended = HeldAddress { ends: true, ..held(1, "10.9.0.50/32") };
    assert!(place(ip("10.9.0.50"), None, &all, &[own[0].clone(), ended.clone()]).is_ok());
    let stuck = HeldAddress { ends: false, ..ended };
    let refused = place(ip("10.9.0.50"), None, &all, &[own[0].clone(), stuck]);
    assert!(matches!(refused, Err(NoSegment::Own(_))));
}

#[test]
fn an_interface_without_l2_says_why() {
    let cases = [
        (
            LinkState { flags: 0xd1, hardware: 0xfffe, kind: "wireguard".into(), ..eth(1, "wg0") },
            "no L2 on wg0 (point-to-point)",
        ),
        (LinkState { flags: 0xc1, kind: "dummy".into(), ..eth(1, "d0") }, "no L2 on d0 (dummy)"),
        (LinkState { flags: 0x41, ..eth(1, "x0") }, "no L2 on x0 (no broadcast)"),
        (LinkState { hardware: 32, ..eth(1, "ib0") }, "no L2 on ib0 (not Ethernet)"),
    ];
    for (interface, why) in cases {
        let refused = refusal(place(ip("10.9.0.50"), None, &[interface], &[held(1, "10.9.0.1/24")]));
        assert_eq!((refused.cause, refused.to_string().as_str()), (Cause::NoSegment, why));
    }
}

#[test]
fn settings_that_hide_the_address_are_told() {
    let hidden = LinkState { arp_ignore: 8, ..eth(1, "eth0") };
    assert_eq!(advice(ip("10.9.0.50"), &hidden).unwrap().cause, Cause::ArpIgnored);
    assert_eq!(advice(ip("fd09::50"), &hidden), None);
    assert_eq!(advice(ip("10.9.0.50"), &LinkState { arp_ignore: 1, ..hidden.clone() }), None);
    let everywhere = LinkState { arp_ignore: 0, all_arp_ignore: 2, ..hidden };
    let why = advice(ip("10.9.0.50"), &everywhere).unwrap().to_string();
    assert!(why.ends_with("net.ipv4.conf.all.arp_ignore=1"), "{why}");
}

const OWN: NodeId = NodeId([5; 10]);

fn l2_endpoints(nodes: &[u8]) -> Vec<(NodeId, L2Endpoint)> {
    let endpoint = |n: u8| L2Endpoint {
        interface: "eth0".into(),
        mac: mac(n),
        address: ip(&format!("10.9.0.{n}")),
        prefix: 24,
    };
    nodes.iter().map(|n| (NodeId([*n; 10]), endpoint(*n))).collect()
}

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

/// Runs a test of the segment with peers that answer from these addresses; the verdict at the end.
fn run(peers: &[u8], answer: impl Fn(u8) -> Option<Mac>, heard: bool, until: u64) -> Result<(), Unfit> {
    let mut test = Adjacency::new(at(0));
    test.apply_endpoints(at(0), OWN, &l2_endpoints(peers), |id| id.0[0] < 100);
    let verdict =
        |test: &mut Adjacency, ms| test.verdict(at(ms), "eth0", |_| heard, |id| format!("m{}", id.0[0]));
    for ms in (0..until).step_by(10) {
        for asked in test.due(at(ms)) {
            let IpAddr::V4(v4) = asked else { panic!() };
            if let Some(mac) = answer(v4.octets()[3]) {
                test.answered(at(ms), asked, mac);
            }
        }
        let _ = verdict(&mut test, ms);
    }
    verdict(&mut test, until)
}

#[test]
fn the_very_address_must_come_back() {
    assert_eq!(run(&[1, 2], |n| Some(mac(n)), true, 20), Ok(()));
    assert_eq!(run(&[1, 2], |n| (n == 2).then(|| mac(n)), true, 20), Ok(()), "one is enough");
    let proxied = run(&[1, 2], |_| Some(mac(9)), true, 20).unwrap_err();
    assert_eq!(proxied.cause, Cause::NoSegment);
    assert_eq!(run(&[1, 2], |_| None, true, 100), Err(Cause::SegmentUntested.into()));
    let silent = run(&[1, 2], |_| None, true, 3_000).unwrap_err();
    assert_eq!(silent.cause, Cause::NoSegment);
    assert_eq!(silent.to_string(), "no L2 on eth0: no answer to ARP from m1 (10.9.0.1), m2 (10.9.0.2)");
}

#[test]
fn one_worker_speaks_for_the_segment_and_not_against_it() {
    assert_eq!(run(&[101], |n| Some(mac(n)), true, 20), Ok(()), "it answers");
    assert_eq!(run(&[101], |_| None, true, 5_000), Ok(()), "as if nobody were there");
    assert_eq!(run(&[101], |_| Some(mac(9)), true, 5_000), Ok(()));
    assert!(run(&[101, 102], |_| None, true, 5_000).is_err(), "two say the same");
    assert!(run(&[1, 101], |_| None, true, 5_000).is_err());
    // Neither many workers nor many addresses of one push out whom to believe.
    let many: Vec<u8> = (101..=120).chain([1]).collect();
    assert_eq!(run(&many, |n| (n == 1).then(|| mac(1)), true, 5_000), Ok(()));
    let mut test = Adjacency::new(at(0));
    let crowd: Vec<(NodeId, L2Endpoint)> = l2_endpoints(&(10..90).collect::<Vec<u8>>())
        .into_iter()
        .map(|(_, endpoint)| (NodeId([101; 10]), endpoint))
        .collect();
    test.apply_endpoints(at(0), OWN, &crowd, |_| false);
    assert_eq!(test.due(at(0)).len(), 1);
}

#[test]
fn who_is_alone_may_serve_after_a_while_and_who_is_silent_everywhere_says_nothing() {
    assert!(run(&[], |_| None, true, 3_000).is_err());
    assert_eq!(run(&[], |_| None, true, 4_000), Ok(()));
    assert!(run(&[1], |_| None, false, 3_000).is_err());
    assert_eq!(run(&[1], |_| None, false, 4_000), Ok(()), "its agent is down, and so may be the machine");
}

#[test]
fn a_proof_outlives_the_peers_and_ends_when_they_are_heard_and_silent() {
    let mut test = Adjacency::new(at(0));
    test.apply_endpoints(at(0), OWN, &l2_endpoints(&[1]), |_| true);
    test.due(at(0));
    test.answered(at(1), ip("10.9.0.1"), mac(1));
    let verdict =
        |test: &mut Adjacency, ms, heard: bool| test.verdict(at(ms), "eth0", |_| heard, |_| "m1".into());
    assert_eq!(verdict(&mut test, 1, true), Ok(()));
    for ms in (60_000..70_000).step_by(100) {
        test.due(at(ms));
        assert_eq!(verdict(&mut test, ms, false), Ok(()), "it is down");
    }
    assert!(verdict(&mut test, 70_000, true).is_err(), "it is heard, only not here");
    test.apply_endpoints(at(70_000), OWN, &[], |_| true);
    assert_eq!(verdict(&mut test, 80_000, true), Ok(()));
}

#[test]
fn in_a_large_segment_everybody_is_asked_by_a_few() {
    let all: Vec<u8> = (1..=100).collect();
    let mut asked = BTreeMap::new();
    for own in &all {
        let mut test = Adjacency::new(at(0));
        let others: Vec<u8> = all.iter().copied().filter(|n| n != own).collect();
        test.apply_endpoints(at(0), NodeId([*own; 10]), &l2_endpoints(&others), |_| true);
        for address in test.due(at(0)) {
            *asked.entry(address).or_insert(0) += 1;
        }
    }
    assert_eq!(asked.len(), 100);
    assert!(asked.values().all(|times| *times == ASKED));
}

#[test]
fn networks_are_compared_by_their_prefix() {
    let same = |a: &str, b: &str, prefix| same_network(ip(a), ip(b), prefix);
    assert!(same("10.9.0.1", "10.9.0.50", 24) && !same("10.9.0.1", "10.9.1.50", 24));
    assert!(same("10.9.0.1", "10.9.0.1", 32) && !same("10.9.0.1", "10.9.0.0", 32));
    assert!(same("fd09::1", "fd09::50", 64) && !same("fd09:0:0:1::1", "fd09::50", 64));
    assert!(same("1.2.3.4", "200.2.3.4", 0) && !same("1.2.3.4", "fd09::1", 0));
}
