//! Problems that a node finds with itself: identified by a code and a subject, shown as text.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cause::Reason;

/// Codes, each with its stable label.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident $label:literal,)+) => {
        /// The kind of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ProblemCode {
            $($(#[doc = $doc])+ $code,)+
            /// A code of a later version.
            Other,
        }

        impl ProblemCode {
            /// Every code that this version knows.
            pub const ALL: &[ProblemCode] = &[$(ProblemCode::$code),+];

            /// The stable label in JSON, events and metrics.
            pub fn label(self) -> &'static str {
                match self {
                    $(ProblemCode::$code => $label,)+
                    ProblemCode::Other => "other",
                }
            }
        }
    };
}

codes! {
    /// This node was removed from the cluster.
    Removed "removed",
    /// The mesh's interface has no usable address.
    NoAddress "no-address",
    /// This node can't own virtual IPs; no subject.
    VipUnable "vip-unable",
    /// A machine outside of the cluster answers for a virtual IP; subject: the address.
    VipStranger "vip-stranger",
    /// This node does not have the node-local address, or something is against it; subject: the address.
    NodeLocal "node-local",
    /// Pods are not led to the node-local address, or masters cannot see whether they are; no subject.
    KubernetesEndpoints "kubernetes-endpoints",
    /// A part of the agent failed and was restarted; subject: the location in the code.
    PartFailed "part-failed",
    /// An apiserver runs on a node that was admitted as a worker; subject: its name.
    MasterNotPromoted "master-not-promoted",
    /// A worker still acts as a master, since it has missed or refuses its demotion; subject: its name.
    SecondMaster "second-master",
    /// Two members have the same name; subject: the id of one of them.
    NameTwice "name-twice",
    /// A state file can't be read; subject: the file.
    StateFile "state-file",
    /// A state file can't be written; subject: the file.
    StateNotSaved "state-not-saved",
    /// A member's record is not understood; subject: its id.
    RecordNotUnderstood "record-not-understood",
    /// A member claims something that it is not authorized for; subject: its name and the claim.
    NotAuthorized "not-authorized",
    /// No node offers a service; subject: the service.
    NotOffered "not-offered",
    /// A member offers a service at an unproven address; subject: its name and the service.
    AddressUnproven "address-unproven",
    /// A member offers a service at the address of another member; subject: its name and the service.
    AddressTaken "address-taken",
    /// Gossip failed and was restarted.
    GossipFailed "gossip-failed",
    /// Gossip of a member was refused; subject: its name.
    GossipRefused "gossip-refused",
    /// Another machine uses this node's identity.
    IdentityInUse "identity-in-use",
    /// A setting of the cluster or of the node's own file has no effect here; subject: its key.
    SettingIgnored "setting-ignored",
    /// The limit of open files and connections is low.
    FewDescriptors "few-descriptors",
    /// Events are not kept on disk.
    EventsDisk "events-disk",
    /// An event program does not run; subject: its path.
    Hook "hook",
    /// The webhook does not accept events.
    Webhook "webhook",
    /// Events were dropped because a sink is too slow; subject: the sink.
    EventsDropped "events-dropped",
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

impl Serialize for ProblemCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

impl<'de> Deserialize<'de> for ProblemCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ProblemCode, D::Error> {
        let label = String::deserialize(deserializer)?;
        let known = ProblemCode::ALL.iter().copied().find(|code| code.label() == label);
        Ok(known.unwrap_or(ProblemCode::Other))
    }
}

/// Something that is wrong with this node itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// The kind of problem.
    pub code: ProblemCode,
    /// Its subject, such as a file or a node's id; empty if there can be only one.
    pub subject: String,
    /// What is wrong, for people.
    pub detail: Reason,
    /// The command that resolves it; empty if there is none.
    pub fix: Reason,
}

impl Problem {
    /// A problem without a subject.
    pub fn new(code: ProblemCode, detail: impl fmt::Display) -> Problem {
        Problem { code, subject: String::new(), detail: Reason::new(detail), fix: Reason::default() }
    }

    /// With a subject.
    #[must_use]
    pub fn about(self, subject: impl Into<String>) -> Problem {
        Problem { subject: subject.into(), ..self }
    }

    /// With the command that resolves it.
    #[must_use]
    pub fn fix(self, fix: impl fmt::Display) -> Problem {
        Problem { fix: Reason::new(fix), ..self }
    }

    /// Its identity: of two with the same key, the later one is the same problem again.
    pub fn key(&self) -> (ProblemCode, &str) {
        (self.code, &self.subject)
    }

    /// The key in events: `hook//etc/agent/notify`, or the label alone.
    pub fn name(&self) -> String {
        match self.subject.as_str() {
            "" => self.code.label().to_owned(),
            subject => format!("{}/{subject}", self.code),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { detail, fix, .. } = self;
        if fix.is_empty() { write!(f, "{detail}") } else { write!(f, "{detail}; {fix}") }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_read_back_and_those_of_later_versions_are_other() {
        let labels: BTreeSet<&str> = ProblemCode::ALL.iter().map(|code| code.label()).collect();
        assert_eq!(labels.len(), ProblemCode::ALL.len());
        for code in ProblemCode::ALL {
            let text = serde_json::to_string(code).unwrap();
            assert_eq!(serde_json::from_str::<ProblemCode>(&text).unwrap(), *code);
        }
        assert_eq!(serde_json::from_str::<ProblemCode>("\"of-next-year\"").unwrap(), ProblemCode::Other);
    }

    #[test]
    fn the_reference_lists_every_code() {
        let reference = include_str!("../../agent/REFERENCE.md");
        let missing = ProblemCode::ALL.iter().find(|code| !reference.contains(&format!("`{code}`")));
        assert_eq!(missing, None);
    }

    #[test]
    fn a_problem_shows_what_is_wrong_and_how_to_fix_it() {
        let problem =
            Problem::new(ProblemCode::Hook, "it is not run").about("/etc/x").fix("chmod 755 /etc/x");
        assert_eq!(problem.to_string(), "it is not run; chmod 755 /etc/x");
        assert_eq!(problem.name(), "hook//etc/x");
        assert_eq!(Problem::new(ProblemCode::Removed, "x").name(), "removed");
    }
}
