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

use crate::mesh::{Agent, form};

/// Masters: the first nodes.
pub const MASTERS: usize = 3;

/// Between two rounds of polls at least, and how many times as long as the last round took: so polls take at most
/// a fifth of a core.
const PAUSE: Duration = Duration::from_millis(200);
const IDLE_FACTOR: u32 = 4;

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

    /// The last time in seconds, with the number of nodes where some are missing.
    pub fn shown(&self) -> String {
        let latest = self.0.iter().flatten().max();
        let seconds = latest.map_or_else(|| "-".to_owned(), |last| format!("{:.1}", last.as_secs_f64()));
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
    let (masters, others) = agents.split_at_mut_checked(MASTERS).context("too few agents")?;
    form(masters)?;
    let invite = masters.first().context("no master")?.workers_invite()?;
    let (began, started) = (now(), Instant::now());
    for other in others.iter_mut() {
        other.begin_join(&invite)?;
    }
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
    let ready = |event: &Event| event.kind == EventKind::Backend && event.to == "ready";
    let others: Vec<&Agent<'_>> = agents.iter().skip(MASTERS).collect();
    // A node that has not even started has no socket.
    let serve =
        others.iter().map(|one| Seen::of_events(&[*one], began, ready).ok().and_then(|seen| seen.last()));
    let serve = Seen(serve.collect());
    Ok(Joined { began, serve, all: Seen(all) })
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
}

/// Cuts a master at the switch for `away`, and lets it back for as long again.
///
/// # Errors
/// The switch refused, or a node does not respond.
pub fn cut(agents: &[Agent<'_>], master: usize, away: Duration) -> Result<CutNoticed> {
    let cut = agents.get(master).context("no such master")?;
    let others: Vec<&Agent<'_>> = agents.iter().filter(|one| one.name() != cut.name()).collect();
    let subject = format!("kube-api/{}", cut.name());
    let became = |to: &'static str| {
        let subject = subject.clone();
        move |event: &Event| event.kind == EventKind::Backend && event.subject == subject && event.to == to
    };
    let since = now();
    cut.node().power_cut()?;
    std::thread::sleep(away);
    let down = Seen::of_events(&others, since, became("down"))?;
    let since = now();
    cut.node().power_on()?;
    std::thread::sleep(away);
    let back = Seen::of_events(&others, since, became("ready"))?;
    Ok(CutNoticed { down, back })
}
