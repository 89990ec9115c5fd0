//! Seeds of a running agent: names that are resolved anew while nobody is heard, and those that a person names.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::control::Response;
use proto::node::Name;
use proto::seeds::{SILENCE, SeedSchedule};
use tracing::{info, warn};

use super::RunningAgent;
use crate::lifecycle::Lifecycle;
use crate::membership::join::{JoinCredential, JoinError, reach};
use crate::net::{self, ResolveError};
use crate::timer::Ticks;

/// Between two looks whether anyone is heard.
const LOOK: Duration = Duration::from_secs(1);

/// Why a seed leads nowhere.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Reach(#[from] JoinError),
    #[error("{at} answers with a key that belongs to no other member of this cluster")]
    NotMember { at: SocketAddr },
}

/// Starts the task.
pub(super) fn spawn(running: &Arc<RunningAgent>, life: &Lifecycle) {
    let (running, own) = (running.clone(), life.clone());
    life.supervise_each("seeds", move || {
        let (running, life) = (running.clone(), own.clone());
        async move {
            life.draining.run_until_cancelled(follow(&running, &life)).await;
        }
    });
}

async fn follow(running: &RunningAgent, life: &Lifecycle) {
    let mut schedule = SeedSchedule::new(life.now());
    let mut look = Ticks::new(life, LOOK);
    // What is wrong with their file is said at the start.
    running.disk.seeds();
    // A name that leads nowhere is said once.
    let mut said = false;
    loop {
        look.tick().await;
        let anyone = is_anyone_heard(running);
        said &= !anyone;
        if !schedule.is_due(life.now(), anyone) {
            continue;
        }
        for name in running.disk.seeds() {
            match dial(running, &name).await {
                Ok((member, at)) => info!(seed = name, "nobody was heard; {member} is at {at}"),
                Err(error) if !said => warn!(seed = name, "nobody is heard, nor is the seed: {error}"),
                Err(_) => {}
            }
        }
        said = true;
    }
}

fn is_anyone_heard(running: &RunningAgent) -> bool {
    let (document, own, now) = (running.document(), running.link.own(), running.life.now());
    let mut others = document.members().filter(|(id, _)| **id != own).peekable();
    let heard = |id| running.link.datagrams().has_heard(id, SILENCE, now);
    // Who is alone in its cluster misses nobody.
    others.peek().is_none() || others.any(|(id, _)| heard(id))
}

/// Dials a seed. The member that answers there is reached there from now on.
async fn dial(running: &RunningAgent, seed: &str) -> Result<(Name, SocketAddr), DialError> {
    let addresses = net::resolve(seed, proto::transport::PORT).await?;
    let peer = reach(running.link.identity(), &addresses, JoinCredential::None).await?;
    let (id, at, document) = (peer.key.id(), peer.at, running.document());
    let member = document.member(&id).filter(|member| member.key == peer.key && id != running.link.own());
    let member = member.ok_or(DialError::NotMember { at })?;
    // The handshake has proven it.
    running.link.addresses().proven(id, at);
    running.link.addresses().confirm_address(id, at);
    Ok((member.name.clone(), at))
}

/// Answers a person that names a seed: it is dialled, and kept if it is a name that leads to a member.
pub(super) async fn answer(running: &RunningAgent, seeds: &[String]) -> Response {
    let mut failed = Vec::new();
    for seed in seeds.iter().take(proto::seeds::MOST) {
        match dial(running, seed).await {
            Ok((member, at)) => {
                running.disk.add_seed(seed);
                return Response::Done(format!("{member} answers at {at}"));
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    Response::Failed(failed.join("; "))
}
