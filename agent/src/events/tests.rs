//! The event recorder, with watches in place of the features.

use std::path::Path;

use proto::cluster::{Admitted, Document, KeyId};
use proto::node::{PublicKey, Role};
use proto::transport::KeyRing;

use super::*;

/// Stand-ins for the features.
struct Stage {
    tell: mpsc::Sender<Event>,
    ring: watch::Receiver<Arc<EventRing>>,
    trust: watch::Sender<Arc<TrustedKeys>>,
    life: Lifecycle,
    table: watch::Sender<Arc<BackendTable>>,
    config: watch::Sender<Arc<Config>>,
    sink_errors: SinkErrors,
}

fn stage(dir: &Path) -> Stage {
    stage_after(dir, None)
}

fn stage_after(dir: &Path, replaced: Option<TakeOver>) -> Stage {
    let key = PublicKey([1; 32]);
    let node: Name = "m1".parse().unwrap();
    let admitted = Admitted::new(node.clone(), key, Role::Master, key.id(), UnixMs(1));
    let document = Document::new([1; 16], node.clone(), admitted, KeyId([0; 16]));
    let trust = TrustedKeys { document: Arc::new(document), ring: Arc::new(KeyRing::default()) };
    let (tell, told) = mpsc::channel(QUEUE);
    let (ring_in, ring) = watch::channel(Arc::default());
    let (table_in, table) = watch::channel(Arc::default());
    let (trust_in, trust) = watch::channel(Arc::new(trust));
    let (config_in, config) = watch::channel(Arc::default());
    let (life, sink_errors) = (Lifecycle::new(), SinkErrors::default());
    let inputs = EventInputs {
        own: key.id(),
        node,
        began: wall(),
        replaced,
        told,
        table,
        view: watch::channel(Arc::default()).1,
        liveness: watch::channel(Arc::default()).1,
        trust,
        health: watch::channel(Arc::default()).1,
        vips: watch::channel(Vec::new()).1,
        look: Box::new(PolledState::default),
        sinks: EventSinks {
            dir: dir.to_owned(),
            config,
            resolve: Arc::new(|_| Box::pin(async { Ok(Vec::new()) })),
            sink_errors: sink_errors.clone(),
        },
    };
    spawn(inputs, ring_in, &life);
    Stage { tell, ring, trust: trust_in, life, table: table_in, config: config_in, sink_errors }
}

impl Stage {
    async fn kinds(&mut self, count: usize) -> Vec<EventKind> {
        let waited = self.ring.wait_for(|ring| ring.all().len() >= count);
        let within = tokio::time::timeout(Duration::from_secs(10), waited);
        within.await.unwrap().unwrap().all().map(|event| event.kind).collect()
    }

    async fn end(self, gently: bool) {
        if gently {
            let mut ring = self.ring.clone();
            self.life.draining.cancel();
            let said = |ring: &Arc<EventRing>| ring.all().any(|event| event.kind == EventKind::AgentStopping);
            let _ = ring.wait_for(said).await;
        }
        self.life.shutdown.cancel();
        self.life.finished().await;
    }
}

/// A document of as many members.
fn members(count: u8) -> Document {
    let admitted = |n: u8| {
        let (key, role) = (PublicKey([n; 32]), if n == 1 { Role::Master } else { Role::Worker });
        Admitted::new(format!("m{n}").parse().unwrap(), key, role, key.id(), UnixMs(1))
    };
    let mut document = Document::new([1; 16], "m1".parse().unwrap(), admitted(1), KeyId([0; 16]));
    document.nodes.extend((2..=count).map(|n| (PublicKey([n; 32]).id(), admitted(n))));
    document
}

#[tokio::test]
async fn a_node_that_stops_while_all_others_do_sums_up_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(dir.path());
    stage.kinds(1).await;
    stage.life.draining.cancel();
    stage.kinds(2).await;
    let trust = TrustedKeys { document: Arc::new(members(40)), ring: Arc::new(KeyRing::default()) };
    stage.trust.send_replace(Arc::new(trust));
    let kinds = stage.kinds(3).await;
    assert_eq!(kinds, [EventKind::AgentStarted, EventKind::AgentStopping, EventKind::MemberJoined]);
    let sum = stage.ring.borrow().all().next_back().unwrap().clone();
    assert_eq!(sum.count, Some(39));
    stage.end(false).await;
}

