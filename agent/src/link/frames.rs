//! Frames over TLS: four bytes of length, then MessagePack.

use std::io;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use proto::exchange::{decode, encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::LengthDelimitedCodec;

/// Any stream of bytes.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection as a pair of frame streams.
pub(crate) type Framed = tokio_util::codec::Framed<Box<dyn Stream>, LengthDelimitedCodec>;

/// Frames over a stream, none larger than `max` bytes.
pub(crate) fn framed(stream: impl Stream + 'static, max: usize) -> Framed {
    LengthDelimitedCodec::builder().max_frame_length(max).new_framed(Box::new(stream) as Box<dyn Stream>)
}

/// Sends one message.
pub(crate) async fn send<T: Serialize>(stream: &mut Framed, message: &T) -> io::Result<()> {
    stream.send(tokio_util::bytes::Bytes::from(encode(message))).await
}

/// Receives one message, or says why not.
pub(crate) async fn receive<T: DeserializeOwned>(stream: &mut Framed, within: Duration) -> io::Result<T> {
    match tokio::time::timeout(within, stream.next()).await {
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        Ok(None) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
        Ok(Some(Err(error))) => Err(error),
        Ok(Some(Ok(frame))) => {
            decode(&frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        }
    }
}
