//! Composition: makes the channels, starts the feature modules in order, and ends them in order. Only this
//! module knows them all.
//!
//! Start: listeners and the last good list first, so that clients are served before anyone is heard; then
//! the link, gossip, checks; then "ready". Stop: say so by gossip, take nothing new, let connections
//! finish for a while, end.

pub(crate) mod doctor;
pub(crate) mod effective_config;
mod event_wiring;
mod history;
mod record;
pub(crate) mod setup;
mod status;
mod vip;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::{BackendTable, LastKnownGood};
use proto::cluster::Document;
use proto::config::Config;
use proto::control::{Request, Response};
use proto::event::{Event, EventRing};
use proto::node::NodeId;
use proto::pulse::PeerLivenessMap;
use proto::service::Service;
use proto::time::UnixMs;
use proto::view::ClusterView;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::http::BoxFuture;
use crate::lifecycle::{Lifecycle, wall};
use crate::membership::OwnAddress;
use crate::membership::disk::{MemberStore, StoredMember};
use crate::membership::members::not_a_master;
use crate::membership::task::{MembershipHandle, MembershipInputs};
use crate::proxy::{Listeners, Proxy};
use crate::records::SharedRecords;
use crate::transport::{BoundPorts, Link, TrustedKeys};
use crate::vip::{VipCommand, VipReport};
use effective_config::EffectiveConfig;

use crate::{check, control, gossip, net, proxy, pulse, reachability, supervisor, watchdog};

/// Longest time that open connections get to finish at a stop. Kubernetes' watches never do, and their
/// clients reconnect through the same listener as soon as the agent is back.
const DRAIN: Duration = Duration::from_secs(5);

/// Time for "this node stops" to reach a few peers.
const GOODBYE: Duration = Duration::from_millis(200);

/// Time between two lines for `systemctl status`.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Wishes about virtual IPs that wait to be read; each comes from someone who waits for its answer.
const ORDERS: usize = 16;

/// What runs, for status.
pub(crate) struct RunningAgent {
    pub(crate) link: Arc<Link>,
    pub(crate) disk: Arc<MemberStore>,
    pub(crate) proxy: Proxy,
    pub(crate) node: crate::membership::disk::NodeFile,
    pub(crate) started: UnixMs,
    pub(crate) membership: MembershipHandle,
    pub(crate) trust: watch::Receiver<Arc<TrustedKeys>>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    /// The signed records that the view is made of.
    pub(crate) records: Arc<SharedRecords>,
    /// What went wrong with gossip.
    pub(crate) gossip: watch::Receiver<gossip::GossipProblems>,
    pub(crate) liveness: watch::Receiver<Arc<PeerLivenessMap>>,
    pub(crate) table: watch::Receiver<Arc<BackendTable>>,
    pub(crate) services: watch::Receiver<Arc<Vec<Service>>>,
    pub(crate) own_address: watch::Receiver<Option<IpAddr>>,
    pub(crate) descriptors: u64,
    pub(crate) effective: watch::Receiver<Arc<EffectiveConfig>>,
    /// What is known of virtual IPs.
    pub(crate) vips: watch::Receiver<Arc<VipReport>>,
    orders: mpsc::Sender<VipCommand>,
    /// The latest events of this node.
    pub(crate) ring: watch::Receiver<Arc<EventRing>>,
    /// Where parts tell what no watch shows. Never waited for: what does not fit is dropped.
    pub(crate) tell: mpsc::Sender<Event>,
    /// What is wrong with telling.
    pub(crate) sink_errors: crate::events::SinkErrors,
    pub(crate) life: Lifecycle,
    /// What only time shows.
    pub(crate) seen: history::BackendHistory,
    /// Which files `agent doctor` reads.
    places: crate::doctor::HostPaths,
    /// What the checks of this node's own services came to.
    pub(crate) checks: Arc<check::CheckCounters>,
}

impl RunningAgent {
    /// The cluster document as it is now.
    fn document(&self) -> Arc<Document> {
        self.trust.borrow().document.clone()
    }

