//! The conversation with a member, on the side of the node that wants in.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proto::cause::Fault;
use proto::cluster::ClusterId;
use proto::invite::{Invite, InviteProof, IssuerPin, JoinRefusal, code_of, confirmation_of};
use proto::node::{Name, PublicKey};
use proto::rpc::{FromJoining, MAX_FRAME, Received, ToJoining, Welcome};
use tracing::debug;

use crate::transport::dial::connect;
use crate::transport::frames::{self, Framed};
use crate::transport::tls::{self, Identity};

/// Time for a member's first answer: it writes to disk before it says welcome.
const ANSWER: Duration = Duration::from_secs(15);

/// Time for a member to be reached at all: a VPN's tunnel may have to be made first, and WireGuard tries
/// its handshake again only after five seconds.
const PATIENCE: Duration = Duration::from_secs(8);

/// Messages of kinds that this version does not know that are ignored while this node waits: a later member may
/// say how it goes, and nobody keeps this node reading by that.
const MOST_UNKNOWN: usize = 4;

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// Nobody answered.
    #[error(
        "no answer from {}: {source}; check that the agent runs there and TCP port {port} is open",
        list(addresses)
    )]
    Unreachable { addresses: Vec<SocketAddr>, port: u16, source: io::Error },
    /// The issuer of the invite did not answer.
    #[error(
        "no answer from the issuer of this invite, {}: {source}; an invite counts at its issuer alone: check that the \
         agent runs there and TCP port {port} is open, or, if it is gone for good, make a new one on another master \
         with: agent invite",
        list(addresses)
    )]
    IssuerUnreachable { addresses: Vec<SocketAddr>, port: u16, source: io::Error },
    /// Someone else answered.
    #[error("the node at {} does not have the key in the invite: it was reinstalled, or there is a man in the middle; create a new invite on a master that you trust, with: agent invite", list(.0))]
    WrongPin(Vec<SocketAddr>),
    /// The member said no.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// Only masters let nodes in, and this one is none.
    #[error("it is a worker; redirected to a master: {}", list(.0))]
    Redirected(Vec<SocketAddr>),
    /// The invite can't be redeemed where it was made, nor anywhere else.
    #[error(
        "the invite was made by {at}, which is a worker now, and only masters let nodes in; make a new one \
         on a master ({}) with: agent invite",
        if masters.is_empty() { "agent status there names them".to_owned() } else { list(masters) }
    )]
    IssuerDemoted { at: SocketAddr, masters: Vec<SocketAddr> },
    /// Too many join at once.
    #[error("too many nodes are joining at once; try again")]
    Busy,
    /// Nobody has confirmed that this is the right cluster.
    #[error("{0}; nothing was changed")]
    NotConfirmed(String),
    /// What it gave is not sealed by a master of its cluster.
    #[error("its cluster document can't be trusted: {0}; nothing was changed")]
    NotSealed(proto::cluster::AdoptError),
    /// The member can't do what was asked.
    #[error("{0}")]
    Failed(String),
    /// The member answered with a kind of message of a later version.
    #[error("the member answered \"{0}\", which this version does not know; upgrade this node")]
    UnknownAnswer(String),
    /// The conversation broke.
    #[error("the member closed the connection{}; try again", why(.0))]
    Broken(io::Error),
}

impl JoinError {
    /// The connection was closed before anything was said.
    pub(crate) fn is_closed(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match self {
            JoinError::Unreachable { source, .. } | JoinError::IssuerUnreachable { source, .. } => {
                [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&source.kind())
            }
            _ => false,
        }
    }
}

/// Why a conversation broke, where there is more to say than that.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => ": its agent was stopped".to_owned(),
        _ => format!(": {error}"),
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// What this node knows of the cluster that it wants to join.
#[derive(Debug, Clone, Copy)]
pub(crate) enum JoinCredential<'a> {
    /// An invite: it proves itself, and names the key that has to answer.
    Invite(&'a Invite),
    /// The key that has to answer.
    Pin(IssuerPin),
    /// Nothing: people compare codes on both sides.
    None,
}

impl JoinCredential<'_> {
    fn pin(&self) -> Option<IssuerPin> {
        match self {
            JoinCredential::Invite(invite) => Some(invite.issuer),
            JoinCredential::Pin(pin) => Some(*pin),
            JoinCredential::None => None,
        }
    }
}

/// How far a request to join has come.
pub(crate) enum JoinProgress {
    /// Admitted.
    Welcome(Box<Welcome>),
    /// Approved: the code has to be typed here, and then [`SeedConnection::confirm`].
    Approved {
        /// What has to be typed.
        code: String,
    },
}

