//! A virtual IP in a broken network: every scenario of `bench vip` once, with bounds that also hold on a busy
//! machine, and everything that an operator sees of it.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::event::{Event, EventKind};
use tests::lab::{Lab, Master, Signal};
use tests::mesh::{Agent, GOSSIP, SOON, form, with_agents};
use tests::vip::{
    ADDRESS, Agents, Arp, CANDIDATES, CLIENT, Contender, Link, Mac, NODES, Outcome, Prober, Row, STRANGER,
    Scenario, Stage, Tap, Vip, WORKER, vip,
};
use tests::wait::{always, eventually};

/// Tolerance for the test machine, which is busy with other things too.
const BUSY: Duration = Duration::from_millis(700);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn masters(lab: &Lab) -> Result<Vec<Master>> {
    (0..CANDIDATES).map(|i| lab.nginx_master(i)).collect()
}

/// Runs with the stage of all scenarios, with agents that keep the address.
fn staged(act: impl FnOnce(&mut Stage<'_, Agents<'_, '_>>) -> Result<()>) -> Result<()> {
    with_agents(Lab::bridge(NODES), |lab, agents| {
        let mut masters = masters(lab)?;
        let mut ours = Agents::form(agents)?;
        act(&mut Stage::set(lab, &mut masters, &mut ours)?)
    })
}

/// Forms a cluster of some masters with agents and nothing else on a segment.
fn formed(lab: &Lab, agents: &mut [Agent<'_>]) -> Result<Vec<Master>> {
    let masters = masters(lab)?;
    for agent in agents.iter_mut() {
        agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
    }
    form(agents)?;
    for agent in agents.iter() {
        for i in 0..CANDIDATES {
            agent.wait_for_backend(&format!("n{i}"), &["ready"], GOSSIP)?;
        }
    }
    Ok(masters)
}

/// Upper limits for a scenario.
struct Bounds {
    scenario: Scenario,
    outage: Duration,
    takeover: Option<Duration>,
    gone: Option<Duration>,
    by_two: usize,
}

const NOTHING: Bounds =
    Bounds { scenario: Scenario::Crash, outage: ms(0), takeover: None, gone: None, by_two: 0 };

fn holds(row: Row, outcome: &Outcome, bounds: &Bounds) -> Result<()> {
    let title = row.title();
    eprintln!("{title:<22}{outcome:?}");
    let why = |what: &str| format!("{title}: {what}: {outcome:?}");
    ensure!(outcome.outage <= bounds.outage + BUSY, why("no answer for too long"));
    if let Some(limit) = bounds.takeover {
        let moved = outcome.takeover.with_context(|| why("nobody took it over"))?;
        ensure!(moved <= limit + BUSY, why("taken over too late"));
        ensure!(outcome.moves <= 1, why("it went to and fro"));
    }
    if let Some(limit) = bounds.gone {
        let gone = outcome.gone.with_context(|| why("the old owner has it still"))?;
        ensure!(gone <= limit + BUSY, why("the old owner had it for too long"));
    }
    ensure!(outcome.by_two <= bounds.by_two, why("two answered the same"));
    ensure!(outcome.owner.is_some(), why("it has not one owner in the end"));
    Ok(())
}

fn scenarios(all: &[Bounds]) -> Result<()> {
    staged(|stage| {
        for bounds in all {
            for (row, outcome) in stage.run(bounds.scenario)? {
                holds(row, &outcome, bounds)?;
            }
        }
        stage.settle().map(drop)
    })
}

#[test]
fn an_owner_that_crashes_stops_or_loses_its_link_is_replaced() -> Result<()> {
    scenarios(&[
        Bounds { scenario: Scenario::Crash, outage: ms(400), takeover: Some(ms(400)), ..NOTHING },
        Bounds {
            scenario: Scenario::Graceful,
            outage: ms(50),
            takeover: Some(ms(300)),
            by_two: 2,
            ..NOTHING
        },
        Bounds { scenario: Scenario::LinkDown, outage: ms(400), takeover: Some(ms(400)), ..NOTHING },
    ])
}

#[test]
fn an_owner_whose_agent_or_apiserver_dies_or_freezes_loses_the_address() -> Result<()> {
    let lingers = |scenario| Bounds {
        scenario,
        outage: ms(100),
        takeover: Some(ms(300)),
        gone: Some(ms(2500)),
        by_two: 330,
    };
    scenarios(&[
        lingers(Scenario::Killed),
        lingers(Scenario::Frozen),
        Bounds {
            scenario: Scenario::ApiKilled,
            outage: ms(50),
            takeover: Some(ms(2500)),
            gone: Some(ms(2500)),
            by_two: 2,
        },
    ])
}

#[test]
fn an_owner_with_a_witness_keeps_the_address_and_takes_a_lost_one_back() -> Result<()> {
    scenarios(&[
        Bounds { scenario: Scenario::Cut, outage: ms(300), ..NOTHING },
        Bounds { scenario: Scenario::Removed, outage: ms(300), by_two: 2, ..NOTHING },
    ])
}

#[test]
fn the_owner_reports_yields_to_and_outlives_a_stranger_with_its_address() -> Result<()> {
    staged(|stage| {
        let owner = stage.settle()?;
        let mac = stage.mac(STRANGER).to_string();
        stage.act(Scenario::Stranger, owner)?;
        eventually("the owner has yielded, and says to whom", SOON, || {
            let seen = stage.contender.seen()?;
            let shown = stage.contender.agent(WORKER).cli(&["status"])?.out;
            ensure!(seen.owner.is_none(), "{seen:?}");
            ensure!(seen.cause.as_deref() == Some("stranger") && seen.reason.contains(&mac), "{seen:?}");
            ensure!(shown.contains(&mac), "{shown}");
            Ok(())
        })?;
        let alone = || -> Result<()> {
            let owner = stage.number(stage.prober.sole_owner(ms(300))?);
            ensure!(owner == Some(STRANGER), "it is {owner:?}");
            Ok(())
        };
        eventually("the stranger has it alone", SOON, alone)?;
        always("nobody claims over a stranger", Duration::from_secs(4), alone)?;
        stage.undo(Scenario::Stranger, owner)?;
        stage.settle()?;
        Ok(())
    })
}

#[test]
fn a_frozen_owner_does_not_take_the_address_back_when_it_resumes() -> Result<()> {
    staged(|stage| {
        let old = stage.settle()?;
        let before = stage.contender.seen()?;
        stage.act(Scenario::Frozen, old)?;
        let (new, _) = eventually("another owns it alone", SOON, || {
            let owner = stage.number(stage.prober.sole_owner(ms(500))?).context("a stranger")?;
            ensure!(owner != old, "n{old} still does");
            Ok(owner)
        })?;
        let between = stage.contender.seen()?;
        ensure!(between.epoch > before.epoch, "{before:?} {between:?}");
        stage.prober.clear();
        stage.undo(Scenario::Frozen, old)?;
        std::thread::sleep(Duration::from_secs(3)); // this long it has to hold
        let seen = stage.prober.last(Duration::from_secs(3) - ms(200));
        let owner = stage.number(seen.sole_owner()?);
        ensure!(owner == Some(new), "{owner:?} and not n{new}");
        let after = stage.contender.seen()?;
        ensure!((after.epoch, &after.owner) == (between.epoch, &between.owner), "{between:?} {after:?}");
        ensure!(stage.settle()? == new);
        Ok(())
    })
}

#[test]
fn a_move_by_command_resets_clients_of_the_old_owner() -> Result<()> {
    staged(|stage| {
        let old = stage.settle()?;
        let new = (old + 1) % CANDIDATES;
        let (from, to) = (format!("n{old}"), format!("n{new}"));
        let mover = |stage: &Stage<'_, Agents<'_, '_>>, to: &str| {
            stage.contender.agent(WORKER).cli(&["vip", "move", &ADDRESS.to_string(), to])
        };
        // One that is no candidate, and nobody.
        for (whereto, code) in [("n3", 69), ("n9", 65)] {
            mover(stage, whereto)?.fails_with(code)?;
        }
        // What is wished is so already.
        mover(stage, &from)?.ok()?;

        let listener = stage.lab.node(old).inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?))?;
        let address = SocketAddr::new(IpAddr::V4(ADDRESS), 7000);
        let mut held = stage.lab.node(CLIENT).inside(|| Ok(TcpStream::connect(address)?))?;
        let _accepted = listener.accept()?;
        held.set_read_timeout(Some(Duration::from_secs(2)))?;

        let at = Instant::now();
        mover(stage, &to)?.ok()?;
        let told = held.read(&mut [0; 16]);
        let silent =
            |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        ensure!(!told.as_ref().is_err_and(silent), "a client of the old owner waits in silence: {told:?}");
        eventually("it has moved", SOON, || {
            ensure!(stage.number(stage.prober.sole_owner(ms(200))?) == Some(new));
            ensure!(stage.contender.seen()?.owner.as_deref() == Some(to.as_str()));
            Ok(())
        })?;
        let record = stage.prober.between(at, Instant::now() - ms(100));
        ensure!(record.outage() <= ms(50) + BUSY, "{:?} without an answer", record.outage());
        ensure!(record.by_two() <= 2 && record.moves() <= 1, "{} by two", record.by_two());
        Ok(())
    })
}

