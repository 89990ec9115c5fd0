//! Accidents of one machine: its interfaces, its files and its limits change under a running agent.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node, Signal};
use tests::mesh::{Agent, GOSSIP, LISTENER, SOON, form, form_by, invite_in, with_agents};
use tests::vip::{ADDRESS, vip};
use tests::wait::{always, eventually};

/// Runs a script on a node.
fn sh(node: &Node, script: &str) -> Result<String> {
    node.exec(&["sh", "-euc", script])?.ok()
}

/// Waits until a node advertises its mesh address on this interface, names no problem, and every node sees its
/// apiserver ready.
fn follows(agents: &[Agent<'_>], i: usize, interface: &str) -> Result<()> {
    let agent = &agents[i];
    let address = agent.node().mesh_ip().to_string();
    eventually(&format!("{} is reached on {interface}", agent.name()), GOSSIP, || {
        let status = agent.status()?;
        ensure!(
            status.node.address.as_deref() == Some(&*address),
            "its address is {:?}",
            status.node.address
        );
        ensure!(status.node.interface == interface, "its interface is {}", status.node.interface);
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        Ok(())
    })?;
    for other in agents {
        other.wait_for_backend(agent.name(), &["ready"], GOSSIP)?;
    }
    Ok(())
}

#[test]
fn the_address_is_followed_to_an_interface_of_another_name() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..2).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form_by(agents, 2, &["--vip", &ADDRESS.to_string()])?;
        let address = ADDRESS.to_string();
        let (owner, _) = eventually("someone owns the virtual IP", GOSSIP, || {
            let owner = vip(&agents[2], &address)?.owner;
            agents
                .iter()
                .position(|agent| owner.as_deref() == Some(agent.name()))
                .ok_or(anyhow::anyhow!("{owner:?}"))
        })?;
        let (node, name) = (lab.node(owner), agents[owner].name());
        sh(node, "ip link set eth0 down; ip link set eth0 name ens3; ip link set ens3 up")?;
        follows(agents, owner, "ens3")?;
        eventually("it can own the virtual IP on ens3", GOSSIP, || {
            let vip = vip(&agents[owner], &address)?;
            ensure!(vip.interface.as_deref() == Some("ens3"), "on {:?}", vip.interface);
            let own = vip.candidates.iter().find(|one| one.node == name);
            ensure!(own.is_some_and(|one| one.eligible), "{vip:?}");
            Ok(())
        })?;
        agents[owner].cli(&["vip", "move", &address, name])?.ok()?;
        eventually("its new interface has the virtual IP", SOON, || {
            let shown = sh(node, "ip -o addr show dev ens3")?;
            ensure!(shown.contains(&format!(" {address}/32 ")), "{shown}");
            Ok(())
        })?;
        // Into a bridge for virtual machines, and the interface itself has no address any more.
        let own = node.mesh_ip();
        sh(
            node,
            &format!(
                "ip link add br0 type bridge; ip link set br0 up; ip addr del {own}/24 dev ens3
                 ip link set ens3 master br0; ip addr add {own}/24 dev br0"
            ),
        )?;
        follows(agents, owner, "br0")?;

        // Gone for longer than an event takes, and back; and the agent knows it after a restart, too.
        sh(node, &format!("ip addr del {own}/24 dev br0"))?;
        eventually("it has no address", SOON, || {
            let status = agents[owner].status()?;
            ensure!(status.node.address.is_none(), "it is {:?}", status.node.address);
            let told = status.problems.iter().any(|problem| problem.code == "no-address");
            ensure!(told, "{:?}", status.problems);
            Ok(())
        })?;
        sh(node, &format!("ip addr add {own}/24 dev br0"))?;
        follows(agents, owner, "br0")?;
        agents[owner].stop()?;
        agents[owner].run()?;
        agents[owner].wait_until_asked()?;
        follows(agents, owner, "br0")
    })
}

#[test]
fn a_tunnel_that_is_made_anew_is_used_again() -> Result<()> {
    with_agents(Lab::wireguard(3), |lab, agents| {
        let _masters = (0..2).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        follows(agents, 1, "wg0")?;
        let node = lab.node(1);
        sh(node, "ip link del wg0")?;
        eventually("the agent says so", SOON, || {
            let told = agents[1].status()?.problems;
            let why = "there is no interface wg0, and no other has 10.91.0.2";
            ensure!(told.iter().any(|one| one.detail.starts_with(why)), "{told:?}");
            Ok(())
        })?;
        let env = [("WG_PROCESS_FOREGROUND", "1"), ("LOG_LEVEL", "error")];
        let _tunnel = node.spawn_with("wireguard2", &["wireguard-go", "-f", "wg1"], &env)?;
        eventually("the tunnel is there", Duration::from_secs(10), || {
            sh(node, "ip link show wg1; wg show wg1")
        })?;
        let config = node.dir().join("wg.conf");
        sh(
            node,
            &format!(
                "wg setconf wg1 {}; ip addr add {}/24 dev wg1; ip link set wg1 up mtu 1420",
                config.display(),
                node.mesh_ip()
            ),
        )?;
        follows(agents, 1, "wg1")
    })
}