    /// Waits until something serves, for so long at most, and says what: listeners and nodes.
    pub(crate) async fn what_serves(&self, within: Duration) -> (bool, String) {
        let mut table = self.table.clone();
        let good =
            |table: &Arc<BackendTable>| table.values().flatten().any(|backend| backend.state.is_good());
        let _ = tokio::time::timeout(within, table.wait_for(good)).await;
        status::of(self).serving()
    }
}

/// Runs the agent until it is told to stop. `reload` reads the configuration again; `started` is called
/// once everything runs.
///
/// # Errors
/// What keeps it from starting: the port or the control socket is taken.
pub(crate) async fn run(
    config: Config,
    disk: Arc<MemberStore>,
    member: StoredMember,
    reload: impl Fn() -> anyhow::Result<Config> + Send + 'static,
    started: impl FnOnce(Arc<RunningAgent>, &Lifecycle),
) -> anyhow::Result<()> {
    supervisor::watch_panics();
    let life = Lifecycle::new();
    crate::log_limit::report(&life);
    let result = start(config, disk, member, &life).await;
    let (running, configured) = match result {
        Ok(running) => running,
        Err(error) => {
            life.draining.cancel();
            life.shutdown.cancel();
            return Err(error);
        }
    };
    started(running.clone(), &life);
    live(&running, &configured, reload, &life).await?;
    stop(&running, &life).await;
    Ok(())
}

