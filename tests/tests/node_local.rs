//! One address on every node: it comes and goes with its setting, is put back, refuses where something is against it,
//! and leads pods to a master that serves. The pods' rules are written by hand, in the form that kube-proxy gives its
//! own with nftables: the ClusterIP of the Service `kubernetes` to its endpoints.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Master, Signal};
use tests::mesh::{Agent, GOSSIP, SOON, form_with, with_agents};
use tests::wait::eventually;

/// The addresses, outside of every network of the lab.
const V4: &str = "10.92.91.50";
const V6: &str = "fd92::50";

/// A worker.
const WORKER: usize = 3;

fn set(agent: &Agent<'_>, settings: &[&str]) -> Result<()> {
    agent.cli(&[&["set"], settings].concat())?.ok().map(drop)
}

/// What `ip` shows of lo.
fn lo(agent: &Agent<'_>) -> Result<String> {
    agent.node().exec(&["ip", "-o", "address", "show", "dev", "lo"])?.ok()
}

fn has(agent: &Agent<'_>, address: &str) -> Result<()> {
    let shown = lo(agent)?;
    ensure!(shown.contains(&format!("{address}/")), "{} has no {address}: {shown}", agent.name());
    Ok(())
}

fn has_not(agent: &Agent<'_>, address: &str) -> Result<()> {
    let shown = lo(agent)?;
    ensure!(!shown.contains(&format!("{address}/")), "{} has {address}: {shown}", agent.name());
    Ok(())
}

/// Who answers at a place on a node itself.
fn who(agent: &Agent<'_>, at: &str) -> Result<String> {
    let url = format!("https://{at}/who");
    let said = agent.node().exec(&["curl", "-gsSk", "-m", "5", &url])?.ok()?;
    Ok(said.trim().to_owned())
}