/// Waits until all nodes know this one at an address.
fn known_at(agents: &[Agent<'_>], name: &str, place: &str) -> Result<()> {
    let at: SocketAddr = place.parse()?;
    let address = at.ip().to_string();
    agents[0].node().inside(|| {
        eventually("its port is open", SOON, || Ok(TcpStream::connect(at)?))?;
        Ok(())
    })?;
    for agent in agents {
        eventually(&format!("{} knows {name} at {address}", agent.name()), GOSSIP, || {
            let status = agent.status()?;
            let member = status.member(name)?;
            ensure!(member.address == address && member.state == "up", "{} {}", member.address, member.state);
            Ok(())
        })?;
    }
    Ok(())
}

/// The errors and the output of `agent check` for a file with this text.
fn checked(agent: &Agent<'_>, text: &str, code: i32) -> Result<String> {
    std::fs::write(&agent.options[1], text)?;
    let mut command = vec!["check"];
    command.extend(agent.options.iter().map(String::as_str));
    let ran = agent.cli(&command)?;
    ensure!(ran.code == Some(code), "{ran}");
    Ok(format!("{}{}", ran.out, ran.err))
}

#[test]
fn what_the_file_says_of_the_node_holds_after_the_join_or_is_refused() -> Result<()> {
    with_agents(Lab::bridge(2), |_, agents| {
        form(agents)?;
        let invite = agents[0].cli(&["invite"])?.ok()?;
        let file = agents[1].node().dir().join("agent.toml").to_string_lossy().into_owned();
        agents[1].options = vec!["--config".to_owned(), file.clone()];
        agents[1].stop()?;

        // A name that the cluster does not know: refused aloud, and the node runs.
        let told = checked(&agents[1], "name = \"other\"\n", 78)?;
        let why = "name = other, and this node is n1 in its cluster, which a restart does not change; set name = \
                   \"n1\", or rename the node: agent leave, then agent join INVITE --name other";
        ensure!(told.contains(why), "{told}");
        agents[1].run()?;
        agents[1].wait_until_asked()?;
        let status = agents[1].status()?;
        ensure!(status.problems.iter().any(|one| one.code == "setting-ignored" && one.subject == "name"));

        // A port: a reload says that it takes a restart, which gives it.
        let told = checked(&agents[1], "port = 7777\n", 0)?;
        ensure!(
            told.contains("warning: port = 7777 holds after a restart (this node has joined with"),
            "{told}"
        );
        agents[1].process()?.signal(Signal::HUP)?;
        eventually("the reload says so", SOON, || {
            let log = agents[1].log()?;
            ensure!(log.contains("not applied before a restart: name, port; run: systemctl restart agent"));
            Ok(())
        })?;
        agents[1].stop()?;
        agents[1].run()?;
        known_at(agents, "n1", "10.91.0.2:7777")?;

        // Another interface, which an address that stays on the old one does not hinder; then an address of it.
        let script = "ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0
                      ip addr add 10.91.0.77/24 dev br0
                      ip route del 10.91.0.0/24 dev eth0";
        sh(agents[1].node(), script)?;
        let other = "ip addr add 10.91.0.78/24 dev br0; ip addr del 10.91.0.77/24 dev br0
                     ip addr replace 10.91.0.78/24 dev br0";
        for (script, text, address) in [
            ("true", "interface = \"br0\"\n", "10.91.0.77:7777"),
            (other, "address = \"10.91.0.78\"\nport = 7646\n", "10.91.0.78:7646"),
            // What is no longer mentioned stays.
            ("true", "", "10.91.0.78:7646"),
        ] {
            checked(&agents[1], text, 0)?;
            agents[1].stop()?;
            sh(agents[1].node(), script)?;
            agents[1].run()?;
            known_at(agents, "n1", address)?;
            agents[1].stop()?;
            agents[1].run()?;
            known_at(agents, "n1", address)?;
        }
        ensure!(agents[1].status()?.node.interface == "br0");

        // Flags of a join that comes again.
        let word = invite_in(&invite).context("an invite")?;
        for (flags, why) in [
            (
                ["--iface", "eth0"],
                "write interface = eth0 into agent.toml and restart it: systemctl restart agent",
            ),
            (["--addr", "10.91.0.77"], "write address = 10.91.0.77 into agent.toml and restart it"),
            (["--name", "other"], "rename the node: agent leave, then agent join INVITE --name other"),
        ] {
            let refused = agents[1].cli(&[&["join", &word], &flags[..]].concat())?;
            ensure!(refused.code == Some(65) && refused.err.contains(why), "{refused}");
        }
        agents[1].cli(&["join", &word, "--iface", "br0"])?.ok()?;
        Ok(())
    })
}

/// Waits until an agent has no problem any more.
fn mended(agent: &Agent<'_>) -> Result<()> {
    eventually(&format!("{} has no problem", agent.name()), GOSSIP, || {
        let problems = agent.status()?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn what_a_full_disk_did_not_take_is_written_once_there_is_space() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        let node = lab.node(0);
        let state = agents[0].state().to_string_lossy().into_owned();
        std::fs::create_dir(&state)?;
        node.exec(&["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", &state])?.ok()?;
        form(agents)?;
        mended(&agents[0])?;
        sh(node, &format!("dd if=/dev/zero of={state}/ballast bs=1k count=10000 || true"))?;
        let warning = format!("warning: not saved on this node: state directory {state} is full");
        for command in [["set", "weight.n1=7"], ["drain", "n1"]] {
            let told = agents[0].cli(&command)?.ok()?;
            ensure!(told.contains(&warning), "{told}");
        }
        let told = agents[0].cli(&["doctor", "--json", "n0"])?;
        ensure!(told.out.contains("state-not-saved") && told.code == Some(11), "{told}");

        // Without a restart, and without another change.
        sh(node, &format!("rm {state}/ballast"))?;
        mended(&agents[0])?;
        agents[1].stop()?;
        agents[0].kill()?;
        agents[0].run()?;
        agents[0].wait_until_asked()?;
        let kept = agents[0].cli(&["get", "--json"])?.ok()?;
        ensure!(kept.contains("weight.n1") && kept.contains("drain.n1"), "{kept}");
        Ok(())
    })
}

#[test]
fn an_agent_without_descriptors_for_clients_still_checks_answers_and_is_a_member() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        let _master = lab.nginx_master(0)?;
        agents[0].through = ["prlimit", "--nofile=200:200"].map(str::to_owned).to_vec();
        form(agents)?;
        agents[1].wait_for_backend("n0", &["ready"], GOSSIP)?;
        let log = agents[0].log()?;
        let bounded = "the open file limit of 200 bounds the proxy to 24 connections (maxconn is 10000)";
        ensure!(log.contains(bounded), "{log}");
        let held = agents[0]
            .node()
            .inside(|| (0..150).map(|_| Ok(TcpStream::connect(LISTENER)?)).collect::<Result<Vec<_>>>())?;
        always("its apiserver is ready everywhere, and its agent answers", Duration::from_secs(8), || {
            for agent in agents.iter() {
                let status = agent.status()?;
                ensure!(status.backend("n0")?.state == "ready", "{:?}", status.backend("n0")?);
                ensure!(status.names_in(&["up"]).len() == 2, "{}", status.members_in_words());
            }
            let service = &agents[0].status()?.services[0];
            ensure!(service.backends.iter().map(|one| one.connections).sum::<u64>() == 24, "{service:?}");
            Ok(())
        })?;
        drop(held);
        let log = agents[0].log()?;
        ensure!(log.matches("out of file descriptors for more than 24 connections").count() == 1, "{log}");
        ensure!(log.matches(" WARN ").count() <= 4, "{log}");
        eventually("clients are served again", SOON, || agents[0].who_serves())?;
        Ok(())
    })
}

