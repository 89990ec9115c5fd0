//! `agent doctor` names what was broken, and how to fix it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tests::lab::{Lab, Master, Node};
use tests::mesh::{Agent, GOSSIP, SOON, form, with_agents};
use tests::wait::eventually;

/// The promised shape of `--json`; a definition of its own, since scripts have theirs too.
#[derive(Debug, Deserialize)]
struct Report {
    schema: u32,
    node: String,
    worst: String,
    checked: Vec<Checked>,
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Checked {
    area: String,
}

#[derive(Debug, Deserialize)]
struct Finding {
    code: String,
    severity: String,
    node: String,
    what: String,
    why: String,
    fix: Vec<String>,
}

impl Report {
    /// The finding of this name on this node.
    fn finding(&self, code: &str, node: &str) -> Result<&Finding> {
        let found = self.findings.iter().find(|one| one.code == code && one.node == node);
        let found = found.with_context(|| format!("no {code} of {node} in {:#?}", self.findings))?;
        ensure!(!found.why.is_empty() && !found.what.is_empty(), "{found:?}");
        Ok(found)
    }
}

/// doctor's report in JSON.
fn report(agent: &Agent<'_>, nodes: &[&str]) -> Result<Report> {
    let ran = agent.cli(&[&["doctor", "--json"], nodes].concat())?;
    let report: Report = serde_json::from_str(&ran.out).with_context(|| ran.to_string())?;
    let code = match report.worst.as_str() {
        "ok" | "note" => 0,
        "warning" => 10,
        "error" => 11,
        other => anyhow::bail!("worst is {other}"),
    };
    ensure!(ran.code == Some(code) && report.schema == 1, "{ran}");
    Ok(report)
}

/// The screen, which fits, and doctor's exit code.
fn screen(agent: &Agent<'_>, nodes: &[&str], code: i32) -> Result<String> {
    let ran = agent.cli(&[&["doctor"], nodes].concat())?;
    ensure!(ran.code == Some(code), "expected {code}: {ran}");
    let wide = ran.out.lines().find(|line| line.chars().count() > 80);
    ensure!(wide.is_none(), "wider than 80 columns: {wide:?}");
    if std::env::var_os("SHOW_SCREENS").is_some() {
        println!("--- {}", ran.out);
    }
    Ok(ran.out)
}

/// Waits until doctor finds this, with the fix.
fn finds(agent: &Agent<'_>, (code, node): (&str, &str), severity: &str, what: &str, fix: &str) -> Result<()> {
    eventually(&format!("{code} of {node} is found"), SOON, || {
        let report = report(agent, &[])?;
        let found = report.finding(code, node)?;
        ensure!(found.severity == severity, "{found:?}");
        ensure!(found.what.contains(what) && found.fix.join("\n").contains(fix), "{found:#?}");
        Ok(())
    })?;
    Ok(())
}

/// Waits until there is nothing to fix.
fn well(agent: &Agent<'_>) -> Result<()> {
    eventually("nothing has to be fixed", GOSSIP, || {
        let report = report(agent, &[])?;
        // Loss during the fault still counts a minute later.
        ensure!(report.findings.iter().all(|one| one.code == "loss"), "{:#?}", report.findings);
        Ok(())
    })?;
    Ok(())
}

fn sh(node: &Node, script: &str) -> Result<()> {
    node.exec(&["sh", "-ec", script])?.ok()?;
    Ok(())
}

/// Gives a node its own `/etc`, a copy, so that planted files are not shared.
fn own_etc(node: &Node) -> Result<()> {
    let copy = node.dir().join("etc");
    sh(node, &format!("cp -a /etc {0} && mount --bind {0} /etc", copy.display()))
}

fn plant(node: &Node, path: &str, text: &str) -> Result<()> {
    let file = node.dir().join("planted");
    std::fs::write(&file, text)?;
    sh(node, &format!("mkdir -p {} && cp {} {path}", parent(path), file.display()))
}

fn parent(path: &str) -> String {
    Path::new(path).parent().unwrap_or(Path::new("/")).display().to_string()
}

/// Masters on the first nodes, and agents on all; no more connections than this machine's limit of open
/// files.
fn serve(lab: &Lab, agents: &mut [Agent<'_>], masters: usize) -> Result<Vec<Master>> {
    let config = lab.dir().join("agent.toml");
    std::fs::write(&config, "[[service]]\nname = \"kube-api\"\nmaxconn = 500\n")?;
    for agent in agents.iter_mut() {
        agent.options = vec!["--config".to_owned(), config.display().to_string()];
    }
    let running = (0..masters).map(|i| lab.nginx_master_for_the_proxy(i)).collect::<Result<_>>()?;
    form(agents)?;
    for agent in agents.iter() {
        for i in 0..masters {
            agent.wait_for_backend(lab.node(i).name.as_str(), &["ready"], GOSSIP)?;
        }
    }
    Ok(running)
}

#[test]
fn network_faults_are_named() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let _masters = serve(lab, agents, 2)?;
        let [first, second, _] = agents else { anyhow::bail!("three agents") };
        let (here, there) = (first.node(), second.node());

        well(first)?;
        let text = screen(first, &[], 0)?;
        ensure!(text.ends_with("\nnothing to fix\n"), "{text}");
        let healthy = report(first, &["n1"])?;
        ensure!(healthy.node == "n0" && healthy.findings.is_empty());
        for area in ["agent", "files", "routes", "ports", "packets", "clocks", "masters", "versions"] {
            ensure!(healthy.checked.iter().any(|one| one.area == area), "{area} was not looked at");
        }
        first.cli(&["doctor", "n7"])?.fails_with(65)?;

        // A firewall that accepts only TCP.
        sh(
            there,
            "nft 'add table inet t; add chain inet t i { type filter hook input priority 0; };
                   add rule inet t i udp dport 7646 ip saddr 10.91.0.1 drop'",
        )?;
        finds(first, ("udp-blocked", "n0"), "error", "to or from n1, port 7646", "udp dport 7646 accept")?;
        let text = screen(first, &["n1"], 11)?;
        ensure!(text.contains("error    ports") && text.contains("10.91.0.2"), "{text}");
        ensure!(report(first, &["n2"])?.worst == "ok", "n2 has nothing to do with it");
        sh(there, "nft delete table inet t")?;
        well(first)?;

        // The other end sends smaller packets, or the kernel knows a smaller path MTU.
        sh(there, "ip link set eth0 mtu 1280")?;
        finds(first, ("mtu-differs", "n0"), "warning", "1500 here and of 1280 on n1", "mtu 1280")?;
        sh(there, "ip link set eth0 mtu 1500")?;
        sh(here, "ip route add 10.91.0.2/32 dev eth0 mtu 1400")?;
        finds(first, ("mtu-path", "n0"), "warning", "1400 bytes; eth0 is set to 1500", "mtu 1400")?;
        sh(here, "ip route del 10.91.0.2/32")?;
        well(first)?;

        // Something in between drops large packets. Segments leave as they would on a real wire.
        for node in [here, there] {
            sh(node, "ip link set eth0 gso_max_segs 1")?;
        }
        there.largest_packet(1300)?;
        finds(first, ("mtu-black-hole", "n0"), "error", "full size do not pass to or from n1", "mtu 1280")?;
        there.largest_packet(1500)?;
        well(first)?;

        // The route there uses another interface than the mesh.
        sh(
            here,
            "ip link add other type veth peer name end && ip addr add 10.66.0.1/24 dev other && ip link set end up
                  ip link set other up
                  sysctl -qw net.ipv4.conf.eth0.rp_filter=1
                  ip route add 10.91.0.2/32 dev other src 10.91.0.1",
        )?;
        finds(
            first,
            ("route", "n0"),
            "warning",
            "to n1 (10.91.0.2) leave through other",
            "ip route replace",
        )?;
        let found = report(first, &[])?;
        ensure!(found.finding("rp-filter", "n0")?.fix[0].contains("conf.eth0.rp_filter=2"), "{found:#?}");
        sh(here, "ip link del other && sysctl -qw net.ipv4.conf.eth0.rp_filter=0")?;
        well(first)
    })
}

