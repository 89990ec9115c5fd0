//! The ways to the other members: ports, packet size, clocks.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Examination, FindingText, Severity, Step};
use crate::cause::{Cause, Fault};

/// What takes care of packets on the asking node, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firewall {
    /// ufw is on.
    Ufw,
    /// firewalld runs.
    Firewalld,
    /// None of those: nftables, or something outside of this machine.
    #[default]
    Nftables,
}

impl Firewall {
    /// The command that lets a port in.
    fn open_port_command(self, interface: &str, port: u16, protocol: &str) -> String {
        match self {
            Firewall::Ufw => format!("ufw allow in on {interface} to any port {port} proto {protocol}"),
            Firewall::Firewalld => {
                format!("firewall-cmd --permanent --add-port={port}/{protocol} && firewall-cmd --reload")
            }
            Firewall::Nftables => {
                format!(
                    "nft insert rule inet filter input iifname {interface} {protocol} dport {port} accept"
                )
            }
        }
    }
}

/// What came of speaking with a member.
#[derive(Debug, Clone, Default)]
pub struct PeerFacts {
    /// Its name.
    pub name: String,
    /// Where it was dialled; none: nobody knows where it is.
    pub address: Option<SocketAddr>,
    /// It said that it stops.
    pub left: bool,
    /// Others hear it, and this node does not.
    pub cut_off: bool,
    /// Why a connection was not made; none: it was.
    pub tcp: Option<Fault>,
    /// Why no datagram came back; none: one did.
    pub udp: Option<Fault>,
    /// It answered a question, and a question and an answer of many packets.
    pub talk: PeerConversation,
    /// Largest packet on the way there that the kernel knows of.
    pub path_mtu: Option<u32>,
    /// What it says, when it answered.
    pub back: Option<ReturnPath>,
}

/// What passed after the connection was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PeerConversation {
    /// Nothing was tried.
    #[default]
    None,
    /// Packets of full size, both ways.
    Whole,
    /// Small packets only.
    SmallOnly,
    /// Nothing, and why.
    Nothing(String),
}

/// What a member said of the way back.
#[derive(Debug, Clone, Default)]
pub struct ReturnPath {
    /// Why it can't connect; none: it can.
    pub tcp: Option<Fault>,
    /// Why no datagram comes back to it; none: one does.
    pub udp: Option<Fault>,
    /// Largest packet of its interface.
    pub mtu: Option<u32>,
    /// How far its clock is ahead of this node's, in milliseconds.
    pub ahead_ms: i64,
    /// How wrong that may be, in milliseconds: half of the time that the exchange took.
    pub slack_ms: i64,
}

/// The node that was asked, and the members that it spoke with.
#[derive(Debug, Clone, Default)]
pub struct MeshFacts {
    /// Its name.
    pub node: String,
    /// Its address and port in the mesh, as the others dial it.
    pub address: String,
    /// The interface that carries its mesh.
    pub interface: String,
    /// Largest packet of that interface; none: not known.
    pub mtu: Option<u32>,
    /// The port of the link.
    pub port: u16,
    /// What opens it.
    pub firewall: Firewall,
    /// The others.
    pub peers: Vec<PeerFacts>,
}

/// Clocks this far apart are told of, in milliseconds: etcd logs a second, tokens and leases suffer soon after.
const CLOCKS_MS: i64 = 2_000;

/// Clocks this far apart break certificates that were just made.
const CLOCKS_BREAK_MS: i64 = 60_000;

/// Judges the ways to all others.
pub fn examine(mesh: &MeshFacts) -> Examination {
    let mut out = Examination::default();
    let all = mesh.peers.len();
    if all == 0 {
        out.checked("ports", "no other members were checked");
        return out;
    }
    for peer in &mesh.peers {
        ports(mesh, peer, &mut out);
    }
    let s = if all == 1 { "" } else { "s" };
    out.checked("ports", format!("{all} other member{s}, TCP and UDP on {}, in both directions", mesh.port));
    for peer in &mesh.peers {
        packets(mesh, peer, &mut out);
    }
    packet_sizes(mesh, &mut out);
    out.checked(
        "packets",
        match mesh.mtu {
            Some(mtu) => format!("packets of full size pass, {mtu} bytes on {}", mesh.interface),
            None => "packets of full size pass".to_owned(),
        },
    );
    clock_offsets(mesh, &mut out);
    out
}

