//! `agent kubernetes`: what leads pods to the agent of their own node, and what keeps a command from leaving them
//! without.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proto::config::Config;
use proto::control::{ListenerState, MemberState, Request, Response, Status};
use proto::doctor::facts::Distribution;
use proto::kubernetes::{
    HostNode, HostNodes, ServingMember, Target, endpoints_manifest, masters_manifest, not_served,
    parse_nodes, rancher_node, rbac_manifest,
};
use proto::node::Role;
use proto::service::ServiceName;
use proto::settings::{about, read_node_local};

use super::exit::{self, ExitError};
use super::settings::open_file;
use super::{CommandSettings, ask, out};
use crate::app::{doctor, endpoints};
use crate::check::{KubeClient, KubeError};
use crate::control::CallError;
use crate::membership::disk::node_local_of;
use crate::state::StateDir;

/// Where apiservers list the nodes.
const NODES: &str = "/api/v1/nodes";

/// Most bytes of a list of nodes.
const MOST: u64 = 64 * 1024 * 1024;

/// The proxy's listener where the agent can't be asked for it.
const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 16443);

/// Setting that names the user of the RBAC that is printed.
const USER: &str = "agent";

/// Lead pods to the agent of their own node
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the endpoints that lead every pod to the node-local address
    ///
    /// Prints Endpoints and EndpointSlice of the Service "kubernetes", for kubeadm, with the order in which to
    /// do it and the way back as comments. Changes nothing. Refuses on k3s and RKE2, and while a node of
    /// Kubernetes is no member that is up and serves the address: its pods would lose the API.
    #[command(after_help = "\
Examples:
  agent kubernetes endpoints | less
  kubectl get nodes -o wide | agent kubernetes endpoints --nodes -")]
    Endpoints {
        /// Read the nodes from the output of "kubectl get nodes -o wide" instead of asking the apiserver; -
        /// for stdin
        #[arg(long, value_name = "FILE")]
        nodes: Option<PathBuf>,
        /// Print the masters' own addresses instead: the first step back
        #[arg(long, conflicts_with = "nodes")]
        masters: bool,
    },
    /// Print the role that masters' agents need to watch and restore the endpoints
    Rbac {
        /// Common name of the client certificate that they show
        #[arg(long, value_name = "NAME", default_value = USER, value_parser = user)]
        user: String,
    },
}

/// A name that can stand in YAML as it is.
fn user(text: &str) -> Result<String, BadUser> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let good = (1..=64).contains(&text.len()) && text.bytes().all(plain);
    if good { Ok(text.to_owned()) } else { Err(BadUser) }
}

/// Why a text is no user.
#[derive(Debug, thiserror::Error)]
#[error("write 1 to 64 letters, digits, -, _ and ., such as agent")]
struct BadUser;

