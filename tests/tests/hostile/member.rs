//! A worker that was admitted like any other. It may claim anything about itself, and nothing else.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::cause::Cause;
use proto::health::{Readiness, ServiceHealth};
use proto::node::NodeId;
use proto::record::{NodeRecord, ServiceOffer};
use proto::rpc::{FromMember, ToMember};
use proto::service::ServiceName;
use proto::signed_record::{RecordVersion, SignedRecord};
use proto::time::UnixMs;
use proto::transport::DatagramFrame;
use tests::hostile::cluster::{MASTERS, PORT, row};
use tests::hostile::gossip::{self, Known, Named, Step};
use tests::hostile::member::{KEY, bring, everyone, generation};
use tests::hostile::{Cluster, Hostile, Sent};
use tests::mesh::{Agent, SOON};
use tests::wait::{always, eventually};

/// A port at which the hostile node waits for victims.
struct Trap(TcpListener);

impl Trap {
    fn set(cluster: &Cluster, port: u16) -> Result<Trap> {
        let at = SocketAddr::new(cluster.hostile_node().mesh_ip(), port);
        let listener = cluster.hostile_node().inside(|| Ok(TcpListener::bind(at)?))?;
        listener.set_nonblocking(true)?;
        Ok(Trap(listener))
    }

    fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Nobody has connected.
    fn is_empty(&self) -> Result<()> {
        match self.0.accept() {
            Ok((_, from)) => anyhow::bail!("{from} was led astray"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A record that offers an apiserver at this address, ready for long.
fn offering(name: &str, service: ServiceName, address: SocketAddr) -> Result<NodeRecord> {
    let mut record = NodeRecord::new(name.parse().context("a name")?);
    record.addresses = vec![SocketAddr::new(address.ip(), proto::transport::PORT)];
    let health = ServiceHealth {
        readiness: Readiness::Ready,
        cause: Cause::Http(200),
        detail: Default::default(),
        since: UnixMs(1_700_000_000_000),
    };
    record.services.insert(service, ServiceOffer { address, weight: 100, health, check_ms: Some(1) });
    Ok(record)
}

/// The current record of an honest node, as any member may pull it.
fn record_of(hostile: &Hostile, node: usize) -> Result<SignedRecord> {
    let (answer, _) =
        hostile.ask(node, &FromMember::Records { known: Vec::new(), all: true, needed: false })?;
    let ToMember::Records(records) = answer else { anyhow::bail!("it was answered {answer:?}") };
    let wanted = hostile.id_of(node);
    records.into_iter().find(|record| record.node == wanted).context("it has no record of itself")
}

/// A master's new record reaches the worker, including fields that no pulse carries.
fn record_spreads(cluster: &mut Cluster, master: usize) -> Result<()> {
    let set = |cluster: &mut Cluster, ready: bool, wanted: &str| -> Result<()> {
        cluster.masters()[master].set_ready(ready)?;
        let worker = &cluster.honest()[3];
        eventually(&format!("news of n{master}: {wanted}"), SOON * 2, || {
            let status = worker.status()?;
            let reason = &status.backend(MASTERS[master])?.reason;
            ensure!(reason.contains(wanted), "it is: {reason}");
            Ok(())
        })?;
        Ok(())
    };
    set(cluster, false, "500")?;
    set(cluster, true, "200")
}

/// All honest nodes connect to the API repeatedly, and each time reach a master.
fn api_holds(cluster: &Cluster, span: Duration) -> Result<()> {
    always("the API is reached", span, || {
        for agent in cluster.honest() {
            let who = agent.who_serves()?;
            ensure!(MASTERS.contains(&who.as_str()), "{} reaches {who}", agent.name());
        }
        Ok(())
    })
}

#[test]
fn a_record_in_the_name_of_a_master_counts_for_nothing() -> Result<()> {
    row("member: records of n0, n1, n2 with an address of its own", |cluster| {
        let hostile = cluster.fresh()?;
        let trap = Trap::set(cluster, 6443)?;
        let mut sent = 0;
        for (master, name) in MASTERS.into_iter().enumerate() {
            let of = generation(cluster, master)?;
            let body = offering(name, ServiceName::kube_api(), trap.address()?)?.to_body();
            for (generation, sequence) in [(of, 1_000), (of, u64::MAX), (of + 1, 1), (u64::MAX, u64::MAX)] {
                let version = RecordVersion { generation, sequence };
                let record = hostile.sign(hostile.id_of(master), version, body.clone());
                sent += hostile.gossip(&bring(&record, sequence))?;
                let node = Named::of(&hostile.id_of(master), generation);
                let naked =
                    [Step::Node { node, last_gc: 0, from: 0 }, Step::Set("a".into(), "x".into(), sequence)];
                sent += hostile.gossip(&gossip::ack(&naked))?;
            }
        }
        api_holds(cluster, Duration::from_secs(2))?;
        trap.is_empty()?;
        record_spreads(cluster, 1)?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}

#[test]
fn an_old_record_under_a_higher_version_blocks_nothing() -> Result<()> {
    row("member: an old record of n2, a deleted key, versions", |cluster| {
        let hostile = cluster.fresh()?;
        let old = record_of(&hostile, 2)?;
        record_spreads(cluster, 2)?;
        let mut sent = 0;
        for version in [old.version.sequence + 1_000, 1 << 40, u64::MAX] {
            sent += hostile.gossip(&bring(&old, version))?;
            let node = || Named::of(&old.node, old.version.generation);
            let begin = || Step::Node { node: node(), last_gc: 0, from: 0 };
            for steps in [
                vec![begin(), Step::Delete(KEY.to_owned(), version)],
                vec![begin(), Step::DeleteLater(KEY.to_owned(), version)],
                vec![begin(), Step::SetVersion(version)],
                vec![Step::Node { node: node(), last_gc: version, from: version }, Step::SetVersion(version)],
            ] {
                sent += hostile.gossip(&gossip::ack(&steps))?;
            }
        }
        record_spreads(cluster, 2)?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}

#[test]
fn a_forged_pulse_answer_of_a_master_is_ignored() -> Result<()> {
    row("member: answers to pulses as n2, whose power is cut", |cluster| {
        let hostile = cluster.fresh()?;
        // A master's status in an answer, from n0: n2's would be the same.
        hostile.line.heard();
        hostile.line.send(&hostile.id_of(0), &[DatagramFrame::Pulse(7)])?;
        let (status, _) = eventually("n0 answers", SOON, || {
            hostile
                .line
                .heard()
                .iter()
                .find_map(|(_, frames)| {
                    DatagramFrame::all(frames).find_map(|frame| match frame {
                        DatagramFrame::Answer(7, status) => Some(status.to_vec()),
                        _ => None,
                    })
                })
                .context("not yet")
        })?;
        let n2 = hostile.id_of(2);
        let mut forger = hostile.as_if(n2)?;
        let starts = cluster.lab.node(2);
        starts.power_cut()?;
        let began = Instant::now();
        let mut number = 1;
        let down = |agent: &Agent<'_>| -> Result<bool> { Ok(agent.backend_state("n2")? == "down") };
        while began.elapsed() < SOON && !(down(&cluster.agents[0])? && down(&cluster.agents[3])?) {
            for node in [0, 1, 3] {
                // Unsolicited, and as answers to pulses of any number.
                for answer in [0, number] {
                    let frames = [DatagramFrame::Answer(answer, &status)];
                    hostile.line.send(&hostile.id_of(node), &frames)?;
                    hostile.forge(&mut forger, node, &frames)?;
                }
            }
            number += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        let took = began.elapsed();
        starts.power_on()?;
        ensure!(took < Duration::from_secs(4), "n2 was held for alive for {took:?}");
        for agent in [0, 1, 3] {
            cluster.agents[agent].wait_for_backend("n2", &["ready"], SOON)?;
        }
        let note = format!("down after {} ms all the same", took.as_millis());
        Ok(Sent { bytes: hostile.line.sent(), note, ..Sent::default() })
    })
}

#[test]
fn a_delta_about_the_receiver_itself_is_ignored() -> Result<()> {
    row("member: a delta for the target's own id, 65 bytes", |cluster| {
        let hostile = cluster.fresh()?;
        let mut sent = 0;
        for node in everyone() {
            let node = Named::of(&hostile.id_of(node), generation(cluster, node)?);
            let begin = Step::Node { node, last_gc: 0, from: 0 };
            sent += hostile.gossip(&gossip::ack(&[begin.clone(), Step::SetVersion(u64::MAX)]))?;
            sent += hostile.gossip(&gossip::ack(&[begin, Step::Set(KEY.into(), "x".into(), u64::MAX)]))?;
        }
        record_spreads(cluster, 0)?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}

#[test]
fn nobody_forwards_invented_ids_in_a_digest() -> Result<()> {
    row("member: 10,000 invented ids in a digest", |cluster| {
        let quiet = bytes_a_second(cluster)?;
        let hostile = cluster.fresh()?;
        let invented = |i: u32| {
            let id = NodeId(std::array::from_fn(|at| i.to_be_bytes()[at % 4] ^ at as u8));
            Known { node: Named::of(&id, 1_700_000_000), heartbeat: 10, last_gc: 0, version: 5 }
        };
        let mut sent = 0;
        for part in 0..10 {
            let known: Vec<Known> = (part * 1_000..(part + 1) * 1_000).map(invented).collect();
            let cluster_id = hostile.document.id.to_string();
            sent += hostile.gossip(&gossip::syn(&cluster_id, &known))?;
            sent += hostile.gossip(&gossip::syn_ack(&known, &[]))?;
        }
        drop(hostile);
        let after = bytes_a_second(cluster)?;
        ensure!(after < quiet * 3 / 2 + 3_000, "{after} bytes a second, {quiet} before");
        let note = format!("a node sends {after} bytes/s after it, {quiet} before");
        Ok(Sent { bytes: sent, note, ..Sent::default() })
    })
}

/// Bytes that an honest worker sends per second.
fn bytes_a_second(cluster: &Cluster) -> Result<u64> {
    let sent = || -> Result<u64> {
        let out = cluster.lab.node(3).exec(&["ip", "-s", "-j", "link", "show", "dev", "eth0"])?.ok()?;
        let value: serde_json::Value = serde_json::from_str(&out)?;
        value[0]["stats64"]["tx"]["bytes"].as_u64().with_context(|| out.clone())
    };
    let (before, began) = (sent()?, Instant::now());
    std::thread::sleep(Duration::from_secs(4));
    Ok((sent()? - before) * 1_000 / u64::try_from(began.elapsed().as_millis())?)
}

#[test]
fn tombstones_of_all_nodes_remove_nobody() -> Result<()> {
    row("member: tombstones of everyone", |cluster| {
        let hostile = cluster.fresh()?;
        let mut sent = 0;
        for delete in [Step::Delete, Step::DeleteLater] {
            let mut steps = Vec::new();
            for node in everyone() {
                let node = Named::of(&hostile.id_of(node), generation(cluster, node)?);
                steps.push(Step::Node { node, last_gc: 0, from: 0 });
                for (i, key) in [KEY, "n", "a", "s:kube-api"].into_iter().enumerate() {
                    steps.push(delete(key.to_owned(), 1_000_000 + i as u64));
                }
            }
            sent += hostile.gossip(&gossip::ack(&steps))?;
        }
        api_holds(cluster, Duration::from_secs(1))?;
        record_spreads(cluster, 1)?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}

#[test]
fn a_zip_bomb_is_not_decompressed() -> Result<()> {
    row("member: a zstd message of 65 kB", |cluster| {
        let hostile = cluster.fresh()?;
        let bomb = gossip::bomb(4_600);
        let mut sent = 0;
        for _ in 0..4 {
            sent += hostile.gossip(&bomb)?;
        }
        Ok(Sent { bytes: sent, connections: 4, note: format!("{} bytes each", bomb.len()) })
    })
}

#[test]
fn large_frames_on_many_connections_take_no_memory() -> Result<()> {
    row("member: 120 connections with 8 MB frames", |cluster| {
        let hostile = cluster.turn()?;
        let mut held = Vec::new();
        for _ in 0..120 {
            held.extend(hostile.dial(0));
        }
        let opened = held.len();
        let part = vec![0_u8; 1 << 18];
        let announced = 8 * 1024 * 1024 - 1;
        for one in &mut held {
            one.patience(Duration::from_millis(200))?;
            let _ = one.send_part(announced, &part);
        }
        let mut sent: u64 = held.iter().map(|one| one.sent).sum();
        // All but the last byte, in turns, as far as they are accepted.
        for _ in 0..31 {
            held.retain_mut(|one| {
                let before = one.sent;
                let taken = one.go_on(&part[..(1 << 18) - 1]).is_ok();
                sent += one.sent - before;
                taken
            });
        }
        let note = format!("{opened} were opened, {} went on to the end", held.len());
        Ok(Sent { bytes: sent, connections: opened as u64, note })
    })
}

#[test]
fn idle_connections_of_a_member_lock_nobody_out() -> Result<()> {
    row("member: 1,024 idle connections", |cluster| {
        let hostile = cluster.turn()?;
        let mut held = Vec::new();
        for _ in 0..1_024 {
            held.extend(hostile.dial(0));
        }
        let opened = held.len();
        let open = held.iter_mut().rev().take(200).filter_map(|one| (!one.is_closed()).then_some(())).count();
        let took = cluster.a_change_spreads()?;
        drop(hostile);
        let line = cluster.invite(&[])?;
        cluster.hostile_agent().join(&line).context("joining, while a member holds the port")?;
        cluster.hostile_agent().kill()?;
        let note = format!("{open} of the last 200 of {opened} stay, a change took {} ms", took.as_millis());
        Ok(Sent { bytes: held.iter().map(|one| one.sent).sum(), connections: opened as u64, note })
    })
}

#[test]
fn an_apiserver_on_a_worker_serves_nobody_and_is_reported() -> Result<()> {
    row("member: offers kube-api as a worker", |cluster| {
        let hostile = cluster.fresh()?;
        let trap = Trap::set(cluster, 6443)?;
        let generation = cluster.hostile_generation()? + 1;
        let version = RecordVersion { generation, sequence: 1 };
        let body = offering("n4", ServiceName::kube_api(), trap.address()?)?.to_body();
        let record = hostile.sign(hostile.identity.id, version, body);
        let sent = hostile.gossip(&bring(&record, 1))?;
        eventually("status names it, and what to do", SOON, || {
            let problems = cluster.honest()[3].status()?.problems;
            let named = problems.iter().any(|one| format!("{one:?}").contains("agent promote n4"));
            ensure!(named, "problems: {problems:?}");
            Ok(())
        })?;
        api_holds(cluster, Duration::from_secs(2))?;
        trap.is_empty()?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}

#[test]
fn another_service_counts_only_at_a_nodes_own_address() -> Result<()> {
    row("member: offers a service at an address that is not its own", |cluster| {
        let web = ["service.web.listen=127.0.0.1:8081", "service.web.port=8080", "service.web.offer=workers"];
        cluster.victim().cli(&[&["set"], web.as_slice()].concat())?.ok()?;
        let web: ServiceName = "web".parse()?;
        let hostile = cluster.fresh()?;
        let generation = cluster.hostile_generation()? + 2;
        let mut sent = 0;
        let mut say = |sequence: u64, node: usize| -> Result<()> {
            let at = SocketAddr::new(cluster.lab.node(node).mesh_ip(), 8080);
            let body = offering("n4", web.clone(), at)?.to_body();
            let record = hostile.sign(hostile.identity.id, RecordVersion { generation, sequence }, body);
            sent += hostile.gossip(&bring(&record, sequence))?;
            Ok(())
        };
        let backends = |agent: &Agent<'_>| -> Result<Vec<String>> {
            let status = agent.status()?;
            let web = status.services.iter().find(|service| service.name == "web").context("no web")?;
            Ok(web.backends.iter().map(|backend| backend.address.clone()).collect())
        };
        // At its own address the offer counts, so that the next step proves something.
        say(1, 4)?;
        eventually("an offer at its own address counts", SOON, || {
            for agent in cluster.honest() {
                let is = backends(agent)?;
                ensure!(is == ["10.91.0.5:8080"], "{}: {is:?}", agent.name());
            }
            Ok(())
        })?;
        // Nor does it count for those that the settings do not name, whatever their record says.
        let offered_by = |who: &str, expected: &[&str]| {
            cluster.victim().cli(&["set", &format!("service.web.offer={who}")])?.ok()?;
            eventually(&format!("an offer counts as {who} may"), SOON, || {
                for agent in cluster.honest() {
                    let is = backends(agent)?;
                    ensure!(is == expected, "{}: {is:?}", agent.name());
                    let problems = agent.status()?.problems;
                    let named = problems.iter().any(|one| one.code == "not-authorized");
                    ensure!(named == expected.is_empty(), "{}: {problems:?}", agent.name());
                }
                Ok(())
            })
        };
        for who in ["masters", "n1,n2"] {
            offered_by(who, &[])?;
        }
        offered_by("n4", &["10.91.0.5:8080"])?;
        // Nor does it become one's own because one says in an exchange that one is there.
        let others = [3, 5].map(|node| SocketAddr::new(cluster.lab.node(node).mesh_ip(), PORT));
        let placed = hostile.place(hostile.identity.id, &others)?;
        for (sequence, other) in [(2, 3), (3, 5)] {
            say(sequence, other)?;
            eventually("an offer at another's counts nowhere", SOON, || {
                for agent in cluster.honest() {
                    let is = backends(agent)?;
                    ensure!(is.is_empty(), "{}: {is:?}", agent.name());
                }
                Ok(())
            })?;
        }
        sent += placed;
        cluster.victim().cli(&["unset", "service.web"])?.ok()?;
        for agent in cluster.honest() {
            eventually("the service is gone", SOON, || {
                ensure!(agent.status()?.services.len() == 1);
                Ok(())
            })?;
        }
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}

#[test]
fn where_others_are_is_theirs_to_prove() -> Result<()> {
    row("member: says in an exchange that n2 is at its own address", |cluster| {
        let hostile = cluster.fresh()?;
        // Not at its link's port, where members look for it itself.
        let trap = Trap::set(cluster, PORT + 1)?;
        let sent = hostile.place(hostile.id_of(2), &[trap.address()?])?;
        for agent in cluster.honest() {
            let member = agent.status()?.member("n2")?.address.clone();
            ensure!(member.contains(&cluster.lab.node(2).mesh_ip().to_string()), "n2 is at {member}");
        }
        // What is said to n2 goes on to n2: a change by TLS, its record, its pulses.
        cluster.a_change_spreads()?;
        record_spreads(cluster, 2)?;
        trap.is_empty()?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}