/// A member that has been reached.
pub(crate) struct SeedConnection {
    stream: Framed,
    session: [u8; 32],
    own: PublicKey,
    /// Where it was reached.
    pub(crate) at: SocketAddr,
    /// Its key.
    pub(crate) key: PublicKey,
    /// How long connecting and the handshake took.
    pub(crate) took: Duration,
}

/// Connects to a member: to the issuer of the invite, whose key is then known, or to whoever answers.
pub(crate) async fn reach(
    identity: &Identity,
    addresses: &[SocketAddr],
    credential: JoinCredential<'_>,
) -> Result<SeedConnection, JoinError> {
    let started = Instant::now();
    let config = identity
        .joining_client(credential.pin())
        .map_err(|error| JoinError::Broken(io::Error::other(error)))?;
    let connected = loop {
        match connect(addresses, config.clone()).await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && started.elapsed() < PATIENCE => {}
            result => break result,
        }
    };
    let (stream, at) = connected.map_err(|source| {
        let wrong_key = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match wrong_key {
            Some(rustls::Error::InvalidCertificate(_)) => JoinError::WrongPin(addresses.to_vec()),
            _ => {
                let port = addresses.first().map_or(proto::transport::PORT, SocketAddr::port);
                let addresses = addresses.to_vec();
                match credential {
                    JoinCredential::Invite(_) => JoinError::IssuerUnreachable { addresses, port, source },
                    _ => JoinError::Unreachable { addresses, port, source },
                }
            }
        }
    })?;
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let key = certificate
        .and_then(tls::key_of)
        .ok_or_else(|| JoinError::Broken(io::Error::other("it did not present a raw public key")))?;
    let session =
        tls::exported_client(connection).map_err(|error| JoinError::Broken(io::Error::other(error)))?;
    let stream = frames::framed(stream, MAX_FRAME);
    Ok(SeedConnection { stream, session, own: identity.key, at, key, took: started.elapsed() })
}

impl SeedConnection {
    /// Asks to be let in. `waits` is told the code when someone has to approve it.
    pub(crate) async fn ask(
        &mut self,
        name: Name,
        credential: JoinCredential<'_>,
        addresses: Vec<SocketAddr>,
        cluster: Option<ClusterId>,
        waits: &mut (dyn FnMut(&str, Duration) + Send),
    ) -> Result<JoinProgress, JoinError> {
        let proof = match credential {
            JoinCredential::Invite(invite) => {
                Some(InviteProof::make(invite.id, &invite.secret, &self.session, &self.own))
            }
            JoinCredential::Pin(_) | JoinCredential::None => None,
        };
        let confirmed = credential.pin().is_some();
        let join = FromJoining::Join { name, proof, addresses, confirmed, cluster };
        frames::send(&mut self.stream, &join).await.map_err(JoinError::Broken)?;
        let mut answer = self.receive(ANSWER).await?;
        if let ToJoining::Wait { seconds } = answer {
            let time = Duration::from_secs(seconds);
            waits(&code_of(&self.session), time);
            answer = self.decided(time + ANSWER).await?;
        }
        match answer {
            ToJoining::Approved { .. } if confirmed => self.confirm().await.map(JoinProgress::Welcome),
            ToJoining::Approved { .. } => Ok(JoinProgress::Approved { code: confirmation_of(&self.session) }),
            ToJoining::Welcome(_) if !confirmed => Err(JoinError::NotConfirmed(
                "it admits this node although nobody has compared codes".to_owned(),
            )),
            answer => welcome(answer).map(JoinProgress::Welcome),
        }
    }

    /// Says that this is the right cluster.
    pub(crate) async fn confirm(&mut self) -> Result<Box<Welcome>, JoinError> {
        frames::send(&mut self.stream, &FromJoining::Confirmed).await.map_err(JoinError::Broken)?;
        welcome(self.receive(ANSWER).await?)
    }

    /// Asks to be dialled back; none where it was reached, else why not: by TCP, by UDP.
    pub(crate) async fn dialled_back(&mut self) -> Result<(Option<Fault>, Option<Fault>), JoinError> {
        frames::send(&mut self.stream, &FromJoining::Listening).await.map_err(JoinError::Broken)?;
        match self.receive(ANSWER).await? {
            ToJoining::Reached { tcp, udp } => Ok((tcp, udp)),
            ToJoining::Failed { reason, .. } => Err(JoinError::Failed(reason)),
            _ => Err(unexpected()),
        }
    }

