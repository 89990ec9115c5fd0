//! keepalived's words that need no more than a sentence.

use super::super::notes::KeywordRow;
use super::super::notes::LineOutcome::{Automatic, Different, Needless, NotDone, Set};

const MAIL: &str = "there is no mail; events go to notify programs or a webhook";
const GARP: &str = "announced at 0, 5, 50, 200 ms, 1.1 s, 3 s, then every 30 s";
pub(super) const GOSSIP: &str = "the agents find each other by gossip";
const KEYS: &str = "all messages between agents are encrypted and authenticated";
const SCRIPTS: &str =
    "programs run with the rights of the agent's unit, and only if nobody else can change them";
const NO_LVS: &str = "the agent's own proxy balances, not the kernel";
const NO_ROUTES: &str = "the agent sets addresses only, no routes or rules";
pub(super) const HEALTH: &str = "only a node whose apiserver or proxy serves may own the address";
const OWN: &str = "keepalived-specific";

/// What begins a block at the top, or stands there alone.
pub(super) const TOP: &[KeywordRow] = &[
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
pub(super) const GLOBAL: &[KeywordRow] = &[
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
pub(super) const INSTANCE: &[KeywordRow] = &[
    ("state", Automatic, "the owner is elected and keeps the address"),
    ("virtual_router_id", Automatic, "clusters are separated by their keys"),
    ("interface", Automatic, "an address is set on the interface of its network, else on this one"),
    ("advert_int", Automatic, "the owner sends a beat every 50 ms; a dead one is replaced in about 0.2 s"),
    ("authentication", Automatic, KEYS),
    ("auth_*", Automatic, KEYS),
    ("unicast_src_ip", Automatic, GOSSIP),
    ("unicast_peer", Automatic, GOSSIP),
    ("unicast_*", Automatic, GOSSIP),
    ("mcast_src_ip", Automatic, GOSSIP),
    ("check_unicast_src", Automatic, GOSSIP),
    ("track_src_ip", Automatic, HEALTH),
    ("track_process", Automatic, HEALTH),
    ("track_bfd", Automatic, HEALTH),
    ("track_file", NotDone, "there are no weight files; use agent drain to take a node out"),
    ("dont_track_primary", Needless, HEALTH),
    ("garp_*", Automatic, GARP),
    ("gna_*", Automatic, GARP),
    ("promote_secondaries", Automatic, "the address is a /32, without secondaries"),
    ("preempt", Set, "vip.ADDRESS.preempt"),
    ("virtual_routes", NotDone, NO_ROUTES),
    ("virtual_rules", NotDone, NO_ROUTES),
    ("use_vmac*", Different, "the address uses the interface's own MAC and is announced again"),
    ("vmac_*", Different, "the address uses the interface's own MAC and is announced again"),
    ("use_ipvlan", Different, "the address uses the interface's own MAC and is announced again"),
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
pub(super) const INSTANCE_CODE: [&str; 6] =
    ["virtual_ipaddress", "priority", "nopreempt", "preempt_delay", "track_script", "notify"];
