//! Composition: makes the channels, starts the feature modules in order, and ends them in order. Only this
//! module knows them all.
//!
//! Start: listeners and the last good list first, so that clients are served before anyone is heard; then
//! the link, gossip, checks; then "ready". Stop: say so by gossip, take nothing new, let connections
//! finish for a while, end.

pub(crate) mod doctor;
pub(crate) mod enter;
mod seen;
pub(crate) mod settled;
mod status;
mod tell;
mod vip;
mod word;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::backends::{Serving, Table};
use proto::config::Config;
use proto::control::{Request, Response};
use proto::event::{Event, Ring};
use proto::node::NodeId;
use proto::pulse::Ears;
use proto::service::Service;
use proto::time::UnixMs;
use proto::view::View;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::http::Later;
use crate::lifecycle::{Life, wall};
use crate::link::{Link, Ports, Trust};
use crate::membership::disk::{Disk, Member};
use crate::membership::keeper::Keeper;
use crate::membership::orders::not_a_master;
use crate::membership::{Command, Membership, admit};
use crate::proxy::{Listeners, Proxy};
use crate::records::Records;
use crate::vip::{Order, Report};
use settled::Settled;

use crate::{check, control, gossip, net, proxy, pulse, reach, supervisor, watchdog};

/// Longest time that open connections get to finish at a stop. Kubernetes' watches never do, and their
/// clients reconnect through the same listener as soon as the agent is back.
const DRAIN: Duration = Duration::from_secs(5);

/// Time for "this node stops" to reach a few peers.
const GOODBYE: Duration = Duration::from_millis(200);

/// Time between two lines for `systemctl status`.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Commands that wait for the keeper; each comes from someone who waits for its answer.
const COMMANDS: usize = 64;

/// Wishes about virtual IPs that wait to be read; each comes from someone who waits for its answer.
const ORDERS: usize = 16;

/// What runs, for status.
pub(crate) struct Running {
    pub(crate) link: Arc<Link>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) proxy: Proxy,
    pub(crate) node: crate::membership::disk::NodeFile,
    pub(crate) started: UnixMs,
    pub(crate) membership: Membership,
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// The signed records that the view is made of.
    pub(crate) records: Arc<Records>,
    /// What went wrong with gossip.
    pub(crate) gossip: watch::Receiver<gossip::Report>,
    pub(crate) ears: watch::Receiver<Arc<Ears>>,
    pub(crate) table: watch::Receiver<Arc<Table>>,
    pub(crate) services: watch::Receiver<Arc<Vec<Service>>>,
    pub(crate) own_address: watch::Receiver<Option<IpAddr>>,
    pub(crate) descriptors: u64,
    pub(crate) settled: watch::Receiver<Arc<Settled>>,
    /// What is known of virtual IPs.
    pub(crate) vips: watch::Receiver<Arc<Report>>,
    orders: mpsc::Sender<Order>,
    /// The latest events of this node.
    pub(crate) ring: watch::Receiver<Arc<Ring>>,
    /// Where parts tell what no watch shows. Never waited for: what does not fit is dropped.
    pub(crate) tell: mpsc::Sender<Event>,
    /// What is wrong with telling.
    pub(crate) troubles: crate::events::Troubles,
    pub(crate) life: Life,
    /// What only time shows.
    pub(crate) seen: seen::Seen,
    /// Which files `agent doctor` reads.
    places: crate::doctor::Places,
    /// What the checks of this node's own services came to.
    pub(crate) checks: Arc<check::Counts>,
}