#[test]
fn a_wrong_setting_of_a_node_is_named_from_any_node() -> Result<()> {
    with_agents(Lab::bridge(3), |lab, agents| {
        let mut masters = serve(lab, agents, 2)?;
        let [first, second, worker] = agents else { anyhow::bail!("three agents") };
        for node in [second.node(), worker.node()] {
            own_etc(node)?;
        }
        well(first)?;

        // A worker's kubelet uses one master, bypassing the proxy: reported while it does, and not after.
        let config = |server: &str| format!("clusters:\n- cluster:\n    server: https://{server}\n");
        plant(worker.node(), "/etc/kubernetes/kubelet.conf", &config("10.91.0.1:6443"))?;
        let past = "sed -i 's|https://10.91.0.1:6443|https://127.0.0.1:16443|'";
        finds(first, ("past-the-proxy", "n2"), "warning", "n0 alone", &format!("on n2: {past}"))?;
        finds(worker, ("past-the-proxy", "n2"), "warning", "n0 alone", past)?;
        screen(worker, &["n0"], 10)?;
        plant(worker.node(), "/etc/kubernetes/kubelet.conf", &config("127.0.0.1:16443"))?;
        well(first)?;

        // A certificate that does not cover the proxy's address: the fix depends on who made it.
        masters[1].kill()?;
        masters[1] = lab.nginx_master(1)?;
        second.wait_for_backend("n1", &["ready"], GOSSIP)?;
        let names = ("certificate-names", "n1");
        finds(second, names, "warning", "does not cover 127.0.0.1", "kubeadm init phase certs apiserver")?;
        plant(second.node(), "/etc/rancher/k3s/config.yaml", "cluster-init: true\n")?;
        finds(second, names, "warning", "127.0.0.1", "/etc/rancher/k3s/config.yaml: tls-san: [127.0.0.1]")?;
        finds(first, names, "warning", "127.0.0.1", "on n1: systemctl restart k3s")?;
        screen(second, &[], 10)?;
        masters[1].kill()?;
        masters[1] = lab.nginx_master_for_the_proxy(1)?;
        second.wait_for_backend("n1", &["ready"], GOSSIP)?;
        sh(second.node(), "rm /etc/rancher/k3s/config.yaml")?;

        // An edited unit.
        plant(second.node(), "/run/systemd/system/agent.service", "[Service]\nExecStart=/bin/true\n")?;
        finds(second, ("unit-edited", "n1"), "warning", "agent.service", "agent install")?;
        sh(second.node(), "rm -r /run/systemd")?;
        well(second)?;

        // State that others may read.
        let key = worker.state().join("identity");
        sh(worker.node(), &format!("chmod 644 {}", key.display()))?;
        finds(first, ("loose-mode", "n2"), "error", "identity has mode 644", "on n2: chmod go=")?;
        sh(worker.node(), &format!("chmod 600 {}", key.display()))?;
        well(first)?;

        // Too few files for its connections; then no agent at all.
        worker.stop()?;
        worker.through = ["prlimit", "--nofile=1200:1200"].map(str::to_owned).to_vec();
        worker.run()?;
        worker.wait_until_asked()?;
        finds(worker, ("few-descriptors", "n2"), "warning", "limit is 1200", "LimitNOFILE")?;
        worker.kill()?;
        finds(first, ("agent-away", "n0"), "error", "n2 (10.91.0.3:7646)", "on n2: systemctl start agent")?;
        let text = screen(worker, &[], 11)?;
        ensure!(text.contains("systemctl start agent"), "{text}");
        Ok(())
    })
}

#[test]
fn a_wireguard_mesh_is_healthy_on_either_family() -> Result<()> {
    for lab in [Lab::wireguard(2), Lab::wireguard_v6(2)] {
        with_agents(lab, |lab, agents| {
            let _masters = serve(lab, agents, 1)?;
            agents.iter().try_for_each(well)?;
            let text = screen(&agents[1], &[], 0)?;
            ensure!(text.contains("to 1 member, all through wg0"), "{text}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_machine_without_an_agent_gets_the_command_to_start() -> Result<()> {
    with_agents(Lab::bridge(1), |_, agents| {
        let began = std::time::Instant::now();
        let text = screen(&agents[0], &[], 11)?;
        ensure!(text.contains("agent join") && text.contains("1 thing to fix"), "{text}");
        ensure!(began.elapsed() < Duration::from_secs(5));
        Ok(())
    })
}
