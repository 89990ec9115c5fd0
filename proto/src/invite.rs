//! Joining: invites, codes to approve, and the window in which a cluster is open.
//!
//! An invite is one line: `agent1` and base32 of the issuer's key hash, an invite id, a secret and up to four
//! addresses, with a checksum against typos. Only its issuer redeems it and keeps the ledger; so uses and
//! time to live are exact.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use crate::node::{Name, NodeId, PublicKey, Role};
use crate::time::UnixMs;

/// Prefix of every invite.
pub const PREFIX: &str = "agent1";

/// Most addresses in an invite: more would make the line longer than two rows of a terminal.
pub const MAX_ADDRESSES: usize = 4;

/// Default time to live of an invite.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// How long a node without an invite waits for approval.
pub const APPROVAL_TTL: Duration = Duration::from_secs(15 * 60);

/// Most nodes that wait for approval: what a person can compare, and no room for a flood.
const MAX_WAITING: usize = 16;

/// Most of those from one address, so that one machine can't take all slots.
const MAX_WAITING_EACH: usize = 4;

/// What counts as one address: an IPv6 host can use a whole /64 (RFC 4291).
fn place_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64)).into(),
    }
}

/// Uses of the invite for masters that `agent init` prints: the most members of an etcd cluster, and one to
/// spare.
pub const MASTER_USES: u32 = 8;

/// Uses of the invite for workers that `agent init` prints.
pub const WORKER_USES: u32 = 1000;

/// A key hash in its printed form: `agent join HOST --key PIN`.
pub fn pin_text(pin: &IssuerPin) -> String {
    BASE32_NOPAD.encode(pin).to_ascii_lowercase()
}

/// A text that is no key hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key; \"agent open\" prints one of 26 letters and digits")]
pub struct BadPin;

/// Reads what [`pin_text`] wrote.
///
/// # Errors
/// It is no key hash.
pub fn parse_pin(text: &str) -> Result<IssuerPin, BadPin> {
    let bytes = BASE32_NOPAD.decode(text.trim().to_ascii_uppercase().as_bytes()).ok();
    let pin = bytes.and_then(|bytes| IssuerPin::try_from(bytes).ok());
    pin.ok_or(BadPin)
}

/// Most invites that a node remembers; the oldest expired ones are dropped first.
const MAX_INVITES: usize = 256;

/// Length of the pin: half of a SHA-256, still infeasible to forge a key for.
const PIN_LEN: usize = 16;
const CHECKSUM_LEN: usize = 4;

/// Identifies an invite in its issuer's ledger.
pub type InviteId = [u8; 4];

/// The secret of an invite.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteSecret(pub [u8; 16]);

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The half of the issuer's key hash in an invite.
pub type IssuerPin = [u8; PIN_LEN];

/// The pin of a key.
pub fn pin_of(key: &PublicKey) -> IssuerPin {
    let mut pin = [0; PIN_LEN];
    pin.copy_from_slice(&key.hash()[..PIN_LEN]);
    pin
}

/// One line that admits a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Pin of the key that must answer.
    pub issuer: IssuerPin,
    /// Its id in the issuer's ledger.
    pub id: InviteId,
    /// Proves that the line was received.
    pub secret: InviteSecret,
    /// Addresses of the issuer, best first.
    pub addresses: Vec<SocketAddr>,
}

/// A line that is no invite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInvite {
    /// It does not start like one.
    #[error("it does not begin with {PREFIX}")]
    Prefix,
    /// A character was lost or changed.
    #[error("it is incomplete: its checksum does not match")]
    Checksum,
    /// The checksum is right and the content is not: a later version wrote it.
    #[error("it was created by a later version; upgrade this node")]
    Content,
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&self.issuer);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.secret.0);
        for address in self.addresses.iter().take(MAX_ADDRESSES) {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&digest.as_ref()[..CHECKSUM_LEN]);
    sum
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BadInvite> {
    let (front, rest) = bytes.split_first_chunk::<N>().ok_or(BadInvite::Content)?;
    *bytes = rest;
    Ok(*front)
}