#[test]
fn an_interface_and_an_address_that_come_after_the_agent_are_waited_for() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..2).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form_by(agents, 2, &[])?;
        let node = lab.node(2);
        let file = node.dir().join("agent.toml").to_string_lossy().into_owned();
        std::fs::write(&file, "bind = \"10.91.0.3\"\n")?;
        agents[2].options = vec!["--config".to_owned(), file];
        agents[2].stop()?;
        sh(node, "ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 name late0")?;
        agents[2].run()?;
        agents[2].wait_until_asked()?;
        let log = agents[2].log()?;
        ensure!(
            log.contains("no interface has the address of bind, 10.91.0.3, yet; waiting for it"),
            "{log}"
        );
        // The cause before its consequences, in status and in doctor.
        let why = "there is no interface eth0, and no other has 10.91.0.3";
        let json = agents[2].cli(&["status", "--exit-code"])?;
        let first = json.out.lines().next().unwrap_or_default().to_owned();
        let cause = first.find("there is no interface").with_context(|| first.clone())?;
        ensure!(first.find("n0 ").is_none_or(|blamed| cause < blamed), "{first}");
        let told = agents[2].cli(&["doctor"])?.out;
        let (cause, other) = (told.find(why), told.find("firewall"));
        ensure!(cause.is_some() && other.is_none_or(|other| cause < Some(other)), "{told}");

        sh(node, "ip link set late0 name eth0; ip link set eth0 up; ip addr add 10.91.0.3/24 dev eth0")?;
        mended(&agents[2])?;
        for agent in agents.iter() {
            agent.wait_for_up(&["n0", "n1", "n2"], GOSSIP)?;
        }
        agents[2].wait_for_backend("n0", &["ready"], GOSSIP)?;
        agents[2].who_serves().map(drop)
    })
}
