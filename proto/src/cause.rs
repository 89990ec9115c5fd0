//! Why something is in its state: one type that decides, is sent and is counted, and texts that are only
//! shown.
//!
//! A [`Cause`] has a stable wire code, a stable label for JSON and metrics, and one text for people. Code
//! branches on it, and never on a text: [`Reason`] and [`Detail`] can be displayed and nothing else. They
//! can't be compared, searched or parsed, so that rewording one changes no node's behaviour.
//!
//! On the wire a cause is a code and an argument, 16 bits each. A reader that does not know the code keeps
//! both as [`Cause::Other`], so it can pass them on and show them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest detail that nodes send each other, in bytes of ASCII.
pub const MAX_DETAIL: usize = 80;

/// Longest reason, in bytes: a sentence or two.
pub const MAX_REASON: usize = 512;

const HTTP: u16 = 2;
const TLS: u16 = 3;
const RECOVERING: u16 = 4;

/// Causes without an argument, each with its wire code, its label and its text.
macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $cause:ident $code:literal $label:literal $text:literal,)+) => {
        /// Why a check, a backend, a member or a listener is in its state.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Cause {
            /// It answered by HTTP with this status.
            Http(u16),
            /// TLS failed.
            Tls(TlsFault),
            /// It answers well again, but not often enough in a row yet.
            Recovering {
                /// Good answers in a row.
                seen: u8,
                /// As many as are needed.
                of: u8,
            },
            $($(#[doc = $doc])+ $cause,)+
            /// A cause of a later version.
            Other {
                /// Its wire code.
                code: u16,
                /// Its argument.
                argument: u16,
            },
        }

        impl Cause {
            /// Every cause that this version knows, one for each label; those with an argument have an
            /// example.
            pub const ALL: &[Cause] = &[
                Cause::Http(200),
                Cause::Recovering { seen: 1, of: 2 },
                $(Cause::$cause,)+
                Cause::Tls(TlsFault::NameMismatch),
                Cause::Tls(TlsFault::UnknownCa),
                Cause::Tls(TlsFault::Expired),
                Cause::Tls(TlsFault::NotYetValid),
                Cause::Tls(TlsFault::NotForServers),
                Cause::Tls(TlsFault::Unverifiable),
                Cause::Tls(TlsFault::NotTls),
                Cause::Tls(TlsFault::ClientCertificateRequired),
                Cause::Tls(TlsFault::ClientCertificateRejected),
                Cause::Tls(TlsFault::Refused),
                Cause::Tls(TlsFault::Failed),
            ];

            /// Wire code and argument.
            pub fn to_wire(self) -> (u16, u16) {
                match self {
                    Cause::Http(status) => (HTTP, status),
                    Cause::Tls(fault) => (TLS, fault.code()),
                    Cause::Recovering { seen, of } => (RECOVERING, u16::from_be_bytes([seen, of])),
                    $(Cause::$cause => ($code, 0),)+
                    Cause::Other { code, argument } => (code, argument),
                }
            }

            /// The cause of a wire code and its argument. Unknown codes become [`Cause::Other`].
            pub fn from_wire(code: u16, argument: u16) -> Cause {
                match (code, argument) {
                    (HTTP, status) => Cause::Http(status),
                    (TLS, fault) => Cause::Tls(TlsFault::from_code(fault)),
                    (RECOVERING, both) => {
                        let [seen, of] = both.to_be_bytes();
                        Cause::Recovering { seen, of }
                    }
                    $(($code, 0) => Cause::$cause,)+
                    _ => Cause::Other { code, argument },
                }
            }

            /// The stable label in JSON and metrics. There is a small, fixed number of them: arguments are
            /// not part of it.
            pub fn label(self) -> &'static str {
                match self {
                    Cause::Http(_) => "http-status",
                    Cause::Tls(fault) => fault.label(),
                    Cause::Recovering { .. } => "recovering",
                    $(Cause::$cause => $label,)+
                    Cause::Other { .. } => "other",
                }
            }
        }

        impl fmt::Display for Cause {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Cause::Http(status) => write!(f, "HTTP {status}"),
                    Cause::Tls(fault) => write!(f, "TLS: {fault}"),
                    Cause::Recovering { seen, of } => write!(f, "recovering, {seen} of {of} checks"),
                    $(Cause::$cause => f.write_str($text),)+
                    Cause::Other { code, .. } => write!(f, "cause {code} of a later version"),
                }
            }
        }
    };
}

