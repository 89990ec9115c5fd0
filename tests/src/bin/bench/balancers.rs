//! `balancers`: two dedicated balancers with an address of their own before three masters. A master or the balancer
//! that owns the address crashes, stops or hangs, and what clients of the address notice.
//!
//! Beside haproxy and keepalived, which run on the same two nodes with an address of theirs, before the same masters,
//! loaded in turn from the same client.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::lab::{Lab, Master, Node, Proc, Signal};
use tests::load::{self, Plan, Record};
use tests::mesh::{Agent, GOSSIP, form_with, with_agents};
use tests::peers::{CHECKED, HTTPCHK, Haproxy, require};
use tests::vip::vip;
use tests::wait::eventually;

use super::{masters, option};

/// The contenders, in order.
const WHO: [&str; 2] = ["agent", "haproxy"];

/// Their addresses and ports.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 91, 0, 250), Ipv4Addr::new(10, 91, 0, 251)];
const PORTS: [u16; 2] = [6443, 7443];

/// Masters are the nodes before the balancers; the client follows.
const MASTERS: usize = 3;
const BALANCERS: [usize; 2] = [3, 4];
const CLIENT: usize = 5;

/// The master and the balancer that fail; the latter owns both addresses.
const VICTIMS: (usize, usize) = (1, BALANCERS[0]);

/// New connections a second, to each address.
const PER_SECOND: u32 = 25;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Before a fault.
const BEFORE: Duration = Duration::from_secs(2);

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accident {
    Crash,
    Stop,
    Hang,
}

/// To whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    Master,
    Balancer,
}

const ROWS: [(Whom, Accident, &str); 6] = [
    (Whom::Master, Accident::Crash, "master crashes"),
    (Whom::Master, Accident::Stop, "master stops"),
    (Whom::Master, Accident::Hang, "master hangs"),
    (Whom::Balancer, Accident::Crash, "balancer crashes"),
    (Whom::Balancer, Accident::Stop, "balancer stops"),
    (Whom::Balancer, Accident::Hang, "balancer hangs"),
];

/// What the clients of one contender noticed.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    failed: usize,
    /// The longest time between two answers.
    gap: Duration,
    /// The longest wait for an answer.
    slowest: Duration,
}

impl Noticed {
    fn of(record: &Record, from: Instant) -> Noticed {
        let tries = || record.tries.iter().filter(|one| one.at + one.took >= from);
        let answered = || tries().filter(|one| one.result.is_ok());
        let mut ends: Vec<Instant> = answered().map(|one| one.at + one.took).chain([from]).collect();
        ends.sort_unstable();
        Noticed {
            failed: tries().filter(|one| one.result.is_err()).count(),
            gap: ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(PATIENCE),
            slowest: answered().map(|one| one.took).max().unwrap_or_default(),
        }
    }
}

pub(crate) fn balancers(arguments: &[String]) -> Result<()> {
    require(&[("haproxy", "haproxy"), ("keepalived", "keepalived"), ("curl", "curl")])?;
    let mut arguments = arguments.to_vec();
    let runs = option(&mut arguments, "--runs", 5)? as usize;
    let after = Duration::from_secs(option(&mut arguments, "--after", 12)?);
    println!(
        "two balancers with an address before three TLS masters, {PER_SECOND} new connections a second to each \
         address,\n{} s after each accident, {runs} runs: median (highest); gap: the longest without an answer\n",
        after.as_secs()
    );
    let mut found: Vec<Vec<[Noticed; 2]>> = vec![Vec::new(); ROWS.len()];
    for _ in 0..runs {
        run(after, &mut found)?;
    }
    println!("{:<18}{:<9}{:>14}{:>20}{:>20}", "", "", "failed", "gap, ms", "slowest, ms");
    for ((_, _, title), all) in ROWS.iter().zip(&found) {
        for (i, who) in WHO.iter().enumerate() {
            let column = |value: &dyn Fn(&Noticed) -> u128| {
                let mut all: Vec<u128> = all.iter().map(|one| value(&one[i])).collect();
                all.sort_unstable();
                let at = |i: usize| all.get(i).copied().unwrap_or_default();
                format!("{} ({})", at(all.len() / 2), at(all.len().saturating_sub(1)))
            };
            println!(
                "{:<18}{who:<9}{:>14}{:>20}{:>20}",
                if i == 0 { title } else { "" },
                column(&|one| one.failed as u128),
                column(&|one| one.gap.as_millis()),
                column(&|one| one.slowest.as_millis()),
            );
        }
    }
    Ok(())
}