#[test]
fn a_draining_node_hands_the_address_over() -> Result<()> {
    staged(|stage| {
        let old = stage.settle()?;
        stage.contender.agent(old).cli(&["drain"])?.ok()?;
        eventually("another owns it", SOON, || {
            let owner = stage.number(stage.prober.sole_owner(ms(300))?);
            ensure!(owner != Some(old), "n{old} still does");
            Ok(())
        })?;
        eventually("it is told", SOON, || {
            let text = stage.contender.agent(old).cli(&["events", "--json", "--since", "1h"])?.ok()?;
            let events: Vec<Event> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            let lost = |event: &&Event| event.kind == EventKind::VipState && event.from == "master";
            let lost = events.iter().find(lost).with_context(|| format!("not told:\n{text}"))?;
            ensure!(lost.to == "backup" && lost.duration_ms.is_some(), "{lost:?}");
            ensure!(lost.keepalived().is_some_and(|words| words[2] == "BACKUP"), "{lost:?}");
            let gave = |event: &&Event| event.kind == EventKind::VipOwner && event.from == format!("n{old}");
            let gave = events.iter().find(gave).with_context(|| format!("not told to whom:\n{text}"))?;
            ensure!(gave.to != gave.from && !gave.reason.is_empty(), "{gave:?}");
            Ok(())
        })?;
        let seen = stage.contender.seen()?;
        let one = seen.candidates.iter().find(|one| one.node == format!("n{old}")).context("not listed")?;
        ensure!(!one.eligible && one.cause.as_deref() == Some("draining"), "{one:?}");
        stage.contender.agent(old).cli(&["undrain"])?.ok()?;
        stage.settle()?;
        Ok(())
    })
}