causes! {
    /// It accepts connections, and nothing else was checked.
    Connected 1 "connected" "accepts connections",
    /// Its port is closed: nothing listens there, and the machine is alive.
    PortClosed 5 "port-closed" "connection refused",
    /// It listens on loopback and not on the address that others dial: for them its port is closed.
    LoopbackOnly 6 "loopback-only" "listens on loopback only",
    /// It did not answer in time.
    TimedOut 7 "timed-out" "no answer in time",
    /// It closed the connection without an answer.
    ClosedEarly 8 "closed-early" "connection closed without an answer",
    /// The connection broke.
    ConnectionBroken 9 "connection-broken" "connection broken",
    /// There is no route to it.
    Unreachable 10 "unreachable" "host or network unreachable",
    /// The answer is not HTTP/1.1.
    NotHttp 11 "not-http" "the answer is not HTTP/1.1",
    /// It can't be checked as it is configured.
    BadCheck 12 "bad-check" "the check is misconfigured",
    /// The files of the check's credentials can't be read.
    NoCredentials 13 "no-credentials" "unusable check credentials",
    /// This agent's own proxy listens at the address to check.
    OwnListener 14 "own-listener" "the agent's own proxy listens there",
    /// There is no instance any more.
    NoInstance 15 "no-instance" "no longer on this node",
    /// Its node no longer offers it, or was removed.
    NotOffered 16 "not-offered" "no longer a backend",
    /// It existed before its agent started, and the first check has not finished.
    NotCheckedYet 17 "not-checked-yet" "not checked since its agent started",
    /// TCP connects to it get no answer.
    ConnectUnanswered 20 "connect-unanswered" "connect timed out",
    /// Its node is silent.
    NotHeard 21 "not-heard" "no answer from the node",
    /// Its node is silent, and TCP connects get no answer.
    NodeUnreachable 22 "node-unreachable" "no answer from the node, connect timed out",
    /// Its agent is silent, and TCP connects are answered.
    CheckedDirectly 23 "checked-directly" "no answer from its agent, checked directly",
    /// Its node answers late.
    AnswersLate 24 "answers-late" "answers late",
    /// Known only from the last known good list.
    LastKnownGood 25 "last-known-good" "from the last known good list, no answer yet",
    /// Others hear its node, and this node does not.
    PathCut 26 "path-cut" "others hear it: the path from here is cut",
    /// It accepts connections and answers no TLS hello.
    HelloUnanswered 27 "hello-unanswered" "accepts connections, TLS hello unanswered",
    /// It accepts no new connections, as requested.
    Draining 30 "draining" "draining",
    /// Its agent was stopped.
    AgentStopped 31 "agent-stopped" "agent stopped",
    /// It was requested.
    Requested 32 "requested" "requested",
    /// Something else listens at the address.
    AddressInUse 40 "address-in-use" "address in use",
    /// The address is on none of this node's interfaces.
    AddressUnavailable 41 "address-unavailable" "address not on this node",
    /// The kernel does not permit it.
    NotPermitted 42 "not-permitted" "not permitted",
    /// The process is out of file descriptors.
    NoDescriptors 43 "no-descriptors" "out of file descriptors",
    /// The connection limit is reached.
    ConnectionLimit 44 "connection-limit" "connection limit reached",
    /// The budget for further dials is used up.
    RetryBudget 45 "retry-budget" "too many slow connects at once",
    /// Whether others are on its segment is not known yet.
    SegmentUntested 50 "segment-untested" "segment not tested yet",
    /// No interface of the node is in the network of the address.
    NoInterface 51 "no-interface" "no interface in its network",
    /// Several interfaces are, and none is chosen.
    SeveralInterfaces 52 "several-interfaces" "several interfaces in its network",
    /// The interface is no segment, or others on it do not answer.
    NoSegment 53 "no-segment" "no L2 on its interface",
    /// The kernel is configured to ignore ARP requests for the address.
    ArpIgnored 54 "arp-ignored" "ARP ignored for the address",
    /// A node has the address as its own.
    OwnAddress 55 "own-address" "own address of a node",
    /// The interface is down or has no carrier.
    LinkDown 56 "link-down" "interface down",
    /// The kernel rejects the address.
    KernelRefused 57 "kernel-refused" "address rejected by the kernel",
    /// The service behind the address is not served here.
    NotServed 58 "not-served" "service not served on this node",
    /// No node serves the service behind the address.
    NoBackend 59 "no-backend" "no healthy backend",
    /// The agent has just started and listens first.
    Starting 60 "starting" "agent just started",
    /// The node is no candidate, or does not know yet that it is.
    NotCandidate 61 "not-candidate" "not a candidate",
    /// There are no candidates.
    NoCandidates 62 "no-candidates" "no candidates",
    /// It was lost too often, and others are preferred for a while.
    HeldBack 63 "held-back" "held back after repeated failures",
    /// A MAC of no member answers for the address.
    Stranger 64 "stranger" "used by a machine outside of the cluster",
    /// The node is in a state of a later version.
    UnknownState 65 "unknown-state" "state of a later version",
    /// Another machine has the node's identity.
    IdentityInUse 66 "identity-in-use" "its identity is in use elsewhere",
    /// The node does not listen where clients of the virtual IP connect.
    NotListening 67 "not-listening" "not listening for the address",
    /// The node's own check program is against it.
    Vetoed 68 "vetoed" "refused by its check program",
}

