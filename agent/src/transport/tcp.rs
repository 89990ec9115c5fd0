//! The TCP port: a handshake within a few seconds, then members or joining nodes, told apart by ALPN.
//!
//! Until the handshake is over a connection is anybody's. Those that come from addresses of members have
//! places of their own, so that strangers, however many, never keep a member out; a stranger that says nothing
//! goes for one who comes later. Members' connections are counted for each member.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::node::{NodeId, PublicKey};
use proto::rpc::{ALPN_JOIN, ALPN_MEMBER, FailCode, FromMember, MAX_JOIN_FRAME, Received, ToMember};
use proto::session::source;
use proto::time::Moment;
use rustls::ServerConfig;
use socket2::{Protocol, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::addresses::{AddressBook, unmapped};
use super::counters::{Count, LinkCounters};
use super::frames::FrameBudget;
use super::inbox::Arrivals;
use super::slots::{ConnectionSlot, ConnectionSlots};
use super::tls::Identity;
use super::{JoinConnection, MemberRequest, TrustedKeys, frames, tls};
use crate::lifecycle::Lifecycle;

/// Time for a handshake: three round trips of the slowest mesh, with room for loss.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The same for a stranger while half of the strangers' places are taken: one slow round trip.
const HANDSHAKE_BUSY: Duration = Duration::from_secs(2);

/// Handshakes at once of strangers, which a node that joins is too. Nobody has proven anything yet, so this
/// bounds what they can make us spend: 64 kB each at most, that of rustls for a handshake.
const STRANGERS: usize = 64;

/// Those of one source. Where more nodes than this join at once through one NAT, some try again.
const STRANGERS_EACH: usize = 8;

/// Handshakes at once from addresses of members, kept for them; a second of those of a thousand nodes that
/// start together.
const KNOWN: usize = 128;

/// Those of one source, behind which there may be several members.
const KNOWN_EACH: usize = 32;

/// Connections of members at once: each member keeps one for large gossip and opens one for a request.
const MEMBERS: usize = 1024;

/// Those of one member: large gossip, and a few requests at once.
const MEMBERS_EACH: usize = 8;

/// Requests of one member that are being served at once; the queue has room for eight members that ask all
/// that they may.
const REQUESTS_EACH: usize = 4;

/// Nodes that want to join, at once, after their handshakes, and those of one source.
const JOINING: usize = 256;
const JOINING_EACH: usize = 64;

/// How old the list of members' addresses may be. It is made anew for a connection, not for a change.
const ADDRESSES: Duration = Duration::from_secs(1);

/// A member's connection that says nothing for this long is closed; it opens a new one when it has to.
const IDLE: Duration = Duration::from_secs(90);

pub(super) fn bind(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let (socket, at) = super::socket::socket(address, Type::STREAM, Protocol::TCP, port)?;
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

struct TlsConfigs {
    member: Arc<ServerConfig>,
    joining: Arc<ServerConfig>,
}

/// Connections from others to this node.
pub(super) struct ConnectionServer {
    identity: Arc<Identity>,
    trust: watch::Receiver<Arc<TrustedKeys>>,
    addresses: Arc<AddressBook>,
    slots: SlotTables,
    /// What requests of members may hold.
    requests: Arc<FrameBudget>,
    arrivals: Arc<Arrivals>,
    counters: Arc<LinkCounters>,
}

impl ConnectionServer {
    /// Nobody is connected yet.
    pub(super) fn new(
        identity: Arc<Identity>,
        trust: watch::Receiver<Arc<TrustedKeys>>,
        addresses: Arc<AddressBook>,
        arrivals: Arc<Arrivals>,
        counters: Arc<LinkCounters>,
    ) -> ConnectionServer {
        let requests = FrameBudget::new(frames::BUDGET, frames::BUDGET_EACH);
        ConnectionServer {
            identity,
            trust,
            addresses,
            slots: SlotTables::new(),
            requests,
            arrivals,
            counters,
        }
    }

    /// Accepts connections until the process stops.
    ///
    /// # Errors
    /// TLS can't be set up, which no input can cause.
    pub(super) fn serve(
        self: &Arc<ConnectionServer>,
        listener: Arc<TcpListener>,
        life: &Lifecycle,
    ) -> Result<(), rustls::Error> {
        let configs = Arc::new(TlsConfigs {
            member: Arc::new(self.identity.member_server(self.trust.clone())?),
            joining: Arc::new(self.identity.joining_server()?),
        });
        let (server, own) = (self.clone(), life.clone());
        life.supervise("link-tcp", listener, move |listener| {
            let (server, configs, life) = (server.clone(), configs.clone(), own.clone());
            Box::pin(async move {
                life.shutdown.run_until_cancelled(server.accept(listener, &configs, &life)).await;
            })
        });
        Ok(())
    }

    async fn accept(
        self: &Arc<ConnectionServer>,
        listener: &TcpListener,
        configs: &Arc<TlsConfigs>,
        life: &Lifecycle,
    ) {
        let mut known = (Moment::ZERO, BTreeSet::new());
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                // Out of descriptors, most likely: breathe instead of spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (from, now) = (unmapped(from), life.now());
            if known.1.is_empty() || now.since(known.0) >= ADDRESSES {
                known = (now, self.addresses.ips());
            }
            let (place, patience) = self.slots.handshake(from.ip(), known.1.contains(&from.ip()), now);
            let (server, configs) = (self.clone(), configs.clone());
            let (own, over) = (life.clone(), life.shutdown.clone());
            life.spawn(async move {
                let work = async {
                    let shaken = server.shake(stream, &configs, || place.shows(true, own.now()));
                    let shaken = tokio::select! {
                        shaken = tokio::time::timeout(patience, shaken) => shaken,
                        () = place.gone.cancelled() => return server.counters.one(Count::RefusedConnections),
                    };
                    drop(place);
                    match shaken {
                        Ok(Ok(shaken)) => server.serve_connection(shaken, from, &own).await,
                        Ok(Err(error)) => debug!(%from, %error, "handshake refused"),
                        Err(_) => debug!(%from, "handshake took too long"),
                    }
                };
                tokio::select! { () = work => {}, () = over.cancelled() => {} }
            });
        }
    }

    async fn serve_connection(&self, shaken: HandshakeEnd, from: SocketAddr, life: &Lifecycle) {
        match shaken {
            HandshakeEnd::Member(key, stream) => {
                let id = key.id();
                let place = self.slots.members.take(id, life.now());
                let mut stream = frames::requests(stream, id, &self.requests);
                let served = self.serve_member(&key, &mut stream, &place, life);
                let ended = tokio::select! {
                    ended = served => ended,
                    () = place.gone.cancelled() => {
                        self.counters.one(Count::RefusedConnections);
                        Err(io::Error::other("too many connections"))
                    }
                };
                if let Err(error) = ended {
                    debug!(peer = %id, %error, "connection ended");
                }
            }
            HandshakeEnd::Joining(key, session, stream) => {
                let Some(place) = self.slots.joining.take_free(source(from.ip()), life.now()) else {
                    return self.counters.one(Count::RefusedConnections);
                };
                let stream = frames::framed(stream, MAX_JOIN_FRAME);
                self.arrivals.joining(JoinConnection { key, from, session, stream, place });
            }
        }
    }

    async fn serve_member(
        &self,
        key: &PublicKey,
        stream: &mut frames::Framed,
        place: &ConnectionSlot<NodeId>,
        life: &Lifecycle,
    ) -> io::Result<()> {
        let id = key.id();
        loop {
            place.shows(false, life.now());
            let request: Received<FromMember> = frames::receive(stream, IDLE).await?;
            place.shows(true, life.now());
            // Trust may have ended since the handshake.
            if self.trust.borrow().document.member(&id).is_none() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "no longer a member"));
            }
            let request = match request {
                Received::Known(request) => request,
                Received::Unknown(kind) => {
                    let reason = format!("this node is older and does not know the request \"{kind}\"");
                    frames::send(stream, &ToMember::failed(FailCode::Unsupported, reason)).await?;
                    continue;
                }
            };
            let request = match request {
                FromMember::Gossip(message) => {
                    self.counters.add(Count::ReceivedBytes, message.len());
                    self.arrivals.gossip(id, message, life.now());
                    continue;
                }
                request => request,
            };
            let busy = || ToMember::failed(FailCode::Busy, "this node is busy; try again");
            let turn = self.slots.requests.take_free(id, life.now());
            let (reply, answer) = oneshot::channel();
            let incoming = MemberRequest { from: id, request, reply };
            let answer = match turn.is_some() && self.arrivals.request(incoming) {
                true => answer.await.unwrap_or_else(|_| busy()),
                false => busy(),
            };
            drop(turn);
            frames::send(stream, &answer).await?;
        }
    }

    /// Holds the handshake of a connection; `talks` is called when its first bytes have come.
    async fn shake(
        &self,
        stream: TcpStream,
        configs: &TlsConfigs,
        talks: impl FnOnce(),
    ) -> io::Result<HandshakeEnd> {
        stream.set_nodelay(true)?;
        stream.readable().await?;
        talks();
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let offers = |known: &[&[u8]]| {
            let hello = start.client_hello();
            hello.alpn().is_some_and(|mut offered| offered.any(|one| known.contains(&one)))
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
        if key.id() == self.identity.id {
            return Err(refused("this node itself"));
        }
        if !joining {
            return Ok(HandshakeEnd::Member(key, stream));
        }
        let session = tls::exported_server(connection).map_err(io::Error::other)?;
        Ok(HandshakeEnd::Joining(key, session, stream))
    }

    /// What requests hold now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.requests.used()
    }
}

