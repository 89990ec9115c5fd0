//! Events put together: what they are derived from, whom they are handed to, and who may ask for them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use proto::cause::Reason;
use proto::config::Config;
use proto::control::{Response, VipStatus};
use proto::event::{Event, EventKind, EventLevel, EventQuery, EventRing};
use proto::record::ServiceOffer;
use proto::rpc::{FromMember, ToMember};
use proto::service::ServiceName;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{RunningAgent, doctor, status};
use crate::events::{self, EventSinks, PolledState, ProxyCounters, Resolve, SinkErrors};
use crate::gossip;
use crate::lifecycle::{Lifecycle, wall};
use crate::net;
use crate::transport::MemberRequest;

/// Both ends of what events need before anything runs.
pub(super) struct EventChannels {
    pub(super) tell: mpsc::Sender<Event>,
    pub(super) told: mpsc::Receiver<Event>,
    pub(super) ring_in: watch::Sender<Arc<EventRing>>,
    pub(super) ring: watch::Receiver<Arc<EventRing>>,
    pub(super) sinks: EventSinks,
}

impl EventChannels {
    pub(super) fn new(config: watch::Receiver<Arc<Config>>) -> EventChannels {
        let (tell, told) = mpsc::channel(events::QUEUE);
        let (ring_in, ring) = watch::channel(Arc::default());
        let dir = PathBuf::from(&config.borrow().state_dir);
        let sinks = EventSinks { dir, config, resolve: resolver(), sink_errors: SinkErrors::default() };
        EventChannels { tell, told, ring_in, ring, sinks }
    }
}

fn resolver() -> Resolve {
    Arc::new(|at: String| Box::pin(async move { net::resolve(&at, 0).await.map_err(Reason::new) }))
}

/// Starts the events.
pub(super) fn spawn(
    running: &Arc<RunningAgent>,
    told: mpsc::Receiver<Event>,
    ring: watch::Sender<Arc<EventRing>>,
    sinks: EventSinks,
    health: watch::Receiver<Arc<BTreeMap<ServiceName, ServiceOffer>>>,
    life: &Lifecycle,
) {
    let looked = running.clone();
    let inputs = events::EventInputs {
        own: running.link.own(),
        node: running.node.name.clone(),
        began: running.started,
        told,
        table: running.table.clone(),
        view: running.view.clone(),
        liveness: running.liveness.clone(),
        trust: running.trust.clone(),
        health,
        vips: vips(running, life),
        look: Box::new(move || poll_state(&looked)),
        sinks,
    };
    events::spawn(inputs, ring, life);
}

/// Virtual IPs as status shows them, without what else their report holds.
fn vips(running: &RunningAgent, life: &Lifecycle) -> watch::Receiver<Vec<VipStatus>> {
    let (sender, receiver) = watch::channel(Vec::new());
    life.follow("vip", running.vips.clone(), sender, |sender, report| {
        sender.send_replace(report.vips.clone());
    });
    receiver
}

/// What no watch tells of.
fn poll_state(running: &RunningAgent) -> PolledState {
    let stats = running.proxy.stats().into_iter();
    let services = stats.map(|(name, stats)| {
        let (refused, denied, maxconn) = (stats.refused, stats.denied, stats.maxconn);
        (name, ProxyCounters { listens: stats.listens, refused, maxconn, denied })
    });
    PolledState { services: services.collect(), problems: status::problems(running) }
}

/// Answers the command line.
pub(super) async fn answer(running: &RunningAgent, ask: EventQuery) -> Response {
    let ring = running.ring.borrow().clone();
    let (events, silent) = if ask.cluster {
        events::all(&running.link, &ring, &ask).await
    } else {
        let after = ask.after.get(running.node.name.as_str()).copied().unwrap_or(0);
        (events::own(&ring, &ask, after), Vec::new())
    };
    Response::Events { events, silent }
}

/// Says how reading the configuration again went. What is wrong with it stands in the log: it may quote
/// what is no other node's business.
pub(super) fn reloaded(running: &RunningAgent, good: bool) {
    let event =
        Event::new(EventKind::Reload, wall(), "configuration", if good { "applied" } else { "refused" });
    let event = match good {
        true => event,
        false => event.reason("see the log, or run: agent check").level(EventLevel::Error),
    };
    // Full of events, it says enough.
    let _ = running.tell.try_send(event);
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
            let ring = running.ring.borrow().clone();
            let ask = EventQuery { since, most, ..EventQuery::default() };
            let _ = incoming.reply.send(ToMember::Events(events::own(&ring, &ask, after)));
        } else if let FromMember::Records { known, all } = incoming.request {
            let _ = incoming.reply.send(gossip::newer(&running.records, known, all));
        } else if let FromMember::Examine(_) = incoming.request {
            doctor::answer_member(&running, &examinations, incoming);
        } else if !running.membership.incoming(incoming).await {
            return;
        }
    }
}