#[tokio::test]
async fn events_are_numbered_published_and_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage_ = stage(dir.path());
    stage_.tell.try_send(Event::new(EventKind::VipState, wall(), "10.0.0.9", "master")).unwrap();
    assert_eq!(stage_.kinds(2).await, [EventKind::AgentStarted, EventKind::VipState]);
    stage_.end(true).await;

    let mut again = stage(dir.path());
    let kinds = again.kinds(4).await;
    assert_eq!(
        kinds,
        [EventKind::AgentStarted, EventKind::VipState, EventKind::AgentStopping, EventKind::AgentStarted]
    );
    let ring = again.ring.borrow().clone();
    let numbers: Vec<u64> = ring.all().map(|event| event.seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let last = ring.all().next_back().unwrap();
    assert_eq!((last.from.as_str(), last.node.as_str(), last.level), ("stopped", "m1", EventLevel::Info));
    again.end(false).await;

    let mut crashed = stage(dir.path());
    crashed.kinds(5).await;
    let ring = crashed.ring.borrow().clone();
    let last = ring.all().next_back().unwrap();
    assert!(last.from == "lost" && last.level == EventLevel::Warning, "{last:?}");
    crashed.end(false).await;
}

#[tokio::test]
async fn a_process_that_takes_over_does_not_report_again_what_stood() {
    let dir = tempfile::tempdir().unwrap();
    let owner =
        |from: &str, to: &str| Event::new(EventKind::VipOwner, wall(), "10.0.0.9", to).from(from, None);
    let member = |to: &str| Event::new(EventKind::Member, wall(), "m2", to);
    let mut first = stage(dir.path());
    for event in [owner("nobody", "m2"), owner("m2", "m1"), member("up")] {
        first.tell.try_send(event).unwrap();
    }
    first.kinds(4).await;
    first.end(false).await;

    let replaced = TakeOver { from: "0.1.0".to_owned(), at: wall(), connections: 0 };
    let mut next = stage_after(dir.path(), Some(replaced));
    for event in [owner("nobody", "m1"), member("down"), member("up"), owner("m1", "m2"), owner("m2", "m1")] {
        next.tell.try_send(event).unwrap();
    }
    next.kinds(9).await;
    let ring = next.ring.borrow().clone();
    let told: Vec<&str> = ring.all().skip(5).map(|event| event.to.as_str()).collect();
    assert_eq!(told, ["down", "up", "m2", "m1"]);
    next.end(false).await;

    // Whoever starts after a crash has missed something: all is reported.
    let mut crashed = stage(dir.path());
    crashed.tell.try_send(owner("nobody", "m1")).unwrap();
    crashed.kinds(11).await;
    crashed.end(false).await;
}

#[tokio::test]
async fn a_mass_join_is_one_event_and_a_master_among_it_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(dir.path());
    stage.kinds(1).await;
    let mut document = Document::clone(&stage.trust.borrow().document);
    let by = PublicKey([1; 32]).id();
    for n in 2..150 {
        let (name, role) =
            (format!("w{n}").parse().unwrap(), if n == 9 { Role::Master } else { Role::Worker });
        document.admit(Admitted::new(name, PublicKey([n; 32]), role, by, UnixMs(2)));
    }
    let ring = stage.trust.borrow().ring.clone();
    stage.trust.send_replace(Arc::new(TrustedKeys { document: Arc::new(document), ring }));
    stage.kinds(3).await;
    let told: Vec<String> = stage.ring.borrow().all().skip(1).map(|event| event.sentence()).collect();
    assert_eq!(told[0], "member-joined w9: member: by m1", "a master does not wait");
    assert!(told[1].starts_with("member-joined 147 nodes: member (w"), "{told:?}");
    stage.end(false).await;
}

