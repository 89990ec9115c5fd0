//! The listening sockets, and a task for each connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::config::Web;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Site, route};
use crate::http;
use crate::lifecycle::Life;

/// Connections at once, over all addresses: a hundred collectors and the people who look. More wait in the
/// kernel's queue. At 16 kB each, 2 MB.
const MAX_CONNECTIONS: usize = 128;

/// Connections that the kernel queues.
const BACKLOG: u32 = 256;

/// Wait before an address that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Starts a task for each address.
pub(super) fn spawn(config: &Web, site: &Arc<Site>, life: &Life) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for address in config.listen.clone() {
        let (site, places) = (site.clone(), places.clone());
        let (over, life) = (life.over.clone(), life.clone());
        life.clone().spawn(async move {
            over.run_until_cancelled_owned(run(address, site, places, life)).await;
        });
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    // Connections of an earlier start must not keep the address from this one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn run(address: SocketAddr, site: Arc<Site>, places: Arc<Semaphore>, life: Life) {
    let mut told = false;
    let listener = loop {
        match bind(address) {
            Ok(listener) => break listener,
            Err(error) if !told => {
                told = true;
                tracing::warn!(
                    "the status page can't listen on {address}: {error}; it is tried again, or set web.listen to \
                     another address"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    tracing::info!("status page and metrics on http://{address}");
    loop {
        // The semaphore is never closed, so there is no error to speak of.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // Out of descriptors, most likely: trying at once would only spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (site, over, tasks) = (site.clone(), life.over.clone(), &life);
        tasks.spawn(async move {
            over.run_until_cancelled(serve(stream, from, site)).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, site: Arc<Site>) {
    // Answers are written in one go, and a stream's events should not wait for each other.
    let _ = stream.set_nodelay(true);
    let handler: http::Handler =
        Arc::new(move |request| Box::pin(route::answer(request, from.ip(), site.clone())));
    http::serve(Box::new(stream), handler, Box::pin(std::future::pending())).await;
}
