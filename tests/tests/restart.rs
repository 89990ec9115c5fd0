//! Every node comes back from its state directory alone.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use proto::control::{Request, Response};
use tests::hold::{Held, Kind, PROXY, Watch, echo_once, hold_all, serve_echo, wait_for_more};
use tests::lab::Lab;
use tests::mesh::{Agent, GOSSIP, LISTENER, all_up, binary, form, with_agents};
use tests::vip::ADDRESS;
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
            ensure!(problems.iter().any(|problem| problem.code == "state-not-saved"), "{problems:?}");
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
        let not_saved = || -> Result<bool> {
            let problems = agents[1].status()?.problems;
            Ok(problems.iter().any(|problem| problem.code == "state-not-saved"))
        };
        ensure!(not_saved()?, "nothing is said of it");
        node.exec(&["mount", "-o", "remount,rw", &state])?.ok()?;
        eventually("it is saved without a restart", GOSSIP, || {
            ensure!(!not_saved()?);
            Ok(())
        })?;
        Ok(())
    })
}

/// A cluster with a service that echoes, on all nodes but the last; the last agent runs from a file of its own, so
/// that it can be replaced.
fn with_echo(lab: &Lab, agents: &mut [Agent<'_>], over: &Arc<AtomicBool>) -> Result<std::path::PathBuf> {
    let last = agents.len() - 1;
    let program = lab.node(last).dir().join("agent");
    std::fs::copy(binary()?, &program)?;
    agents[last].binary.clone_from(&program);
    form(agents)?;
    serve_echo(lab, over, |set| agents[0].cli(set)?.ok(), || agents[last].status())?;
    Ok(program)
}

/// What the others have told since `before`, each as a line.
fn events(agent: &Agent<'_>) -> Result<Vec<String>> {
    Ok(agent.cli(&["events", "--json", "--since", "1d"])?.ok()?.lines().map(str::to_owned).collect())
}

#[test]
fn an_upgrade_loses_no_connection_and_no_byte() -> Result<()> {
    with_agents(Lab::wireguard(3), |lab, agents| {
        let watch = Arc::new(Watch::default());
        let program = with_echo(lab, agents, &watch.over)?;
        let counts = [
            (Kind::Silent, 20),
            (Kind::Active, 20),
            (Kind::Bulk, 2),
            (Kind::HalfClosed, 4),
            (Kind::Stuck, 4),
        ];
        let held = hold_all(lab, &counts, &watch)?;
        wait_for_more(&watch)?;
        let before = agents[2].status()?;
        let told = events(&agents[0])?.len();
        let (opened, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            // New ones, one after the other: none is refused.
            let (ended, opened, lab) = (&ended, &opened, &lab);
            let new = scope.spawn(move || {
                lab.node(2).inside(|| {
                    while !ended.load(Relaxed) {
                        echo_once(PROXY.into()).with_context(|| format!("a new one after {opened:?}"))?;
                        opened.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            });
            let outcome = (0..3).try_for_each(|turn| {
                let said = agents[2].cli(&["upgrade", &next(&program, turn)?])?.ok()?;
                println!("{}", said.trim());
                wait_for_more(&watch)
            });
            ended.store(true, Relaxed);
            outcome.and(new.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
        })?;
        let after = agents[2].status()?;
        ensure!(after.node.started_unix_ms == before.node.started_unix_ms, "it has started anew");
        ensure!(agents[2].is_running(), "it is another process");
        watch.over.store(true, Relaxed);
        let bytes = held.into_iter().map(Held::end).sum::<Result<u64>>()?;
        println!(
            "{bytes} bytes came back; of {} messages the slowest took {} ms; {} new connections",
            watch.messages.load(Relaxed),
            watch.longest_us.load(Relaxed) / 1000,
            opened.load(Relaxed)
        );
        // Nobody else has noticed.
        let noticed: Vec<String> =
            events(&agents[0])?.into_iter().skip(told).filter(|line| line.contains("n2")).collect();
        ensure!(noticed.is_empty(), "{noticed:?}");
        all_up(agents)?;
        let echo = after.services.iter().find(|one| one.name == "echo").context("no echo")?;
        let total: u64 = echo.backends.iter().map(|one| one.total).sum();
        ensure!(total >= 50 + opened.load(Relaxed) / 2, "counters began anew: {total}");
        Ok(())
    })
}

/// A copy of the program, as a new version would lie somewhere; the last turn has the version before.
fn next(program: &Path, turn: u32) -> Result<String> {
    let named = |end: &str| format!("{}{end}", program.display());
    if turn == 2 {
        return Ok(named(".previous"));
    }
    let file = named(&format!(".new{turn}"));
    std::fs::copy(program, &file)?;
    Ok(file)
}

#[test]
fn what_can_not_replace_the_agent_is_refused_and_everything_goes_on() -> Result<()> {
    with_agents(Lab::wireguard(2), |lab, agents| {
        let watch = Arc::new(Watch::default());
        let program = with_echo(lab, agents, &watch.over)?;
        let held = hold_all(lab, &[(Kind::Silent, 2), (Kind::Active, 4), (Kind::Bulk, 1)], &watch)?;
        wait_for_more(&watch)?;
        let content = std::fs::read(&program)?;
        let wrong = lab.node(1).dir().join("wrong");
        for (what, text) in [("no program", "not a program"), ("another program", "#!/bin/sh\nexit 64\n")] {
            std::fs::write(&wrong, text)?;
            let said =
                agents[1].cli_of(&binary()?, &["upgrade", &wrong.to_string_lossy()])?.fails_with(65)?;
            ensure!(said.contains("nothing was changed"), "{what}: {said}");
            ensure!(std::fs::read(&program)? == content, "{what}: it was installed");
        }
        // It is asked by hand, with nothing in its place that could be started.
        let aside = program.with_extension("aside");
        std::fs::rename(&program, &aside)?;
        std::fs::write(&program, "not a program")?;
        let answer = agents[1].ask(&Request::Replace)?;
        ensure!(matches!(&answer, Response::Refused(why) if why.reason.contains("goes on")), "{answer:?}");
        std::fs::rename(&aside, &program)?;
        wait_for_more(&watch)?;
        echo_once_in(lab)?;
        // And then it can be.
        agents[1].cli(&["upgrade"])?.ok()?;
        wait_for_more(&watch)?;
        watch.over.store(true, Relaxed);
        held.into_iter().map(Held::end).sum::<Result<u64>>()?;
        Ok(())
    })
}

fn echo_once_in(lab: &Lab) -> Result<()> {
    lab.node(lab.size() - 1).inside(|| echo_once(PROXY.into()))
}

#[test]
fn an_upgrade_of_its_owner_does_not_move_a_virtual_ip() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for (i, agent) in agents.iter_mut().enumerate() {
            agent.binary = lab.node(i).dir().join("agent");
            std::fs::copy(binary()?, &agent.binary)?;
        }
        form(agents)?;
        agents[0].cli(&["set", &format!("vip={ADDRESS}")])?.ok()?;
        let (before, _) = eventually("all agree on its owner", GOSSIP, || {
            let all = agents.iter().map(|one| one.status()?.owner_of_vip()).collect::<Result<Vec<_>>>()?;
            ensure!(all.iter().all(|one| *one == all[0]), "{all:?}");
            Ok(all[0].clone())
        })?;
        let owner = agents.iter().position(|agent| agent.name() == before.0).context("a stranger owns it")?;
        let told: Vec<usize> =
            agents.iter().map(|agent| Ok(events(agent)?.len())).collect::<Result<Vec<_>>>()?;
        println!("{}", agents[owner].cli(&["upgrade"])?.ok()?.trim());
        // Longer than the new process owns it without having proven that it may.
        always("it stays where it is", Duration::from_secs(8), || {
            for agent in agents.iter() {
                let now = agent.status()?.owner_of_vip()?;
                ensure!(now == before, "{} says {now:?}, and it was {before:?}", agent.name());
            }
            let has = lab.node(owner).exec(&["ip", "addr"])?.ok()?;
            ensure!(has.contains(&ADDRESS.to_string()), "the address is gone: {has}");
            Ok(())
        })?;
        for (agent, told) in agents.iter().zip(told).filter(|(agent, _)| agent.name() != before.0) {
            let moves: Vec<String> =
                events(agent)?.into_iter().skip(told).filter(|line| line.contains("\"vip-")).collect();
            ensure!(moves.is_empty(), "{}: {moves:?}", agent.name());
        }
        Ok(())
    })
}