impl FromStr for Invite {
    type Err = BadInvite;

    fn from_str(text: &str) -> Result<Invite, BadInvite> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(BadInvite::Prefix)?;
        let bytes =
            BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| BadInvite::Checksum)?;
        let (mut bytes, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(BadInvite::Checksum)?;
        if checksum(bytes) != *sum {
            return Err(BadInvite::Checksum);
        }
        let issuer = take(&mut bytes)?;
        let id = take(&mut bytes)?;
        let secret = InviteSecret(take(&mut bytes)?);
        let mut addresses = Vec::new();
        while !bytes.is_empty() {
            let ip = match take::<1>(&mut bytes)? {
                [4] => IpAddr::V4(Ipv4Addr::from(take::<4>(&mut bytes)?)),
                [6] => IpAddr::V6(Ipv6Addr::from(take::<16>(&mut bytes)?)),
                _ => return Err(BadInvite::Content),
            };
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(take(&mut bytes)?)));
        }
        if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
            return Err(BadInvite::Content);
        }
        Ok(Invite { issuer, id, secret, addresses })
    }
}

/// A joining node's proof that it holds an invite, bound to one TLS session: useless in any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteProof {
    /// Which invite.
    pub id: InviteId,
    /// HMAC-SHA256 with the secret over the session's exported value and the joining key.
    pub mac: [u8; 32],
}

fn proven(id: &InviteId, session: &[u8; 32], joining: &PublicKey) -> Vec<u8> {
    [b"agent join 1".as_slice(), id, session, &joining.0].concat()
}

impl InviteProof {
    /// Proves knowledge of `secret` to the peer of the TLS session whose exported value is `session`.
    pub fn make(id: InviteId, secret: &InviteSecret, session: &[u8; 32], joining: &PublicKey) -> InviteProof {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret.0);
        let tag = ring::hmac::sign(&key, &proven(&id, session, joining));
        let mut mac = [0; 32];
        mac.copy_from_slice(tag.as_ref());
        InviteProof { id, mac }
    }

    fn holds(&self, secret: &InviteSecret, session: &[u8; 32], joining: &PublicKey) -> bool {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret.0);
        // Constant time, by ring.
        ring::hmac::verify(&key, &proven(&self.id, session, joining), &self.mac).is_ok()
    }
}

/// Why a node was not admitted. Each has its own exit code for scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// Not in the issuer's ledger.
    #[error("the issuer does not know this invite, since it was reset; create a new one with: agent invite")]
    Unknown,
    /// It has expired.
    #[error("this invite has expired; create a new one with: agent invite")]
    Expired,
    /// All its uses are used up.
    #[error("this invite has been used up; create a new one with: agent invite")]
    UsedUp,
    /// The secret does not match.
    #[error("the secret of this invite is wrong")]
    WrongSecret,
    /// An administrator rejected it.
    #[error("the request was rejected by a member")]
    Rejected,
    /// Nobody approved it in time.
    #[error("the request was not approved in time; run agent join again")]
    TimedOut,
    /// Too many nodes wait.
    #[error("too many nodes are waiting for approval; approve or reject them first, or use an invite")]
    TooManyWaiting,
    /// This identity was removed.
    #[error(
        "this node was removed from the cluster and its identity cannot rejoin; \
         run: agent leave --force, then join again with a new identity"
    )]
    Removed,
    /// It belongs to a cluster that this one does not succeed.
    #[error("this node is a member of another cluster; to move it, first run: agent leave --force")]
    OtherCluster,
    /// The document can't take it.
    #[error("the cluster cannot admit it: {0}")]
    NotAdmitted(String),
    /// The node that was asked is no longer a member of any cluster.
    #[error(
        "the node that was asked was removed from its cluster, so its invites are worth nothing; make a new \
         one on a master with: agent invite"
    )]
    SeedRemoved,
    /// Another node has the name.
    #[error("{}", taken(name, *is_up))]
    NameTaken {
        /// The name.
        name: Name,
        /// That node is up.
        is_up: bool,
    },
}

