//! `keepalived.conf`: virtual IPs, and who is told of them.

use std::net::IpAddr;

use super::notes::LineOutcome::{Automatic, Kept, Needless, NotDone, Set, Unknown, Wrong};
use super::notes::{FileReport, KeywordRow, row};
use super::words::{duration, milliseconds};
use crate::config::{BadValue, check_interface};
use crate::settings::check_vip;

mod tree;

use tree::Node;

const MAIL: &str = "there is no mail; events go to notify programs or a webhook";
const GARP: &str = "announced at 0, 5, 50, 200 ms, 1.1 s, 3 s, then every 30 s";
const GOSSIP: &str = "the agents find each other by gossip";
const KEYS: &str = "all messages between agents are encrypted and authenticated";
const SCRIPTS: &str =
    "programs run with the rights of the agent's unit, and only if nobody else can change them";
const NO_LVS: &str = "the agent's own proxy balances, not the kernel";
const NO_ROUTES: &str = "the agent sets addresses only, no routes or rules";
const HEALTH: &str = "only a node whose apiserver or proxy serves may own the address";
const OWN: &str = "keepalived-specific";

/// What begins a block at the top, or stands there alone.
const TOP: &[KeywordRow] = &[
    ("vrrp_sync_group", NotDone, "each virtual IP has its own owner; agent vip move hands one over"),
    ("vrrp_track_process", Automatic, HEALTH),
    ("vrrp_track_file", NotDone, "there are no weight files; use agent drain to take a node out"),
    ("track_file", NotDone, "there are no weight files; use agent drain to take a node out"),
    ("virtual_server", NotDone, NO_LVS),
    ("virtual_server_group", NotDone, NO_LVS),
    ("SSL", NotDone, NO_LVS),
    ("garp_group", Automatic, GARP),
    ("static_*", NotDone, NO_ROUTES),
    ("bfd_instance", Automatic, "the agents pulse each other ten times a second"),
    ("linkbeat_*", Automatic, HEALTH),
    ("interface_up_down_delays", Needless, OWN),
    ("net_namespace*", NotDone, "the agent runs in the namespace where it is started"),
    ("namespace_with_ipsets", Needless, OWN),
    ("use_pid_dir", Needless, OWN),
    ("instance", Needless, OWN),
    ("include*", NotDone, "included files are not read; add their lines to this file"),
    ("config_save_dir", Needless, OWN),
    ("reload_*", Automatic, "cluster-wide settings apply at once on all nodes"),
];

/// Of `global_defs`.
const GLOBAL: &[KeywordRow] = &[
    ("notification_email*", NotDone, MAIL),
    ("smtp_*", NotDone, MAIL),
    ("email_*", NotDone, MAIL),
    ("router_id", Automatic, "a node is identified by its key and named by its host name"),
    ("enable_script_security", Automatic, SCRIPTS),
    ("script_user", Automatic, SCRIPTS),
    ("max_auto_priority", Needless, OWN),
    ("min_auto_priority_delay", Needless, OWN),
    ("vrrp_garp*", Automatic, GARP),
    ("vrrp_gna*", Automatic, GARP),
    ("vrrp_notify*", NotDone, "events go to notify, to a webhook, and to agent events -f"),
    ("vrrp_*", Needless, "the agents do not use VRRP"),
    ("lvs_*", NotDone, NO_LVS),
    ("checker_*", NotDone, NO_LVS),
    ("notify_fifo*", NotDone, "events go to notify, to a webhook, and to agent events -f"),
    ("bfd_*", Needless, OWN),
    ("process_*", Needless, OWN),
    ("dynamic_interfaces", Automatic, "interfaces may come and go"),
    ("use_symlink_paths", Needless, OWN),
    ("snmp_*", NotDone, "there is no SNMP; /metrics is for Prometheus"),
    ("enable_snmp_*", NotDone, "there is no SNMP; /metrics is for Prometheus"),
    ("enable_dbus", NotDone, "there is no D-Bus; use agent status --json or the page"),
    ("dbus_*", NotDone, "there is no D-Bus; use agent status --json or the page"),
    ("nftables*", Needless, OWN),
    ("default_interface", Automatic, "an address is set on the interface of its network"),
];

