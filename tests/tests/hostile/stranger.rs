//! Attackers that reach the ports and have no key of the cluster.

use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::invite::{JoinRefusal, code_of};
use proto::node::Name;
use proto::rpc::{ALPN_JOIN, FromJoining, ToJoining};
use tests::hostile::cluster::{HONEST, PAGE_PASSWORD, PAGE_PORT, PORT, row};
use tests::hostile::tls::{Connection, dial};
use tests::hostile::victim::descriptors;
use tests::hostile::{Cluster, Identity, Sent};
use tests::mesh::{GOSSIP, SOON};
use tests::wait::eventually;
use tests::wire::{Datagram, record};

/// Most descriptors that strangers may make an agent hold.
const DESCRIPTORS: usize = 120;

/// Whether the other side has closed an unused connection.
fn is_closed(stream: &mut TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    match stream.read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn victim_pid(cluster: &mut Cluster) -> Result<u32> {
    Ok(cluster.agents[0].process()?.pid())
}

/// A stranger's connection that asks to be admitted without an invite.
fn ask_to_join(cluster: &Cluster, identity: &Identity, name: &str) -> Result<(Connection, ToJoining)> {
    let mut connection = identity.connect(cluster.stranger_node(), cluster.target(), ALPN_JOIN)?;
    let at = SocketAddr::new(cluster.stranger_node().mesh_ip(), proto::transport::PORT);
    let name: Name = name.parse().context("a name")?;
    let join = FromJoining::Join { name, proof: None, addresses: vec![at], confirmed: true, cluster: None };
    connection.send(&join)?;
    let answer = connection.receive()?;
    Ok((connection, answer))
}

#[test]
fn silent_connections_lock_no_member_out() -> Result<()> {
    row("stranger: 64 silent TCP connections, 13 SYN a second", |cluster| {
        let targets: Vec<SocketAddr> = (0..HONEST).map(|i| cluster.link_of(i)).collect();
        let mut held = Vec::new();
        for _ in 0..64 {
            for target in &targets {
                held.push(dial(cluster.stranger_node(), *target)?);
            }
        }
        let began = Instant::now();
        let mut spread = Vec::new();
        let mut opened = 0;
        while began.elapsed() < Duration::from_secs(8) {
            if began.elapsed().as_millis() >= opened * 1000 / 13 {
                opened += 1;
                for target in &targets {
                    // A refused one is as good.
                    held.extend(dial(cluster.stranger_node(), *target));
                }
            }
            if opened % 20 == 1 {
                spread.push(cluster.a_change_spreads().context("while strangers hold the port")?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        cluster.readmit().context("a node with an invite, while strangers hold the port")?;
        let worst = spread.iter().max().context("nothing was changed")?;
        let note = format!("a change reached n3 within {} ms", worst.as_millis());
        Ok(Sent { bytes: held.len() as u64 * 60, connections: 64, note })
    })
}

#[test]
fn pending_joins_are_bounded() -> Result<()> {
    row("stranger: 900 joins that wait, or say nothing", |cluster| {
        let pid = victim_pid(cluster)?;
        let before = descriptors(pid)?;
        let same = Identity::stranger()?;
        let (mut held, mut sent, mut waiting, mut most) = (Vec::new(), 0, 0, 0);
        for i in 0..300 {
            let other = Identity::stranger()?;
            // Each under a name of its own; one repeatedly; and one that only shakes hands.
            for identity in [&other, &same] {
                if let Ok((connection, answer)) = ask_to_join(cluster, identity, &format!("x{i}")) {
                    waiting += u64::from(matches!(answer, ToJoining::Wait { .. }));
                    held.push(connection);
                }
            }
            held.extend(other.connect(cluster.stranger_node(), cluster.target(), ALPN_JOIN));
            most = most.max(descriptors(pid)?.saturating_sub(before));
        }
        held.iter().for_each(|connection| sent += connection.sent);
        ensure!(most <= DESCRIPTORS, "{most} descriptors more");
        cluster.readmit().context("a node with an invite, while strangers wait")?;
        let note = format!("{waiting} were told to wait, {most} descriptors more at most");
        Ok(Sent { bytes: sent, connections: held.len().min(DESCRIPTORS) as u64, note })
    })
}

#[test]
fn a_disconnected_join_frees_its_slot() -> Result<()> {
    row("stranger: 64 joins that hang up while they wait", |cluster| {
        let mut sent = 0;
        for i in 0..64 {
            if let Ok((connection, _)) = ask_to_join(cluster, &Identity::stranger()?, &format!("x{i}")) {
                sent += connection.sent;
            }
        }
        let (mut connection, _) = eventually("the next one has a place", SOON, || {
            let (connection, answer) = ask_to_join(cluster, &Identity::stranger()?, "next")?;
            ensure!(matches!(answer, ToJoining::Wait { .. }), "it was answered {answer:?}");
            Ok(connection)
        })?;
        cluster.victim().cli(&["reject", &code_of(&connection.session)])?.ok()?;
        let answer: ToJoining = connection.receive()?;
        ensure!(matches!(answer, ToJoining::Refused(JoinRefusal::Rejected)), "{answer:?}");
        Ok(Sent { bytes: sent, connections: 1, ..Sent::default() })
    })
}

#[test]
fn a_code_whose_connection_is_gone_admits_nobody() -> Result<()> {
    row("stranger: a code is approved after its connection is gone", |cluster| {
        let before = cluster.victim().status()?.cluster.members;
        let (connection, answer) = ask_to_join(cluster, &Identity::stranger()?, "gone")?;
        ensure!(matches!(answer, ToJoining::Wait { .. }), "it was answered {answer:?}");
        let (code, sent) = (code_of(&connection.session), connection.sent);
        drop(connection);
        let ran = cluster.victim().cli(&["approve", &code])?;
        ensure!(ran.code != Some(0), "it was approved: {ran}");
        std::thread::sleep(Duration::from_secs(1)); // had it been admitted, it would show
        let after = cluster.victim().status()?.cluster.members;
        ensure!(after == before, "{after} members, {before} before: {ran}");
        Ok(Sent { bytes: sent, connections: 1, note: ran.err.lines().next().unwrap_or_default().to_owned() })
    })
}

#[test]
fn idle_connections_to_the_page_lock_nobody_out() -> Result<()> {
    row("stranger: 140 idle connections to the page", |cluster| {
        let page = SocketAddr::new(cluster.target().ip(), PAGE_PORT);
        let mut held = Vec::new();
        for _ in 0..140 {
            held.extend(dial(cluster.stranger_node(), page));
        }
        let user = format!("ops:{PAGE_PASSWORD}");
        let near = format!("http://127.0.0.1:{PAGE_PORT}/api/v1/status");
        let far = format!("http://{page}/api/v1/status");
        for (node, url) in [(0, &near), (0, &far), (3, &far)] {
            let node = cluster.lab.node(node);
            node.exec(&["curl", "-sSf", "-m", "3", "-o", "/dev/null", "-u", &user, url])?
                .ok()
                .with_context(|| format!("the page, from {}", node.name))?;
        }
        let (open, took) = eventually("idle connections are closed", Duration::from_secs(8), || {
            let open = held.iter_mut().map(is_closed).filter(|closed| !closed).count();
            ensure!(open == 0, "{open} are open");
            Ok(open)
        })?;
        ensure!(open == 0);
        let note = format!("all closed after {} ms", took.as_millis());
        Ok(Sent { bytes: 140 * 60, connections: 140, note })
    })
}

/// Records what the hostile worker's agent sends to n0 in one start, until all see it and it has pulsed some
/// times more; then kills it.
fn recorded_start(cluster: &mut Cluster) -> Result<Vec<Vec<u8>>> {
    const ENOUGH: usize = 16;
    let (started, node) = (AtomicBool::new(false), cluster.lab.node(0));
    let (from, to) = (cluster.hostile_node().mesh_ip(), node.mesh_ip());
    let of_it = |one: &&Datagram| one.from == from && one.to == to;
    let all = std::thread::scope(|scope| -> Result<Vec<Datagram>> {
        let recording = scope.spawn(|| {
            record(node, PORT, SOON * 3, |all| {
                started.load(Ordering::Relaxed) && all.iter().filter(of_it).count() >= ENOUGH
            })
        });
        let agent = cluster.hostile_agent();
        let up = agent.run().and_then(|()| agent.wait_until_asked());
        let up = up.and_then(|()| agent.wait_for_up(&["n0", "n1", "n2", "n3", "n4"], SOON));
        started.store(true, Ordering::Relaxed);
        let all = recording.join().map_err(|_| anyhow::anyhow!("the recorder panicked"))?;
        up?;
        all
    })?;
    cluster.hostile_agent().kill()?;
    let sent: Vec<Vec<u8>> = all.iter().filter(of_it).map(|one| one.payload.clone()).collect();
    ensure!(sent.len() >= ENOUGH, "only {} datagrams were recorded", sent.len());
    Ok(sent)
}

#[test]
fn answers_to_recordings_are_limited_and_do_not_delay_a_live_start() -> Result<()> {
    row("stranger: replayed challenges, recordings two starts old", |cluster| {
        cluster.readmit()?;
        let recordings = [recorded_start(cluster)?, recorded_start(cluster)?].concat();
        let at = cluster.stranger_node().mesh_ip();
        let socket = cluster.stranger_node().inside(|| Ok(UdpSocket::bind((at, 0))?))?;
        socket.set_nonblocking(true)?;
        let (mut sent, mut answers, began) = (0, 0, Instant::now());
        let target = cluster.target();
        let replay = |answers: &mut u64, sent: &mut u64| -> Result<()> {
            for datagram in &recordings {
                *sent += socket.send_to(datagram, target).unwrap_or(0) as u64;
                while socket.recv_from(&mut [0; 2048]).is_ok() {
                    *answers += 1;
                }
            }
            Ok(())
        };
        while began.elapsed() < Duration::from_secs(2) {
            replay(&mut answers, &mut sent)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        let rate = answers * 1_000 / u64::try_from(began.elapsed().as_millis())?;
        ensure!(rate <= 100, "{rate} answers a second");

        // The third start, while the other two are replayed.
        eventually("n0 knows that n4 is away", GOSSIP, || {
            let status = cluster.agents[0].status()?;
            ensure!(status.member("n4")?.state != "up", "it is up");
            Ok(())
        })?;
        let began = Instant::now();
        cluster.agents[4].run()?;
        let up = eventually("n0 sees the third start up", SOON, || {
            replay(&mut answers, &mut sent)?;
            let status = cluster.agents[0].status()?;
            ensure!(status.member("n4")?.state == "up", "it is {}", status.member("n4")?.state);
            Ok(())
        });
        let took = began.elapsed();
        cluster.agents[4].kill()?;
        up?;
        let note = format!("{rate} answers a second; the third start was up after {} ms", took.as_millis());
        Ok(Sent { bytes: sent, connections: 0, note })
    })
}
