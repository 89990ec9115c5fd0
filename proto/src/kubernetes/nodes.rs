//! The nodes of Kubernetes, and which of them would lead their pods nowhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;

/// Most nodes that are read: Kubernetes' own limit.
const MOST: usize = 5_000;

/// A node of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its kubelet's version.
    pub version: String,
}

/// A member of the agents' cluster.
#[derive(Debug, Clone)]
pub struct ServingMember {
    /// Its name.
    pub name: String,
    /// Its address, if it is known.
    pub address: Option<IpAddr>,
    /// Whether it is up.
    pub up: bool,
    /// The node-local addresses that it serves.
    pub serves: Vec<IpAddr>,
}

/// Why a text is no list of nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNodes {
    /// It has none of the columns.
    #[error("no column {0}; use the output of: kubectl get nodes -o wide")]
    NoColumn(&'static str),
    /// It has no line besides the first.
    #[error("it lists no node; use the output of: kubectl get nodes -o wide")]
    Empty,
    /// There are too many.
    #[error("more than {MOST} nodes")]
    TooMany,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct List {
    items: Vec<Item>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item {
    metadata: Metadata,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    addresses: Vec<Address>,
    node_info: NodeInfo,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Address {
    address: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeInfo {
    kubelet_version: String,
}

impl From<Item> for HostNode {
    fn from(item: Item) -> HostNode {
        let addresses = item.status.addresses.iter().filter_map(|one| one.address.parse().ok());
        HostNode {
            name: item.metadata.name,
            addresses: addresses.collect(),
            version: item.status.node_info.kubelet_version,
        }
    }
}

/// A list as the apiserver has it.
#[derive(Debug, Clone, Default)]
pub struct HostNodes(pub Vec<HostNode>);

impl<'de> Deserialize<'de> for HostNodes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<HostNodes, D::Error> {
        let list = List::deserialize(deserializer)?;
        Ok(HostNodes(list.items.into_iter().map(HostNode::from).collect()))
    }
}

/// Reads what `kubectl get nodes -o wide` prints.
///
/// # Errors
/// It is something else.
pub fn parse_nodes(text: &str) -> Result<Vec<HostNode>, BadNodes> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    // None of the columns up to this one has blanks in it.
    let column =
        |name: &'static str| head.iter().position(|one| *one == name).ok_or(BadNodes::NoColumn(name));
    let (name, version, ip) = (column("NAME")?, column("VERSION")?, column("INTERNAL-IP")?);
    let mut nodes = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let addresses = word(ip).parse().into_iter().collect();
        nodes.push(HostNode { name: word(name).to_owned(), addresses, version: word(version).to_owned() });
        if nodes.len() > MOST {
            return Err(BadNodes::TooMany);
        }
    }
    if nodes.is_empty() { Err(BadNodes::Empty) } else { Ok(nodes) }
}

/// The first node that k3s or RKE2 runs, by its kubelet's version.
pub fn rancher_node(nodes: &[HostNode]) -> Option<(&HostNode, &'static str)> {
    let of = |node: &HostNode| match node.version.as_str() {
        version if version.contains("+k3s") => Some("k3s"),
        version if version.contains("+rke2") => Some("RKE2"),
        _ => None,
    };
    nodes.iter().find_map(|node| Some((node, of(node)?)))
}

/// Why each node whose pods would be led nowhere is one, by its name.
pub fn not_served(nodes: &[HostNode], members: &[ServingMember], wanted: IpAddr) -> Vec<String> {
    let mut reasons = BTreeSet::new();
    for node in nodes {
        let is = |member: &&ServingMember| {
            member.address.is_some_and(|ip| node.addresses.contains(&ip)) || member.name == node.name
        };
        let why = match members.iter().find(is) {
            None => {
                let at = node.addresses.first().map_or(String::new(), |ip| format!(" ({ip})"));
                format!("{}{at} is no member", node.name)
            }
            Some(member) if !member.up => format!("{} is not up", member.name),
            Some(member) if !member.serves.contains(&wanted) => {
                format!("{} does not serve {wanted}", member.name)
            }
            Some(_) => continue,
        };
        reasons.insert(why);
    }
    reasons.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: &str = "\
NAME   STATUS   ROLES           AGE    VERSION   INTERNAL-IP   EXTERNAL-IP   OS-IMAGE
m1     Ready    control-plane   3d2h   v1.36.1   10.0.0.1      <none>        Debian 12
w1     Ready    <none>          3d2h   v1.36.1   10.0.0.9      <none>        Debian 12
";

    fn member(name: &str, ip: &str, up: bool, serves: &[&str]) -> ServingMember {
        let serves = serves.iter().map(|ip| ip.parse().unwrap()).collect();
        ServingMember { name: name.to_owned(), address: ip.parse().ok(), up, serves }
    }

    #[test]
    fn nodes_read_alike_from_kubectl_and_from_the_apiserver() {
        let json = r#"{"items":[
            {"metadata":{"name":"m1"},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},
              {"type":"Hostname","address":"m1"}],"nodeInfo":{"kubeletVersion":"v1.36.1"}}},
            {"metadata":{"name":"w1"},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.9"}],
              "nodeInfo":{"kubeletVersion":"v1.36.1"}}}]}"#;
        let HostNodes(nodes) = serde_json::from_str(json).unwrap();
        assert_eq!(parse_nodes(WIDE).unwrap(), nodes);
        assert_eq!(rancher_node(&nodes), None);
        let k3s = WIDE.replace("v1.36.1", "v1.36.1+k3s1");
        let nodes = parse_nodes(&k3s).unwrap();
        assert_eq!(rancher_node(&nodes).map(|(node, what)| (node.name.as_str(), what)), Some(("m1", "k3s")));
        for (text, error) in [
            ("", BadNodes::NoColumn("NAME")),
            ("NAME STATUS ROLES AGE VERSION\nm1 Ready x 1d v1\n", BadNodes::NoColumn("INTERNAL-IP")),
            ("NAME STATUS ROLES AGE VERSION INTERNAL-IP\n", BadNodes::Empty),
        ] {
            assert_eq!(parse_nodes(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_node_counts_only_while_its_member_is_up_and_serves_the_address() {
        let nodes = parse_nodes(WIDE).unwrap();
        let ip: IpAddr = "10.91.91.50".parse().unwrap();
        let m1 = member("m1", "10.8.0.1", true, &["10.91.91.50"]);
        for (w1, why) in [
            (member("worker-1", "10.0.0.9", true, &["10.91.91.50"]), None),
            (member("worker-1", "10.0.0.9", false, &["10.91.91.50"]), Some("worker-1 is not up")),
            (member("worker-1", "10.0.0.9", true, &[]), Some("worker-1 does not serve 10.91.91.50")),
            (member("worker-1", "10.0.0.8", true, &["10.91.91.50"]), Some("w1 (10.0.0.9) is no member")),
        ] {
            let found = not_served(&nodes, &[m1.clone(), w1], ip);
            assert_eq!(found.first().map(String::as_str), why);
        }
    }
}