/// What to do where another node has the name.
fn taken(name: &Name, is_up: bool) -> String {
    match is_up {
        true => format!("the name {name} is used by another node, which is up; use --name"),
        false => format!(
            "the name {name} is used by a member that is down; if this node is to replace it, first run on a master: \
             agent remove {name}; if not, use --name"
        ),
    }
}

impl JoinRefusal {
    /// The exit code of `agent join`.
    pub fn exit_code(&self) -> u8 {
        match self {
            JoinRefusal::Unknown => 20,
            JoinRefusal::Expired => 21,
            JoinRefusal::UsedUp => 22,
            JoinRefusal::WrongSecret => 23,
            JoinRefusal::Rejected => 25,
            JoinRefusal::TimedOut => 26,
            JoinRefusal::TooManyWaiting => 27,
            JoinRefusal::Removed => 28,
            JoinRefusal::NameTaken { .. } => 29,
            JoinRefusal::OtherCluster => 30,
            JoinRefusal::NotAdmitted(_) => 31,
            JoinRefusal::SeedRemoved => 33,
        }
    }
}

/// Exit code of `agent join` when the answering key is not the invite's.
pub const EXIT_WRONG_PIN: u8 = 24;

/// Exit code of `agent join` when the issuer of the invite is now a worker.
pub const EXIT_ISSUER_DEMOTED: u8 = 32;

/// Exit code of `agent join` when nobody has confirmed by the codes that this is the right cluster.
pub const EXIT_NOT_CONFIRMED: u8 = 34;

/// An invite in its issuer's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedInvite {
    /// Its secret.
    pub secret: InviteSecret,
    /// When it expires.
    pub expires: UnixMs,
    /// Remaining uses; `None`: unlimited.
    pub uses_left: Option<u32>,
    /// The role of the nodes that join by it.
    pub role: Role,
}

/// The invites that this node has issued.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InviteLedger {
    invites: BTreeMap<String, IssuedInvite>,
}

impl InviteLedger {
    /// Adds a new invite.
    pub fn issue(&mut self, id: InviteId, issued: IssuedInvite) {
        while self.invites.len() >= MAX_INVITES {
            let oldest =
                self.invites.iter().min_by_key(|(_, issued)| issued.expires).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            self.invites.remove(&oldest);
        }
        self.invites.insert(data_encoding::HEXLOWER.encode(&id), issued);
    }

    /// Takes one use of an invite. The secret is checked first: a node without it learns nothing else.
    ///
    /// # Errors
    /// Why not.
    pub fn redeem(
        &mut self,
        proof: &InviteProof,
        session: &[u8; 32],
        joining: &PublicKey,
        now: UnixMs,
    ) -> Result<Role, JoinRefusal> {
        let id = data_encoding::HEXLOWER.encode(&proof.id);
        let issued = self.invites.get_mut(&id).ok_or(JoinRefusal::Unknown)?;
        if !proof.holds(&issued.secret, session, joining) {
            return Err(JoinRefusal::WrongSecret);
        }
        if now >= issued.expires {
            return Err(JoinRefusal::Expired);
        }
        match &mut issued.uses_left {
            Some(0) => Err(JoinRefusal::UsedUp),
            Some(left) => {
                *left -= 1;
                Ok(issued.role)
            }
            None => Ok(issued.role),
        }
    }
}

/// Characters of a code: Crockford's base32, without lookalikes.
const CODE: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The short code that both sides of a session show: 40 bits of its exported value, as `k7qm-2xpd`. An
/// attacker in between has two sessions and so two codes.
pub fn code_of(session: &[u8; 32]) -> String {
    code(b"agent code 1", session)
}