/// All accidents once, one after the other in one lab.
fn run(after: Duration, found: &mut [Vec<[Noticed; 2]>]) -> Result<()> {
    with_agents(Lab::bridge(CLIENT + 1), |lab, agents| {
        let masters = masters(lab)?;
        let (agents, _) = agents.split_at_mut(CLIENT);
        let mut drill = Drill { lab, agents, masters, peers: Vec::new() };
        drill.set()?;
        for ((whom, accident, title), all) in ROWS.into_iter().zip(found.iter_mut()) {
            drill.settle().with_context(|| format!("before: {title}"))?;
            let noticed = drill.row(whom, accident, after).context(title)?;
            eprintln!("{title:<18}{noticed:?}");
            all.push(noticed);
            drill.undo(whom, accident)?;
        }
        Ok(())
    })
}

/// haproxy and keepalived on a balancer.
struct Peer {
    haproxy: Proc,
    keepalived: Proc,
}

impl Peer {
    fn start(lab: &Lab, node: &Node) -> Result<Peer> {
        let servers = (0..MASTERS).map(|i| SocketAddr::new(lab.node(i).mesh_ip(), 6443)).collect();
        let haproxy = Haproxy {
            name: "haproxy",
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORTS[1])),
            servers,
            maxconn: 4000,
            defaults: HTTPCHK,
            server: CHECKED,
        };
        let haproxy = haproxy.start(node)?;
        node.exec(&["sh", "-c", "rm -f /run/keepalived*.pid /run/vrrp.pid"])?.ok()?;
        node.exec(&["ip", "address", "del", &format!("{}/24", ADDRESSES[1]), "dev", node.interface])?;
        let config = node.dir().join("keepalived.conf");
        std::fs::write(&config, keepalived(node))?;
        let config = config.to_string_lossy().into_owned();
        let command = ["keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", &config];
        Ok(Peer { haproxy, keepalived: node.spawn("keepalived", &command)? })
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        self.haproxy.signal(signal)?;
        self.keepalived.signal(signal)
    }
}

/// As kubeadm's guide for high availability has it, with a check of the balancer that its users write.
fn keepalived(node: &Node) -> String {
    let (state, priority) = if node.index == VICTIMS.1 { ("MASTER", 101) } else { ("BACKUP", 100) };
    format!(
        "global_defs {{\n    router_id {}\n    script_user root\n    enable_script_security\n}}\n\
         vrrp_script check_apiserver {{\n    script \"/usr/bin/curl -sfk -m 2 -o /dev/null \
         https://127.0.0.1:{}/readyz\"\n    interval 3\n    weight -2\n    fall 10\n    rise 2\n}}\n\
         vrrp_instance VI_1 {{\n    state {state}\n    interface {}\n    virtual_router_id 51\n    \
         priority {priority}\n    authentication {{\n        auth_type PASS\n        auth_pass 42\n    }}\n    \
         virtual_ipaddress {{\n        {}/24\n    }}\n    track_script {{\n        check_apiserver\n    }}\n}}\n",
        node.name, PORTS[1], node.interface, ADDRESSES[1]
    )
}

struct Drill<'stage, 'lab> {
    lab: &'stage Lab,
    agents: &'stage mut [Agent<'lab>],
    masters: Vec<Master>,
    peers: Vec<Peer>,
}

impl Drill<'_, '_> {
    fn set(&mut self) -> Result<()> {
        for agent in self.agents.iter_mut() {
            agent.options = vec!["--iface".to_owned(), agent.node().interface.to_owned()];
        }
        form_with(self.agents, MASTERS)?;
        let address = ADDRESSES[0];
        let names = BALANCERS.map(|i| format!("n{i}")).join(",");
        let settings = [
            format!("vip={address}"),
            format!("vip.{address}.candidates={names}"),
            format!("service.kube-api.listen=0.0.0.0:{}", PORTS[0]),
            format!("service.kube-api.listen-on={names}"),
        ];
        let set: Vec<&str> = ["set"].into_iter().chain(settings.iter().map(String::as_str)).collect();
        self.agents[0].cli(&set)?.ok()?;
        for i in BALANCERS {
            self.peers.push(Peer::start(self.lab, self.lab.node(i))?);
        }
        Ok(())
    }