#[test]
fn a_worker_without_arp_still_finds_the_new_owner() -> Result<()> {
    staged(|stage| {
        let old = stage.settle()?;
        let worker = stage.lab.node(WORKER);
        let address = ADDRESS.to_string();
        worker.exec(&["ping", "-q", "-c", "1", "-W", "1", &address])?.ok()?;
        let knows = |mac: Mac| -> Result<()> {
            let shown = worker.exec(&["ip", "neighbour", "show", &address])?.ok()?;
            ensure!(shown.contains(&mac.to_string()), "{shown} and not {mac}");
            Ok(())
        };
        knows(stage.mac(old))?;
        // Only the kernel stops receiving ARP: the agent has its own socket.
        let arp_filter = "add table arp filtered; add chain arp filtered in { type filter hook input priority 0; policy drop; }";
        worker.exec(&["nft", arp_filter])?.ok()?;
        let new = (old + 1) % CANDIDATES;
        stage.contender.agent(new).cli(&["vip", "move", &address, &format!("n{new}")])?.ok()?;
        eventually("its neighbour entry is that of the new owner", SOON, || knows(stage.mac(new)))?;
        worker.exec(&["ping", "-q", "-c", "1", "-W", "1", &address])?.ok()?;
        Ok(())
    })
}

#[test]
fn a_leftover_address_is_removed_at_the_start() -> Result<()> {
    staged(|stage| {
        let owner = stage.settle()?;
        let other = (owner + 1) % CANDIDATES;
        let node = stage.lab.node(other);
        stage.contender.agent_mut(other).stop()?;
        let leftover = format!("{ADDRESS}/32");
        let add = ["ip", "address", "add", &leftover, "dev", node.interface];
        node.exec(&[&add[..], &["valid_lft", "600", "preferred_lft", "600"]].concat())?.ok()?;
        eventually("two answer", SOON, || {
            ensure!(stage.prober.last(ms(200)).by_two() > 0);
            Ok(())
        })?;
        stage.contender.start(other)?;
        ensure!(stage.settle()? == owner, "the leftover won");
        Ok(())
    })
}

