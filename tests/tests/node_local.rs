//! One address on every node: it comes and goes with its setting, is put back, refuses where something is against it,
//! and leads pods to a master that serves. The pods' rules are written by hand, in the form that kube-proxy gives its
//! own with nftables: the ClusterIP of the Service `kubernetes` to its endpoints.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{ApiServer, Lab, Master, Signal, Store};
use tests::load::{self, Plan};
use tests::mesh::{Agent, GOSSIP, SOON, form_with, with_agents};
use tests::pods::{MASTERS, NODE_LOCAL, attach};
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

/// Three masters whose agents have credentials, with stand-ins for apiservers that share a store, and a worker; the
/// file with the credentials.
fn with_store(test: impl FnOnce(&Lab, &mut [Agent<'_>], &Store, &str) -> Result<()>) -> Result<()> {
    with_agents(Lab::wireguard(4), |lab, agents| {
        let store = Store::default();
        let servers = (0..3).map(|i| lab.api_server(i, &store)).collect::<Result<Vec<ApiServer>>>()?;
        let (config, certs) = (lab.dir().join("agent.toml"), lab.certs());
        let file = format!(
            "[[service]]\nname = \"kube-api\"\n[service.check]\nca-file = {:?}\ncert-file = {:?}\nkey-file = {:?}\n",
            certs.ca, certs.client, certs.client_key
        );
        std::fs::write(&config, file)?;
        let config = config.to_string_lossy().into_owned();
        for agent in agents.iter_mut() {
            agent.options = vec!["--config".to_owned(), config.clone()];
        }
        form_with(agents, 3)?;
        for agent in agents.iter() {
            agent.wait_for_backend("n0", &["ready"], GOSSIP)?;
        }
        store.lock().lead_to(&["10.91.0.1", "10.91.0.2", "10.91.0.3"], 6443);
        test(lab, agents, &store, &config)?;
        drop(servers);
        Ok(())
    })
}

/// A list of nodes as an apiserver has it.
fn nodes(ips: &[&str], version: &str) -> String {
    let one = |ip: &&str| {
        format!(
            "{{\"metadata\":{{\"name\":\"k-{ip}\"}},\"status\":{{\"addresses\":[{{\"type\":\"InternalIP\",\"address\":\
             \"{ip}\"}}],\"nodeInfo\":{{\"kubeletVersion\":\"{version}\"}}}}}}"
        )
    };
    format!("{{\"items\":[{}]}}", ips.iter().map(one).collect::<Vec<_>>().join(","))
}

fn with_file<'a>(config: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [command, &["--config", config]].concat()
}

const ALL: [&str; 4] = ["10.91.0.1", "10.91.0.2", "10.91.0.3", "10.91.0.4"];

#[test]
fn endpoints_are_printed_once_every_node_serves_and_kept_while_they_are_used() -> Result<()> {
    with_store(|_, agents, store, config| {
        let (master, others) = agents.split_at_mut(1);
        let (master, worker) = (&master[0], &mut others[WORKER - 1]);
        let print =
            |more: &[&str]| master.cli(&[&["kubernetes", "endpoints", "--config", config], more].concat());
        let refused = |words: &str| {
            let ran = print(&[])?;
            eprintln!("{}", ran.err);
            ensure!(ran.code == Some(69) && ran.out.is_empty() && ran.err.contains(words), "{ran}");
            Ok(())
        };
        refused("node-local is not set")?;
        set(master, &[&format!("node-local={V4}")])?;
        store.lock().nodes = nodes(&[&ALL[..], &["10.91.0.9"]].concat(), "v1.36.1");
        eventually("only what is no member is missing", GOSSIP, || {
            refused("k-10.91.0.9 (10.91.0.9) is no member")
        })?;
        store.lock().nodes = nodes(&ALL, "v1.36.1+k3s1");
        refused("k-10.91.0.1 runs k3s")?;
        refused("k3k#1255")?;
        store.lock().nodes = nodes(&ALL, "v1.36.1");
        let (text, _) = eventually("they are printed", GOSSIP, || print(&[])?.ok())?;
        eprintln!("{text}");
        ensure!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        ensure!(text.contains(&format!("- ip: \"{V4}\"")) && text.contains("port: 16443"), "{text}");
        let masters = print(&["--masters"])?.ok()?;
        ensure!(ALL[..3].iter().all(|ip| masters.contains(&format!("- ip: \"{ip}\""))), "{masters}");
        ensure!(masters.contains("port: 6443") && !masters.contains(ALL[3]), "{masters}");

        // A worker that is away is no healthy member.
        worker.process()?.signal(Signal::STOP)?;
        eventually("the worker is away", GOSSIP, || refused("n3 is not up"))?;
        worker.process()?.signal(Signal::CONT)?;
        eventually("they are printed again", GOSSIP, || print(&[])?.ok())?;

        // Now they are used.
        store.lock().lead_to(&[V4], 16443);
        for command in [&["unset", "node-local"][..], &["set", "node-local=10.92.91.51"]] {
            let ran = master.cli(&with_file(config, command))?;
            eprintln!("{}", ran.err);
            let flat = ran.err.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(ran.code == Some(69) && flat.contains("pods are led to 10.92.91.50:16443"), "{ran}");
        }
        let ran = worker.cli(&with_file(config, &["leave"]))?;
        ensure!(ran.code == Some(69) && ran.err.contains("kubectl drain"), "{ran}");
        ensure!(worker.is_running(), "it has left");
        has(worker, V4)?;
        master.cli(&with_file(config, &["unset", "node-local", "--force"]))?.ok()?;
        eventually("it is gone", GOSSIP, || has_not(worker, V4))?;
        Ok(())
    })
}

#[test]
fn masters_notice_within_seconds_that_an_apiserver_rewrote_the_endpoints_and_restore_them() -> Result<()> {
    with_store(|_, agents, store, _| {
        set(&agents[0], &[&format!("node-local={V4}"), "node-local.endpoints=watch"])?;
        let problem = |agent: &Agent<'_>| -> Result<Option<String>> {
            let all = agent.status()?.problems;
            Ok(all.into_iter().find(|one| one.code == "kubernetes-endpoints").map(|one| one.detail))
        };
        let (told, _) = eventually("all masters say that it is not done yet", GOSSIP, || {
            let all = agents[..3].iter().map(problem).collect::<Result<Option<Vec<String>>>>()?;
            all.context("not all")
        })?;
        eprintln!("{told:?}");
        store.lock().lead_to(&[V4], 16443);
        for agent in agents.iter() {
            eventually("all are content", GOSSIP, || agent.cli(&["status", "--exit-code"])?.ok())?;
        }
        // As a master that starts with the default reconciler does.
        store.lock().lead_to(&["10.91.0.2"], 16443);
        for agent in &agents[..3] {
            let (told, after) = eventually("it is told", GOSSIP, || problem(agent)?.context("it is not"))?;
            eprintln!("{} after {after:?}: {told}", agent.name());
            ensure!(after < Duration::from_secs(8), "after {after:?}");
            ensure!(told.contains("10.91.0.2:16443 (n1)"), "{told}");
            ensure!(told.contains("lacks --endpoint-reconciler-type=none"), "{told}");
        }
        let shown = agents[0].cli(&["status", "--exit-code"])?;
        eprintln!("{shown}");
        ensure!(shown.code == Some(10), "{shown}");
        let doctor = agents[0].cli(&["doctor"])?;
        ensure!(doctor.out.contains("pods are led to 10.91.0.2:16443"), "{doctor}");
        ensure!(problem(&agents[WORKER])?.is_none() && store.lock().applied == 0);

        store.lock().read_only = true;
        set(&agents[0], &["node-local.endpoints=restore"])?;
        eventually("it says that it may not", GOSSIP, || {
            let all = agents[0].status()?.problems;
            let fix = all.iter().find(|one| one.code == "kubernetes-endpoints").map(|one| one.fix.clone());
            ensure!(fix.is_some_and(|fix| fix.contains("does not allow it (403)")), "{all:?}");
            Ok(())
        })?;
        store.lock().read_only = false;
        eventually("it is restored", GOSSIP, || {
            ensure!(store.lock().endpoints.as_deref().is_some_and(|text| text.contains(V4)));
            ensure!(store.lock().slice.as_deref().is_some_and(|text| text.contains("skip-mirror")));
            agents[0].cli(&["status", "--exit-code"])?.ok()
        })?;
        let events = agents.iter().map(|agent| agent.cli(&["events"])?.ok()).collect::<Result<String>>()?;
        ensure!(events.contains("kubernetes-endpoints default/kubernetes: restored"), "{events}");
        // Once more, and a deleted object.
        store.lock().endpoints = None;
        store.lock().slice = None;
        eventually("it is made anew", GOSSIP, || {
            ensure!(store.lock().endpoints.as_deref().is_some_and(|text| text.contains(V4)));
            Ok(())
        })?;
        Ok(())
    })
}

