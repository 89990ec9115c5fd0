//! HTTP/1.1 for the servers here, the status page and the demo's stand-in, and for the clients, the checks
//! and the webhook. One instance of hyper's server and one of its client, since they are large; hence the
//! boxes.
//!
//! A served connection costs its buffers and no more: headers are short and have to arrive in time, and a
//! reader that does not read its response is disconnected.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// An incoming request.
pub(crate) type Request = hyper::Request<Incoming>;

/// An outgoing response.
pub(crate) type Response = hyper::Response<Body>;

/// A boxed future.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Handles requests.
pub(crate) type Handler = Arc<dyn Fn(Request) -> BoxFuture<Response> + Send + Sync>;

/// Longest wait for the whole head of a request, and so for the next one on a kept-alive connection.
const HEAD: Duration = Duration::from_secs(20);

/// Longest time without a single complete write: beyond that it is no reader. Shorter in tests.
const STUCK: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Most bytes of a head, and buffered for a connection: twice what browsers send.
const BUFFER: usize = 16 * 1024;

/// Most headers of a request.
const HEADERS: usize = 64;

/// Most bytes of the head of a response to our own request. The least that hyper takes is an eighth of it.
const ANSWER_HEAD: usize = 64 * 1024;

/// A connection.
pub(crate) trait HttpStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> HttpStream for S {}

/// The body of a response.
pub(crate) enum Body {
    /// All of it.
    Whole(Bytes),
    /// A stream, until the sender is dropped.
    Live(mpsc::Receiver<Bytes>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Live(queue) => queue.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Live(_) => SizeHint::default(),
        }
    }
}

/// Serves one connection until its end. Once `leaving` has resolved, it ends after the current request.
pub(crate) async fn serve(stream: Box<dyn HttpStream>, handler: Handler, mut leaving: BoxFuture<()>) {
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = StallGuard { inner: TokioIo::new(stream), stuck: None };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .serve_connection(io, service);
    tokio::pin!(connection);
    tokio::select! {
        _ = &mut connection => {}
        () = &mut leaving => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Sends one request on a fresh connection. Returns the response's status, and its body if that arrives
/// complete and is no longer than `most`; none of it is read if that is 0.
///
/// # Errors
/// What breaks the connection, and a response that is not HTTP.
pub(crate) async fn ask(
    stream: Box<dyn HttpStream>,
    question: hyper::Request<Full<Bytes>>,
    most: usize,
) -> Result<(u16, Bytes), hyper::Error> {
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_buf_size(ANSWER_HEAD).title_case_headers(true);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await?;
    let asking = async {
        let answer = sender.send_request(question).await?;
        let status = answer.status().as_u16();
        let body = match most {
            0 => Bytes::new(),
            most => Limited::new(answer.into_body(), most)
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default(),
        };
        Ok((status, body))
    };
    tokio::pin!(asking, connection);
    // The connection moves the bytes of the exchange; when it ends first, all that will arrive has arrived.
    // Its error says more than the exchange's, which only knows that the connection is gone.
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = &mut connection => match (asking.await, ended) {
            (Err(_), Err(error)) => Err(error),
            (answer, _) => answer,
        },
    }
}

/// Breaks a connection whose peer does not read.
struct StallGuard {
    inner: TokioIo<Box<dyn HttpStream>>,
    /// Set while data waits to be written.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl StallGuard {
    /// Whether the write was complete; the timer continues if not, so that a byte now and then is not enough.
    fn guard(&mut self, cx: &mut Context<'_>, whole: bool) -> io::Result<()> {
        if whole {
            self.stuck = None;
            return Ok(());
        }
        let timer = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(STUCK)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Read for StallGuard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl Write for StallGuard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    // Otherwise hyper would copy each response into the connection's own buffer.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        let whole = matches!(&written, Poll::Ready(Ok(n)) if *n == wanted);
        match this.guard(cx, whole) {
            Ok(()) => written,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// A text response with its type.
pub(crate) fn text(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::Whole(body.into()));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn big() -> Handler {
        Arc::new(|_| Box::pin(async { text(200, "text/plain", vec![b'x'; 1 << 20]) }))
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_byte_now_and_then_is_disconnected() {
        let (mut client, server) = duplex(1024);
        let serving = serve(Box::new(server), big(), Box::pin(std::future::pending()));
        let reading = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                client.read_u8().await.unwrap();
            }
        };
        let patience = tokio::time::sleep(STUCK * 5);
        tokio::select! {
            () = serving => {}
            () = reading => {}
            () = patience => panic!("it is still served"),
        }
    }

    #[tokio::test]
    async fn a_response_arrives_whole_unless_its_head_is_too_long() {
        let (mut client, server) = duplex(1 << 16);
        let serving = serve(Box::new(server), big(), Box::pin(std::future::pending()));
        let asking = async move {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        };
        let (all, ()) = tokio::join!(asking, serving);
        assert!(all.starts_with(b"HTTP/1.1 200") && all.len() > 1 << 20);

        let (mut client, server) = duplex(1 << 16);
        let serving = serve(Box::new(server), big(), Box::pin(std::future::pending()));
        let asking = async move {
            let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(BUFFER));
            let _ = client.write_all(head.as_bytes()).await;
            let mut all = Vec::new();
            let _ = client.read_to_end(&mut all).await;
            all
        };
        let (all, ()) = tokio::join!(asking, serving);
        assert!(!all.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&all));
    }
}
