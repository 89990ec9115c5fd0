//! The main task, on a real mesh: after `init` and `join` alone, every node has a local endpoint that reaches
//! a healthy master.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Master};
use tests::mesh::{Agent, GOSSIP, LISTENER, SOON, Status, all_up, form, form_with, with_agents};
use tests::wait::{always, eventually};

fn masters(lab: &Lab, count: usize) -> Result<Vec<Master>> {
    (0..count).map(|i| lab.nginx_master(i)).collect()
}

/// Waits until all see all three masters as ready.
fn all_ready(agents: &[Agent<'_>]) -> Result<()> {
    for agent in agents {
        for master in ["n0", "n1", "n2"] {
            agent.wait_for_backend(master, &["ready"], GOSSIP)?;
        }
    }
    Ok(())
}

/// The masters that answer so many connections.
fn answers(agent: &Agent<'_>, count: usize) -> Result<BTreeSet<String>> {
    (0..count).map(|_| agent.who_serves()).collect()
}

/// Connects until all of these have answered and no other has. Among equals the choice is random, so a few
/// connections may miss one of three; so many miss one in ten thousand million cases.
fn reaches_all(agent: &Agent<'_>, wanted: &[&str]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        seen.insert(agent.who_serves()?);
        if seen.len() >= wanted.len() && seen.len() > 1 {
            break;
        }
    }
    ensure!(seen.iter().eq(wanted), "{} reaches {seen:?}, not {wanted:?}", agent.name());
    Ok(())
}

#[test]
fn five_nodes_see_each_other_and_each_reaches_the_masters() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab, 3)?;
        let invite = form_with(agents, 3)?;
        all_ready(agents)?;
        for agent in agents.iter() {
            // A worker spreads its connections; a master prefers its own apiserver.
            let wanted: &[&str] = match agent.name() {
                "n3" | "n4" => &["n0", "n1", "n2"],
                own => &[own],
            };
            reaches_all(agent, wanted)?;
        }
        for agent in agents.iter() {
            status_is_whole(lab, agent, &agent.status()?)?;
        }
        let documents: BTreeSet<String> =
            agents.iter().map(|agent| Ok(agent.status()?.cluster.document)).collect::<Result<_>>()?;
        ensure!(documents.len() == 1, "nodes hold different documents: {documents:?}");

        joining_again_changes_nothing(&mut agents[4], &invite)?;
        all_up(agents)
    })
}

/// Every promised field has its documented meaning.
fn status_is_whole(lab: &Lab, agent: &Agent<'_>, status: &Status) -> Result<()> {
    let node = agent.node();
    let why = |what: &str| format!("{what}, on {}: {status:#?}", agent.name());
    ensure!(
        status.schema == 1 && status.vips.is_empty() && status.problems.is_empty(),
        why("schema, vips, problems")
    );
    ensure!(status.cluster.members == 5 && !status.cluster.name.is_empty(), why("the cluster"));
    ensure!(
        status.node.name == node.name && status.node.interface == "wg0",
        why("the node's name and interface")
    );
    ensure!(status.node.address.as_deref() == Some(&*node.mesh_ip().to_string()), why("the node's address"));
    let role = if node.index < 3 { "master" } else { "worker" };
    ensure!(status.node.role == role && !status.node.removed, why("the node's role"));
    let [service] = status.services.as_slice() else { anyhow::bail!(why("one service")) };
    ensure!(
        service.name == "kube-api"
            && service.listen.iter().all(|one| one.address == LISTENER && one.state == "listening"),
        why("the service")
    );
    ensure!(service.balance == "least-connections" && service.backends.len() == 3, why("its backends"));
    for backend in &service.backends {
        let of = lab
            .nodes()
            .iter()
            .find(|of| of.name == backend.node)
            .with_context(|| why("a backend of no node"))?;
        ensure!(backend.address == format!("{}:6443", of.mesh_ip()), why("a backend's address"));
        ensure!(backend.state == "ready" && !backend.reason.is_empty(), why("a backend's state"));
        let used = node.index >= 3 || backend.node == node.name;
        ensure!(!used || backend.total > 0, why("a backend's total"));
        ensure!(backend.since_unix_ms > 1_500_000_000_000, why("since when"));
    }
    for of in lab.nodes() {
        let member = status.member(&of.name)?;
        ensure!(member.address.contains(&of.mesh_ip().to_string()), why("a member's address"));
        let role = if of.index < 3 { "master" } else { "worker" };
        ensure!(
            member.role == role && member.version == status.node.version,
            why("a member's role and version")
        );
        ensure!(
            member.id.len() == 16 && member.since_unix_ms > 1_500_000_000_000,
            why("a member's id and since when")
        );
    }
    let text = agent.cli(&["status"])?.ok()?;
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    ensure!(widest <= 80 && text.lines().count() <= 30, "not one screen of 80 columns:\n{text}");
    for name in ["n0", "n1", "n2", "kube-api", "16443"] {
        ensure!(text.contains(name), "{name} is missing:\n{text}");
    }
    let members = agent.cli(&["members"])?.ok()?;
    ensure!(lab.nodes().iter().all(|of| members.contains(&of.name)), "{members}");
    Ok(())
}

