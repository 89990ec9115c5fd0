//! Rendering of a status: no text becomes markup, every sample has its family, and a large cluster stays a
//! small page.

use std::collections::BTreeSet;

use proto::backends::BackendState;
use proto::cause::{Cause, Fault, Reason};
use proto::control::ListenerStatus;
use proto::control::{
    BackendStatus, CheckCounts, ClusterStatus, MemberState, MemberStatus, NodeStatus, PeerLinkStatus,
    ServiceStatus, Status, VipCandidate, VipState, VipStatus,
};
use proto::event::{Event, EventKind, EventRing};
use proto::node::{Name, NodeId, Role};
use proto::problem::{Problem, ProblemCode};
use proto::time::UnixMs;

use super::{csv, metrics, page};

const NOW: UnixMs = UnixMs(1_772_373_911_000);

/// What a malicious node might publish.
const HOSTILE: &str = "<script>alert(1)</script>\"'\\\n, x";

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn backend(node: &str, state: BackendState) -> BackendStatus {
    BackendStatus {
        node: name(node),
        address: "10.0.0.1:6443".to_owned(),
        state,
        cause: Some(Cause::Http(200)),
        reason: Reason::new(HOSTILE),
        since_unix_ms: UnixMs(NOW.0 - 5_000),
        rtt_ms: Some(0.5),
        connections: 3,
        total: 7,
        weight: 50,
        check_ms: Some(4),
        counted: Default::default(),
    }
}

fn member(i: u16, role: Role, state: MemberState) -> MemberStatus {
    let mut id = [0; NodeId::LEN];
    id[..2].copy_from_slice(&i.to_be_bytes());
    MemberStatus {
        id: NodeId(id),
        name: name(&format!("m{i}")),
        address: HOSTILE.to_owned(),
        role: role.into(),
        state,
        version: HOSTILE.to_owned(),
        since_unix_ms: NOW,
        rtt_ms: None,
        loss_permille: (role == Role::Master).then_some(12),
        document: format!("{HOSTILE}{}", i % 2),
        sees: vec![PeerLinkStatus { node: name("m0"), alive: true, rtt_ms: Some(1.0), loss_permille: 60 }],
        node_local: Vec::new(),
    }
}

fn status(members: u16) -> Status {
    let role = |i| if i < 3 { Role::Master } else { Role::Worker };
    let state = |i| if i % 7 == 1 { MemberState::Down } else { MemberState::Up };
    let members: Vec<MemberStatus> = (0..members).map(|i| member(i, role(i), state(i))).collect();
    Status {
        schema: 1,
        cluster: ClusterStatus {
            id: "c".to_owned(),
            name: HOSTILE.to_owned(),
            members: members.len(),
            core: 0,
            up: None,
            document: HOSTILE.to_owned(),
            key_epoch: 1,
            open_until_unix_ms: None,
        },
        node: NodeStatus {
            id: NodeId([9; NodeId::LEN]),
            name: name("w1"),
            address: None,
            interface: HOSTILE.to_owned(),
            role: Role::Worker.into(),
            place: Default::default(),
            attached_to: Vec::new(),
            version: "0.1.0".to_owned(),
            started_unix_ms: NOW,
            removed: false,
            descriptors: 1024,
            link: Default::default(),
            loop_lag: Default::default(),
            checks: Vec::new(),
            events: [("backend".to_owned(), 3)].into(),
            program: String::new(),
            replaced_unix_ms: None,
            replaced_connections: 0,
        },
        services: vec![ServiceStatus {
            name: "kube-api".parse().unwrap(),
            listen: vec![ListenerStatus::new(
                "127.0.0.1:16443".parse().unwrap(),
                Some(&Fault::new(Cause::AddressInUse, HOSTILE)),
            )],
            source: Default::default(),
            balance: proto::service::Balance::default().into(),
            backends: vec![backend("m1", BackendState::Ready), backend("m0", BackendState::Down)],
            connections: 1,
            maxconn: 10,
            refused: 2,
            counted: Default::default(),
        }],
        members,
        members_from: None,
        vips: vec![VipStatus {
            address: "10.0.0.50".parse().unwrap(),
            state: VipState::Unowned,
            owner: Some(name("m1")),
            epoch: 4,
            interface: Some(HOSTILE.to_owned()),
            since_unix_ms: NOW,
            cause: None,
            reason: Reason::new(HOSTILE),
            candidates: vec![VipCandidate {
                node: name("m1"),
                rank: 1,
                eligible: false,
                cause: None,
                reason: Reason::new(HOSTILE),
            }],
            gains: Default::default(),
        }],
        problems: vec![Problem::new(ProblemCode::Other, HOSTILE).about(HOSTILE).fix(HOSTILE)],
        taken_unix_ms: NOW,
    }
}

