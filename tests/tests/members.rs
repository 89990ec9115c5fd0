//! A node with an unreadable cluster file, and a master that many nodes join at once.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, SOON, form_with, with_agents};
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
