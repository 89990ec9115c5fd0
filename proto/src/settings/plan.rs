//! What someone wants to change: checked as a whole before anything is spread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::BadSetting;
use super::known::{HEADS, LISTEN_ON, OFFER, SettingKey, VipKey, shown};
use super::nodes::names;
use super::{MAX_VALUE, NodeSelector, SettingMistakes, Settings, addresses, list_items, node_local, values};
use crate::cluster::Document;
use crate::config::{Mistake, nearest};
use crate::node::Name;

/// What becomes of one setting.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SettingChange {
    /// Its key, written as in the document.
    pub key: String,
    /// What it was; none: it was not set.
    pub old: Option<String>,
    /// What it becomes; none: it is unset.
    pub new: Option<String>,
}

impl SettingChange {
    /// Whether it becomes anything else than it was.
    pub fn differs(&self) -> bool {
        self.old != self.new
    }
}

/// Checks wishes: keys as people write them, each with its value, or none to unset it and all that stand
/// below it. Addresses and nodes are written as the document has them; what belonged to a VIP that goes, goes
/// with it.
///
/// # Errors
/// Everything that is wrong; nothing may then be changed.
pub fn plan(
    document: &Document,
    wishes: &[(String, Option<String>)],
) -> Result<Vec<SettingChange>, Vec<Mistake>> {
    let before = values(document);
    let mut after = before.clone();
    let mut touched = BTreeSet::new();
    let mut found = SettingMistakes(Vec::new());
    for (text, value) in wishes {
        let result = match value {
            Some(value) => set(document, text, value.trim()).map(|(key, value)| {
                after.insert(key.clone(), value);
                vec![key]
            }),
            None => unset(document, text, &before).inspect(|keys| {
                keys.iter().for_each(|key| drop(after.remove(key)));
            }),
        };
        match result {
            Ok(keys) => {
                for key in keys {
                    if !touched.insert(key.clone()) {
                        found.add(&key, "set twice");
                    }
                }
            }
            Err(message) => found.add(shown(text), message),
        }
    }
    let forgotten = forget_vips(&before, &mut after, &touched);
    touched.extend(forgotten);
    // What was wrong before, as a later version's setting may be, does not hinder.
    let known = Settings::read(&before, Some(document)).1;
    let new = Settings::read(&after, Some(document)).1.into_iter().filter(|mistake| !known.contains(mistake));
    // A value that can't be read is told once, by the rule that knows its key best.
    let told: Vec<String> = found.0.iter().map(|mistake| mistake.key.clone()).collect();
    found.0.extend(new.filter(|mistake| !told.contains(&mistake.key)));
    if !found.0.is_empty() {
        return Err(found.0);
    }
    let change = |key: String| {
        let (old, new) = (before.get(&key).cloned(), after.get(&key).cloned());
        SettingChange { key, old, new }
    };
    Ok(touched.into_iter().map(change).collect())
}

/// A key and a value as the document has them.
fn set(document: &Document, text: &str, value: &str) -> Result<(String, String), BadSetting> {
    if value.len() > MAX_VALUE {
        return Err(BadSetting::TooLong(value.len()));
    }
    let key = with_member(document, SettingKey::parse(text)?)?;
    let value = match &key {
        SettingKey::Vip => {
            let all = addresses(value)?;
            all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
        }
        SettingKey::NodeLocal => {
            let all = node_local::addresses(value)?;
            all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
        }
        SettingKey::OfVip(_, VipKey::Candidates) | SettingKey::Service(_, OFFER | LISTEN_ON)
            if !NodeSelector::WORDS.contains(&value) =>
        {
            named(document, value)?
        }
        _ => value.to_owned(),
    };
    Ok((key.to_string(), value))
}

/// A list of members, as the document calls them.
fn named(document: &Document, value: &str) -> Result<String, BadSetting> {
    names(value)?;
    let named = list_items(value).map(|word| member(document, word).map(|name| name.to_string()));
    let named = named.collect::<Result<BTreeSet<String>, BadSetting>>()?;
    Ok(named.into_iter().collect::<Vec<_>>().join(","))
}

/// The key with its node as the document calls it.
fn with_member(document: &Document, key: SettingKey) -> Result<SettingKey, BadSetting> {
    Ok(match key {
        SettingKey::Weight(node) => SettingKey::Weight(member(document, node.as_str())?),
        SettingKey::Drain(node) => SettingKey::Drain(member(document, node.as_str())?),
        SettingKey::OfVip(address, VipKey::Priority(node)) => {
            SettingKey::OfVip(address, VipKey::Priority(member(document, node.as_str())?))
        }
        other => other,
    })
}

/// The one member that a text names, or what is wrong with it.
///
/// # Errors
/// None or several are called so.
pub fn member(document: &Document, text: &str) -> Result<Name, BadSetting> {
    match document.find(text).as_slice() {
        [(id, admitted)] if document.shown_name(id) == admitted.name => Ok(admitted.name.clone()),
        [(_, admitted)] => Err(BadSetting::SharedName(admitted.name.clone())),
        [] => {
            let mut names: Vec<&str> = document.members().map(|(_, one)| one.name.as_str()).collect();
            names.sort_unstable();
            Err(BadSetting::NoMember {
                text: shown(text),
                nearest: nearest(text, &names).map(str::to_owned),
                // A line has room for so many.
                some: names.iter().take(12).map(|name| (*name).to_owned()).collect(),
                more: names.len() > 12,
            })
        }
        several => {
            let ids: Vec<String> = several.iter().map(|(id, _)| id.to_string()).collect();
            Err(BadSetting::SeveralMembers { text: shown(text), ids })
        }
    }
}

/// The keys that a text unsets: its own, and all below it.
fn unset(
    document: &Document,
    text: &str,
    before: &BTreeMap<String, String>,
) -> Result<Vec<String>, BadSetting> {
    // A node that was removed, and a key of a later version, are taken as they are written.
    let parsed = SettingKey::parse(text);
    let wanted = match parsed.clone().map(|key| with_member(document, key.clone()).unwrap_or(key)) {
        Ok(key) => key.to_string(),
        Err(_) => text.to_owned(),
    };
    let below = format!("{wanted}.");
    let keys: Vec<String> =
        before.keys().filter(|key| **key == wanted || key.starts_with(&below)).cloned().collect();
    if !keys.is_empty() {
        return Ok(keys);
    }
    // A part of a key is no mistake, only not set.
    if let Err(message) = parsed
        && !HEADS.contains(&text.split('.').next().unwrap_or_default())
    {
        return Err(message);
    }
    let set: Vec<&str> = before.keys().map(String::as_str).collect();
    Err(BadSetting::NotSet { nearest: nearest(&wanted, &set).map(str::to_owned) })
}

/// Takes out what belongs to VIPs that were there and are not any more.
fn forget_vips(
    before: &BTreeMap<String, String>,
    after: &mut BTreeMap<String, String>,
    touched: &BTreeSet<String>,
) -> Vec<String> {
    let vips = |values: &BTreeMap<String, String>| {
        values.get("vip").and_then(|value| addresses(value).ok()).unwrap_or_default()
    };
    let now = vips(after);
    let mut gone = Vec::new();
    for address in vips(before).difference(&now) {
        let below = format!("vip.{address}.");
        let theirs = after.keys().filter(|key| key.starts_with(&below) && !touched.contains(*key));
        gone.extend(theirs.cloned());
    }
    for key in &gone {
        after.remove(key);
    }
    gone
}
