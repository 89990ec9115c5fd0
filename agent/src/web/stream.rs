//! `/api/v1/events`: server-sent events (WHATWG HTML, 9.2). `change` says that the page has something new;
//! `event` is a change of state, as JSON.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use super::Site;
use crate::http::{self, Body, Response};

/// Streams at once: people who look. A fraction of the connections, so that collectors always find one.
const MAX_STREAMS: usize = 32;

/// Shortest time between two changes that are told of: a flood of them is seen as often as an eye can follow.
const REST: Duration = Duration::from_millis(100);

/// Numbers change all the time; they are shown this often.
const NUMBERS: Duration = Duration::from_secs(2);

/// Longest life of a stream: browsers come again by themselves, and what is forgotten goes.
const LIFE: Duration = Duration::from_secs(3600);

/// Messages that wait for a reader. One that does not take a few of these takes nothing.
const QUEUE: usize = 4;

/// Longest wait for a place in that queue.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_STREAMS))
}

/// Begins a stream, where there is a place for one.
pub(super) fn open(site: &Arc<Site>) -> Response {
    let Ok(place) = site.streams.clone().try_acquire_owned() else {
        let mut response = http::text(503, "text/plain", "as many watch as there may: try again later\n");
        response
            .headers_mut()
            .insert(hyper::header::RETRY_AFTER, hyper::header::HeaderValue::from_static("10"));
        return response;
    };
    let (out, queue) = mpsc::channel(QUEUE);
    let (mut changes, life) = (site.changes.clone(), site.life.clone());
    site.life.spawn(async move {
        let feed = async {
            let end = Instant::now() + LIFE;
            let mut number = *changes.borrow_and_update();
            while Instant::now() < end {
                let message = Bytes::from(format!("event: change\nid: {number}\ndata: {number}\n\n"));
                if !matches!(timeout(PATIENCE, out.send(message)).await, Ok(Ok(()))) {
                    return;
                }
                let began = Instant::now();
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sleep_until(began + NUMBERS) => {}
                    () = out.closed() => return,
                }
                sleep_until(began + REST).await;
                number = *changes.borrow_and_update();
            }
        };
        life.over.run_until_cancelled(feed).await;
        drop(place);
    });
    let mut response = Response::new(Body::Live(queue));
    let kind = hyper::header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