/// The second code of a session, which confirms the cluster to the joining node: `agent approve` prints it,
/// and it is typed there. A man in the middle would have to find two sessions that agree in both.
pub fn confirmation_of(session: &[u8; 32]) -> String {
    code(b"agent confirmation 1", session)
}

fn code(label: &[u8], session: &[u8; 32]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &[label, session].concat());
    let mut code = String::with_capacity(9);
    for (i, byte) in digest.as_ref().iter().take(8).enumerate() {
        if i == 4 {
            code.push('-');
        }
        code.push(char::from(CODE[usize::from(byte & 31)]));
    }
    code
}

/// Normalizes a typed code: upper case, without the dash, o for 0, i or l for 1.
pub fn normalize_code(typed: &str) -> String {
    let mut code = String::with_capacity(9);
    for c in typed.chars().filter(char::is_ascii_alphanumeric).take(8) {
        if code.len() == 4 {
            code.push('-');
        }
        code.push(match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            c => c,
        });
    }
    code
}

/// A node that waits for approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingJoin {
    /// The code that it shows.
    pub code: String,
    /// Its key.
    pub key: PublicKey,
    /// Its requested name.
    pub name: Name,
    /// Its address.
    pub from: SocketAddr,
    /// Until when it waits.
    pub until: UnixMs,
}

/// Result of answering a waiting node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Approval {
    /// No node with this code waits here.
    Unknown,
    /// One did, and its connection is gone: nobody was admitted.
    Gone(Name),
    /// It has the answer.
    Done {
        /// Its name.
        name: Name,
        /// The code to be typed there; `None`: it knows the cluster already, or was rejected.
        confirmation: Option<String>,
    },
}

/// The nodes that wait for approval here, and the window in which none has to.
#[derive(Debug, Clone, Default)]
pub struct PendingJoins {
    waiting: BTreeMap<String, PendingJoin>,
    open_until: UnixMs,
}

impl PendingJoins {
    /// Opens the cluster to every node that can reach this one, until then.
    pub fn open(&mut self, until: UnixMs) {
        self.open_until = until;
    }

    /// Whether a node without an invite is admitted now.
    pub fn is_open(&self, now: UnixMs) -> bool {
        now < self.open_until
    }

    /// A node without an invite asks. Each node waits once: a new request replaces its last one.
    ///
    /// # Errors
    /// Too many wait.
    pub fn request(&mut self, waiting: PendingJoin, now: UnixMs) -> Result<(), JoinRefusal> {
        self.waiting.retain(|_, one| one.until > now && one.key != waiting.key);
        let place = place_of(waiting.from.ip());
        let here = self.waiting.values().filter(|one| place_of(one.from.ip()) == place).count();
        if self.waiting.len() >= MAX_WAITING || here >= MAX_WAITING_EACH {
            return Err(JoinRefusal::TooManyWaiting);
        }
        self.waiting.insert(waiting.code.clone(), waiting);
        Ok(())
    }

    /// Frees the slots of nodes that are gone.
    pub fn retain(&mut self, waits: impl Fn(&str) -> bool) {
        self.waiting.retain(|code, _| waits(code));
    }

    /// Removes the node with this code.
    pub fn take(&mut self, code: &str, now: UnixMs) -> Option<PendingJoin> {
        self.waiting.remove(&normalize_code(code)).filter(|one| one.until > now)
    }

    /// The nodes that wait now.
    pub fn waiting(&self, now: UnixMs) -> impl Iterator<Item = &PendingJoin> {
        self.waiting.values().filter(move |one| one.until > now)
    }
}