/// Of `vrrp_instance`, what has no code of its own.
const INSTANCE: &[KeywordRow] = &[
    ("state", Automatic, "the owner is elected and keeps the address"),
    ("virtual_router_id", Automatic, "clusters are separated by their keys"),
    ("interface", Automatic, "an address is set on the interface of its network"),
    ("advert_int", Automatic, "the owner sends a beat every 50 ms; a dead one is replaced in about 0.2 s"),
    ("authentication", Automatic, KEYS),
    ("auth_*", Automatic, KEYS),
    ("unicast_src_ip", Automatic, GOSSIP),
    ("unicast_peer", Automatic, GOSSIP),
    ("unicast_*", Automatic, GOSSIP),
    ("mcast_src_ip", Automatic, GOSSIP),
    ("check_unicast_src", Automatic, GOSSIP),
    ("track_src_ip", Automatic, HEALTH),
    ("track_interface", Automatic, HEALTH),
    ("track_process", Automatic, HEALTH),
    ("track_bfd", Automatic, HEALTH),
    ("track_file", NotDone, "there are no weight files; use agent drain to take a node out"),
    ("dont_track_primary", Needless, HEALTH),
    ("garp_*", Automatic, GARP),
    ("gna_*", Automatic, GARP),
    ("promote_secondaries", Automatic, "the address is a /32, without secondaries"),
    ("virtual_routes", NotDone, NO_ROUTES),
    ("virtual_rules", NotDone, NO_ROUTES),
    ("use_vmac*", NotDone, "the address uses the interface's own MAC and is announced again"),
    ("vmac_*", NotDone, "the address uses the interface's own MAC and is announced again"),
    ("use_ipvlan", NotDone, "the address uses the interface's own MAC and is announced again"),
    ("version", Needless, "the agents do not use VRRP"),
    ("native_ipv6", Needless, "the agents do not use VRRP"),
    ("strict_mode", Needless, "the agents do not use VRRP"),
    ("skip_check_adv_addr", Needless, "the agents do not use VRRP"),
    ("lower_prio_no_advert", Needless, "the agents do not use VRRP"),
    ("higher_prio_send_advert", Needless, "the agents do not use VRRP"),
    ("thread_timer_expired", Needless, OWN),
    ("accept", Needless, "the owner accepts traffic to the address"),
    ("no_accept", NotDone, "the owner accepts traffic to the address"),
    ("smtp_alert", NotDone, MAIL),
    ("lvs_sync_daemon*", NotDone, NO_LVS),
    ("debug", Needless, "[log] level = \"debug\""),
    ("kernel_rx_buf_size", Needless, OWN),
    ("linkbeat_*", Automatic, HEALTH),
    (
        "down_timer_adverts",
        Automatic,
        "the owner sends a beat every 50 ms; a dead one is replaced in about 0.2 s",
    ),
    ("fault_init_exit_delay", Automatic, HEALTH),
    ("notify_priority_changes", Needless, OWN),
    ("include*", NotDone, "included files are not read; add their lines to this file"),
];

/// Its words that have code here, for guesses at what was meant.
const INSTANCE_CODE: [&str; 6] =
    ["virtual_ipaddress", "priority", "nopreempt", "preempt_delay", "track_script", "notify"];

/// A virtual IP as it was.
#[derive(Debug)]
pub(super) struct Vip {
    pub(super) address: IpAddr,
    pub(super) interface: Option<String>,
    pub(super) label: Option<String>,
    /// This node's, of which alone the file knows.
    pub(super) priority: Option<u8>,
    /// How long a better one waits; none: for ever.
    pub(super) preempt: Option<String>,
    pub(super) line: usize,
}

/// What a file amounts to.
#[derive(Debug, Default)]
pub(super) struct Keepalived {
    pub(super) vips: Vec<Vip>,
    /// Programs that are told, and the lines that name them.
    pub(super) notify: Vec<(String, usize)>,
}

/// Whether a text has any block of keepalived's.
pub(super) fn is_ours(text: &str) -> bool {
    let begins = ["vrrp_instance", "vrrp_script", "vrrp_sync_group", "global_defs", "virtual_server"];
    text.lines().any(|line| {
        let line = line.trim_start();
        begins.iter().any(|word| line.strip_prefix(word).is_some_and(|rest| !rest.starts_with('-')))
    })
}