fn ports(mesh: &MeshFacts, peer: &PeerFacts, out: &mut Examination) {
    let PeerFacts { name, .. } = peer;
    let mut error = |code: &str, what: String, why: &str, remedy: Vec<Step>| {
        out.found(Severity::Error, "ports", code, &mesh.node, FindingText { what, why, remedy });
    };
    if peer.left {
        return;
    }
    let Some(address) = peer.address else {
        let what = format!("the address of {name} is unknown");
        let why = "it was admitted but has never been heard, so nothing can be sent to it";
        let start = Step::run("systemctl restart agent").on(name);
        return error(
            "address-unknown",
            what,
            why,
            vec![start, Step::run(format!("agent remove {name}")).remark("if it no longer exists")],
        );
    };
    let (ip, port) = (address.ip(), address.port());
    let opens = |protocol: &str| {
        let rule = mesh.firewall.open_port_command(&mesh.interface, mesh.port, protocol);
        Step::run(rule).on("both nodes, and in the cloud's firewall")
    };
    match (&peer.tcp, &peer.udp) {
        (Some(tcp), Some(_)) if tcp.cause == Cause::PortClosed => {
            let what = format!("no agent listens at {name} ({address}); the machine answers");
            let why = "its proxy is not running, and of its apiserver only the open port is known";
            error("agent-away", what, why, vec![Step::run("systemctl start agent").on(name)]);
        }
        (Some(tcp), Some(_)) if peer.cut_off => {
            let what =
                format!("{name} answers neither TCP nor UDP on {ip}, port {port} ({tcp}); others hear it");
            let why = "the path from here to it is cut: a route, a tunnel or a firewall between the two";
            let remedy = vec![
                Step::run(format!("ip route get {ip}")),
                Step::run(format!("mtr -u {ip}")).remark("which hop loses"),
                opens("udp").remark("if the path is fine"),
            ];
            error("path-cut", what, why, remedy);
        }
        (Some(tcp), Some(_)) => {
            let what = format!("{name} answers neither TCP nor UDP on {ip}, port {port} ({tcp})");
            let why = "the machine, its network or its agent is down, or a firewall drops both";
            let remedy = vec![
                Step::run(format!("ping -c 3 {ip}")),
                Step::run("systemctl status agent").on(name),
                opens("udp").remark("if those look fine"),
                opens("tcp").remark("the same for TCP"),
            ];
            error("unreachable", what, why, remedy);
        }
        (None, Some(_)) => {
            let what = format!("UDP is blocked to or from {name}, port {port} on {ip}; TCP works");
            let why = "pulses and gossip use UDP: without it, a dead master is noticed late, and a healthy one \
                       may look dead";
            error("udp-blocked", what, why, vec![opens("udp")]);
        }
        (Some(tcp), None) => {
            let what = format!("TCP is blocked to {name}, port {port} on {ip} ({tcp}); UDP works");
            let why = "admissions, removals, settings and new keys use TCP: this node would miss them";
            error("tcp-blocked", what, why, vec![opens("tcp")]);
        }
        (None, None) => {}
    }
    return_path(mesh, peer, &opens, out);
}

/// What the member says of its way here.
fn return_path(mesh: &MeshFacts, peer: &PeerFacts, opens: &dyn Fn(&str) -> Step, out: &mut Examination) {
    let PeerFacts { name, .. } = peer;
    let mut error = |code: &str, what: String, why: &str, remedy: Vec<Step>| {
        out.found(Severity::Error, "ports", code, &mesh.node, FindingText { what, why, remedy });
    };
    if let Some(back) = &peer.back {
        // Datagrams that come back here passed both ways already.
        if let Some(why_not) = &back.tcp {
            let what = format!("{name} cannot connect to this node by TCP, {} ({why_not})", mesh.address);
            let why = "its changes reach this node late, through others, or not at all";
            error("tcp-blocked-back", what, why, vec![opens("tcp")]);
        }
        if let (Some(why_not), None) = (&back.udp, &peer.udp) {
            let what = format!("{name} gets no answer from this node by UDP, {} ({why_not})", mesh.address);
            let why = "it may consider this node dead";
            error("udp-blocked-back", what, why, vec![opens("udp")]);
        }
    }
    if let PeerConversation::Nothing(why_not) = &peer.talk {
        let what = format!("{name} did not answer when it was asked to check itself: {why_not}");
        let why = "it may have an older version or be busy; its own findings are missing";
        let remedy =
            vec![Step::run("agent status").on(name), Step::run("journalctl -u agent -n 50").on(name)];
        out.found(Severity::Warning, "ports", "no-answer", &mesh.node, FindingText { what, why, remedy });
    }
}

fn packets(mesh: &MeshFacts, peer: &PeerFacts, out: &mut Examination) {
    let PeerFacts { name, .. } = peer;
    let MeshFacts { interface, mtu, .. } = mesh;
    let lower = |to: u32| {
        vec![
            Step::run(format!("ip link set dev {interface} mtu {to}")),
            Step::text(format!(
                "to keep it: MTU = {to} in the [Interface] section of WireGuard's file, or the option of your VPN"
            )),
        ]
    };
    if peer.talk == PeerConversation::SmallOnly {
        let size = mtu.map_or_else(String::new, |mtu| format!(" ({mtu} bytes on {interface})"));
        let what = format!("packets of full size do not pass to or from {name}{size}; small ones do");
        let why = "connections open and then hang at the first certificate or list: a hop on the path \
                   has a smaller MTU and sends no ICMP";
        let remedy = lower(1280).into_iter().map(|step| step.on("every node")).collect();
        out.found(
            Severity::Error,
            "packets",
            "mtu-black-hole",
            &mesh.node,
            FindingText { what, why, remedy },
        );
        return;
    }
    if let (Some(path), Some(own)) = (peer.path_mtu, *mtu)
        && path < own
    {
        let what = format!("the path to {name} carries packets of {path} bytes; {interface} is set to {own}");
        let why = "each new connection loses its first large packets until the kernel learns the MTU, and \
                   with ICMP filtered it hangs";
        let remedy = lower(path);
        out.found(Severity::Warning, "packets", "mtu-path", &mesh.node, FindingText { what, why, remedy });
    }
}

