//! The TCP port: a handshake within a few seconds, then members or joining nodes, told apart by ALPN.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::exchange::{ALPN_JOIN, ALPN_MEMBER, FromMember, MAX_FRAME, MAX_JOIN_FRAME, ToMember};
use proto::node::PublicKey;
use rustls::ServerConfig;
use socket2::{Protocol, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::LazyConfigAcceptor;
use tracing::debug;

use super::book::plain;
use super::{Incoming, Joining, Link, frames, tls};
use crate::lifecycle::Life;

/// Time for a handshake: three round trips of the slowest mesh, with room for loss.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Handshakes at once. Nobody has proven anything yet, so this bounds what a stranger can make us spend.
const HANDSHAKES: usize = 64;

/// Connections of members at once: each member keeps one for large gossip and opens one for a request.
const MEMBERS: usize = 1024;

/// A member's connection that says nothing for this long is closed; it opens a new one when it has to.
const IDLE: Duration = Duration::from_secs(90);

pub(super) fn bind(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let (socket, at) = super::udp::socket(address, Type::STREAM, Protocol::TCP, port)?;
    socket.set_reuse_address(true)?;
    match socket.bind(&at.into()) {
        Err(_) if address.is_none() && at.is_ipv6() => {
            return bind(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        }
        bound => bound?,
    }
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

struct Configs {
    member: Arc<ServerConfig>,
    joining: Arc<ServerConfig>,
}

impl Link {
    /// Accepts connections until the process stops.
    ///
    /// # Errors
    /// TLS can't be set up, which no input can cause.
    pub(crate) fn serve_tcp(
        self: &Arc<Link>,
        listener: TcpListener,
        life: &Life,
    ) -> Result<(), rustls::Error> {
        let configs = Arc::new(Configs {
            member: Arc::new(self.identity.member_server(self.trust.clone())?),
            joining: Arc::new(self.identity.joining_server()?),
        });
        let (link, life) = (self.clone(), life.clone());
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let members = Arc::new(Semaphore::new(MEMBERS));
        life.clone().spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = life.over.cancelled() => return,
                };
                let Ok((stream, from)) = accepted else {
                    // Out of descriptors, most likely: breathe instead of spinning.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let Ok(handshake) = handshakes.clone().try_acquire_owned() else { continue };
                let Ok(member) = members.clone().try_acquire_owned() else { continue };
                let (link, configs, over) = (link.clone(), configs.clone(), life.over.clone());
                life.spawn(async move {
                    let work = async {
                        let shaken = tokio::time::timeout(HANDSHAKE, shake(&link, stream, &configs)).await;
                        drop(handshake);
                        match shaken {
                            Ok(Ok(shaken)) => link.serve_connection(shaken, plain(from)).await,
                            Ok(Err(error)) => debug!(%from, %error, "handshake refused"),
                            Err(_) => debug!(%from, "handshake took too long"),
                        }
                    };
                    tokio::select! { () = work => {}, () = over.cancelled() => {} }
                    drop(member);
                });
            }
        });
        Ok(())
    }

    async fn serve_connection(&self, shaken: Shaken, from: SocketAddr) {
        match shaken {
            Shaken::Member(key, mut stream) => {
                if let Err(error) = self.serve_member(&key, &mut stream).await {
                    debug!(peer = %key.id(), %error, "connection ended");
                }
            }
            Shaken::Joining(key, session, stream) => {
                // A full queue closes the connection: the joining node says so and tries again.
                let _ = self.outlets.joining.try_send(Joining { key, from, session, stream });
            }
        }
    }

    async fn serve_member(&self, key: &PublicKey, stream: &mut frames::Framed) -> io::Result<()> {
        loop {
            let request: FromMember = frames::receive(stream, IDLE).await?;
            // Trust may have ended since the handshake.
            if self.trust.borrow().document.member(&key.id()).is_none() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a member any more"));
            }
            let request = match request {
                FromMember::Gossip(message) => {
                    super::count(&self.counters.received_bytes, message.len());
                    let _ = self.outlets.gossip.try_send((key.id(), message));
                    continue;
                }
                request => request,
            };
            let (reply, answer) = oneshot::channel();
            let incoming = Incoming { from: key.id(), request, reply };
            let busy = || ToMember::Failed("this node is busy; try again".to_owned());
            let answer = match self.outlets.members.try_send(incoming) {
                Ok(()) => answer.await.unwrap_or_else(|_| busy()),
                Err(_) => busy(),
            };
            frames::send(stream, &answer).await?;
        }
    }
}

enum Shaken {
    Member(PublicKey, frames::Framed),
    Joining(PublicKey, [u8; 32], frames::Framed),
}

async fn shake(link: &Link, stream: TcpStream, configs: &Configs) -> io::Result<Shaken> {
    stream.set_nodelay(true)?;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let offers = |alpn: &[u8]| {
        let hello = start.client_hello();
        hello.alpn().is_some_and(|mut offered| offered.any(|one| one == alpn))
    };
    let refused = |why: &'static str| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let (joining, config) = if offers(ALPN_MEMBER) {
        (false, configs.member.clone())
    } else if offers(ALPN_JOIN) {
        (true, configs.joining.clone())
    } else {
        return Err(refused("not a client of this port"));
    };
    let stream = start.into_stream(config).await?;
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    let key = certificate.and_then(tls::key_of).ok_or_else(|| refused("no raw public key"))?;
    if key.id() == link.own() {
        return Err(refused("this node itself"));
    }
    if !joining {
        return Ok(Shaken::Member(key, frames::framed(stream, MAX_FRAME)));
    }
    let session = tls::exported_server(connection).map_err(io::Error::other)?;
    Ok(Shaken::Joining(key, session, frames::framed(stream, MAX_JOIN_FRAME)))
}