#[test]
fn status_says_who_owns_it_since_when_and_why_not_the_others() -> Result<()> {
    staged(|stage| {
        let owner = stage.settle()?;
        let name = format!("n{owner}");
        for i in 0..=WORKER {
            let agent = stage.contender.agent(i);
            let seen = vip(agent, &ADDRESS.to_string())?;
            let state = if i == owner { "owned-here" } else { "owned" };
            ensure!(seen.state == state && seen.owner.as_deref() == Some(&name), "n{i}: {seen:?}");
            ensure!(seen.epoch > 0 && seen.since_unix_ms > 0, "n{i}: {seen:?}");
            ensure!(i == WORKER || seen.interface.as_deref() == Some("eth0"), "n{i}: {seen:?}");
            ensure!(seen.candidates.len() == CANDIDATES, "n{i}: {seen:?}");
            ensure!(
                seen.candidates.iter().all(|one| one.eligible && one.reason.is_empty()),
                "n{i}: {seen:?}"
            );
            ensure!(seen.candidates[0].node == name && seen.candidates[0].rank == 1, "n{i}: {seen:?}");
            let shown = agent.cli(&["status"])?.ok()?;
            let on = if i == owner { "on this node" } else { name.as_str() };
            let address = ADDRESS.to_string();
            let told = shown.lines().any(|line| line.contains(&address) && line.contains(on));
            ensure!(told, "n{i}: {shown}");
        }
        // One that is ineligible: its apiserver is down.
        let other = (owner + 1) % CANDIDATES;
        stage.masters[other].kill()?;
        eventually("the one without an apiserver says so", SOON, || {
            let seen = stage.contender.seen()?;
            let one = seen.candidates.iter().find(|one| one.node == format!("n{other}"));
            let one = one.context("it is not listed")?;
            ensure!(!one.eligible && !one.reason.is_empty(), "{one:?}");
            Ok(())
        })?;
        ensure!(stage.contender.seen()?.owner.as_deref() == Some(&name), "it has moved for nothing");
        Ok(())
    })
}