/// Three masters and a worker.
fn with_cluster(test: impl FnOnce(&Lab, &mut [Agent<'_>], &mut [Master]) -> Result<()>) -> Result<()> {
    with_agents(Lab::wireguard(4), |lab, agents| {
        let mut masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form_with(agents, 3)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n0", &["ready"], GOSSIP)?;
        }
        test(lab, agents, &mut masters)
    })
}

fn problem(agent: &Agent<'_>, subject: &str) -> Result<Option<String>> {
    let all = agent.status()?.problems;
    Ok(all.into_iter().find(|one| one.code == "node-local" && one.subject == subject).map(|one| one.detail))
}

#[test]
fn every_node_has_it_and_serves_on_it_until_it_is_unset() -> Result<()> {
    with_cluster(|_, agents, _| {
        set(
            &agents[0],
            &[
                &format!("node-local={V4},{V6}"),
                "service.join.port=6443",
                "service.join.check=tcp",
                "service.join.node-local=9345",
            ],
        )?;
        let places = |port: u16| [format!("{V4}:{port}"), format!("[{V6}]:{port}")];
        for agent in agents.iter() {
            for address in [V4, V6] {
                eventually(&format!("{} has {address}", agent.name()), GOSSIP, || has(agent, address))?;
            }
            for at in places(16443).iter().chain(&places(9345)) {
                eventually(&format!("{} serves {at}", agent.name()), GOSSIP, || who(agent, at))?;
            }
            eventually("it is content", GOSSIP, || agent.cli(&["status", "--exit-code"])?.ok())?;
            ensure!(agent.who_serves().is_ok(), "the other listener is as before");
        }
        let shown = agents[WORKER].cli(&["status"])?.ok()?;
        eprintln!("{shown}");
        ensure!(shown.contains(&format!("{V4}:16443")), "{shown}");

        // Somebody removes it, again and again.
        let worker = &agents[WORKER];
        for address in [format!("{V4}/32"), format!("{V6}/128"), format!("{V4}/32")] {
            worker.node().exec(&["ip", "address", "del", &address, "dev", "lo"])?.ok()?;
            let (_, after) = eventually("it is put back", SOON, || {
                [V4, V6].iter().try_for_each(|address| has(worker, address))
            })?;
            ensure!(after < Duration::from_secs(3), "after {after:?}");
        }
        eventually("an event tells of it", SOON, || {
            let events = worker.cli(&["events"])?.ok()?;
            ensure!(events.contains("put-back"), "{events}");
            Ok(())
        })?;
        eventually("it serves again", SOON, || who(worker, &places(16443)[0]))?;

        agents[0].cli(&["unset", "node-local", "service.join"])?.ok()?;
        for agent in agents.iter() {
            for address in [V4, V6] {
                eventually(&format!("{} lost {address}", agent.name()), GOSSIP, || has_not(agent, address))?;
            }
            ensure!(agent.who_serves().is_ok(), "the other listener is as before");
            eventually("it is content", GOSSIP, || agent.cli(&["status", "--exit-code"])?.ok())?;
        }
        Ok(())
    })
}

#[test]
fn a_node_whose_agent_is_dead_refuses_at_once_and_one_that_leaves_has_it_no_more() -> Result<()> {
    with_cluster(|_, agents, _| {
        set(&agents[0], &[&format!("node-local={V4}")])?;
        let at = format!("{V4}:16443");
        for agent in agents.iter() {
            eventually(&format!("{} serves it", agent.name()), GOSSIP, || who(agent, &at))?;
        }
        let refused = |agent: &Agent<'_>| {
            let curl = ["curl", "-gsSk", "-m", "5", "-w", "%{time_total}", &format!("https://{at}/who")];
            let ran = agent.node().exec(&curl)?;
            ensure!(ran.code == Some(7), "{ran}");
            let took: f64 = ran.out.trim().parse().with_context(|| ran.out.clone())?;
            ensure!(took < 0.5, "after {took} s");
            Ok(())
        };
        // Killed, with and without being started again; stopped.
        agents[WORKER].kill()?;
        has(&agents[WORKER], V4)?;
        refused(&agents[WORKER])?;
        agents[WORKER].run()?;
        eventually("it serves again", GOSSIP, || who(&agents[WORKER], &at))?;
        agents[WORKER].stop()?;
        has(&agents[WORKER], V4)?;
        refused(&agents[WORKER])?;

        // While it is stopped the setting changes: what it had is taken away once it knows.
        set(&agents[0], &["node-local=10.92.91.51"])?;
        agents[WORKER].run()?;
        eventually("it has the new one alone", GOSSIP, || {
            has(&agents[WORKER], "10.92.91.51")?;
            has_not(&agents[WORKER], V4)
        })?;
        agents[WORKER].wait_until_asked()?;

        agents[WORKER].cli(&["leave"])?.ok()?;
        agents[WORKER].process()?.ended(Duration::from_secs(15))?;
        has_not(&agents[WORKER], "10.92.91.51")?;
        // One that is killed first, and whose state is deleted.
        agents[2].kill()?;
        has(&agents[2], "10.92.91.51")?;
        let ran = agents[2].cli(&["leave", "--force"])?;
        has_not(&agents[2], "10.92.91.51").with_context(|| ran.to_string())?;
        Ok(())
    })
}