fn joining_again_changes_nothing(agent: &mut Agent<'_>, invite: &str) -> Result<()> {
    let before = agent.status()?;
    agent.stop()?;
    agent.join(invite)?;
    let after = agent.status()?;
    ensure!(before.node.id == after.node.id && before.cluster.id == after.cluster.id);
    ensure!(after.cluster.members == 5, "{} members", after.cluster.members);
    Ok(())
}

#[test]
fn a_mesh_of_ipv6() -> Result<()> {
    with_agents(Lab::wireguard_v6(3), |lab, agents| {
        let _master = lab.nginx_master(0)?;
        form(agents)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n0", &["ready"], GOSSIP)?;
            ensure!(agent.who_serves()? == "n0");
            let address = agent.status()?.node.address;
            ensure!(address == Some(agent.node().mesh_ip().to_string()), "advertises {address:?}");
        }
        Ok(())
    })
}

#[test]
fn without_a_vpn_init_asks_for_the_interface() -> Result<()> {
    with_agents(Lab::bridge(2), |lab, agents| {
        // Two that are equally likely.
        lab.node(0).exec(&["ip", "link", "add", "eth1", "type", "bridge"])?.ok()?;
        lab.node(0).exec(&["ip", "addr", "add", "10.77.0.1/24", "dev", "eth1"])?.ok()?;
        lab.node(0).exec(&["ip", "link", "set", "eth1", "up"])?.ok()?;
        let said = agents[0].cli(&["init", "--foreground"])?.fails_with(64)?;
        ensure!(said.contains("eth0") && said.contains("eth1"), "lists what it found: {said}");

        let invite = agents[0].init_with(&["--iface", "eth0"])?;
        agents[1].join(&invite)?;
        all_up(agents)?;
        let status = agents[1].status()?;
        ensure!(status.node.interface == "eth0", "found by the route to the seed: {:?}", status.node);

        // Once more it changes nothing, and makes no invites that nobody asked for.
        let said = agents[0].cli(&["init"])?.ok()?;
        ensure!(said.contains("already a member") && !said.contains("agent1"), "{said}");
        let said = agents[0].cli(&["init", "--invites"])?.ok()?;
        ensure!(said.matches("agent join agent1").count() == 2, "{said}");
        Ok(())
    })
}