impl Cause {
    /// Nothing listens at the address, and the machine's kernel confirms it. It also ends the connections of
    /// a dead process.
    pub fn is_port_closed(self) -> bool {
        matches!(self, Cause::PortClosed | Cause::LoopbackOnly)
    }

    /// The status code, if it was answered by HTTP.
    pub fn http_status(self) -> Option<u16> {
        match self {
            Cause::Http(status) => Some(status),
            _ => None,
        }
    }

    /// The text for people, with the detail.
    pub fn with(self, detail: &Detail) -> Reason {
        if detail.is_empty() { Reason::new(self) } else { Reason::new(format_args!("{self}: {detail}")) }
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Reason {
        Reason::new(cause)
    }
}

/// JSON for people and programs has the label; agents send code and argument.
impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(self.label())
        } else {
            self.to_wire().serialize(serializer)
        }
    }
}

/// Only from the label: arguments are lost in JSON.
impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cause, D::Error> {
        if deserializer.is_human_readable() {
            let label = String::deserialize(deserializer)?;
            let known = Cause::ALL.iter().copied().find(|cause| cause.label() == label);
            Ok(known.unwrap_or(Cause::Other { code: 0, argument: 0 }))
        } else {
            let (code, argument) = Deserialize::deserialize(deserializer)?;
            Ok(Cause::from_wire(code, argument))
        }
    }
}

/// How TLS failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsFault {
    /// The certificate is for another name.
    NameMismatch,
    /// The certificate is not signed by the CA that it is verified against.
    UnknownCa,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is not one of a server.
    NotForServers,
    /// The certificate can't be verified.
    Unverifiable,
    /// The answer is not TLS.
    NotTls,
    /// The server asks for a client certificate, and there is none.
    ClientCertificateRequired,
    /// The server does not accept the client certificate.
    ClientCertificateRejected,
    /// The server ended the handshake.
    Refused,
    /// The handshake failed.
    Failed,
    /// A fault of a later version, by its code.
    Other(u16),
}

impl TlsFault {
    /// The stable code, which is the argument of [`Cause::Tls`] on the wire.
    pub fn code(self) -> u16 {
        match self {
            TlsFault::Failed => 0,
            TlsFault::NameMismatch => 1,
            TlsFault::UnknownCa => 2,
            TlsFault::Expired => 3,
            TlsFault::NotYetValid => 4,
            TlsFault::NotForServers => 5,
            TlsFault::Unverifiable => 6,
            TlsFault::NotTls => 7,
            TlsFault::ClientCertificateRequired => 8,
            TlsFault::ClientCertificateRejected => 9,
            TlsFault::Refused => 10,
            TlsFault::Other(code) => code,
        }
    }

    /// The fault of this code.
    pub fn from_code(code: u16) -> TlsFault {
        match code {
            0 => TlsFault::Failed,
            1 => TlsFault::NameMismatch,
            2 => TlsFault::UnknownCa,
            3 => TlsFault::Expired,
            4 => TlsFault::NotYetValid,
            5 => TlsFault::NotForServers,
            6 => TlsFault::Unverifiable,
            7 => TlsFault::NotTls,
            8 => TlsFault::ClientCertificateRequired,
            9 => TlsFault::ClientCertificateRejected,
            10 => TlsFault::Refused,
            other => TlsFault::Other(other),
        }
    }

