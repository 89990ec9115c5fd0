//! Cluster-wide settings: set on one node, they take effect on all, and survive restarts.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, LISTENER, SOON, all_up, form, with_agents};
use tests::wait::{always, eventually};

/// Listener of the cluster-wide service.
const WEB: &str = "127.0.0.1:8443";

fn balance(agent: &Agent<'_>, wanted: &str) -> Result<()> {
    let what = format!("{} balances by {wanted}", agent.name());
    eventually(&what, GOSSIP, || {
        let found = agent.status()?.services[0].balance.clone();
        ensure!(found == wanted, "it is {found}");
        Ok(())
    })?;
    Ok(())
}

/// What `agent get --json` prints.
fn settings(agent: &Agent<'_>, key: &[&str]) -> Result<serde_json::Value> {
    let said = agent.cli(&[&["get", "--json"], key].concat())?.ok()?;
    serde_json::from_str(&said).with_context(|| said)
}

/// Waits until the cluster-wide service answers through this node's own listener.
fn web_answers(agent: &Agent<'_>) -> Result<()> {
    let url = format!("https://{WEB}/who");
    eventually(&format!("{} serves at {WEB}", agent.name()), GOSSIP, || {
        agent.node().exec(&["curl", "-sSk", "-m", "5", &url])?.ok()
    })?;
    Ok(())
}

#[test]
fn a_setting_takes_effect_on_all_nodes_and_survives_restarts() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = [lab.nginx_master(0)?, lab.nginx_master(1)?];
        form(agents)?;
        let listen = format!("service.web.listen={WEB}");
        let all = ["balance=first", &listen, "service.web.port=6443", "service.web.check=tcp"];
        agents[2].cli(&[&["set"], &all[..]].concat())?.ok()?;
        for agent in agents.iter() {
            balance(agent, "first")?;
            web_answers(agent)?;
        }
        let who = settings(&agents[0], &["balance"])?;
        ensure!(who["settings"][0]["value"] == "first" && who["settings"][0]["set_by"] == "n2", "{who}");

        // One wrong setting of several prevents all of them, on every node.
        agents[1].cli(&["set", "balance=nearest", "service.web.prot=1"])?.fails_with(65)?;
        balance(&agents[1], "first")?;

        // One restarts among the others, then all at once.
        agents[1].kill()?;
        agents[1].run()?;
        agents[1].wait_until_asked()?;
        balance(&agents[1], "first")?;
        web_answers(&agents[1])?;
        for agent in agents.iter_mut() {
            agent.kill()?;
        }
        for agent in agents.iter_mut() {
            agent.run()?;
        }
        for agent in agents.iter_mut() {
            agent.wait_until_asked()?;
            balance(agent, "first")?;
            web_answers(agent)?;
        }

        own_file_overrides(lab, &mut agents[2])?;

        agents[0].cli(&["unset", "service.web", "balance"])?.ok()?;
        for agent in agents.iter() {
            let closed = || {
                let open = agent.node().inside(|| Ok(TcpStream::connect(WEB).is_ok()))?;
                ensure!(!open && agent.status()?.services.len() == 1, "{WEB} still listens");
                Ok(())
            };
            eventually(&format!("{} listens at {WEB} no more", agent.name()), GOSSIP, closed)?;
        }
        balance(&agents[0], "least-connections")
    })
}

/// A node's file overrides a service, and the node reports that.
fn own_file_overrides(lab: &Lab, agent: &mut Agent<'_>) -> Result<()> {
    let config = lab.dir().join("agent.toml");
    std::fs::write(&config, "[[service]]\nname = \"kube-api\"\nbalance = \"round-robin\"\n")?;
    agent.options = vec!["--config".to_owned(), config.to_string_lossy().into_owned()];
    agent.stop()?;
    agent.run()?;
    agent.wait_until_asked()?;
    balance(agent, "round-robin")?;
    web_answers(agent)?;
    let said = settings(agent, &["balance"])?;
    ensure!(said["settings"][0]["remark"].as_str().is_some_and(|remark| !remark.is_empty()), "{said}");
    let status: serde_json::Value = serde_json::from_str(&agent.cli(&["status", "--json"])?.ok()?)?;
    ensure!(status["services"][0]["source"] == "file-over-cluster", "{status}");
    // What the file no longer contains follows the cluster again, without a restart.
    std::fs::write(&config, "")?;
    agent.process()?.signal(tests::lab::Signal::HUP)?;
    balance(agent, "first")
}

