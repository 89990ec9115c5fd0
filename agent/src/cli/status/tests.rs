//! Tests of the verdict and of the screen.

use proto::backends::BackendState;
use proto::cause::{Cause, Fault, Reason};
use proto::control::ListenerStatus;
use proto::control::{
    BackendStatus, ClusterStatus, MemberState, MemberStatus, NodeStatus, ServiceSource, ServiceStatus,
    Status, VipCandidate, VipState, VipStatus,
};
use proto::node::{Name, NodeId, Role};
use proto::problem::{Problem, ProblemCode};
use proto::service::Balance;
use proto::time::UnixMs;
use proto::topology::Place;

use super::render::render;
use super::verdict::summarize;

/// 2026-03-01 14:05:11 UTC.
const NOW: UnixMs = UnixMs(1_772_373_911_000);

fn ago(seconds: u64) -> UnixMs {
    UnixMs(NOW.0 - seconds * 1000)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn backend(number: u8, state: BackendState, reason: &str) -> BackendStatus {
    BackendStatus {
        node: name(&format!("m{number}")),
        address: format!("10.0.0.{number}:6443"),
        state,
        cause: None,
        reason: Reason::new(reason),
        since_unix_ms: ago(if state == BackendState::Ready { 3 * 86_400 } else { 120 }),
        rtt_ms: (state == BackendState::Ready).then_some(0.42 * f64::from(number)),
        connections: u64::from(number),
        total: 310,
        weight: 100,
        check_ms: None,
        counted: Default::default(),
    }
}

fn listener(address: &str) -> ListenerStatus {
    ListenerStatus::new(address.parse().unwrap(), None)
}

fn service(service: &str, backends: Vec<BackendStatus>) -> ServiceStatus {
    ServiceStatus {
        name: service.parse().unwrap(),
        listen: vec![listener("127.0.0.1:16443")],
        source: ServiceSource::Default,
        balance: Balance::LeastConnections.into(),
        connections: backends.iter().map(|one| one.connections).sum(),
        backends,
        maxconn: 10_000,
        refused: 0,
        counted: Default::default(),
    }
}

fn member(who: &str, number: u8, role: Role, state: MemberState) -> MemberStatus {
    MemberStatus {
        id: NodeId([number; NodeId::LEN]),
        name: name(who),
        address: format!("10.0.0.{number}"),
        role: role.into(),
        state,
        version: "0.1.0".to_owned(),
        since_unix_ms: ago(3 * 86_400),
        rtt_ms: Some(0.4),
        loss_permille: None,
        document: String::new(),
        sees: Vec::new(),
        node_local: Vec::new(),
    }
}

fn status(backends: Vec<BackendStatus>) -> Status {
    Status {
        schema: 1,
        cluster: ClusterStatus {
            id: "c".repeat(26),
            name: "prod".to_owned(),
            members: 3,
            core: 0,
            up: None,
            document: "ab12cd34ef56".to_owned(),
            key_epoch: 3,
            open_until_unix_ms: None,
        },
        node: NodeStatus {
            id: NodeId([9; NodeId::LEN]),
            name: name("w1"),
            address: Some("10.0.0.9".to_owned()),
            interface: "wg0".to_owned(),
            role: Role::Worker.into(),
            place: Default::default(),
            attached_to: Vec::new(),
            version: "0.1.0".to_owned(),
            started_unix_ms: ago(7200),
            removed: false,
            descriptors: 1_048_576,
            link: Default::default(),
            loop_lag: Default::default(),
            checks: Vec::new(),
            events: Default::default(),
            program: String::new(),
            replaced_unix_ms: None,
            replaced_connections: 0,
        },
        services: vec![service("kube-api", backends)],
        members: vec![
            member("m1", 1, Role::Master, MemberState::Up),
            member("m2", 2, Role::Master, MemberState::Up),
            member("w1", 9, Role::Worker, MemberState::Up),
        ],
        members_from: None,
        vips: vec![],
        problems: vec![],
        taken_unix_ms: NOW,
    }
}

fn vip(state: VipState, owner: Option<&str>, reason: &str) -> VipStatus {
    let candidate = |node: &str, rank, reason: &str| VipCandidate {
        node: name(node),
        rank,
        eligible: reason.is_empty(),
        cause: None,
        reason: Reason::new(reason),
    };
    VipStatus {
        address: "10.91.91.50".parse().unwrap(),
        state,
        owner: owner.map(name),
        epoch: 4,
        interface: Some("eth0".to_owned()),
        since_unix_ms: ago(90),
        cause: None,
        reason: Reason::new(reason),
        candidates: vec![
            candidate("m1", 1, ""),
            candidate("m2", 2, ""),
            candidate("m3", 3, "its kube-api is down: connection refused"),
        ],
        gains: Default::default(),
    }
}

fn fine() -> Status {
    status((1..=3).map(|number| backend(number, BackendState::Ready, "200")).collect())
}

fn with(change: impl FnOnce(&mut Status)) -> Status {
    let mut status = fine();
    change(&mut status);
    status
}

#[test]
fn the_verdict_is_said_in_words_and_in_a_code() {
    let down = || backend(2, BackendState::Down, "connection refused");
    for (status, code, text) in [
        (fine(), 0, "ok: 3 of 3 masters serve"),
        (status(vec![backend(1, BackendState::Ready, "")]), 0, "ok: 1 of 1 master serves"),
        (
            status(vec![
                backend(1, BackendState::Alive, "401 from /readyz"),
                backend(2, BackendState::Alive, "401"),
            ]),
            10,
            "degraded: 2 of 2 masters serve; none reports ready: 401 from /readyz",
        ),
        (
            status(vec![backend(1, BackendState::Alive, "401"), backend(2, BackendState::Ready, "200")]),
            0,
            "ok: 2 of 2 masters serve",
        ),
        (
            with(|status| status.services[0].backends[1] = down()),
            10,
            "degraded: 2 of 3 masters serve; m2 down: connection refused since 14:03:11Z (2m)",
        ),
        (
            status(vec![backend(1, BackendState::Draining, ""), backend(2, BackendState::Ready, "")]),
            10,
            "degraded: 1 of 2 masters serves; m1 draining since 14:03:11Z (2m)",
        ),
        (status(vec![down()]), 11, "no master serves; m2 down: connection refused since 14:03:11Z (2m)"),
        (status(vec![]), 11, "no master serves; no apiserver is known yet"),
        (with(|status| status.services.clear()), 11, "no master serves; no apiserver is known yet"),
        (
            with(|status| {
                status.services[0].backends.truncate(1);
                status.services[0].backends[0].state = BackendState::Unknown;
                status.services[0].backends[0].reason = Reason::default();
                status.services[0].backends[0].since_unix_ms = UnixMs(0);
            }),
            10,
            "degraded: 1 master as last known; m1 unknown",
        ),
        (
            with(|status| status.services.push(service("web", vec![]))),
            10,
            "degraded: 3 of 3 masters serve; no node offers web",
        ),
        (
            with(|status| {
                status.services.push(service("web", vec![]));
                status
                    .problems
                    .push(Problem::new(ProblemCode::NotOffered, "no node offers web: …").about("web"));
            }),
            10,
            "degraded: 3 of 3 masters serve; no node offers web",
        ),
        (
            with(|status| {
                status.services.push(service("web", vec![down(), backend(1, BackendState::Ready, "")]))
            }),
            10,
            "degraded: 3 of 3 masters serve; web: 1 of 2 serve",
        ),
        (
            with(|status| status.problems.push(Problem::new(ProblemCode::StateFile, "the disk is full"))),
            10,
            "degraded: 3 of 3 masters serve; 1 problem, see below",
        ),
        (
            with(|status| status.node.address = None),
            10,
            "degraded: 3 of 3 masters serve; this node's network wg0 is down",
        ),
        (
            with(|status| {
                status.node.address = None;
                status.problems.push(Problem::new(ProblemCode::NoAddress, "there is no interface wg0"));
                status.services[0].backends = vec![down()];
            }),
            11,
            "no master serves; there is no interface wg0; m2 down: connection refused since 14:03:11Z (2m)",
        ),
        (
            with(|s| {
                let fault = Fault::new(Cause::AddressInUse, "stop nginx (process 7), or configure another");
                let at = "127.0.0.1:16443".parse().unwrap();
                s.services[0].listen = vec![ListenerStatus::new(at, Some(&fault))];
            }),
            10,
            "degraded: 3 of 3 masters serve; this node cannot listen on 127.0.0.1:16443 (address in use: stop nginx \
             (process 7), or configure another)",
        ),
        (
            with(|status| status.node.removed = true),
            10,
            "degraded: 3 of 3 masters serve; this node was removed from the cluster",
        ),
        (
            with(|status| status.members[2].state = MemberState::Down),
            0,
            "ok: 3 of 3 masters serve; w1 does not answer",
        ),
        (with(|status| status.members[2].state = MemberState::Left), 0, "ok: 3 of 3 masters serve"),
    ] {
        let verdict = summarize(&status, NOW);
        assert_eq!((verdict.code, verdict.text.as_str()), (code, text));
    }
}

fn screen(status: &Status, columns: usize) -> String {
    render(status, &summarize(status, NOW), NOW, columns, false)
}

#[test]
fn one_screen_says_it_all() {
    let mut status = with(|status| {
        status.services[0].backends[1] = backend(2, BackendState::Down, "connection refused");
        status.services[0].backends[2].weight = 0;
        status.services[0].refused = 4;
        status.members[1].state = MemberState::Suspect;
        status.cluster.open_until_unix_ms = Some(UnixMs(NOW.0 + 600_000));
    });
    status.problems = vec![
        Problem::new(
            ProblemCode::StateFile,
            "the state file /var/lib/agent/cluster could not be read and was set aside",
        )
        .fix("the previous copy is used"),
    ];
    let expected = "\
degraded: 2 of 3 masters serve; m2 down: connection refused since 14:03:11Z (2m…

node     w1, worker, 10.0.0.9 on wg0, agent 0.1.0, up 2h
cluster  prod, 3 members, document ab12cd34ef56, key 3
open     joins without an invite are accepted here until 14:15:11Z (in 10m)

kube-api  on 127.0.0.1:16443, least-connections, 6 of 10000 connections, 4
          refused at the limit
  NODE  ADDRESS        STATE  SINCE    RTT  CONNS  TOTAL
  m1    10.0.0.1:6443  ready  3d     0.4ms      1    310
  m2    10.0.0.2:6443  down   2m         -      2    310
      connection refused, since 14:03:11Z
  m3    10.0.0.3:6443  ready  3d     1.3ms      3    310
      weight 0: no new connections while another is healthy

members  2 up, 1 suspect
  NAME  ROLE    STATE    SINCE  ADDRESS     RTT  VERSION
  m1    master  up       3d     10.0.0.1  0.4ms  0.1.0
  m2    master  suspect  3d     10.0.0.2  0.4ms  0.1.0
  w1    worker  up       3d     10.0.0.9  0.4ms  0.1.0

problems
  - the state file /var/lib/agent/cluster could not be read and was set aside;
    the previous copy is used
";
    assert_eq!(screen(&status, 80), expected);
}

#[test]
fn a_node_that_knows_nobody_yet_has_a_screen_too() {
    let mut status = status(vec![]);
    status.members.clear();
    status.services[0].listen.clear();
    let text = screen(&status, 80);
    assert!(text.starts_with("no master serves; no apiserver is known yet\n\n"), "{text}");
    assert!(text.contains("kube-api  not served here"), "{text}");
    assert!(text.contains("  no node offers it yet\n"), "{text}");
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    let mut status = fine();
    for (i, one) in status.services[0].backends.iter_mut().enumerate() {
        one.node = name(&format!("a-very-long-name-of-a-node.in.a.zone-{i}"));
        one.address = format!("[fd12:3456:789a:bcde:f012:3456:789a:{i:04x}]:6443");
        one.state = BackendState::NotReady;
        one.reason = Reason::new("etcd failed: reason withheld ".repeat(4));
    }
    for one in &mut status.members {
        one.address = "fd12:3456:789a:bcde:f012:3456:789a:bcde".to_owned();
        one.name = name("a-very-long-name-of-a-node.in.a.zone");
    }
    status.services[0].listen = vec![listener("[fd12:3456:789a:bcde:f012:3456:789a:bcde]:16443"); 3];
    for columns in [80, 100, 160] {
        for line in screen(&status, columns).lines() {
            assert!(line.chars().count() <= columns, "{} columns: {line}", line.chars().count());
        }
    }
}

/// A cluster of three masters and 997 workers, of which every hundredth is down and every hundredth suspect.
fn thousand() -> Status {
    with(|status| {
        status.cluster.members = 1000;
        status.members = (0..1000)
            .map(|i| {
                let (who, role) = if i < 3 { ('m', Role::Master) } else { ('w', Role::Worker) };
                let state = match i % 100 {
                    77 => MemberState::Down,
                    88 => MemberState::Suspect,
                    _ => MemberState::Up,
                };
                member(&format!("{who}{i}"), 1, role, state)
            })
            .collect();
    })
}

#[test]
fn of_a_large_cluster_masters_and_what_is_wrong_are_listed_and_the_rest_is_counted() {
    let expected = "\
ok: 3 of 3 masters serve; 20 of 1000 members do not answer

node     w1, worker, 10.0.0.9 on wg0, agent 0.1.0, up 2h
cluster  prod, 1000 members, document ab12cd34ef56, key 3
core     20 of 1000 members gossip; this node is attached to m1, w7, w9

kube-api  on 127.0.0.1:16443, least-connections, 6 of 10000 connections
  NODE  ADDRESS        STATE  SINCE    RTT  CONNS  TOTAL
  m1    10.0.0.1:6443  ready  3d     0.4ms      1    310
  m2    10.0.0.2:6443  ready  3d     0.8ms      2    310
  m3    10.0.0.3:6443  ready  3d     1.3ms      3    310

members  980 up, 10 suspect, 10 down
  NAME  ROLE    STATE  SINCE  ADDRESS     RTT  VERSION
  m0    master  up     3d     10.0.0.1  0.4ms  0.1.0
  m1    master  up     3d     10.0.0.1  0.4ms  0.1.0
  m2    master  up     3d     10.0.0.1  0.4ms  0.1.0
  w77   worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w177  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w277  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w377  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w477  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w577  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w677  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w777  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w877  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  w977  worker  down   3d     10.0.0.1  0.4ms  0.1.0
  and 977 workers up, 10 workers suspect; for all, run: agent members
";
    let mut status = thousand();
    status.cluster.core = 20;
    status.node.place = Place::Attached.into();
    status.node.attached_to = ["m1", "w7", "w9"].map(name).to_vec();
    assert_eq!(screen(&status, 80), expected);
    status.node.place = Place::Core.into();
    assert!(screen(&status, 80).contains("\ncore     20 of 1000 members gossip, this node among them\n"));
    status.node.place = Place::Attached.into();
    status.node.attached_to.clear();
    let alone = "\ncore     20 of 1000 members gossip; this node is attached to none of them yet\n";
    assert!(screen(&status, 80).contains(alone));
}

#[test]
fn all_members_are_listed_masters_first_with_who_has_said_it() {
    let mut status = fine();
    status.members = ["w10", "w9", "m2", "m1", "w1"]
        .map(|who| {
            let role = if who.starts_with('m') { Role::Master } else { Role::Worker };
            member(who, 1, role, MemberState::Up)
        })
        .to_vec();
    let screen = |status: &Status| crate::cli::members::render(status, NOW, 80, false);
    let own = screen(&status);
    let names: Vec<&str> = own.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["m1", "m2", "w1", "w9", "w10"]);
    status.node.place = Place::Attached.into();
    let note = "\nThis node is attached, and no core member gave a list: of other workers it knows\nwho is silent, no more.\n";
    assert_eq!(screen(&status), format!("{own}{note}"));
    status.members_from = Some(name("n3"));
    assert_eq!(screen(&status), format!("{own}\nThis node is attached: n3 says the rest of this list.\n"));
}

