//! An identity that is used in two places: a machine or its state directory was copied, or a snapshot of it restored
//! elsewhere while the original still runs.
//!
//! Only a proof of life counts: a place signs the boot of the other one, which is random and new, so it had the key
//! after the other had started. A record or an address proves nothing, since it may be a dead machine's.
//!
//! ```text
//!   copy ──datagrams of another boot──► member ──Beside(boot)──► original
//!   copy ◄──────────proof───────────── member ◄─────proof─────── original
//! ```
//!
//! The copy stands aside: it owns no virtual IP, and members do not count what it sends ([`crate::session`]). It goes
//! on once a member accepts it, which happens within two seconds of the original's end.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

use crate::limit::{Rate, RateBucket};
use crate::node::PublicKey;
use crate::time::{Moment, UnixMs};

/// Separates these signatures from everything else that the same key signs.
const DOMAIN: &[u8] = b"agent alive elsewhere, version 1\0";

/// How long a proof counts. Members repeat it several times a second.
const VALID: Duration = Duration::from_secs(3);

/// How long another place of a member is shown after its last proof.
pub const SHOWN: Duration = Duration::from_secs(60);

/// How long that of this node itself is shown, which many members tell of.
const OTHER_SHOWN: Duration = Duration::from_secs(10);

/// Signatures made or verified for this: each takes about 60 us.
const SIGNATURES: Rate = Rate { every: Duration::from_millis(50), burst: 40 };

/// One place's proof of life for another place of the same identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AliveProof {
    /// The boot of the other place.
    pub beside: u64,
    /// When the agent that signs this started, by its clock.
    pub began: UnixMs,
    /// It stands aside for the other.
    pub aside: bool,
    signature: [u8; 64],
}

impl AliveProof {
    const LEN: usize = 8 + 8 + 1 + 64;

    /// Signs a proof with the key that both places have.
    pub fn sign(
        pair: &Ed25519KeyPair,
        cluster: &str,
        beside: u64,
        began: UnixMs,
        aside: bool,
    ) -> Option<AliveProof> {
        let signature = pair.sign(&signed_bytes(cluster, beside, began, aside));
        Some(AliveProof { beside, began, aside, signature: signature.as_ref().try_into().ok()? })
    }

    /// Whether the holder of this key has signed it.
    pub fn verify(&self, cluster: &str, key: &PublicKey) -> bool {
        let bytes = signed_bytes(cluster, self.beside, self.began, self.aside);
        UnparsedPublicKey::new(&ED25519, &key.0).verify(&bytes, &self.signature).is_ok()
    }

    /// The proof with the address of the place that has signed it, as a frame's body.
    pub fn to_body(&self, at: SocketAddr) -> Vec<u8> {
        let ip = match at.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let number = |number: u64| number.to_be_bytes();
        let mut body = [number(self.beside), number(self.began.0)].concat();
        body.push(self.aside.into());
        body.extend_from_slice(&self.signature);
        body.extend_from_slice(&ip.octets());
        body.extend_from_slice(&at.port().to_be_bytes());
        body
    }

    /// Reads [`AliveProof::to_body`]. What follows is a later version's.
    pub fn from_body(body: &[u8]) -> Option<(AliveProof, SocketAddr)> {
        let (proof, rest) = body.split_at_checked(AliveProof::LEN)?;
        let (ip, rest) = rest.split_first_chunk::<16>()?;
        let port = rest.first_chunk::<2>()?;
        let (beside, proof) = proof.split_first_chunk()?;
        let (began, proof) = proof.split_first_chunk()?;
        let (aside, signature) = proof.split_first()?;
        let read = AliveProof {
            beside: u64::from_be_bytes(*beside),
            began: UnixMs(u64::from_be_bytes(*began)),
            aside: *aside != 0,
            signature: signature.try_into().ok()?,
        };
        let ip = IpAddr::V6(Ipv6Addr::from(*ip)).to_canonical();
        Some((read, SocketAddr::new(ip, u16::from_be_bytes(*port))))
    }
}

/// The signed bytes. Every part has a fixed length or a length prefix.
fn signed_bytes(cluster: &str, beside: u64, began: UnixMs, aside: bool) -> Vec<u8> {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend_from_slice(&(cluster.len() as u64).to_be_bytes());
    bytes.extend_from_slice(cluster.as_bytes());
    bytes.extend_from_slice(&beside.to_be_bytes());
    bytes.extend_from_slice(&began.0.to_be_bytes());
    bytes.push(aside.into());
    bytes
}

/// Another place of this node's identity.
#[derive(Debug, Clone, Copy)]
struct OtherPlace {
    at: SocketAddr,
    is_elder: bool,
    proven: Moment,
    /// When it last proved that it takes part.
    takes_part: Option<Moment>,
}

/// What this node knows of other places of its own identity.
#[derive(Debug, Clone, Default)]
pub struct OwnPlaces {
    other: Option<OtherPlace>,
    /// When a member last answered this node as one of the cluster.
    accepted: Option<Moment>,
    signatures: RateBucket,
}

