//! What Kubernetes needs for its clients to go through the proxy: a certificate that is for the proxy's
//! addresses, credentials for the check, and kubeconfigs that point to it.

use std::net::{IpAddr, SocketAddr};

use super::facts::{ApiserverFacts, Distribution, HostFacts, KubeClient};
use super::{Examination, FindingText, Severity, Step};

/// Days before its end at which a certificate is told of. k3s and RKE2 renew at a restart within 90 days;
/// kubeadm with an upgrade, so a forgotten one shows early enough.
const RENEW_DAYS: u64 = 30;

const DAY_MS: u64 = 86_400_000;

/// Where a client ends up.
enum ClientPath<'a> {
    Proxy,
    OwnBalancer,
    OwnApiserver,
    Member(&'a str),
    Elsewhere,
}

/// Judges what there is of Kubernetes on a node.
pub fn examine(host: &HostFacts, out: &mut Examination) {
    let kubernetes = &host.kubernetes;
    if let Some(apiserver) = &kubernetes.apiserver {
        certificate(host, apiserver, out);
        readyz(host, apiserver, out);
        out.checked("apiserver", format!("{}, {}", apiserver.at, about(host, apiserver)));
    }
    if kubernetes.own_balancer {
        own_balancer(host, out);
    }
    for client in &kubernetes.clients {
        bypass(host, client, out);
    }
    if !kubernetes.clients.is_empty() {
        let count = kubernetes.clients.len();
        let (file, point) = if count == 1 { ("file", "points") } else { ("files", "point") };
        out.checked("clients", format!("{count} {file} of Kubernetes {point} to the proxy or to this node"));
    }
}

fn about(host: &HostFacts, apiserver: &ApiserverFacts) -> String {
    let days = apiserver.certificate.as_ref().map(|one| one.until.0.saturating_sub(host.now.0) / DAY_MS);
    let days =
        days.map_or_else(String::new, |days| format!("certificate covers the proxy, {days} days left; "));
    let shown = match host.kubernetes.credentials {
        true => "checked with credentials",
        false => "checked without credentials",
    };
    format!("{days}{shown}")
}

/// The names that clients of the proxy dial must stand in the certificate.
fn certificate(host: &HostFacts, apiserver: &ApiserverFacts, out: &mut Examination) {
    let Some(certificate) = &apiserver.certificate else { return };
    let kubernetes = &host.kubernetes;
    let dialled = kubernetes.api_listeners.iter().map(SocketAddr::ip).chain(kubernetes.vips.iter().copied());
    let mut missing: Vec<IpAddr> =
        dialled.filter(|ip| !ip.is_unspecified() && !certificate.ips.contains(ip)).collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().map(IpAddr::to_string).collect();
        let list = list.join(", ");
        let what = format!("the apiserver's certificate does not cover {list}");
        let why = "clients of the proxy or the virtual IP connect to that address and reject a \
                   certificate without it";
        let words = FindingText { what, why, remedy: add_names(host, &list) };
        out.found(Severity::Warning, "apiserver", "certificate-names", &host.node, words);
    }
    let left = certificate.until.0.saturating_sub(host.now.0) / DAY_MS;
    if left < RENEW_DAYS {
        let (severity, what) = match certificate.until <= host.now {
            true => (Severity::Error, "the apiserver's certificate has expired".to_owned()),
            false => (Severity::Warning, format!("the apiserver's certificate expires in {left} days")),
        };
        let why = "all clients and this node's own check fail after that";
        let remedy = renew(host);
        out.found(severity, "apiserver", "certificate-ends", &host.node, FindingText { what, why, remedy });
    }
}

fn steps<const N: usize>(host: &HostFacts, steps: [Step; N]) -> Vec<Step> {
    steps.into_iter().map(|step| step.at(&host.node, &host.here)).collect()
}