    fn label(self) -> &'static str {
        match self {
            TlsFault::NameMismatch => "tls-name-mismatch",
            TlsFault::UnknownCa => "tls-unknown-ca",
            TlsFault::Expired => "tls-expired",
            TlsFault::NotYetValid => "tls-not-yet-valid",
            TlsFault::NotForServers => "tls-not-for-servers",
            TlsFault::Unverifiable => "tls-unverifiable",
            TlsFault::NotTls => "tls-not-tls",
            TlsFault::ClientCertificateRequired => "tls-client-certificate-required",
            TlsFault::ClientCertificateRejected => "tls-client-certificate-rejected",
            TlsFault::Refused => "tls-refused",
            TlsFault::Failed => "tls-failed",
            TlsFault::Other(_) => "tls-other",
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsFault::NameMismatch => "certificate for another name",
            TlsFault::UnknownCa => "certificate not signed by the CA",
            TlsFault::Expired => "certificate has expired",
            TlsFault::NotYetValid => "certificate not valid yet",
            TlsFault::NotForServers => "not a server certificate",
            TlsFault::Unverifiable => "certificate can't be verified",
            TlsFault::NotTls => "the answer is not TLS",
            TlsFault::ClientCertificateRequired => "client certificate required",
            TlsFault::ClientCertificateRejected => "client certificate not accepted",
            TlsFault::Refused => "refused by the server",
            TlsFault::Failed => "handshake failed",
            TlsFault::Other(code) => return write!(f, "fault {code} of a later version"),
        })
    }
}

/// A text for people: it displays, and nothing else. It has no comparison and no access as text, so that
/// nothing can branch on it.
#[derive(Clone, Default)]
pub struct Reason(Box<str>);

impl Reason {
    /// A reason with this text: cut at [`MAX_REASON`] bytes, without control characters, which could command
    /// a terminal or start a new line in a log.
    pub fn new(text: impl fmt::Display) -> Reason {
        let mut text = text.to_string();
        text.truncate(text.floor_char_boundary(MAX_REASON));
        if text.contains(char::is_control) {
            text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        }
        Reason(text.into())
    }

    /// The same, cut at so many bytes.
    #[must_use]
    pub fn at_most(self, bytes: usize) -> Reason {
        let mut text = String::from(self.0);
        text.truncate(text.floor_char_boundary(bytes));
        Reason(text.into())
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        String::deserialize(deserializer).map(Reason::new)
    }
}

/// A short text beyond a cause, with a number that its author raises when the text changes: two details are
/// equal when their numbers are, so that a change is noticed without comparing texts.
#[derive(Debug, Clone, Default)]
pub struct Detail {
    revision: u16,
    text: Reason,
}

impl Detail {
    /// A detail of this text: at most [`MAX_DETAIL`] bytes of printable ASCII.
    pub fn new(revision: u16, text: &str) -> Detail {
        Detail { revision, text: Reason(short_text(text).into()) }
    }

    /// Its number.
    pub fn revision(&self) -> u16 {
        self.revision
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl PartialEq for Detail {
    fn eq(&self, other: &Detail) -> bool {
        self.revision == other.revision
    }
}

impl Eq for Detail {}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// Why something failed: the cause that decides, and a detail for people. Two are equal when their causes
/// are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// Why.
    pub cause: Cause,
    /// Details; may be empty.
    pub detail: Reason,
}

impl Fault {
    /// A fault with a detail.
    pub fn new(cause: Cause, detail: impl fmt::Display) -> Fault {
        Fault { cause, detail: Reason::new(detail) }
    }
}

impl From<Cause> for Fault {
    fn from(cause: Cause) -> Fault {
        Fault { cause, detail: Reason::default() }
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Fault) -> bool {
        self.cause == other.cause
    }
}

impl Eq for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { cause, detail } = self;
        if detail.is_empty() { write!(f, "{cause}") } else { write!(f, "{cause}: {detail}") }
    }
}

