//! Which nodes a setting names: by their role, or by name.

use std::collections::BTreeSet;

use super::BadSetting;
use super::list_items;
use crate::node::{Name, Role};

/// The nodes that a setting is about: who offers a service, who listens, who may own a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeSelector {
    /// Nodes that were admitted as masters.
    Masters,
    /// Nodes that were admitted as workers.
    Workers,
    /// Every node.
    All,
    /// These.
    Names(BTreeSet<Name>),
}

impl NodeSelector {
    /// The words that are no names of nodes.
    pub(super) const WORDS: [&str; 3] = ["masters", "workers", "all"];

    pub(super) fn parse(value: &str) -> Result<NodeSelector, BadSetting> {
        Ok(match value {
            "masters" => NodeSelector::Masters,
            "workers" => NodeSelector::Workers,
            "all" => NodeSelector::All,
            _ => NodeSelector::Names(names(value)?),
        })
    }

    /// Whether a node of this name and role is among them.
    pub fn includes(&self, name: &Name, role: Role) -> bool {
        match self {
            NodeSelector::Masters => role == Role::Master,
            NodeSelector::Workers => role == Role::Worker,
            NodeSelector::All => true,
            NodeSelector::Names(names) => names.contains(name),
        }
    }
}

/// A list of names that is not empty.
pub(super) fn names(value: &str) -> Result<BTreeSet<Name>, BadSetting> {
    let all: BTreeSet<Name> =
        list_items(value).map(|word| word.parse().map_err(BadSetting::Name)).collect::<Result<_, _>>()?;
    if all.is_empty() { Err(BadSetting::Nobody) } else { Ok(all) }
}
