//! One client, from accept to end.

use std::sync::Arc;

use futures_util::future::{AbortHandle, Abortable};
use tokio::net::TcpStream;

use super::copy::{CopyBoth, LINGER};
use super::dial::{Leg, dial};
use super::pool::Open;
use super::{Shared, socket};

/// Finds a backend for `client` and copies until both directions have ended. Whatever else ends it resets
/// both legs, so that neither peer waits for the other.
pub(super) async fn serve(mut client: TcpStream, open: Open, shared: Arc<Shared>) {
    let over = &shared.life.over;
    // In a box, since a connection is found in milliseconds and held for hours.
    let found = Box::pin(over.run_until_cancelled(dial(&open.pool, &shared))).await;
    let Some(Leg { stream: mut master, ticket }) = found.flatten() else {
        socket::reset_on_drop(&client);
        return;
    };
    // An abort handle and no token: polling a token takes a lock that all connections would share.
    let (handle, registration) = AbortHandle::new_pair();
    let _held = ticket.hold(handle.clone());
    if over.is_cancelled() {
        handle.abort();
    }
    let copied = Abortable::new(CopyBoth::new(&mut client, &mut master, LINGER), registration).await;
    if !matches!(copied, Ok(Ok(()))) {
        socket::reset_on_drop(&client);
        socket::reset_on_drop(&master);
    }
}
