//! The conversation with a node that wants to join, on the side that lets it in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::invite::{APPROVAL_TTL, JoinRefusal};
use proto::node::Role;
use proto::rpc::{FailCode, FromJoining, MAX_FRAME, Received, ToJoining};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info};

use super::{Admission, Applicant, JoinCall, MembershipCommand};
use crate::lifecycle::Lifecycle;
use crate::transport::frames::{self, Framed};
use crate::transport::{JoinConnection, Link};

/// Time for each message of the joining node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Conversations with joining nodes at once, those that wait for approval aside: each has, at its end, a copy of
/// the document on its way. The others wait for their turn with no more than a TLS connection.
const CONVERSATIONS: usize = 32;

/// How long one waits for its turn, which comes within a second or two where a thousand join: a node gives up after
/// 15 s. Whoever is told that it is not its turn tries again by itself.
const QUEUE: Duration = Duration::from_secs(8);

/// Messages of kinds that this version does not know that are answered in a row: a later version may ask for
/// a few things and do without them, and nobody keeps a place by asking for more.
const MOST_UNKNOWN: usize = 4;

/// Gives every joining node a task of its own.
pub(super) fn serve(
    link: Arc<Link>,
    joining: mpsc::Receiver<JoinConnection>,
    commands: mpsc::Sender<MembershipCommand>,
    life: &Lifecycle,
) {
    let own = life.clone();
    let slots = Arc::new(Semaphore::new(CONVERSATIONS));
    life.supervise("joining", joining, move |joining| {
        let (link, commands, slots, life) = (link.clone(), commands.clone(), slots.clone(), own.clone());
        Box::pin(async move {
            while let Some(Some(one)) = life.draining.run_until_cancelled(joining.recv()).await {
                let (link, commands, slots) = (link.clone(), commands.clone(), slots.clone());
                let stopping = life.draining.clone();
                life.spawn(async move {
                    let from = one.from;
                    let talk = converse(&link, one, &commands, &slots);
                    if let Some(Err(error)) = stopping.run_until_cancelled(talk).await {
                        debug!(%from, %error, "joining ended");
                    }
                });
            }
        })
    });
}

async fn converse(
    link: &Link,
    joining: JoinConnection,
    commands: &mpsc::Sender<MembershipCommand>,
    slots: &Arc<Semaphore>,
) -> io::Result<()> {
    // Its place is held until the end.
    let JoinConnection { key, from, session, mut stream, .. } = joining;
    let Ok(Ok(mut slot)) = tokio::time::timeout(QUEUE, slots.clone().acquire_owned()).await else {
        return frames::send(&mut stream, &ToJoining::Busy).await;
    };
    let FromJoining::Join { name, proof, addresses, confirmed, cluster } =
        next(&mut stream, PATIENCE).await?
    else {
        return Err(io::Error::other("it sent no request"));
    };
    let dial_back = dial_back_address(from, &addresses);
    let applicant =
        Applicant { key, name: name.clone(), proof, session, from, addresses, confirmed, cluster };
    let mut admission = ask(commands, applicant.clone(), None).await?;
    if let Admission::Wait(answer) = admission {
        // Bounded by the places of those who wait.
        drop(slot);
        frames::send(&mut stream, &ToJoining::Wait { seconds: APPROVAL_TTL.as_secs() }).await?;
        let role = match approved(&mut stream, answer).await? {
            Ok(role) => role,
            Err(refusal) => return frames::send(&mut stream, &ToJoining::Refused(refusal)).await,
        };
        let stopping = |_| io::Error::other("this node is stopping");
        slot = slots.clone().acquire_owned().await.map_err(stopping)?;
        admission = ask(commands, applicant, Some(role)).await?;
    }
    let welcome = match admission {
        Admission::Welcome(welcome) => welcome,
        Admission::Refused(refusal) => {
            info!(%from, %name, "node refused: {refusal}");
            return frames::send(&mut stream, &ToJoining::Refused(refusal)).await;
        }
        Admission::Redirect(masters) => {
            return frames::send(&mut stream, &ToJoining::Redirect(masters)).await;
        }
        Admission::Wait(_) => return Ok(()),
    };
    // It is a member now, and its copy of the document may be large.
    stream.codec_mut().set_max_frame_length(MAX_FRAME);
    frames::send_encoded(&mut stream, &welcome).await?;
    drop(welcome);
    drop(slot);
    while let Ok(FromJoining::Listening) = next(&mut stream, PATIENCE).await {
        let (tcp, udp) = link.dial_back(key, dial_back).await;
        frames::send(&mut stream, &ToJoining::Reached { tcp, udp }).await?;
    }
    Ok(())
}