/// Places of all kinds of connections.
struct SlotTables {
    strangers: Arc<ConnectionSlots<IpAddr>>,
    known: Arc<ConnectionSlots<IpAddr>>,
    joining: Arc<ConnectionSlots<IpAddr>>,
    members: Arc<ConnectionSlots<NodeId>>,
    requests: Arc<ConnectionSlots<NodeId>>,
}

impl SlotTables {
    fn new() -> SlotTables {
        SlotTables {
            strangers: ConnectionSlots::new(STRANGERS, STRANGERS_EACH),
            known: ConnectionSlots::new(KNOWN, KNOWN_EACH),
            joining: ConnectionSlots::new(JOINING, JOINING_EACH),
            members: ConnectionSlots::new(MEMBERS, MEMBERS_EACH),
            requests: ConnectionSlots::new(MEMBERS, REQUESTS_EACH),
        }
    }

    /// A place for a handshake, and how long that may take.
    fn handshake(&self, from: IpAddr, known: bool, now: Moment) -> (ConnectionSlot<IpAddr>, Duration) {
        let places = if known { &self.known } else { &self.strangers };
        let busy = !known && places.is_busy();
        (places.take(source(from), now), if busy { HANDSHAKE_BUSY } else { HANDSHAKE })
    }
}

enum HandshakeEnd {
    Member(PublicKey, TlsStream<TcpStream>),
    Joining(PublicKey, [u8; 32], TlsStream<TcpStream>),
}
