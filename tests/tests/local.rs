//! Accidents of one machine: its interfaces, its files and its limits change under a running agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::lab::{Lab, Node};
use tests::mesh::{Agent, GOSSIP, SOON, form, form_by, with_agents};
use tests::vip::{ADDRESS, vip};
use tests::wait::eventually;

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
