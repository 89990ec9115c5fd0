//! A worker's claims about the cluster document: none count.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::cluster::{Admitted, Document, DocumentHash, Replica, SealedDocument};
use proto::invite::code_of;
use proto::node::{NodeId, PublicKey, Role};
use proto::rpc::{
    ALPN_JOIN, Addresses, FromJoining, FromMember, SyncDigest, SyncSnapshot, ToJoining, ToMember,
};
use proto::time::UnixMs;
use tests::hostile::cluster::row;
use tests::hostile::member::everyone;
use tests::hostile::{Cluster, Hostile, Identity, Sent};
use tests::mesh::SOON;
use tests::wait::eventually;

/// Longest response time of status during an attack, on a busy machine.
const STATUS: Duration = Duration::from_secs(2);

/// A document under the seal of the hostile node, and under a forged seal in a master's name.
fn sealed(hostile: &Hostile, document: &Document) -> Vec<SealedDocument> {
    let master = hostile.id_of(0);
    [hostile.identity.id, master]
        .into_iter()
        .filter_map(|by| Replica::new(document.clone(), by, &hostile.identity.pair).sealed())
        .collect()
}

/// Sends a document to every honest node, under each seal; returns the bytes that it took.
fn offer(hostile: &Hostile, document: &Document) -> u64 {
    let mut sent = 0;
    for document in sealed(hostile, document) {
        for node in everyone() {
            let keys = hostile.ring.keys().to_vec();
            let document = Some(document.clone());
            let request =
                FromMember::Sync(Box::new(SyncSnapshot { document, keys, ..SyncSnapshot::default() }));
            // Refused or not: only the outcome counts.
            if let Ok(mut connection) = hostile.dial(node) {
                let _ = connection.send(&request);
                let _: Result<ToMember> = connection.receive();
                sent += connection.sent;
            }
        }
    }
    sent
}

/// Status responds soon, on every honest node; returns how long the slowest took.
fn status_answers(cluster: &Cluster) -> Result<Duration> {
    let mut worst = Duration::ZERO;
    for agent in cluster.honest() {
        let began = Instant::now();
        agent.status()?;
        worst = worst.max(began.elapsed());
    }
    ensure!(worst < STATUS, "status took {worst:?}");
    Ok(worst)
}

/// Offers these documents; the cluster's own stays unchanged, and its masters can still change it.
fn changes_nothing(
    cluster: &mut Cluster,
    documents: impl FnOnce(&Hostile, &Document) -> Result<Vec<Document>>,
) -> Result<Sent> {
    let before = cluster.victim().status()?.cluster;
    let hostile = cluster.turn()?;
    let mut sent = Sent { connections: 1, ..Sent::default() };
    let mut worst = Duration::ZERO;
    for document in documents(&hostile, &hostile.document)? {
        sent.bytes += offer(&hostile, &document);
        worst = worst.max(status_answers(cluster)?);
    }
    for agent in cluster.honest() {
        let after = agent.status()?.cluster;
        ensure!(after.document == before.document, "{}: {after:?}, {before:?} before", agent.name());
    }
    let took = cluster.a_change_spreads()?;
    sent.note = format!("status answers within {} ms, a change took {}", worst.as_millis(), took.as_millis());
    Ok(sent)
}

/// A node that nobody has admitted.
fn invented(i: u32, by: NodeId) -> Result<Admitted> {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&i.to_be_bytes());
    Ok(Admitted::new(format!("x{i}").parse()?, PublicKey(key), Role::Master, by, UnixMs(1)))
}

#[test]
fn nobody_admits_invented_nodes() -> Result<()> {
    row("member: a document with 15,000 invented nodes, twice", |cluster| {
        changes_nothing(cluster, |hostile, document| {
            let mut documents = Vec::new();
            for part in 0..2 {
                let mut document = document.clone();
                for i in 0..15_000 {
                    document.admit(invented(part * 15_000 + i, hostile.identity.id)?);
                }
                documents.push(document);
            }
            Ok(documents)
        })
    })
}