fn ring() -> EventRing {
    let mut ring = EventRing::default();
    for _ in 0..100 {
        ring.push("w1", Event::new(EventKind::Backend, NOW, HOSTILE, HOSTILE).reason(HOSTILE));
    }
    ring
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn no_text_becomes_markup() {
    for acts in [false, true] {
        let page = text(page::whole(&status(4), &ring(), acts, 1));
        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert(1)"));
        // Our own, and no more.
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.contains("<form"), acts);
        assert!(!page.contains(" style=") && !page.contains(" onclick"), "the policy would block it");
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
    }
    assert!(!text(page::message_page(HOSTILE)).contains("<script"));
}

/// Void elements.
const VOID: [&str; 3] = ["meta", "link", "input"];

/// The first place that is not well-formed: an element that is not closed where it was opened, a `<` or `&`
/// in text, an attribute that is repeated or not quoted.
fn malformed(mut rest: &str) -> Option<String> {
    let near = |rest: &str| Some(rest.chars().take(80).collect());
    let mut open: Vec<&str> = Vec::new();
    while let Some((text, tag)) = rest.split_once('<') {
        let entity = |part: &str| ["amp;", "lt;", "gt;", "quot;"].iter().any(|one| part.starts_with(one));
        // The content of a script or style is not text.
        if !matches!(open.last(), Some(&("script" | "style"))) {
            if text.contains('>') || !text.split('&').skip(1).all(entity) {
                return near(text);
            }
        } else if !tag.starts_with('/') {
            rest = tag;
            continue;
        }
        let (tag, after) = tag.split_once('>')?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return near(tag);
            }
            continue;
        }
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut seen = BTreeSet::new();
        while !attributes.is_empty() {
            let end = attributes.find([' ', '=']).unwrap_or(attributes.len());
            let (key, value) = attributes.split_at(end);
            let value = match value.strip_prefix("=\"") {
                Some(quoted) => quoted.split_once('"').map(|(_, after)| after),
                None => (!value.starts_with('=')).then_some(value),
            };
            let Some(value) = value.filter(|_| !key.is_empty() && seen.insert(key)) else { return near(tag) };
            attributes = value.trim_start_matches(' ').trim_start_matches('/');
        }
        if !VOID.contains(&name) && !tag.starts_with('!') && !tag.ends_with('/') {
            open.push(name);
        }
    }
    open.pop().map(|name| format!("{name} is not closed"))
}

