//! One fault planted for each finding; where nothing is planted, nothing is found.

mod clocks;

use std::net::{IpAddr, SocketAddr};

use super::cluster::{MasterLink, MemberFacts};
use super::facts::{
    AgentFacts, ApiserverFacts, Distribution, HostFacts, InterfaceFacts, KubeClient, KubeFacts, RouteFacts,
    SystemdService, UnavailableBackend, UntrustedFile,
};
use super::mesh::{Firewall, MeshFacts, PeerConversation, PeerFacts, ReturnPath};
use super::x509::Certificate;
use super::*;
use crate::cause::{Cause, Fault, Reason};
use crate::problem::{Problem, ProblemCode};

const DAY_MS: u64 = 86_400_000;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A master of kubeadm on a VPN, on which there is nothing to find.
fn host() -> HostFacts {
    let card = |name: &str, speaks_arp, address: &str, prefix| InterfaceFacts {
        name: name.to_owned(),
        speaks_arp,
        addresses: vec![(ip(address), prefix)],
        rp_filter: Some(0),
        arp_ignore: Some(0),
    };
    HostFacts {
        node: "m1".to_owned(),
        here: "m1".to_owned(),
        now: UnixMs(1000 * DAY_MS),
        agent: Some(AgentFacts {
            version: "1.0.0".to_owned(),
            asked_by: Some("1.0.0".to_owned()),
            interface: "wg0".to_owned(),
            descriptors: 1 << 20,
            maxconn: 10_000,
            vips: vec![ip("192.168.0.50")],
            ..AgentFacts::default()
        }),
        is_member: true,
        service: Some(SystemdService {
            unit: Some("/etc/systemd/system/agent.service".to_owned()),
            as_shipped: true,
            drop_ins: Vec::new(),
        }),
        loose: Vec::new(),
        untrusted: Vec::new(),
        unreadable: Vec::new(),
        interfaces: vec![card("wg0", false, "10.0.0.1", 24), card("eth0", true, "192.168.0.2", 24)],
        routes: vec![RouteFacts { name: "m2".to_owned(), to: ip("10.0.0.2"), by: Ok("wg0".to_owned()) }],
        kubernetes: KubeFacts {
            distribution: Some(Distribution::Kubeadm),
            apiserver: Some(ApiserverFacts {
                at: at("10.0.0.1:6443"),
                certificate: Some(Certificate {
                    names: vec!["kubernetes".to_owned()],
                    ips: vec![ip("127.0.0.1"), ip("192.168.0.50")],
                    until: UnixMs(1200 * DAY_MS),
                }),
                readyz: Some(401),
            }),
            credentials: true,
            clients: vec![client("kubelet", "https://127.0.0.1:16443", "127.0.0.1:16443")],
            own_balancer: false,
            api_listeners: vec![at("127.0.0.1:16443")],
            listeners: vec![at("127.0.0.1:16443"), at("127.0.0.1:19345")],
            vips: vec![ip("192.168.0.50")],
            members: vec![("m2".to_owned(), ip("10.0.0.2"))],
        },
    }
}

fn client(who: &'static str, url: &str, to: &str) -> KubeClient {
    KubeClient { path: "/etc/kubernetes/x.conf".to_owned(), who, url: url.to_owned(), at: vec![at(to)] }
}

fn agent(host: &mut HostFacts) -> &mut AgentFacts {
    host.agent.as_mut().unwrap()
}

fn service(host: &mut HostFacts) -> &mut SystemdService {
    host.service.as_mut().unwrap()
}

fn apiserver(host: &mut HostFacts) -> &mut ApiserverFacts {
    host.kubernetes.apiserver.as_mut().unwrap()
}

fn certificate(host: &mut HostFacts) -> &mut Certificate {
    apiserver(host).certificate.as_mut().unwrap()
}

#[test]
fn where_nothing_is_wrong_nothing_is_found() {
    let examined = host::examine(&host());
    assert!(examined.findings.is_empty(), "{:#?}", examined.findings);
    let areas: Vec<&str> = examined.checked.iter().map(|one| one.area.as_str()).collect();
    assert_eq!(
        areas,
        ["agent", "backends", "service", "files", "routes", "virtual IPs", "apiserver", "clients"]
    );

    let examined = mesh::examine(&mesh());
    assert!(examined.findings.is_empty(), "{:#?}", examined.findings);
    let areas: Vec<&str> = examined.checked.iter().map(|one| one.area.as_str()).collect();
    assert_eq!(areas, ["ports", "packets", "clocks"]);
    assert_eq!(examined.worst(), Severity::Ok);
}