/// Sizes that differ, each once with all who have it: one node that is set otherwise differs from many.
fn packet_sizes(mesh: &MeshFacts, out: &mut Examination) {
    let (node, interface) = (&mesh.node, &mesh.interface);
    let Some(own) = mesh.mtu else { return };
    let mut others: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    // Where packets don't pass anyway, or the kernel knows of less, that has been told.
    let passes = |peer: &&PeerFacts| {
        peer.talk == PeerConversation::Whole && peer.path_mtu.is_none_or(|path| path >= own)
    };
    for peer in mesh.peers.iter().filter(passes) {
        if let Some(theirs) = peer.back.as_ref().and_then(|back| back.mtu).filter(|theirs| *theirs != own) {
            others.entry(theirs).or_default().push(&peer.name);
        }
    }
    for (theirs, names) in others {
        let list = match names.as_slice() {
            [a, b, c, _, ..] => format!("{a}, {b}, {c} and {} more", names.len() - 3),
            few => few.join(", "),
        };
        let what = format!("the mesh has an MTU of {own} here and of {theirs} on {list}");
        let why = "the smaller side may drop what the larger side sends unfragmented: large UDP packets and \
                   tunnelled pod traffic";
        let remedy = vec![match theirs < own {
            true => Step::run(format!("ip link set dev {interface} mtu {theirs}")),
            false => Step::run(format!("ip link set dev {interface} mtu {own}"))
                .remark("their interface in the mesh")
                .on(list.as_str()),
        }];
        out.found(Severity::Warning, "packets", "mtu-differs", node, FindingText { what, why, remedy });
    }
}

/// A clock: whose, how far it is ahead of this node's, and by how much that may be wrong, both in milliseconds.
type Clock<'a> = (&'a str, i64, i64);

fn agree(a: &Clock<'_>, b: &Clock<'_>) -> bool {
    (a.1 - b.1).abs() <= CLOCKS_MS + a.2 + b.2
}

/// Tells of each clock that differs from those of the majority; without a majority, that they differ: nobody can say
/// which are wrong.
fn clock_offsets(mesh: &MeshFacts, out: &mut Examination) {
    let answered = mesh.peers.iter().filter_map(|peer| Some((peer.name.as_str(), peer.back.as_ref()?)));
    let mut all: Vec<Clock<'_>> = answered.map(|(name, back)| (name, back.ahead_ms, back.slack_ms)).collect();
    if all.is_empty() {
        return;
    }
    all.push((&mesh.node, 0, 0));
    all.sort_unstable_by_key(|(name, ahead, _)| (*ahead, *name));
    let agreeing = |one: &Clock<'_>| all.iter().filter(|other| agree(one, other)).count();
    let Some(reference) = all.iter().max_by_key(|one| agreeing(one)).copied() else { return };
    let most = all.last().map_or(0, |last| last.1) - all.first().map_or(0, |first| first.1);
    let why =
        "certificates and tokens appear expired or not yet valid, etcd warns, and log times do not match";
    let severity = |off: i64| if off > CLOCKS_BREAK_MS { Severity::Error } else { Severity::Warning };
    let seconds = |ms: i64| (ms.abs() + 500) / 1000;
    let set = || Step::run("timedatectl set-ntp true");
    let step = || Step::run("chronyc makestep").remark("if chrony is used");
    if agreeing(&reference) * 2 <= all.len() {
        let list: Vec<String> = all
            .chunk_by(agree)
            .map(|group| {
                let names: Vec<&str> = group.iter().map(|(name, ..)| *name).collect();
                let ahead = group.first().map_or(0, |first| first.1) - all.first().map_or(0, |first| first.1);
                let ahead = match seconds(ahead) {
                    0 => String::new(),
                    ahead => format!(" {ahead} s ahead"),
                };
                format!("{}{ahead}", names.join(", "))
            })
            .collect();
        let what = format!("the clocks differ, and no majority shows which are right: {}", list.join("; "));
        let remedy = vec![set().on("every node"), step().on("every node")];
        out.found(severity(most), "clocks", "clock", &mesh.node, FindingText { what, why, remedy });
    } else {
        for one in all.iter().filter(|one| !agree(one, &reference)) {
            let (name, off) = (one.0, one.1 - reference.1);
            let way = if off > 0 { "ahead of" } else { "behind" };
            let what = format!("the clock of {name} is {} s {way} those of the majority", seconds(off));
            let remedy = vec![set().at(name, &mesh.node), step().at(name, &mesh.node)];
            out.found(severity(off.abs()), "clocks", "clock", name, FindingText { what, why, remedy });
        }
    }
    out.checked("clocks", format!("at most {most} ms apart"));
}
