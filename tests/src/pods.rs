//! Pods: a namespace behind a veth of a node, whose way to the Service `kubernetes` is the node's to give.
//!
//! The rules are written by hand, in the form that kube-proxy gives its own with nftables: the ClusterIP of a Service
//! leads to one of its endpoints, at random for each connection.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::lab::Node;

/// A Service of Kubernetes: its ClusterIPs, IPv4 and IPv6, and its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterService {
    name: &'static str,
    /// Its ClusterIPs.
    pub ips: [&'static str; 2],
}

/// The port of every Service here.
pub const PORT: u16 = 443;

/// The Service `kubernetes` as the node-local address serves it.
pub const NODE_LOCAL: ClusterService = ClusterService { name: "node-local", ips: ["10.96.0.1", "fd96::1"] };

/// The same with the masters' own addresses, as everyone has it today.
pub const MASTERS: ClusterService = ClusterService { name: "masters", ips: ["10.96.0.2", "fd96::2"] };

impl ClusterService {
    /// Where its clients connect, by IPv4.
    pub fn v4(&self) -> SocketAddr {
        format!("{}:{PORT}", self.ips[0]).parse().unwrap_or_else(|_| SocketAddr::from(([0; 4], PORT)))
    }

    /// Leads it to these places; those of a family to the ClusterIP of that family. None: it is refused nowhere, and
    /// leads nowhere.
    ///
    /// # Errors
    /// nft refuses.
    pub fn lead(&self, host: &Node, places: &[SocketAddr]) -> Result<()> {
        let mut rules =
            format!("flush chain inet kube-proxy {0}-4\nflush chain inet kube-proxy {0}-6\n", self.name);
        for (family, chain, form) in [(true, 4, "ip"), (false, 6, "ip6")] {
            let all: Vec<&SocketAddr> = places.iter().filter(|at| at.is_ipv4() == family).collect();
            if all.is_empty() {
                continue;
            }
            let of = |at: &SocketAddr| match at.ip() {
                IpAddr::V4(ip) => format!("{ip} . {}", at.port()),
                IpAddr::V6(ip) => format!("{ip} . {}", at.port()),
            };
            let map: Vec<String> =
                all.iter().enumerate().map(|(i, at)| format!("{i} : {}", of(at))).collect();
            let _ = writeln!(
                rules,
                "add rule inet kube-proxy {}-{chain} meta l4proto tcp dnat {form} to numgen random mod {} map {{ {} }}",
                self.name,
                all.len(),
                map.join(", ")
            );
        }
        host.feed("nft", &["-f", "-"], &rules)
    }
}

/// Makes a node of the lab, on which nothing else runs, a pod of another one, with both Services leading nowhere yet.
///
/// # Errors
/// A command refuses.
pub fn attach(host: &Node, pod: &Node) -> Result<()> {
    let pid = pod.pid().to_string();
    let run = |node: &Node, line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        node.exec(&words)?.ok().map(drop)
    };
    // Its own card is of no use to it.
    run(pod, "ip link set eth0 down")?;
    run(host, &format!("ip link add pod0 type veth peer name eth1 netns {pid}"))?;
    for line in ["ip address add 10.244.3.1/24 dev pod0", "ip address add fd44::1/64 dev pod0 nodad"] {
        run(host, line)?;
    }
    run(host, "ip link set pod0 up")?;
    for line in [
        "ip address add 10.244.3.2/24 dev eth1",
        "ip address add fd44::2/64 dev eth1 nodad",
        "ip link set eth1 up",
        "ip route add default via 10.244.3.1",
        "ip -6 route add default via fd44::1",
    ] {
        run(pod, line)?;
    }
    let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
    host.exec(&["sh", "-c", forward])?.ok()?;
    let mut rules = "table inet kube-proxy {\n".to_owned();
    for service in [NODE_LOCAL, MASTERS] {
        let _ = writeln!(rules, "chain {0}-4 {{ }}\nchain {0}-6 {{ }}", service.name);
    }
    rules.push_str("chain services {\n");
    for service in [NODE_LOCAL, MASTERS] {
        let [v4, v6] = service.ips;
        let _ = writeln!(rules, "ip daddr {v4} tcp dport {PORT} goto {}-4", service.name);
        let _ = writeln!(rules, "ip6 daddr {v6} tcp dport {PORT} goto {}-6", service.name);
    }
    rules.push_str(
        "}\nchain prerouting { type nat hook prerouting priority dstnat; jump services; }\n\
         chain output { type nat hook output priority -100; jump services; }\n\
         chain postrouting { type nat hook postrouting priority srcnat; \
         ip saddr 10.244.0.0/16 oifname != \"pod0\" masquerade; }\n}\n",
    );
    host.feed("nft", &["-f", "-"], &rules)
}