fn add_names(host: &HostFacts, list: &str) -> Vec<Step> {
    match host.kubernetes.distribution {
        Some(Distribution::K3s) => steps(
            host,
            [
                Step::text(format!("add to /etc/rancher/k3s/config.yaml: tls-san: [{list}]")),
                Step::run("systemctl restart k3s"),
            ],
        ),
        Some(Distribution::Rke2) => steps(
            host,
            [
                Step::text(format!("add to /etc/rancher/rke2/config.yaml: tls-san: [{list}]")),
                Step::run("systemctl restart rke2-server"),
            ],
        ),
        Some(Distribution::Kubeadm) | None => steps(
            host,
            [
                Step::run(
                    "kubectl -n kube-system get cm kubeadm-config -o jsonpath='{.data.ClusterConfiguration}' > \
                     kubeadm.yaml",
                ),
                Step::text(format!("add to kubeadm.yaml under apiServer: certSANs: [{list}]")),
                Step::run("mv /etc/kubernetes/pki/apiserver.crt /etc/kubernetes/pki/apiserver.key /root/"),
                Step::run("kubeadm init phase certs apiserver --config kubeadm.yaml"),
                Step::run("kubeadm init phase upload-config kubeadm --config kubeadm.yaml"),
                stop_apiserver(),
            ],
        ),
    }
}

fn stop_apiserver() -> Step {
    Step::run("crictl stop $(crictl ps -q --name kube-apiserver)").remark("the kubelet starts it again")
}

fn renew(host: &HostFacts) -> Vec<Step> {
    match host.kubernetes.distribution {
        Some(Distribution::K3s) => steps(host, [Step::run("systemctl restart k3s")]),
        Some(Distribution::Rke2) => steps(host, [Step::run("systemctl restart rke2-server")]),
        Some(Distribution::Kubeadm) | None => {
            steps(host, [Step::run("kubeadm certs renew all"), stop_apiserver()])
        }
    }
}

fn readyz(host: &HostFacts, apiserver: &ApiserverFacts, out: &mut Examination) {
    let (Some(code @ (401 | 403)), false) = (apiserver.readyz, host.kubernetes.credentials) else { return };
    let what = format!("the apiserver answers /readyz with {code}, and no credentials were found");
    let why = "the check cannot tell ready from alive, so this master ranks below ready ones";
    let remedy = steps(
        host,
        [
            Step::text(
                "in /etc/agent/agent.toml, under [service.check]: cert-file, key-file and ca-file of any client \
                 certificate of this cluster",
            ),
            Step::run("systemctl reload agent"),
        ],
    );
    out.found(
        Severity::Warning,
        "apiserver",
        "no-credentials",
        &host.node,
        FindingText { what, why, remedy },
    );
}

fn own_balancer(host: &HostFacts, out: &mut Examination) {
    let (name, severity, remedy) = match host.kubernetes.distribution {
        Some(Distribution::Rke2) => {
            let what =
                "the kubelet goes through RKE2's own load balancer, which can't be turned off".to_owned();
            let why =
                "it finds the masters itself; after the death of one, its connections hang until it notices";
            let text = FindingText { what, why, remedy: Vec::new() };
            return out.found(Severity::Note, "clients", "own-balancer", &host.node, text);
        }
        _ => {
            let add =
                "add to /etc/rancher/k3s/config.yaml: disable-apiserver-lb: true (k3s calls it experimental)";
            let write = Step::text(add);
            ("k3s", Severity::Warning, steps(host, [write, Step::run("systemctl restart k3s-agent")]))
        }
    };
    let what = format!("{name}'s agent has its own load balancer between the kubelet and the proxy");
    let why = "it discovers the masters itself and then bypasses the proxy: one server at a time, and \
               connections to a dead one hang";
    out.found(severity, "clients", "own-balancer", &host.node, FindingText { what, why, remedy });
}