/// Waits until these nodes see `master` in this state.
fn sees(agents: &[&Agent<'_>], master: &str, state: &str) -> Result<()> {
    for agent in agents {
        agent.wait_for_backend(master, &[state], GOSSIP)?;
    }
    Ok(())
}

#[test]
fn drain_and_weight_of_any_node_can_be_set_from_any_other() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = [lab.nginx_master(0)?, lab.nginx_master(1)?];
        form(agents)?;
        sees(&[&agents[0], &agents[1], &agents[2]], "n0", "ready")?;
        sees(&[&agents[2]], "n1", "ready")?;

        agents[0].cli(&["weight", "n1", "0"])?.ok()?;
        eventually("n1 has no weight", GOSSIP, || {
            let weight = agents[2].status()?.backend("n1")?.weight;
            ensure!(weight == 0, "it is {weight}");
            Ok(())
        })?;
        let who = (0..10).map(|_| agents[2].who_serves()).collect::<Result<BTreeSet<_>>>()?;
        ensure!(who.iter().eq(["n0"]), "{who:?} serve");
        agents[2].cli(&["unset", "weight.n1"])?.ok()?;
        eventually("n1 has its weight again", GOSSIP, || {
            let weight = agents[2].status()?.backend("n1")?.weight;
            ensure!(weight == 100, "it is {weight}");
            Ok(())
        })?;

        // Without other backends everything goes to n1: the held connection is there.
        agents[2].cli(&["drain", "n0"])?.ok()?;
        sees(&[&agents[2]], "n0", "draining")?;
        let held = agents[2].node().inside(|| Ok(TcpStream::connect(LISTENER)?))?;
        eventually("a connection is held to n1", SOON, || {
            ensure!(agents[2].status()?.backend("n1")?.connections == 1);
            Ok(())
        })?;
        agents[1].cli(&["undrain", "n0"])?.ok()?;
        sees(&[&agents[0], &agents[1], &agents[2]], "n0", "ready")?;

        let ran = agents[0].cli(&["drain", "n1", "--wait", "1s"])?.fails_with(75)?;
        ensure!(ran.contains("n1: 1 connection (n2 1)"), "{ran}");
        sees(&[&agents[0], &agents[1], &agents[2]], "n1", "draining")?;
        drop(held);
        agents[0].cli(&["drain", "n1", "--wait", "30s"])?.ok()?;
        let who = (0..10).map(|_| agents[2].who_serves()).collect::<Result<BTreeSet<_>>>()?;
        ensure!(who.iter().eq(["n0"]), "{who:?} serve while n1 drains");

        drains_over_restarts(agents)
    })
}

/// A drain does not need the agent of the drained node, and survives it.
fn drains_over_restarts(agents: &mut [Agent<'_>]) -> Result<()> {
    agents[1].kill()?;
    always("n1 drains while its agent is away", Duration::from_secs(3), || {
        let state = agents[2].backend_state("n1")?;
        ensure!(state == "draining" || state == "suspect", "it is {state}");
        Ok(())
    })?;
    agents[1].run()?;
    agents[1].wait_until_asked()?;
    all_up(agents)?;
    sees(&[&agents[0], &agents[1], &agents[2]], "n1", "draining")?;
    agents[1].cli(&["undrain"])?.ok()?;
    sees(&[&agents[0], &agents[1], &agents[2]], "n1", "ready")?;
    // Without a name it is this node.
    agents[1].cli(&["drain"])?.ok()?;
    sees(&[&agents[0], &agents[2]], "n1", "draining")?;
    agents[2].cli(&["undrain", "n1"])?.ok()?;
    sees(&[&agents[0], &agents[1], &agents[2]], "n1", "ready")
}

#[test]
fn a_vip_can_be_set_at_init_and_its_node_settings_are_removed_with_the_node() -> Result<()> {
    with_agents(Lab::bridge(2), |_, agents| {
        let [first, second] = agents else { anyhow::bail!("two agents") };
        let invite = first.init_with(&["--vip", "10.91.0.200/24"])?;
        second.join(&invite)?;
        let said = settings(second, &["vip"])?;
        let vip = &said["settings"][0];
        ensure!(vip["value"] == "10.91.0.200" && vip["set_by"] == "n0", "{said}");
        let said = settings(second, &["vip.10.91.0.200.preempt"])?;
        ensure!(said["settings"] == serde_json::json!([]) && said["default"] == "off", "{said}");

        second.cli(&["drain"])?.ok()?;
        second.cli(&["weight", "n0", "7"])?.ok()?;
        first.cli(&["remove", "n1"])?.ok()?;
        let said = settings(first, &[])?;
        let keys: Vec<_> =
            said["settings"].as_array().context("no list")?.iter().map(|one| &one["key"]).collect();
        ensure!(keys == ["vip", "weight.n0"], "{said}");
        live_screen(first)
    })
}

/// The live screen shows the status, ends by a key, and restores the terminal.
fn live_screen(agent: &Agent<'_>) -> Result<()> {
    let binary = tests::mesh::binary()?;
    let run = agent.node().dir().join("run");
    let watch = format!("TERM=xterm {} status --watch --runtime-dir {}", binary.display(), run.display());
    // Typed repeatedly: input before the screen starts is discarded.
    let typed = format!("while sleep 0.2; do printf q || exit; done | script -qec '{watch}' /dev/null");
    let said = agent.node().exec(&["timeout", "20", "sh", "-c", &typed])?.ok()?;
    for part in ["\x1b[?1049h", "kube-api", "q quits", "\x1b[?1049l"] {
        ensure!(said.contains(part), "{part:?} is missing: {said:?}");
    }
    ensure!(said.trim_end().ends_with("\x1b[?1049l"), "something follows: {said:?}");
    agent.cli(&["status", "--watch"])?.fails_with(64)?;
    Ok(())
}
