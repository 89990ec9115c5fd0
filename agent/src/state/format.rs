//! A state file's bytes: `agent-state 1 <sha256 of the rest in hex>`, a line feed, and the rest: the value as
//! JSON, beside its version. So `tail -n +2 FILE | sha256sum` checks a file by hand.

use data_encoding::HEXLOWER;
use proto::next_wire;
use ring::digest::{Context, SHA256};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::StateFile;

/// What every state file begins with.
pub(super) const MARK: &str = "agent-state ";
/// The highest format that is read, and the one that is written.
pub(super) const VERSION: u32 = 1;

/// The body: the value, and the version of what this file holds. Within a version fields may be added, which
/// older agents ignore; it is raised when an older agent must not use the file.
#[derive(Serialize, Deserialize)]
struct VersionedBody<T> {
    version: u32,
    value: T,
}

/// A value, or why there is none.
#[derive(Debug)]
pub(super) enum FileValue<T> {
    /// It.
    Whole(T),
    /// The file is of a later agent: its version.
    Newer(u32),
    /// The JSON is not what this agent expects there.
    Odd(serde_json::Error),
}

/// What a file's bytes turned out to be.
#[derive(Debug, PartialEq)]
pub(super) enum FileContent<'a> {
    /// The JSON, exactly as written.
    Whole(&'a [u8]),
    /// Whole, in a format of a later agent.
    Newer(u32),
    /// Why not, as the end of a sentence that begins with the file.
    Bad(&'static str),
}

/// The bytes of a file that holds `value`.
pub(super) fn encode<T: Serialize>(file: StateFile, value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut body =
        serde_json::to_vec_pretty(&next_wire::grown(&VersionedBody { version: file.version, value }))?;
    body.push(b'\n');
    let mut bytes = format!("{MARK}{VERSION} {}\n", digest(VERSION, &body)).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Checks a file's bytes against their own header.
pub(super) fn decode(bytes: &[u8]) -> FileContent<'_> {
    if bytes.is_empty() {
        return FileContent::Bad("is empty");
    }
    let Some((version, hash, body)) = split(bytes) else {
        return FileContent::Bad("is damaged (its first line is not that of a state file)");
    };
    if hash != digest(version, body) {
        return FileContent::Bad("is truncated or damaged (its checksum does not match)");
    }
    match version {
        VERSION => FileContent::Whole(body),
        newer => FileContent::Newer(newer),
    }
}

/// The value of a body. Its version is looked at first: a value of a later version need not be understood.
pub(super) fn value<T: DeserializeOwned>(file: StateFile, body: &[u8]) -> FileValue<T> {
    match serde_json::from_slice::<VersionedBody<IgnoredAny>>(body) {
        Ok(found) if found.version > file.version => FileValue::Newer(found.version),
        Ok(_) => match serde_json::from_slice::<VersionedBody<T>>(body) {
            Ok(found) => FileValue::Whole(found.value),
            Err(error) => FileValue::Odd(error),
        },
        Err(error) => FileValue::Odd(error),
    }
}

fn split(bytes: &[u8]) -> Option<(u32, &str, &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    let (version, hash) = line.strip_prefix(MARK)?.split_once(' ')?;
    // `+1` and `01` parse too, and are not what was written.
    let number: u32 = version.parse().ok()?;
    (number >= VERSION && number.to_string() == version).then_some((number, hash, &bytes[end + 1..]))
}

/// Version 1 hashes the body. Every later format has to hash its version in front of it, so that one
/// flipped bit in a version 1 file is seen as damage and not as the file of a newer agent.
fn digest(version: u32, body: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    if version > 1 {
        context.update(format!("{MARK}{version}\n").as_bytes());
    }
    context.update(body);
    HEXLOWER.encode(context.finish().as_ref())
}

#[cfg(test)]
pub(super) fn newer_for_test(version: u32, body: &str) -> String {
    format!("{MARK}{version} {}\n{body}", digest(version, body.as_bytes()))
}