/// Runs the command.
pub(super) async fn run(args: Args, settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Rbac { user } => out::print(&rbac_manifest(&user))?,
        Command::Endpoints { masters: true, .. } => {
            let status = ask::status(settings).await?;
            out::print(&masters_manifest(&masters(&status)?))?;
        }
        Command::Endpoints { nodes, .. } => print_endpoints(nodes.as_deref(), settings).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn refused(text: impl Into<String>) -> anyhow::Error {
    ExitError::error(exit::UNAVAILABLE, text)
}

async fn print_endpoints(nodes: Option<&Path>, settings: &CommandSettings) -> anyhow::Result<()> {
    refuse_rancher(doctor::places(&settings.config).read().distribution)?;
    let status = ask::status(settings).await?;
    let Set { addresses, port, .. } = set(settings).await?;
    if addresses.is_empty() {
        return Err(refused("node-local is not set; run on a master: agent set node-local=ADDRESS"));
    }
    if !status.node.attached_to.is_empty() {
        return Err(refused("this node does not know what all others serve; run it on a master"));
    }
    let mut client = client(&settings.config);
    let at = listener(&status);
    let nodes = match nodes {
        Some(file) => read_nodes(file)?,
        None => match client.get::<HostNodes>(at, NODES).await {
            Ok(nodes) => nodes.unwrap_or_default().0,
            Err(error) => {
                return Err(refused(format!(
                    "cannot list the nodes of Kubernetes: {error}; run: kubectl get nodes -o wide | agent \
                     kubernetes endpoints --nodes -"
                )));
            }
        },
    };
    if let Some((node, what)) = rancher_node(&nodes) {
        return Err(rancher(what, &format!("{} runs {what}", node.name)));
    }
    let now = endpoints::read(&mut client, at).await.unwrap_or_default();
    let Some(target) = Target::of(&addresses, port, &now) else { return Ok(()) };
    let missing = not_served(&nodes, &members(&status), target.0.ip());
    if nodes.is_empty() || !missing.is_empty() {
        return Err(not_ready(&missing));
    }
    out::print(&endpoints_manifest(target))?;
    Ok(())
}

fn not_ready(missing: &[String]) -> anyhow::Error {
    let mut text = "nothing is printed: pods of these nodes would lose the API".to_owned();
    for why in missing {
        text.push_str(&format!("\n  {why}"));
    }
    if missing.is_empty() {
        text = "nothing is printed: Kubernetes has no nodes".to_owned();
    }
    refused(text)
}

/// k3s' and RKE2's agents take the masters from the very object.
fn refuse_rancher(distribution: Option<Distribution>) -> anyhow::Result<()> {
    let what = match distribution {
        Some(Distribution::K3s) => "k3s",
        Some(Distribution::Rke2) => "RKE2",
        Some(Distribution::Kubeadm) | None => return Ok(()),
    };
    Err(rancher(what, &format!("this node runs {what}")))
}

fn rancher(what: &str, seen: &str) -> anyhow::Error {
    refused(format!(
        "{seen}.\nIts agents take the masters from the endpoints of default/kubernetes and open a\ntunnel to each: \
         with one address, logs and exec fail on the other masters\n(k3k#1255). On {what}, use the node-local address \
         for kubelets, pods on the host's\nnetwork and the join port, not for all pods"
    ))
}

/// What is set.
struct Set {
    addresses: BTreeSet<IpAddr>,
    port: u16,
    watched: bool,
}

async fn set(settings: &CommandSettings) -> anyhow::Result<Set> {
    match ask::ask(settings, &Request::Settings).await? {
        Response::Settings(all) => {
            let value = |key: &str| all.iter().find(|one| one.key == key).map(|one| one.value.as_str());
            let port = value("service.kube-api.node-local").and_then(|port| port.parse().ok());
            Ok(Set {
                addresses: value("node-local").and_then(read_node_local).unwrap_or_default(),
                port: port.unwrap_or(16443),
                watched: value("node-local.endpoints").is_some_and(|mode| mode != "off"),
            })
        }
        other => Err(ask::unexpected(&other)),
    }
}

fn client(config: &Config) -> KubeClient {
    KubeClient::new(&endpoints::credentials(&config.services), Path::new("/"))
}

/// A place where this node's proxy serves the API.
fn listener(status: &Status) -> SocketAddr {
    let api = status.services.iter().find(|one| one.name == ServiceName::kube_api());
    let bound = || api.into_iter().flat_map(|api| &api.listen);
    let bound = || bound().filter(|one| one.state == ListenerState::Listening).map(|one| one.address);
    let any = |at: SocketAddr| match (at.ip().is_unspecified(), at.is_ipv4()) {
        (true, true) => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), at.port()),
        (true, false) => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), at.port()),
        (false, _) => at,
    };
    bound().find(|at| at.ip().is_loopback()).or_else(|| bound().next()).map_or(LISTENER, any)
}

fn members(status: &Status) -> Vec<ServingMember> {
    let member = |one: &proto::control::MemberStatus| ServingMember {
        name: one.name.to_string(),
        address: one.address.parse().ok(),
        up: one.state == MemberState::Up,
        serves: one.node_local.clone(),
    };
    status.members.iter().map(member).collect()
}

/// The masters' own apiservers, of one family.
fn masters(status: &Status) -> anyhow::Result<Vec<SocketAddr>> {
    let names: Vec<_> =
        status.members.iter().filter(|one| one.role == Role::Master).map(|one| &one.name).collect();
    let api = status.services.iter().find(|one| one.name == ServiceName::kube_api());
    let backends = api.into_iter().flat_map(|api| &api.backends);
    let good = backends.filter(|one| one.state.is_good() && names.contains(&&one.node));
    let all: Vec<SocketAddr> = good.filter_map(|one| one.address.parse().ok()).collect();
    let Some(first) = all.first() else { return Err(refused("no master serves")) };
    let (family, port) = (first.is_ipv4(), first.port());
    Ok(all.into_iter().filter(|at| at.is_ipv4() == family && at.port() == port).collect())
}

fn read_nodes(file: &Path) -> anyhow::Result<Vec<HostNode>> {
    let mut text = String::new();
    let name = file.display();
    let read = match file == Path::new("-") {
        true => std::io::stdin().lock().take(MOST).read_to_string(&mut text),
        false => open_file(file).and_then(|file| file.take(MOST).read_to_string(&mut text)),
    };
    read.map_err(|error| ExitError::error(exit::NO_INPUT, format!("can't read {name}: {error}")))?;
    if text.trim_start().starts_with('{') {
        let list: Result<HostNodes, _> = serde_json::from_str(&text);
        let list = list.map_err(|error| ExitError::error(exit::DATA, format!("{name}: {error}")))?;
        return Ok(list.0);
    }
    parse_nodes(&text).map_err(|error| ExitError::error(exit::DATA, format!("{name}: {error}")))
}