#[test]
fn several_addresses_are_spread_and_keep_their_labels() -> Result<()> {
    with_agents(Lab::bridge(CANDIDATES + 1), |lab, agents| {
        let _masters = formed(lab, agents)?;
        let all = ["10.91.0.250", "10.91.0.251", "10.91.0.252"];
        let set = |text: &str| agents[0].cli(&["set", text])?.ok().map(drop);
        // With a prefix, as people write it.
        set(&format!("vip={}/24,{},{}", all[0], all[1], all[2]))?;
        set(&format!("vip.{}.label=eth0:0", all[0]))?;
        let owner = |address: &str| -> Result<String> {
            let seen = vip(&agents[WORKER], address)?;
            seen.owner.clone().with_context(|| format!("{seen:?}"))
        };
        let (owners, _) = eventually("each has an owner", GOSSIP, || {
            all.iter().map(|one| owner(one)).collect::<Result<Vec<_>>>()
        })?;
        let distinct: std::collections::BTreeSet<&String> = owners.iter().collect();
        // On a busy machine one that listens longer than the others may claim its own too late.
        ensure!(distinct.len() > 1, "they are not spread: {owners:?}");
        let names = lab.nodes()[..CANDIDATES].iter().map(|node| node.name.to_string());
        let others: Vec<String> = names.filter(|name| *name != owners[0]).collect();

        let labelled = |name: &str| -> Result<()> {
            let node = lab.nodes().iter().find(|node| node.name == name).context("no such node")?;
            let shown = node.exec(&["ip", "-o", "address", "show", "label", "eth0:0"])?.ok()?;
            ensure!(shown.contains(&format!("{}/32", all[0])), "{name}: {shown:?}");
            Ok(())
        };
        eventually("the label is there", SOON, || labelled(&owners[0]))?;
        agents[0].cli(&["vip", "move", all[0], &others[0]])?.ok()?;
        eventually("the label goes with it", SOON, || labelled(&others[0]))?;

        // A higher priority, and the permission to take it from an owner.
        set(&format!("vip.{}.priority.{}=200", all[0], others[1]))?;
        set(&format!("vip.{}.preempt=1s", all[0]))?;
        eventually("the better one has it", GOSSIP, || {
            let is = owner(all[0])?;
            ensure!(is == others[1], "it is {is}");
            Ok(())
        })?;

        // An unset address is removed everywhere.
        agents[0].cli(&["unset", "vip"])?.ok()?;
        eventually("no address is left", SOON, || {
            for node in lab.nodes() {
                let shown = node.exec(&["ip", "-o", "address", "show", "dev", "eth0"])?.ok()?;
                ensure!(all.iter().all(|one| !shown.contains(one)), "{}: {shown}", node.name);
            }
            Ok(())
        })?;
        Ok(())
    })
}

/// How often a node has become the owner of an address, by its events.
fn times_owned(agent: &Agent<'_>) -> Result<usize> {
    let text = agent.cli(&["events", "--json", "--since", "1h"])?.ok()?;
    let events: Vec<Event> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(events.iter().filter(|event| event.kind == EventKind::VipState && event.to == "master").count())
}