#[test]
fn an_address_that_is_somebody_s_is_refused_and_named() -> Result<()> {
    with_cluster(|lab, agents, _| {
        let refused = |settings: &[&str], words: &str| {
            let ran = agents[0].cli(&[&["set"], settings].concat())?;
            eprintln!("{}", ran.err);
            let flat = ran.err.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(ran.code == Some(65) && flat.contains(words), "{ran}");
            Ok(())
        };
        refused(&["node-local=10.91.0.2"], "10.91.0.2 is the address of n1")?;
        refused(&["node-local=10.90.0.77"], "10.90.0.77 lies in 10.90.0.0/24 of eth0")?;
        refused(&["node-local=127.0.0.2"], "127.0.0.2 is a loopback address")?;
        let taken = lab.node(0).inside(|| Ok(std::net::TcpListener::bind("0.0.0.0:16444")?))?;
        refused(
            &["node-local=10.92.91.50", "service.kube-api.node-local=16444"],
            "another program listens on port 16444",
        )?;
        drop(taken);

        // Only the worker has a network with the address, and a machine that answers on the way out of the third.
        let worker = &agents[WORKER];
        worker.node().exec(&["ip", "link", "add", "pods", "type", "veth"])?.ok()?;
        worker.node().exec(&["ip", "address", "add", "10.92.91.1/24", "dev", "pods"])?.ok()?;
        let far = lab.node(1).underlay_ip.to_string();
        lab.node(1).exec(&["ip", "address", "add", "10.92.92.50/32", "dev", "eth0"])?.ok()?;
        lab.node(2).exec(&["ip", "route", "add", "10.92.92.0/24", "via", &far])?.ok()?;
        set(&agents[0], &[&format!("node-local={V4}")])?;
        let words = "lies in 10.92.91.0/24 of pods";
        let (told, _) = eventually("the worker says why it has none", GOSSIP, || {
            problem(worker, V4)?.filter(|told| told.contains(words)).context("it does not")
        })?;
        eprintln!("{told}");
        has_not(worker, V4)?;
        let ran = worker.cli(&["status", "--exit-code"])?;
        eprintln!("{ran}");
        ensure!(ran.code == Some(10), "{ran}");
        eventually("another has it", GOSSIP, || has(&agents[2], V4))?;
        worker.node().exec(&["ip", "link", "del", "pods"])?.ok()?;
        eventually("the worker has it once the cause is gone", GOSSIP, || {
            has(worker, V4)?;
            ensure!(problem(worker, V4)?.is_none());
            Ok(())
        })?;
        // What comes later is told, and breaks nobody who uses the address.
        worker.node().exec(&["ip", "link", "add", "pods", "type", "veth"])?.ok()?;
        worker.node().exec(&["ip", "address", "add", "10.92.91.1/24", "dev", "pods"])?.ok()?;
        eventually("it is told, and kept", GOSSIP, || {
            let told = problem(worker, V4)?.context("it is not")?;
            ensure!(told.contains("it stays, since clients use it"), "{told}");
            has(worker, V4)
        })?;

        set(&agents[0], &["node-local=10.92.92.50"])?;
        eventually("the third says that somebody answers", GOSSIP, || {
            let told = problem(&agents[2], "10.92.92.50")?.context("it does not")?;
            ensure!(told.contains("another machine answers at 10.92.92.50"), "{told}");
            has_not(&agents[2], "10.92.92.50")
        })?;
        Ok(())
    })
}

#[test]
fn a_restart_keeps_its_listeners_and_it_lives_beside_a_vip() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for agent in agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        form_with(agents, 3)?;
        set(&agents[0], &["vip=10.91.0.250", &format!("node-local={V4}")])?;
        let at = format!("{V4}:16443");
        for agent in agents.iter() {
            eventually(&format!("{} serves it", agent.name()), GOSSIP, || who(agent, &at))?;
            eventually("it is content", GOSSIP, || agent.cli(&["status", "--exit-code"])?.ok())?;
        }
        eventually("the virtual IP has an owner", GOSSIP, || agents[0].status()?.owner_of_vip())?;
        // An upgrade to the same binary: the process is replaced, the listeners go over.
        let load = tests::load::Plan {
            targets: vec![at.parse()?],
            per_second: 50,
            held: 2,
            patience: Duration::from_secs(5),
        };
        let ca = lab.certs().ca.clone();
        let (records, ()) = tests::load::during(agents[1].node(), &ca, &load, |_| {
            std::thread::sleep(Duration::from_secs(1));
            let ran = agents[1].cli(&["upgrade"])?;
            ensure!(ran.code == Some(0), "{ran}");
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        })?;
        let failed: Vec<_> = records[0].tries.iter().filter(|one| one.result.is_err()).collect();
        ensure!(failed.is_empty() && records[0].tries.len() > 100, "{failed:?}");
        agents[1].process()?.signal(Signal::HUP)?;
        agents[0].cli(&["unset", "vip"])?.ok()?;
        eventually("it stays without virtual IPs", SOON, || who(&agents[0], &at))?;
        agents[0].node().exec(&["ip", "address", "del", &format!("{V4}/32"), "dev", "lo"])?.ok()?;
        eventually("and is put back", SOON, || has(&agents[0], V4))?;
        Ok(())
    })
}
