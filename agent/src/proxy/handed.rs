//! What goes from one process to the next: everything of this proxy into a [`HandOver`], and out of it again.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use proto::handover::{HandOver, HandedConnection};
use proto::service::ServiceName;

use super::pool::ServicePool;
use super::stream::Stream;
use super::{Proxy, ProxyShared, connection, lock};
use crate::handover::Received;

/// So often it is looked whether all connections have stopped. Each does when it is next polled; only a thread that
/// hangs takes longer.
const STOP: u32 = 2_000;

/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(1);

/// The listening sockets of an address that were handed over.
pub(super) fn listeners(received: &mut Received, service: &ServiceName, at: SocketAddr) -> Vec<TcpListener> {
    let mut sockets = Vec::new();
    for handed in std::mem::take(&mut received.form.services) {
        if handed.name.as_ref() == Some(service) {
            for (address, slot) in &handed.listeners {
                let socket = if *address == at { received.take(*slot) } else { None };
                sockets.extend(socket.map(TcpListener::from));
            }
        }
        received.form.services.push(handed);
    }
    sockets
}

impl Proxy {
    /// Accepts nothing and moves no bytes until [`Proxy::resume`]. False: something did not stop in time.
    pub(crate) async fn pause(&self) -> bool {
        let ProxyShared { pause, clients, .. } = &*self.shared;
        pause.begin();
        self.wake_all();
        for _ in 0..STOP {
            if pause.is_complete(clients.load(SeqCst)) {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// Adds all that another process needs to go on.
    pub(crate) fn hand_over(&self, form: &mut HandOver) {
        for running in lock(&self.services).values() {
            let mut service = running.pool.handed();
            for (_, slot) in &mut service.listeners {
                *slot = form.place(*slot);
            }
            for connection in &mut service.connections {
                connection.client = form.place(connection.client);
                if let Some((slot, ..)) = &mut connection.backend {
                    *slot = form.place(*slot);
                }
            }
            form.services.push(service);
        }
    }

    /// Goes on, since no other process does.
    pub(crate) fn resume(&self) {
        lock(&self.services).values().for_each(|running| drop(running.pool.handed()));
        self.shared.pause.end();
        self.wake_all();
    }

    fn wake_all(&self) {
        lock(&self.services).values().for_each(|running| running.pool.wake_all());
    }

    /// Goes on with the connections of the process before this one. Returns how many there are, and how many had to
    /// be ended: those of a service that is not configured any more, and those whose sockets are not there.
    pub(crate) fn go_on(&self, received: &mut Received) -> (usize, usize) {
        let (mut count, mut ended) = (0, received.form.left_out);
        for mut handed in std::mem::take(&mut received.form.services) {
            let services = lock(&self.services);
            let pool = handed.name.as_ref().and_then(|name| Some(Arc::clone(&services.get(name)?.pool)));
            drop(services);
            let connections = std::mem::take(&mut handed.connections);
            let Some(pool) = pool else {
                ended += connections.len();
                continue;
            };
            pool.add(&handed, self.shared.life.now());
            for connection in connections {
                match self.continue_one(received, connection, &pool) {
                    Some(()) => count += 1,
                    None => ended += 1,
                }
            }
        }
        (count, ended)
    }

    fn continue_one(
        &self,
        received: &mut Received,
        handed: HandedConnection,
        pool: &Arc<ServicePool>,
    ) -> Option<()> {
        let shared = &self.shared;
        // Both are taken in any case: what is not used is closed.
        let backend = handed.backend.as_ref().map(|(slot, node, name)| (received.take(*slot), *node, name));
        let client = Stream::open(received.take(handed.client)?);
        let backend = match backend {
            Some((socket, node, name)) => {
                Some((Stream::open(socket?), pool.continued(node, name, shared.life.now())))
            }
            None => None,
        };
        let source = client.peer_addr().ok().map(|from| from.ip());
        let open = pool.readmit(source, shared);
        let served = connection::go_on(client, backend, handed, open, Arc::clone(shared));
        drop(shared.workers.next().spawn(&shared.life, served));
        Some(())
    }
}