#[test]
fn masters_that_start_together_agree_before_one_claims() -> Result<()> {
    with_agents(Lab::bridge(CANDIDATES + 1), |lab, agents| {
        let _masters = formed(lab, agents)?;
        let owned =
            |agents: &[Agent<'_>]| agents[..CANDIDATES].iter().map(times_owned).sum::<Result<usize>>();
        let settled = |agents: &[Agent<'_>]| {
            eventually("everyone can own it and one does", GOSSIP, || {
                let seen = vip(&agents[WORKER], &ADDRESS.to_string())?;
                let able = seen.candidates.iter().filter(|one| one.eligible).count();
                ensure!(seen.owner.is_some() && able == CANDIDATES, "{seen:?}");
                Ok(())
            })
        };
        agents[0].cli(&["set", &format!("vip={ADDRESS}")])?.ok()?;
        settled(agents)?;
        let first = owned(agents)?;
        ensure!(first == 1, "{first} have claimed an address that was just set");

        for agent in agents.iter_mut() {
            agent.kill()?;
        }
        for agent in agents.iter_mut() {
            agent.options.clear();
            agent.run()?;
        }
        for agent in agents.iter_mut() {
            agent.wait_until_asked()?;
        }
        eventually("somebody claims it anew", GOSSIP, || {
            ensure!(owned(agents)? > first);
            Ok(())
        })?;
        settled(agents)?;
        let then = owned(agents)?;
        let epoch = vip(&agents[WORKER], &ADDRESS.to_string())?.epoch;
        ensure!(epoch == 2, "with nobody left who knew of epoch 1, it is now {epoch}");
        ensure!(then == first + 1, "{} have claimed it after all started at once", then - first);
        Ok(())
    })
}

/// Members have different keys for a moment, while the document with a removal spreads.
#[test]
fn a_removal_or_a_rotation_moves_no_address() -> Result<()> {
    const OTHERS: usize = 4;
    with_agents(Lab::bridge(CANDIDATES + OTHERS), |lab, agents| {
        let _masters = formed(lab, agents)?;
        agents[0].cli(&["set", &format!("vip={ADDRESS}")])?.ok()?;
        let (candidates, others) = agents.split_at(CANDIDATES);
        let epochs = || -> Result<Vec<u64>> {
            candidates.iter().map(|one| Ok(vip(one, &ADDRESS.to_string())?.epoch)).collect()
        };
        eventually("it has an owner", GOSSIP, || {
            ensure!(vip(&candidates[1], &ADDRESS.to_string())?.owner.is_some());
            Ok(())
        })?;
        for other in others {
            candidates[0].cli(&["remove", other.name()])?.ok()?;
            candidates[0].cli(&["rotate"])?.ok()?;
            candidates[1].cli(&["rotate"])?.ok()?;
            always("nobody claims it", ms(1_000), || {
                let epochs = epochs()?;
                ensure!(epochs.iter().all(|epoch| *epoch == 1), "the epochs are {epochs:?}");
                Ok(())
            })?;
        }
        let owned = candidates.iter().map(times_owned).sum::<Result<usize>>()?;
        ensure!(owned == 1, "it was owned {owned} times");
        Ok(())
    })
}

#[test]
fn an_ipv6_address_moves_too() -> Result<()> {
    with_agents(Lab::bridge(CANDIDATES + 2), |lab, agents| {
        let address: IpAddr = "fd91::250".parse()?;
        for node in lab.nodes() {
            let own = format!("fd91::{}/64", node.index + 1);
            node.exec(&["ip", "address", "add", &own, "dev", node.interface, "nodad"])?.ok()?;
        }
        let (agents, _) = agents.split_at_mut(CANDIDATES + 1);
        let _masters = formed(lab, agents)?;
        agents[0].cli(&["set", "vip=fd91::250"])?.ok()?;
        let prober = Prober::start(lab.node(CANDIDATES + 1), address)?;
        let links = lab.nodes().iter().map(Link::of).collect::<Result<Vec<_>>>()?;
        let number = |mac: Mac| links.iter().position(|link| link.mac == mac).context("a stranger");
        let (owner, _) = eventually("it has an owner", GOSSIP, || number(prober.sole_owner(ms(500))?))?;
        eventually("everyone is ready to take it", GOSSIP, || {
            let seen = vip(&agents[WORKER], "fd91::250")?;
            ensure!(seen.candidates.iter().filter(|one| one.eligible).count() == CANDIDATES, "{seen:?}");
            Ok(())
        })?;
        let at = Instant::now();
        lab.node(owner).power_cut()?;
        agents[owner].process()?.signal(Signal::KILL)?;
        eventually("another owns it", SOON, || {
            let next = number(prober.sole_owner(ms(300))?)?;
            ensure!(next != owner, "n{owner} still does");
            Ok(())
        })?;
        let record = prober.between(at, Instant::now() - ms(100));
        eprintln!("IPv6, crash: {:?} without an answer", record.outage());
        ensure!(record.outage() <= ms(400) + BUSY, "{:?}", record.outage());
        Ok(())
    })
}

#[test]
fn a_mesh_without_layer_2_is_refused_and_left_alone() -> Result<()> {
    with_agents(Lab::wireguard(CANDIDATES + 1), |lab, agents| {
        let _masters = masters(lab)?;
        form(agents)?;
        let address = ADDRESS.to_string();
        let taps = lab.nodes().iter().map(|node| Tap::open(node, ms(10))).collect::<Result<Vec<_>>>()?;
        agents[0].cli(&["set", &format!("vip={address}")])?.ok()?;
        eventually("everyone says why not", GOSSIP, || {
            for agent in agents.iter() {
                let seen = vip(agent, &address)?;
                ensure!(seen.state == "unavailable", "{}: {seen:?}", agent.name());
                ensure!(seen.cause.as_deref() == Some("no-segment"), "{}: {seen:?}", agent.name());
            }
            Ok(())
        })?;
        // Everything that has crossed the tunnels meanwhile, and two seconds more.
        let until = Instant::now() + Duration::from_secs(2);
        let (mut buffer, mut crossed) = ([0; 2048], 0);
        while Instant::now() < until {
            for (tap, node) in taps.iter().zip(lab.nodes()) {
                let Some(length) = tap.read(&mut buffer)? else { continue };
                crossed += 1;
                let packet = &buffer[..length];
                let version = packet.first().map_or(0, |first| first >> 4);
                ensure!(version == 4 || version == 6, "{}: not IP: {packet:02x?}", node.name);
                let about = packet.windows(4).any(|four| four == ADDRESS.octets());
                ensure!(version != 4 || !about, "{}: about the address: {packet:02x?}", node.name);
            }
        }
        ensure!(crossed > 100, "only {crossed} packets were seen");
        for node in lab.nodes() {
            let all = node.exec(&["ip", "-o", "address"])?.ok()?;
            ensure!(!all.contains(&address), "{}: {all}", node.name);
        }
        agents[WORKER].who_serves()?;
        Ok(())
    })
}

/// Tries an address that cannot be one; status gives this cause, of the virtual IP or of its candidates, and says
/// `names`, which are addresses.
fn refused(agent: &Agent<'_>, address: &str, cause: &str, names: &[&str]) -> Result<Vip> {
    agent.cli(&["set", &format!("vip={address}")])?;
    let (seen, _) =
        eventually(&format!("{} says what is wrong with {address}", agent.name()), GOSSIP, || {
            let seen = vip(agent, address)?;
            let places = || seen.candidates.iter();
            let mut causes = std::iter::once(&seen.cause).chain(places().map(|one| &one.cause));
            ensure!(causes.any(|one| one.as_deref() == Some(cause)), "no {cause}: {seen:?}");
            let reasons = || std::iter::once(&seen.reason).chain(places().map(|one| &one.reason));
            for name in names {
                ensure!(reasons().any(|reason| reason.contains(name)), "{name} is not named: {seen:?}");
            }
            Ok(seen)
        })?;
    Ok(seen)
}

#[test]
fn an_address_that_cannot_be_one_is_refused_with_the_reason() -> Result<()> {
    with_agents(Lab::bridge(CANDIDATES + 2), |lab, agents| {
        let (agents, _) = agents.split_at_mut(CANDIDATES + 1);
        let _masters = formed(lab, agents)?;
        let first = &agents[0];

        let seen = refused(first, "192.0.2.1", "no-interface", &["192.0.2.1", "10.91.0.1/24"])?;
        ensure!(seen.state == "unavailable", "{seen:?}");

        // n1's own address: nobody may own it.
        refused(first, "10.91.0.2", "own-address", &["10.91.0.2"])?;
        always("nobody takes an address that a node has for itself", Duration::from_secs(3), || {
            let shown = agents[1].node().exec(&["ip", "-o", "address", "show", "to", "10.91.0.2"])?.ok()?;
            ensure!(shown.contains("10.91.0.2/24") && shown.lines().count() == 1, "{shown}");
            let seen = vip(first, "10.91.0.2")?;
            ensure!(seen.owner.is_none(), "{seen:?}");
            Ok(())
        })?;

        // A machine outside of the cluster has it.
        let stranger = lab.node(CANDIDATES + 1);
        let mac = Link::of(stranger)?.mac;
        stranger.exec(&["ip", "address", "add", "10.91.0.250/24", "dev", "eth0"])?.ok()?;
        refused(first, "10.91.0.250", "stranger", &[&mac.to_string()])?;
        let tap = Tap::open(stranger, ms(10))?;
        tap.say(&Arp::announcement(mac, ADDRESS).frame(Mac::ALL))?;
        always("nobody claims what a stranger has", Duration::from_secs(3), || {
            let seen = vip(first, "10.91.0.250")?;
            ensure!(seen.owner.is_none(), "{seen:?}");
            Ok(())
        })?;
        stranger.exec(&["ip", "address", "del", "10.91.0.250/24", "dev", "eth0"])?.ok()?;
        eventually("it is free now, and owned", GOSSIP, || {
            vip(first, "10.91.0.250")?.owner.context("by nobody").map(drop)
        })?;
        Ok(())
    })
}

/// CAP_NET_ADMIN and CAP_NET_RAW, as bits.
const NEEDED: u64 = 1 << 12 | 1 << 13;

/// The effective capabilities of each of a process' threads.
fn in_effect(pid: u32) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(text) = std::fs::read_to_string(task?.path().join("status")) else { continue };
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
        found.push(u64::from_str_radix(line.trim(), 16)?);
    }
    Ok(found)
}