#[test]
fn the_page_is_well_formed() {
    for (broken, near) in [
        ("<p><b>x</p></b>", "/p"),
        ("<p>a & b</p>", "a & b"),
        ("<p a=\"1\" a=\"2\">x</p>", "p a="),
        ("<p a=1>x</p>", "p a=1"),
        ("<p>x", "p is not closed"),
    ] {
        assert!(
            malformed(broken).is_some_and(|at| at.starts_with(near)),
            "{broken}: {:?}",
            malformed(broken)
        );
    }
    assert_eq!(malformed("<p a=\"b c\" d>x<input e><svg><path f=\"1\"/></svg> &amp; y</p>"), None);
    for (members, acts) in [(1, false), (4, true), (20, true)] {
        let mut status = status(members);
        for page in [page::whole(&status, &ring(), acts, 1), page::main(&status, &ring(), acts, 1)] {
            assert_eq!(malformed(&text(page)), None, "{members} members");
        }
        status.services.clear();
        status.vips.clear();
        assert_eq!(malformed(&text(page::whole(&status, &EventRing::default(), acts, 1))), None);
    }
    assert_eq!(malformed(&text(page::message_page(HOSTILE))), None);
}

/// The first cells of the rows of the table of members on a page.
fn members_on(status: &Status, number: usize) -> Vec<String> {
    let page = text(page::whole(status, &ring(), false, number));
    assert_eq!(malformed(&page), None, "page {number}");
    assert!(page.len() < 300_000, "{} bytes", page.len());
    let (_, table) = page.split_once("<section id=\"members\"").unwrap();
    let (table, _) = table.split_once("</section>").unwrap();
    let names = table.split("<th role=\"rowheader\" scope=\"row\">").skip(1);
    names.map(|rest| rest.split_once('<').unwrap().0.to_owned()).collect()
}

#[test]
fn members_of_a_large_cluster_are_on_pages_and_what_is_wrong_is_on_the_first() {
    let status = large();
    let first = members_on(&status, 1);
    assert_eq!(first.len(), 50);
    // A master that is down comes before the workers that are.
    assert_eq!(first[..4], ["m1", "m8", "m15", "m22"]);
    let mut all: Vec<String> = (1..=20).flat_map(|number| members_on(&status, number)).collect();
    // 143 are down; the masters that are up follow.
    assert_eq!(all[143..152], ["m0", "m2", "m3", "m4", "m5", "m6", "m7", "m9", "m10"]);
    assert_eq!(members_on(&status, 0), first, "before the first");
    assert_eq!(members_on(&status, usize::MAX), members_on(&status, 20), "after the last");
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1_000, "each is on one page");

    let nav = |number| {
        let page = text(page::whole(&status, &EventRing::default(), false, number));
        let (_, nav) = page.split_once("<nav class=\"pages\"").unwrap();
        nav.split_once("</nav>").unwrap().0.to_owned()
    };
    let link = |to: u8, rel: &str, word: &str| format!("<a href=\"/?page={to}#members\"{rel}>{word}</a>");
    let (second, first) = (nav(2), nav(1));
    assert!(second.contains("51 to 100 of 1000") && second.contains(" page 2 of 20"), "{second}");
    for part in [
        link(1, "", "first"),
        link(1, " rel=\"prev\"", "previous"),
        link(3, " rel=\"next\"", "next"),
        link(20, "", "last"),
    ] {
        assert!(second.contains(&part), "{part}: {second}");
    }
    assert_eq!((first.matches("<a ").count(), nav(20).matches("<a ").count()), (2, 2));
    assert!(!text(page::whole(&self::status(50), &ring(), false, 2)).contains("<nav"), "one page is enough");
}

#[test]
fn every_sample_has_its_family_and_no_text_breaks_a_line() {
    let metrics = text(metrics::write(&status(4), true));
    let mut families = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut helped = None;
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && help.len() > 5, "{line}");
            helped = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped, Some(name), "{line}");
            assert!(families.insert(name), "{name} stands twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let family = parts.filter(|family| families.contains(family)).unwrap_or(name);
            assert_eq!(helped, Some(family), "{line}");
            assert!(seen.insert(line.rsplit_once(' ').unwrap().0), "{line} stands twice");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(metrics.contains("agent_vip_owned{vip=\"10.0.0.50\"} 0"));
    assert!(metrics.contains("agent_backend_state{service=\"kube-api\",backend=\"m0\",state=\"down\"} 1"));
    assert!(metrics.contains("agent_member_documents 2"));
}