/// A fault, the finding that it must make and nothing else, and what must stand in its first words and in
/// its commands.
type Planted<T> = (fn(&mut T), &'static str, Severity, &'static str, &'static str);

const HOST: &[Planted<HostFacts>] = &[
    (|h| h.agent = None, "agent-not-running", Severity::Error, "is not running", "systemctl start agent"),
    (
        |h| (h.agent, h.is_member) = (None, false),
        "agent-not-running",
        Severity::Error,
        "which is not a member",
        "agent join",
    ),
    (
        |h| agent(h).problems = vec![Problem::new(ProblemCode::NoAddress, "wg0 is down").fix("bring it up")],
        "no-address",
        Severity::Error,
        "wg0 is down",
        "bring it up",
    ),
    (
        |h| agent(h).problems = vec![Problem::new(ProblemCode::StateNotSaved, "/var/lib/agent is full")],
        "state-not-saved",
        Severity::Error,
        "is full",
        "agent status",
    ),
    (
        |h| agent(h).asked_by = Some("1.1.0".to_owned()),
        "old-agent-runs",
        Severity::Warning,
        "1.0.0, this command has 1.1.0",
        "agent upgrade",
    ),
    (
        |h| agent(h).closed = vec!["kube-api on 127.0.0.1:16443 (in use)".to_owned()],
        "not-listening",
        Severity::Error,
        "127.0.0.1:16443 (in use)",
        "ss -ltnp",
    ),
    (
        |h| agent(h).unserved = vec![("kube-api".to_owned(), false)],
        "nobody-serves",
        Severity::Error,
        "no node serves kube-api",
        "agent status",
    ),
    (
        |h| agent(h).unserved = vec![("kube-api".to_owned(), true)],
        "nobody-serves",
        Severity::Error,
        "no node is ready to serve kube-api",
        "agent status",
    ),
    (
        |h| {
            let (service, node) = ("kube-api".to_owned(), "m2".to_owned());
            agent(h).away =
                vec![UnavailableBackend { service, node, how: "down, connection refused".to_owned() }];
        },
        "backend-away",
        Severity::Warning,
        "kube-api on m2 gets no connections: down, connection refused",
        "on m2: systemctl status k3s rke2-server kubelet",
    ),
    (
        |h| agent(h).descriptors = 4096,
        "few-descriptors",
        Severity::Warning,
        "limit is 4096",
        "LimitNOFILE=1048576",
    ),
    (|h| service(h).unit = None, "no-unit", Severity::Warning, "no systemd unit", "agent install"),
    (|h| service(h).as_shipped = false, "unit-edited", Severity::Warning, "agent.service", "agent install"),
    (
        |h| service(h).drop_ins = vec!["/etc/x.conf".to_owned()],
        "unit-drop-in",
        Severity::Note,
        "/etc/x.conf",
        "systemctl cat agent",
    ),
    (
        |h| h.loose = vec![("/s/node".to_owned(), 0o644)],
        "loose-mode",
        Severity::Error,
        "644",
        "chmod go= /s/node",
    ),
    (
        |h| h.untrusted = vec![untrusted("/etc/agent/agent.toml", true)],
        "open-config",
        Severity::Error,
        "/etc/agent/agent.toml can be written by others",
        "chmod go-w /etc/agent/agent.toml",
    ),
    (
        |h| h.untrusted = vec![untrusted("/etc/agent/ca.pem", false)],
        "open-file",
        Severity::Warning,
        "/etc/agent/ca.pem can be written by others",
        "chmod go-w /etc/agent/ca.pem",
    ),
    (|h| h.unreadable = vec!["/x".to_owned()], "unreadable", Severity::Note, "/x", "as root"),
    (
        |h| h.routes[0].by = Ok("eth0".to_owned()),
        "route",
        Severity::Warning,
        "to m2 (10.0.0.2) leave through eth0, but the mesh is on wg0",
        "ip route replace 10.0.0.2 dev wg0",
    ),
    (
        |h| h.routes[0].by = Err(Reason::new("unreachable")),
        "route",
        Severity::Warning,
        "no route to m2",
        "ip route get 10.0.0.2",
    ),
    (
        |h| h.interfaces.push(InterfaceFacts { name: "eth1".to_owned(), ..h.interfaces[1].clone() }),
        "arp-flux",
        Severity::Warning,
        "eth0 and eth1",
        "arp_ignore=1",
    ),
    (
        |h| certificate(h).ips = vec![ip("192.168.0.50")],
        "certificate-names",
        Severity::Warning,
        "does not cover 127.0.0.1",
        "kubeadm init phase certs apiserver",
    ),
    (
        |h| (certificate(h).ips, h.kubernetes.distribution) = (Vec::new(), Some(Distribution::K3s)),
        "certificate-names",
        Severity::Warning,
        "127.0.0.1, 192.168.0.50",
        "/etc/rancher/k3s/config.yaml: tls-san: [127.0.0.1, 192.168.0.50]",
    ),
    (
        |h| (certificate(h).ips, h.kubernetes.distribution) = (Vec::new(), Some(Distribution::Rke2)),
        "certificate-names",
        Severity::Warning,
        "127.0.0.1",
        "systemctl restart rke2-server",
    ),
    (
        |h| certificate(h).until = UnixMs(1010 * DAY_MS),
        "certificate-ends",
        Severity::Warning,
        "expires in 10 days",
        "kubeadm certs renew",
    ),
    (
        |h| certificate(h).until = UnixMs(999 * DAY_MS),
        "certificate-ends",
        Severity::Error,
        "has expired",
        "kubeadm certs renew",
    ),
    (
        |h| h.kubernetes.credentials = false,
        "no-credentials",
        Severity::Warning,
        "401, and no credentials",
        "cert-file",
    ),
    (
        |h| (h.kubernetes.own_balancer, h.kubernetes.distribution) = (true, Some(Distribution::K3s)),
        "own-balancer",
        Severity::Warning,
        "its own load balancer",
        "disable-apiserver-lb: true (k3s calls it experimental)",
    ),
    (
        |h| (h.kubernetes.own_balancer, h.kubernetes.distribution) = (true, Some(Distribution::Rke2)),
        "own-balancer",
        Severity::Note,
        "can't be turned off",
        "",
    ),
    (
        |h| h.kubernetes.clients = vec![client("kubelet", "https://m2:6443", "10.0.0.2:6443")],
        "past-the-proxy",
        Severity::Warning,
        "m2 alone",
        "sed -i 's|https://m2:6443|https://127.0.0.1:16443|' /etc/kubernetes/x.conf",
    ),
    (
        |h| h.kubernetes.clients = vec![client("kubelet", "https://m2:6443", "10.0.0.2:6443")],
        "past-the-proxy",
        Severity::Warning,
        "m2 alone",
        "kubectl -n kube-system edit cm kubeadm-config   # controlPlaneEndpoint: 127.0.0.1:16443",
    ),
    (
        |h| h.kubernetes.clients = vec![client("kubelet", "https://m2:6443", "10.0.0.2:6443")],
        "past-the-proxy",
        Severity::Warning,
        "m2 alone",
        "kubectl -n kube-public edit cm cluster-info   # the same server:",
    ),
    (
        |h| h.kubernetes.clients = vec![client("kubectl", "https://10.9.9.9:6443", "10.9.9.9:6443")],
        "past-the-proxy",
        Severity::Note,
        "neither the proxy nor a member",
        "sed -i",
    ),
    (
        |h| {
            h.kubernetes.distribution = Some(Distribution::K3s);
            h.kubernetes.clients = vec![client("k3s agent", "https://10.0.0.2:6443", "10.0.0.2:6443")];
        },
        "past-the-proxy",
        Severity::Warning,
        "m2 alone",
        "server: https://127.0.0.1:16443 and disable-apiserver-lb: true",
    ),
    (
        |h| {
            h.kubernetes.distribution = Some(Distribution::Rke2);
            h.kubernetes.clients = vec![client("RKE2", "https://10.0.0.2:9345", "10.0.0.2:9345")];
        },
        "past-the-proxy",
        Severity::Warning,
        "m2 alone",
        "server: https://127.0.0.1:9345",
    ),
    (
        |h| {
            h.kubernetes.distribution = Some(Distribution::Rke2);
            h.kubernetes.clients = vec![client("RKE2", "https://10.0.0.2:9345", "10.0.0.2:9345")];
        },
        "past-the-proxy",
        Severity::Warning,
        "m2 alone",
        "on a master: agent set service.rke2.port=9345 service.rke2.listen=127.0.0.1:9345 \
         service.rke2.listen-on=workers",
    ),
];

fn untrusted(file: &str, is_config: bool) -> UntrustedFile {
    UntrustedFile {
        what: format!("{file} can be written by others"),
        is_config,
        fix: format!("chmod go-w {file}"),
    }
}

fn lines(finding: &Finding) -> Vec<String> {
    finding.remedy.iter().map(Step::line).collect()
}

fn only(found: &Examination, i: usize, code: &str, severity: Severity, what: &str, fix: &str) {
    let [one] = found.findings.as_slice() else { panic!("{code} ({i}): {:#?}", found.findings) };
    assert_eq!((one.code.as_str(), one.severity), (code, severity), "{i}");
    assert!(one.what.contains(what), "{code} ({i}): {}", one.what);
    let lines = lines(one);
    assert!(lines.join("\n").contains(fix), "{code} ({i}): {lines:#?}");
    assert!(!one.why.is_empty() && found.worst() == severity, "{code} ({i})");
}

#[test]
fn each_fault_of_a_node_is_told_once_with_its_fix() {
    for (i, (plant, code, severity, what, fix)) in HOST.iter().enumerate() {
        let mut host = host();
        plant(&mut host);
        only(&host::examine(&host), i, code, *severity, what, fix);
    }
}

#[test]
fn strict_reverse_paths_are_told_where_a_way_back_differs() {
    let mut host = host();
    host.interfaces[0].rp_filter = Some(1);
    assert!(host::examine(&host).findings.is_empty(), "all ways are the same both ways");
    host.routes[0].by = Ok("eth0".to_owned());
    let found = host::examine(&host);
    let strict = found.findings.iter().find(|one| one.code == "rp-filter").unwrap();
    assert!(lines(strict)[0].contains("net.ipv4.conf.wg0.rp_filter=2"), "{:?}", strict.remedy);
}

#[test]
fn what_is_as_kubeadm_means_it_is_no_finding() {
    let mut host = host();
    host.kubernetes.clients = vec![
        client("controller-manager", "https://10.0.0.1:6443", "10.0.0.1:6443"),
        // Since 1.33 a master's kubelet, too.
        client("kubelet", "https://10.0.0.1:6443", "10.0.0.1:6443"),
        client("kubelet", "https://192.168.0.50:6443", "192.168.0.50:6443"),
    ];
    assert!(host::examine(&host).findings.is_empty());
}

#[test]
fn commands_for_another_node_say_where_they_belong() {
    let mut host = host();
    host.here = "w1".to_owned();
    service(&mut host).unit = None;
    assert_eq!(lines(&host::examine(&host).findings[0]), ["on m1: agent install"]);
}

fn mesh() -> MeshFacts {
    let peer = |name: &str, address: &str| PeerFacts {
        name: name.to_owned(),
        address: Some(at(address)),
        talk: PeerConversation::Whole,
        path_mtu: Some(1420),
        back: Some(ReturnPath { mtu: Some(1420), ahead_ms: 3, slack_ms: 2, ..ReturnPath::default() }),
        ..PeerFacts::default()
    };
    MeshFacts {
        node: "m1".to_owned(),
        address: "10.0.0.1:7646".to_owned(),
        interface: "wg0".to_owned(),
        mtu: Some(1420),
        port: 7646,
        firewall: Firewall::Nftables,
        peers: vec![peer("m2", "10.0.0.2:7646"), peer("w1", "10.0.0.9:7646")],
    }
}

fn back(mesh: &mut MeshFacts) -> &mut ReturnPath {
    mesh.peers[0].back.as_mut().unwrap()
}

const SILENT: Option<Cause> = Some(Cause::TimedOut);

fn away(mesh: &mut MeshFacts, tcp: Option<Cause>, udp: Option<Cause>) {
    let peer = &mut mesh.peers[0];
    (peer.tcp, peer.udp) = (tcp.map(Fault::from), udp.map(Fault::from));
    if tcp.is_some() {
        (peer.talk, peer.back) = (PeerConversation::None, None);
    }
}

const MESH: &[Planted<MeshFacts>] = &[
    (
        |m| m.peers[0] = PeerFacts { name: "m2".to_owned(), ..PeerFacts::default() },
        "address-unknown",
        Severity::Error,
        "address of m2",
        "agent remove m2",
    ),
    (
        |m| away(m, Some(Cause::PortClosed), SILENT),
        "agent-away",
        Severity::Error,
        "m2 (10.0.0.2:7646)",
        "on m2: systemctl start agent",
    ),
    (|m| away(m, SILENT, SILENT), "unreachable", Severity::Error, "m2", "ping -c 3 10.0.0.2"),
    (
        |m| {
            away(m, SILENT, SILENT);
            m.peers[0].cut_off = true;
        },
        "path-cut",
        Severity::Error,
        "m2",
        "ip route get 10.0.0.2",
    ),
    (
        |m| away(m, None, SILENT),
        "udp-blocked",
        Severity::Error,
        "UDP is blocked to or from m2, port 7646",
        "nft insert rule inet filter input iifname wg0 udp dport 7646 accept",
    ),
    (
        |m| (away(m, None, SILENT), m.firewall = Firewall::Ufw).0,
        "udp-blocked",
        Severity::Error,
        "UDP",
        "ufw allow in on wg0 to any port 7646 proto udp",
    ),
    (
        |m| (away(m, SILENT, None), m.firewall = Firewall::Firewalld).0,
        "tcp-blocked",
        Severity::Error,
        "TCP is blocked to m2",
        "firewall-cmd --permanent --add-port=7646/tcp",
    ),
    (
        |m| back(m).tcp = SILENT.map(Fault::from),
        "tcp-blocked-back",
        Severity::Error,
        "m2 cannot connect to this node by TCP, 10.0.0.1:7646",
        "tcp dport 7646",
    ),
    (
        |m| back(m).udp = SILENT.map(Fault::from),
        "udp-blocked-back",
        Severity::Error,
        "m2 gets no answer from this node",
        "udp dport 7646",
    ),
    (
        |m| (m.peers[0].talk, m.peers[0].back) = (PeerConversation::Nothing("closed".to_owned()), None),
        "no-answer",
        Severity::Warning,
        "closed",
        "on m2: journalctl -u agent",
    ),
    (
        |m| m.peers[0].talk = PeerConversation::SmallOnly,
        "mtu-black-hole",
        Severity::Error,
        "full size do not pass to or from m2",
        "ip link set dev wg0 mtu 1280",
    ),
    (
        |m| m.peers[0].path_mtu = Some(1300),
        "mtu-path",
        Severity::Warning,
        "the path to m2 carries packets of 1300 bytes; wg0 is set to 1420",
        "ip link set dev wg0 mtu 1300",
    ),
    (
        |m| back(m).mtu = Some(1280),
        "mtu-differs",
        Severity::Warning,
        "1420 here and of 1280 on m2",
        "ip link set dev wg0 mtu 1280",
    ),
    (
        |m| back(m).ahead_ms = -5_000,
        "clock",
        Severity::Warning,
        "clock of m2 is 5 s behind those of the majority",
        "on m2: timedatectl set-ntp true",
    ),
    (|m| back(m).ahead_ms = 3_600_000, "clock", Severity::Error, "3600 s ahead", "on m2: chronyc makestep"),
];

#[test]
fn each_fault_of_a_way_is_told_once_with_its_fix() {
    for (i, (plant, code, severity, what, fix)) in MESH.iter().enumerate() {
        let mut mesh = mesh();
        plant(&mut mesh);
        only(&mesh::examine(&mesh), i, code, *severity, what, fix);
    }
}

#[test]
fn one_node_that_is_set_otherwise_is_told_once() {
    let mut mesh = mesh();
    mesh.mtu = Some(1280);
    let found = mesh::examine(&mesh);
    only(
        &found,
        0,
        "mtu-differs",
        Severity::Warning,
        "1280 here and of 1420 on m2, w1",
        "on m2, w1: ip link",
    );
}

#[test]
fn who_stopped_on_purpose_is_no_finding() {
    let mut mesh = mesh();
    mesh.peers[0] = PeerFacts { name: "m2".to_owned(), left: true, ..PeerFacts::default() };
    assert!(mesh::examine(&mesh).findings.is_empty());
}

#[test]
fn what_members_do_not_have_in_common_is_told() {
    let member =
        |name: &str, version: &str| MemberFacts { name: name.to_owned(), version: version.to_owned() };
    let pair = |from: &str, to: &str, rtt, loss| MasterLink {
        from: from.to_owned(),
        to: to.to_owned(),
        at: "10.0.0.2".to_owned(),
        rtt_ms: Some(rtt),
        loss_permille: loss,
    };
    let same = [member("m1", "1.0.0"), member("m2", "1.0.0"), member("w1", "")];
    let near = [pair("m1", "m2", 2.0, 0), pair("m2", "m1", 2.1, 50)];
    assert!(cluster::examine("m1", &same, &near).findings.is_empty());
    let versions = |members: &[cluster::MemberFacts]| {
        let checked = cluster::examine("m1", members, &near).checked;
        checked.into_iter().find(|one| one.area == "versions").map(|one| one.text).unwrap_or_default()
    };
    assert_eq!(versions(&same[..2]), "1.0.0 on all members");
    assert_eq!(versions(&same), "1.0.0 on the 2 members whose version is known here");

    let differ = [member("m1", "1.0.0"), member("m2", "0.9.0")];
    let found = cluster::examine("m1", &differ, &near);
    only(&found, 0, "versions-differ", Severity::Note, "0.9.0 on m2; 1.0.0 on m1", "./agent install");

    let far = [pair("m1", "m2", 80.0, 0), pair("m2", "m1", 81.0, 0)];
    let found = cluster::examine("m1", &same, &far);
    only(
        &found,
        1,
        "slow-etcd",
        Severity::Warning,
        "80 ms round trip between the masters m1 and m2",
        "election-timeout",
    );

    let lossy = [pair("m1", "m2", 2.0, 120)];
    only(
        &cluster::examine("m1", &same, &lossy),
        2,
        "loss",
        Severity::Warning,
        "12 %",
        "on m1: mtr -u 10.0.0.2",
    );
}

#[test]
fn a_member_speaks_of_itself_alone_and_commands_nobody_else() {
    let mut finding = Finding {
        code: "x".to_owned(),
        severity: Severity::Note,
        area: "agent".to_owned(),
        node: "m2".to_owned(),
        what: "y".repeat(100_000),
        why: "z".to_owned(),
        remedy: vec![Step::run("agent install").on("m2"), Step::run("rm -r /"), Step::text("go").on("m3")],
    };
    finding.remedy.extend(vec![Step::text("x".repeat(100_000)); 100]);
    assert_eq!(finding.clone().said_by("m3"), None);
    let said = finding.said_by("m2").unwrap();
    assert_eq!(lines(&said)[..3], ["on m2: agent install", "on m2: rm -r /", "on m2: go"]);
    assert!(said.remedy.len() == MOST_STEPS && said.what.len() == MOST_CHARS);
    assert!(lines(&said).iter().all(|line| line.len() < 2 * MOST_CHARS));
}

#[test]
fn steps_are_sent_as_lines_and_typed_where_that_says_more() {
    let steps = vec![
        Step::run("systemctl start agent").remark("as root").on("m2"),
        Step::text("in /etc/x: server: y"),
        Step::run("ls"),
        Step::text("wait").on("every node"),
    ];
    let mut out = Examination::default();
    let words = |remedy| FindingText { what: String::new(), why: "", remedy };
    out.found(Severity::Note, "a", "c", "m1", words(steps));
    out.found(Severity::Note, "a", "c", "m1", words(vec![Step::text("on m2: only words")]));
    let json = serde_json::to_value(&out.findings).unwrap();
    let lines =
        ["on m2: systemctl start agent   # as root", "in /etc/x: server: y", "ls", "on every node: wait"];
    assert_eq!(json[0]["fix"], serde_json::json!(lines));
    let typed = serde_json::json!([
        { "on": "m2", "run": "systemctl start agent", "remark": "as root" },
        { "do": "in /etc/x: server: y" },
        { "run": "ls" },
        { "on": "every node", "do": "wait" },
    ]);
    assert_eq!(json[0]["remedy"], typed);
    assert!(json[1].get("remedy").is_none(), "lines say it all");
    assert_eq!(serde_json::from_value::<Vec<Finding>>(json.clone()).unwrap(), out.findings);
    // What a later version does otherwise is words here.
    let mut later = json;
    later[0]["remedy"][2] = serde_json::json!({ "call": "the vendor" });
    later[0]["fix"][2] = "call the vendor".into();
    let read: Vec<Finding> = serde_json::from_value(later).unwrap();
    assert_eq!(read[0].remedy[2], Step::text("call the vendor"));
}
