//! Two versions in one cluster: today's agent, and a build of a possible next version (the feature
//! `next-wire`), which sends more of everything than today's knows. Each is the first node once, the other
//! joins, and together they do what clusters do. If `AGENT_BIN_OLD` names a released agent, today's does the
//! same with that one.
//!
//! ```text
//!   n0 first   n1 other   n2 first   n3 other      masters but n3, on one segment
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ring::digest::{SHA256, digest};
use tests::hostile::identity::read_state;
use tests::lab::{Lab, Master};
use tests::mesh::{Agent, GOSSIP, SOON, all_up, binary, invite_in, with_agents};
use tests::vip::{ADDRESS, vip};
use tests::wait::eventually;
use tests::wire::record;

/// Limit for a change that waits for no time-out; [`GOSSIP`] is for those that do.
const LIMIT: Duration = GOSSIP;

/// A build of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Build {
    name: &'static str,
    path: PathBuf,
    /// It is of the next version.
    next: bool,
}

/// The binary that a variable names.
fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    ensure!(path.is_file(), "{variable} is {}, and there is no such file", path.display());
    Ok(Some(path.canonicalize()?))
}

/// Where `tests/build-next` leaves the next version: in the target directory of this test.
fn built_next() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let path = here.ancestors().nth(3)?.join("next/agent");
    path.is_file().then_some(path)
}

/// The acts, in order, each with its duration.
#[derive(Default)]
struct Column {
    title: String,
    took: BTreeMap<&'static str, Duration>,
}

/// One cluster of two versions.
struct Mix<'m, 'lab> {
    lab: &'m Lab,
    agents: &'m mut [Agent<'lab>],
    masters: Vec<Master>,
    first: Build,
    other: Build,
}

type Act = fn(&mut Mix<'_, '_>) -> Result<()>;

const ACTS: [(&str, Act); 11] = [
    ("join", |mix| mix.join()),
    ("rewrite", |mix| mix.rewrite()),
    ("failover", |mix| mix.failover()),
    ("virtual IP", |mix| mix.virtual_ip()),
    ("settings", |mix| mix.settings()),
    ("drain", |mix| mix.drain()),
    ("rotation", |mix| mix.rotation()),
    ("commands", |mix| mix.commands()),
    ("upgrade", |mix| mix.upgrade()),
    ("downgrade", |mix| mix.downgrade()),
    ("newer files", |mix| mix.newer_files()),
];

