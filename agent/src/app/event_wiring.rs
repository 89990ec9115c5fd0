//! Events put together: what they are derived from, whom they are handed to, and who may ask for them.

use std::path::PathBuf;
use std::sync::Arc;

use proto::cause::Reason;
use proto::config::Config;
use proto::control::{Response, VipStatus};
use proto::event::{Event, EventKind, EventLevel, EventQuery, EventRing};
use proto::problem::Problem;
use proto::rpc::{FromMember, ToMember};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{RunningAgent, doctor, members as member_list, status};
use crate::events::{self, EventSinks, PolledState, ProxyCounters, Resolve, SinkErrors};
use crate::gossip;
use crate::lifecycle::{Lifecycle, wall};
use crate::net;
use crate::proxy;
use crate::transport::MemberRequest;

/// Events for the rest of the agent: the latest, and where parts tell what no watch shows.
pub(super) struct EventHandle {
    tell: mpsc::Sender<Event>,
    ring: watch::Receiver<Arc<EventRing>>,
    sink_errors: SinkErrors,
}

/// The other ends, which the task of events takes.
pub(super) struct EventEnds {
    told: mpsc::Receiver<Event>,
    ring: watch::Sender<Arc<EventRing>>,
    sinks: EventSinks,
}

/// Both, before anything runs that could tell something.
pub(super) fn channels(config: watch::Receiver<Arc<Config>>) -> (EventHandle, EventEnds) {
    let (tell, told) = mpsc::channel(events::QUEUE);
    let (ring_in, ring) = watch::channel(Arc::default());
    let dir = PathBuf::from(&config.borrow().state_dir);
    let sink_errors = SinkErrors::default();
    let sinks = EventSinks { dir, config, resolve: resolver(), sink_errors: sink_errors.clone() };
    (EventHandle { tell, ring, sink_errors }, EventEnds { told, ring: ring_in, sinks })
}

impl EventHandle {
    /// Where to tell an event. Never waited for: what does not fit is dropped.
    pub(super) fn tell(&self) -> mpsc::Sender<Event> {
        self.tell.clone()
    }

    /// The latest events of this node.
    pub(super) fn ring(&self) -> Arc<EventRing> {
        self.ring.borrow().clone()
    }

    /// The same for those who wait for a change.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<EventRing>> {
        self.ring.clone()
    }

    /// What is wrong with handing events over.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.sink_errors.list()
    }

    /// Says how reading the configuration again went. What is wrong with it stands in the log: it may quote
    /// what is no other node's business.
    pub(super) fn reloaded(&self, good: bool) {
        let applied = if good { "applied" } else { "refused" };
        let event = Event::new(EventKind::Reload, wall(), "configuration", applied);
        let event = match good {
            true => event,
            false => event.reason("see the log, or run: agent check").level(EventLevel::Error),
        };
        // Full of events, it says enough.
        let _ = self.tell.try_send(event);
    }
}

fn resolver() -> Resolve {
    Arc::new(|at: String| Box::pin(async move { net::resolve(&at, 0).await.map_err(Reason::new) }))
}

/// Starts the events.
pub(super) fn spawn(running: &Arc<RunningAgent>, ends: EventEnds, life: &Lifecycle) {
    let looked = running.clone();
    let inputs = events::EventInputs {
        own: running.link.own(),
        node: running.own.file().name.clone(),
        began: running.own.began(),
        replaced: running.taken_over.clone(),
        told: ends.told,
        table: running.clients.table(),
        view: running.peers.view(),
        liveness: running.peers.liveness(),
        trust: running.trust.clone(),
        health: running.own.health(),
        vips: vips(running, life),
        look: Box::new(move || poll_state(&looked)),
        sinks: ends.sinks,
    };
    events::spawn(inputs, ends.ring, life);
}

/// Virtual IPs as status shows them, without what else their report holds.
fn vips(running: &RunningAgent, life: &Lifecycle) -> watch::Receiver<Vec<VipStatus>> {
    let (sender, receiver) = watch::channel(Vec::new());
    life.follow("vip", running.vips.report(), sender, |sender, report| {
        sender.send_replace(report.vips.clone());
    });
    receiver
}

/// What no watch tells of.
fn poll_state(running: &RunningAgent) -> PolledState {
    let stats = running.clients.proxy().stats().into_iter();
    let services = stats.map(|(name, stats)| {
        let most = u32::try_from(proxy::descriptor_budget().connections).unwrap_or(u32::MAX);
        let (refused, denied, maxconn) = (stats.refused, stats.denied, stats.maxconn.min(most));
        (name, ProxyCounters { listens: stats.listens, refused, maxconn, denied })
    });
    PolledState { services: services.collect(), problems: status::problems(running) }
}

/// Answers the command line.
pub(super) async fn answer(running: &RunningAgent, ask: EventQuery) -> Response {
    let ring = running.events.ring();
    let (events, silent) = if ask.cluster {
        events::all(&running.link, &ring, &ask).await
    } else {
        let after = ask.after.get(running.own.file().name.as_str()).copied().unwrap_or(0);
        (events::own(&ring, &ask, after), Vec::new())
    };
    Response::Events { events, silent }
}

/// Hands requests of members to membership, and answers those for events and findings.
pub(super) fn members(running: &Arc<RunningAgent>, from: mpsc::Receiver<MemberRequest>, life: &Lifecycle) {
    let (running, stopping) = (running.clone(), life.draining.clone());
    life.supervise("membership", from, move |from| {
        Box::pin(answer_members(from, running.clone(), stopping.clone()))
    });
}

async fn answer_members(
    from: &mut mpsc::Receiver<MemberRequest>,
    running: Arc<RunningAgent>,
    stopping: CancellationToken,
) {
    let examinations = doctor::examinations();
    loop {
        let one = tokio::select! {
            one = from.recv() => one,
            () = stopping.cancelled() => return,
        };
        let Some(incoming) = one else { return };
        if let FromMember::Events { since, after, most } = incoming.request {
            let ring = running.events.ring();
            let ask = EventQuery { since, most, ..EventQuery::default() };
            let _ = incoming.reply.send(ToMember::Events(events::own(&ring, &ask, after)));
        } else if let FromMember::Records { known, all, needed } = incoming.request {
            let _ = incoming.reply.send(gossip::newer(running.peers.records(), known, all, needed));
        } else if let FromMember::Members = incoming.request {
            let _ = incoming.reply.send(member_list::answer_member(&running));
        } else if let FromMember::Examine(_) = incoming.request {
            doctor::answer_member(&running, &examinations, incoming);
        } else if !running.membership.incoming(incoming).await {
            return;
        }
    }
}
