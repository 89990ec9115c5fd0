//! Why a setting can't be what someone wants it to be.

use std::net::IpAddr;

use super::{MAX_VALUE, MAX_VIPS};
use crate::config::BadValue;
use crate::node::{BadName, Name};
use crate::service::BadServiceName;

/// Why a key or a value of a setting is none, and what would be right. Texts in it are cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// It is no value of its kind.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// It is no name of a node.
    #[error(transparent)]
    Name(#[from] BadName),
    /// It is no name of a service.
    #[error(transparent)]
    Service(#[from] BadServiceName),
    /// There is nothing of that kind.
    #[error("there is no {what} \"{text}\"{} there are {}", meant(nearest.as_deref()), known.join(", "))]
    Unknown {
        /// Of which kind.
        what: &'static str,
        /// What was written.
        text: String,
        /// What was probably meant.
        nearest: Option<String>,
        /// What there is.
        known: &'static [&'static str],
    },
    /// The key is understood, and this version has no such setting.
    #[error("there is no setting \"{0}\"")]
    NoSuch(String),
    /// The key ends too early.
    #[error("{what} is missing; write {example}")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// How to write it.
        example: String,
    },
    /// What is set for a name would hold for each node that has it.
    #[error(
        "two members are called {0}, so the setting would apply to both; remove one of them and \
         let it join again with another name"
    )]
    SharedName(Name),
    /// Weights belong to nodes.
    #[error("weights are set per node; use weight.NODE")]
    WeightOfService,
    /// kube-api is no service that anyone else may offer.
    #[error("only masters offer kube-api; see: agent promote")]
    KubeApiOffer,
    /// It differs from node to node.
    #[error("it differs between nodes; set it in each node's agent.toml")]
    OwnFile,
    /// What follows a VIP's `/` is no length.
    #[error("\"{0}\" has no prefix length after its /")]
    Prefix(String),
    /// It is an address that each node has for itself.
    #[error("{0} cannot be shared between nodes; use an unused address of their network")]
    NotShared(IpAddr),
    /// No node may have it as its own beside all others.
    #[error("{address} is {what}; use an unused address outside of all your networks, such as 10.91.91.50")]
    NotNodeLocal {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
    /// A node-local address is one for each family.
    #[error("more than one IPv4 or IPv6 address; a node has one of each family")]
    TwoOfAFamily,
    /// An apiserver may listen on all addresses at this port.
    #[error("{0} is a port of Kubernetes' own on masters; choose another, such as 16443")]
    ApiserverPort(u16),
    /// It is no way to keep the endpoints of the Kubernetes service.
    #[error("\"{0}\" is not off, watch or restore")]
    NotAMode(String),
    /// A list of VIPs is empty.
    #[error("no address; write one such as 10.0.0.50, or unset it")]
    NoAddress,
    /// There are more VIPs than there may be; how many.
    #[error("{0} addresses; the limit is {MAX_VIPS}")]
    TooManyAddresses(usize),
    /// It is of an address that is none of the VIPs.
    #[error("{0} is not among the addresses of vip; add it there")]
    NotAVip(IpAddr),
    /// It is not since when a node drains.
    #[error("not a time in milliseconds since 1970; run: agent drain NODE")]
    NotATime,
    /// It is no number within bounds.
    #[error("\"{text}\" is not a whole number from {least} to {most}")]
    Number {
        /// What was written.
        text: String,
        /// The least.
        least: u16,
        /// The most.
        most: u16,
    },
    /// It is no time for preempt, which may be off too.
    #[error("{0}, or off")]
    Preempt(BadValue),
    /// A list of candidates is empty.
    #[error("empty; use masters, workers, all, or node names")]
    Nobody,
    /// It is no label of an address.
    #[error("\"{0}\" is not a label of 1 to 15 characters, such as wg0:0")]
    Label(String),
    /// The value is too long; its bytes.
    #[error("the value has {0} bytes; the limit is {MAX_VALUE}")]
    TooLong(usize),
    /// No member is called so.
    #[error(
        "there is no member \"{text}\"{} the members are {}{}",
        meant(nearest.as_deref()),
        some.join(", "),
        if *more { "and more" } else { "" }
    )]
    NoMember {
        /// What was written.
        text: String,
        /// Who was probably meant.
        nearest: Option<String>,
        /// As many names as fit in a line.
        some: Vec<String>,
        /// There are more.
        more: bool,
    },
    /// Several members are called so.
    #[error("several members are called \"{text}\"; use an id: {}", ids.join(", "))]
    SeveralMembers {
        /// What was written.
        text: String,
        /// Theirs.
        ids: Vec<String>,
    },
    /// What should be unset is not set.
    #[error("not set{}", nearest.as_ref().map_or(String::new(), |near| format!(", did you mean {near}?")))]
    NotSet {
        /// What was probably meant.
        nearest: Option<String>,
    },
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(|| ";".to_owned(), |near| format!(", did you mean {near}?"))
}