#[tokio::test]
async fn programs_and_the_webhook_follow_the_configuration() {
    use std::os::unix::fs::PermissionsExt;

    let dir = crate::testing::trusted_dir();
    let program = dir.path().join("hook");
    let out = dir.path().join("out");
    std::fs::write(&program, format!("#!/bin/sh\ncat >> {0}\necho >> {0}\n", out.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut stage = stage(dir.path());
    stage.kinds(1).await;
    let paths = [program.display().to_string(), dir.path().join("none").display().to_string()];
    let webhook = proto::config::WebhookConfig::parse("http://127.0.0.1:1/x").ok();
    let config = proto::config::Config { notify: paths.to_vec(), webhook, ..Default::default() };
    stage.config.send_replace(Arc::new(config));
    let tell =
        |subject| stage.tell.try_send(Event::new(EventKind::VipState, wall(), subject, "master")).unwrap();
    // Configuration and events arrive on different paths: until the configuration is applied, events miss the
    // program.
    let (mut sent, mut said) = (0, String::new());
    while !said.contains("10.0.0.9") {
        tell("10.0.0.9");
        sent += 1;
        assert!(sent < 500, "the program is not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
        said = std::fs::read_to_string(&out).unwrap_or_default();
    }
    let sink_errors = stage.sink_errors.clone();
    let list = move || sink_errors.list().iter().map(Problem::to_string).collect::<String>();
    let until = |good: Box<dyn Fn(&str) -> bool>| {
        let list = list.clone();
        async move {
            for _ in 0..500 {
                if good(&list()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("{}", list());
        }
    };
    until(Box::new(|all| all.contains("none can't be read") && all.contains("webhook"))).await;
    stage.config.send_replace(Arc::default());
    until(Box::new(str::is_empty)).await;
    let before = std::fs::read_to_string(&out).unwrap();
    tell("10.0.0.10");
    stage.kinds(sent + 2).await;
    stage.end(true).await;
    assert_eq!(std::fs::read_to_string(&out).unwrap(), before, "it is not run any more");
}

#[tokio::test]
async fn a_torn_line_is_reported_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(crate::state::EVENTS), b"{\"seq\":1,\"time_un").unwrap();
    let mut stage = stage(dir.path());
    assert_eq!(stage.kinds(2).await, [EventKind::Problem, EventKind::AgentStarted]);
    let torn = stage.ring.borrow().all().next().unwrap().clone();
    assert_eq!((torn.to.as_str(), torn.level), ("resolved", EventLevel::Warning), "{torn:?}");
    stage.end(true).await;
    let mut again = self::stage(dir.path());
    let kinds = again.kinds(4).await;
    assert_eq!(kinds[3], EventKind::AgentStarted, "{kinds:?}");
    again.end(true).await;
}

#[tokio::test]
async fn an_unwritable_directory_affects_only_the_file() {
    let mut stage = stage(Path::new("/proc/self/no-such-directory"));
    assert_eq!(stage.kinds(1).await, [EventKind::AgentStarted]);
    stage.table.send_replace(Arc::new(BackendTable::new()));
    stage.tell.try_send(Event::new(EventKind::Reload, wall(), "configuration", "applied")).unwrap();
    assert_eq!(stage.kinds(2).await, [EventKind::AgentStarted, EventKind::Reload]);
    stage.end(true).await;
}

#[test]
fn a_tick_that_comes_late_is_a_stall() {
    assert!(stalled("m1", Duration::from_millis(700)).is_none());
    let event = stalled("m1", Duration::from_secs(3)).unwrap();
    assert!(event.sentence().starts_with("stall m1: stalled -> running after 3s"), "{}", event.sentence());
}

#[test]
fn an_answer_holds_the_latest_requested_events() {
    let mut ring = EventRing::default();
    for n in 1..=9 {
        ring.push("m1", Event::new(EventKind::Member, UnixMs(n * 10), "m2", "up"));
    }
    let ask = |since, most| proto::event::EventQuery { since: UnixMs(since), most, ..Default::default() };
    let numbers = |ask, after| own(&ring, &ask, after).iter().map(|event| event.seq).collect::<Vec<_>>();
    assert_eq!(numbers(ask(0, 3), 0), [7, 8, 9]);
    assert_eq!(numbers(ask(85, 3), 0), [9]);
    assert_eq!(numbers(ask(0, 100), 7), [8, 9]);
}
