//! The conversation with a node that wants to join, on the side that lets it in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::exchange::{FromJoining, MAX_FRAME, ToJoining};
use proto::invite::{APPROVAL_TTL, Refusal};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

use super::{Admission, Applicant, Command};
use crate::lifecycle::Life;
use crate::link::{Joining, Link, frames};

/// Time for each message of the joining node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Gives every joining node a task of its own. The link bounds how many there are.
pub(crate) fn serve(
    link: Arc<Link>,
    mut joining: mpsc::Receiver<Joining>,
    commands: mpsc::Sender<Command>,
    life: &Life,
) {
    let life = life.clone();
    life.clone().spawn(async move {
        loop {
            let one = tokio::select! {
                one = joining.recv() => one,
                () = life.stopping.cancelled() => return,
            };
            let Some(one) = one else { return };
            let (link, commands, over) = (link.clone(), commands.clone(), life.stopping.clone());
            life.spawn(async move {
                let from = one.from;
                tokio::select! {
                    result = converse(&link, one, &commands) => {
                        if let Err(error) = result {
                            debug!(%from, %error, "joining ended");
                        }
                    }
                    () = over.cancelled() => {}
                }
            });
        }
    });
}

async fn converse(link: &Link, joining: Joining, commands: &mpsc::Sender<Command>) -> std::io::Result<()> {
    // Its place is held until the end.
    let Joining { key, from, session, mut stream, .. } = joining;
    let FromJoining::Join { name, proof, addresses } = frames::receive(&mut stream, PATIENCE).await? else {
        return Err(std::io::Error::other("it did not say what it wants"));
    };
    let dial_back = dial_back_address(from, &addresses);
    let applicant = Applicant { key, name: name.clone(), proof, session, from, addresses };
    let (reply, admission) = oneshot::channel();
    let stopping = || std::io::Error::other("this node is stopping");
    commands.send(Command::Join(applicant, reply)).await.map_err(|_| stopping())?;
    let mut admission = admission.await.map_err(|_| stopping())?;
    if let Admission::Wait(answer) = admission {
        frames::send(&mut stream, &ToJoining::Wait { seconds: APPROVAL_TTL.as_secs() }).await?;
        admission = tokio::select! {
            answer = tokio::time::timeout(APPROVAL_TTL, answer) => match answer {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Admission::Refused(Refusal::TimedOut),
            },
            // It has nothing to say while it waits: whatever comes means that it is gone.
            gone = frames::receive::<FromJoining>(&mut stream, APPROVAL_TTL) => {
                gone?;
                return Ok(());
            }
        };
    }
    let welcome = match admission {
        Admission::Welcome(welcome) => welcome,
        Admission::Refused(refusal) => {
            info!(%from, %name, "a node was refused: {refusal}");
            return frames::send(&mut stream, &ToJoining::Refused(refusal)).await;
        }
        Admission::Wait(_) => return Ok(()),
    };
    // It is a member now, and its copy of the document may be large.
    stream.codec_mut().set_max_frame_length(MAX_FRAME);
    frames::send(&mut stream, &ToJoining::Welcome(welcome)).await?;
    while let Ok(FromJoining::Listening) = frames::receive(&mut stream, PATIENCE).await {
        let (tcp, udp) = link.dial_back(key, dial_back).await;
        frames::send(&mut stream, &ToJoining::Reached { tcp, udp }).await?;
    }
    Ok(())
}

/// Where a joining node is dialled back: at the address that it will advertise, since that is what all
/// others will use; when it named none, where it came from with the usual port.
fn dial_back_address(from: SocketAddr, named: &[SocketAddr]) -> SocketAddr {
    let same_family = named.iter().find(|address| address.is_ipv4() == from.is_ipv4());
    let fallback = SocketAddr::new(from.ip(), proto::link::PORT);
    same_family.or(named.first()).copied().unwrap_or(fallback)
}
