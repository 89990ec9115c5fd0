//! Events put together: what they are derived from, whom they are handed to, and who may ask for them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use proto::cause::Reason;
use proto::config::Config;
use proto::control::{Response, VipStatus};
use proto::event::{Ask, Event, Kind, Level, Ring};
use proto::exchange::{FromMember, ToMember};
use proto::record::Offer;
use proto::service::ServiceName;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Running, doctor, status};
use crate::events::{self, Counted, Looked, Outlets, Resolve, Troubles};
use crate::gossip;
use crate::lifecycle::{Life, wall};
use crate::link::Incoming;
use crate::membership::Command;
use crate::net;

/// Both ends of what events need before anything runs.
pub(super) struct Channels {
    pub(super) tell: mpsc::Sender<Event>,
    pub(super) told: mpsc::Receiver<Event>,
    pub(super) ring_in: watch::Sender<Arc<Ring>>,
    pub(super) ring: watch::Receiver<Arc<Ring>>,
    pub(super) outlets: Outlets,
}

impl Channels {
    pub(super) fn new(config: watch::Receiver<Arc<Config>>) -> Channels {
        let (tell, told) = mpsc::channel(events::QUEUE);
        let (ring_in, ring) = watch::channel(Arc::default());
        let dir = PathBuf::from(&config.borrow().state_dir);
        let outlets = Outlets { dir, config, resolve: resolver(), troubles: Troubles::default() };
        Channels { tell, told, ring_in, ring, outlets }
    }
}

fn resolver() -> Resolve {
    Arc::new(|at: String| Box::pin(async move { net::resolve(&at, 0).await.map_err(Reason::new) }))
}

/// Starts the events.
pub(super) fn spawn(
    running: &Arc<Running>,
    told: mpsc::Receiver<Event>,
    ring: watch::Sender<Arc<Ring>>,
    outlets: Outlets,
    health: watch::Receiver<Arc<BTreeMap<ServiceName, Offer>>>,
    life: &Life,
) {
    let looked = running.clone();
    let inputs = events::Inputs {
        own: running.link.own(),
        node: running.node.name.clone(),
        began: running.started,
        told,
        table: running.table.clone(),
        view: running.view.clone(),
        ears: running.ears.clone(),
        trust: running.membership.trust.clone(),
        health,
        vips: vips(running, life),
        look: Box::new(move || look(&looked)),
        outlets,
    };
    events::spawn(inputs, ring, life);
}

/// Virtual IPs as status shows them, without what else their report holds.
fn vips(running: &Running, life: &Life) -> watch::Receiver<Vec<VipStatus>> {
    let (sender, receiver) = watch::channel(Vec::new());
    life.follow("vip", running.vips.clone(), sender, |sender, report| {
        sender.send_replace(report.vips.clone());
    });
    receiver
}

/// What no watch tells of.
fn look(running: &Running) -> Looked {
    let stats = running.proxy.stats().into_iter();
    let services = stats.map(|(name, stats)| {
        let (refused, denied, maxconn) = (stats.refused, stats.denied, stats.maxconn);
        (name, Counted { listens: stats.listens, refused, maxconn, denied })
    });
    Looked { services: services.collect(), problems: status::problems(running) }
}

/// Answers the command line.
pub(super) async fn answer(running: &Running, ask: Ask) -> Response {
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
pub(super) fn reloaded(running: &Running, good: bool) {
    let event =
        Event::new(Kind::Reload, wall(), "configuration", if good { "applied" } else { "refused" });
    let event = match good {
        true => event,
        false => event.reason("see the log, or run: agent check").level(Level::Error),
    };
    // Full of events, it says enough.
    let _ = running.tell.try_send(event);
}

/// Hands requests of members to the keeper, and answers those for events and findings.
pub(super) fn members(running: &Arc<Running>, from: mpsc::Receiver<Incoming>, life: &Life) {
    let (running, stopping) = (running.clone(), life.stopping.clone());
    life.supervise("membership", from, move |from| {
        Box::pin(answer_members(from, running.clone(), stopping.clone()))
    });
}

async fn answer_members(
    from: &mut mpsc::Receiver<Incoming>,
    running: Arc<Running>,
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
            let ask = Ask { since, most, ..Ask::default() };
            let _ = incoming.reply.send(ToMember::Events(events::own(&ring, &ask, after)));
        } else if let FromMember::Records { known, all } = incoming.request {
            let _ = incoming.reply.send(gossip::newer(&running.records, known, all));
        } else if let FromMember::Examine(_) = incoming.request {
            doctor::be_examined(&running, &examinations, incoming);
        } else if running.membership.commands.send(Command::Incoming(incoming)).await.is_err() {
            return;
        }
    }
}