/// What takes the node-local address away, as the refusal names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// From all nodes, or to another address or port.
    Setting,
    /// From this node.
    Node,
}

/// Whether changes of settings take away what the endpoints may name.
pub(super) fn removes(wishes: &[(String, Option<String>)]) -> bool {
    const KEYS: [&str; 3] = ["node-local", "service.kube-api.node-local", "service.kube-api"];
    wishes.iter().any(|(key, _)| {
        let key = about(key).map_or_else(|_| key.clone(), |(key, _)| key);
        KEYS.contains(&key.as_str())
    })
}

/// Refuses while pods are led to the node-local address.
///
/// # Errors
/// They are, or this can't be seen and the settings say that they are.
pub(super) async fn refuse_while_used(settings: &CommandSettings, removal: Removal) -> anyhow::Result<()> {
    let used = match ask::ask_if_running(settings, &Request::Status).await? {
        Ok(Response::Status(status)) => {
            let known = set(settings).await?;
            Some((known, listener(&status)))
        }
        Ok(_) | Err(CallError::Stopped | CallError::NotRunning { .. }) => None,
        Err(_) => None,
    };
    let (known, at) = used.unwrap_or_else(|| {
        let dir = settings.state_dir();
        let addresses = if dir.is_dir() { node_local_of(&StateDir::look(dir)) } else { BTreeSet::new() };
        (Set { addresses, port: 16443, watched: false }, LISTENER)
    });
    if known.addresses.is_empty() {
        return Ok(());
    }
    let now = endpoints::read(&mut client(&settings.config), at).await;
    let Some(why) = use_of(now, &known, removal) else { return Ok(()) };
    Err(refused(match removal {
        Removal::Setting => format!(
            "{why}, and would lose the API; lead them to the masters first (agent kubernetes endpoints \
             --masters), or use --force"
        ),
        Removal::Node => format!(
            "{why}, and those of this node would lose the API; remove the node from Kubernetes first \
             (kubectl drain, kubectl delete node, kubeadm reset), or use --force"
        ),
    }))
}

/// Why pods may be led to what is taken away; `None`: they are not, or nothing says that they are.
fn use_of(now: Result<BTreeSet<SocketAddr>, KubeError>, known: &Set, removal: Removal) -> Option<String> {
    match now {
        Ok(now) => {
            let at = now.iter().find(|one| known.addresses.contains(&one.ip()))?;
            Some(format!("pods are led to {at} by the endpoints of default/kubernetes"))
        }
        // As "kubeadm reset" leaves it: this is no node of Kubernetes any more.
        Err(KubeError::NoCredentials) if removal == Removal::Node => None,
        Err(error) if known.watched => {
            Some(format!("pods may be led to the node-local address, which cannot be seen here: {error}"))
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_use_stays_and_a_node_that_kubernetes_has_left_may_go() {
        let known =
            |watched| Set { addresses: BTreeSet::from([[10, 91, 91, 50].into()]), port: 16443, watched };
        let ours: SocketAddr = ([10, 91, 91, 50], 16443).into();
        let own: SocketAddr = ([10, 0, 0, 1], 6443).into();
        for (now, watched, removal, refuses) in [
            (Ok(BTreeSet::from([ours])), false, Removal::Node, true),
            (Ok(BTreeSet::from([own, ours])), false, Removal::Setting, true),
            (Ok(BTreeSet::from([own])), true, Removal::Setting, false),
            (Ok(BTreeSet::new()), true, Removal::Node, false),
            (Err(KubeError::NoCredentials), true, Removal::Node, false),
            (Err(KubeError::NoCredentials), true, Removal::Setting, true),
            (Err(KubeError::Forbidden(403)), true, Removal::Node, true),
            (Err(KubeError::Forbidden(403)), false, Removal::Setting, false),
        ] {
            let text = format!("{now:?} {watched} {removal:?}");
            assert_eq!(use_of(now, &known(watched), removal).is_some(), refuses, "{text}");
        }
    }

    #[test]
    fn only_settings_that_the_endpoints_depend_on_are_looked_at() {
        let wish = |key: &str| [(key.to_owned(), None)];
        for key in ["node-local", "service.kube-api.node-local", "service.kube-api"] {
            assert!(removes(&wish(key)), "{key}");
        }
        for key in ["node-local.endpoints", "service.join", "vip", "balance"] {
            assert!(!removes(&wish(key)), "{key}");
        }
    }

    #[test]
    fn k3s_and_rke2_are_refused_in_80_columns() {
        for distribution in [Distribution::K3s, Distribution::Rke2] {
            let told = refuse_rancher(Some(distribution)).unwrap_err().to_string();
            assert!(
                told.contains("k3k#1255") && told.lines().all(|line| line.chars().count() <= 80),
                "{told}"
            );
        }
        assert!(refuse_rancher(Some(Distribution::Kubeadm)).is_ok() && refuse_rancher(None).is_ok());
    }
}
