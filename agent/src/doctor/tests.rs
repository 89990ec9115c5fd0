//! Files as the distributions write them, below a temporary directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proto::doctor::facts::Distribution;
use proto::doctor::mesh::Firewall;

use super::{HostFiles, HostPaths, sysctl};

const UNIT: &str = "[Unit]\nDescription=x\n";

fn read(files: &[(&str, &str)]) -> (tempfile::TempDir, HostFiles) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let places = places(dir.path());
    let files = places.read();
    (dir, files)
}

fn places(root: &Path) -> HostPaths {
    let (state_dir, socket) = (root.join("var/lib/agent"), root.join("run/agent/agent.sock"));
    HostPaths { root: root.to_owned(), state_dir, socket, unit: UNIT, believed: vec![root.join("ca.pem")] }
}

/// Which server each client is configured with, and whether there is a balancer in between.
fn clients(files: &[(&str, &str)]) -> (Option<Distribution>, Vec<(&'static str, String)>, bool) {
    let (_dir, files) = read(files);
    let all = files.clients.into_iter().map(|client| (client.who, client.url)).collect();
    (files.distribution, all, files.own_balancer)
}

#[test]
fn without_files_nothing_is_reported() {
    let (_dir, files) = read(&[]);
    assert!(files.service.is_none() && files.distribution.is_none() && files.clients.is_empty());
    assert!(files.loose.is_empty() && files.unreadable.is_empty() && !files.is_member);
}

#[test]
fn the_unit_is_compared_and_its_drop_ins_are_listed() {
    let unit = "etc/systemd/system/agent.service";
    let booted = ("run/systemd/system/x", "");
    let (_dir, files) = read(&[
        booted,
        (unit, UNIT),
        ("etc/systemd/system/agent.service.d/10-install.conf", ""),
        ("etc/systemd/system/agent.service.d/override.conf", ""),
        ("etc/systemd/system/agent.service.d/notes.txt", ""),
    ]);
    let service = files.service.unwrap();
    assert!(service.as_shipped && service.unit.unwrap().ends_with(unit));
    assert_eq!(service.drop_ins.len(), 1, "{:?}", service.drop_ins);
    assert!(service.drop_ins[0].ends_with("override.conf"));

    let packaged = UNIT.replace("/usr/local/bin/agent", "/usr/bin/agent");
    let (_dir, files) = read(&[booted, ("lib/systemd/system/agent.service", &packaged)]);
    assert!(files.service.unwrap().as_shipped, "a package's unit");

    let (_dir, files) = read(&[booted, (unit, "[Unit]\nDescription=edited\n")]);
    assert!(!files.service.unwrap().as_shipped);
    let (_dir, files) = read(&[booted]);
    assert!(files.service.unwrap().unit.is_none());
}

#[test]
fn files_that_others_may_read_are_reported() {
    let (dir, _) =
        read(&[("var/lib/agent/identity", ""), ("var/lib/agent/node", ""), ("run/agent/agent.sock", "")]);
    let set = |path: &str, mode| {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("var/lib/agent/identity", 0o600);
    set("var/lib/agent/node", 0o640);
    set("run/agent/agent.sock", 0o660);
    let files = places(dir.path()).read();
    let [(path, 0o640)] = files.loose.as_slice() else { panic!("{:?}", files.loose) };
    assert!(path.ends_with("var/lib/agent/node") && files.is_member);
    set("var/lib/agent/node", 0o600);
    set("var/lib/agent", 0o777);
    set("run/agent/agent.sock", 0o666);
    assert_eq!(places(dir.path()).read().loose.len(), 2);
}

#[test]
fn a_configuration_or_a_trusted_file_that_others_may_write_is_reported() {
    let (dir, _) = read(&[("etc/agent/agent.toml", ""), ("ca.pem", "")]);
    for (file, is_config) in [("etc/agent/agent.toml", true), ("ca.pem", false)] {
        let path = dir.path().join(file);
        for (mode, open) in [(0o644, false), (0o640, false), (0o646, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let found = places(dir.path()).read().untrusted;
            assert_eq!(
                found.iter().map(|one| one.is_config).collect::<Vec<_>>(),
                vec![is_config; open.into()]
            );
            assert!(found.iter().all(|one| one.fix == format!("chmod go-w {}", path.display())), "{found:?}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
}

#[test]
fn the_server_of_each_kubeadm_component_is_read() {
    let config = "clusters:\n- cluster:\n    server: https://10.0.0.2:6443\n  name: kubernetes\n";
    let quoted = "- cluster: {}\n  server: \"https://m2:6443\" # old\n";
    let found = clients(&[("etc/kubernetes/kubelet.conf", config), ("etc/kubernetes/admin.conf", quoted)]);
    let all =
        vec![("kubelet", "https://10.0.0.2:6443".to_owned()), ("kubectl", "https://m2:6443".to_owned())];
    assert_eq!(found, (Some(Distribution::Kubeadm), all, false));
}

#[test]
fn the_server_of_a_k3s_agent_is_read_from_file_variable_or_command_line() {
    let config = "etc/rancher/k3s/config.yaml";
    let one = |url: &str| vec![("k3s agent", url.to_owned())];
    let k3s = Some(Distribution::K3s);
    assert_eq!(clients(&[(config, "server: https://a:1\ntoken: x\n")]), (k3s, one("https://a:1"), true));
    let without = "server: 'https://a:1'\ndisable-apiserver-lb: true\n";
    assert_eq!(clients(&[(config, without)]), (k3s, one("https://a:1"), false));
    let state = ("var/lib/rancher/k3s/agent/x", "");
    let env = ("etc/systemd/system/k3s-agent.service.env", "K3S_TOKEN='x'\nK3S_URL='https://b:2'\n");
    assert_eq!(clients(&[state, env]), (k3s, one("https://b:2"), true));
    let unit = "ExecStart=/usr/local/bin/k3s \\\n    agent \\\n\t'--server' \\\n\t'https://c:3' \\\n\t'--disable-apiserver-lb'\n";
    let unit = ("etc/systemd/system/k3s-agent.service", unit);
    assert_eq!(clients(&[state, env, unit]), (k3s, one("https://c:3"), false));
    // On a server the kubelet uses the local apiserver.
    assert_eq!(clients(&[(config, without), ("var/lib/rancher/k3s/server/x", "")]), (k3s, vec![], false));
}

#[test]
fn the_server_of_an_rke2_agent_is_read_from_its_file() {
    let found = clients(&[("etc/rancher/rke2/config.yaml", "server: https://10.0.0.2:9345\n")]);
    assert_eq!(found, (Some(Distribution::Rke2), vec![("RKE2", "https://10.0.0.2:9345".to_owned())], true));
}

#[test]
fn the_firewall_is_detected_by_its_files() {
    let of = |file| {
        let (dir, _) = read(&[file]);
        places(dir.path()).firewall()
    };
    assert_eq!(of(("etc/ufw/ufw.conf", "ENABLED=yes\n")), Firewall::Ufw);
    assert_eq!(of(("etc/ufw/ufw.conf", "ENABLED=no\n")), Firewall::Nftables);
    assert_eq!(of(("run/firewalld/x", "")), Firewall::Firewalld);
}

#[test]
fn the_higher_value_of_a_sysctl_counts() {
    let (dir, _) = read(&[
        ("proc/sys/net/ipv4/conf/all/rp_filter", "0\n"),
        ("proc/sys/net/ipv4/conf/wg0/rp_filter", "1\n"),
    ]);
    assert_eq!(sysctl(dir.path(), "wg0", "rp_filter"), Some(1));
    assert_eq!(sysctl(dir.path(), "eth0", "rp_filter"), None);
}
