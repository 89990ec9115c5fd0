//! Every node comes back from its state directory alone.

use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, LISTENER, all_up, form, with_agents};
use tests::wait::{always, eventually};

/// 100 ms are promised; a machine that runs five agents, five tunnels and a test on two cores may take three
/// times as long without anything being wrong.
const START_LIMIT: Duration = Duration::from_millis(300);

/// Starts the agent and measures until its proxy accepts a connection.
fn start_to_listening(agent: &mut Agent<'_>) -> Result<Duration> {
    let began = Instant::now();
    agent.run()?;
    agent.node().inside(|| {
        while TcpStream::connect(LISTENER).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(10), "the proxy does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(began.elapsed())
    })
}

/// A random order for each run.
fn shuffled(count: usize) -> Result<Vec<usize>> {
    let mut seed = u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos());
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        order.swap(i, (seed >> 33) as usize % (i + 1));
    }
    println!("order: {order:?}");
    Ok(order)
}

#[test]
fn all_nodes_down_and_up_again_in_any_order_come_together() -> Result<()> {
    with_agents(Lab::wireguard(5), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n2", &["ready"], GOSSIP)?;
        }
        for i in shuffled(5)? {
            // Some crash, some stop cleanly.
            if i % 2 == 0 { agents[i].kill()? } else { agents[i].stop()? }
        }

        // One alone, with no other agent: it serves from the last known good list at once.
        let took = start_to_listening(&mut agents[4])?;
        println!("start to listening from state: {took:?}");
        ensure!(took < START_LIMIT, "listening only after {took:?}");
        let who = agents[4].who_serves()?;
        ensure!(["n0", "n1", "n2"].contains(&who.as_str()), "{who} serves");
        agents[4].wait_until_asked()?;
        let status = agents[4].status()?;
        ensure!(status.services[0].backends.len() == 3, "{:?}", status.services);
        agents[4].kill()?;

        for i in shuffled(5)? {
            agents[i].run()?;
            // Not all at once, so that the first finds nobody.
            std::thread::sleep(Duration::from_millis(300));
        }
        all_up(agents)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n0", &["ready"], GOSSIP)?;
            agent.who_serves()?;
        }
        Ok(())
    })
}

#[test]
fn a_stopped_node_has_not_left() -> Result<()> {
    with_agents(Lab::wireguard(3), |_, agents| {
        form(agents)?;
        agents[2].stop()?;
        eventually("the others see that it stopped", GOSSIP, || {
            let status = agents[0].status()?;
            let state = &status.member("n2")?.state;
            ensure!(state == "left" || state == "down", "it is {state}");
            Ok(())
        })?;
        ensure!(agents[0].status()?.cluster.members == 3, "a stop is no leave");
        agents[2].run()?;
        all_up(agents)?;

        // Leaving is permanent.
        agents[2].cli(&["leave"])?.ok()?;
        eventually("it is gone", GOSSIP, || {
            for agent in &agents[..2] {
                let status = agent.status()?;
                ensure!(status.cluster.members == 2, "{} members", status.cluster.members);
            }
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn a_garbled_state_file_is_set_aside_and_the_previous_one_used() -> Result<()> {
    with_agents(Lab::wireguard(3), |_, agents| {
        form(agents)?;
        // Every file that is written more than once has a previous copy.
        agents[0].cli(&["rotate"])?.ok()?;
        eventually("the key has changed on n2", GOSSIP, || {
            ensure!(agents[2].status()?.cluster.key_epoch == agents[0].status()?.cluster.key_epoch);
            Ok(())
        })?;
        let id = agents[2].status()?.node.id;
        agents[2].kill()?;
        let mut garbled = Vec::new();
        for entry in std::fs::read_dir(agents[2].state())? {
            let previous = entry?.path();
            let file = previous.with_extension("");
            if previous.extension().is_some_and(|end| end == "prev") && file.exists() {
                let bytes = std::fs::read(&file)?;
                std::fs::write(&file, &bytes[..bytes.len() / 2])?;
                garbled.push(file.file_name().context("a name")?.to_string_lossy().into_owned());
            }
        }
        ensure!(!garbled.is_empty(), "no file has a previous copy");
        println!("garbled: {garbled:?}");

        agents[2].run()?;
        agents[2].wait_until_asked()?;
        all_up(agents)?;
        let status = agents[2].status()?;
        ensure!(status.node.id == id, "it has another identity");
        for name in &garbled {
            ensure!(
                status
                    .problems
                    .iter()
                    .any(|problem| problem.code == "state-file" && problem.subject.contains(name)),
                "status does not tell of {name}: {:?}",
                status.problems
            );
        }
        let text = agents[2].cli(&["status"])?.ok()?;
        ensure!(text.contains(&garbled[0]), "nor does it for people:\n{text}");
        Ok(())
    })
}

#[test]
fn a_full_or_read_only_state_directory_does_not_stop_the_proxy() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        let _master = lab.nginx_master(0)?;
        let node = lab.node(1);
        let state = agents[1].state().to_string_lossy().into_owned();
        std::fs::create_dir(&state)?;
        node.exec(&["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", &state])?.ok()?;
        form(agents)?;
        agents[1].wait_for_backend("n0", &["ready"], GOSSIP)?;

        let fill = format!("dd if=/dev/zero of={state}/ballast bs=1k count=10000 2>&1; true");
        node.exec(&["sh", "-c", &fill])?.ok()?;
        agents[0].cli(&["rotate"])?.ok()?;
        eventually("status says that nothing can be saved", GOSSIP, || {
            let problems = agents[1].status()?.problems;
            ensure!(problems.iter().any(|problem| problem.code == "state-file"), "{problems:?}");
            Ok(())
        })?;
        always("the proxy serves with a full disk", Duration::from_secs(2), || {
            agents[1].who_serves().map(|_| ())
        })?;
        all_up(agents)?;

        agents[1].kill()?;
        node.exec(&["rm", &format!("{state}/ballast")])?.ok()?;
        node.exec(&["mount", "-o", "remount,ro", &state])?.ok()?;
        let took = start_to_listening(&mut agents[1])?;
        ensure!(took < START_LIMIT, "listening only after {took:?}");
        ensure!(agents[1].who_serves()? == "n0", "the proxy serves from a read-only directory");
        all_up(agents)?;
        let problems = agents[1].status()?.problems;
        ensure!(problems.iter().any(|problem| problem.code == "state-file"), "{problems:?}");
        Ok(())
    })
}
