//! Which node is meant by a server's name or an address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::haproxy::Server;
use crate::node::Name;

/// What stands for a node whose name is not known. It is no name that a node may have, so that a command with it is
/// refused.
pub(super) const UNKNOWN: &str = "NODE";

/// The names of nodes by their addresses, as far as they are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeNames<'a>(pub(super) &'a BTreeMap<IpAddr, Name>);

impl NodeNames<'_> {
    /// The name of the node that a server is. haproxy's own name for it counts while nothing better is known.
    pub(super) fn of_server(self, server: &Server) -> Option<Name> {
        match server.host.parse::<IpAddr>() {
            Ok(address) if !self.0.is_empty() => self.at(address),
            _ => server.name.to_lowercase().parse().ok(),
        }
    }

    /// The name of the node at an address.
    pub(super) fn at(self, address: IpAddr) -> Option<Name> {
        self.0.get(&address.to_canonical()).cloned()
    }
}

/// A node's name in a command.
pub(super) fn shown(name: Option<&Name>) -> &str {
    name.map_or(UNKNOWN, Name::as_str)
}