/// A node of a cluster of 1,000 with nine masters, two services that hundreds of its nodes offer, four virtual IPs, and
/// everything to count.
fn large() -> Status {
    let mut status = status(1_000);
    status.cluster.name = "prod".to_owned();
    for (i, one) in status.members.iter_mut().enumerate() {
        one.role = if i < 9 { Role::Master } else { Role::Worker }.into();
        one.state = if i % 7 == 1 { MemberState::Down } else { MemberState::Up };
        // A master pulses everyone.
        one.loss_permille = Some(3);
    }
    let offered = |service: &str, count: usize| {
        let state = |i| if i % 90 == 42 { BackendState::Down } else { BackendState::Ready };
        let backends = (0..count).map(|i| backend(&format!("m{i}"), state(i))).collect();
        ServiceStatus { name: service.parse().unwrap(), backends, ..status.services[0].clone() }
    };
    let services =
        vec![offered("ingress", 991), offered("kube-api", 9), offered("metrics", 500), offered("web", 4)];
    let vips = (50..54).map(|i| VipStatus {
        address: format!("10.0.0.{i}").parse().unwrap(),
        cause: Some(Cause::NotHeard),
        ..status.vips[0].clone()
    });
    let vips = vips.collect();
    let checks = services.iter().map(|one| CheckCounts {
        service: one.name.clone(),
        good: 1,
        alive: 0,
        not_ready: 0,
        refused: 0,
        silent: 0,
        took: Default::default(),
    });
    status.node.checks = checks.collect();
    status.node.events = EventKind::ALL.iter().map(|kind| (kind.name().to_owned(), 1)).collect();
    Status { services, vips, ..status }
}

#[test]
fn a_node_of_a_large_cluster_has_less_than_two_thousand_series() {
    let metrics = text(metrics::write(&large(), true));
    let series: Vec<&str> = metrics.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(series.len() < 2_000, "{} series", series.len());
    let of = |start: &str| series.iter().filter(|line| line.starts_with(start)).count();
    // All masters, and of the other services the small one whole and of the next what is wrong.
    assert_eq!(of("agent_backend_up{service=\"kube-api\""), 9);
    assert_eq!(of("agent_backend_up{service=\"web\""), 4);
    assert_eq!(of("agent_backend_up{service=\"metrics\""), 11);
    for node in ["m42", "m132", "m402", "m492"] {
        assert_eq!(of(&format!("agent_backend_up{{service=\"metrics\",backend=\"{node}\"}} 0")), 1, "{node}");
    }
    assert_eq!((of("agent_peer_up{"), of("haproxy_server_weight{")), (32, 24));
    for peer in ["m0", "m8", "m15"] {
        assert_eq!(of(&format!("agent_peer_up{{peer=\"{peer}\"}}")), 1, "{peer}");
    }
    // Totals count all.
    assert_eq!(of("agent_backends{service=\"ingress\",state=\"ready\"} 980"), 1);
    assert_eq!(of("agent_backends{service=\"ingress\",state=\"down\"} 11"), 1);
    assert_eq!(of("agent_members{role=\"worker\",state=\"down\"} 141"), 1);
    assert_eq!(of("agent_members{role=\"master\",state=\"up\"} 7"), 1);
}

#[test]
fn texts_with_commas_stay_one_column_of_the_csv() {
    let csv = text(csv::write(&status(4)));
    assert_eq!(csv.lines().count(), 5);
    let columns = csv.lines().next().unwrap().split(',').count();
    for line in csv.lines() {
        let quoted = line.split('"').enumerate().filter(|(i, _)| i % 2 == 0).map(|(_, part)| part);
        assert_eq!(quoted.collect::<String>().split(',').count(), columns, "{line}");
    }
    assert!(csv.contains("kube-api,m1,") && csv.contains(",DOWN,") && csv.contains("FRONTEND"));
}