#[test]
fn nobody_accepts_settings_of_megabytes() -> Result<()> {
    row("member: two settings of 5 MB", |cluster| {
        changes_nothing(cluster, |hostile, document| {
            let mut documents = Vec::new();
            for key in ["drain.n0", "drain.n1"] {
                let mut document = document.clone();
                document.set(key, Some("x".repeat(5_000_000)), hostile.identity.id, UnixMs(1))?;
                documents.push(document);
            }
            Ok(documents)
        })
    })
}

#[test]
fn counters_at_their_end_lock_nothing_and_swap_no_names() -> Result<()> {
    row("member: u64::MAX in key epoch, clocks, times", |cluster| {
        let is = cluster.hostile()?.id;
        let sent = changes_nothing(cluster, |hostile, document| {
            let own = hostile.identity.id;
            let change = |change: &dyn Fn(&mut Document)| {
                let mut document = document.clone();
                change(&mut document);
                document
            };
            let mut set = document.clone();
            for master in ["drain.n0", "drain.n1", "drain.n2"] {
                set.set(master, Some("2026-01-01T00:00:00Z".to_owned()), own, UnixMs(1))?;
            }
            set.settings.values_mut().for_each(|setting| setting.clock = u64::MAX);
            Ok(vec![
                change(&|document| document.key.epoch = u64::MAX),
                change(&|document| (document.key_floor, document.key.by) = (u64::MAX, own)),
                set,
                // The master's admission as of the beginning of time, under the worker's name, and the reverse.
                change(&|document| {
                    let master = hostile.id_of(0);
                    let names = [master, own].map(|id| document.nodes.get(&id).map(|one| one.name.clone()));
                    for (id, name) in [(master, &names[1]), (own, &names[0])] {
                        if let (Some(one), Some(name)) = (document.nodes.get_mut(&id), name) {
                            (one.at, one.name) = (UnixMs(0), name.clone());
                        }
                    }
                }),
                change(&|document| document.nodes.values_mut().for_each(|one| one.at = UnixMs(u64::MAX))),
                change(&|document| document.remove(hostile.id_of(1), own, UnixMs(0))),
                change(&|document| {
                    // Its own promotion.
                    let _ = document.set_role(own, Role::Master, own, UnixMs(1));
                }),
            ])
        })?;
        // `remove n4` hits n4 and nobody else.
        cluster.remove_hostile()?;
        let status = cluster.victim().status()?;
        ensure!(status.members.iter().all(|member| member.id != is.to_string()), "it is listed still");
        ensure!(status.cluster.members == 4, "{} members", status.cluster.members);
        cluster.readmit()?;
        Ok(sent)
    })
}

#[test]
fn endless_addresses_delay_nobody() -> Result<()> {
    row("member: 150,000 addresses for n2", |cluster| {
        let hostile = cluster.turn()?;
        let many: Vec<SocketAddr> =
            (0..150_000_u32).map(|i| SocketAddr::from(((0x0a00_0000 + i).to_be_bytes(), 7646))).collect();
        let addresses = Addresses::from([(hostile.id_of(2), many)]);
        let request = FromMember::Sync(Box::new(SyncSnapshot { addresses, ..SyncSnapshot::default() }));
        let (mut sent, mut worst) = (0, Duration::ZERO);
        for node in [0, 1, 3] {
            let mut connection = hostile.dial(node)?;
            let _ = connection.send(&request);
            worst = worst.max(status_answers(cluster)?);
            sent += connection.sent;
        }
        worst = worst.max(status_answers(cluster)?);
        let took = cluster.a_change_spreads()?;
        let note =
            format!("status answers within {} ms, a change took {}", worst.as_millis(), took.as_millis());
        Ok(Sent { bytes: sent, connections: 1, note })
    })
}