#[test]
fn a_dead_master_gets_no_connections_and_a_returned_one_does() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let mut masters = masters(lab, 3)?;
        form(agents)?;
        all_ready(agents)?;
        let worker = &agents[3];

        masters[0].kill()?;
        agents[4].wait_for_backend("n0", &["down", "gone"], SOON)?;
        worker.wait_for_backend("n0", &["down", "gone"], SOON)?;
        always("connections succeed with one master dead", Duration::from_secs(2), || {
            let who = worker.who_serves()?;
            ensure!(who != "n0", "a dead master answers");
            Ok(())
        })?;
        masters[0].start_again(lab.node(0))?;
        worker.wait_for_backend("n0", &["ready"], GOSSIP)?;
        // It ramps up next to the others, and gets connections at once when they are not ready.
        for i in [1, 2] {
            masters[i].set_ready(false)?;
            worker.wait_for_backend(&format!("n{i}"), &["not-ready"], SOON)?;
        }
        ensure!(answers(worker, 3)?.contains("n0"), "a master that returned serves");
        for i in [1, 2] {
            masters[i].set_ready(true)?;
            worker.wait_for_backend(&format!("n{i}"), &["ready"], GOSSIP)?;
        }

        // Not ready, but alive: it gets no new connection.
        masters[1].set_ready(false)?;
        worker.wait_for_backend("n1", &["not-ready"], SOON)?;
        // The state is sent by pulse, its reason by gossip.
        eventually("the reason says why", SOON, || {
            let status = worker.status()?;
            let backend = status.backend("n1")?;
            ensure!(backend.cause.as_deref() == Some("http-status"), "{backend:?}");
            ensure!(backend.reason.contains("500"), "the status is not in it: {backend:?}");
            Ok(())
        })?;
        ensure!(!answers(worker, 9)?.contains("n1"), "a master that is not ready gets connections");
        masters[1].set_ready(true)?;
        worker.wait_for_backend("n1", &["ready"], GOSSIP)?;

        // With no good one left, one that is not ready is tried before failing.
        masters[0].kill()?;
        masters[2].kill()?;
        masters[1].set_ready(false)?;
        worker.wait_for_backend("n1", &["not-ready"], SOON)?;
        worker.wait_for_backend("n0", &["down", "gone"], SOON)?;
        ensure!(worker.who_serves()? == "n1", "fails open");
        masters[1].kill()?;
        agents[4].wait_for_backend("n1", &["down", "gone"], SOON)?;
        let refused = worker.who_serves();
        ensure!(refused.is_err(), "with every master dead, connections end and do not hang: {refused:?}");
        Ok(())
    })
}

#[test]
fn a_node_becomes_a_master_when_an_apiserver_appears() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        form(agents)?;
        ensure!(agents[0].who_serves().is_err(), "there is no master yet");
        let mut master = lab.nginx_master(1)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n1", &["ready"], GOSSIP)?;
            ensure!(agent.who_serves()? == "n1");
        }
        ensure!(agents[0].status()?.member("n1")?.role == "master");
        // A crash is not the end of a master: it is down, until it has been gone for long.
        master.kill()?;
        agents[0].wait_for_backend("n1", &["down", "gone"], SOON)?;
        Ok(())
    })
}

#[test]
fn a_power_cut_of_a_master_fails_no_client() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = masters(lab, 3)?;
        form(agents)?;
        all_ready(agents)?;
        let worker = &agents[4];
        let held = held_on(worker, "n1")?;

        lab.node(1).power_cut()?;
        // Until the outage is noticed a connection may need a second try; it never takes long.
        always("connections succeed through a power cut", Duration::from_secs(12), || {
            let who = worker.who_serves()?;
            ensure!(who != "n1", "a master without power answers");
            Ok(())
        })?;
        worker.wait_for_backend("n1", &["down", "gone", "suspect"], GOSSIP)?;
        ends(held, Duration::from_secs(30))?;

        lab.node(1).power_on()?;
        worker.wait_for_backend("n1", &["ready"], GOSSIP)?;
        all_up(agents)
    })
}

/// Opens connections through a node's proxy until one of them reaches this master, and returns that with a
/// request begun: a client that has said nothing gets another backend when its own goes down.
fn held_on(agent: &Agent<'_>, master: &str) -> Result<TcpStream> {
    let mut others = Vec::new();
    for _ in 0..6 {
        let mut stream = agent.node().inside(|| Ok(TcpStream::connect(LISTENER)?))?;
        stream.write_all(b"G")?;
        let there = eventually("the connection shows in status", Duration::from_secs(2), || {
            let status = agent.status()?;
            let sum: u64 = status.services[0].backends.iter().map(|backend| backend.connections).sum();
            ensure!(sum == others.len() as u64 + 1, "{sum} connections");
            Ok(status.backend(master)?.connections > 0)
        })?;
        if there.0 {
            return Ok(stream);
        }
        others.push(stream);
    }
    anyhow::bail!("none of 6 connections went to {master}")
}

