//! Real kube-apiservers: what `agent kubernetes endpoints` prints is taken by them, pods keep the API through accidents
//! of masters, and an apiserver that rewrites the endpoints is noticed.
//!
//! No package registry has a kube-apiserver. `KUBE_BIN` names a directory with kube-apiserver, etcd and kubectl, and
//! kube-proxy where pods are to be led by that and not by rules written by hand; without it nothing is run, and
//! `tests/run` says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Node, Proc, Signal};
use tests::mesh::{Agent, GOSSIP, form_with, with_agents};
use tests::pods::{NODE_LOCAL, PORT, attach};
use tests::wait::eventually;

/// Masters, a worker with a pod, and a machine that has etcd, so that none of the accidents is etcd's.
const MASTERS: usize = 3;
const WORKER: usize = 3;
const POD: usize = 4;
const ETCD: usize = 5;

const ADDRESS: &str = "10.92.91.50";

/// How long a master is away.
const AWAY: Duration = Duration::from_secs(8);

/// A kube-apiserver makes its first objects, with two cores for three of them.
const STARTS: Duration = Duration::from_secs(120);

/// Longest a new connection may take: half a second more than usual, and a tolerance for a busy test machine.
const SLOWEST: f64 = 1.2;

/// The programs.
struct Binaries(PathBuf);

impl Binaries {
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    fn has(&self, name: &str) -> bool {
        self.0.join(name).is_file()
    }
}

