//! The node-local address, put together: whose addresses it must not be, and what of it is kept on disk.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proto::cluster::Document;
use proto::control::{RefusalCode, Response};
use proto::node::Name;
use proto::node_local::conflict;
use proto::settings;
use tokio::sync::watch;

use super::RunningAgent;
use crate::lifecycle::Lifecycle;
use crate::membership::disk::MemberStore;
use crate::netlink::listeners::ListenerLookup;
use crate::transport::Link;
use crate::vip::{self, NodeLocalReport};

/// The addresses of all members, as the link and this node know them.
pub(super) fn members(link: &Link, document: &Document, own: Option<IpAddr>) -> Vec<(Name, IpAddr)> {
    let book = link.addresses();
    let of = |id| {
        let at = book.all(id).into_iter().map(|at| at.ip());
        at.chain(own.filter(|_| *id == link.own())).map(|ip| (document.shown_name(id), ip))
    };
    document.members().flat_map(|(id, _)| of(id)).collect()
}

/// Why an address that someone wants to be the node-local one can't be, as far as this node can see. What is no
/// address is the settings' to refuse.
pub(super) fn refusal(running: &RunningAgent, wishes: &[(String, Option<String>)]) -> Option<Response> {
    let value = |wanted: &str| {
        wishes.iter().rev().find(|(key, _)| key.trim() == wanted).and_then(|(_, value)| value.as_deref())
    };
    let wanted = settings::read_node_local(value("node-local")?)?;
    let report = running.clients.node_local().borrow().clone();
    let document = running.document();
    let members = members(&running.link, &document, running.own.address());
    let host = vip::host_addresses();
    let effective = running.clients.effective().now();
    let port = value("service.kube-api.node-local").and_then(|port| port.parse().ok());
    let port = port.unwrap_or_else(|| effective.settings.node_local.kube_api_port());
    for ip in wanted.iter().filter(|ip| !report.held.contains(ip)) {
        if let Some(why) = conflict(*ip, &host, members.iter().map(|(name, ip)| (name, *ip))) {
            let text = format!("{why}; use one outside of all networks");
            return Some(Response::refused(RefusalCode::BadInput, text));
        }
        // A listener of our own on all addresses serves this one, too.
        let own = effective.services.iter().flat_map(|service| &service.listen);
        let own = own.into_iter().any(|at| at.ip().is_unspecified() && at.port() == port);
        let taken = ListenerLookup::default().listens(SocketAddr::new(*ip, port));
        if taken == Some(true) && !own {
            let text = format!(
                "another program listens on port {port} of this node (ss -ltnp); stop it, or set \
                 service.kube-api.node-local=PORT too"
            );
            return Some(Response::refused(RefusalCode::BadInput, text));
        }
    }
    None
}

/// Keeps what was set on lo, so that it is taken away even where the setting is gone by the next start.
pub(super) fn keep(disk: Arc<MemberStore>, report: watch::Receiver<Arc<NodeLocalReport>>, life: &Lifecycle) {
    life.follow("node-local", report, (disk, None), |(disk, saved), report| {
        if saved.as_ref() != Some(&report.added) && disk.save_node_local(&report.added) {
            *saved = Some::<BTreeSet<IpAddr>>(report.added.clone());
        }
    });
}