/// Reads a file.
pub(super) fn read(text: &str, account: &mut FileReport) -> Keepalived {
    let nodes = tree::read(text, account);
    let mut found = Keepalived::default();
    // A script that looks for more than we do is told wherever it weighs.
    let mut strange: Vec<&str> = Vec::new();
    for node in nodes.iter().filter(|node| node.word(0) == "vrrp_script") {
        if !probes_api(node) {
            strange.push(node.word(1));
        }
    }
    for node in &nodes {
        let mut note =
            |verdict, reason: &str| account.range(node.line, node.last, &node.shown(), verdict, reason);
        match node.word(0) {
            "global_defs" => {
                note_head(node, account);
                each(node, GLOBAL, &[], account);
            }
            "vrrp_script" if strange.contains(&node.word(1)) => {
                note(NotDone, "no scripts decide; the agent checks the apiserver or another service itself");
            }
            "vrrp_script" => note(Automatic, HEALTH),
            "vrrp_instance" => instance(node, &strange, &mut found, account),
            word => match row(TOP, &node.words) {
                Some((_, verdict, reason)) => note(*verdict, reason),
                None if word.starts_with(['$', '@', '~']) => {
                    note(NotDone, "variables and conditions are not expanded; write the values");
                }
                None => {
                    let known: Vec<&str> = TOP
                        .iter()
                        .map(|row| row.0)
                        .chain(["vrrp_instance", "vrrp_script", "global_defs"])
                        .collect();
                    note(Unknown, &super::haproxy::unknown(word, &known));
                }
            },
        }
    }
    found
}

/// The head of a block whose lines are told one by one.
fn note_head(node: &Node, account: &mut FileReport) {
    account.add(node.line, &node.shown(), Automatic, "see each line");
}

/// Whether a script looks whether the apiserver, or what stands before it, is there.
fn probes_api(script: &Node) -> bool {
    let words = [
        "haproxy",
        "6443",
        "8443",
        "apiserver",
        "readyz",
        "healthz",
        "livez",
        "kube",
        "k3s",
        "rke2",
        "nginx",
    ];
    let mut lines = script.block.iter().filter(|line| line.word(0) == "script");
    script.block.is_empty()
        || lines.any(|line| line.words.iter().any(|word| words.iter().any(|one| word.contains(one))))
}

/// Lines by their table.
fn each(node: &Node, table: &[KeywordRow], code: &[&str], account: &mut FileReport) {
    for line in &node.block {
        match row(table, &line.words) {
            Some((_, verdict, reason)) => {
                account.range(line.line, line.last, &line.shown(), *verdict, *reason)
            }
            None => {
                let known: Vec<&str> = table.iter().map(|row| row.0).chain(code.iter().copied()).collect();
                let what = super::haproxy::unknown(line.word(0), &known);
                account.range(line.line, line.last, &line.shown(), Unknown, what);
            }
        }
    }
}

fn instance(node: &Node, strange: &[&str], found: &mut Keepalived, account: &mut FileReport) {
    account.add(node.line, &node.shown(), Kept, "its addresses become cluster-wide settings");
    let mut own = Vec::new();
    let (mut priority, mut delay, mut stays) = (None, None, false);
    let interface = node.block.iter().find(|line| line.word(0) == "interface").map(|line| line.word(1));
    for line in &node.block {
        let mut note =
            |verdict, reason: &str| account.range(line.line, line.last, &line.shown(), verdict, reason);
        match line.word(0) {
            "priority" => match line.word(1).parse::<u8>().ok().filter(|number| *number > 0) {
                Some(number) => {
                    priority = Some(number);
                    note(Set, "vip.ADDRESS.priority.NODE, for this node only; others have 100 until set");
                }
                None => note(Wrong, "not a whole number from 1 to 255"),
            },
            "nopreempt" => {
                stays = true;
                note(Automatic, "an address stays where it is until its owner fails");
            }
            "preempt" => note(Set, "vip.ADDRESS.preempt"),
            "preempt_delay" => match seconds(line.word(1)) {
                Some(text) => {
                    delay = Some(text);
                    note(Set, "vip.ADDRESS.preempt");
                }
                None => note(Wrong, "not a number of seconds from 0 to 3600"),
            },
            "virtual_ipaddress" | "virtual_ipaddress_excluded" => {
                note(Set, "vip = its addresses, each a /32 or /128 with its own owner");
                for address in &line.block {
                    own.extend(vip(address, interface, account));
                }
            }
            "track_script" => {
                let bad = line.block.iter().any(|one| strange.contains(&one.word(0)));
                let reason = "health excludes a node; it does not lower its priority";
                note(if bad { NotDone } else { Automatic }, reason);
            }
            "notify" => notify(line, found, account),
            "notify_master"
            | "notify_backup"
            | "notify_fault"
            | "notify_stop"
            | "notify_deleted"
            | "notify_master_rx_lower_pri" => {
                note(
                    NotDone,
                    "notify programs get all events; check the third argument, MASTER, BACKUP or FAULT",
                );
            }
            _ => match row(INSTANCE, &line.words) {
                Some((_, verdict, reason)) => note(*verdict, reason),
                None => {
                    let known: Vec<&str> = INSTANCE.iter().map(|row| row.0).chain(INSTANCE_CODE).collect();
                    note(Unknown, &super::haproxy::unknown(line.word(0), &known));
                }
            },
        }
    }
    if own.is_empty() {
        let reason = "it has no virtual_ipaddress; write virtual_ipaddress { 10.0.0.50 }";
        account.add(node.line, &node.shown(), Wrong, reason);
    }
    for vip in &mut own {
        vip.priority = priority;
        // keepalived takes an address back unless it is told not to.
        vip.preempt = (!stays && (priority.is_some() || delay.is_some()))
            .then(|| delay.clone().unwrap_or_else(|| "0s".to_owned()));
    }
    for vip in own {
        if found.vips.iter().any(|known| known.address == vip.address) {
            account.add(vip.line, &vip.address.to_string(), Wrong, "it is already in another block");
        } else {
            found.vips.push(vip);
        }
    }
}

