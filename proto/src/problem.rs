//! What a node finds wrong with itself: told apart by a code and what it is about, shown as text.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cause::Reason;

/// Codes, each with its stable label.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident $label:literal,)+) => {
        /// What kind of problem it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ProblemCode {
            $($(#[doc = $doc])+ $code,)+
            /// A code of a later version.
            Other,
        }

        impl ProblemCode {
            /// Every code that this version knows.
            pub const ALL: &[ProblemCode] = &[$(ProblemCode::$code),+];

            /// The stable label, as JSON, events and metrics have it.
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
    /// The interface of the mesh has no address that can be used.
    NoAddress "no-address",
    /// This node can't own virtual IPs; about nothing.
    VipUnable "vip-unable",
    /// A part of the agent failed and was started again; about the place in the code.
    PartFailed "part-failed",
    /// An apiserver runs on a node that was admitted as a worker; about its name.
    MasterNotPromoted "master-not-promoted",
    /// A worker goes on as a master, which has not heard of its demotion or does not accept it; about its name.
    SecondMaster "second-master",
    /// Two members have one name; about the id of one of them.
    NameTwice "name-twice",
    /// A state file can't be read or written; about the file.
    StateFile "state-file",
    /// What a member says of itself is not understood; about its id.
    RecordNotUnderstood "record-not-understood",
    /// A member says what is not its to say; about its name and what that is.
    NotAuthorized "not-authorized",
    /// A member offers a service at an address that is not proven to be its own; about its name and service.
    AddressUnproven "address-unproven",
    /// Gossip failed and was started again.
    GossipFailed "gossip-failed",
    /// Gossip of a member was refused; about its name.
    GossipRefused "gossip-refused",
    /// Another machine speaks with this node's identity.
    IdentityInUse "identity-in-use",
    /// A setting of the cluster does not count here; about its key.
    SettingIgnored "setting-ignored",
    /// The process may have too few files and connections open.
    FewDescriptors "few-descriptors",
    /// Events are not kept on disk.
    EventsDisk "events-disk",
    /// A program for events does not run; about its path.
    Hook "hook",
    /// The webhook for events does not take them.
    Webhook "webhook",
    /// Events were not handed on, since who takes them is too slow; about who that is.
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
    /// What kind of problem it is.
    pub code: ProblemCode,
    /// What it is about, as a file or a node's id; empty where there can be only one.
    pub subject: String,
    /// What is wrong, for people.
    pub detail: Reason,
    /// The command that mends it; empty where there is none.
    pub fix: Reason,
}

impl Problem {
    /// A problem about nothing else than its code says.
    pub fn new(code: ProblemCode, detail: impl fmt::Display) -> Problem {
        Problem { code, subject: String::new(), detail: Reason::new(detail), fix: Reason::default() }
    }

    /// With what it is about.
    #[must_use]
    pub fn about(self, subject: impl Into<String>) -> Problem {
        Problem { subject: subject.into(), ..self }
    }

    /// With the command that mends it.
    #[must_use]
    pub fn fix(self, fix: impl fmt::Display) -> Problem {
        Problem { fix: Reason::new(fix), ..self }
    }

    /// What tells it from others: of two with the same key, the later one is the same problem again.
    pub fn key(&self) -> (ProblemCode, &str) {
        (self.code, &self.subject)
    }

    /// The key as events name it: `hook//etc/agent/notify`, or the label alone.
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
    fn a_problem_shows_what_is_wrong_and_what_mends_it() {
        let problem =
            Problem::new(ProblemCode::Hook, "it is not run").about("/etc/x").fix("chmod 755 /etc/x");
        assert_eq!(problem.to_string(), "it is not run; chmod 755 /etc/x");
        assert_eq!(problem.name(), "hook//etc/x");
        assert_eq!(Problem::new(ProblemCode::Removed, "x").name(), "removed");
    }
}
