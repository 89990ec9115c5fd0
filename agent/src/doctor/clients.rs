//! Which Kubernetes distribution runs here, and which apiserver its components are configured with.

use std::path::Path;

use proto::doctor::facts::{Distribution, KubeClient};

use super::{HostFiles, names, text};

/// What kubeadm writes, and which component reads it.
const KUBEADM: [(&str, &str); 4] = [
    ("etc/kubernetes/kubelet.conf", "kubelet"),
    ("etc/kubernetes/admin.conf", "kubectl"),
    ("etc/kubernetes/controller-manager.conf", "controller-manager"),
    ("etc/kubernetes/scheduler.conf", "scheduler"),
];

/// k3s or RKE2, as far as they differ.
struct RancherLayout {
    distribution: Distribution,
    who: &'static str,
    state: &'static str,
    config: &'static str,
    unit: &'static str,
    env: &'static str,
    variable: &'static str,
}

const RANCHERS: [RancherLayout; 2] = [
    RancherLayout {
        distribution: Distribution::K3s,
        who: "k3s agent",
        state: "var/lib/rancher/k3s",
        config: "etc/rancher/k3s/config.yaml",
        unit: "etc/systemd/system/k3s-agent.service",
        env: "etc/systemd/system/k3s-agent.service.env",
        variable: "K3S_URL",
    },
    RancherLayout {
        distribution: Distribution::Rke2,
        who: "RKE2",
        state: "var/lib/rancher/rke2",
        config: "etc/rancher/rke2/config.yaml",
        unit: "usr/local/lib/systemd/system/rke2-agent.service",
        env: "usr/local/lib/systemd/system/rke2-agent.env",
        variable: "RKE2_URL",
    },
];

/// Reads all of it.
pub(super) fn read(root: &Path, files: &mut HostFiles) {
    for rancher in &RANCHERS {
        let (state, config) = (root.join(rancher.state), root.join(rancher.config));
        if !state.is_dir() && !config.exists() {
            continue;
        }
        files.distribution = Some(rancher.distribution);
        // A server's kubelet uses the local apiserver; its own `server:` is for joining etcd.
        if !state.join("server").is_dir() {
            agent(root, rancher, files);
        }
        return;
    }
    for (path, who) in KUBEADM {
        let path = root.join(path);
        let Some(found) = open(&path, files) else { continue };
        files.distribution = Some(Distribution::Kubeadm);
        if let Some(url) = yaml(&found, "server") {
            files.clients.push(client(&path, who, url));
        }
    }
    if root.join("etc/kubernetes/manifests").is_dir() {
        files.distribution = Some(Distribution::Kubeadm);
    }
}

/// The agent of k3s or RKE2: its file, its drop-in files, its variables, its command line; the later override
/// the earlier.
fn agent(root: &Path, rancher: &RancherLayout, files: &mut HostFiles) {
    let config = root.join(rancher.config);
    let (mut server, mut balancer) = (None, true);
    let beside = names(&config.with_extension("yaml.d"));
    for path in std::iter::once(config.clone()).chain(beside) {
        let Some(found) = open(&path, files) else { continue };
        if let Some(url) = yaml(&found, "server") {
            server = Some(client(&path, rancher.who, url));
        }
        balancer &= yaml(&found, "disable-apiserver-lb").is_none_or(|value| value != "true");
    }
    let path = root.join(rancher.env);
    let assigned = open(&path, files).unwrap_or_default();
    let url = assigned.lines().find_map(|line| line.trim().strip_prefix(rancher.variable)?.strip_prefix('='));
    if let Some(url) = url.filter(|_| server.is_none()) {
        server = Some(client(&path, rancher.who, bare(url).to_owned()));
    }
    let path = root.join(rancher.unit);
    let line = open(&path, files).unwrap_or_default();
    let mut words =
        line.split(|c: char| c.is_whitespace() || "'\"\\".contains(c)).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let url = match word {
            "--server" | "-s" => words.next(),
            _ => word.strip_prefix("--server="),
        };
        if let Some(url) = url {
            server = Some(client(&path, rancher.who, url.to_owned()));
        }
        balancer &= !word.starts_with("--disable-apiserver-lb") || word.ends_with("=false");
    }
    files.own_balancer = balancer && server.is_some();
    files.clients.extend(server);
}

fn client(path: &Path, who: &'static str, url: String) -> KubeClient {
    KubeClient { path: path.display().to_string(), who, url, at: Vec::new() }
}

/// A file's text. One that this user may not read is recorded.
fn open(path: &Path, files: &mut HostFiles) -> Option<String> {
    text(path).unwrap_or_else(|_| {
        files.unreadable.push(path.display().to_string());
        None
    })
}

/// The first plain value of a key, as Kubernetes' files are written: at any depth, with or without quotes.
fn yaml(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value =
            line.trim_start().trim_start_matches("- ").strip_prefix(key)?.trim_start().strip_prefix(':')?;
        let value = value.split(" #").next().unwrap_or_default();
        Some(bare(value).to_owned()).filter(|value| !value.is_empty())
    })
}

fn bare(value: &str) -> &str {
    value.trim().trim_matches(['"', '\''])
}
