//! Files that people have, and what `agent migrate` makes of them: every sample against what stands beside
//! it, and no bytes that make it panic or write what no agent would take.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proto::config::{self, Config};
use proto::migrate::{MigrateError, Migration, SourceFile, Surroundings};

mod table;

fn dir(sample: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/migrate").join(sample)
}

fn migrate(sources: &[SourceFile<'_>], node: Option<&str>) -> Result<Migration, MigrateError> {
    let node = node.map(|name| name.parse().unwrap());
    let around = Surroundings { node: node.as_ref(), names: &BTreeMap::new(), variables: &|_| None };
    proto::migrate::migrate(sources, &around)
}

fn run(sample: &str, node: Option<&str>) -> Migration {
    let files = ["haproxy.cfg", "keepalived.conf"];
    let read = |name: &&'static str| Some((*name, std::fs::read(dir(sample).join(name)).ok()?));
    let files: Vec<_> = files.iter().filter_map(read).collect();
    let sources: Vec<_> = files.iter().map(|(name, bytes)| SourceFile { name, bytes }).collect();
    migrate(&sources, node).unwrap()
}

fn parsed(migration: &Migration) -> Config {
    config::parse(&migration.text).unwrap_or_else(|found| panic!("{found:?}\n{}", migration.text))
}

/// Compares with what stands beside the sample; `UPDATE=1` writes it anew, to be read in the difference.
fn golden(sample: &str, node: Option<&str>) -> Migration {
    let made = run(sample, node);
    let script = made.notify_script.as_deref().unwrap_or_default();
    let explained = format!("{}==== stderr ====\n\n{}\n{script}", made.explanation, made.problems.join("\n"));
    for (name, text) in [("agent.toml", &made.text), ("explained", &explained)] {
        let file = dir(sample).join(name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, text).unwrap();
        }
        let known = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(*text == known, "{sample} has changed: run with UPDATE=1 and read the difference\n{text}");
    }
    // A command stands on one line, however long, since a comment has no continuation.
    let is_command = |line: &&str| line.starts_with("#   agent ");
    let lines = made.text.lines().filter(|line| line.starts_with('#')).chain(made.explanation.lines());
    for line in lines.filter(|line| !is_command(line)) {
        assert!(line.chars().count() <= 80, "{sample}: {line}");
    }
    assert!(!made.text.contains("geheim") && !format!("{:?}", made.problems).contains("geheim"));
    made
}

#[test]
fn three_masters_behind_the_usual_listener_need_no_configuration() {
    let made = golden("classic", None);
    assert_eq!(parsed(&made), Config::default());
    assert!(made.problems.is_empty(), "{:?}", made.problems);
    assert!(made.text.contains("This file may be left out") && made.text.contains("agent init"));
    assert!(made.text.contains("m2 (10.91.91.2), m3 (10.91.91.3)"));
}

#[test]
fn the_files_of_kubeadm_s_handbook_become_a_listener_and_a_virtual_ip() {
    let made = golden("kubeadm", Some("m1"));
    let service = &parsed(&made).services[0];
    assert_eq!(service.listen, ["0.0.0.0:8443".parse().unwrap()]);
    assert_eq!((service.balance.as_str(), service.access_log, service.port), ("round-robin", true, 6443));
    let command =
        "#   agent set vip=192.168.1.10 vip.192.168.1.10.priority.m1=101 vip.192.168.1.10.preempt=0s\n";
    assert!(made.text.contains(command), "{}", made.text);
}

#[test]
fn two_balancers_of_rke2_with_their_page_become_services_and_settings() {
    let made = golden("rke2", None);
    let config = parsed(&made);
    let names: Vec<_> = config.services.iter().map(|one| (one.name.as_str(), one.port)).collect();
    assert_eq!(names, [("kube-api", 6443), ("rke2-join", 9345)]);
    assert_eq!(config.services[1].check.kind.as_str(), "https");
    assert_eq!(config.services[0].listen.len(), 2);
    assert!(made.text.contains(" vip.10.20.0.100.candidates=NODE1,NODE2 "));
    assert!(made.text.contains("agent set service.rke2-join.port=9345 service.rke2-join.offer=masters "));
    assert!(config.web.login.is_some() && config.web.haproxy_metrics);
    assert_eq!(config.notify, ["/usr/local/sbin/agent-vip-notify"]);
    assert!(
        !made.text.contains("1111aaaa") && !made.text.contains("weight.rke2-m3"),
        "no backup for its other port"
    );
    assert!(!made.problems.iter().any(|problem| problem.contains("correct-horse")));
}

#[test]
fn what_reads_http_or_ends_tls_is_not_done_and_the_rest_is() {
    let made = golden("ingress", None);
    let config = parsed(&made);
    let names: Vec<_> = config.services.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["kube-api", "ingress-https"]);
    assert_eq!(config.services[0].listen.len(), 3, "two listeners before the same masters are one service");
    assert!(made.text.contains("agent set weight.m1=50 ") && made.text.contains("agent drain w2 "));
}