#[test]
fn mixed_versions_do_together_what_clusters_do() -> Result<()> {
    let today = Build { name: "today's", path: binary()?, next: false };
    let next = named("AGENT_BIN_NEXT")?.or_else(built_next);
    let next = next.context(
        "there is no agent of the next version: run tests/build-next, or set AGENT_BIN_NEXT to one that was \
         built with --features next-wire",
    )?;
    let next = Build { name: "next", path: next, next: true };
    let mut pairs = vec![(today.clone(), next.clone()), (next, today.clone())];
    match named("AGENT_BIN_OLD")? {
        Some(path) => {
            let old = Build { name: "old", path, next: false };
            pairs.extend([(old.clone(), today.clone()), (today, old)]);
        }
        None => println!("AGENT_BIN_OLD is not set: skipped what is done with an agent that was released"),
    }
    let (mut columns, mut failed) = (Vec::new(), Vec::new());
    for (first, other) in pairs {
        let title = format!("{} first, {} joins", first.name, other.name);
        let mut column = Column { title: title.clone(), ..Column::default() };
        if let Err(error) = mixed(&first, &other, &mut column) {
            failed.push(format!("{title}:\n{error:#}"));
        }
        columns.push(column);
    }
    println!("{}", table(&columns));
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn mixed(first: &Build, other: &Build, column: &mut Column) -> Result<()> {
    with_agents(Lab::bridge(4), |lab, agents| {
        for (i, agent) in agents.iter_mut().enumerate() {
            let build = if i % 2 == 0 { first } else { other };
            agent.binary.clone_from(&build.path);
        }
        let masters = (0..3).map(|i| lab.nginx_master(i)).collect::<Result<Vec<_>>>()?;
        let mut mix = Mix { lab, agents, masters, first: first.clone(), other: other.clone() };
        let mut failed = Vec::new();
        for (name, act) in ACTS {
            let began = Instant::now();
            // The others are tried too: which ones fail together is informative.
            match act(&mut mix).and_then(|()| mix.agree()) {
                Ok(()) => drop(column.took.insert(name, began.elapsed())),
                Err(error) => failed.push(format!("{name}: {error:#}")),
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    })
}

/// A row for each act, a column for each cluster.
fn table(columns: &[Column]) -> String {
    let mut text = format!("{:<12}", "seconds");
    for Column { title, .. } in columns {
        let _ = write!(text, " | {title}");
    }
    for (name, _) in ACTS {
        let _ = write!(text, "\n{name:<12}");
        for Column { title, took } in columns {
            let cell =
                took.get(name).map_or("FAILED".to_owned(), |took| format!("{:.1}", took.as_secs_f64()));
            let _ = write!(text, " | {cell:>width$}", width = title.len());
        }
    }
    text
}

impl<'lab> Mix<'_, 'lab> {
    /// The build of a node's agent now.
    fn build(&self, i: usize) -> &Build {
        if self.agents[i].binary == self.first.path { &self.first } else { &self.other }
    }

    /// The nodes that run the next version, or those that do not.
    fn of(&self, next: bool) -> impl Iterator<Item = &Agent<'lab>> {
        let which = move |(i, agent)| (self.build(i).next == next).then_some(agent);
        self.agents.iter().enumerate().filter_map(which)
    }

    /// A node of each build, the first's first.
    fn both(&self) -> [&Agent<'lab>; 2] {
        [&self.agents[0], &self.agents[1]]
    }

    /// All have the same document, and nobody treats a member as an attacker or its record as unreadable as a
    /// whole.
    fn agree(&self) -> Result<()> {
        eventually("all hold the same document", LIMIT, || {
            let hashes: BTreeSet<String> = self
                .agents
                .iter()
                .map(|agent| Ok(agent.status()?.cluster.document))
                .collect::<Result<_>>()?;
            ensure!(hashes.len() == 1, "{hashes:?}");
            Ok(())
        })?;
        for agent in self.agents.iter() {
            let status = agent.status()?;
            let bad = ["gossip-refused", "gossip-failed", "part-failed", "identity-in-use"];
            let bad: Vec<_> = status.problems.iter().filter(|one| bad.contains(&one.code.as_str())).collect();
            ensure!(bad.is_empty(), "{}: {bad:?}", agent.name());
            let log = agent.log()?;
            let odd = ["cluster document rejected", "panicked", "another answer", "invalid request"];
            let odd: Vec<&str> =
                log.lines().filter(|line| odd.iter().any(|odd| line.contains(odd))).collect();
            ensure!(odd.is_empty(), "{} says {odd:#?}", agent.name());
        }
        Ok(())
    }

    /// Every node reaches the API.
    fn served(&self) -> Result<()> {
        for agent in self.agents.iter() {
            agent.who_serves().with_context(|| format!("the API through {}", agent.name()))?;
        }
        Ok(())
    }

    fn all_ready(&self) -> Result<()> {
        for agent in self.agents.iter() {
            for master in ["n0", "n1", "n2"] {
                agent.wait_for_backend(master, &["ready"], LIMIT)?;
            }
        }
        self.served()
    }

    // ---- the acts

    /// Each version admits nodes of both.
    fn join(&mut self) -> Result<()> {
        let [n0, n1, n2, n3] = &mut *self.agents else { anyhow::bail!("four agents") };
        let interface = n0.node().interface;
        let masters = n0.init_with(&["--iface", interface, "--vip", &ADDRESS.to_string()])?;
        let workers = n0.workers_invite()?;
        n1.join(&masters)?;
        let made = n1.cli(&["invite", "--master"])?.ok()?;
        n2.join(&invite_in(&made).with_context(|| format!("no invite in: {made}"))?)?;
        n3.join(&workers)?;
        all_up(self.agents)?;
        self.all_ready()?;
        self.speak_the_highest_common_version()?;
        let next = self.of(true).count();
        if next == 0 {
            return Ok(());
        }
        // Only the part of a record that is not understood is left out: an offer with a weight above today's
        // highest.
        for agent in self.of(false) {
            eventually("what is not understood of a record is named", LIMIT, || {
                let status = agent.status()?;
                let odd = status.problems.iter().filter(|one| one.code == "record-not-understood");
                let (odd, all) = (odd.count(), &status.problems);
                ensure!(
                    odd == next,
                    "{}: {odd} records are not understood, not {next}: {all:?}",
                    agent.name()
                );
                Ok(())
            })?;
        }
        for agent in self.of(true) {
            // It queries every member, each first with a request that only the next version knows.
            agent.cli(&["events", "--cluster"])?.ok()?;
            let log = agent.log()?;
            let asked = |alpn: &str, answer: &str| {
                let said = [format!("alpn=\"{alpn}\""), format!("answer=\"{answer}\"")];
                log.lines().any(|line| said.iter().all(|said| line.contains(said)))
            };
            ensure!(asked("agent/1", "Unsupported"), "{} asked no member of today's", agent.name());
            ensure!(asked("agent/2", "next"), "{} asked no member of the next version", agent.name());
        }
        Ok(())
    }

    /// Fields of the next version in the document and its entries survive a change by today's version, while no
    /// node of the next version runs that would merge them back.
    fn rewrite(&mut self) -> Result<()> {
        let next: Vec<usize> = (0..self.agents.len()).filter(|i| self.build(*i).next).collect();
        let author = (0..3).find(|i| !next.contains(i)).context("no master of today's")?;
        if next.is_empty() {
            return Ok(());
        }
        for i in &next {
            self.agents[*i].stop()?;
        }
        let before = next_fields(&self.agents[author])?;
        ensure!(before.iter().any(|path| path == "/next_list"), "the document has no such field: {before:?}");
        self.agents[author].cli(&["set", "balance=first"])?.ok()?;
        let after = next_fields(&self.agents[author])?;
        let lost: Vec<_> = before.difference(&after).collect();
        // The acts that follow need them, whatever was found.
        for i in &next {
            self.agents[*i].run()?;
            self.agents[*i].wait_until_asked()?;
        }
        self.agents[author].cli(&["unset", "balance"])?.ok()?;
        ensure!(lost.is_empty(), "{} has lost fields of the document: {lost:?}", self.agents[author].name());
        all_up(self.agents)?;
        self.all_ready()
    }

    /// Between two of the next version every datagram is of its version, all others are of today's.
    fn speak_the_highest_common_version(&self) -> Result<()> {
        let next: BTreeSet<_> = self.of(true).map(|agent| agent.node().mesh_ip()).collect();
        for i in [0, 1] {
            let what = format!("all speak the highest version that they have in common with n{i}");
            eventually(&what, LIMIT, || {
                let seen = record(self.lab.node(i), 7646, Duration::from_millis(400), |_| false)?;
                ensure!(seen.len() > 10, "{} datagrams", seen.len());
                let mut versions: BTreeMap<_, BTreeSet<u8>> = BTreeMap::new();
                for one in seen.iter().filter(|one| one.to_port == 7646 && one.from_port == 7646) {
                    let version = one.payload.first().copied().unwrap_or_default();
                    versions.entry((one.from, one.to)).or_default().insert(version);
                }
                for ((from, to), found) in &versions {
                    let wanted = if next.contains(from) && next.contains(to) { 2 } else { 1 };
                    ensure!(found.iter().eq([&wanted]), "{from} to {to}: {found:?}, not {wanted}");
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A master of each version dies, its apiserver and then its agent.
    fn failover(&mut self) -> Result<()> {
        for dead in [0, 1] {
            let name = format!("n{dead}");
            self.masters[dead].kill()?;
            for agent in self.agents.iter() {
                agent.wait_for_backend(&name, &["down", "gone"], SOON)?;
                let who = agent.who_serves()?;
                ensure!(who != name, "{}: a dead master answers", agent.name());
            }
            self.masters[dead].start_again(self.lab.node(dead))?;
            self.all_ready()?;
            self.agents[dead].kill()?;
            let watcher = &self.agents[3 - dead];
            eventually("its agent is missed", LIMIT, || {
                let state = watcher.status()?.member(&name)?.state.clone();
                ensure!(state != "up", "it is {state}");
                Ok(())
            })?;
            for agent in self.agents.iter().filter(|agent| agent.name() != name) {
                agent.who_serves()?;
            }
            self.agents[dead].run()?;
            self.agents[dead].wait_until_asked()?;
        }
        all_up(self.agents)?;
        self.all_ready()
    }

    /// Waits until all see the same owner, one of these, and it has the address.
    fn owned_by(&self, wanted: &[&str]) -> Result<String> {
        let address = ADDRESS.to_string();
        let (owner, _) = eventually(&format!("{wanted:?} own the address"), LIMIT, || {
            let mut owners = BTreeSet::new();
            for agent in
                self.agents.iter().filter(|agent| agent.cli(&["status"]).is_ok_and(|ran| ran.code == Some(0)))
            {
                let seen = vip(agent, &address)?;
                owners.insert(seen.owner.clone().with_context(|| format!("{}: {seen:?}", agent.name()))?);
            }
            let owner = owners.first().filter(|_| owners.len() == 1).context(format!("{owners:?}"))?.clone();
            ensure!(wanted.contains(&owner.as_str()), "{owner} does");
            let node = self.agents.iter().find(|agent| agent.name() == owner).context("no member")?.node();
            let shown = node.exec(&["ip", "-o", "address", "show", "to", &address])?.ok()?;
            ensure!(!shown.is_empty(), "{owner} has it not");
            Ok(owner)
        })?;
        Ok(owner)
    }

    /// All candidates know each other as such.
    fn candidates(&self, count: usize) -> Result<()> {
        eventually("all candidates could have the address", LIMIT, || {
            for agent in self.agents.iter().take(3) {
                let seen = vip(agent, &ADDRESS.to_string())?;
                let eligible = seen.candidates.iter().filter(|one| one.eligible).count();
                ensure!(eligible == count, "{}: {seen:?}", agent.name());
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The address moves from version to version: handed over, by priority, and taken over after silence.
    fn virtual_ip(&mut self) -> Result<()> {
        let address = ADDRESS.to_string();
        self.owned_by(&["n0", "n1", "n2"])?;
        self.candidates(3)?;
        for (by, to) in [(0, "n1"), (1, "n0"), (2, "n1")] {
            // It may be there already.
            let seen = vip(&self.agents[by], &address)?;
            if seen.owner.as_deref() != Some(to) {
                self.agents[by].cli(&["vip", "move", &address, to])?.ok()?;
            }
            self.owned_by(&[to])?;
        }
        // Silent owners, one of each version, and successors of the other: the second time the master that
        // would take over within the version is dead.
        for (dead, successors, ineligible) in [(1, &["n0", "n2"][..], None), (0, &["n1"][..], Some(2))] {
            let name = format!("n{dead}");
            self.candidates(3)?;
            if vip(&self.agents[3], &address)?.owner.as_deref() != Some(&name) {
                self.agents[1 - dead].cli(&["vip", "move", &address, &name])?.ok()?;
                self.owned_by(&[&name])?;
            }
            if let Some(i) = ineligible {
                let master: &mut Master = &mut self.masters[i];
                master.kill()?;
                self.candidates(2)?;
            }
            let epoch = vip(&self.agents[3], &address)?.epoch;
            self.agents[dead].kill()?;
            self.owned_by(successors)?;
            let seen = vip(&self.agents[3], &address)?;
            ensure!(seen.epoch > epoch, "{epoch} before, {seen:?}");
            self.agents[dead].run()?;
            self.agents[dead].wait_until_asked()?;
            if let Some(i) = ineligible {
                self.masters[i].start_again(self.lab.node(i))?;
                self.all_ready()?;
            }
            self.candidates(3)?;
        }
        Ok(())
    }

    /// A setting of one version takes effect on the other; settings that only the next version knows survive
    /// changes by today's.
    fn settings(&mut self) -> Result<()> {
        let unknown = self.of(true).next().map(Agent::name);
        if let Some(agent) = self.of(true).next() {
            agent.cli(&["set", "next.example=7"])?.ok()?;
        }
        for (by, value) in [(0, "first"), (1, "round-robin")] {
            self.agents[by].cli(&["set", &format!("balance={value}")])?.ok()?;
            for agent in self.agents.iter() {
                eventually(&format!("{} balances by {value}", agent.name()), LIMIT, || {
                    let found = agent.status()?.services[0].balance.clone();
                    ensure!(found == value, "it is {found}");
                    Ok(())
                })?;
            }
        }
        if unknown.is_some() {
            for agent in self.of(false) {
                eventually("the setting of the next version is named", LIMIT, || {
                    let problems = agent.status()?.problems;
                    let named = problems
                        .iter()
                        .any(|one| one.code == "setting-ignored" && one.subject == "next.example");
                    ensure!(named, "{}: {problems:?}", agent.name());
                    Ok(())
                })?;
            }
            for agent in self.of(true) {
                let said = agent.cli(&["get", "next.example"])?.ok()?;
                ensure!(said.contains('7'), "{}: {said}", agent.name());
                let named = agent.status()?.problems.iter().any(|one| one.code == "setting-ignored");
                ensure!(!named, "{} does not know its own setting", agent.name());
            }
            // A node that does not know it can still unset it.
            let older = self.of(false).next().context("none of today's")?;
            older.cli(&["unset", "next.example"])?.ok()?;
            for agent in self.of(true) {
                eventually("it is not set any more", LIMIT, || {
                    let said = agent.cli(&["get", "next.example", "--json"])?.ok()?;
                    let said: serde_json::Value = serde_json::from_str(&said)?;
                    ensure!(said["settings"] == serde_json::json!([]), "{}: {said}", agent.name());
                    Ok(())
                })?;
            }
        }
        self.agents[1].cli(&["unset", "balance"])?.ok()?;
        Ok(())
    }

    /// Each version drains a master of the other, and ends that.
    fn drain(&mut self) -> Result<()> {
        for (by, of) in [(0, "n1"), (1, "n0")] {
            for (command, state) in [("drain", "draining"), ("undrain", "ready")] {
                self.agents[by].cli(&[command, of])?.ok()?;
                for agent in self.agents.iter() {
                    agent.wait_for_backend(of, &[state], LIMIT)?;
                }
            }
        }
        self.served()
    }

    /// Each version changes the key, and all continue with it.
    fn rotation(&mut self) -> Result<()> {
        for by in [0, 1] {
            let epoch = self.agents[by].status()?.cluster.key_epoch + 1;
            self.agents[by].cli(&["rotate"])?.ok()?;
            for agent in self.agents.iter() {
                eventually(&format!("{} has the new key", agent.name()), LIMIT, || {
                    let found = agent.status()?.cluster.key_epoch;
                    ensure!(found == epoch, "it has {found} and not {epoch}");
                    Ok(())
                })?;
            }
            all_up(self.agents)?;
        }
        self.all_ready()
    }

    /// Each version's command line queries each version's agent.
    fn commands(&mut self) -> Result<()> {
        let [first, other] = self.both();
        for agent in [first, other] {
            for by in [&first.binary, &other.binary] {
                let asked: [&[&str]; 9] = [
                    &["status"],
                    &["status", "--json"],
                    &["members"],
                    &["get"],
                    &["events"],
                    &["events", "--json", "--cluster"],
                    &["events", "--since", "1h"],
                    &["doctor"],
                    &["doctor", "--json"],
                ];
                for command in asked {
                    let ran = agent.cli_of(by, command)?;
                    let fine = match command[0] {
                        // It may have found something.
                        "doctor" => matches!(ran.code, Some(0 | 10 | 11)),
                        _ => ran.code == Some(0) && ran.err.is_empty(),
                    };
                    let (by, all) = (by.display(), ["n0", "n1", "n2", "n3"]);
                    ensure!(fine && !ran.err.contains("next-wire"), "by {by}: {ran}");
                    if command[0] == "members" {
                        ensure!(all.iter().all(|name| ran.out.contains(name)), "by {by}: {ran}");
                    }
                    if command.contains(&"--json") {
                        let lines = if command[0] == "events" {
                            ran.out.lines().collect()
                        } else {
                            vec![ran.out.as_str()]
                        };
                        let read = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
                        ensure!(lines.iter().all(read), "by {by}: {ran}");
                    }
                    let silent = ["did not answer", "no-answer", "not answered"];
                    ensure!(!silent.iter().any(|word| ran.out.contains(word)), "by {by}: {ran}");
                }
            }
        }
        Ok(())
    }

    /// Restarts a node as another build, from its state directory.
    fn restart_as(&mut self, i: usize, build: &Build) -> Result<()> {
        let before = self.agents[i].status()?;
        self.agents[i].stop()?;
        self.agents[i].binary.clone_from(&build.path);
        self.agents[i].run()?;
        self.agents[i].wait_until_asked()?;
        let after = self.agents[i].status()?;
        ensure!(
            before.node.id == after.node.id && before.cluster.id == after.cluster.id,
            "it is another node"
        );
        all_up(self.agents)?;
        self.all_ready()
    }

    /// The node that changes its version: a master of the older one.
    fn older(&self) -> usize {
        if self.first.next || self.other.name == "old" { 1 } else { 2 }
    }

    /// A master of the older version continues as the newer one.
    fn upgrade(&mut self) -> Result<()> {
        let i = self.older();
        let newer = if i == 1 { self.first.clone() } else { self.other.clone() };
        self.restart_as(i, &newer)?;
        self.candidates(3)?;
        // It has the address once, so that it writes what owners write.
        let (address, name) = (ADDRESS.to_string(), format!("n{i}"));
        if vip(&self.agents[3], &address)?.owner.as_deref() != Some(&name) {
            self.agents[0].cli(&["vip", "move", &address, &name])?.ok()?;
        }
        self.owned_by(&[&name]).map(drop)
    }

    /// And back: dispensable files of the higher version are kept and reported, all others are read.
    fn downgrade(&mut self) -> Result<()> {
        let i = self.older();
        let older = if i == 1 { self.other.clone() } else { self.first.clone() };
        let from_next = self.build(i).next;
        let state = self.agents[i].state().to_owned();
        self.restart_as(i, &older)?;
        if from_next {
            let problems = self.agents[i].status()?.problems;
            let problem = problems
                .iter()
                .find(|one| one.code == "state-file")
                .with_context(|| format!("{problems:?}"))?;
            ensure!(problem.subject.contains("epochs"), "{problem:?}");
            let epochs = std::fs::read_to_string(state.join("epochs"))?;
            ensure!(epochs.contains("\"version\": 2"), "epochs was written over: {epochs}");
            let files = std::fs::read_to_string(state.join("node"))?;
            ensure!(files.contains("\"version\": 1"), "{files}");
        }
        self.candidates(3)?;
        self.owned_by(&["n0", "n1", "n2"]).map(drop)
    }

    /// A required file of an unknown version: it reports it and leaves it alone.
    fn newer_files(&mut self) -> Result<()> {
        let i = self.older();
        self.agents[i].stop()?;
        let path = self.agents[i].state().join("node");
        let whole = std::fs::read(&path)?;
        let newer = of_version(&whole, 9)?;
        std::fs::write(&path, &newer)?;
        self.agents[i].run()?;
        let code = self.agents[i].process()?.ended(SOON)?;
        ensure!(code == Some(78), "it ended with {code:?}");
        ensure!(std::fs::read(&path)? == newer, "it was not left alone");
        std::fs::write(&path, &whole)?;
        self.agents[i].run()?;
        self.agents[i].wait_until_asked()?;
        all_up(self.agents)?;
        self.all_ready()
    }
}

/// The places of the next version's fields in a node's document.
fn next_fields(agent: &Agent<'_>) -> Result<BTreeSet<String>> {
    fn walk(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}/{key}");
            if ["next", "next_list"].contains(&key.as_str()) {
                found.insert(path.clone());
            }
            walk(value, &path, found);
        }
    }
    let file: serde_json::Value = read_state(agent.state(), "cluster")?;
    let mut found = BTreeSet::new();
    walk(&file["document"], "", &mut found);
    Ok(found)
}

/// The same state file with another version, and the matching checksum.
fn of_version(file: &[u8], version: u32) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(file)?;
    let (_, body) = text.split_once('\n').context("no first line")?;
    let body = body.replacen("\"version\": 1", &format!("\"version\": {version}"), 1);
    let mut sum = String::new();
    for byte in digest(&SHA256, body.as_bytes()).as_ref() {
        write!(sum, "{byte:02x}")?;
    }
    Ok(format!("agent-state 1 {sum}\n{body}").into_bytes())
}