/// keepalived's seconds, which may have a fraction.
fn seconds(text: &str) -> Option<String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = part.chars().chain("000".chars()).take(3).collect();
    let ms = milliseconds(&format!("{whole}s"))?.checked_add(digits.parse().ok()?)?;
    (ms <= 3_600_000).then(|| duration(ms))
}

/// `10.91.91.50/24 dev vpn0 label vpn0:0`.
fn vip(node: &Node, of_instance: Option<&str>, account: &mut FileReport) -> Option<Vip> {
    let address = match check_vip(node.word(0)) {
        Ok(address) => address,
        Err(reason) => {
            account.add(node.line, &node.shown(), Wrong, reason.to_string());
            return None;
        }
    };
    let label = node.after("label").map(str::to_owned);
    let mut interface = node.after("dev").or(of_instance.filter(|_| label.is_some())).map(str::to_owned);
    if let Some(Err(reason)) = interface.as_deref().map(is_interface) {
        account.add(node.line, &node.shown(), Wrong, reason.to_string());
        interface = None;
    }
    let label = label.filter(|label| {
        let good = is_word(label)
            && address.is_ipv4()
            && interface.as_deref().is_some_and(|name| label.starts_with(name));
        if !good {
            let reason = "labels are for IPv4 and begin with the interface, such as wg0:0";
            account.add(node.line, &format!("label {label}"), NotDone, reason);
        }
        good
    });
    let mut reason = "vip".to_owned();
    for (what, is_there) in [("interface", interface.is_some()), ("label", label.is_some())] {
        if is_there {
            reason.push_str(&format!(", vip.{address}.{what}"));
        }
    }
    account.add(node.line, &node.shown(), Set, reason);
    Some(Vip { address, interface, label, priority: None, preempt: None, line: node.line })
}

/// Whether a text can stand in a command as it is, whatever the shell.
fn is_word(text: &str) -> bool {
    text.len() <= 15 && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:@-".contains(c))
}

/// Why a name of an interface is not taken over.
#[derive(Debug, thiserror::Error)]
enum BadInterface {
    /// It is none.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// It can't stand in a command as it is.
    #[error("an interface name that a shell would interpret")]
    Odd,
}

fn is_interface(text: &str) -> Result<(), BadInterface> {
    check_interface(text)?;
    if is_word(text) { Ok(()) } else { Err(BadInterface::Odd) }
}

/// `notify "/path/program"`, with no arguments of its own.
fn notify(line: &Node, found: &mut Keepalived, account: &mut FileReport) {
    let path = line.word(1);
    if line.words.len() > 2 && !path.contains(' ') {
        account.add(line.line, &line.shown_rest(2), Automatic, SCRIPTS);
    }
    if !path.starts_with('/') || path.contains(char::is_whitespace) || path.contains(char::is_control) {
        let reason = "a program needs an absolute path and no arguments; write a wrapper for this";
        return account.add(line.line, &line.shown(), NotDone, reason);
    }
    let reason = "notify, with the same arguments for virtual IPs; it also gets all other events";
    account.add(line.line, &line.shown(), Kept, reason);
    if !found.notify.iter().any(|(known, _)| known == path) && found.notify.len() < 8 {
        found.notify.push((path.to_owned(), line.line));
    }
}
