//! A node with an unreadable cluster file, a master that many nodes join at once, and a cluster so large that only a
//! core of it gossips.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, SOON, form_with, with_agents};
use tests::scale::cut;
use tests::wait::eventually;

/// Both copies of the cluster file.
const COPIES: [&str; 2] = ["cluster", "cluster.prev"];

/// Larger than any file that the agent reads.
const OVERSIZED_BYTES: u64 = 1 << 30;

/// Runs the agent with its cluster file damaged in this way, and asserts that it serves and reports the
/// problem.
fn serves_degraded(
    agent: &mut Agent<'_>,
    what: &str,
    spoil: impl Fn(&std::path::Path) -> Result<()>,
) -> Result<()> {
    let kept = COPIES.map(|name| (agent.state().join(name), fs::read(agent.state().join(name)).ok()));
    for (path, _) in &kept {
        let _ = fs::remove_file(path);
        spoil(path).with_context(|| format!("{what}: {}", path.display()))?;
    }
    agent.run()?;
    agent.wait_until_asked()?;
    agent.who_serves().with_context(|| format!("{what}: the API is not reached"))?;
    let status = agent.cli(&["status", "--exit-code"])?;
    ensure!(status.code == Some(10), "{what}: {status}");
    let problems = agent.status()?.problems;
    ensure!(problems.iter().any(|one| one.subject == "degraded"), "{what}: {problems:?}");
    agent.stop()?;
    for (path, bytes) in &kept {
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        if let Some(bytes) = bytes {
            fs::write(path, bytes)?;
        }
    }
    Ok(())
}

#[test]
fn a_node_with_an_unreadable_cluster_file_serves_from_the_last_known_good_list() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        form_with(agents, 2)?;
        let _masters = (0..2).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let worker = &mut agents[2];
        for master in ["n0", "n1"] {
            worker.wait_for_backend(master, &["ready"], GOSSIP)?;
        }
        eventually("the last known good list is kept", SOON, || {
            ensure!(worker.state().join("serving").exists());
            Ok(())
        })?;
        worker.stop()?;
        serves_degraded(worker, "damaged", |path| Ok(fs::write(path, b"no cluster")?))?;
        serves_degraded(worker, "empty", |path| Ok(fs::write(path, b"")?))?;
        serves_degraded(worker, "oversized", |path| Ok(fs::File::create(path)?.set_len(OVERSIZED_BYTES)?))?;
        serves_degraded(worker, "a directory", |path| Ok(fs::create_dir(path)?))?;
        // Nothing was lost.
        worker.run()?;
        worker.wait_until_asked()?;
        ensure!(worker.status()?.cluster.members == 3);
        Ok(())
    })
}

#[test]
fn forty_nodes_that_join_one_master_at_once_are_all_admitted() -> Result<()> {
    const NODES: usize = 41;
    with_agents(Lab::bridge(NODES), |_, agents| {
        let (first, others) = agents.split_first_mut().context("no agents")?;
        first.init()?;
        let invite = first.workers_invite()?;
        let began = Instant::now();
        for other in others.iter_mut() {
            other.begin_join(&invite)?;
        }
        for other in others.iter_mut() {
            other.wait_until_asked()?;
        }
        let (_, _) = eventually("the master knows all of them", Duration::from_secs(60), || {
            let members = first.status()?.cluster.members;
            ensure!(members == NODES, "{members} of {NODES}");
            Ok(())
        })?;
        let took = began.elapsed();
        let pid = first.process()?.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .context("no VmHWM")?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        println!(
            "{} joins in {took:.1?}; their master: peak {peak} kB, {descriptors} descriptors",
            NODES - 1
        );
        // The limit of the hostile suite for any peer, in addition to the agent's own use.
        ensure!(peak < 96 * 1024, "{peak} kB");
        ensure!(descriptors < 400, "{descriptors} descriptors");
        Ok(())
    })
}

/// The nodes in this place, by their own status; those that do not run are in none.
fn placed(agents: &mut [Agent<'_>], place: &str) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for (i, agent) in agents.iter_mut().enumerate() {
        if agent.is_running() && agent.status()?.node.place == place {
            found.push(i);
        }
    }
    Ok(found)
}

/// An attached node lists these members with their versions and addresses, and says from whom it has that. Returns
/// who that is.
fn lists_in_full(agent: &Agent<'_>, up: &[&str]) -> Result<String> {
    let list: Value = serde_json::from_str(&agent.cli(&["members", "--json"])?.ok()?)?;
    let from = list["from"].as_str().context("from nobody")?;
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    for member in list["members"].as_array().context("no members")? {
        let known = !text(member, "version").is_empty() && !text(member, "address").is_empty();
        let should = up.contains(&text(member, "name").as_str());
        ensure!((text(member, "state") == "up") == should && (known || !should), "{member}");
    }
    let screen = agent.cli(&["members"])?.ok()?;
    let said = format!("\nThis node is attached: {from} says the rest of this list");
    ensure!(screen.contains(&said), "no {said}: {screen}");
    Ok(from.to_owned())
}

/// Members of a cluster in which only a core gossips, its masters, its core, and time for it to change.
const NODES: usize = 40;
const MASTERS: usize = 2;
const CORE: usize = 12;
const LIMIT: Duration = Duration::from_secs(90);

