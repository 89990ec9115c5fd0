//! Compares two states of what this node knows, and finds the changes.
//!
//! No clock and no task: the time is an argument. Each method takes the newest value of one watch and appends
//! the events that lead there to a list.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::backends::{BackendState, BackendTable};
use proto::cause::{Cause, Fault, Reason};
use proto::cluster::Document;
use proto::control::{MemberState, VipState, VipStatus};
use proto::event::{Event, EventKind, EventLevel, EventSummer, ONE_BY_ONE};
use proto::health::Readiness;
use proto::node::{Name, NodeId};
use proto::problem::{Problem, ProblemCode};
use proto::pulse::{Liveness, PeerLivenessMap};
use proto::record::ServiceOffer;
use proto::service::ServiceName;
use proto::settings::{Secrecy, secrecy};
use proto::time::UnixMs;
use proto::view::ClusterView;

/// A member that never answered is reported down only this long after this node's start or its own admission: it has to
/// start, and gossip needs its time.
const FIRST_CONTACT: Duration = Duration::from_secs(15);

/// Documents differ for seconds after every change; longer is reported.
const SETTLE: Duration = Duration::from_secs(60);

/// Settings that say since when a node drains; its name follows.
const DRAINS: &str = "drain.";

/// A limit counts as no longer met after this long: otherwise each connection would be an event.
const QUIET: Duration = Duration::from_secs(5);

/// Polled once a second, since no watch carries it.
#[derive(Debug, Default)]
pub(crate) struct PolledState {
    /// By service.
    pub(crate) services: BTreeMap<ServiceName, ProxyCounters>,
    /// Problems of this node itself.
    pub(crate) problems: Vec<Problem>,
}

/// Proxy counters of a service.
#[derive(Debug, Default)]
pub(crate) struct ProxyCounters {
    /// Its addresses, and the error of those that are not bound.
    pub(crate) listens: Vec<(SocketAddr, Option<Fault>)>,
    /// Connections refused since start because of `maxconn`.
    pub(crate) refused: u64,
    /// Limit of concurrent connections.
    pub(crate) maxconn: u32,
    /// Second dials and hellos since start that the budget did not allow.
    pub(crate) denied: u64,
}

/// What was last seen, each with since when.
pub(super) struct PreviousState {
    own: NodeId,
    /// Since when others could be heard.
    hears: UnixMs,
    /// Everyone who was a master since the start.
    masters: Vec<Name>,
    backends: BTreeMap<(ServiceName, NodeId), (BackendState, UnixMs, Name)>,
    members: BTreeMap<NodeId, (MemberState, UnixMs)>,
    /// Members that were admitted since the start, and when this node learnt of it.
    admitted: BTreeMap<NodeId, UnixMs>,
    draining: BTreeMap<NodeId, UnixMs>,
    checks: BTreeMap<ServiceName, (Readiness, UnixMs)>,
    document: Arc<Document>,
    hash: String,
    /// Members with another document, since when, and whether that was reported.
    differing: BTreeMap<NodeId, (UnixMs, bool)>,
    failed: BTreeMap<(ServiceName, SocketAddr), UnixMs>,
    limits: BTreeMap<(EventKind, ServiceName), LimitCounter>,
    problems: BTreeMap<(ProblemCode, String), (Problem, UnixMs)>,
    vips: BTreeMap<IpAddr, (&'static str, UnixMs)>,
}

/// A counter that grows while a limit is met.
#[derive(Default)]
struct LimitCounter {
    count: u64,
    /// Since when, and when it grew last.
    met: Option<(UnixMs, UnixMs)>,
}

impl PreviousState {
    /// Starts with the document as found on disk; all else starts empty.
    pub(super) fn new(own: NodeId, hears: UnixMs, document: Arc<Document>) -> PreviousState {
        PreviousState {
            own,
            hears,
            masters: masters(&document).collect(),
            backends: BTreeMap::new(),
            members: BTreeMap::new(),
            admitted: BTreeMap::new(),
            draining: BTreeMap::new(),
            checks: BTreeMap::new(),
            hash: document.hash(),
            document,
            differing: BTreeMap::new(),
            failed: BTreeMap::new(),
            limits: BTreeMap::new(),
            problems: BTreeMap::new(),
            vips: BTreeMap::new(),
        }
    }

