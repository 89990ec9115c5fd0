//! Many nodes that join at once, and what they notice of each other and of a master that is cut: for the bench and
//! the suite.
//!
//! All agents of one machine share its cores, so they are asked little: times are read from their events, and
//! only what no event says is polled.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use proto::control::{MemberState, Request, Response, Status};
use proto::event::{Event, EventKind, EventQuery};
use proto::time::UnixMs;

use proto::topology::Place;

use crate::lab::Signal;
use crate::mesh::{Agent, form};

/// Masters: the first nodes.
pub const MASTERS: usize = 3;

/// Between two rounds of polls at least, and how many times as long as the last round took: so polls take at most
/// a fifth of a core.
const PAUSE: Duration = Duration::from_millis(200);
const IDLE_FACTOR: u32 = 4;

/// Longer than changes of workers wait for others of their kind, and than nobody is called down after a start.
const SUMMED_UP: Duration = Duration::from_secs(30);

/// The wall clock, which all nodes of a lab share.
pub fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Status of a node.
///
/// # Errors
/// It does not respond.
pub fn status(agent: &Agent<'_>) -> Result<Status> {
    match agent.ask(&Request::Status)? {
        Response::Status(status) => Ok(*status),
        other => bail!("another response: {other:?}"),
    }
}

/// Events of a node since a time, oldest first.
///
/// # Errors
/// It does not respond.
pub fn events(agent: &Agent<'_>, since: UnixMs) -> Result<Vec<Event>> {
    let most = u32::try_from(proto::event::KEPT)?;
    match agent.ask(&Request::Events(EventQuery { since, most, ..EventQuery::default() }))? {
        Response::Events { events, .. } => Ok(events),
        other => bail!("another response: {other:?}"),
    }
}

/// When each of some nodes had seen something; none: not in time.
pub struct Seen(Vec<Option<Duration>>);

impl Seen {
    /// The first event of each node since `since` that counts.
    ///
    /// # Errors
    /// A node does not respond.
    pub fn of_events(agents: &[&Agent<'_>], since: UnixMs, counts: impl Fn(&Event) -> bool) -> Result<Seen> {
        let first = |agent: &&Agent<'_>| -> Result<Option<Duration>> {
            let all = events(agent, since)?;
            let event = all.iter().find(|event| counts(event));
            Ok(event.map(|event| Duration::from_millis(event.time_unix_ms.0.saturating_sub(since.0))))
        };
        Ok(Seen(agents.iter().map(first).collect::<Result<_>>()?))
    }