async fn start(
    config: Config,
    disk: Arc<MemberStore>,
    member: StoredMember,
    life: &Lifecycle,
) -> anyhow::Result<(Arc<RunningAgent>, watch::Sender<Arc<Config>>)> {
    let began = wall();
    let (config_in, configured) = watch::channel(Arc::new(config.clone()));
    let event_wiring::EventChannels { tell, told, ring_in, ring, sinks } =
        event_wiring::EventChannels::new(configured.clone());
    let sink_errors = sinks.sink_errors.clone();
    // Clients first: everything else can wait for milliseconds.
    let descriptors = proxy::raise_descriptor_limit();
    let first = EffectiveConfig::of(&config, member.document());
    let listeners = Listeners::bind(&first.services);
    let (table_in, table) =
        watch::channel(Arc::new(reachability::first_table(&first.services, &member.serving)));
    let (reports_in, reports) = mpsc::channel(reachability::REPORTS);
    let own = member.identity.id;
    let proxy = Proxy::start(listeners, own, table.clone(), reports_in.clone(), life);

    let (services_in, services) = watch::channel(Arc::new(first.services.clone()));
    let (settings_in, settings) = watch::channel(Arc::new(first.settings.clone()));
    let (settled_in, effective) = watch::channel(Arc::new(first));
    let trust =
        TrustedKeys { document: Arc::new(member.document().clone()), ring: Arc::new(member.ring.clone()) };
    let (trust_in, trust) = watch::channel(Arc::new(trust));
    let inputs = effective_config::ConfigInputs {
        config: configured.clone(),
        trust: trust.clone(),
        proxy: proxy.clone(),
    };
    effective_config::spawn(inputs, services_in, settings_in, settled_in, life);
    let port = member.node.port;
    let ports = BoundPorts::bind(config.bind, port)?;
    let (link, inbox, tcp) = Link::new(ports, member.identity.clone(), trust.clone());
    for (id, addresses) in &member.peers {
        link.addresses().add_hint(*id, addresses, false);
    }
    let listener = control::bind(Path::new(&config.runtime_dir))?;

    let (own_address_in, own_address) = watch::channel(None);
    let node = member.node.clone();
    net::watch_own(node.interface.clone(), node.address, node.pinned, own_address_in, life);
    let until_checked = check::until_checked(&services.borrow(), &member.serving, &own);
    let (health_in, health) = watch::channel(Arc::new(until_checked));
    let checks = Arc::default();
    check::spawn(services.clone(), own_address.clone(), health_in, Arc::clone(&checks), life);
    let (view_in, view) = watch::channel(Arc::new(ClusterView::default()));
    let own_health = health.clone();
    let (ears_in, liveness) = watch::channel(Arc::default());
    let (report_in, vips) = watch::channel(Arc::default());
    let fitness = vip::EligibilityInputs {
        own: node.name.clone(),
        services: services.clone(),
        health: health.clone(),
        table: table.clone(),
        view: view.clone(),
        settings: settings.clone(),
    };
    let words = record::RecordInputs {
        liveness: liveness.clone(),
        peer_link: Default::default(),
        settings: settings.clone(),
        vips: vips.clone(),
        node: node.clone(),
        began,
        own_address: own_address.clone(),
        health,
        trust: trust.clone(),
    };
    let word = record::spawn(words, life);
    link.serve(tcp, life)?;

    let (serving_in, serving) = watch::channel(Arc::new(member.serving.clone()));
    let (members, degraded) = (trust.clone(), disk.is_degraded());
    let inputs = reachability::ReachabilityInputs {
        services: services.clone(),
        view: view.clone(),
        liveness: liveness.clone(),
        settings: settings.clone(),
        reports,
        probes: reports_in,
        // Outside of any cluster nobody is known to have left it: what served last is served.
        is_member: Arc::new(move |id| degraded || members.borrow().document.member(id).is_some()),
    };
    reachability::spawn(inputs, table_in, serving_in, life);
    save_serving(disk.clone(), serving.clone(), life);
    vip::save_epochs(disk.clone(), member.epochs.clone(), vips.clone(), life);

    let serving_out = serving.clone();
    let records = Arc::new(SharedRecords::default());
    let crate::transport::Inbox {
        gossip,
        members,
        joining,
        proven,
        unknown_key,
        answers,
        vips: arrivals,
        fingerprints,
    } = inbox;
    let inputs = MembershipInputs {
        link: link.clone(),
        disk: disk.clone(),
        replica: member.replica,
        ring: member.ring,
        invites: member.invites,
        view: view.clone(),
        serving,
        own_at: OwnAddress::new(own_address.clone(), port),
        held: connections_to(&proxy),
        joining,
        unknown_key,
    };
    let membership = crate::membership::task::spawn(inputs, trust_in, life);
    pulse::spawn(link.clone(), view.clone(), word.clone(), answers, ears_in, life);
    let (orders, orders_out) = mpsc::channel(ORDERS);
    let inputs = crate::vip::VipInputs {
        link: link.clone(),
        trust: trust.clone(),
        view: view.clone(),
        liveness: liveness.clone(),
        settings: settings.clone(),
        fit: vip::spawn(fitness, life),
        arrivals,
        orders: orders_out,
        tell: tell.clone(),
        epochs: member.epochs.clone(),
    };
    crate::vip::spawn(inputs, report_in, life);
    let generations = disk.clone();
    let inputs = gossip::GossipInputs {
        link: link.clone(),
        trust: trust.clone(),
        settings,
        serving: serving_out,
        arrivals: gossip,
        proven,
        fingerprints,
        record: word,
        records: records.clone(),
        next_generation: Box::new(move |above| generations.next_generation(above)),
    };
    let (gossip_in, gossip_report) = watch::channel(gossip::GossipProblems::default());
    gossip::spawn(inputs, view_in, gossip_in, life);

    let running = Arc::new(RunningAgent {
        link,
        disk,
        proxy,
        node,
        started: began,
        membership,
        trust,
        view,
        records,
        gossip: gossip_report,
        liveness,
        table,
        services,
        own_address,
        descriptors,
        effective,
        vips,
        orders,
        ring,
        tell,
        sink_errors,
        life: life.clone(),
        seen: Default::default(),
        places: doctor::places(&config.state_dir, &config.runtime_dir),
        checks,
    });
    event_wiring::members(&running, members, life);
    event_wiring::spawn(&running, told, ring_in, sinks, own_health, life);
    history::spawn(&running, configured, life);
    serve_control(listener, running.clone(), life);
    tell_systemd(running.clone(), life);
    info!(node = %running.node.name, cluster = %running.document().name, "agent started");
    Ok((running, config_in))
}