fn way<'a>(host: &'a HostFacts, client: &KubeClient) -> ClientPath<'a> {
    let kubernetes = &host.kubernetes;
    let own = |ip: IpAddr| {
        ip.is_loopback() || host.interfaces.iter().any(|one| one.addresses.iter().any(|(own, _)| *own == ip))
    };
    let listens = |at: &SocketAddr| {
        kubernetes.listeners.iter().any(|listener| {
            listener.port() == at.port()
                && (listener.ip() == at.ip() || (listener.ip().is_unspecified() && own(at.ip())))
        })
    };
    if client.at.iter().any(|at| listens(at) || kubernetes.vips.contains(&at.ip())) {
        return ClientPath::Proxy;
    }
    // Of a name with several addresses the first that says something decides.
    for at in &client.at {
        if at.ip().is_loopback() && kubernetes.distribution != Some(Distribution::Kubeadm) {
            return ClientPath::OwnBalancer;
        }
        if own(at.ip()) {
            return ClientPath::OwnApiserver;
        }
        if let Some((name, _)) = kubernetes.members.iter().find(|(_, ip)| *ip == at.ip()) {
            return ClientPath::Member(name);
        }
    }
    ClientPath::Elsewhere
}

fn bypass(host: &HostFacts, client: &KubeClient, out: &mut Examination) {
    let KubeClient { path, who, url, .. } = client;
    let (severity, end, why) = match way(host, client) {
        // Its own balancer is told of once, not for each file.
        ClientPath::Proxy | ClientPath::OwnBalancer => return,
        // kubeadm means these to use the apiserver beside them: a leader elsewhere takes over, and since 1.33 a
        // master's kubelet may not be newer than the apiserver that it talks to (kubeadm's
        // ControlPlaneKubeletLocalMode, k8s#125780). `kubeadm upgrade` would put it back.
        ClientPath::OwnApiserver => return,
        ClientPath::Member(name) => (
            if *who == "kubectl" { Severity::Note } else { Severity::Warning },
            format!("{name} alone"),
            "it bypasses the proxy: if that master is down, so is this client",
        ),
        ClientPath::Elsewhere => (
            Severity::Note,
            "neither the proxy nor a member".to_owned(),
            "perhaps a load balancer that the proxy should replace",
        ),
    };
    let remedy = point_to_proxy(host, client);
    let what = format!("{who} connects to {url}, which is {end} ({path})");
    out.found(severity, "clients", "past-the-proxy", &host.node, FindingText { what, why, remedy });
}

/// How a client is made to come through the proxy.
fn point_to_proxy(host: &HostFacts, client: &KubeClient) -> Vec<Step> {
    let KubeClient { path, who, url, .. } = client;
    let listener = host.kubernetes.api_listeners.iter().find(|one| !one.ip().is_unspecified());
    let to = listener.map_or_else(|| "https://127.0.0.1:16443".to_owned(), |one| format!("https://{one}"));
    match *who {
        "k3s agent" => steps(
            host,
            [
                Step::text(format!("in {path}: server: {to} and disable-apiserver-lb: true")),
                Step::run("systemctl restart k3s-agent"),
            ],
        ),
        "RKE2" => {
            // The port of the URL is put on every master's address that is learnt (rke2#7736): it has to be 9345.
            let serve = Step::run(
                "agent set service.rke2.port=9345 service.rke2.listen=127.0.0.1:9345 service.rke2.listen-on=workers \
                 service.rke2.check=tcp",
            );
            let point = [
                Step::text(format!("in {path}: server: https://127.0.0.1:9345")),
                Step::run("systemctl restart rke2-agent"),
            ];
            std::iter::once(serve.on("a master")).chain(steps(host, point)).collect()
        }
        who => {
            let edit = Step::run(format!("sed -i 's|{url}|{to}|' {path}"));
            match who == "kubelet" {
                false => steps(host, [edit]),
                true => steps(
                    host,
                    [
                        edit,
                        Step::run("systemctl restart kubelet"),
                        Step::run("kubectl -n kube-system edit cm kubeadm-config")
                            .remark(format!("controlPlaneEndpoint: {}", to.trim_start_matches("https://"))),
                        Step::run("kubectl -n kube-public edit cm cluster-info").remark("the same server:"),
                        Step::run("kubectl -n kube-system edit cm kube-proxy").remark("the same server:"),
                        Step::run("kubectl -n kube-system rollout restart ds kube-proxy"),
                    ],
                ),
            }
        }
    }
}