/// A text as nodes may send it to each other: printable ASCII, at most [`MAX_DETAIL`] bytes. A longer one
/// ends with a whole word and dots.
pub fn short_text(text: &str) -> String {
    const DOTS: &str = "...";
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let mut short: String = text.chars().map(plain).take(MAX_DETAIL + 1).collect();
    if short.len() > MAX_DETAIL {
        short.truncate(MAX_DETAIL - DOTS.len());
        // A text without spaces is cut where it has to be.
        let end = short.rfind(' ').filter(|end| *end > MAX_DETAIL / 2).unwrap_or(short.len());
        short.truncate(end);
        short += DOTS;
    }
    short
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_cause_reads_back_and_has_a_code_label_and_text_of_its_own() {
        let (mut codes, mut labels, mut texts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for cause in Cause::ALL {
            let (code, argument) = cause.to_wire();
            assert_eq!(Cause::from_wire(code, argument), *cause);
            let code = if matches!(cause, Cause::Tls(_)) { (code, argument) } else { (code, 0) };
            assert!(codes.insert(code), "{cause:?} has the code of another");
            assert!(labels.insert(cause.label()), "{cause:?} has the label of another");
            assert!(texts.insert(cause.to_string()), "{cause:?} has the text of another");
            let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(cause.label().chars().all(kebab), "{}", cause.label());
        }
    }

    /// Codes of released versions never change: this list is only added to.
    #[test]
    fn codes_and_labels_never_change() {
        let table: Vec<String> = Cause::ALL
            .iter()
            .map(|cause| {
                let (code, argument) = cause.to_wire();
                format!("{code} {argument} {}", cause.label())
            })
            .collect();
        assert_eq!(table.join("\n"), include_str!("../tests/golden/causes.txt").trim_end());
    }

    /// The documented reference for people and dashboards.
    #[test]
    fn the_reference_lists_every_cause() {
        let reference = include_str!("../../agent/REFERENCE.md");
        for cause in Cause::ALL {
            let row = match cause {
                Cause::Http(_) | Cause::Recovering { .. } => format!("| `{}` | ", cause.label()),
                _ => format!("| `{}` | {cause} |", cause.label()),
            };
            assert!(reference.contains(&row), "{row}");
        }
    }

    #[test]
    fn json_has_the_label_and_the_wire_the_code_with_its_argument() {
        let cause = Cause::Http(503);
        assert_eq!(serde_json::to_string(&cause).unwrap(), "\"http-status\"");
        assert_eq!(serde_json::from_str::<Cause>("\"port-closed\"").unwrap(), Cause::PortClosed);
        let bytes = rmp_serde::to_vec_named(&cause).unwrap();
        assert_eq!(crate::msgpack::from_slice::<Cause>(&bytes).unwrap(), cause);
    }

    #[test]
    fn a_detail_is_compared_by_its_number_alone() {
        assert_eq!(Detail::new(3, "etcd failed"), Detail::new(3, "reworded"));
        assert_ne!(Detail::new(3, "etcd failed"), Detail::new(4, "etcd failed"));
        let reason = Cause::Http(500).with(&Detail::new(1, "etcd failed"));
        assert_eq!(reason.to_string(), "HTTP 500: etcd failed");
        assert_eq!(Cause::Draining.with(&Detail::default()).to_string(), "draining");
    }

    #[test]
    fn a_long_detail_ends_with_a_whole_word_and_says_so() {
        let short = short_text(&"word ".repeat(30));
        assert!(short.ends_with("word...") && short.len() <= MAX_DETAIL, "{short}");
        assert_eq!(short_text(&"x".repeat(200)).len(), MAX_DETAIL);
        assert_eq!(short_text("as \u{1b}[31m it is"), "as ?[31m it is");
        let whole = "y".repeat(MAX_DETAIL);
        assert_eq!(short_text(&whole), whole);
    }

    #[test]
    fn a_reason_can_not_command_a_terminal_and_has_a_bound() {
        assert_eq!(Reason::new("\x1b[2J\ngone").to_string(), " [2J gone");
        assert!(Reason::new("ü".repeat(MAX_REASON)).to_string().len() <= MAX_REASON);
    }

    proptest! {
        #[test]
        fn causes_of_a_later_version_are_kept_and_forwarded(code: u16, argument: u16) {
            let cause = Cause::from_wire(code, argument);
            prop_assert_eq!(cause.to_wire(), (code, argument));
            prop_assert!(!cause.to_string().is_empty() && !cause.label().is_empty());
        }
    }
}