#[test]
fn members_that_are_away_and_not_named_are_not_counted_as_up() {
    let mut status = thousand();
    // As long as all are named, the numbers differ for moments.
    status.cluster.up = Some(975);
    assert!(screen(&status, 80).contains("\nmembers  980 up, 10 suspect, 10 down\n"));
    status.members[200..308].iter_mut().for_each(|one| one.state = MemberState::Down);
    status.cluster.up = Some(500);
    let text = screen(&status, 80);
    assert!(text.starts_with("ok: 3 of 3 masters serve; 500 of 1000 members do not answer\n"), "{text}");
    let said = "\nmembers  500 of 1000 up by what core members say, who name 126 of the others\n";
    assert!(
        text.contains(said) && text.contains("\n  and 987 more; for all, run: agent members\n"),
        "{text}"
    );
}

#[test]
fn of_many_backends_candidates_and_problems_the_screen_shows_what_is_wrong_and_a_count() {
    let mut status = thousand();
    let backends = (0..250).map(|i| {
        backend(i, if i % 20 == 7 { BackendState::Down } else { BackendState::Ready }, "connection refused")
    });
    status.services.push(service("ingress", backends.collect()));
    let mut address = vip(VipState::Owned, Some("c40"), "");
    address.candidates = (0..50)
        .map(|i| VipCandidate { node: name(&format!("c{i}")), rank: i + 1, ..address.candidates[0].clone() })
        .collect();
    status.vips = vec![address];
    status.problems = (0..300)
        .map(|i| Problem::new(ProblemCode::RecordNotUnderstood, format!("w{i} publishes a field; ignored")))
        .collect();
    let text = screen(&status, 80);
    assert!(text.contains("  and 237 ready, 3 down; for all, run: agent status --json\n"), "{text}");
    assert!(text.contains("\n  41  c40        owner\n  and 37 more candidates; for all"), "{text}");
    assert!(text.contains("\n  and 288 more; for all, run: agent status --json\n"), "{text}");
    assert!(text.lines().count() < 96, "{} lines: {text}", text.lines().count());
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn colours_carry_nothing_alone_and_foreign_text_commands_nothing() {
    let mut status = fine();
    status.services[0].backends[0].state = BackendState::Down;
    status.services[0].backends[0].reason = Reason::new("\x1b[2J\x07gone");
    status.problems.push(Problem::new(ProblemCode::Other, "\x1b]0;x\x07"));
    let verdict = summarize(&status, NOW);
    let plain = render(&status, &verdict, NOW, 80, false);
    assert!(!plain.contains('\x1b') && !plain.contains('\x07'));
    let painted = render(&status, &verdict, NOW, 80, true);
    let bare = ["\x1b[32m", "\x1b[33m", "\x1b[31;1m", "\x1b[2m", "\x1b[0m"]
        .iter()
        .fold(painted, |text, code| text.replace(code, ""));
    assert_eq!(bare, plain);
}

#[test]
fn a_virtual_ip_is_shown_with_its_owner_and_those_in_line() {
    let shown = |vip: VipStatus| {
        let status = with(|status| status.vips = vec![vip]);
        let verdict = summarize(&status, NOW);
        let text = render(&status, &verdict, NOW, 80, false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        (verdict.code, text)
    };
    let (code, text) = shown(vip(VipState::Owned, Some("m1"), ""));
    assert_eq!(code, 0, "{text}");
    for part in [
        "vip 10.91.91.50  on m1 since ",
        "(90s), epoch 4, eth0 here\n",
        "  1  m1         owner\n",
        "  2  m2         ready\n",
        "  3  m3         ineligible\n",
        "its kube-api is down: connection refused",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = shown(vip(VipState::Unavailable, None, "no L2 on wg0 (point-to-point)"));
    assert_eq!(code, 10);
    assert!(
        text.starts_with("degraded: 3 of 3 masters serve; VIP 10.91.91.50 is unavailable: no L2 on wg0"),
        "{text}"
    );
    assert!(text.contains("\n  no L2 on wg0 (point-to-point)\n"), "{text}");
    assert!(shown(vip(VipState::OwnedHere, Some("w1"), "")).1.contains("  on this node since "));
    assert_eq!(shown(vip(VipState::Unowned, None, "")).0, 10);
}

#[test]
fn json_keeps_the_shape_that_scripts_rely_on() {
    let value = serde_json::to_value(with(|status| {
        status.services[0].backends[0].state = BackendState::NotReady;
    }))
    .unwrap();
    let has = |path: &str, keys: &str| {
        let object = value.pointer(path).unwrap_or_else(|| panic!("no {path}"));
        for key in keys.split(' ') {
            assert!(object.get(key).is_some(), "{path} has no {key}");
        }
    };
    has("", "schema cluster node services members vips");
    has("/cluster", "id name members document");
    has("/node", "id name address interface role version started_unix_ms");
    has("/services/0", "name listen balance backends");
    has("/services/0/backends/0", "node address state reason since_unix_ms rtt_ms connections total weight");
    has("/members/0", "id name address role state version since_unix_ms rtt_ms");
    assert_eq!(value["schema"], 1);
    assert_eq!(value["services"][0]["backends"][0]["state"], "not-ready");
    assert_eq!(value["services"][0]["balance"], "least-connections");
    assert_eq!(value["members"][0]["role"], "master");
    assert_eq!(value["members"][0]["since_unix_ms"], ago(3 * 86_400).0);
    assert!(value["vips"].as_array().unwrap().is_empty());
    let value = serde_json::to_value(vip(VipState::OwnedHere, Some("m1"), "")).unwrap();
    for key in "address state owner epoch interface since_unix_ms reason candidates".split(' ') {
        assert!(value.get(key).is_some(), "a virtual IP has no {key}");
    }
    assert_eq!((&value["address"], &value["state"]), (&"10.91.91.50".into(), &"owned-here".into()));
    assert_eq!(value["candidates"][2]["reason"], "its kube-api is down: connection refused");
    assert_eq!(value["candidates"][0]["eligible"], true);
}