/// Runs the agent until it is told to stop. `reload` reads the configuration again; `started` is called
/// once everything runs.
///
/// # Errors
/// What keeps it from starting: the port or the control socket is taken.
pub(crate) async fn run(
    config: Config,
    disk: Arc<Disk>,
    member: Member,
    reload: impl Fn() -> anyhow::Result<Config> + Send + 'static,
    started: impl FnOnce(Arc<Running>, &Life),
) -> anyhow::Result<()> {
    supervisor::watch_panics();
    let life = Life::new();
    crate::log_limit::report(&life);
    let result = start(config, disk, member, &life).await;
    let (running, configured) = match result {
        Ok(running) => running,
        Err(error) => {
            life.stopping.cancel();
            life.over.cancel();
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
    disk: Arc<Disk>,
    member: Member,
    life: &Life,
) -> anyhow::Result<(Arc<Running>, watch::Sender<Arc<Config>>)> {
    let began = wall();
    let (config_in, configured) = watch::channel(Arc::new(config.clone()));
    let tell::Channels { tell, told, ring_in, ring, outlets } = tell::Channels::new(configured.clone());
    let troubles = outlets.troubles.clone();
    // Clients first: everything else can wait for milliseconds.
    let descriptors = proxy::raise_descriptor_limit();
    let first = Settled::of(&config, member.document());
    let listeners = Listeners::bind(&first.services);
    let (table_in, table) = watch::channel(Arc::new(reach::first_table(&first.services, &member.serving)));
    let (reports_in, reports) = mpsc::channel(reach::REPORTS);
    let own = member.identity.id;
    let proxy = Proxy::start(listeners, own, table.clone(), reports_in.clone(), life);

    let (services_in, services) = watch::channel(Arc::new(first.services.clone()));
    let (settings_in, settings) = watch::channel(Arc::new(first.settings.clone()));
    let (settled_in, settled) = watch::channel(Arc::new(first));
    let trust = Trust { document: Arc::new(member.document().clone()), ring: Arc::new(member.ring.clone()) };
    let (trust_in, trust) = watch::channel(Arc::new(trust));
    let inputs = settled::Inputs { config: configured.clone(), trust: trust.clone(), proxy: proxy.clone() };
    settled::spawn(inputs, services_in, settings_in, settled_in, life);
    let port = member.node.port;
    let ports = Ports::bind(config.bind, port)?;
    let (link, inbox, tcp) = Link::new(ports, member.identity.clone(), trust.clone());
    for (id, addresses) in &member.peers {
        link.book.heard(*id, addresses, false);
    }
    let listener = control::bind(Path::new(&config.runtime_dir))?;

    let (own_address_in, own_address) = watch::channel(None);
    let node = member.node.clone();
    net::watch_own(node.interface.clone(), node.address, node.pinned, own_address_in, life);
    let until_checked = check::until_checked(&services.borrow(), &member.serving, &own);
    let (health_in, health) = watch::channel(Arc::new(until_checked));
    let checks = Arc::default();
    check::spawn(services.clone(), own_address.clone(), health_in, Arc::clone(&checks), life);
    let (view_in, view) = watch::channel(Arc::new(View::default()));
    let own_health = health.clone();
    let (ears_in, ears) = watch::channel(Arc::default());
    let (report_in, vips) = watch::channel(Arc::default());
    let fitness = vip::Inputs {
        own: node.name.clone(),
        services: services.clone(),
        health: health.clone(),
        table: table.clone(),
        view: view.clone(),
        settings: settings.clone(),
    };
    let words = word::Inputs {
        ears: ears.clone(),
        hears: Default::default(),
        settings: settings.clone(),
        vips: vips.clone(),
        node: node.clone(),
        began,
        own_address: own_address.clone(),
        health,
        trust: trust.clone(),
    };
    let word = word::spawn(words, life);
    link.serve_udp(life);
    link.serve_tcp(tcp, life)?;

    let (serving_in, serving) = watch::channel(Arc::new(member.serving.clone()));
    let members = trust.clone();
    let inputs = reach::Inputs {
        services: services.clone(),
        view: view.clone(),
        ears: ears.clone(),
        settings: settings.clone(),
        reports,
        probes: reports_in,
        is_member: Arc::new(move |id| members.borrow().document.member(id).is_some()),
    };
    reach::spawn(inputs, table_in, serving_in, life);
    save_serving(disk.clone(), serving.clone(), life);
    vip::save_epochs(disk.clone(), member.epochs.clone(), vips.clone(), life);

    let serving_out = serving.clone();
    let records = Arc::new(Records::default());
    let (commands_in, commands) = mpsc::channel(COMMANDS);
    let (open_until_in, open_until) = watch::channel(UnixMs(0));
    let keeper = Keeper {
        link: link.clone(),
        disk: disk.clone(),
        replica: member.replica,
        ring: member.ring,
        invites: member.invites,
        trust: trust_in,
        open_until: open_until_in,
        view: view.clone(),
        serving,
        own_address: own_address.clone(),
        port,
        held: held_to(&proxy),
        commands: commands_in.clone(),
        life: life.clone(),
        pending: Default::default(),
        waiting: Default::default(),
        push_is_due: false,
    };
    life.supervise("membership", (keeper, commands), |(keeper, commands)| Box::pin(keeper.run(commands)));
    let crate::link::Inbox {
        gossip,
        members,
        joining,
        proven,
        unknown_key,
        answers,
        vips: arrivals,
        fingerprints,
    } = inbox;
    pulse::spawn(link.clone(), view.clone(), word.clone(), answers, ears_in, life);
    let (orders, orders_out) = mpsc::channel(ORDERS);
    let inputs = crate::vip::Inputs {
        link: link.clone(),
        trust: trust.clone(),
        view: view.clone(),
        ears: ears.clone(),
        settings: settings.clone(),
        fit: vip::spawn(fitness, life),
        arrivals,
        orders: orders_out,
        tell: tell.clone(),
        epochs: member.epochs.clone(),
    };
    crate::vip::spawn(inputs, report_in, life);
    admit::serve(link.clone(), joining, commands_in.clone(), life);
    hurry(unknown_key, commands_in.clone(), life);
    let generations = disk.clone();
    let inputs = gossip::Inputs {
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
    let (gossip_in, gossip_report) = watch::channel(gossip::Report::default());
    gossip::spawn(inputs, view_in, gossip_in, life);

    let membership = Membership { commands: commands_in, trust, open_until };
    let running = Arc::new(Running {
        link,
        disk,
        proxy,
        node,
        started: began,
        membership,
        view,
        records,
        gossip: gossip_report,
        ears,
        table,
        services,
        own_address,
        descriptors,
        settled,
        vips,
        orders,
        ring,
        tell,
        troubles,
        life: life.clone(),
        seen: Default::default(),
        places: doctor::places(&config.state_dir, &config.runtime_dir),
        checks,
    });
    tell::members(&running, members, life);
    tell::spawn(&running, told, ring_in, outlets, own_health, life);
    seen::spawn(&running, configured, life);
    serve_control(listener, running.clone(), life);
    tell_systemd(running.clone(), life);
    info!(node = %running.node.name, cluster = %running.membership.trust.borrow().document.name, "agent started");
    Ok((running, config_in))
}

/// Counts the connections that the proxy holds to a node, for all services.
fn held_to(proxy: &Proxy) -> Box<dyn Fn(&NodeId) -> u64 + Send> {
    let proxy = proxy.clone();
    Box::new(move |node| {
        let stats = proxy.stats();
        stats.values().filter_map(|service| service.backends.get(node)).map(|one| one.connections).sum()
    })
}

/// Tells the keeper of keys that are not held.
fn hurry(from: mpsc::Receiver<NodeId>, to: mpsc::Sender<Command>, life: &Life) {
    let stopping = life.stopping.clone();
    life.supervise("membership", from, move |from| {
        let (to, stopping) = (to.clone(), stopping.clone());
        Box::pin(async move {
            loop {
                let one = tokio::select! {
                    one = from.recv() => one,
                    () = stopping.cancelled() => return,
                };
                if one.is_none() || to.send(Command::UnknownKey).await.is_err() {
                    return;
                }
            }
        })
    });
}

/// Writes the last good list whenever it changes.
fn save_serving(disk: Arc<Disk>, serving: watch::Receiver<Arc<Serving>>, life: &Life) {
    life.follow("reachability", serving, disk, |disk, list| {
        disk.save_serving(&list);
    });
}

/// Keeps `systemctl status` up to date with what serves. Not with each round-trip time that is measured: a
/// status costs more than many connections.
fn tell_systemd(running: Arc<Running>, life: &Life) {
    let over = life.over.clone();
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

fn serve_control(listener: control::Listener, running: Arc<Running>, life: &Life) {
    control::serve(listener, handler(running), life);
}

fn is_master(running: &Running) -> bool {
    running.membership.trust.borrow().document.is_master(&running.link.own())
}

/// Does what a person asks for, by the control socket or on the page.
fn handler(running: Arc<Running>) -> impl Fn(Request) -> Later<Response> {
    move |request: Request| {
        let running = running.clone();
        Box::pin(async move {
            match request {
                Request::Status => Response::Status(Box::new(status::of(&running))),
                Request::VipMove { .. } if !is_master(&running) => {
                    let document = running.membership.trust.borrow().document.clone();
                    Response::Failed(not_a_master(&document))
                }
                Request::VipMove { address, node } => vip::move_to(&running.orders, address, node).await,
                Request::Settings => {
                    let document = running.membership.trust.borrow().document.clone();
                    let settled = running.settled.borrow().clone();
                    Response::Settings(settled.list(&document))
                }
                Request::Events(ask) => tell::answer(&running, ask).await,
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
    running: &Running,
    configured: &watch::Sender<Arc<Config>>,
    reload: impl Fn() -> anyhow::Result<Config>,
    life: &Life,
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
            () = life.stopping.cancelled() => return Ok(()),
            _ = hang_up.recv() => match reload() {
                Ok(config) => {
                    configured.send_replace(Arc::new(config));
                    info!("configuration reloaded; services, [web], notify and webhook apply now, everything else at the next start");
                    tell::reloaded(running, true);
                }
                Err(error) => {
                    error!("configuration not reloaded, the old one stays in use: {error:#}");
                    tell::reloaded(running, false);
                }
            },
        }
    }
}

async fn stop(running: &Running, life: &Life) {
    watchdog::stopping();
    info!("stopping");
    // Gossip says so first; the proxy stops accepting by the same token.
    life.stopping.cancel();
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
    life.over.cancel();
    if tokio::time::timeout(Duration::from_secs(5), life.finished()).await.is_err() {
        warn!("some tasks did not end in time");
    }
}