#[test]
fn two_capabilities_suffice_in_one_thread_and_missing_ones_are_reported() -> Result<()> {
    with_agents(Lab::bridge(CANDIDATES + 1), |lab, agents| {
        let only = |set: &str| -> Vec<String> {
            let sets = [format!("--bounding-set={set}"), format!("--inh-caps={set}")];
            ["setpriv".to_owned()].into_iter().chain(sets).collect()
        };
        agents[0].through = only("-all,+net_admin,+net_raw");
        agents[1].through = only("-net_admin,-net_raw");
        let _masters = formed(lab, agents)?;
        let pid = agents[2].process()?.pid();
        ensure!(
            in_effect(pid)?.iter().all(|set| set & NEEDED == 0),
            "held without a VIP: {:x?}",
            in_effect(pid)?
        );

        let address = ADDRESS.to_string();
        agents[3].cli(&["set", &format!("vip={address}")])?.ok()?;
        eventually("two can own it, and one says what it lacks", GOSSIP, || {
            let seen = vip(&agents[3], &address)?;
            let place = |name: &str| seen.candidates.iter().find(|one| one.node == name);
            ensure!(
                place("n0").is_some_and(|one| one.eligible) && place("n2").is_some_and(|one| one.eligible),
                "{seen:?}"
            );
            let lacking = place("n1").context("n1 is not listed")?;
            ensure!(!lacking.eligible && lacking.cause.as_deref() == Some("not-permitted"), "{seen:?}");
            Ok(())
        })?;
        // The one with no other capabilities can still hold it.
        if vip(&agents[3], &address)?.owner.as_deref() != Some("n0") {
            agents[3].cli(&["vip", "move", &address, "n0"])?.ok()?;
        }
        eventually("n0 has it", SOON, || {
            let shown = lab.node(0).exec(&["ip", "-o", "address", "show", "to", &address])?.ok()?;
            ensure!(shown.contains("/32"), "{shown:?}");
            Ok(())
        })?;
        let with = in_effect(pid)?.iter().filter(|set| *set & NEEDED == NEEDED).count();
        ensure!(with == 1, "{with} threads have them in effect: {:x?}", in_effect(pid)?);
        agents[3].cli(&["unset", "vip"])?.ok()?;
        eventually("no thread has them any more", SOON, || {
            ensure!(in_effect(pid)?.iter().all(|set| set & NEEDED == 0), "{:x?}", in_effect(pid)?);
            Ok(())
        })?;
        Ok(())
    })
}
