//! Dedicated balancers: nodes that are no masters and listen for all others. A service is described once, by
//! settings; who offers it needs no file, and who listens need not offer it.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Master, Signal};
use tests::mesh::{Agent, GOSSIP, SOON, form_with, with_agents};
use tests::vip::vip;
use tests::wait::eventually;

/// Masters: the first nodes.
const MASTERS: usize = 3;

/// Balancers: the next ones.
const BALANCERS: [usize; 2] = [3, 4];

/// A machine outside of the cluster.
const CLIENT: usize = 5;

/// Three masters with an apiserver each, two balancers, which joined as workers, and a client without an agent.
fn with_balancers(test: impl FnOnce(&Lab, &mut [Agent<'_>], &mut [Master]) -> Result<()>) -> Result<()> {
    with_agents(Lab::bridge(CLIENT + 1), |lab, agents| {
        let mut masters = (0..MASTERS).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        for node in lab.nodes() {
            let own = format!("fd91::{}/64", node.index + 1);
            node.exec(&["ip", "address", "add", &own, "dev", node.interface, "nodad"])?.ok()?;
        }
        let (agents, _) = agents.split_at_mut(CLIENT);
        for agent in agents.iter_mut() {
            let config = agent.node().dir().join("agent.toml");
            std::fs::write(&config, "")?;
            let config = config.to_string_lossy().into_owned();
            let interface = agent.node().interface.to_owned();
            agent.options = vec!["--iface".to_owned(), interface, "--config".to_owned(), config];
        }
        form_with(agents, MASTERS)?;
        test(lab, agents, &mut masters)
    })
}

fn set(agent: &Agent<'_>, settings: &[&str]) -> Result<()> {
    agent.cli(&[&["set"], settings].concat())?.ok().map(drop)
}

/// Who answers at a place, as the client sees it.
fn who(lab: &Lab, at: &str) -> Result<String> {
    let url = format!("https://{at}/who");
    let said = lab.node(CLIENT).exec(&["curl", "-sSk", "-m", "5", &url])?.ok()?;
    Ok(said.trim().to_owned())
}

/// The nodes that offer a service, and where this node listens for it, as it sees it.
fn service(agent: &Agent<'_>, name: &str) -> Result<(Vec<String>, Vec<String>)> {
    let status = agent.status()?;
    let service = status.services.iter().find(|one| one.name == name).context("no such service")?;
    let mut backends: Vec<String> = service.backends.iter().map(|one| one.node.clone()).collect();
    backends.sort_unstable();
    Ok((backends, service.listen.iter().map(|one| one.address.clone()).collect()))
}

#[test]
fn masters_offer_and_balancers_listen_as_one_setting_says() -> Result<()> {
    with_balancers(|lab, agents, _| {
        // The port of the apiservers themselves: a master that listened there would not find its own instance.
        set(
            &agents[0],
            &[
                "service.join.port=6443",
                "service.join.check=tcp",
                "service.join.offer=masters",
                "service.join.listen=0.0.0.0:6443,[::]:6443",
                "service.join.listen-on=n3,n4",
            ],
        )?;
        for (i, agent) in agents.iter().enumerate() {
            eventually(&format!("n{i} knows who offers and listens"), GOSSIP, || {
                let (backends, listens) = service(agent, "join")?;
                ensure!(backends == ["n0", "n1", "n2"], "{backends:?} offer it");
                let expected: &[&str] =
                    if BALANCERS.contains(&i) { &["0.0.0.0:6443", "[::]:6443"] } else { &[] };
                ensure!(listens == expected, "n{i} listens on {listens:?}");
                Ok(())
            })?;
        }
        for i in BALANCERS {
            for at in [format!("10.91.0.{}:6443", i + 1), format!("[fd91::{}]:6443", i + 1)] {
                let name = who(lab, &at)?;
                ensure!(["n0", "n1", "n2"].contains(&name.as_str()), "{name} answers at {at}");
            }
        }
        for agent in agents.iter() {
            agent.cli(&["status", "--exit-code"])?.ok()?;
        }
        // They listen for kube-api too, and the masters' own clients keep their listener.
        set(&agents[0], &["service.join.listen-on=n4", "service.kube-api.listen=0.0.0.0:6443"])
            .map_err(|_| ())
            .err()
            .context("both would listen there on n4")?;
        agents[0].cli(&["unset", "service.join"])?.ok()?;
        set(&agents[0], &["service.kube-api.listen=0.0.0.0:6443", "service.kube-api.listen-on=workers"])?;
        for (i, agent) in agents.iter().enumerate() {
            let expected = if BALANCERS.contains(&i) { "0.0.0.0:6443" } else { "127.0.0.1:16443" };
            eventually(&format!("n{i} listens on {expected}"), GOSSIP, || {
                let (_, listens) = service(agent, "kube-api")?;
                ensure!(listens == [expected], "n{i} listens on {listens:?}");
                Ok(())
            })?;
        }
        eventually("the balancers serve the API", GOSSIP, || who(lab, "10.91.0.4:6443").map(drop))?;
        agents[0].who_serves().map(drop)
    })
}

/// The problem of a service that nobody offers.
fn not_offered(agent: &Agent<'_>, name: &str) -> Result<Option<String>> {
    let problems = agent.status()?.problems;
    let found = problems.into_iter().find(|one| one.code == "not-offered" && one.subject == name);
    Ok(found.map(|one| one.fix))
}

#[test]
fn a_service_that_nobody_offers_is_named_with_the_command_that_mends_it() -> Result<()> {
    with_balancers(|lab, agents, _| {
        // It runs on a worker, and the settings want masters.
        let at = SocketAddr::new(lab.node(3).mesh_ip(), 7777);
        let running = lab.node(3).inside(|| Ok(TcpListener::bind(at)?))?;
        set(
            &agents[0],
            &[
                "service.ingress.port=7777",
                "service.ingress.offer=masters",
                "service.ingress.listen=0.0.0.0:7778",
                "service.ingress.listen-on=n4",
            ],
        )?;
        let command = "agent set service.ingress.offer=workers";
        for agent in [&agents[1], &agents[4]] {
            eventually(&format!("{} names it", agent.name()), GOSSIP, || {
                let fix = not_offered(agent, "ingress")?.context("it does not")?;
                ensure!(fix.ends_with(command), "{fix}");
                Ok(())
            })?;
            let ran = agent.cli(&["status", "--exit-code"])?;
            ensure!(ran.code == Some(10) && ran.out.contains("no node offers ingress"), "{ran}");
            let flat = ran.out.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(flat.contains(command), "{ran}");
        }
        let doctor = agents[4].cli(&["doctor"])?;
        let flat = doctor.out.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(flat.contains(command) && flat.contains("no node offers ingress"), "{doctor}");
        // Nobody says that a worker wants to: it was asked not to.
        ensure!(
            agents[1].status()?.problems.iter().all(|one| one.code == "not-offered"),
            "{:?}",
            agents[1].status()?
        );

        set(&agents[0], &["service.ingress.offer=workers"])?;
        eventually("it is offered", GOSSIP, || {
            let (backends, _) = service(&agents[4], "ingress")?;
            ensure!(backends == ["n3"] && not_offered(&agents[4], "ingress")?.is_none(), "{backends:?}");
            Ok(())
        })?;
        agents[4].cli(&["status", "--exit-code"])?.ok()?;
        drop(running);
        Ok(())
    })
}

/// The address of the balancers.
const VIP: &str = "10.91.0.250";

/// The same for IPv6.
const VIP6: &str = "fd91::250";

/// Waits until an address has an owner, and clients reach a master by it.
fn owned(lab: &Lab, agent: &Agent<'_>, address: &str) -> Result<String> {
    let at = if address.contains(':') { format!("[{address}]:6443") } else { format!("{address}:6443") };
    let (owner, _) = eventually(&format!("{address} has an owner and serves"), GOSSIP, || {
        let seen = vip(agent, address)?;
        let owner = seen.owner.clone().with_context(|| format!("{seen:?}"))?;
        let name = who(lab, &at)?;
        ensure!(["n0", "n1", "n2"].contains(&name.as_str()), "{name} answers at {at}");
        Ok(owner)
    })?;
    Ok(owner)
}

/// Waits until an address has no owner for this cause, which `agent status` tells.
fn nobody(agents: &[Agent<'_>], address: &str, cause: &str, words: &str) -> Result<()> {
    for agent in agents {
        eventually(&format!("{} says why nobody owns {address}", agent.name()), GOSSIP, || {
            let seen = vip(agent, address)?;
            ensure!(seen.state == "unavailable" && seen.cause.as_deref() == Some(cause), "{seen:?}");
            ensure!(seen.reason.contains(words), "{seen:?} lacks {words}");
            let ran = agent.cli(&["status", "--exit-code"])?;
            ensure!([Some(10), Some(11)].contains(&ran.code), "{ran}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_balancer_owns_a_vip_only_while_it_listens_there_and_a_master_serves() -> Result<()> {
    with_balancers(|lab, agents, masters| {
        let vip_setting = format!("vip={VIP},{VIP6}");
        let candidates = [VIP, VIP6].map(|address| format!("vip.{address}.candidates=n3,n4"));
        set(&agents[0], &[&vip_setting, &candidates[0], &candidates[1]])?;
        // They have no apiserver and listen on loopback alone: clients would be refused.
        for address in [VIP, VIP6] {
            nobody(agents, address, "not-served", "its proxy does not listen for other nodes")?;
        }
        set(&agents[0], &["service.kube-api.listen=0.0.0.0:6443", "service.kube-api.listen-on=n3,n4"])?;
        let owner = owned(lab, &agents[0], VIP)?;
        ensure!(owner == "n3" || owner == "n4", "{owner} owns it");
        nobody(agents, VIP6, "not-listening", "listens on 0.0.0.0:6443, not on [::]:6443")?;
        set(&agents[0], &["service.kube-api.listen=0.0.0.0:6443,[::]:6443"])?;
        owned(lab, &agents[0], VIP6)?;
        for agent in agents.iter() {
            eventually(&format!("{} is content", agent.name()), GOSSIP, || {
                agent.cli(&["status", "--exit-code"])?.ok()
            })?;
        }

        // The owner no longer listens: the other one, which does, takes it over.
        let other = if owner == "n3" { "n4" } else { "n3" };
        set(&agents[0], &[&format!("service.kube-api.listen-on={other}")])?;
        for address in [VIP, VIP6] {
            eventually(&format!("{other} owns {address}"), GOSSIP, || {
                let is = owned(lab, &agents[0], address)?;
                ensure!(is == other, "{is} owns it");
                Ok(())
            })?;
        }
        let seen = vip(&agents[0], VIP)?;
        let left = seen.candidates.iter().find(|one| one.node == owner).context("it is not listed")?;
        ensure!(!left.eligible && left.cause.as_deref() == Some("not-served"), "{seen:?}");

        set(&agents[0], &["service.kube-api.listen-on=n3,n4"])?;
        eventually("both can own it again", GOSSIP, || {
            let seen = vip(&agents[0], VIP)?;
            ensure!(seen.candidates.iter().all(|one| one.eligible), "{seen:?}");
            Ok(())
        })?;

        // No master serves: whoever connects is refused, and the address says so by its absence.
        for master in masters.iter_mut() {
            master.kill()?;
        }
        nobody(agents, VIP, "no-backend", "no kube-api serves")?;
        for (master, node) in masters.iter_mut().zip(lab.nodes()) {
            master.start_again(node)?;
        }
        owned(lab, &agents[0], VIP)?;
        Ok(())
    })
}

/// Gives the balancers a file of their own; they have it from their next reload on.
fn reload(agents: &mut [Agent<'_>], file: impl Fn(usize) -> String) -> Result<()> {
    for i in BALANCERS {
        let path = agents[i].node().dir().join("agent.toml");
        std::fs::write(&path, file(i))?;
        agents[i].process()?.signal(Signal::HUP)?;
    }
    Ok(())
}

/// What `curl` gets from a balancer's health: the status code and the body.
fn health(lab: &Lab, path: &str, more: &[&str]) -> Result<(String, String)> {
    let url = format!("http://10.91.0.4:8404{path}");
    let form = ["-sS", "-m", "5", "-w", "\n%{http_code}", &url];
    let said = lab.node(CLIENT).exec(&[&["curl"], more, &form[..]].concat())?.ok()?;
    let (body, code) = said.rsplit_once('\n').context("no code")?;
    Ok((code.to_owned(), body.trim().to_owned()))
}

#[test]
fn load_balancers_ask_without_credentials_and_learn_nothing_else() -> Result<()> {
    with_balancers(|lab, agents, masters| {
        set(&agents[0], &["service.kube-api.listen=0.0.0.0:6443", "service.kube-api.listen-on=workers"])?;
        reload(agents, |_| "[health]\nlisten = [\"0.0.0.0:8404\", \"[::]:8404\"]\n".to_owned())?;
        let is = |path: &str, wanted: &str| {
            eventually(&format!("{path} is {wanted}"), GOSSIP, || {
                let (code, body) = health(lab, path, &[])?;
                ensure!(code == wanted, "it is {code}");
                ensure!(body == if code == "200" { "ok" } else { "unavailable" }, "it says {body:?}");
                Ok(())
            })
        };
        for path in ["/", "/healthz", "/kube-api"] {
            is(path, "200")?;
        }
        is("/ingress", "503")?;
        is("/api/v1/status", "503")?;
        let by_v6 = ["curl", "-sSg", "-m", "5", "http://[fd91::4]:8404/kube-api"];
        ensure!(lab.node(CLIENT).exec(&by_v6)?.ok()? == "ok\n");
        let (code, said) = health(lab, "/", &["-X", "POST"])?;
        ensure!((code.as_str(), said.as_str()) == ("405", "read-only"), "{code} {said}");
        let (code, said) = health(lab, "/kube-api", &["-I"])?;
        ensure!(code == "200" && !said.to_lowercase().contains("server:"), "{code} {said}");

        // A drained balancer is to get no new clients, whatever it could serve.
        agents[0].cli(&["drain", "n3"])?.ok()?;
        is("/kube-api", "503")?;
        is("/", "503")?;
        agents[0].cli(&["undrain", "n3"])?.ok()?;
        is("/kube-api", "200")?;
        for master in masters.iter_mut() {
            master.kill()?;
        }
        is("/kube-api", "503")?;
        is("/", "200")?;
        reload(agents, |_| String::new())?;
        eventually("it is closed", SOON, || {
            ensure!(health(lab, "/", &[]).is_err());
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn a_node_whose_own_program_is_against_it_owns_no_vip() -> Result<()> {
    with_balancers(|lab, agents, _| {
        // Not below /tmp, where it would not be trusted.
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let flag = |i: usize, what: &str| programs.path().join(format!("n{i}-{what}"));
        for i in BALANCERS {
            let program = programs.path().join(format!("n{i}"));
            let text = format!(
                "#!/bin/sh\n[ ! -e {} ] || {{ echo waiting for $VIP; sleep 314; }}\n\
                 [ ! -e {} ] || {{ echo the uplink of $VIP is down; exit 7; }}\n",
                flag(i, "hang").display(),
                flag(i, "down").display()
            );
            std::fs::write(&program, text)?;
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        }
        let check = |i: usize| {
            let program = programs.path().join(format!("n{i}"));
            format!("[vip.\"{VIP}\"]\ncheck = \"{}\"\n", program.display())
        };
        reload(agents, check)?;
        // No setting can name a program.
        let vip_check = format!("vip.{VIP}.check=/bin/true");
        let said = agents[0].cli(&["set", &format!("vip={VIP}"), &vip_check])?.fails_with(65)?;
        ensure!(said.contains("agent.toml"), "{said}");
        let candidates = format!("vip.{VIP}.candidates=n3,n4");
        set(&agents[0], &[&format!("vip={VIP}"), &candidates])?;
        set(&agents[0], &["service.kube-api.listen=0.0.0.0:6443", "service.kube-api.listen-on=n3,n4"])?;
        let owner = owned(lab, &agents[0], VIP)?;
        let (here, there) = if owner == "n3" { (3, 4) } else { (4, 3) };

        let is_at = |i: usize| {
            eventually(&format!("n{i} owns it"), GOSSIP, || {
                let is = owned(lab, &agents[0], VIP)?;
                ensure!(is == format!("n{i}"), "{is} owns it");
                Ok(())
            })
        };
        let says = |i: usize, words: &str| {
            eventually(&format!("n{i} says why it is none"), SOON, || {
                let seen = vip(&agents[0], VIP)?;
                let one = seen.candidates.iter().find(|one| one.node == format!("n{i}"));
                let one = one.context("it is not listed")?;
                ensure!(!one.eligible && one.cause.as_deref() == Some("vetoed"), "{one:?}");
                ensure!(one.reason.contains(words), "{one:?} lacks {words:?}");
                Ok(())
            })
        };
        std::fs::write(flag(here, "down"), "")?;
        is_at(there)?;
        says(here, "exit status: 7")?;
        std::fs::write(flag(there, "hang"), "")?;
        nobody(&agents[there..=there], VIP, "vetoed", "was killed after 2s: waiting for 10.91.0.250")?;
        // Several more have been killed since; only the one that runs now has a child.
        std::thread::sleep(Duration::from_secs(7));
        let sleeping = lab.node(there).exec(&["pgrep", "-c", "-f", "sleep 31[4]"])?;
        ensure!(sleeping.out.trim().parse::<u32>()? <= 1, "what was killed runs on: {sleeping}");
        std::fs::remove_file(flag(here, "down"))?;
        is_at(here)?;
        // Without a program it is as before.
        reload(agents, |_| String::new())?;
        eventually("both can own it", GOSSIP, || {
            let seen = vip(&agents[0], VIP)?;
            ensure!(seen.candidates.iter().all(|one| one.eligible), "{seen:?}");
            Ok(())
        })?;
        Ok(())
    })
}

/// Who answers each of these clients at a balancer.
fn by_client(lab: &Lab, balancer: usize, clients: &[String]) -> Result<Vec<String>> {
    let url = format!("https://10.91.0.{}:6443/who", balancer + 1);
    let one = |client: &String| {
        let curl = ["curl", "-sSk", "-m", "5", "--interface", client, &url];
        Ok(lab.node(CLIENT).exec(&curl)?.ok()?.trim().to_owned())
    };
    clients.iter().map(one).collect()
}

#[test]
fn by_source_a_client_keeps_its_master_on_every_balancer_and_only_those_of_a_lost_one_move() -> Result<()> {
    with_balancers(|lab, agents, masters| {
        let client = lab.node(CLIENT);
        let clients: Vec<String> = (100..124).map(|n| format!("10.91.0.{n}")).collect();
        for own in &clients {
            client.exec(&["ip", "address", "add", &format!("{own}/24"), "dev", client.interface])?.ok()?;
        }
        let listen = ["service.kube-api.listen=0.0.0.0:6443", "service.kube-api.listen-on=workers"];
        set(&agents[0], &[listen[0], listen[1], "balance=source"])?;
        let (before, _) = eventually("both balancers choose alike", GOSSIP, || {
            let all = BALANCERS.map(|i| by_client(lab, i, &clients));
            let [first, second] = all.map(|one| one.unwrap_or_default());
            ensure!(!first.is_empty() && first == second, "{first:?} and {second:?}");
            Ok(first)
        })?;
        let share = |all: &[String], master: &str| all.iter().filter(|one| *one == master).count();
        ensure!(["n0", "n1", "n2"].iter().all(|one| share(&before, one) > 1), "{before:?}");
        ensure!(by_client(lab, BALANCERS[0], &clients)? == before, "a client has moved by itself");

        masters[1].kill()?;
        eventually("its clients are with the others, and no others moved", GOSSIP, || {
            let now = by_client(lab, BALANCERS[1], &clients)?;
            let moved = before.iter().zip(&now).filter(|(old, new)| old != new);
            ensure!(share(&now, "n1") == 0, "{now:?}");
            ensure!(moved.clone().all(|(old, _)| old == "n1"), "{before:?} {now:?}");
            Ok(())
        })?;
        masters[1].start_again(lab.node(1))?;
        eventually("each has its own again", GOSSIP, || {
            let now = by_client(lab, BALANCERS[1], &clients)?;
            ensure!(now == before, "{before:?} {now:?}");
            Ok(())
        })?;
        Ok(())
    })
}