    /// Whether this change may be summed up with others of its kind: in a large cluster, that of a worker.
    pub(super) fn is_one_of_many(&self, event: &Event) -> bool {
        EventSummer::takes(event.kind)
            && self.document.members().count() > ONE_BY_ONE
            && !self.masters.iter().any(|master| master.as_str() == event.subject)
    }

    /// The proxy's backends.
    pub(super) fn table(&mut self, table: &BackendTable, now: UnixMs, out: &mut Vec<Event>) {
        let mut gone = std::mem::take(&mut self.backends);
        for (service, backend) in table.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one)))
        {
            let key = (service.clone(), backend.node);
            let subject = format!("{service}/{}", backend.name);
            // Suspect is a step back only from a good state: a backend that has not answered yet, at a start,
            // is probed, and that is all.
            let was_good = gone.get(&key).is_some_and(|(state, ..)| state.is_good());
            let told = Event::new(EventKind::Backend, now, subject, backend.state.as_str())
                .reason(backend.reason())
                .level(match backend.state {
                    BackendState::Ready
                    | BackendState::Alive
                    | BackendState::Draining
                    | BackendState::Unknown => EventLevel::Info,
                    BackendState::Suspect if was_good => EventLevel::Warning,
                    BackendState::Suspect | BackendState::Other(_) => EventLevel::Info,
                    BackendState::NotReady | BackendState::Down => EventLevel::Error,
                });
            let told = match backend.cause {
                Some(cause) => told.because(cause),
                None => told,
            };
            let since = match gone.remove(&key) {
                Some((state, since, _)) if state == backend.state => since,
                Some((state, since, _)) => {
                    out.push(told.since(state.as_str(), since));
                    now
                }
                // The last known good list was known before.
                None if backend.state == BackendState::Unknown => backend.since,
                None => {
                    out.push(told);
                    backend.since
                }
            };
            self.backends.insert(key, (backend.state, since, backend.name.clone()));
        }
        for ((service, _), (state, since, name)) in gone {
            let event = Event::new(EventKind::Backend, now, format!("{service}/{name}"), "gone");
            out.push(event.since(state.as_str(), since).level(EventLevel::Warning));
        }
    }

    /// The members, by pulses and gossip, as status evaluates them.
    pub(super) fn members(
        &mut self,
        view: &ClusterView,
        liveness: &PeerLivenessMap,
        table: &BackendTable,
        now: UnixMs,
        out: &mut Vec<Event>,
    ) {
        let document = self.document.clone();
        let serving = table.get(&ServiceName::kube_api()).map_or(&[][..], Vec::as_slice);
        for (id, admitted) in document.members() {
            let (member, peer_liveness) = (view.members.get(id), liveness.get(id));
            let pulse_status = peer_liveness
                .filter(|peer_liveness| peer_liveness.liveness < Liveness::Silent)
                .and_then(|peer_liveness| peer_liveness.status.as_ref());
            if let Some(member) = member {
                let draining = pulse_status
                    .map_or(member.record.draining.is_some(), |pulse_status| pulse_status.draining);
                self.drained(*id, &admitted.name, (draining, member.record.left), now, out);
            }
            if *id == self.own {
                continue;
            }
            let serves = serving.iter().any(|one| one.node == *id && one.state == BackendState::Ready);
            let state =
                MemberState::of(view, id, peer_liveness.map(|peer_liveness| peer_liveness.liveness), serves);
            let known = self.members.get(id).copied();
            let begun = self.admitted.get(id).map_or(self.hears, |at| self.hears.max(*at));
            let early = now.0.saturating_sub(begun.0) < FIRST_CONTACT.as_millis() as u64;
            // In a large cluster everyone is up until core members say otherwise, which proves nothing.
            let answered = peer_liveness.is_some_and(|one| one.status.is_some());
            let is_unheard = known.is_none() || view.others.is_some() && !answered;
            if known.is_some_and(|(was, _)| was == state)
                || (state == MemberState::Down && early && is_unheard)
            {
                continue;
            }
            let cut_off = peer_liveness.is_some_and(|one| one.liveness == Liveness::CutOff);
            let (level, cause) = match state {
                MemberState::Up => (EventLevel::Info, None),
                MemberState::Suspect if serves => (EventLevel::Warning, Some(Cause::CheckedDirectly)),
                MemberState::Suspect => (EventLevel::Warning, Some(Cause::AnswersLate)),
                MemberState::Down if cut_off => (EventLevel::Error, Some(Cause::PathCut)),
                MemberState::Down => (EventLevel::Error, Some(Cause::NotHeard)),
                MemberState::Left => (EventLevel::Info, Some(Cause::AgentStopped)),
                MemberState::Other(_) => (EventLevel::Info, None),
            };
            let event = Event::new(EventKind::Member, now, admitted.name.as_str(), state.as_str());
            let event = event.level(level);
            let event = match cause {
                Some(cause) => event.because(cause),
                None => event,
            };
            out.push(match known {
                Some((was, since)) => event.since(was.as_str(), since),
                None => event,
            });
            self.members.insert(*id, (state, now));
        }
        self.members.retain(|id, _| document.member(id).is_some());
        self.admitted.retain(|id, _| document.member(id).is_some());
        self.draining.retain(|id, _| document.member(id).is_some());
    }

    fn drained(
        &mut self,
        id: NodeId,
        name: &Name,
        (draining, left): (bool, bool),
        now: UnixMs,
        out: &mut Vec<Event>,
    ) {
        let setting = self.document.settings.get(&format!("{DRAINS}{name}"));
        let by =
            setting.map_or(String::new(), |setting| format!("by {}", self.document.name_of(&setting.by)));
        // A stopping node drains too; the stop itself is already reported.
        match (draining && !left, self.draining.get(&id).copied()) {
            (true, None) => {
                self.draining.insert(id, now);
                let event =
                    Event::new(EventKind::Drain, now, name.as_str(), "draining").from("serving", None);
                out.push(event.requested(by));
            }
            (false, Some(since)) => {
                self.draining.remove(&id);
                let to = if left { "stopped" } else { "serving" };
                let event = Event::new(EventKind::Drain, now, name.as_str(), to).since("draining", since);
                out.push(if left { event.because(Cause::AgentStopped) } else { event.requested(by) });
            }
            _ => {}
        }
    }

    /// This node's own checks.
    pub(super) fn checks(
        &mut self,
        health: &BTreeMap<ServiceName, ServiceOffer>,
        now: UnixMs,
        out: &mut Vec<Event>,
    ) {
        let mut gone = std::mem::take(&mut self.checks);
        // State before the first check is not reported.
        let checked = |offer: &ServiceOffer| offer.health.cause != Cause::NotCheckedYet;
        for (service, offer) in health.iter().filter(|(_, offer)| checked(offer)) {
            let found = offer.health.readiness;
            let event = Event::new(EventKind::Check, now, service.as_str(), found.as_str())
                .reason(offer.health.reason())
                .because(offer.health.cause)
                .level(if found <= Readiness::Alive { EventLevel::Info } else { EventLevel::Error });
            let since = match gone.remove(service) {
                Some((was, since)) if was == found => since,
                Some((was, since)) => {
                    out.push(event.since(was.as_str(), since));
                    now
                }
                None => {
                    out.push(event);
                    now
                }
            };
            self.checks.insert(service.clone(), (found, since));
        }
        for (service, (was, since)) in gone {
            let event =
                Event::new(EventKind::Check, now, service.as_str(), "gone").since(was.as_str(), since);
            out.push(event.because(Cause::NoInstance).level(EventLevel::Warning));
        }
    }

    /// The cluster document: members, settings, the key.
    pub(super) fn document(&mut self, document: &Arc<Document>, now: UnixMs, out: &mut Vec<Event>) {
        if Arc::ptr_eq(document, &self.document) {
            return;
        }
        let before = std::mem::replace(&mut self.document, document.clone());
        self.hash = document.hash();
        let new: Vec<Name> = masters(document).filter(|name| !self.masters.contains(name)).collect();
        self.masters.extend(new);
        let name = |id: &NodeId| document.name_of(id);
        for (id, node) in document.members().filter(|(id, _)| !before.nodes.contains_key(id)) {
            self.admitted.insert(*id, now);
            let by = if node.by == *id { String::new() } else { format!("by {}", name(&node.by)) };
            out.push(Event::new(EventKind::MemberJoined, now, node.name.as_str(), "member").requested(by));
        }
        for (id, removed) in document.removed.iter().filter(|(id, _)| !before.removed.contains_key(id)) {
            let left = removed.by == *id;
            let cause =
                if left { "it left by itself".to_owned() } else { format!("by {}", name(&removed.by)) };
            let event =
                Event::new(EventKind::MemberRemoved, now, removed.name.as_str(), "removed").requested(cause);
            let since = before.nodes.get(id).map_or(UnixMs(0), |node| node.at);
            let level = if left { EventLevel::Info } else { EventLevel::Warning };
            out.push(event.since("member", since).level(level));
        }
        for (key, setting) in &document.settings {
            let was = before.settings.get(key);
            // A drain is reported as one once it is in effect.
            if was.is_some_and(|was| was.value == setting.value) || key.starts_with(DRAINS) {
                continue;
            }
            let value = |value: Option<&String>| shown(key, value);
            let to = value(setting.value.as_ref());
            let from = value(was.and_then(|was| was.value.as_ref()));
            let by = format!("by {}", name(&setting.by));
            out.push(Event::new(EventKind::Setting, now, key.as_str(), to).from(from, None).requested(by));
        }
        if document.key != before.key {
            let removal = if document.key.by_removal { ", a node was removed" } else { "" };
            let event = Event::new(EventKind::KeyRotated, now, "gossip-key", document.key.epoch.to_string());
            let event = event.since(before.key.epoch.to_string(), before.key.at);
            out.push(event.requested(format!("by {}{removal}", name(&document.key.by))));
        }
    }

    /// This node's part in virtual IPs, in keepalived's terms. Its priority is its rank: 255 for the first,
    /// as keepalived's owner has it, 0 for a node that is no candidate.
    pub(super) fn vips(&mut self, vips: &[VipStatus], now: UnixMs, out: &mut Vec<Event>) {
        let own = self.document.name_of(&self.own);
        let mut gone = std::mem::take(&mut self.vips);
        for vip in vips {
            let (word, level) = match vip.state {
                VipState::OwnedHere => ("master", EventLevel::Info),
                VipState::Owned | VipState::Unowned | VipState::Other(_) => ("backup", EventLevel::Info),
                VipState::Unavailable => ("fault", EventLevel::Warning),
            };
            let known = gone.remove(&vip.address);
            let mut event = Event::new(EventKind::VipState, now, vip.address.to_string(), word);
            event = event.reason(&vip.reason).level(level);
            if let Some(cause) = vip.cause {
                event = event.because(cause);
            }
            let rank = vip.candidates.iter().find(|one| one.node == own).map(|one| one.rank);
            event.priority =
                Some(rank.and_then(|rank| u8::try_from(256_u32.saturating_sub(rank)).ok()).unwrap_or(0));
            let since = match known {
                Some((was, since)) if was == word => since,
                Some((was, since)) => {
                    out.push(event.since(was, since));
                    now
                }
                None => {
                    out.push(event);
                    now
                }
            };
            self.vips.insert(vip.address, (word, since));
        }
        for (address, (was, since)) in gone {
            out.push(Event::new(EventKind::VipState, now, address.to_string(), "gone").since(was, since));
        }
    }

    /// State that no watch carries; to be called about once a second.
    pub(super) fn poll_state(
        &mut self,
        looked: &PolledState,
        view: &ClusterView,
        now: UnixMs,
        out: &mut Vec<Event>,
    ) {
        self.copies(view, now, out);
        for (service, counted) in &looked.services {
            self.listeners(service, &counted.listens, now, out);
            let most = Reason::new(format_args!("maxconn is {}", counted.maxconn));
            let most = (Cause::ConnectionLimit, most);
            self.limit((EventKind::Limit, service), counted.refused, ["below", "reached"], most, now, out);
            let why = (Cause::RetryBudget, Cause::RetryBudget.into());
            self.limit((EventKind::Budget, service), counted.denied, ["available", "used-up"], why, now, out);
        }
        self.failed.retain(|(service, address), _| {
            looked.services.get(service).is_some_and(|one| one.listens.iter().any(|(at, _)| at == address))
        });
        self.problems(&looked.problems, now, out);
    }

    /// Members that have had another document for longer than a sync takes.
    fn copies(&mut self, view: &ClusterView, now: UnixMs, out: &mut Vec<Event>) {
        let (own, settle) = (self.own, SETTLE.as_millis() as u64);
        for member in view.members.values().filter(|member| member.id != own) {
            let differs = member.heard && !member.record.left && member.record.document != self.hash;
            let known = self.differing.get_mut(&member.id);
            let event = |to| Event::new(EventKind::Document, now, member.record.name.as_str(), to);
            match known {
                None if differs => {
                    self.differing.insert(member.id, (now, false));
                }
                Some((since, told)) if differs && !*told && now.0.saturating_sub(since.0) >= settle => {
                    *told = true;
                    let cause = format!("it has {}, this node has {}", member.record.document, self.hash);
                    out.push(event("differs").from("same", None).reason(cause).level(EventLevel::Warning));
                }
                Some((since, told)) if !differs => {
                    if *told {
                        out.push(event("same").since("differs", *since));
                    }
                    self.differing.remove(&member.id);
                }
                _ => {}
            }
        }
        self.differing.retain(|id, _| view.members.contains_key(id));
    }

    fn listeners(
        &mut self,
        service: &ServiceName,
        listens: &[(SocketAddr, Option<Fault>)],
        now: UnixMs,
        out: &mut Vec<Event>,
    ) {
        for (address, error) in listens {
            let key = (service.clone(), *address);
            let event = |to| Event::new(EventKind::Listener, now, format!("{service}/{address}"), to);
            match (error, self.failed.get(&key).copied()) {
                (Some(error), None) => {
                    self.failed.insert(key, now);
                    let event = event("failed").reason(error).because(error.cause);
                    out.push(event.level(EventLevel::Error));
                }
                (None, Some(since)) => {
                    self.failed.remove(&key);
                    out.push(event("listening").since("failed", since));
                }
                _ => {}
            }
        }
    }

    fn limit(
        &mut self,
        (kind, service): (EventKind, &ServiceName),
        count: u64,
        [free, met]: [&str; 2],
        (cause, reason): (Cause, Reason),
        now: UnixMs,
        out: &mut Vec<Event>,
    ) {
        let limit = self.limits.entry((kind, service.clone())).or_default();
        let grown = count > limit.count;
        limit.count = count;
        let event = |to| Event::new(kind, now, service.as_str(), to);
        match (&mut limit.met, grown) {
            (Some((_, last)), true) => *last = now,
            (at @ None, true) => {
                *at = Some((now, now));
                out.push(
                    event(met).from(free, None).reason(reason).because(cause).level(EventLevel::Warning),
                );
            }
            (Some((since, last)), false) if now.0.saturating_sub(last.0) >= QUIET.as_millis() as u64 => {
                out.push(event(free).since(met, *since));
                limit.met = None;
            }
            _ => {}
        }
    }

    fn problems(&mut self, problems: &[Problem], now: UnixMs, out: &mut Vec<Event>) {
        let mut gone = std::mem::take(&mut self.problems);
        for problem in problems {
            let key = (problem.code, problem.subject.clone());
            let known = gone.remove(&key).map(|(_, since)| since);
            if known.is_none() {
                let event = Event::new(EventKind::Problem, now, problem.name(), "found");
                out.push(event.reason(problem).level(EventLevel::Error));
            }
            self.problems.insert(key, (problem.clone(), known.unwrap_or(now)));
        }
        for (problem, since) in gone.into_values() {
            let event = Event::new(EventKind::Problem, now, problem.name(), "resolved").since("found", since);
            out.push(event.reason(problem));
        }
    }
}

/// The names of the masters.
fn masters(document: &Document) -> impl Iterator<Item = Name> {
    document.masters().map(|(_, admitted)| admitted.name.clone())
}

/// A setting's value as everyone may read it.
fn shown(key: &str, value: Option<&String>) -> String {
    match (value, secrecy(key)) {
        (None, _) => "unset".to_owned(),
        (Some(_), Secrecy::Secret) => "(not shown)".to_owned(),
        (Some(value), Secrecy::Public) => value.clone(),
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
