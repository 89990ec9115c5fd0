//! Who is who: copied machines, machines that come back as another, addresses that change.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node};
use tests::mesh::{Agent, GOSSIP, Problem, Status, all_up, form, with_agents};
use tests::vip::ADDRESS;
use tests::wait::{always, eventually};

/// A copied machine: the state directory of one node on another.
fn copy_state(from: &Agent<'_>, to: &Agent<'_>) -> Result<()> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    to.node().exec(&["cp", "-a", &path(from.state()), &path(to.state())])?.ok()?;
    Ok(())
}

/// The problem of this code, as `agent status` has it.
fn problem(status: &Status, code: &str) -> Result<Problem> {
    let found = status.problems.iter().find(|problem| problem.code == code);
    let Problem { code, subject, detail, fix } =
        found.with_context(|| format!("no {code} among {:?}", status.problems))?;
    Ok(Problem { code: code.clone(), subject: subject.clone(), detail: detail.clone(), fix: fix.clone() })
}

/// What `agent doctor` finds, in one line.
fn doctor(agent: &Agent<'_>) -> Result<String> {
    Ok(agent.cli(&["doctor"])?.out.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Whether a node answers for an address.
fn has_address(node: &Node, address: IpAddr) -> Result<bool> {
    Ok(node.exec(&["ip", "-o", "address"])?.ok()?.contains(&format!(" {address}/")))
}

/// The owner of the virtual IP as an agent sees it.
fn owner(agent: &Agent<'_>) -> Result<String> {
    let status = agent.status()?;
    let vip = status.vips.first().context("no virtual IP")?;
    Ok(vip["owner"].as_str().with_context(|| format!("no owner: {vip}"))?.to_owned())
}

/// Each agent sees all of these as ready where they are.
fn all_ready(agents: &[Agent<'_>], masters: &[&Agent<'_>]) -> Result<()> {
    for agent in agents {
        let status = agent.status()?;
        for master in masters {
            let backend = status.backend(master.name())?;
            let there = format!("{}:6443", master.node().mesh_ip());
            ensure!(backend.state == "ready" && backend.address == there, "{}: {backend:?}", agent.name());
            let state = &status.member(master.name())?.state;
            ensure!(state == "up", "{} sees {} as {state}", agent.name(), master.name());
        }
    }
    Ok(())
}

#[test]
fn a_copied_machine_takes_nothing_from_its_original_and_is_named_everywhere() -> Result<()> {
    with_agents(Lab::bridge(4), |lab, agents| {
        let _masters = (0..4).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let (members, copies) = agents.split_at_mut(3);
        let copy = copies.first_mut().context("a fourth node")?;
        form(members)?;
        // A stop stores at once where the others are, which otherwise takes half a minute.
        for member in members.iter_mut() {
            member.stop()?;
            member.run()?;
            member.wait_until_asked()?;
        }
        all_up(members)?;
        members[0].cli(&["set", &format!("vip={ADDRESS}")])?.ok()?;
        let all = |members: &[Agent<'_>]| all_ready(members, &members.iter().collect::<Vec<_>>());
        eventually("all are ready", GOSSIP, || all(members))?;
        let (name, _) = eventually("the virtual IP has one owner", GOSSIP, || {
            let owners = members.iter().map(owner).collect::<Result<Vec<_>>>()?;
            ensure!(owners.iter().all(|one| *one == owners[0]), "{owners:?}");
            Ok(owners[0].clone())
        })?;
        let original = members.iter().find(|one| one.name() == name).context("a member")?;
        let (first, second) = (original.node().mesh_ip(), copy.node().mesh_ip());
        eventually("the original has stored where the others are", GOSSIP, || {
            let stored = std::fs::read_to_string(original.state().join("peers"))?;
            let ip = |one: &Agent<'_>| one.node().mesh_ip().to_string();
            ensure!(members.iter().all(|one| one.name() == name || stored.contains(&ip(one))), "{stored}");
            Ok(())
        })?;
        copy_state(original, copy)?;
        copy.run()?;
        copy.wait_until_asked()?;
        always("the original serves and owns", Duration::from_secs(10), || {
            all(members)?;
            ensure!(members.iter().map(owner).collect::<Result<Vec<_>>>()?.iter().all(|one| *one == name));
            ensure!(!has_address(copy.node(), ADDRESS.into())?, "the copy has the virtual IP");
            Ok(())
        })?;
        for member in members.iter() {
            let (said, _) =
                eventually("it is a problem", GOSSIP, || problem(&member.status()?, "identity-in-use"))?;
            ensure!(said.subject == name && said.fix.contains("agent leave --force"), "{said:?}");
            ensure!(said.detail.contains(&second.to_string()), "{said:?}");
            ensure!(member.name() == name || said.detail.contains(&first.to_string()), "{said:?}");
            let found = doctor(member)?;
            ensure!(found.contains(&said.detail), "{found}");
            let events = member.cli(&["events"])?.ok()?;
            ensure!(events.contains(&format!("identity-in-use/{name}")), "{events}");
        }
        let said = problem(&copy.status()?, "identity-in-use")?;
        ensure!(
            said.detail.contains(&first.to_string()) && said.detail.contains("takes no part"),
            "{said:?}"
        );

        // What is run on the copy does not remove the original.
        let refused = copy.cli(&["leave"])?;
        ensure!(refused.code != Some(0) && refused.err.contains(&first.to_string()), "{refused:?}");
        copy.stop()?;
        always("the original serves after the copy has stopped", Duration::from_secs(3), || all(members))?;
        ensure!(members[0].status()?.cluster.members == 3);

        // Once the original is gone, the copy is the one.
        copy.run()?;
        copy.wait_until_asked()?;
        let at = members.iter().position(|one| one.name() == name).context("a member")?;
        members[at].kill()?;
        let rest: Vec<usize> = (0..members.len()).filter(|i| *i != at).collect();
        eventually("the copy goes on", GOSSIP, || {
            for i in &rest {
                let status = members[*i].status()?;
                let backend = status.backend(&name)?;
                ensure!(
                    backend.state == "ready" && backend.address.starts_with(&second.to_string()),
                    "{backend:?}"
                );
            }
            let said = problem(&copy.status()?, "identity-in-use");
            ensure!(!said.is_ok_and(|said| said.detail.contains("takes no part")), "it still stands aside");
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn a_machine_that_comes_back_with_another_address_is_back_at_once() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        let all: Vec<&Agent<'_>> = agents.iter().collect();
        eventually("all are ready", GOSSIP, || all_ready(agents, &all))?;
        // At once: the others have heard it where it was a moment ago.
        agents[2].kill()?;
        agents[2].node().change_address("10.91.0.77".parse()?, lab.nodes())?;
        drop(masters);
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        agents[2].run()?;
        let all: Vec<&Agent<'_>> = agents.iter().collect();
        eventually("it is back", GOSSIP, || all_ready(&agents[..2], &all[2..]))?;
        println!("ready on the others {:?} after its start", began.elapsed());
        for agent in &agents[..2] {
            let said = problem(&agent.status()?, "identity-in-use");
            ensure!(said.is_err(), "{said:?}");
        }
        all_up(agents)
    })
}

#[test]
fn a_machine_whose_clock_was_ahead_at_its_last_boot_is_back_at_once() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        let all: Vec<&Agent<'_>> = agents.iter().collect();
        eventually("all are ready", GOSSIP, || all_ready(agents, &all))?;
        let file = agents[2].state().join("generation");
        agents[2].kill()?;
        let right = std::fs::read_to_string(&file)?;
        let (_, body) = right.split_once('\n').context("a line with the hash")?;
        let value = body.rsplit(':').next().unwrap_or_default();
        let digits: String = value.chars().filter(char::is_ascii_digit).collect();
        let body = body.replace(&digits, &(digits.parse::<u64>()? + 3_600).to_string());
        let hash = ring::digest::digest(&ring::digest::SHA256, body.as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        // It starts with a clock that is an hour ahead, and says goodbye; then the clock is right, and its disk is
        // of before, or new.
        std::fs::write(&file, format!("agent-state 1 {hash}\n{body}"))?;
        agents[2].run()?;
        // So long that gossip has brought its new record.
        stays_up(agents, "n2")?;
        agents[2].stop()?;
        eventually("the others know that it stopped", GOSSIP, || {
            for agent in &agents[..2] {
                let state = agent.status()?.member("n2")?.state.clone();
                ensure!(state != "up", "{state}");
            }
            Ok(())
        })?;
        std::fs::write(&file, &right)?;
        let began = Instant::now();
        agents[2].run()?;
        all_up(agents)?;
        println!("up everywhere {:?} after its start", began.elapsed());
        // And stays it: what it said an hour ahead is overtaken.
        stays_up(agents, "n2")?;
        eventually("it has raised its number", GOSSIP, || {
            let log = agents[2].log()?;
            ensure!(log.contains("gossip restarts with a higher generation"), "it has not");
            Ok(())
        })?;
        all_up(agents)
    })
}

/// All see all up, and two others see this one up for three seconds.
fn stays_up(agents: &[Agent<'_>], name: &str) -> Result<()> {
    all_up(agents)?;
    always("it is up", Duration::from_secs(3), || {
        for agent in &agents[..2] {
            let state = agent.status()?.member(name)?.state.clone();
            ensure!(state == "up", "{state}");
        }
        Ok(())
    })
}

#[test]
fn a_candidate_whose_power_was_cut_is_not_eligible_and_gets_nothing() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        form(agents)?;
        // n2 is a master that only looks on.
        let candidates = format!("vip.{ADDRESS}.candidates=n0,n1");
        agents[0].cli(&["set", &format!("vip={ADDRESS}"), &candidates])?.ok()?;
        let candidate = |name: &str| {
            let status = agents[2].status()?;
            let all = status.vips.first().and_then(|vip| vip["candidates"].as_array().cloned());
            let all = all.context("no candidates")?;
            all.into_iter().find(|one| one["node"] == name).with_context(|| format!("{name} is none"))
        };
        let (owner, _) = eventually("there is an owner, and both are eligible", GOSSIP, || {
            for name in ["n0", "n1"] {
                let one = candidate(name)?;
                ensure!(one["eligible"] == true, "{one}");
            }
            owner(&agents[2])
        })?;
        let other = if owner == "n0" { 1 } else { 0 };
        lab.node(other).power_cut()?;
        let name = lab.node(other).name.as_str();
        // Gossip notices after nine seconds.
        eventually("it is not eligible", Duration::from_secs(4), || {
            let one = candidate(name)?;
            ensure!(one["eligible"] == false && one["cause"] == "not-heard", "{one}");
            Ok(())
        })?;
        let shown = agents[2].cli(&["status"])?.out;
        ensure!(shown.contains("ineligible"), "{shown}");
        let refused = agents[2].cli(&["vip", "move", &ADDRESS.to_string(), name])?;
        ensure!(refused.code != Some(0) && refused.err.contains("no answer from it"), "{refused:?}");

        // The same for one that was not heard since the start of this agent.
        agents[2].stop()?;
        agents[2].run()?;
        agents[2].wait_until_asked()?;
        let agents = &*agents;
        always("it is not eligible from the start", Duration::from_secs(3), || {
            let status = agents[2].status()?;
            for one in
                status.vips.iter().flat_map(|vip| vip["candidates"].as_array().cloned().unwrap_or_default())
            {
                ensure!(one["node"] != name || one["eligible"] == false, "{one}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_machine_that_was_set_up_anew_is_one_backend() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let invite = form(agents)?;
        let all: Vec<&Agent<'_>> = agents.iter().collect();
        eventually("all are ready", GOSSIP, || all_ready(agents, &all))?;
        agents[2].kill()?;
        std::fs::remove_dir_all(agents[2].state())?;
        agents[2].options = vec!["--name".to_owned(), "fresh".to_owned()];
        agents[2].join(&invite)?;
        let backends = |agent: &Agent<'_>| -> Result<Vec<(String, String)>> {
            let status = agent.status()?;
            let all = status.services.first().context("no service")?.backends.iter();
            Ok(all.map(|one| (one.node.clone(), one.state.clone())).collect())
        };
        let wanted = ["fresh", "n0", "n1"].map(|name| (name.to_owned(), "ready".to_owned()));
        for agent in agents.iter() {
            eventually("the machine is one backend", GOSSIP, || {
                let mut found = backends(agent)?;
                found.sort();
                ensure!(found == wanted, "{}: {found:?}", agent.name());
                Ok(())
            })?;
        }
        // The machine itself has never heard of who it was.
        for agent in &agents[..2] {
            let said = problem(&agent.status()?, "address-taken")?;
            ensure!(said.subject == "n2/kube-api" && said.fix.contains("agent remove n2"), "{said:?}");
        }
        ensure!(doctor(&agents[0])?.contains("agent remove n2"));
        agents[0].cli(&["remove", "n2"])?.ok()?;
        eventually("nothing is wrong any more", GOSSIP, || {
            for agent in agents.iter() {
                ensure!(
                    problem(&agent.status()?, "address-taken").is_err(),
                    "{} still names it",
                    agent.name()
                );
            }
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn a_stranger_that_has_the_virtual_ip_is_named() -> Result<()> {
    with_agents(Lab::bridge(4), |lab, agents| {
        let _masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let members = &mut agents[..3];
        form(members)?;
        let stranger = lab.node(3);
        let address = format!("{ADDRESS}/32");
        stranger.exec(&["ip", "address", "add", &address, "dev", "eth0"])?.ok()?;
        members[0].cli(&["set", &format!("vip={ADDRESS}")])?.ok()?;
        for member in members.iter() {
            let (said, _) = eventually("the stranger is a problem", GOSSIP, || {
                let status = member.status()?;
                let vip = status.vips.first().context("no virtual IP")?;
                ensure!(vip["cause"] == "stranger" && vip["owner"].is_null(), "{vip}");
                for one in vip["candidates"].as_array().context("no candidates")? {
                    ensure!(one["eligible"] == false && one["cause"] == "stranger", "{vip}");
                }
                problem(&status, "vip-stranger")
            })?;
            ensure!(said.subject == ADDRESS.to_string(), "{said:?}");
            let found = doctor(member)?;
            ensure!(found.contains(&said.detail), "{found}");
            eventually("it is an event", GOSSIP, || {
                let events = member.cli(&["events"])?.ok()?;
                ensure!(events.contains("vip-stranger"), "{events}");
                Ok(())
            })?;
        }
        stranger.exec(&["ip", "address", "del", &address, "dev", "eth0"])?.ok()?;
        eventually("without it there is an owner, and no problem", GOSSIP, || {
            for member in members.iter() {
                owner(member)?;
                ensure!(problem(&member.status()?, "vip-stranger").is_err());
            }
            Ok(())
        })?;
        Ok(())
    })
}

/// Has a node find a name at an address, by a hosts file of its own.
fn name_is_at(node: &Node, address: IpAddr) -> Result<()> {
    let hosts = node.dir().join("hosts");
    std::fs::write(&hosts, format!("127.0.0.1 localhost\n{address} seed.example\n"))?;
    // A second mount would cover the first, which shows the same file.
    node.exec(&["mount", "--bind", &hosts.to_string_lossy(), "/etc/hosts"])?.ok()?;
    Ok(())
}

#[test]
fn a_cluster_whose_addresses_have_all_changed_is_found_by_name() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let (first, others) = agents.split_first_mut().context("agents")?;
        first.init()?;
        let said = first.cli(&["open", "--for", "1m"])?.ok()?;
        let key = said.split_once("--key ").and_then(|(_, rest)| rest.split_whitespace().next());
        let key = key.context("no key is printed")?;
        for other in others.iter_mut() {
            name_is_at(other.node(), first.node().mesh_ip())?;
            other.options = vec!["--key".to_owned(), key.to_owned()];
            other.join("seed.example")?;
            other.options.clear();
        }
        all_up(agents)?;
        // All machines move to other addresses while they are off, and DNS follows.
        for agent in agents.iter_mut() {
            agent.stop()?;
        }
        for (i, agent) in agents.iter().enumerate() {
            agent.node().change_address(format!("10.91.0.{}", 101 + i).parse()?, lab.nodes())?;
        }
        for agent in agents.iter_mut() {
            if agent.name() != "n0" {
                name_is_at(agent.node(), "10.91.0.101".parse()?)?;
            }
            agent.run()?;
            agent.wait_until_asked()?;
        }
        all_up(agents)?;
        // The same while they run, with a name that has not followed: a person names the seed.
        for (i, agent) in agents.iter().enumerate() {
            agent.node().change_address(format!("10.91.0.{}", 201 + i).parse()?, lab.nodes())?;
        }
        for other in &agents[1..] {
            let said = other.cli(&["join", "10.91.0.201"])?.ok()?;
            ensure!(said.contains("n0 answers at 10.91.0.201:7646"), "{said}");
        }
        all_up(agents)
    })
}
