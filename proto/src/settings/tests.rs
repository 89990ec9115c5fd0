//! Tests of settings: what each key takes, what is refused and with which words, and what a change does.

use proptest::prelude::*;

use super::*;
use crate::cluster::{Admitted, KeyId};
use crate::node::{NodeId, PublicKey, Role};
use crate::service::{Balance, CheckKind};

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn document() -> Document {
    let admitted =
        |n: u8| Admitted::new(format!("m{n}").parse().unwrap(), key(n), Role::Master, key(1).id(), UnixMs(1));
    let mut document = Document::new([1; 16], "c".parse().unwrap(), admitted(1), KeyId([0; 16]));
    document.admit(admitted(2));
    document.admit(admitted(3));
    document
}

fn by() -> NodeId {
    key(1).id()
}

/// `key=value`, or `key` to unset it.
fn wishes(texts: &[&str]) -> Vec<(String, Option<String>)> {
    let split = |text: &&str| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => ((*text).to_owned(), None),
    };
    texts.iter().map(split).collect()
}

pub(super) fn planned(document: &Document, texts: &[&str]) -> Result<Vec<SettingChange>, Vec<String>> {
    plan(document, &wishes(texts)).map_err(|all| all.iter().map(Mistake::to_string).collect())
}

/// The document with these set.
pub(super) fn with(texts: &[&str]) -> Document {
    let mut document = document();
    for change in planned(&document, texts).unwrap_or_else(|mistakes| panic!("{mistakes:?}")) {
        document.set(&change.key, change.new, by(), UnixMs(1)).unwrap();
    }
    document
}

pub(super) fn read(texts: &[&str]) -> Settings {
    let (settings, mistakes) = Settings::of(&with(texts));
    assert!(mistakes.is_empty(), "{mistakes:?}");
    settings
}

fn names(texts: &[&str]) -> BTreeSet<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn nothing_is_the_default() {
    assert_eq!(Settings::of(&document()), (Settings::default(), Vec::new()));
}

#[test]
fn a_vip_needs_only_its_address() {
    let settings = read(&["vip=10.91.91.50/24, fd00::50"]);
    let expected = ["10.91.91.50", "fd00::50"].map(|text| VipSettings::new(text.parse().unwrap()));
    assert_eq!(settings.vips, expected);
    assert_eq!(
        with(&["vip= fd00:0::50/64 ,10.91.91.50/24"]).settings["vip"].value.as_deref(),
        Some("10.91.91.50,fd00::50")
    );
}

#[test]
fn everything_of_a_vip_is_read() {
    let settings = read(&[
        "vip.10.91.91.50.interface=vpn0",
        "vip.10.91.91.50.label=vpn0:0",
        "vip.10.91.91.50.candidates=m2, m1",
        "vip.10.91.91.50.priority.m2=200",
        "vip.10.91.91.50.preempt=30s",
        "vip.10.91.91.50.service=web",
        "vip.fd00:0::50.candidates=all",
        "vip.fd00::50.preempt=off",
        "vip=10.91.91.50,fd00::50",
    ]);
    let first = VipSettings {
        address: "10.91.91.50".parse().unwrap(),
        interface: Some("vpn0".into()),
        label: Some("vpn0:0".into()),
        candidates: NodeSelector::Names(names(&["m1", "m2"])),
        priorities: BTreeMap::from([("m2".parse().unwrap(), 200)]),
        preempt: Some(Duration::from_secs(30)),
        service: "web".parse().unwrap(),
    };
    let second =
        VipSettings { candidates: NodeSelector::All, ..VipSettings::new("fd00::50".parse().unwrap()) };
    assert_eq!(settings.vips, [first, second]);
}

#[test]
fn everything_else_is_read() {
    let settings = read(&[
        "balance=nearest",
        "service.web.listen=127.0.0.1:8443",
        "service.web.port=443",
        "service.web.check.kind=http",
        "weight.m2=0",
        "drain.m3=1700000000000",
        "haproxy-metrics=true",
    ]);
    assert_eq!(settings.services.len(), 2);
    assert_eq!(
        (settings.services[0].name.as_str(), settings.services[0].balance),
        ("kube-api", Balance::Nearest)
    );
    assert!(matches!(settings.services[1].check.kind, CheckKind::Http(_)));
    assert_eq!(settings.weights, BTreeMap::from([("m2".parse().unwrap(), 0)]));
    assert_eq!(settings.drains, BTreeMap::from([("m3".parse().unwrap(), UnixMs(1_700_000_000_000))]));
    assert!(settings.haproxy_metrics);
}