/// The id that [`PendingJoin::key`] has.
impl PendingJoin {
    /// The id of the waiting node.
    pub fn id(&self) -> NodeId {
        self.key.id()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SESSION: [u8; 32] = [3; 32];

    fn invite() -> Invite {
        Invite {
            issuer: [9; PIN_LEN],
            id: [1, 2, 3, 4],
            secret: InviteSecret([5; 16]),
            addresses: vec!["10.0.0.1:7646".parse().unwrap(), "[fd00::1]:7646".parse().unwrap()],
        }
    }

    fn joining() -> PublicKey {
        PublicKey([8; 32])
    }

    fn ledger(uses_left: Option<u32>) -> InviteLedger {
        let mut ledger = InviteLedger::default();
        let Invite { id, secret, .. } = invite();
        ledger.issue(id, IssuedInvite { secret, expires: UnixMs(1000), uses_left, role: Role::Worker });
        ledger
    }

    fn proof() -> InviteProof {
        InviteProof::make([1, 2, 3, 4], &InviteSecret([5; 16]), &SESSION, &joining())
    }

    #[test]
    fn of_a_name_that_is_taken_it_is_said_whether_its_holder_is_up() {
        let taken = |is_up| JoinRefusal::NameTaken { name: Name::nearest("w1"), is_up }.to_string();
        assert_eq!(taken(true), "the name w1 is used by another node, which is up; use --name");
        assert!(
            taken(false).contains("down") && taken(false).contains("agent remove w1"),
            "{}",
            taken(false)
        );
    }

    #[test]
    fn each_refusal_has_its_own_reason_and_exit_code() {
        let redeem = |mut ledger: InviteLedger, proof: &InviteProof, now| {
            ledger.redeem(proof, &SESSION, &joining(), UnixMs(now))
        };
        assert_eq!(redeem(ledger(None), &proof(), 999), Ok(Role::Worker));
        assert_eq!(redeem(ledger(None), &proof(), 1000), Err(JoinRefusal::Expired));
        assert_eq!(redeem(ledger(Some(0)), &proof(), 1), Err(JoinRefusal::UsedUp));
        assert_eq!(redeem(InviteLedger::default(), &proof(), 1), Err(JoinRefusal::Unknown));
        let wrong = InviteProof::make([1, 2, 3, 4], &InviteSecret([6; 16]), &SESSION, &joining());
        assert_eq!(redeem(ledger(None), &wrong, 1), Err(JoinRefusal::WrongSecret));
        // Who has no secret does not even learn that the invite has expired.
        assert_eq!(redeem(ledger(None), &wrong, 2000), Err(JoinRefusal::WrongSecret));
        let all = [
            JoinRefusal::Unknown,
            JoinRefusal::Expired,
            JoinRefusal::UsedUp,
            JoinRefusal::WrongSecret,
            JoinRefusal::Rejected,
            JoinRefusal::TimedOut,
            JoinRefusal::TooManyWaiting,
            JoinRefusal::Removed,
            JoinRefusal::NameTaken { name: Name::nearest("x"), is_up: true },
        ];
        let mut codes: Vec<u8> = all.iter().map(JoinRefusal::exit_code).collect();
        codes.push(EXIT_WRONG_PIN);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all.len() + 1);
    }

    #[test]
    fn a_proof_is_invalid_in_another_session_or_for_another_key() {
        let mut ledger = ledger(None);
        let now = UnixMs(1);
        assert_eq!(ledger.redeem(&proof(), &[4; 32], &joining(), now), Err(JoinRefusal::WrongSecret));
        assert_eq!(
            ledger.redeem(&proof(), &SESSION, &PublicKey([1; 32]), now),
            Err(JoinRefusal::WrongSecret)
        );
    }

    #[test]
    fn a_typo_and_a_later_version_are_distinguished() {
        let line = invite().to_string();
        assert_eq!(format!(" {line}\n").parse::<Invite>(), Ok(invite()));
        assert_eq!(line[1..].parse::<Invite>(), Err(BadInvite::Prefix));
        assert_eq!(line[..line.len() - 1].parse::<Invite>(), Err(BadInvite::Checksum));
        assert_eq!(line.to_uppercase().replace("AGENT1", "agent1").parse::<Invite>(), Ok(invite()));
        assert!(line.len() < 120, "{}", line.len());
    }

