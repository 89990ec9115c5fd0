//! The addresses of `virtual_ipaddress`.

use std::net::IpAddr;

use super::super::notes::FileReport;
use super::super::notes::LineOutcome::{Automatic, Needless, NotDone, Set, Wrong};
use super::tree::Node;
use crate::config::{BadValue, check_interface};
use crate::settings::check_vip;

/// Prefix of the network that an address of neither length is in.
const USUAL_PREFIX: (u8, u8) = (24, 64);

/// A virtual IP as it was.
#[derive(Debug)]
pub(in super::super) struct Vip {
    pub(in super::super) address: IpAddr,
    /// The length of its network's prefix, as far as it is known.
    prefix: Option<u8>,
    /// The interface that its line names, else that of its block.
    pub(in super::super) interface: Option<String>,
    /// Its line names the interface.
    pub(in super::super) on_its_own: bool,
    pub(in super::super) label: Option<String>,
    /// Of this node, or of the nodes that the file names.
    pub(in super::super) priorities: Vec<(Option<String>, u8)>,
    /// How long a better one waits; none: for ever.
    pub(in super::super) preempt: Option<String>,
    /// The program that decides too whether this node owns it, and its line.
    pub(in super::super) check: Option<(String, usize)>,
    /// The block that it stands in.
    pub(in super::super) instance: String,
    pub(in super::super) line: usize,
}

impl Vip {
    /// Whether an address lies in its network, as far as that is known.
    pub(in super::super) fn is_beside(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let length = u32::from(self.prefix.unwrap_or(USUAL_PREFIX.0));
                let shift = 32_u32.saturating_sub(length);
                u32::from(a).checked_shr(shift) == u32::from(b).checked_shr(shift)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let length = u32::from(self.prefix.unwrap_or(USUAL_PREFIX.1));
                let shift = 128_u32.saturating_sub(length);
                u128::from(a).checked_shr(shift) == u128::from(b).checked_shr(shift)
            }
            _ => false,
        }
    }
}

/// `10.91.91.50/24 dev vpn0 label vpn0:0`, in a block of this name and interface.
pub(super) fn read(
    node: &Node,
    (instance, of_instance): (&str, Option<&str>),
    account: &mut FileReport,
) -> Option<Vip> {
    let (bare, length) = node.word(0).split_once('/').map_or((node.word(0), None), |(a, b)| (a, Some(b)));
    if bare.parse::<std::net::Ipv6Addr>().is_ok_and(|ip| ip.is_unicast_link_local()) {
        let reason = "VRRP needs it for its own messages, and the agents do not use VRRP";
        account.add(node.line, &node.shown(), Needless, reason);
        return None;
    }
    let address = match check_vip(node.word(0)) {
        Ok(address) => address,
        Err(reason) => {
            account.add(node.line, &node.shown(), Wrong, reason.to_string());
            return None;
        }
    };
    let label = node.after("label").map(str::to_owned);
    let named = node.after("dev");
    let mut interface = named.or(of_instance).map(str::to_owned);
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
    account.add(node.line, &node.shown(), Set, "see the commands");
    parameters(node, account);
    let whole = if address.is_ipv4() { 32 } else { 128 };
    Some(Vip {
        address,
        prefix: length.and_then(|length| length.parse().ok()).filter(|length| *length < whole),
        on_its_own: interface.is_some() && (named.is_some() || label.is_some()),
        interface,
        label,
        priorities: Vec::new(),
        preempt: None,
        check: None,
        instance: instance.to_owned(),
        line: node.line,
    })
}

/// What else may stand behind an address.
fn parameters(node: &Node, account: &mut FileReport) {
    let mut at = 1;
    while at < node.words.len() {
        let word = node.word(at);
        let (more, told) = match word {
            "dev" | "label" => (1, None),
            "brd" | "broadcast" | "scope" => {
                (1, Some((Needless, "the address is a /32, in the global scope")))
            }
            "preferred_lft" => (1, Some((Automatic, "the kernel removes the address if the agent dies"))),
            "no_track" | "track_group" => (0, Some((Automatic, "the address is watched, and put back"))),
            "nodad" | "home" | "-nodad" | "use_vmac" | "mngtmpaddr" | "noprefixroute" | "autojoin" => {
                (0, Some((Needless, "the agent sets such flags itself")))
            }
            "peer" => (1, Some((NotDone, "addresses have no peer"))),
            _ => (0, Some((NotDone, "there is nothing like it"))),
        };
        if let Some((verdict, reason)) = told {
            let shown: Vec<&str> = node.words.iter().skip(at).take(1 + more).map(String::as_str).collect();
            account.add(node.line, &shown.join(" "), verdict, reason);
        }
        at += 1 + more;
    }
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