#[test]
fn a_messy_file_is_told_line_by_line() {
    let made = golden("messy", None);
    let all = made.problems.join("\n");
    for words in [
        "was balance meant?",
        "was daemon meant?",
        "was redispatch meant?",
        "was connect meant?",
        "was check meant?",
        "was nopreempt meant?",
        "haproxy.cfg:1: unknown: stray",
        "a range of ports",
        "run it again as: ADDRESS=VALUE agent migrate",
        "there is no backend \"nowhere\"",
        "unterminated quote",
        "from 0 to 256",
        "keepalived.conf:39: wrong: }",
        "the agent itself has",
        "other masters than those of kube-api",
    ] {
        assert!(all.contains(words), "{words} is not in:\n{all}");
    }
}

#[test]
fn what_a_shell_would_run_is_in_no_command() {
    for entry in
        ["10.0.0.50 dev $(id) label $(id):0", "10.0.0.50 dev eth0 label eth0;id", "10.0.0.50 dev a;id"]
    {
        let text = format!("vrrp_instance x {{\n virtual_ipaddress {{\n {entry}\n }}\n}}\n");
        let made = migrate(&[SourceFile { name: "x", bytes: text.as_bytes() }], None).unwrap();
        let commands: Vec<&str> =
            made.text.lines().filter(|line| line.starts_with("#   agent set")).collect();
        assert!(!commands.is_empty() && !commands.iter().any(|line| line.contains("id")), "{commands:?}");
        assert!(!made.problems.is_empty());
    }
}

#[test]
fn a_file_of_neither_is_refused_and_so_are_two_of_one() {
    let one = |bytes: &[u8]| migrate(&[SourceFile { name: "x", bytes }], None);
    assert_eq!(one(b""), Err(MigrateError::NeitherKind { file: "x".to_owned() }));
    assert!(one(b"name = \"m1\"\n").is_err());
    let nginx =
        b"stream {\n upstream kube { server 10.0.0.1:6443; }\n server { listen 6443; proxy_pass kube; }\n}\n";
    assert_eq!(one(nginx), Err(MigrateError::Nginx { file: "x".to_owned() }));
    let twice =
        [SourceFile { name: "a", bytes: b"global\n" }, SourceFile { name: "b", bytes: b"defaults\n" }];
    let [first, second] = ["a", "b"].map(str::to_owned);
    assert_eq!(migrate(&twice, None), Err(MigrateError::SameKind { first, second, program: "haproxy" }));
}

/// Words of both files, and others.
fn word() -> impl Strategy<Value = String> {
    let samples = [
        "classic/haproxy.cfg",
        "kubeadm/haproxy.cfg",
        "rke2/haproxy.cfg",
        "ingress/haproxy.cfg",
        "messy/haproxy.cfg",
        "kubeadm/keepalived.conf",
        "rke2/keepalived.conf",
        "messy/keepalived.conf",
    ];
    let mut words: Vec<String> = Vec::new();
    for sample in samples {
        let text = String::from_utf8_lossy(&std::fs::read(dir(sample)).unwrap()).into_owned();
        words.extend(text.split([' ', '\t']).map(str::to_owned));
    }
    prop_oneof![9 => prop::sample::select(words), 1 => ".{0,8}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for head in ["listen api\n", "vrrp_instance x {\n", ""] {
            let bytes = [head.as_bytes(), &bytes].concat();
            let _ = migrate(&[SourceFile { name: "x", bytes: &bytes }], None);
        }
    }

    #[test]
    fn what_is_written_is_taken(words in prop::collection::vec(word(), 0..120), head in 0..3_usize) {
        let head = ["listen api\nbind 127.0.0.1:1\nserver a 10.0.0.1:6443\n", "vrrp_instance x {\n", "defaults\n"][head];
        let text = format!("{head}{}", words.join(" "));
        match migrate(&[SourceFile { name: "x", bytes: text.as_bytes() }], None) {
            Ok(made) => {
                prop_assert!(config::parse(&made.text).is_ok(), "{}", made.text);
                let all = format!("{}{}{}", made.text, made.explanation, made.problems.concat());
                prop_assert!(!all.chars().any(|c| c.is_control() && c != '\n'));
            }
            Err(error) => prop_assert!(!matches!(error, MigrateError::Invalid { .. }), "{error}"),
        }
    }
}

#[test]
fn deep_and_long_files_are_read_to_their_end() {
    let deep = "vrrp_instance x {\n".repeat(50_000);
    assert!(migrate(&[SourceFile { name: "x", bytes: deep.as_bytes() }], None).is_ok());
    let long = format!("listen api\n{}", "server a 10.0.0.1:6443 check weight 1\n".repeat(20_000));
    assert!(migrate(&[SourceFile { name: "x", bytes: long.as_bytes() }], None).is_ok());
}
