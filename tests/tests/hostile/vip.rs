//! A worker's claims about a virtual IP for which it is no candidate.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::arp::Mac;
use proto::election::{
    CandidateState, Claim, HighestClaim, Holding, MessageKind, ReleaseReason, SOLO, STEP, VipMessage,
    wire::pack,
};
use proto::record::{L2Endpoint, NodeRecord};
use proto::rpc::FromMember;
use proto::signed_record::RecordVersion;
use proto::transport::DatagramFrame;
use tests::hostile::cluster::{PORT, row};
use tests::hostile::member::{bring, everyone};
use tests::hostile::{Cluster, Hostile, Sent};
use tests::mesh::SOON;
use tests::vip::{ADDRESS, vip};
use tests::wait::{always, eventually};

/// Everything that could take the address from its owner, or keep it with a dead one.
fn lies(cluster: &Cluster, hostile: &Hostile, owner: usize) -> Result<Vec<VipMessage>> {
    let address = IpAddr::V4(ADDRESS);
    let own = hostile.identity.id;
    let seen = vip(cluster.victim(), &ADDRESS.to_string())?;
    let message = |purpose, claim, holding, state| VipMessage {
        vip: address,
        purpose,
        known: Some(HighestClaim { claim, holding }),
        heard: Some(Duration::ZERO),
        state,
    };
    let released = |why| Holding::Released { why, successor: Some(own) };
    let mut all = Vec::new();
    for epoch in [seen.epoch, seen.epoch + 1, 1 << 40, u64::MAX] {
        let mine = Claim::new(address, epoch, 255, own);
        let theirs = Claim::new(address, epoch, 100, hostile.id_of(owner));
        for purpose in [MessageKind::Beat, MessageKind::Answer, MessageKind::Move(own)] {
            all.push(message(purpose, mine, Holding::Held, CandidateState::Fit));
            all.push(message(purpose, theirs, released(ReleaseReason::Move), CandidateState::Fit));
            all.push(message(purpose, theirs, Holding::Held, CandidateState::Witness));
        }
    }
    Ok(all)
}

#[test]
fn a_worker_can_neither_claim_an_address_nor_release_move_or_hold_it() -> Result<()> {
    row("member: VIP claims, releases, moves, false heard", |cluster| {
        let hostile = cluster.fresh()?;
        let owner = cluster.vip_owner()?;
        let number = cluster.honest().iter().position(|agent| agent.name() == owner).context("an owner")?;
        let before = vip(cluster.victim(), &ADDRESS.to_string())?;
        let lies = pack(&lies(cluster, &hostile, number)?);
        let say = |hostile: &Hostile| -> Result<()> {
            for node in everyone() {
                for datagram in &lies {
                    hostile.line.send(&hostile.id_of(node), &[DatagramFrame::Vip(datagram)])?;
                }
            }
            Ok(())
        };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            say(&hostile)?;
            std::thread::sleep(Duration::from_millis(50));
            ensure!(cluster.vip_owner()? == owner, "it has moved");
        }
        let after = vip(cluster.victim(), &ADDRESS.to_string())?;
        // An owner may receive a higher epoch and then claims again, a little above; never near the end.
        ensure!(after.epoch < before.epoch + STEP, "its epoch is {}, and was {}", after.epoch, before.epoch);

        // Now its owner dies, and the worker reports that it still receives beats. The dead node keeps its
        // address, so only the others are asked.
        cluster.lab.node(number).power_cut()?;
        let cut = Instant::now();
        let witness = &cluster.honest()[3];
        let moved = eventually("it has another owner", SOON, || {
            say(&hostile)?;
            let seen = vip(witness, &ADDRESS.to_string())?;
            let is = seen.owner.clone().context("none")?;
            ensure!(is != owner, "it is {is} still");
            Ok(is)
        });
        let took = cut.elapsed();
        cluster.lab.node(number).power_on()?;
        let (successor, _) = moved?;
        ensure!(successor != "n4", "the worker owns it");
        eventually("all agree again", SOON * 2, || cluster.vip_owner())?;
        ensure!(took < SOLO + Duration::from_secs(2), "it took {took:?}");
        for agent in cluster.honest() {
            agent.wait_for_backend(&owner, &["ready"], SOON)?;
        }
        let note = format!("a dead owner was replaced after {} ms", took.as_millis());
        Ok(Sent { bytes: hostile.line.sent(), note, ..Sent::default() })
    })
}

#[test]
fn a_worker_that_says_it_is_at_the_virtual_ip_takes_it_from_nobody() -> Result<()> {
    row("member: the virtual IP as its own address, proven to nobody", |cluster| {
        let at = SocketAddr::new(IpAddr::V4(ADDRESS), PORT);
        let hostile = cluster.unproven(at)?;
        let owner = cluster.vip_owner()?;
        let mut sent = hostile.place(hostile.identity.id, &[at])?;
        let mut record = NodeRecord::new(cluster.hostile_node().name.parse()?);
        record.addresses = vec![at];
        record.l2_endpoints =
            vec![L2Endpoint { interface: "eth0".to_owned(), mac: Mac([2; 6]), address: at.ip(), prefix: 24 }];
        let version = RecordVersion { generation: 1_800_000_000, sequence: 1 };
        let record = hostile.sign(hostile.identity.id, version, record.to_body());
        // By TLS alone: a datagram would have it asked for an echo, which proves where it is.
        for node in everyone() {
            let mut connection = hostile.dial(node)?;
            connection.send(&FromMember::Gossip(bring(&record, 1)))?;
            sent += connection.sent;
        }
        eventually("all have its record", SOON, || {
            for agent in cluster.honest() {
                let at = agent.status()?.member("n4")?.address.clone();
                ensure!(at == ADDRESS.to_string(), "{} has it at {at}", agent.name());
            }
            Ok(())
        })?;
        always("the address stays where it is", Duration::from_secs(3), || {
            let is = cluster.vip_owner()?;
            ensure!(is == owner, "{is} owns it, {owner} before");
            Ok(())
        })?;
        drop(hostile);
        cluster.readmit()?;
        Ok(Sent { bytes: sent, ..Sent::default() })
    })
}
