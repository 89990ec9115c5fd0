//! `/api/v1/events`: server-sent events (WHATWG HTML, 9.2). `change` says that the page has something new;
//! `event` is a change of state, as JSON.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use proto::event::EventRing;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::WebState;
use crate::http::{self, Body, Request, Response};

/// Concurrent streams. A fraction of the connections, so that collectors always find a slot.
const MAX_STREAMS: usize = 32;

/// Shortest time between two `change` messages: a flood of them is seen as often as an eye can follow.
const REST: Duration = Duration::from_millis(100);

/// Numbers change all the time; they are refreshed this often.
const NUMBERS: Duration = Duration::from_secs(2);

/// Longest life of a stream: browsers reconnect by themselves, and forgotten ones end.
const LIFE: Duration = Duration::from_secs(3600);

/// Messages queued for a reader. A reader that does not keep up with these is disconnected.
const QUEUE: usize = 4;

/// Longest wait for room in that queue.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_STREAMS))
}

/// Starts a stream if a slot is free. A reconnecting browser sends the last event that it has seen.
pub(super) fn open(request: &Request, state: &Arc<WebState>) -> Response {
    let Ok(place) = state.streams.clone().try_acquire_owned() else {
        let mut response = http::text(503, "text/plain", "too many streams: try again later\n");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
        return response;
    };
    let seen = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let seen = seen.unwrap_or_else(|| state.ring.borrow().newest());
    let (out, queue) = mpsc::channel(QUEUE);
    let (changes, ring) = (state.changes.clone(), state.ring.clone());
    let over = state.life.shutdown.clone();
    state.life.spawn(async move {
        over.run_until_cancelled_owned(feed(out, changes, ring, seen)).await;
        drop(place);
    });
    let mut response = Response::new(Body::Live(queue));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// Feeds a stream until its reader is gone or it is old. `seen` is the number of the last event that was
/// sent.
async fn feed(
    out: mpsc::Sender<Bytes>,
    mut changes: watch::Receiver<u64>,
    mut ring: watch::Receiver<Arc<EventRing>>,
    mut seen: u64,
) {
    let end = Instant::now() + LIFE;
    while Instant::now() < end {
        let mut message = String::new();
        let latest = ring.borrow_and_update().clone();
        for event in latest.after(seen) {
            // Serialized to one line; what can't be serialized is left out.
            let Ok(json) = serde_json::to_string(&**event) else { continue };
            message.push_str(&format!("event: event\nid: {}\ndata: {json}\n\n", event.seq));
        }
        seen = latest.newest();
        let number = *changes.borrow_and_update();
        message.push_str(&format!("event: change\ndata: {number}\n\n"));
        if !matches!(timeout(PATIENCE, out.send(message.into())).await, Ok(Ok(()))) {
            return;
        }
        let began = Instant::now();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = ring.changed() => if changed.is_err() { return },
            () = sleep_until(began + NUMBERS) => {}
            () = out.closed() => return,
        }
        sleep_until(began + REST).await;
    }
}