/// Forms one, in which all see all, and hands over its core.
fn with_a_core(work: impl FnOnce(&Lab, &mut [Agent<'_>], Vec<usize>) -> Result<()>) -> Result<()> {
    with_agents(Lab::bridge(NODES), |lab, agents| {
        let invite = agents[0].init()?;
        agents[1].join(&invite)?;
        let invite = agents[0].workers_invite()?;
        for other in &mut agents[MASTERS..] {
            other.begin_join(&invite)?;
        }
        for other in &mut agents[MASTERS..] {
            other.wait_until_asked()?;
        }
        let _masters = (0..MASTERS).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let (core, took) = eventually("a core gossips, and all others are attached", LIMIT, || {
            let (core, attached) = (placed(agents, "core")?, placed(agents, "attached")?);
            ensure!(core.len() == CORE && attached.len() == NODES - CORE, "{core:?} {attached:?}");
            Ok(core)
        })?;
        println!("the core formed in {took:.1?}: {core:?}");
        ensure!(core.contains(&0) && core.contains(&1), "masters are in the core: {core:?}");
        let all: Vec<&str> = lab.nodes().iter().map(|node| node.name.as_str()).collect();
        for agent in agents.iter() {
            agent.wait_for_up(&all, LIMIT)?;
            for master in ["n0", "n1"] {
                agent.wait_for_backend(master, &["ready"], LIMIT)?;
            }
        }
        work(lab, agents, core)
    })
}

#[test]
fn attached_nodes_notice_at_once_that_the_power_of_a_master_is_cut() -> Result<()> {
    with_a_core(|_, agents, _| {
        let noticed = cut(agents, 1, Duration::from_secs(10))?;
        println!("down after {} s", noticed.down.shown());
        ensure!(noticed.down.last().is_some(), "until it was down on all: {}", noticed.down.shown());
        for agent in agents.iter().filter(|agent| agent.name() != "n1") {
            agent.wait_for_backend("n1", &["ready"], LIMIT)?;
        }
        Ok(())
    })
}

#[test]
fn attached_nodes_lose_no_backend_when_all_of_the_core_but_one_is_killed() -> Result<()> {
    with_a_core(|lab, agents, core| {
        let limit = LIMIT;
        let all: Vec<&str> = lab.nodes().iter().map(|node| node.name.as_str()).collect();
        let attached = (0..NODES).find(|i| !core.contains(i)).context("an attached node")?;
        let (from, _) = eventually("an attached node has the full list", limit, || {
            lists_in_full(&agents[attached], &all)
        })?;
        ensure!(core.iter().any(|i| all[*i] == from), "{from} is not in the core: {core:?}");
        let findings = agents[attached].cli(&["doctor"])?.out;
        ensure!(findings.contains("39 other members, TCP and UDP on"), "{findings}");
        ensure!(!findings.contains("is unknown") && findings.lines().count() < 60, "{findings}");
        let screen = agents[attached].cli(&["status"])?.ok()?;
        ensure!(
            screen.contains("\ncore     12 of 40 members gossip; this node is attached to n"),
            "{screen}"
        );
        ensure!(screen.contains("\n  and 38 workers up; for all, run: agent members\n"), "{screen}");
        let screen = agents[0].cli(&["status"])?.ok()?;
        ensure!(screen.contains("\ncore     12 of 40 members gossip, this node among them\n"), "{screen}");

        // The agents alone: what they proxy goes on.
        let killed: Vec<usize> = core.into_iter().filter(|i| *i != 0).collect();
        for i in &killed {
            agents[*i].kill()?;
        }
        let began = Instant::now();
        let rest: Vec<usize> = (0..NODES).filter(|i| !killed.contains(i)).collect();
        let up: Vec<&str> = rest.iter().map(|i| all[*i]).collect();
        let mut sample = rest.iter().cycle();
        eventually("a new core, and all know who is up", limit, || {
            let watched = &agents[*sample.next().context("a node")?];
            watched.who_serves().with_context(|| format!("{} is not served", watched.name()))?;
            let lost = watched.backend_state("n1")?;
            if ["gone", "down"].contains(&lost.as_str()) {
                return Ok(Err(anyhow::anyhow!("{} takes n1 for {lost}", watched.name())));
            }
            let core = placed(agents, "core")?.len();
            ensure!(core == CORE, "{core} in the core");
            for i in &rest {
                let status = agents[*i].status()?;
                let mut seen = status.names_in(&["up"]);
                seen.sort_unstable();
                let mut up = up.clone();
                up.sort_unstable();
                ensure!(seen == up, "{}: {}", agents[*i].name(), status.members_in_words());
            }
            Ok(Ok(()))
        })?
        .0?;
        println!("mended {:.1?} after {} of {CORE} were killed", began.elapsed(), killed.len());

        let attached = *placed(agents, "attached")?.first().context("an attached node")?;
        eventually("the full list, of the new core", limit, || lists_in_full(&agents[attached], &up))?;

        // What one of them changes reaches all.
        agents[0].cli(&["set", "service.kube-api.balance=first"])?.ok()?;
        let document = agents[0].status()?.cluster.document;
        for i in &rest {
            eventually("the change arrives", limit, || {
                let held = agents[*i].status()?.cluster.document;
                ensure!(held == document, "{} holds {held}", agents[*i].name());
                Ok(())
            })?;
        }
        Ok(())
    })
}