/// A cluster of real apiservers.
struct Kubernetes<'a> {
    lab: &'a Lab,
    binaries: Binaries,
    apiservers: Vec<Proc>,
    _etcd: Proc,
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl<'a> Kubernetes<'a> {
    fn start(lab: &'a Lab, binaries: Binaries) -> Result<Kubernetes<'a>> {
        let node = lab.node(ETCD);
        let client = format!("http://{}:2379", node.mesh_ip());
        let (etcd, data) = (binaries.path("etcd"), text(&node.dir().join("etcd-data")));
        let listen = [format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")];
        let peer = "--listen-peer-urls=http://127.0.0.1:2380";
        let started = node.spawn("etcd", &[&etcd, "--data-dir", &data, &listen[0], &listen[1], peer])?;
        let mut kubernetes = Kubernetes { lab, binaries, apiservers: Vec::new(), _etcd: started };
        for i in 0..MASTERS {
            let apiserver = kubernetes.apiserver(i, "none")?;
            kubernetes.apiservers.push(apiserver);
        }
        for i in 0..MASTERS {
            eventually(&format!("the apiserver of n{i} is ready"), STARTS, || {
                kubernetes.kubectl(i, &["get", "--raw", "/readyz"])
            })?;
        }
        Ok(kubernetes)
    }

    /// Starts an apiserver as kubeadm does, but for what no test needs.
    fn apiserver(&self, i: usize, reconciler: &str) -> Result<Proc> {
        let (node, certs) = (self.lab.node(i), self.lab.certs());
        let file = |option: &str, path: &Path| format!("--{option}={}", path.display());
        let options = [
            format!("--etcd-servers=http://{}:2379", self.lab.node(ETCD).mesh_ip()),
            format!("--advertise-address={}", node.mesh_ip()),
            format!("--endpoint-reconciler-type={reconciler}"),
            file("cert-dir", &node.dir().join("apiserver")),
            file("tls-cert-file", &certs.server_proxied),
            file("tls-private-key-file", &certs.server_key),
            file("client-ca-file", &certs.ca),
            file("service-account-signing-key-file", &certs.service_account_key),
            file("service-account-key-file", &certs.service_account_public_key),
        ];
        let mut command = vec![self.binaries.path("kube-apiserver")];
        command.extend(options);
        command.extend(
            [
                "--secure-port=6443",
                "--anonymous-auth=false",
                "--authorization-mode=Node,RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc",
            ]
            .map(str::to_owned),
        );
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        node.spawn(&format!("kube-apiserver-{reconciler}"), &command)
    }

    /// kubectl as an administrator, by the apiserver of a master.
    fn kubectl(&self, i: usize, command: &[&str]) -> Result<String> {
        let (node, certs) = (self.lab.node(i), self.lab.certs());
        let options = [
            format!("--server=https://{}:6443", node.mesh_ip()),
            "--tls-server-name=kubernetes".to_owned(),
            format!("--certificate-authority={}", certs.ca.display()),
            format!("--client-certificate={}", certs.admin.display()),
            format!("--client-key={}", certs.admin_key.display()),
        ];
        let kubectl = self.binaries.path("kubectl");
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        node.exec(&[&[kubectl.as_str()], options.as_slice(), command].concat())?.ok()
    }

    /// A node object as a kubelet makes it, since none runs here.
    fn register(&self, i: usize) -> Result<()> {
        let node = self.lab.node(i);
        let file = node.dir().join("node.json");
        let object = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{{\"name\":\"{}\"}}}}",
            node.name
        );
        std::fs::write(&file, object)?;
        self.kubectl(0, &["create", "-f", &text(&file)])?;
        let addresses = format!(
            "{{\"status\":{{\"addresses\":[{{\"type\":\"InternalIP\",\"address\":\"{}\"}}]}}}}",
            node.mesh_ip()
        );
        let patch = ["patch", "node", &node.name, "--subresource=status", "--type=merge", "-p", &addresses];
        self.kubectl(0, &patch).map(drop)
    }

    /// Leads pods of the worker as the endpoints say: by the real kube-proxy, or by rules written by hand.
    fn lead_pods(&self) -> Result<Option<Proc>> {
        let host = self.lab.node(WORKER);
        attach(host, self.lab.node(POD))?;
        if !self.binaries.has("kube-proxy") {
            eprintln!("kube-proxy is not in KUBE_BIN: the pod's rules are written by hand");
            NODE_LOCAL.lead(host, &[format!("{ADDRESS}:16443").parse()?])?;
            return Ok(None);
        }
        host.exec(&["nft", "delete", "table", "inet", "kube-proxy"])?.ok()?;
        let certs = self.lab.certs();
        let config = host.dir().join("kube-proxy.conf");
        let form = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: \
             https://127.0.0.1:16443\n    certificate-authority: {}\nusers:\n- name: u\n  user:\n    \
             client-certificate: {}\n    client-key: {}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n",
            certs.ca.display(),
            certs.admin.display(),
            certs.admin_key.display()
        );
        std::fs::write(&config, form)?;
        let command = [
            &self.binaries.path("kube-proxy"),
            &format!("--kubeconfig={}", config.display()),
            &format!("--hostname-override={}", host.name),
            "--proxy-mode=nftables",
            "--cluster-cidr=10.244.0.0/16",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ];
        Ok(Some(host.spawn("kube-proxy", &command)?))
    }
}

/// What a client in the pod does, ten times a second: a TLS connection for one request, with the cluster's names and a
/// certificate. A line each: the code of the answer, and the seconds that it took.
fn ask_for_ever(lab: &Lab, name: &str) -> Result<Proc> {
    let certs = lab.certs();
    let [at, _] = NODE_LOCAL.ips;
    let script = format!(
        "while :; do curl -s -o /dev/null -m 10 --cacert {} --cert {} --key {} --resolve kubernetes:{PORT}:{at} -w \
         '%{{http_code}} %{{time_total}}\\n' https://kubernetes/readyz; sleep 0.1; done",
        certs.ca.display(),
        certs.admin.display(),
        certs.admin_key.display()
    );
    lab.node(POD).spawn(name, &["sh", "-c", &script])
}

/// How many requests there were, those that failed, and the slowest.
fn outcome(client: &Proc) -> Result<(usize, Vec<String>, f64)> {
    let log = client.log()?;
    let lines: Vec<&str> = log.lines().collect();
    let failed = lines.iter().filter(|line| !line.starts_with("200 ")).map(|line| (*line).to_owned());
    let took = lines.iter().filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Ok((lines.len(), failed.collect(), took.fold(0.0, f64::max)))
}

fn problem(agent: &Agent<'_>) -> Result<Option<String>> {
    let all = agent.status()?.problems;
    Ok(all.into_iter().find(|one| one.code == "kubernetes-endpoints").map(|one| one.detail))
}

/// Masters lose power, hang and are killed, one after the other, and come back.
fn accidents(kubernetes: &mut Kubernetes<'_>, worker: &Agent<'_>) -> Result<()> {
    let back = |i: usize| worker.wait_for_backend(&format!("n{i}"), &["ready"], STARTS);
    let victim: &Node = kubernetes.lab.node(1);
    victim.power_cut()?;
    std::thread::sleep(AWAY);
    victim.power_on()?;
    back(1)?;
    kubernetes.apiservers[0].signal(Signal::STOP)?;
    std::thread::sleep(AWAY);
    kubernetes.apiservers[0].signal(Signal::CONT)?;
    back(0)?;
    kubernetes.apiservers[2].kill()?;
    std::thread::sleep(AWAY);
    kubernetes.apiservers[2] = kubernetes.apiserver(2, "none")?;
    back(2).map(drop)
}

#[test]
fn a_pod_keeps_the_api_of_real_apiservers_by_the_node_local_address() -> Result<()> {
    let Some(directory) = std::env::var_os("KUBE_BIN") else {
        eprintln!("not run: KUBE_BIN is not set");
        return Ok(());
    };
    let binaries = Binaries(PathBuf::from(directory));
    for name in ["kube-apiserver", "etcd", "kubectl"] {
        ensure!(binaries.has(name), "KUBE_BIN has no {name}");
    }
    with_agents(Lab::wireguard(ETCD + 1), |lab, agents| {
        let certs = lab.certs();
        let mut kubernetes = Kubernetes::start(lab, binaries)?;
        let config = lab.dir().join("agent.toml");
        let file = format!(
            "[[service]]\nname = \"kube-api\"\n[service.check]\nca-file = {:?}\ncert-file = {:?}\nkey-file = {:?}\n",
            certs.ca, certs.admin, certs.admin_key
        );
        std::fs::write(&config, file)?;
        let config = text(&config);
        let (agents, _) = agents.split_at_mut(POD);
        for agent in agents.iter_mut() {
            agent.options = vec!["--config".to_owned(), config.clone()];
        }
        form_with(agents, MASTERS)?;
        for i in 0..MASTERS {
            agents[WORKER].wait_for_backend(&format!("n{i}"), &["ready"], GOSSIP)?;
        }
        (0..POD).try_for_each(|i| kubernetes.register(i))?;

        // As the printed account says.
        agents[0].cli(&["set", &format!("node-local={ADDRESS}"), "node-local.endpoints=watch"])?.ok()?;
        let (printed, _) = eventually("the manifests are printed", GOSSIP, || {
            agents[0].cli(&["kubernetes", "endpoints", "--config", &config])?.ok()
        })?;
        let manifest = lab.dir().join("endpoints.yaml");
        std::fs::write(&manifest, printed)?;
        let manifest = text(&manifest);
        kubernetes.kubectl(0, &["apply", "--server-side", "--force-conflicts", "-f", &manifest])?;
        for agent in agents.iter() {
            eventually("all are content", GOSSIP, || agent.cli(&["status", "--exit-code"])?.ok())?;
        }

        let proxy = kubernetes.lead_pods()?;
        let mut client = ask_for_ever(lab, "first-client")?;
        eventually("the pod is answered", STARTS, || {
            ensure!(client.log()?.contains("200 "), "{}", client.tail(3));
            Ok(())
        })?;
        client.kill()?;
        // From here on it counts.
        let mut client = ask_for_ever(lab, "client")?;
        accidents(&mut kubernetes, &agents[WORKER])?;
        client.kill()?;
        let (tries, failed, slowest) = outcome(&client)?;
        eprintln!("{tries} requests, {} failed, the slowest took {slowest} s", failed.len());
        ensure!(tries > 100 && failed.is_empty() && slowest < SLOWEST, "{failed:?}, {slowest} s");

        // One master starts without the flag, and writes its own address with our port.
        kubernetes.apiservers[1].kill()?;
        kubernetes.apiservers[1] = kubernetes.apiserver(1, "lease")?;
        let (told, after) = eventually("it is told", STARTS, || problem(&agents[0])?.context("it is not"))?;
        eprintln!("told {after:?} after that apiserver was started: {told}");
        kubernetes.apiservers[1].kill()?;
        kubernetes.apiservers[1] = kubernetes.apiserver(1, "none")?;
        agents[0].cli(&["set", "node-local.endpoints=restore"])?.ok()?;
        eventually("it is put right", STARTS, || {
            let now = kubernetes.kubectl(0, &["get", "endpoints", "kubernetes", "-o", "json"])?;
            ensure!(now.contains(ADDRESS), "{now}");
            agents[0].cli(&["status", "--exit-code"])?.ok()
        })?;
        drop(proxy);
        Ok(())
    })
}
