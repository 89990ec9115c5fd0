//! A removed node that has kept everything: identity, gossip keys, document, its clock.

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::cluster::{Admitted, Document, KeyId, Replica};
use proto::node::{PublicKey, Role};
use proto::rpc::{FromMember, SyncDigest, SyncSnapshot, ToMember};
use proto::signed_record::RecordVersion;
use proto::time::UnixMs;
use proto::transport::DatagramFrame;
use tests::hostile::cluster::row;
use tests::hostile::gossip::{self, Named, Step};
use tests::hostile::identity::random;
use tests::hostile::member::{bring, everyone, generation};
use tests::hostile::{Cluster, Hostile, Identity, Sent};

/// Times of a clock: its beginning, and its end.
const CLOCKS: [UnixMs; 3] = [UnixMs(0), UnixMs(4_102_444_800_000), UnixMs(u64::MAX)];

/// Documents in the removed node's favour, by each of its clocks.
fn wishes(hostile: &Hostile) -> Vec<Document> {
    let own = hostile.identity.id;
    let mut all = Vec::new();
    for at in CLOCKS {
        let change = |change: &dyn Fn(&mut Document)| {
            let mut document = hostile.document.clone();
            change(&mut document);
            document
        };
        let friend = PublicKey(random());
        let name: proto::node::Name = proto::node::Name::nearest("friend");
        all.push(change(&|document| {
            document.admit(Admitted::new(name.clone(), friend, Role::Master, own, at));
        }));
        all.push(change(&|document| document.remove(hostile.id_of(0), own, at)));
        all.push(change(&|document| {
            let _ = document.set("drain.n1", Some("2026-01-01T00:00:00Z".to_owned()), own, at);
        }));
        all.push(change(&|document| {
            let _ = document.turn_key(KeyId::of_key(&[7; 32]), own, at, true);
        }));
    }
    // As it was before the removal.
    all.push(hostile.document.clone());
    all
}

/// Sends these documents, sealed by `by`, to every honest node over the connection of `carrier`.
fn carry(carrier: &Hostile, by: &Identity, documents: &[Document]) -> u64 {
    let mut sent = 0;
    for document in documents {
        let sealed = Replica::new(document.clone(), by.id, &by.pair).sealed();
        for node in everyone() {
            let keys = carrier.ring.keys().to_vec();
            let snapshot = SyncSnapshot { document: sealed.clone(), keys, ..SyncSnapshot::default() };
            if let Ok(mut connection) = carrier.dial(node) {
                let _ = connection.send(&FromMember::Sync(Box::new(snapshot)));
                let _: Result<ToMember> = connection.receive();
                sent += connection.sent;
            }
        }
    }
    sent
}

/// The document of every honest node is unchanged.
fn unchanged(cluster: &Cluster, before: &str) -> Result<()> {
    std::thread::sleep(Duration::from_secs(1)); // for what would come by another way
    for agent in cluster.honest() {
        let after = agent.status()?.cluster.document;
        ensure!(after == before, "{} holds {after}, {before} before", agent.name());
    }
    Ok(())
}

#[test]
fn nobody_accepts_anything_of_a_removed_worker() -> Result<()> {
    row("removed: documents, gossip, pulses, TLS with the keys it kept", |cluster| {
        let hostile = cluster.fresh()?;
        cluster.remove_hostile()?;
        let before = cluster.victim().status()?.cluster.document;
        hostile.line.heard();
        let mut sent = hostile.line.sent();
        for node in everyone() {
            let to = hostile.id_of(node);
            // Records of itself, of a master, of itself as a master; and the pulses of a member.
            let body = proto::record::NodeRecord::new(proto::node::Name::nearest("n4")).to_body();
            for (of, sequence) in [(hostile.identity.id, 1 << 20), (to, u64::MAX)] {
                let record =
                    hostile.sign(of, RecordVersion { generation: 4_102_444_800, sequence }, body.clone());
                sent += hostile.gossip(&bring(&record, sequence))?;
            }
            let of = Named::of(&to, generation(cluster, node)?);
            let steps = [Step::Node { node: of, last_gc: 0, from: 0 }, Step::SetVersion(u64::MAX)];
            sent += hostile.gossip(&gossip::ack(&steps))?;
            for number in 0..50 {
                hostile.line.send(&to, &[DatagramFrame::Pulse(number), DatagramFrame::Challenge(number)])?;
            }
            if let Ok(mut connection) = hostile.dial(node) {
                let known =
                    SyncDigest { document: hostile.document.state(), keys: Vec::new(), differences: false };
                let answer: Result<ToMember> =
                    connection.send(&FromMember::Compare(known)).and_then(|()| connection.receive());
                ensure!(answer.is_err(), "n{node} answers it: {answer:?}");
            }
        }
        sent += carry(&hostile, &hostile.identity, &wishes(&hostile));
        std::thread::sleep(Duration::from_millis(300)); // for answers that must not come
        let asked = |frames: &[u8]| {
            DatagramFrame::all(frames)
                .any(|frame| matches!(frame, DatagramFrame::Answer(1.., _) | DatagramFrame::Echo(_)))
        };
        let heard = hostile.line.heard();
        ensure!(!heard.iter().any(|(_, frames)| asked(frames)), "its datagrams are answered");
        unchanged(cluster, &before)?;
        sent += hostile.line.sent();
        drop(hostile);
        cluster.readmit()?;
        Ok(Sent { bytes: sent, connections: 1, ..Sent::default() })
    })
}

#[test]
fn a_removed_master_changes_nothing_whoever_sends_its_documents() -> Result<()> {
    row("removed: a master that keeps sealing documents", |cluster| {
        let line = cluster.invite(&["--master"])?;
        let master = cluster.stranger_agent();
        master.join(&line)?;
        master.kill()?;
        let master = cluster.other()?;
        cluster.victim().cli(&["remove", "n5"])?.ok()?;
        let carrier = cluster.turn()?;
        let before = cluster.victim().status()?.cluster.document;
        let documents = wishes(&master);
        let mut sent = carry(&master, &master.identity, &documents);
        sent += carry(&carrier, &master.identity, &documents);
        unchanged(cluster, &before)?;
        drop((master, carrier));
        let took = cluster.a_change_spreads()?;
        cluster.stranger_agent().cli(&["leave", "--force"])?.ok()?;
        let note = format!("a change took {} ms", took.as_millis());
        Ok(Sent { bytes: sent, connections: 1, note })
    })
}