/// Counts the connections that the proxy holds to a node, for all services.
fn connections_to(proxy: &Proxy) -> Box<dyn Fn(&NodeId) -> u64 + Send> {
    let proxy = proxy.clone();
    Box::new(move |node| {
        let stats = proxy.stats();
        stats.values().filter_map(|service| service.backends.get(node)).map(|one| one.connections).sum()
    })
}

/// Writes the last good list whenever it changes.
fn save_serving(disk: Arc<MemberStore>, serving: watch::Receiver<Arc<LastKnownGood>>, life: &Lifecycle) {
    life.follow("reachability", serving, disk, |disk, list| {
        disk.save_serving(&list);
    });
}

/// Keeps `systemctl status` up to date with what serves. Not with each round-trip time that is measured: a
/// status costs more than many connections.
fn tell_systemd(running: Arc<RunningAgent>, life: &Lifecycle) {
    let over = life.shutdown.clone();
    life.supervise("systemd", running.table.clone(), move |table| {
        let (running, over) = (running.clone(), over.clone());
        Box::pin(async move {
            loop {
                watchdog::status(&status::of(&running).serving().1);
                let changed = async {
                    tokio::time::sleep(STATUS_PAUSE).await;
                    table.changed().await
                };
                if !matches!(over.run_until_cancelled(changed).await, Some(Ok(()))) {
                    return;
                }
            }
        })
    });
}

fn serve_control(listener: control::ControlSocket, running: Arc<RunningAgent>, life: &Lifecycle) {
    control::serve(listener, handler(running), life);
}

fn is_master(running: &RunningAgent) -> bool {
    running.document().is_master(&running.link.own())
}

/// Does what a person asks for, by the control socket or on the page.
fn handler(running: Arc<RunningAgent>) -> impl Fn(Request) -> BoxFuture<Response> {
    move |request: Request| {
        let running = running.clone();
        Box::pin(async move {
            match request {
                Request::Status => Response::Status(Box::new(status::of(&running))),
                Request::VipMove { .. } if !is_master(&running) => {
                    Response::Failed(not_a_master(&running.document()))
                }
                Request::VipMove { address, node } => vip::move_to(&running.orders, address, node).await,
                Request::Settings => {
                    let document = running.document();
                    let effective = running.effective.borrow().clone();
                    Response::Settings(effective.list(&document))
                }
                Request::Events(ask) => event_wiring::answer(&running, ask).await,
                Request::Doctor(nodes) => doctor::answer(&running, &nodes).await,
                #[cfg(feature = "next-wire")]
                Request::Next => Response::Done("next".to_owned()),
                request => running.membership.control(request).await,
            }
        })
    }
}

/// Follows signals until one says stop.
async fn live(
    running: &RunningAgent,
    configured: &watch::Sender<Arc<Config>>,
    reload: impl Fn() -> anyhow::Result<Config>,
    life: &Lifecycle,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    watchdog::spawn_watchdog(life);
    watchdog::ready();
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = life.draining.cancelled() => return Ok(()),
            _ = hang_up.recv() => match reload() {
                Ok(config) => {
                    configured.send_replace(Arc::new(config));
                    info!("configuration reloaded; services, [web], notify and webhook apply now, everything else at the next start");
                    event_wiring::reloaded(running, true);
                }
                Err(error) => {
                    error!("configuration not reloaded, the old one stays in use: {error:#}");
                    event_wiring::reloaded(running, false);
                }
            },
        }
    }
}

async fn stop(running: &RunningAgent, life: &Lifecycle) {
    watchdog::stopping();
    info!("stopping");
    // Gossip says so first; the proxy stops accepting by the same token.
    life.draining.cancel();
    tokio::time::sleep(GOODBYE).await;
    let drained = async {
        let open =
            || running.proxy.stats().values().map(|service| u64::from(service.connections)).sum::<u64>();
        while open() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        warn!("closing connections that did not finish within {DRAIN:?}");
    }
    life.shutdown.cancel();
    if tokio::time::timeout(Duration::from_secs(5), life.finished()).await.is_err() {
        warn!("some tasks did not end in time");
    }
}