/// A pod on the worker.
const POD: usize = 4;

#[test]
fn a_pod_keeps_connecting_while_a_master_loses_power_hangs_and_comes_back() -> Result<()> {
    with_agents(Lab::wireguard(POD + 1), |lab, agents| {
        let mut masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let (agents, _) = agents.split_at_mut(POD);
        form_with(agents, 3)?;
        set(&agents[0], &[&format!("node-local={V4},{V6}")])?;
        let (host, pod) = (lab.node(WORKER), lab.node(POD));
        attach(host, pod)?;
        NODE_LOCAL.lead(host, &[format!("{V4}:16443").parse()?, format!("[{V6}]:16443").parse()?])?;
        MASTERS.lead(host, &[format!("{}:6443", lab.node(2).mesh_ip()).parse()?])?;
        for i in 0..3 {
            agents[WORKER].wait_for_backend(&format!("n{i}"), &["ready"], GOSSIP)?;
        }
        // By both families, without route_localnet and whatever rp_filter says; by a master's own address as well.
        for strict in ["0", "1"] {
            let set = format!("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {strict} >$f; done");
            host.exec(&["sh", "-c", &set])?.ok()?;
            for at in ["10.96.0.1", "[fd96::1]", "10.96.0.2"] {
                let url = format!("https://{at}/who");
                eventually(&format!("the pod reaches {at}"), GOSSIP, || {
                    pod.exec(&["curl", "-gsSfk", "-m", "2", &url])?.ok()
                })?;
            }
        }
        let plan = Plan {
            targets: vec![NODE_LOCAL.v4()],
            per_second: 30,
            held: 4,
            patience: Duration::from_secs(10),
        };
        let (records, ()) = load::during(pod, &lab.certs().ca.clone(), &plan, |_| {
            let away = Duration::from_secs(5);
            std::thread::sleep(Duration::from_secs(1));
            lab.node(1).power_cut()?;
            std::thread::sleep(away);
            lab.node(1).power_on()?;
            agents[WORKER].wait_for_backend("n1", &["ready"], GOSSIP)?;
            masters[0].hang()?;
            std::thread::sleep(away);
            masters[0].go_on()?;
            agents[WORKER].wait_for_backend("n0", &["ready"], GOSSIP)?;
            masters[2].kill()?;
            std::thread::sleep(away);
            masters[2].start_again(lab.node(2))?;
            agents[WORKER].wait_for_backend("n2", &["ready"], GOSSIP).map(drop)
        })?;
        let tries = &records[0].tries;
        let failed: Vec<_> = tries.iter().filter(|one| one.result.is_err()).collect();
        let slowest = tries.iter().map(|one| one.took).max().unwrap_or_default();
        eprintln!("{} new connections, {} failed, the slowest took {slowest:?}", tries.len(), failed.len());
        ensure!(tries.len() > 300 && failed.is_empty(), "{failed:?}");
        // A tolerance for the test machine, which is busy with other things too.
        ensure!(slowest < Duration::from_millis(1_200), "{slowest:?}");

        // Its node's agent is dead: it is refused at once, not left to wait.
        agents[WORKER].kill()?;
        let curl = ["curl", "-sSk", "-m", "5", "-w", "%{time_total}", "https://10.96.0.1/who"];
        let ran = pod.exec(&curl)?;
        let took: f64 = ran.out.trim().parse().with_context(|| ran.to_string())?;
        ensure!(ran.code == Some(7) && took < 0.5, "{ran}");
        Ok(())
    })
}
