//! The events of all members, merged: each member is asked for its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::event::{Event, EventQuery, EventRing};
use proto::node::NodeId;
use proto::rpc::{FromMember, ToMember};

use crate::transport::Link;

/// Time-out for one member: a person is waiting.
const PATIENCE: Duration = Duration::from_secs(3);

/// Time-out for all of them: below the command line's own.
const ALL: Duration = Duration::from_secs(20);

/// Members queried concurrently; each costs a handshake.
const AT_ONCE: usize = 32;

/// Most events in an answer, from all members together: a few megabytes.
const MOST: usize = 8192;

/// This node's latest events that match the query, oldest first. `after` is the number of the last event of
/// this node that the caller has seen.
pub(crate) fn own(ring: &EventRing, ask: &EventQuery, after: u64) -> Vec<Event> {
    let most = usize::try_from(ask.most).unwrap_or(MOST).min(MOST);
    let all = ring.after(after).filter(|event| event.time_unix_ms >= ask.since);
    let mut events: Vec<Event> = all.rev().take(most).map(|event| Event::clone(event)).collect();
    events.reverse();
    events
}

/// The events of all members, and the names of those that did not answer.
pub(crate) async fn all(link: &Arc<Link>, ring: &EventRing, ask: &EventQuery) -> (Vec<Event>, Vec<String>) {
    let document = link.document();
    let me = link.own();
    let mut names: BTreeMap<NodeId, String> =
        document.members().map(|(id, node)| (*id, node.name.to_string())).collect();
    let own_name = names.remove(&me).unwrap_or_default();
    let seen = |name: &str| ask.after.get(name).copied().unwrap_or(0);
    // A share for each, so that the answer stays small in a large cluster.
    let share = (MOST / (names.len() + 1)).max(16);
    let most = ask.most.min(u32::try_from(share).unwrap_or(u32::MAX));
    let mut events = own(ring, &EventQuery { most, ..ask.clone() }, seen(&own_name));
    let mut silent = Vec::new();
    let mut waiting = names.into_iter();
    let until = tokio::time::Instant::now() + ALL;
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < AT_ONCE
            && let Some((id, name)) = waiting.next()
        {
            let after = seen(&name);
            let request = FromMember::Events { since: ask.since, after, most };
            under_way.push(async move {
                let until = until.min(tokio::time::Instant::now() + PATIENCE);
                let answer = tokio::time::timeout_at(until, link.dialer().call(id, &request)).await;
                (name, answer)
            });
        }
        match under_way.next().await {
            None => break,
            // Its events about other nodes do not count.
            Some((name, Ok(Ok(ToMember::Events(theirs))))) => {
                events.extend(theirs.into_iter().take(share).filter(|event| event.node == name));
            }
            Some((name, _)) => silent.push(name),
        }
    }
    events.sort_unstable_by(|a, b| (a.time_unix_ms, &a.node, a.seq).cmp(&(b.time_unix_ms, &b.node, b.seq)));
    // In a very large cluster even small shares add up.
    events.drain(..events.len().saturating_sub(MOST));
    silent.sort_unstable();
    (events, silent)
}