    #[test]
    fn golden_line() {
        // Invites outlive the agent that made them, and other versions read them.
        assert_eq!(
            invite().to_string(),
            "agent1beeqscijbeeqscijbeeqscijbeaqeayeaucqkbifaucqkbifaucqkbifaucauaaaaeo54bx5aaaaaaaaaaaaaaaaaaaaaaabdxpkvplfja"
        );
    }

    #[test]
    fn codes_survive_how_people_type_them() {
        let code = code_of(&SESSION);
        assert_eq!(code.len(), 9);
        assert_eq!(normalize_code(&code.to_uppercase()), code);
        assert_eq!(normalize_code(&code.replace('-', " ")), code);
        assert_eq!(normalize_code(&code.replace('0', "o").replace('1', "l")), code);
        assert_ne!(code, code_of(&[4; 32]));
    }

    #[test]
    fn pending_joins_are_bounded_in_all_and_for_each_address() {
        let mut pending_joins = PendingJoins::default();
        let guest = |n: u8, until| PendingJoin {
            code: normalize_code(&format!("code{n:04}")),
            key: PublicKey([n; 32]),
            name: Name::nearest("guest"),
            from: SocketAddr::new(Ipv4Addr::new(10, 0, 0, n / 4).into(), 1),
            until: UnixMs(until),
        };
        for n in 0..16 {
            pending_joins.request(guest(n, 100), UnixMs(1)).unwrap();
        }
        assert_eq!(pending_joins.request(guest(99, 100), UnixMs(1)), Err(JoinRefusal::TooManyWaiting));
        assert!(pending_joins.request(guest(3, 100), UnixMs(1)).is_ok(), "asking again takes its own place");
        pending_joins.retain(|code| code != guest(15, 0).code);
        assert!(pending_joins.request(guest(15, 100), UnixMs(1)).is_ok(), "who hangs up frees its place");
        assert!(
            pending_joins.request(guest(99, 200), UnixMs(100)).is_ok(),
            "those whose time is over make room"
        );
        for n in 96..99 {
            pending_joins.request(guest(n, 300), UnixMs(200)).unwrap();
        }
        let neighbour = PendingJoin { from: guest(96, 0).from, ..guest(7, 300) };
        assert!(pending_joins.request(neighbour.clone(), UnixMs(200)).is_ok());
        let fifth = PendingJoin { from: neighbour.from, ..guest(8, 300) };
        assert_eq!(
            pending_joins.request(fifth, UnixMs(200)),
            Err(JoinRefusal::TooManyWaiting),
            "one address has four places"
        );
        let v6 = |text: &str| place_of(text.parse().unwrap());
        assert_eq!(v6("fd00::1"), v6("fd00::ffff:1"));
        assert_ne!(v6("fd00::1"), v6("fd00:0:0:1::1"));
        assert!(pending_joins.take(&guest(99, 0).code, UnixMs(300)).is_none());
    }

    proptest! {
        #[test]
        fn an_invite_reads_back_as_written(
            issuer: [u8; PIN_LEN], id: [u8; 4], secret: [u8; 16],
            addresses in proptest::collection::vec(any::<SocketAddr>(), 1..=4),
        ) {
            // Scope and flow of IPv6 socket addresses mean nothing on another machine and are not included.
            let addresses = addresses.into_iter().map(|a| SocketAddr::new(a.ip(), a.port())).collect();
            let invite = Invite { issuer, id, secret: InviteSecret(secret), addresses };
            prop_assert_eq!(invite.to_string().parse::<Invite>(), Ok(invite));
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in "agent1[a-z2-7]{0,120}|.{0,40}") {
            let _ = text.parse::<Invite>();
            let _ = normalize_code(&text);
        }

        #[test]
        fn uses_are_exact(uses in 0u32..20, tries in 0usize..40) {
            let mut ledger = ledger(Some(uses));
            let admitted = (0..tries)
                .filter(|_| ledger.redeem(&proof(), &SESSION, &joining(), UnixMs(1)).is_ok())
                .count();
            prop_assert_eq!(admitted, tries.min(uses as usize));
        }
    }
}