    /// How many have.
    pub fn count(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// When the last had; none: some have not.
    pub fn last(&self) -> Option<Duration> {
        self.0.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The time of the median node and the last, in seconds.
    pub fn median_and_last(&self) -> String {
        let mut all: Vec<Duration> = self.0.iter().flatten().copied().collect();
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        format!("{:.2} {}", median.as_secs_f64(), self.shown())
    }

    /// The last time in seconds, with the number of nodes where some are missing.
    pub fn shown(&self) -> String {
        let latest = self.0.iter().flatten().max();
        let seconds = latest.map_or_else(|| "-".to_owned(), |last| format!("{:.2}", last.as_secs_f64()));
        if self.count() == self.0.len() {
            seconds
        } else {
            format!("{seconds} ({}/{})", self.count(), self.0.len())
        }
    }
}

/// A cluster that many have joined at once.
pub struct Joined {
    /// When the first of them was started.
    pub began: UnixMs,
    /// Until each node's proxy had a ready backend.
    pub serve: Seen,
    /// Until each node's status had every member, all up.
    pub all: Seen,
}

/// Forms a cluster of the first [`MASTERS`] agents, and has all others join at once. Waits until all see all, or
/// for `limit`.
///
/// # Errors
/// The masters do not find each other, or a process can't be started.
pub fn join_at_once(agents: &mut [Agent<'_>], limit: Duration) -> Result<Joined> {
    join_later(agents, Duration::ZERO, limit)
}

/// The same, when the masters have run for this long.
///
/// # Errors
/// As [`join_at_once`].
pub fn join_later(agents: &mut [Agent<'_>], before: Duration, limit: Duration) -> Result<Joined> {
    let (masters, others) = agents.split_at_mut_checked(MASTERS).context("too few agents")?;
    form(masters)?;
    std::thread::sleep(before);
    let invite = masters.first().context("no master")?.workers_invite()?;
    let (began, started) = (now(), Instant::now());
    for other in others.iter_mut() {
        other.begin_join(&invite)?;
    }
    let all = all_see_all(agents, started, limit);
    let ready = |event: &Event| event.kind == EventKind::Backend && event.to == "ready";
    let others: Vec<&Agent<'_>> = agents.iter().skip(MASTERS).collect();
    // A node that has not even started has no socket.
    let serves = |one: &&Agent<'_>| Seen::of_events(&[*one], began, ready).ok().and_then(|seen| seen.last());
    // One that sees all may not serve yet.
    let serve = loop {
        let serve: Vec<Option<Duration>> = others.iter().map(serves).collect();
        if started.elapsed() >= limit || serve.iter().all(Option::is_some) {
            break serve;
        }
        std::thread::sleep(PAUSE);
    };
    Ok(Joined { began, serve: Seen(serve), all })
}

/// When each node's status had every member, all up.
fn all_see_all(agents: &[Agent<'_>], started: Instant, limit: Duration) -> Seen {
    let mut all: Vec<Option<Duration>> = vec![None; agents.len()];
    while started.elapsed() < limit && all.iter().any(Option::is_none) {
        let round = Instant::now();
        for (agent, seen) in agents.iter().zip(&mut all).filter(|(_, seen)| seen.is_none()) {
            if status(agent).is_ok_and(|status| sees(&status, agents.len())) {
                *seen = Some(started.elapsed());
            }
        }
        std::thread::sleep(PAUSE.max(round.elapsed() * IDLE_FACTOR));
    }
    Seen(all)
}

/// What follows when all agents stop and start again at once.
pub struct Restarted {
    /// From the first start until each node's status had every member, all up.
    pub all: Seen,
    /// Members and backends that were worse than before, by all nodes, from the stop on.
    pub alarms: FalseAlarms,
    /// Events that each node has added from the stop on: how many in all, and how many about workers.
    pub events: Vec<(usize, usize)>,
}

/// Stops all agents at once, by this signal, starts them again when all have ended, and waits until all see all, and as
/// long again as it takes to sum up events.
///
/// # Errors
/// One does not end, can't be started, or does not respond.
pub fn restart_all(agents: &mut [Agent<'_>], signal: Signal, limit: Duration) -> Result<Restarted> {
    let stopped = now();
    for agent in agents.iter_mut() {
        agent.process()?.signal(signal)?;
    }
    for agent in agents.iter_mut() {
        agent.process()?.ended(limit)?;
    }
    let started = Instant::now();
    agents.iter_mut().try_for_each(again)?;
    let all = all_see_all(agents, started, limit);
    std::thread::sleep(SUMMED_UP);
    let alarms = FalseAlarms::between(agents, stopped, now())?;
    let masters: Vec<&str> = agents.iter().take(MASTERS).map(Agent::name).collect();
    let events = agents.iter().map(|agent| {
        let all = events(agent, stopped)?;
        let of_worker =
            |event: &&Event| event.kind == EventKind::Member && !masters.contains(&event.subject.as_str());
        Ok((all.len(), all.iter().filter(of_worker).count()))
    });
    Ok(Restarted { all, alarms, events: events.collect::<Result<_>>()? })
}

fn sees(status: &Status, members: usize) -> bool {
    status.members.len() == members && status.members.iter().all(|member| member.state == MemberState::Up)
}

/// Events that say that something is worse than it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FalseAlarms {
    /// Members that were suspect, and down.
    pub members: [usize; 2],
    /// Backends that were suspect, and down.
    pub backends: [usize; 2],
}

impl FalseAlarms {
    /// Those in `[since, until)`, when nothing was wrong.
    ///
    /// # Errors
    /// A node does not respond.
    pub fn between(agents: &[Agent<'_>], since: UnixMs, until: UnixMs) -> Result<FalseAlarms> {
        let mut alarms = FalseAlarms::default();
        for agent in agents {
            let all = events(agent, since)?;
            for event in all.iter().filter(|event| event.time_unix_ms < until) {
                let counts = match event.kind {
                    EventKind::Member => &mut alarms.members,
                    EventKind::Backend => &mut alarms.backends,
                    _ => continue,
                };
                // A backend that has not answered yet is probed before it is up: that is no step back.
                let worse = event.from == "up" || event.from == "ready" || event.from == "suspect";
                match event.to.as_str() {
                    "suspect" if worse => counts[0] += event.count.unwrap_or(1) as usize,
                    "down" => counts[1] += event.count.unwrap_or(1) as usize,
                    _ => {}
                }
            }
        }
        Ok(alarms)
    }
}

impl std::fmt::Display for FalseAlarms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [[suspect, down], [late, dead]] = [self.members, self.backends];
        f.pad(&format!("{suspect}/{down} {late}/{dead}"))
    }
}

/// What the others notice of a master that is cut from the network, and of its return.
pub struct CutNoticed {
    /// Until its backend was down.
    pub down: Seen,
    /// From its return until it was ready.
    pub back: Seen,
    /// How each node came to its verdict, the fastest first.
    pub traces: Vec<CutTrace>,
}

/// How one node came to know that a master is gone.
pub struct CutTrace {
    /// Its name.
    pub node: String,
    /// Its place.
    pub place: String,
    /// What became of the backend, when after the cut, and why.
    pub steps: Vec<(Duration, String, String)>,
    /// How long its threads were ready to run and waited for a processor, in the [`RUSH`] after the cut.
    pub waited: Duration,
}

impl CutTrace {
    fn down(&self) -> Option<Duration> {
        self.steps.iter().find(|(_, to, _)| to == "down").map(|(at, _, _)| *at)
    }
}

impl std::fmt::Display for CutTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CutTrace { node, place, waited, .. } = self;
        write!(f, "{node:<4} {place:<8} waited {:.2} s;", waited.as_secs_f64())?;
        self.steps.iter().try_for_each(|(at, to, why)| write!(f, " {:.2} {to} ({why});", at.as_secs_f64()))
    }
}

/// The time after a cut in which all nodes are busy with it.
pub const RUSH: Duration = Duration::from_millis(1_500);

/// How long a process' threads have waited for a processor while ready to run.
fn waited(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends in between does not matter.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split_whitespace().nth(1).context("a short schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Cuts a master at the switch for `away`, and lets it back for as long again.
///
/// # Errors
/// The switch refused, or a node does not respond.
pub fn cut(agents: &mut [Agent<'_>], master: usize, away: Duration) -> Result<CutNoticed> {
    let mut pids: Vec<u32> =
        agents.iter_mut().map(|agent| Ok(agent.process()?.pid())).collect::<Result<_>>()?;
    pids.remove(master);
    let waiting = || pids.iter().map(|pid| waited(*pid)).collect::<Result<Vec<Duration>>>();
    let agents = &*agents;
    let cut = agents.get(master).context("no such master")?;
    let others: Vec<&Agent<'_>> = agents.iter().filter(|one| one.name() != cut.name()).collect();
    let subject = format!("kube-api/{}", cut.name());
    let became = |to: &'static str| {
        let subject = subject.clone();
        move |event: &Event| event.kind == EventKind::Backend && event.subject == subject && event.to == to
    };
    let (since, before) = (now(), waiting()?);
    cut.node().power_cut()?;
    std::thread::sleep(RUSH);
    let after = waiting()?;
    std::thread::sleep(away.saturating_sub(RUSH));
    let down = Seen::of_events(&others, since, became("down"))?;
    let mut traces = Vec::new();
    for (at, agent) in others.iter().enumerate() {
        let all = events(agent, since)?;
        let steps = all.iter().filter(|event| event.kind == EventKind::Backend && event.subject == subject);
        let step = |event: &Event| {
            let after = Duration::from_millis(event.time_unix_ms.0.saturating_sub(since.0));
            (after, event.to.clone(), event.reason.to_string())
        };
        traces.push(CutTrace {
            node: agent.name().to_owned(),
            place: if at + 1 < MASTERS { "master".to_owned() } else { status(agent)?.node.place.to_string() },
            steps: steps.map(step).collect(),
            waited: after
                .get(at)
                .zip(before.get(at))
                // Less than before, where a thread has ended and taken its share along.
                .map(|(after, before)| after.saturating_sub(*before))
                .unwrap_or_default(),
        });
    }
    traces.sort_by_key(CutTrace::down);
    let since = now();
    cut.node().power_on()?;
    std::thread::sleep(away);
    let back = Seen::of_events(&others, since, became("ready"))?;
    Ok(CutNoticed { down, back, traces })
}

/// What the others notice of a core member whose agent is killed; of any worker where all gossip.
pub struct KillNoticed {
    /// Until each of those that were attached to it had others of the core instead.
    pub held: Seen,
    /// Until no node took it for up any more.
    pub down: Seen,
}

/// Kills the agent of a worker that is in the core, waits for `limit` at most until all others have noticed, and starts
/// it again.
///
/// # Errors
/// A node does not respond, or the agent can't be started.
pub fn kill_core_member(agents: &mut [Agent<'_>], limit: Duration) -> Result<KillNoticed> {
    let statuses: Vec<Status> = agents.iter().map(status).collect::<Result<_>>()?;
    let in_core = |at: &usize| statuses.get(*at).is_some_and(|status| status.node.place == Place::Core);
    let killed = (MASTERS..agents.len()).find(in_core).unwrap_or(agents.len() - 1);
    let victim = agents.get_mut(killed).context("no worker")?;
    let name = victim.name();
    let is_held = |status: &Status| status.node.attached_to.iter().any(|held| held.as_str() == name);
    let started = Instant::now();
    victim.kill()?;
    let mut held: Vec<Option<Duration>> =
        statuses.iter().map(|status| (!is_held(status)).then_some(Duration::ZERO)).collect();
    let mut down = vec![None; agents.len()];
    for seen in [&mut held, &mut down] {
        *seen.get_mut(killed).context("no such node")? = Some(Duration::ZERO);
    }
    while started.elapsed() < limit && held.iter().chain(&down).any(Option::is_none) {
        let round = Instant::now();
        for ((agent, held), down) in agents.iter().zip(&mut held).zip(&mut down) {
            if held.is_some() && down.is_some() {
                continue;
            }
            let Ok(status) = status(agent) else { continue };
            if !is_held(&status) {
                held.get_or_insert(started.elapsed());
            }
            let mut members = status.members.iter();
            if !members.any(|member| member.name.as_str() == name && member.state == MemberState::Up) {
                down.get_or_insert(started.elapsed());
            }
        }
        std::thread::sleep(PAUSE.max(round.elapsed() * IDLE_FACTOR));
    }
    again(agents.get_mut(killed).context("no such node")?)?;
    Ok(KillNoticed { held: Seen(held), down: Seen(down) })
}

/// Starts a node from its state: the options were for joining.
fn again(agent: &mut Agent<'_>) -> Result<()> {
    agent.options.clear();
    agent.run()
}

/// Cuts a master's power and kills its agent, starts both again after `away`, and waits as long again. Returns how long
/// after its start each other node had it ready.
///
/// # Errors
/// The switch refused, or a node does not respond.
pub fn master_back(agents: &mut [Agent<'_>], master: usize, away: Duration) -> Result<Seen> {
    let returned = agents.get_mut(master).context("no such master")?;
    let name = returned.name();
    returned.node().power_cut()?;
    returned.kill()?;
    std::thread::sleep(away);
    let since = now();
    returned.node().power_on()?;
    again(returned)?;
    std::thread::sleep(away);
    let subject = format!("kube-api/{name}");
    let others: Vec<&Agent<'_>> = agents.iter().filter(|one| one.name() != name).collect();
    Seen::of_events(&others, since, |event| {
        event.kind == EventKind::Backend && event.subject == subject && event.to == "ready"
    })
}