/// Waits until the other side ends a connection that it owes nothing: by reset or by close.
fn ends(mut stream: TcpStream, limit: Duration) -> Result<()> {
    stream.set_read_timeout(Some(limit))?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => anyhow::bail!("a master speaks first"),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("the held connection hangs"),
    }
}

#[test]
fn an_address_that_changes_is_noticed() -> Result<()> {
    with_agents(Lab::wireguard(3), |lab, agents| {
        form(agents)?;
        let new = IpAddr::V4(Ipv4Addr::new(10, 91, 0, 77));
        lab.node(1).change_address(new, lab.nodes())?;
        let _master = lab.nginx_master(1)?;
        for agent in agents.iter() {
            eventually("the new address is known", GOSSIP, || {
                let status = agent.status()?;
                let member = status.member("n1")?;
                ensure!(member.address.contains("10.91.0.77"), "it is {}", member.address);
                ensure!(member.state == "up", "it is {}", member.state);
                Ok(())
            })?;
            agent.wait_for_backend("n1", &["ready"], GOSSIP)?;
            ensure!(agent.who_serves()? == "n1", "served at its new address");
        }

        // With the VPN down, nothing wrong is advertised.
        lab.node(2).exec(&["ip", "link", "set", "wg0", "down"])?.ok()?;
        eventually("n2 says that its network is away", GOSSIP, || {
            let status = agents[2].status()?;
            ensure!(status.node.address.is_none(), "it advertises {:?}", status.node.address);
            Ok(())
        })?;
        lab.node(2).exec(&["ip", "link", "set", "wg0", "up"])?.ok()?;
        all_up(agents)
    })
}

#[test]
fn credentials_pass_unchanged_and_separate_ready_from_alive() -> Result<()> {
    with_agents(Lab::wireguard(3), |lab, agents| {
        // Both have anonymous access off; one agent has an accepted certificate.
        let _closed = [lab.nginx_master_without_anonymous(0)?, lab.nginx_master_without_anonymous(1)?];
        let certs = lab.certs();
        let config = lab.dir().join("agent.toml");
        std::fs::write(
            &config,
            format!(
                "[[service]]\nname = \"kube-api\"\n[service.check]\n\
                 ca-file = \"{}\"\ncert-file = \"{}\"\nkey-file = \"{}\"\n",
                certs.ca.display(),
                certs.client.display(),
                certs.client_key.display()
            ),
        )?;
        agents[0].options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
        form(agents)?;
        let worker = &agents[2];
        worker.wait_for_backend("n0", &["ready"], GOSSIP)?;
        worker.wait_for_backend("n1", &["alive"], GOSSIP)?;
        let reason = worker.status()?.backend("n1")?.reason.clone();
        ensure!(reason.contains("401"), "the reason does not say why: {reason}");

        // As a kubelet: a client certificate, the cluster's authority, HTTP/2, through the proxy. The one
        // that is known to be ready is used, and the other only when it is gone.
        let [ca, cert, key] =
            [&certs.ca, &certs.client, &certs.client_key].map(|path| path.to_string_lossy().into_owned());
        let ask = |version: &str| {
            let url = "https://kubernetes:16443/who";
            let mut all = vec!["curl", "-sS", "-m", "5", "--http2", "-w", version, url];
            all.extend(["--resolve", "kubernetes:16443:127.0.0.1"]);
            all.extend(["--cacert", &ca, "--cert", &cert, "--key", &key]);
            worker.node().exec(&all)?.ok()
        };
        for _ in 0..6 {
            let said = ask("%{http_version} %{http_code}")?;
            ensure!(said == "n0\n2 200", "{said}");
        }
        Ok(())
    })
}