    /// What someone has decided about this node, which waits for it.
    async fn decided(&mut self, within: Duration) -> Result<ToJoining, JoinError> {
        let until = tokio::time::Instant::now() + within;
        let mut ignored = None;
        for _ in 0..=MOST_UNKNOWN {
            match self.receive(until.saturating_duration_since(tokio::time::Instant::now())).await {
                Err(JoinError::UnknownAnswer(kind)) => {
                    debug!(at = %self.at, kind, "ignored a message of a later version");
                    ignored = Some(kind);
                }
                // It may have been what was decided.
                Err(JoinError::Broken(error)) => {
                    return Err(ignored.map_or(JoinError::Broken(error), JoinError::UnknownAnswer));
                }
                answer => return answer,
            }
        }
        Err(JoinError::UnknownAnswer(ignored.unwrap_or_default()))
    }

    async fn receive(&mut self, within: Duration) -> Result<ToJoining, JoinError> {
        match frames::receive(&mut self.stream, within).await.map_err(JoinError::Broken)? {
            Received::Known(answer) => Ok(answer),
            Received::Unknown(kind) => Err(JoinError::UnknownAnswer(kind)),
        }
    }
}

fn welcome(answer: ToJoining) -> Result<Box<Welcome>, JoinError> {
    match answer {
        ToJoining::Welcome(welcome) => Ok(welcome),
        ToJoining::Refused(refusal) => Err(refusal.into()),
        ToJoining::Redirect(masters) => Err(JoinError::Redirected(masters)),
        ToJoining::Busy => Err(JoinError::Busy),
        ToJoining::Failed { reason, .. } => Err(JoinError::Failed(reason)),
        ToJoining::Wait { .. } | ToJoining::Approved { .. } | ToJoining::Reached { .. } => Err(unexpected()),
    }
}

fn unexpected() -> JoinError {
    JoinError::Broken(io::Error::other("unexpected answer"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A node that asks without an invite, and the other end of its connection.
    fn asks() -> (tokio::task::JoinHandle<Result<JoinProgress, JoinError>>, Framed) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let own = PublicKey([1; 32]);
        let mut seed = SeedConnection {
            stream: frames::framed(ours, MAX_FRAME),
            session: [7; 32],
            own,
            at: ([10, 0, 0, 1], 7646).into(),
            key: PublicKey([2; 32]),
            took: Duration::ZERO,
        };
        let asking = tokio::spawn(async move {
            let mut waits = |_: &str, _: Duration| {};
            seed.ask(Name::nearest("a"), JoinCredential::None, Vec::new(), None, &mut waits).await
        });
        (asking, frames::framed(theirs, MAX_FRAME))
    }

    async fn says(member: &mut Framed, unknown: usize) {
        let asked = frames::receive::<Received<FromJoining>>(member, ANSWER).await.unwrap();
        assert!(matches!(asked, Received::Known(FromJoining::Join { .. })));
        frames::send(member, &ToJoining::Wait { seconds: 60 }).await.unwrap();
        for _ in 0..unknown {
            frames::send(member, &BTreeMap::from([("Tomorrow", 1)])).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_node_that_waits_ignores_a_few_messages_of_a_later_version_and_no_more() {
        let (asking, mut member) = asks();
        says(&mut member, MOST_UNKNOWN).await;
        frames::send(&mut member, &ToJoining::Approved { seconds: 60 }).await.unwrap();
        let approved = asking.await.unwrap();
        let code = confirmation_of(&[7; 32]);
        assert!(matches!(approved, Ok(JoinProgress::Approved { code: asked }) if asked == code));

        let (asking, mut member) = asks();
        says(&mut member, MOST_UNKNOWN + 1).await;
        let ended = asking.await.unwrap();
        assert!(matches!(ended, Err(JoinError::UnknownAnswer(kind)) if kind == "Tomorrow"));

        // What was decided may be of a kind that only a later version knows.
        let (asking, mut member) = asks();
        says(&mut member, 1).await;
        drop(member);
        assert!(matches!(asking.await.unwrap(), Err(JoinError::UnknownAnswer(_))));
    }

    #[tokio::test]
    async fn a_welcome_of_a_key_that_nobody_has_confirmed_is_none() {
        let (asking, mut member) = asks();
        let welcome = Welcome { snapshot: Default::default(), serving: Vec::new() };
        frames::send(&mut member, &ToJoining::Welcome(Box::new(welcome))).await.unwrap();
        assert!(matches!(asking.await.unwrap(), Err(JoinError::NotConfirmed(_))));
    }
}