#[test]
fn a_worker_admits_nobody() -> Result<()> {
    row("member: approves a stranger that waits, as a master", |cluster| {
        let before = cluster.victim().status()?.cluster;
        let hostile = cluster.turn()?;
        let friend = Identity::stranger()?;
        let mut waiting = friend.connect(cluster.stranger_node(), cluster.target(), ALPN_JOIN)?;
        let (name, addresses) =
            ("friend".parse()?, vec![SocketAddr::new(cluster.stranger_node().mesh_ip(), 7646)]);
        waiting.send(&FromJoining::Join { name, proof: None, addresses, confirmed: true, cluster: None })?;
        let answer: ToJoining = waiting.receive()?;
        ensure!(matches!(answer, ToJoining::Wait { .. }), "it was answered {answer:?}");
        let code = code_of(&waiting.session);
        let mut sent = 0;
        for node in everyone() {
            for role in [Role::Master, Role::Worker] {
                let request = FromMember::Answer { code: code.clone(), role: Some(role) };
                sent += hostile.ask(node, &request).map_or(0, |(_, bytes)| bytes);
            }
        }
        let _ = waiting.send(&FromJoining::Confirmed);
        waiting.patience(Duration::from_secs(1))?;
        let answer: Result<ToJoining> = waiting.receive();
        ensure!(!matches!(answer, Ok(ToJoining::Welcome(_) | ToJoining::Approved { .. })), "it is let in");
        let after = cluster.victim().status()?.cluster;
        ensure!(after.document == before.document, "{after:?}, {before:?} before");
        Ok(Sent { bytes: sent, connections: 1, ..Sent::default() })
    })
}

#[test]
fn a_promotion_that_is_forged_or_was_taken_back_promotes_nobody() -> Result<()> {
    row("member: promotions of its own, and one that was taken back", |cluster| {
        let hostile = cluster.fresh()?;
        let name = cluster.hostile_node().name.clone();
        let role_is = |cluster: &Cluster, role: &str| -> Result<()> {
            for agent in cluster.honest() {
                eventually(&format!("{} has {name} as a {role}", agent.name()), SOON, || {
                    let is = agent.status()?.member(&name)?.role.clone();
                    ensure!(is == role, "it has it as a {is}");
                    Ok(())
                })?;
            }
            Ok(())
        };
        // A true one, as it came; then it is taken back.
        cluster.victim().cli(&["promote", &name])?.ok()?;
        role_is(cluster, "master")?;
        let nothing = SyncDigest { document: DocumentHash::default(), keys: Vec::new(), differences: false };
        let (answer, mut sent) = hostile.ask(0, &FromMember::Compare(nothing))?;
        let ToMember::Compared(_, snapshot) = answer else { anyhow::bail!("it was answered {answer:?}") };
        let promotion = snapshot.document.context("it gave no document")?;
        cluster.victim().cli(&["demote", &name])?.ok()?;
        role_is(cluster, "worker")?;
        let before = cluster.victim().status()?.cluster.document;

        let mut forged = hostile.document.clone();
        forged.set_role(hostile.identity.id, Role::Master, hostile.id_of(0), UnixMs(1))?;
        let mut all = sealed(&hostile, &forged);
        all.push(promotion);
        for document in all {
            for node in everyone() {
                let snapshot = SyncSnapshot { document: Some(document.clone()), ..SyncSnapshot::default() };
                sent += hostile.ask(node, &FromMember::Sync(Box::new(snapshot)))?.1;
            }
        }
        for agent in cluster.honest() {
            let status = agent.status()?;
            ensure!(status.member(&name)?.role == "worker", "{} takes it for a master", agent.name());
            ensure!(status.cluster.document == before, "{} holds another document", agent.name());
        }
        let took = cluster.a_change_spreads()?;
        Ok(Sent { bytes: sent, note: format!("a change took {} ms", took.as_millis()), ..Sent::default() })
    })
}