    /// Waits until the victim owns both addresses, and both answer with all masters there.
    fn settle(&mut self) -> Result<()> {
        let address = ADDRESSES[0].to_string();
        let victim = format!("n{}", VICTIMS.1);
        eventually("our address can be on either balancer", GOSSIP * 4, || {
            for i in BALANCERS {
                let seen = vip(&self.agents[i], &address)?;
                ensure!(seen.candidates.iter().filter(|one| one.eligible).count() == 2, "n{i}: {seen:?}");
                let status = self.agents[i].status()?;
                let ready = status.services[0].backends.iter().filter(|one| one.state == "ready").count();
                ensure!(ready == MASTERS, "n{i}: {ready} are ready");
            }
            Ok(())
        })?;
        // A node that has just come back hears the masters a moment later.
        eventually("ours moves to the victim", GOSSIP * 2, || {
            self.agents[0].cli(&["vip", "move", &address, &victim])?.ok()
        })?;
        eventually("the victim owns both, and both serve", GOSSIP * 2, || {
            let shown = self.lab.node(VICTIMS.1).exec(&["ip", "-o", "-4", "address"])?.ok()?;
            ensure!(ADDRESSES.iter().all(|one| shown.contains(&format!("{one}/"))), "{shown}");
            for (address, port) in ADDRESSES.iter().zip(PORTS) {
                let url = format!("https://{address}:{port}/who");
                self.lab.node(CLIENT).exec(&["curl", "-sSfk", "-m", "2", &url])?.ok()?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn row(&mut self, whom: Whom, accident: Accident, after: Duration) -> Result<[Noticed; 2]> {
        let target = |(address, port): (&Ipv4Addr, u16)| SocketAddr::new(IpAddr::V4(*address), port);
        let targets = ADDRESSES.iter().zip(PORTS).map(target).collect();
        let plan = Plan { targets, per_second: PER_SECOND, held: 0, patience: PATIENCE };
        let (client, ca) = (self.lab.node(CLIENT), self.lab.certs().ca.clone());
        let (records, from) = load::during(client, &ca, &plan, |_| {
            std::thread::sleep(BEFORE);
            let from = Instant::now();
            self.act(whom, accident)?;
            std::thread::sleep(after);
            Ok(from)
        })?;
        let [ours, theirs] = records.as_slice() else { anyhow::bail!("two records") };
        Ok([ours, theirs].map(|record| Noticed::of(record, from)))
    }

    fn act(&mut self, whom: Whom, accident: Accident) -> Result<()> {
        let (master, balancer) = VICTIMS;
        match (whom, accident) {
            (Whom::Master, Accident::Crash) => {
                self.lab.node(master).power_cut()?;
            }
            (Whom::Master, Accident::Stop) => self.masters[master].stop()?,
            (Whom::Master, Accident::Hang) => self.masters[master].hang()?,
            (Whom::Balancer, Accident::Crash) => {
                self.lab.node(balancer).power_cut()?;
                self.agents[balancer].process()?.signal(Signal::KILL)?;
                self.peers[0].signal(Signal::KILL)?;
            }
            (Whom::Balancer, Accident::Stop) => {
                self.agents[balancer].process()?.signal(Signal::TERM)?;
                self.peers[0].signal(Signal::TERM)?;
            }
            (Whom::Balancer, Accident::Hang) => {
                self.agents[balancer].process()?.signal(Signal::STOP)?;
                self.peers[0].signal(Signal::STOP)?;
            }
        }
        Ok(())
    }

    fn undo(&mut self, whom: Whom, accident: Accident) -> Result<()> {
        let (master, balancer) = VICTIMS;
        let lab = self.lab;
        match (whom, accident) {
            (Whom::Master, Accident::Crash) => lab.node(master).power_on(),
            (Whom::Master, Accident::Stop) => self.masters[master].start_again(lab.node(master)),
            (Whom::Master, Accident::Hang) => self.masters[master].go_on(),
            (Whom::Balancer, Accident::Crash | Accident::Stop) => {
                if accident == Accident::Crash {
                    lab.node(balancer).power_on()?;
                }
                self.agents[balancer].process()?.ended(Duration::from_secs(15))?;
                self.agents[balancer].options.clear();
                self.agents[balancer].run()?;
                self.peers[0] = Peer::start(lab, lab.node(balancer))?;
                Ok(())
            }
            (Whom::Balancer, Accident::Hang) => {
                self.agents[balancer].process()?.signal(Signal::CONT)?;
                self.peers[0].signal(Signal::CONT)
            }
        }
    }
}