impl OwnPlaces {
    /// Whether one more signature may be made or verified.
    pub fn affords_signature(&mut self, now: Moment) -> bool {
        self.signatures.take(SIGNATURES, now)
    }

    /// Another place has proven that it is alive: `proof` is verified and names this boot. This agent started at
    /// `began`.
    pub fn proven(&mut self, proof: &AliveProof, at: SocketAddr, began: UnixMs, now: Moment) {
        let before = self.other.filter(|other| other.at == at).and_then(|other| other.takes_part);
        let takes_part = if proof.aside { before } else { Some(now) };
        self.other = Some(OtherPlace { at, is_elder: proof.began < began, proven: now, takes_part });
    }

    /// A member has answered this node.
    pub fn accepted(&mut self, now: Moment) {
        self.accepted = Some(now);
    }

    /// Where the other place is, if it was proven a moment ago.
    pub fn other(&self, now: Moment) -> Option<SocketAddr> {
        self.other.filter(|other| now.since(other.proven) < OTHER_SHOWN).map(|other| other.at)
    }

    /// The place for which this node stands aside, if it does.
    pub fn aside_for(&self, now: Moment) -> Option<SocketAddr> {
        self.other.filter(|_| self.is_aside(now)).map(|other| other.at)
    }

    /// Whether this node stands aside. While each is accepted by some members, the elder stays. Silence ends
    /// nothing: a node that is cut off from those who have told it must not begin to own what the other owns.
    fn is_aside(&self, now: Moment) -> bool {
        let Some(other) = &self.other else { return false };
        let Some(takes_part) = other.takes_part else { return false };
        let lately = |at: Moment| now.since(at) < VALID;
        if lately(takes_part) {
            return other.is_elder || !self.accepted.is_some_and(lately);
        }
        self.accepted.is_none_or(|at| at < takes_part.after(VALID))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signed_record::tests::{CLUSTER, pair};

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn there() -> SocketAddr {
        ([10, 0, 0, 9], 7646).into()
    }

    #[test]
    fn a_proof_counts_for_one_boot_one_cluster_and_one_key() {
        let (own, key) = pair(1);
        let proof = AliveProof::sign(&own, CLUSTER, 7, UnixMs(5), false).unwrap();
        assert!(proof.verify(CLUSTER, &key));
        assert!(!proof.verify("another", &key) && !proof.verify(CLUSTER, &pair(2).1));
        for change in [
            AliveProof { beside: 8, ..proof },
            AliveProof { began: UnixMs(6), ..proof },
            AliveProof { aside: true, ..proof },
        ] {
            assert!(!change.verify(CLUSTER, &key), "{change:?}");
        }
        for at in [there(), "[fd00::1]:1".parse().unwrap()] {
            let mut body = proof.to_body(at);
            assert_eq!(AliveProof::from_body(&body), Some((proof, at)));
            assert_eq!(AliveProof::from_body(&body[..body.len() - 1]), None);
            body.extend_from_slice(b"later");
            assert_eq!(AliveProof::from_body(&body), Some((proof, at)));
        }
    }

    #[test]
    fn who_stands_aside() {
        let own_start = UnixMs(1_000);
        // When the other started, whether it stands aside, when a member last answered, and the moment asked about.
        let table = [
            ("a copy whose original is alive", 1, false, None, 1_000, true),
            ("a copy that has heard nothing since", 1, false, None, 90_000, true),
            ("a copy of which a member still thinks that it is the one", 1, false, Some(900), 1_000, true),
            ("a copy that is accepted once the original is gone", 1, false, Some(4_100), 4_200, false),
            ("an original whose copy is accepted nowhere", 1, true, Some(900), 1_000, false),
            ("an original that is accepted", 2_000, false, Some(900), 1_000, false),
            ("an original that came back after its place was taken", 2_000, false, None, 1_000, true),
        ];
        for (what, began, aside, accepted, now, expected) in table {
            let proof = AliveProof::sign(&pair(1).0, CLUSTER, 7, UnixMs(began), aside).unwrap();
            let mut own = OwnPlaces::default();
            assert!(!own.is_aside(at(0)));
            own.proven(&proof, there(), own_start, at(1_000));
            if let Some(accepted) = accepted {
                own.accepted(at(accepted));
            }
            assert_eq!(own.is_aside(at(now)), expected, "{what}");
            assert_eq!(own.other(at(1_500)), Some(there()), "{what}");
            assert_eq!(own.other(at(11_000)), None, "{what}");
        }
    }

    #[test]
    fn a_place_that_steps_aside_frees_the_one_that_did() {
        let mut own = OwnPlaces::default();
        let sign = |aside| AliveProof::sign(&pair(1).0, CLUSTER, 7, UnixMs(1), aside).unwrap();
        own.proven(&sign(false), there(), UnixMs(2), at(0));
        own.proven(&sign(true), there(), UnixMs(2), at(3_500));
        assert!(own.is_aside(at(3_500)), "nobody has accepted this one yet");
        own.accepted(at(3_600));
        assert!(!own.is_aside(at(3_600)));
    }
}
