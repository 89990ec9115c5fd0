//! What `agent kubernetes` prints: objects for `kubectl apply`, and what a person has to know and do as comments.

use std::fmt::Write;
use std::net::SocketAddr;

use super::objects::Target;

/// One object as YAML with a line for each of its parts.
fn endpoints_yaml(places: &[SocketAddr]) -> String {
    let port = places.first().map_or(0, SocketAddr::port);
    let family = if places.iter().all(SocketAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let mut text = "apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: kubernetes\n  namespace: default\n  \
                    labels:\n    endpointslice.kubernetes.io/skip-mirror: \"true\"\nsubsets:\n- addresses:\n"
        .to_owned();
    for place in places {
        let _ = writeln!(text, "  - ip: \"{}\"", place.ip());
    }
    let _ = write!(
        text,
        "  ports:\n  - name: https\n    port: {port}\n    protocol: TCP\n---\napiVersion: \
         discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: kubernetes\n  namespace: default\n  \
         labels:\n    kubernetes.io/service-name: kubernetes\n    endpointslice.kubernetes.io/skip-mirror: \
         \"true\"\naddressType: {family}\nendpoints:\n"
    );
    for place in places {
        let _ = writeln!(text, "- addresses: [\"{}\"]\n  conditions:\n    ready: true", place.ip());
    }
    let _ = writeln!(text, "ports:\n- name: https\n  port: {port}\n  protocol: TCP");
    text
}

/// Objects that lead every pod to the node-local address, with the way there and back.
pub fn endpoints_manifest(Target(at): Target) -> String {
    let (ip, port) = (at.ip(), at.port());
    let mut text = format!(
        "\
# Leads every pod that asks for the API to the agent of its own node:
#   {at}
# For kubeadm; not for k3s and RKE2, whose agents read the masters here.
#
# In this order:
# 1. On each master, one after the other, add to the command in
#    /etc/kubernetes/manifests/kube-apiserver.yaml
#      - --endpoint-reconciler-type=none
#    and wait until \"agent status\" has it ready again. Add it to
#    apiServer.extraArgs of ConfigMap kube-system/kubeadm-config as well, or
#    the next \"kubeadm upgrade\" drops it. One master without it overwrites
#    these objects with its own address and port {port}, where nothing listens,
#    and every pod loses the API.
# 2. Let network policies allow egress to TCP port {port} of
#    {ip}.
# 3. Then, at once:
#      agent kubernetes endpoints | kubectl apply --server-side \\
#        --force-conflicts -f -
# 4. agent set node-local.endpoints=watch
#    Masters then tell within seconds when something else stands here; with
#    restore they put it right, if they may: agent kubernetes rbac
#
# Before a new node runs pods, its agent must be a member. A node whose agent
# is away refuses its pods the API until the agent is back.
#
# Back, in this order:
# 1. agent set node-local.endpoints=off
# 2. agent kubernetes endpoints --masters | kubectl apply --server-side \\
#      --force-conflicts -f -
# 3. Remove the flag from each master and from kubeadm-config.
# 4. agent unset node-local
#
# What changes for others:
# - Prometheus' job for apiservers, which takes its targets from here, sees one
#   target: let it find them by the static pods (component=kube-apiserver).
# - Cilium must take the address for the host's own (cilium#17475,
#   cilium#18644).
# - Tried: DNAT rules in the form of kube-proxy's nftables mode, written by
#   hand. Not tried: kube-proxy itself in its modes iptables, ipvs and
#   nftables; Cilium, also in place of kube-proxy; Calico, also with eBPF;
#   flannel; Antrea; kube-router.
"
    );
    text.push_str(&endpoints_yaml(&[at]));
    text
}

/// Objects that lead pods to the masters' own addresses again: the first step back.
pub fn masters_manifest(places: &[SocketAddr]) -> String {
    format!(
        "\
# Leads pods to the masters themselves again. Apply it while all of them still
# have --endpoint-reconciler-type=none; then remove the flag, one by one.
#   agent kubernetes endpoints --masters | kubectl apply --server-side \\
#     --force-conflicts -f -
{}",
        endpoints_yaml(places)
    )
}

/// What a master's agent needs to see and restore the endpoints, for a user of its own.
pub fn rbac_manifest(user: &str) -> String {
    format!(
        "\
# For a user of its own, whose client certificate (CN={user}) masters' agents
# show: cert-file and key-file of the check of kube-api in agent.toml. On
# kubeadm's masters the certificate that the agent finds may do all of this.
#
# node-local.endpoints=watch needs get and list, restore patch and create too;
# create can't be bound to a name, and is used if an object was deleted.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: agent-endpoints
  namespace: default
rules:
- apiGroups: [\"\"]
  resources: [endpoints]
  resourceNames: [kubernetes]
  verbs: [get, patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  resourceNames: [kubernetes]
  verbs: [patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, create]
- apiGroups: [\"\"]
  resources: [endpoints]
  verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: agent-endpoints
  namespace: default
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: agent-endpoints
subjects:
- apiGroup: rbac.authorization.k8s.io
  kind: User
  name: {user}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_fits_80_columns_and_names_what_it_is_about() {
        let at: SocketAddr = "10.91.91.50:16443".parse().unwrap();
        let v6: SocketAddr = "[fd91:1234:5678:9abc:def0:1234:5678:50]:16443".parse().unwrap();
        for text in [
            endpoints_manifest(Target(at)),
            endpoints_manifest(Target(v6)),
            masters_manifest(&[at, at]),
            rbac_manifest("agent"),
        ] {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
        let text = endpoints_manifest(Target(at));
        for words in [
            "endpointslice.kubernetes.io/skip-mirror: \"true\"",
            "kubernetes.io/service-name: kubernetes",
            "--endpoint-reconciler-type=none",
            "addressType: IPv4",
            "port: 16443",
        ] {
            assert!(text.contains(words), "{words}");
        }
        assert!(endpoints_manifest(Target(v6)).contains("addressType: IPv6"));
    }
}