#[test]
fn what_is_wrong_is_refused_with_what_would_be_right() {
    let table: &[(&[&str], &str)] = &[
        (&["vpi=10.0.0.9"], "vpi: there is no setting \"vpi\", did you mean vip? there are vip, service"),
        (&["frobnicate=1"], "frobnicate: there is no setting \"frobnicate\"; there are vip, service"),
        (&["vip=10.0.0.300"], "vip: \"10.0.0.300\" is not an IP address"),
        (&["vip=10.0.0.9/33"], "vip: \"10.0.0.9/33\" has no prefix length"),
        (&["vip="], "vip: no address; write one such as 10.0.0.50, or unset it"),
        (&["vip=127.0.0.1"], "vip: 127.0.0.1 cannot be shared between nodes"),
        (&["vip=fe80::1"], "vip: fe80::1 cannot be shared between nodes"),
        (&["vip=0.0.0.0"], "vip: 0.0.0.0 is not reachable"),
        (
            &["vip.10.0.0.9.interface=wg0"],
            "vip.10.0.0.9.interface: 10.0.0.9 is not among the addresses of vip",
        ),
        (&["vip=10.0.0.9", "vip.10.0.0.9.intreface=wg0"], "did you mean interface?"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.check=/bin/sh"], "set it in each node's agent.toml"),
        (&["vip=10.0.0.9", "vip.10.0.0.9=wg0"], "there is no setting of a VIP \"\"; there are interface"),
        (&["vip.wg0=1"], "vip.wg0: the address is missing; write vip.10.0.0.50.interface"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.interface=a/b"], "is not an interface name"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.label=wg0:0123456789ab"], "is not a label"),
        (
            &["vip=10.0.0.9", "vip.10.0.0.9.label=b:0", "vip.10.0.0.9.interface=wg0"],
            "must begin with its interface, such as wg0:0",
        ),
        (&["vip=fd00::9", "vip.fd00::9.label=wg0:0"], "IPv6 addresses have no labels"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.candidates=m1,m9"], "there is no member \"m9\", did you mean m"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.candidates="], "empty; use masters, workers, all"),
        (
            &["vip=10.0.0.9", "vip.10.0.0.9.priority=1"],
            "the node is missing; write vip.10.0.0.9.priority.NODE",
        ),
        (&["vip=10.0.0.9", "vip.10.0.0.9.priority.m1=0"], "\"0\" is not a whole number from 1 to 255"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.preempt=soon"], "\"soon\" is not a duration"),
        (&["vip=10.0.0.9", "vip.10.0.0.9.service=A"], "is not a service name"),
        (&["service.web=1"], "there is no setting of a service \"\"; there are listen, port"),
        (&["service.web.prot=1"], "there is no setting of a service \"prot\", did you mean port?"),
        (&["service.web.weight=1"], "use weight.NODE"),
        (&["service.web.check.ca-file=/x"], "set it in each node's agent.toml"),
        (&["service.web.listen=127.0.0.1:8443"], "service.web.port: missing"),
        (&["service.web.port=443", "service.web.listen=127.0.0.1:16443"], "is used by service kube-api"),
        (&["balance=fastest"], "service.kube-api.balance: \"fastest\" is not a way to balance"),
        (&["weight=1"], "the node is missing; write weight.NODE"),
        (&["weight.m1=257"], "weight.m1: \"257\" is not a whole number from 0 to 256"),
        (&["weight.m1=+5"], "weight.m1: \"+5\" is not a whole number"),
        (&["weight.worker=1"], "there is no member \"worker\"; the members are m1, m2, m3"),
        (&["drain.m1=yes"], "run: agent drain NODE"),
        (&["haproxy-metrics=1"], "haproxy-metrics: \"1\" is not true or false"),
        (&["haproxy-metrics"], "haproxy-metrics: not set"),
        (&["vpi"], "did you mean vip?"),
        (&["balance=first", "balance=nearest"], "service.kube-api.balance: set twice"),
    ];
    for (texts, words) in table {
        let mistakes = planned(&document(), texts).expect_err(&format!("{texts:?}"));
        assert_eq!(mistakes.len(), 1, "{texts:?}: {mistakes:?}");
        assert!(mistakes[0].contains(words), "{texts:?}: {} lacks \"{words}\"", mistakes[0]);
    }
    let all = planned(&document(), &["vip=x", "weight.m1=x", "haproxy-metrics=true"]).unwrap_err();
    assert_eq!(all.len(), 2, "every mistake is told at once: {all:?}");
}

#[test]
fn a_change_says_what_was() {
    let document = with(&["balance=first", "weight.m2=50"]);
    let id = key(2).id().to_string();
    let changes =
        planned(&document, &["balance=nearest", &format!("weight.{id}=60"), "haproxy-metrics=true"]);
    let change = |key: &str, old: Option<&str>, new: Option<&str>| SettingChange {
        key: key.to_owned(),
        old: old.map(str::to_owned),
        new: new.map(str::to_owned),
    };
    let expected = [
        change("haproxy-metrics", None, Some("true")),
        change("service.kube-api.balance", Some("first"), Some("nearest")),
        change("weight.m2", Some("50"), Some("60")),
    ];
    assert_eq!(changes.unwrap(), expected);
    assert_eq!(planned(&document, &["weight.m2"]).unwrap(), [change("weight.m2", Some("50"), None)]);
}

#[test]
fn what_belongs_together_goes_together() {
    let keys = |changes: Vec<SettingChange>| {
        assert!(changes.iter().all(|change| change.new.is_none() || change.key == "vip"), "{changes:?}");
        changes.into_iter().map(|change| change.key).collect::<Vec<_>>()
    };
    let document = with(&[
        "vip=10.0.0.1,10.0.0.11",
        "vip.10.0.0.1.interface=wg0",
        "vip.10.0.0.11.interface=wg0",
        "service.web.listen=",
        "service.web.port=443",
        "service.web2.listen=",
        "service.web2.port=443",
    ]);
    let of = |texts: &[&str]| keys(planned(&document, texts).unwrap());
    assert_eq!(of(&["vip=10.0.0.11"]), ["vip", "vip.10.0.0.1.interface"]);
    assert_eq!(of(&["vip"]), ["vip", "vip.10.0.0.1.interface", "vip.10.0.0.11.interface"]);
    assert_eq!(of(&["service.web"]), ["service.web.listen", "service.web.port"]);
    let half = planned(&document, &["service.web.port"]).unwrap_err();
    assert!(half[0].contains("service.web.port: missing"), "{half:?}");
}

#[test]
fn what_a_later_version_wrote_is_reported_and_hinders_nobody() {
    let mut document = with(&["vip=10.0.0.1"]);
    document.set("vip.10.0.0.1.shared", Some("yes".into()), by(), UnixMs(1)).unwrap();
    document.set("teleport", Some("on".into()), by(), UnixMs(1)).unwrap();
    document.set("weight.m1", Some("heavy".into()), by(), UnixMs(1)).unwrap();
    let (settings, mistakes) = Settings::of(&document);
    assert_eq!((settings.vips.len(), settings.weights.len(), mistakes.len()), (1, 0, 3), "{mistakes:?}");
    assert!(planned(&document, &["balance=first"]).is_ok());
    assert_eq!(planned(&document, &["teleport"]).unwrap().len(), 1, "it can be unset");
    // A node that was removed keeps nothing that could not be taken away.
    document.remove(key(2).id(), by(), UnixMs(2));
    document.set("drain.m2", Some("5".into()), by(), UnixMs(1)).unwrap();
    assert!(planned(&document, &["drain.m2=6"]).is_err());
    assert_eq!(planned(&document, &["drain.m2"]).unwrap().len(), 1);
}

#[test]
fn every_setting_that_is_told_of_is_one() {
    for known in KNOWN {
        let key = known.key.replace("ADDRESS", "10.0.0.1").replace("NAME", "web").replace("NODE", "m1");
        let parsed = SettingKey::parse(&key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(parsed.to_string() == key || key == "balance", "{key} reads as {parsed}");
        let (_, told) = about(&key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(*told == *known || key == "balance", "{key} is told of as {}", told.key);
        assert!(known.key.len() + known.what.len() < 76, "{} does not fit a line", known.key);
    }
    let told = KNOWN.iter().filter(|known| known.key.starts_with("service.")).count();
    assert_eq!(told, crate::config::SHARED_KEYS.len() + 3, "who offers, who listens, and node-local");
}

#[test]
fn who_may_offer_a_service_and_own_a_vip_is_the_settings_to_say() {
    let settings = |changes: &[&str]| {
        let mut document = document();
        for change in planned(&document, changes).unwrap() {
            document.set(&change.key, change.new, by(), UnixMs(1)).unwrap();
        }
        Settings::of(&document).0
    };
    let web: ServiceName = "web".parse().unwrap();
    let m1: Name = "m1".parse().unwrap();
    let may = |value: Option<&str>, role| {
        let change: Vec<String> =
            value.map(|value| format!("service.web.offer={value}")).into_iter().collect();
        let changes: Vec<&str> = change.iter().map(String::as_str).collect();
        settings(&changes).may_offer(&web, &m1, role)
    };
    for (value, master, worker) in [
        (None, true, false),
        (Some("masters"), true, false),
        (Some("workers"), false, true),
        (Some("all"), true, true),
        (Some("m1,m2"), true, true),
        (Some("m2"), false, false),
    ] {
        assert_eq!((may(value, Role::Master), may(value, Role::Worker)), (master, worker), "{value:?}");
    }
    assert!(planned(&document(), &["service.web.offer=nobody"]).is_err(), "no member is called so");
    assert!(planned(&document(), &["service.kube-api.offer=all"]).is_err(), "never anyone but masters");
    assert!(!Settings::default().may_offer(&ServiceName::kube_api(), &m1, Role::Worker));
    let vip: IpAddr = "10.0.0.50".parse().unwrap();
    let own = |changes: &[&str], role| settings(changes).may_own(vip, &m1, role);
    assert!(own(&["vip=10.0.0.50"], Role::Master) && !own(&["vip=10.0.0.50"], Role::Worker));
    assert!(own(&["vip=10.0.0.50", "vip.10.0.0.50.candidates=m1"], Role::Worker));
    assert!(own(&["vip=10.0.0.50", "vip.10.0.0.50.candidates=workers"], Role::Worker));
    assert!(!own(&["vip=10.0.0.50", "vip.10.0.0.50.candidates=workers"], Role::Master));
    assert!(!own(&["vip=10.0.0.50", "vip.10.0.0.50.candidates=m2"], Role::Master));
}

#[test]
fn who_listens_is_told_apart_from_who_offers() {
    let join = ["service.join.port=9345", "service.join.listen=0.0.0.0:9345"];
    let at = |changes: &[&str], node: &str, role| {
        let settings = Settings::of(&with(changes)).0;
        let services = settings.services_at(&node.parse().unwrap(), role);
        let listen = |service: &Service| service.listen.iter().map(ToString::to_string).collect::<Vec<_>>();
        services.iter().map(|one| (listen(one).join(","), one.offer)).collect::<Vec<_>>()
    };
    let everywhere = ("0.0.0.0:9345".to_owned(), true);
    assert_eq!(at(&join, "m1", Role::Master), std::slice::from_ref(&everywhere), "as without listen-on");
    for (listen_on, offer, node, role, listens, offers) in [
        ("m1", "masters", "m1", Role::Worker, true, false),
        ("m1", "masters", "m2", Role::Master, false, true),
        ("workers", "m2,m3", "m1", Role::Worker, true, false),
        ("workers", "m2,m3", "m2", Role::Master, false, true),
        ("masters", "workers", "m1", Role::Master, true, false),
        ("all", "all", "m1", Role::Worker, true, true),
    ] {
        let (listen_on, offer) =
            (format!("service.join.listen-on={listen_on}"), format!("service.join.offer={offer}"));
        let listen = if listens { "0.0.0.0:9345" } else { "" };
        let expected = [(listen.to_owned(), offers)];
        assert_eq!(
            at(&[join[0], join[1], &listen_on, &offer], node, role),
            expected,
            "{listen_on} {offer} {node}"
        );
    }
    let api = ["service.kube-api.listen=0.0.0.0:6443,[::]:6443", "service.kube-api.listen-on=m3"];
    assert_eq!(at(&api, "m3", Role::Worker), [("0.0.0.0:6443,[::]:6443".to_owned(), true)]);
    assert_eq!(at(&api, "m1", Role::Master), [("127.0.0.1:16443".to_owned(), true)], "for its own clients");
    assert_eq!(
        with(&[join[0], join[1], "service.join.listen-on= m2 ,m1"]).settings["service.join.listen-on"]
            .value
            .as_deref(),
        Some("m1,m2")
    );
}

#[test]
fn only_who_listens_for_both_has_a_conflict() {
    let two = |a: &str, b: &str| {
        let mut changes = Vec::new();
        for (name, who) in [("a", a), ("b", b)] {
            changes.extend([
                format!("service.{name}.port=80"),
                format!("service.{name}.listen=0.0.0.0:80"),
                format!("service.{name}.listen-on={who}"),
            ]);
        }
        let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
        planned(&document(), &changes).err().unwrap_or_default()
    };
    for (a, b, conflict) in [
        ("m1", "m2", false),
        ("m1", "m1,m2", true),
        ("m1", "masters", true),
        ("m1", "workers", false),
        ("masters", "workers", false),
        ("workers", "all", true),
        ("masters", "masters", true),
    ] {
        let mistakes = two(a, b);
        assert_eq!(mistakes.len(), usize::from(conflict), "{a} {b}: {mistakes:?}");
        assert!(mistakes.iter().all(|text| text.contains("0.0.0.0:80 is used by service a")), "{mistakes:?}");
    }
    for (change, words) in [
        ("service.join.listen-on=m1", "service.join.listen-on: set service.join.listen too"),
        ("service.kube-api.listen-on=m1", "service.kube-api.listen-on: set service.kube-api.listen too"),
        ("service.join.listen-on=", "empty; use masters, workers, all, or node names"),
        ("service.join.listen-on=m9", "there is no member \"m9\""),
    ] {
        let mistakes = planned(&document(), &[change]).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains(words), "{mistakes:?} lacks \"{words}\"");
    }
}

proptest! {
    #[test]
    fn no_setting_makes_it_panic(
        pairs in proptest::collection::vec(
            ("(vip|weight|drain|balance|service|haproxy-metrics)(\\.[a-z0-9.:]{0,12}){0,3}|.{0,20}", ".{0,30}"), 0..8
        ),
    ) {
        let mut document = document();
        for (key, value) in &pairs {
            document.set(key, Some(value.clone()), by(), UnixMs(1)).unwrap();
        }
        let _ = Settings::of(&document);
        let set: Vec<_> = pairs.into_iter().map(|(key, value)| (key, Some(value))).collect();
        let _ = plan(&document, &set);
    }

    #[test]
    fn what_was_planned_reads_back_without_a_mistake(
        vip in "10\\.0\\.0\\.[1-9]", weight in 0u16..=256, balance in 0usize..5, preempt in 0u32..3600,
    ) {
        let texts = [
            format!("vip={vip}/24"),
            format!("vip.{vip}.preempt={preempt}s"),
            format!("weight.m2={weight}"),
            format!("balance={}", Balance::ALL[balance]),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let settings = read(&texts);
        prop_assert_eq!(settings.vips.len(), 1);
        prop_assert_eq!(settings.services[0].balance, Balance::ALL[balance]);
    }
}

#[test]
fn a_setting_in_a_node_s_file_is_pointed_to_agent_set() {
    // Of virtual IPs the file has a part of its own.
    for head in super::known::HEADS.iter().filter(|head| **head != "vip") {
        let mistakes = crate::config::parse(&format!("{head} = \"x\"\n")).unwrap_err();
        assert!(
            mistakes[0].message.contains("agent help set") || mistakes[0].message.contains("agent set"),
            "{mistakes:?}"
        );
    }
}
