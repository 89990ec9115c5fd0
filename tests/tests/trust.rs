//! Unauthenticated datagrams get no answer, and recordings are useless.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::lab::{Lab, Node};
use tests::mesh::{Agent, GOSSIP, Link, all_up, form, with_agents};
use tests::wait::always;
use tests::wire::{Datagram, record};

const PORT: u16 = 7646;

/// The datagrams from `from` to `to`.
fn between(all: &[Datagram], from: &Node, to: &Node) -> Vec<Vec<u8>> {
    let meant = |one: &&Datagram| one.from == from.mesh_ip() && one.to == to.mesh_ip() && one.to_port == PORT;
    all.iter().filter(meant).map(|one| one.payload.clone()).collect()
}

/// Pseudo-random bytes that depend only on the seed.
fn noise(seed: &mut u64, length: usize) -> Vec<u8> {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// Sends all of them and asserts that there is no answer.
fn unanswered(from: &Node, to: SocketAddr, datagrams: &[Vec<u8>]) -> Result<()> {
    let socket = from.inside(|| Ok(UdpSocket::bind((from.mesh_ip(), 0))?))?;
    for datagram in datagrams {
        socket.send_to(datagram, to)?;
        // A burst would overflow the queue of a tunnel that is still shaking hands.
        std::thread::sleep(Duration::from_millis(1));
    }
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    match socket.recv_from(&mut [0; 2048]) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        Err(error) => anyhow::bail!("the port can't be reached, so the test says nothing: {error}"),
        Ok((length, by)) => anyhow::bail!("{length} bytes in answer, by {by}"),
    }
}

#[test]
fn unauthenticated_datagrams_get_no_answer() -> Result<()> {
    // The third is on the network, but no member.
    with_agents(Lab::wireguard(3), |lab, agents| {
        form(&mut agents[..2])?;
        let (n0, n1, stranger) = (lab.node(0), lab.node(1), lab.node(2));
        let all = record(n0, PORT, Duration::from_secs(4), |_| false)?;
        let real = between(&all, n1, n0);
        ensure!(real.len() > 2, "no traffic to learn from: {} datagrams", real.len());

        let mut seed = 7;
        let mut bad: Vec<Vec<u8>> = (0..400).map(|i| noise(&mut seed, i * 3)).collect();
        // Correct in everything that is not secret: version, an existing key id and sender.
        for one in &real {
            for at in [5, 16, 24, 32, one.len() - 1] {
                let mut changed = one.clone();
                changed[at] ^= 1;
                bad.push(changed);
            }
            bad.push(one[..one.len() - 1].to_vec());
            bad.push(one[..31].to_vec());
            bad.push([one.as_slice(), &noise(&mut seed, 16)].concat());
        }
        bad.extend((0..200).map(|_| [&real[0][..31], &noise(&mut seed, 60)].concat()));
        stranger.exec(&["ping", "-c", "1", "-W", "5", &n0.mesh_ip().to_string()])?.ok()?;
        let before = agents[0].status()?.node.link;
        unanswered(stranger, SocketAddr::new(n0.mesh_ip(), PORT), &bad)?;
        let after = agents[0].status()?.node.link;
        // Nearly all, since UDP may lose some; far fewer would mean that they never came.
        let refused = after.refused() - before.refused();
        ensure!(refused * 10 >= bad.len() as u64 * 9, "{refused} of {} were refused", bad.len());
        for (what, before, after) in [
            ("stranger", before.refused_stranger, after.refused_stranger),
            ("seal", before.refused_seal, after.refused_seal),
        ] {
            ensure!(after > before, "none was refused for its {what}");
        }

        // The same on TCP: a peer that does not speak TLS with a member's key gets nothing of the protocol,
        // and can't hold a connection for long.
        let address = SocketAddr::new(n0.mesh_ip(), PORT);
        let mut tcp = stranger.inside(|| Ok(std::net::TcpStream::connect(address)?))?;
        std::io::Write::write_all(&mut tcp, &noise(&mut seed, 4000))?;
        tcp.set_read_timeout(Some(Duration::from_secs(15)))?;
        let mut answer = Vec::new();
        let ended = std::io::Read::read_to_end(&mut tcp, &mut answer);
        let waits =
            |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        ensure!(!ended.as_ref().is_err_and(waits), "a connection that says nothing of use is held");
        ensure!(answer.len() <= 7, "more than a TLS alert in answer: {answer:?}");

        undisturbed(&agents[..2])
    })
}

fn undisturbed(agents: &[Agent<'_>]) -> Result<()> {
    always("members see each other", Duration::from_secs(2), || {
        for agent in agents {
            let status = agent.status()?;
            ensure!(status.names_in(&["up"]).len() == agents.len(), "{}", status.members_in_words());
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
        }
        Ok(())
    })
}

#[test]
fn a_recording_does_not_revive_a_dead_node() -> Result<()> {
    with_agents(Lab::wireguard(4), |lab, agents| {
        form(&mut agents[..3])?;
        let (n0, n2) = (lab.node(0), lab.node(2));
        let all = record(n0, PORT, Duration::from_secs(6), |_| false)?;
        let recorded = between(&all, n2, n0);
        ensure!(recorded.len() > 3, "no traffic to record: {} datagrams", recorded.len());

        // The sender dies; its old datagrams must not make it look alive.
        agents[2].kill()?;
        agents[0].wait_for_up(&["n0", "n1"], GOSSIP)?;
        stays_down(&agents[0], n2, n0, lab.node(3), &recorded)?;

        // A restarted receiver has seen none of it before, and must still refuse it.
        agents[0].kill()?;
        agents[0].run()?;
        agents[0].wait_until_asked()?;
        agents[0].wait_for_up(&["n0", "n1"], GOSSIP)?;
        stays_down(&agents[0], n2, n0, lab.node(3), &recorded)?;

        // Nor do recordings from before the sender's restart confuse those after it.
        agents[2].run()?;
        all_up(&agents[..3])?;
        replay(lab.node(3), n0, 0, &recorded)?;
        undisturbed(&agents[..3])?;
        agents[2].kill()?;
        agents[0].wait_for_up(&["n0", "n1"], GOSSIP)?;
        stays_down(&agents[0], n2, n0, lab.node(3), &recorded)
    })
}

/// Replays the recording from a port of this node.
fn replay(from: &Node, to: &Node, port: u16, recorded: &[Vec<u8>]) -> Result<()> {
    let socket = from.inside(|| Ok(UdpSocket::bind((from.mesh_ip(), port))?))?;
    for datagram in recorded {
        socket.send_to(datagram, (to.mesh_ip(), PORT))?;
    }
    Ok(())
}

/// Replays from the dead node's own address and port, and from a stranger's, for a while.
fn stays_down(
    judge: &Agent<'_>,
    dead: &Node,
    to: &Node,
    stranger: &Node,
    recorded: &[Vec<u8>],
) -> Result<()> {
    let before = judge.status()?.node.link;
    always("a dead node stays dead", Duration::from_secs(6), || {
        replay(dead, to, PORT, recorded)?;
        replay(stranger, to, 0, recorded)?;
        let status = judge.status()?;
        ensure!(!status.names_in(&["up"]).contains(&dead.name.as_str()), "a replay raised {}", dead.name);
        Ok(())
    })?;
    let after = judge.status()?.node.link;
    let seen = |link: &Link| link.refused_replay + link.refused_unproven;
    ensure!(seen(&after) > seen(&before), "no replay was seen: {before:?} {after:?}");
    Ok(())
}
