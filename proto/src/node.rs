//! Identity of a node: its id, its name, its role.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length in bytes of a node's ed25519 public key.
pub const PUBLIC_KEY_LEN: usize = 32;

/// A node's identity: the first 80 bits of the SHA-256 of its ed25519 public key, shown as 16 characters of
/// base32. Short because it travels in every datagram and every gossip digest; nobody is admitted by id
/// alone, since the cluster document holds the whole key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; NodeId::LEN]);

impl NodeId {
    /// Length in bytes.
    pub const LEN: usize = 10;

    /// The id that belongs to a public key.
    pub fn of_key(public_key: &[u8; PUBLIC_KEY_LEN]) -> NodeId {
        let digest = ring::digest::digest(&ring::digest::SHA256, public_key);
        let mut id = [0; NodeId::LEN];
        id.copy_from_slice(&digest.as_ref()[..NodeId::LEN]);
        NodeId(id)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a node id of 16 characters, a to z and 2 to 7")]
pub struct BadNodeId(String);

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<NodeId, BadNodeId> {
        let bad = || BadNodeId(text.chars().take(64).collect());
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| bad())?;
        Ok(NodeId(bytes.try_into().map_err(|_| bad())?))
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A node's public key, shown as 52 characters of base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_LEN]);

impl PublicKey {
    /// The id that belongs to this key.
    pub fn id(&self) -> NodeId {
        NodeId::of_key(&self.0)
    }

    /// The whole SHA-256 of the key, as invites carry it.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &self.0).as_ref());
        hash
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a public key of 52 characters, a to z and 2 to 7")]
pub struct BadPublicKey;

impl FromStr for PublicKey {
    type Err = BadPublicKey;

    fn from_str(text: &str) -> Result<PublicKey, BadPublicKey> {
        BASE32_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(PublicKey)
            .ok_or(BadPublicKey)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What settings call groups of nodes by.
const GROUPS: [&str; 3] = ["all", "masters", "workers"];

/// A node's name: a host name in lower case (RFC 1123), at most 63 characters, and not that of a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The valid name closest to a machine's host name: lower case, other characters become `-`, and a group's name
    /// gets an end.
    pub fn nearest(text: &str) -> Name {
        let cleaned: String = text
            .chars()
            .take(63)
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .collect();
        let cleaned = cleaned.trim_matches(|c| c == '-' || c == '.');
        Name(match cleaned {
            "" => "node".to_owned(),
            group if GROUPS.contains(&group) => format!("{group}-node"),
            name => name.to_owned(),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It is too long, or has other characters.
    #[error(
        "\"{0}\" is not a name: 1 to 63 characters, a to z, 0 to 9, - and ., beginning and ending with a letter or digit"
    )]
    Form(String),
    /// In settings it stands for several nodes.
    #[error("\"{0}\" stands for a group of nodes in settings, so it can't be a name; try \"{0}-1\"")]
    Group(String),
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Name, BadName> {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let good = text.len() <= 63
            && edge(text.bytes().next())
            && edge(text.bytes().next_back())
            && text.bytes().all(inner);
        match text {
            group if GROUPS.contains(&group) => Err(BadName::Group(group.to_owned())),
            name if good => Ok(Name(name.to_owned())),
            other => Err(BadName::Form(other.chars().take(80).collect())),
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What a node may do in the cluster: set at its admission, and changed by masters only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It may change the cluster document, and its apiserver is a backend.
    Master,
    /// It changes nothing, and an apiserver on it is ignored.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Master => "master",
            Role::Worker => "worker",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_shown() {
        let id = PublicKey([7; 32]).id();
        assert_eq!(id.to_string().len(), 16);
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        assert!("short".parse::<NodeId>().is_err());
        assert!("0000000000000000".parse::<NodeId>().is_err());
    }

    #[test]
    fn names_are_host_names() {
        for good in ["m1", "a", "node-1.example", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a b", &"x".repeat(64), "ä"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert_eq!(Name::nearest("My_Host.").as_str(), "my-host");
        assert_eq!(Name::nearest("___").as_str(), "node");
        assert_eq!(Name::nearest("Masters").as_str(), "masters-node");
        for group in GROUPS {
            let error = group.parse::<Name>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("try \"{group}-1\"")), "{error}");
        }
    }
}