/// The next message of a kind that is known; the node is told of others that they are not, and goes on.
async fn next(stream: &mut Framed, within: Duration) -> io::Result<FromJoining> {
    for _ in 0..MOST_UNKNOWN {
        let kind = match frames::receive(stream, within).await? {
            Received::Known(message) => return Ok(message),
            Received::Unknown(kind) => kind,
        };
        frames::send(stream, &not_known(&kind)).await?;
    }
    Err(io::Error::other("it sent only unknown requests"))
}

fn not_known(kind: &str) -> ToJoining {
    let reason = format!("this member is older and does not know the request \"{kind}\"");
    ToJoining::Failed { code: FailCode::Unsupported, reason }
}

/// Asks the membership task.
async fn ask(
    commands: &mpsc::Sender<MembershipCommand>,
    applicant: Applicant,
    approved: Option<Role>,
) -> io::Result<Admission> {
    let stopping = || io::Error::other("this node is stopping");
    let (reply, answer) = oneshot::channel();
    let call = MembershipCommand::Join(JoinCall { applicant, approved, reply });
    commands.send(call).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

/// Waits until someone has approved the node and it has confirmed the cluster. An error: it is gone.
async fn approved(
    stream: &mut Framed,
    mut answer: oneshot::Receiver<Option<Role>>,
) -> io::Result<Result<Role, JoinRefusal>> {
    let until = Instant::now() + APPROVAL_TTL;
    let mut unknown = 0;
    let role = loop {
        let said = tokio::select! {
            answer = tokio::time::timeout_at(until, &mut answer) => match answer {
                Ok(Ok(Some(role))) => break role,
                Ok(Ok(None)) => return Ok(Err(JoinRefusal::Rejected)),
                Ok(Err(_)) | Err(_) => return Ok(Err(JoinRefusal::TimedOut)),
            },
            said = frames::receive(stream, APPROVAL_TTL) => said?,
        };
        // It has nothing to say while it waits; only a later version may ask for more, and does without it.
        match said {
            Received::<FromJoining>::Unknown(kind) if unknown < MOST_UNKNOWN => {
                unknown += 1;
                frames::send(stream, &not_known(&kind)).await?;
            }
            _ => return Err(io::Error::other("unexpected message")),
        }
    };
    frames::send(stream, &ToJoining::Approved { seconds: APPROVAL_TTL.as_secs() }).await?;
    match next(stream, APPROVAL_TTL).await? {
        FromJoining::Confirmed => Ok(Ok(role)),
        _ => Err(io::Error::other("it did not confirm the cluster")),
    }
}

/// Where a joining node is dialled back: at the address that it will advertise, since that is what all
/// others will use; when it named none, where it came from with the usual port.
fn dial_back_address(from: SocketAddr, named: &[SocketAddr]) -> SocketAddr {
    let same_family = named.iter().find(|address| address.is_ipv4() == from.is_ipv4());
    let fallback = SocketAddr::new(from.ip(), proto::transport::PORT);
    same_family.or(named.first()).copied().unwrap_or(fallback)
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    /// A node that waits, and what it asks of a kind that nobody knows.
    async fn asks(other: &mut Framed, count: usize) -> Vec<ToJoining> {
        let mut answers = Vec::new();
        for _ in 0..count {
            let unknown = std::collections::BTreeMap::from([("Tomorrow", 1)]);
            frames::send(other, &unknown).await.unwrap();
            match frames::receive(other, PATIENCE).await {
                Ok(Received::Known(answer)) => answers.push(answer),
                _ => break,
            }
        }
        answers
    }

    fn framed(stream: DuplexStream) -> Framed {
        frames::framed(stream, MAX_FRAME)
    }

    #[tokio::test]
    async fn a_wait_outlives_a_few_requests_of_a_later_version_and_no_more() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut ours, mut theirs) = (framed(ours), framed(theirs));
        let (approve, answer) = oneshot::channel();
        let waiting = tokio::spawn(async move { approved(&mut ours, answer).await });
        let answers = asks(&mut theirs, MOST_UNKNOWN).await;
        assert_eq!(answers.len(), MOST_UNKNOWN);
        assert!(
            answers
                .iter()
                .all(|answer| matches!(answer, ToJoining::Failed { code: FailCode::Unsupported, .. })),
            "{answers:?}"
        );
        approve.send(Some(Role::Worker)).unwrap();
        let told = frames::receive(&mut theirs, PATIENCE).await.unwrap();
        assert!(matches!(told, Received::Known(ToJoining::Approved { .. })));
        frames::send(&mut theirs, &FromJoining::Confirmed).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), Ok(Role::Worker));

        let (ours, theirs) = tokio::io::duplex(4096);
        let (mut ours, mut theirs) = (framed(ours), framed(theirs));
        let (_approve, answer) = oneshot::channel();
        let waiting = tokio::spawn(async move { approved(&mut ours, answer).await });
        assert_eq!(asks(&mut theirs, MOST_UNKNOWN + 1).await.len(), MOST_UNKNOWN);
        assert!(waiting.await.unwrap().is_err());
    }
}
