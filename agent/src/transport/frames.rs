//! Frames over TLS: four bytes of length, then MessagePack.
//!
//! Nothing is allocated because a length was announced: the buffer grows with what has come, at most to twice
//! of it. What frames of members hold beyond a few kilobytes each comes out of one [`FrameBudget`], and most kinds
//! of requests may not be large at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use proto::node::NodeId;
use proto::rpc::{MAX_FRAME, decode, encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::Decoder;

use super::lock;

/// Any stream of bytes.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection from which frames are read.
pub(crate) type Framed = tokio_util::codec::Framed<Box<dyn Stream>, FrameCodec>;

/// What one frame may hold without counting: a request, an answer about a few nodes.
const FREE: usize = 16 * 1024;

/// What all frames that come from members, and the answers to them, may hold at once. A document has at most
/// 4 MB, and so few are under way at a time that one waits for another at worst.
pub(super) const BUDGET: usize = 16 * 1024 * 1024;

/// What those of one member may hold.
pub(super) const BUDGET_EACH: usize = MAX_FRAME;

/// Time for a frame to come, from its first byte on: the largest at 2 Mbit/s.
const WHOLE: Duration = Duration::from_secs(30);

/// Time for a frame to be taken by the other side.
const SENT: Duration = Duration::from_secs(30);

/// The first bytes of a frame, which tell its kind.
const PEEK: usize = 32;

/// The largest request of this kind, as it stands in the first bytes of a frame of a member: a map of one, or
/// a string for a kind without anything else.
fn most_of(start: &[u8]) -> usize {
    let name = match start {
        [0x81, head, rest @ ..] if head & 0xe0 == 0xa0 => rest.get(..usize::from(head & 0x1f)),
        _ => None,
    };
    match name {
        Some(b"Sync") => MAX_FRAME,
        // chitchat's messages have at most 65,507 bytes.
        Some(b"Gossip") => 66 * 1024,
        // An entry of some 40 bytes for each node of the largest cluster.
        _ => 1024 * 1024,
    }
}

/// Bytes that frames may hold together, and those of one member.
#[derive(Debug)]
pub(crate) struct FrameBudget {
    most: usize,
    each: usize,
    used: Mutex<BTreeMap<NodeId, usize>>,
}

impl FrameBudget {
    /// So many bytes together, and for each member.
    pub(super) fn new(most: usize, each: usize) -> Arc<FrameBudget> {
        Arc::new(FrameBudget { most, each, used: Mutex::default() })
    }

    /// What is held now.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        lock(&self.used).values().sum()
    }
}

/// What one connection holds of a budget.
#[derive(Debug)]
struct BudgetShare {
    budget: Arc<FrameBudget>,
    of: NodeId,
    bytes: usize,
}

impl BudgetShare {
    /// Holds so many bytes from now on. False when the budget, or what the member may have of it, is spent.
    fn set(&mut self, bytes: usize) -> bool {
        let mut used = lock(&self.budget.used);
        let (all, own) = (used.values().sum::<usize>(), used.get(&self.of).copied().unwrap_or(0));
        let (all, own) = (all - self.bytes + bytes, own - self.bytes + bytes);
        if bytes > self.bytes && (all > self.budget.most || own > self.budget.each) {
            return false;
        }
        match own {
            0 => used.remove(&self.of),
            own => used.insert(self.of, own),
        };
        self.bytes = bytes;
        true
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Takes frames out of what has come.
#[derive(Debug)]
pub(crate) struct FrameCodec {
    max: usize,
    /// The frames are requests of a member, whose kinds have sizes of their own.
    requests: bool,
    share: Option<BudgetShare>,
    /// When the first bytes of the frame that is not complete yet came.
    began: Option<Instant>,
}

impl FrameCodec {
    /// Takes larger frames, or only smaller ones, from now on.
    pub(crate) fn set_max_frame_length(&mut self, max: usize) {
        self.max = max;
    }

    fn hold(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = if bytes <= FREE { 0 } else { bytes };
        match self.share.as_mut().is_none_or(|share| share.set(bytes)) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many large frames at once")),
        }
    }
}

impl Decoder for FrameCodec {
    type Item = BytesMut;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        if bytes.is_empty() {
            self.began = None;
            return self.hold(0).map(|()| None);
        }
        self.began = self.began.or_else(|| Some(Instant::now()));
        let Some(length) = bytes.first_chunk::<4>().map(|head| u32::from_be_bytes(*head) as usize) else {
            return Ok(None);
        };
        let come = bytes.len() - 4;
        let kind = bytes.get(4..4 + PEEK.min(length)).filter(|_| self.requests);
        let max = self.max.min(kind.map_or(MAX_FRAME, most_of));
        if length > max {
            let why = format!("a frame of {length} bytes; the limit is {max}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.hold(come.min(length))?;
        if come < length {
            return Ok(None);
        }
        bytes.advance(4);
        let frame = bytes.split_to(length);
        if length > FREE && bytes.is_empty() {
            // The large buffer goes with the frame.
            *bytes = BytesMut::new();
        }
        self.began = None;
        Ok(Some(frame))
    }
}

fn with(stream: impl Stream + 'static, codec: FrameCodec) -> Framed {
    Framed::new(Box::new(stream) as Box<dyn Stream>, codec)
}

/// Frames over a stream, none larger than `max` bytes.
pub(crate) fn framed(stream: impl Stream + 'static, max: usize) -> Framed {
    with(stream, FrameCodec { max, requests: false, share: None, began: None })
}

/// Requests of a member, which share a budget with those of all others.
pub(super) fn requests(stream: impl Stream + 'static, of: NodeId, budget: &Arc<FrameBudget>) -> Framed {
    let share = Some(BudgetShare { budget: budget.clone(), of, bytes: 0 });
    with(stream, FrameCodec { max: MAX_FRAME, requests: true, share, began: None })
}

/// Answers of a member, which share a budget with those of all others.
pub(super) fn answers(stream: impl Stream + 'static, of: NodeId, budget: &Arc<FrameBudget>) -> Framed {
    let share = Some(BudgetShare { budget: budget.clone(), of, bytes: 0 });
    with(stream, FrameCodec { max: MAX_FRAME, requests: false, share, began: None })
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// Sends one message. What it holds until the other side has taken it counts too.
pub(crate) async fn send<T: Serialize>(stream: &mut Framed, message: &T) -> io::Result<()> {
    send_encoded(stream, &encode(message).map_err(io::Error::other)?).await
}

/// The same of a message that is encoded already, since it goes to several.
pub(crate) async fn send_encoded(stream: &mut Framed, bytes: &[u8]) -> io::Result<()> {
    let held = stream.codec().share.as_ref().map_or(0, |share| share.bytes);
    stream.codec_mut().hold(held.saturating_add(bytes.len()))?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_be_bytes();
    let io = stream.get_mut();
    let work = async {
        // One write for what is small: a packet less.
        if bytes.len() <= FREE {
            io.write_all(&[&length, bytes].concat()).await?;
        } else {
            io.write_all(&length).await?;
            io.write_all(bytes).await?;
        }
        io.flush().await
    };
    let sent = tokio::time::timeout(SENT, work).await.map_err(|_| too_slow());
    stream.codec_mut().hold(0)?;
    sent?
}

/// Receives one message, or says why not.
pub(crate) async fn receive<T: DeserializeOwned>(stream: &mut Framed, within: Duration) -> io::Result<T> {
    receive_whole(stream, within, WHOLE).await
}

async fn receive_whole<T: DeserializeOwned>(
    stream: &mut Framed,
    within: Duration,
    whole: Duration,
) -> io::Result<T> {
    let until = Instant::now() + within;
    let frame = loop {
        let now = Instant::now();
        let late = stream.codec().began.map_or(until, |began| until.min(began + whole));
        if now >= late {
            return Err(too_slow());
        }
        // The first bytes may come meanwhile; reading goes on where it was.
        let step = late.min(now + whole / 8);
        if let Ok(next) = tokio::time::timeout_at(step, stream.next()).await {
            break next;
        }
    };
    match frame {
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed")),
        Some(Err(error)) => Err(error),
        Some(Ok(frame)) => decode(&frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

#[cfg(test)]
mod tests {
    use proto::rpc::FromMember;

    use super::*;

    fn codec(budget: &Arc<FrameBudget>, of: u8) -> FrameCodec {
        let share = Some(BudgetShare { budget: budget.clone(), of: NodeId([of; 10]), bytes: 0 });
        FrameCodec { max: MAX_FRAME, requests: true, share, began: None }
    }

    /// A frame of this length whose first bytes are those of a kind of request.
    fn start(length: usize, kind: &str) -> BytesMut {
        let mut bytes = BytesMut::from(&u32::try_from(length).unwrap().to_be_bytes()[..]);
        bytes.extend_from_slice(&[0x81, 0xa0 | kind.len() as u8]);
        bytes.extend_from_slice(kind.as_bytes());
        bytes.resize(4 + 100, 0);
        bytes
    }

    #[test]
    fn nothing_is_allocated_because_a_length_was_announced() {
        let budget = FrameBudget::new(BUDGET, BUDGET_EACH);
        let (mut codec, mut bytes) = (codec(&budget, 1), start(MAX_FRAME, "Sync"));
        assert!(codec.decode(&mut bytes).unwrap().is_none());
        assert!(bytes.capacity() < 10_000, "{}", bytes.capacity());
        assert_eq!(budget.used(), 0);
        bytes.resize(200_000, 0);
        assert!(codec.decode(&mut bytes).unwrap().is_none());
        assert_eq!(budget.used(), 200_000 - 4);
        drop(codec);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn only_what_has_to_be_large_may_be() {
        let budget = FrameBudget::new(BUDGET, BUDGET_EACH);
        for (kind, length, fits) in [
            ("Sync", MAX_FRAME, true),
            ("Sync", MAX_FRAME + 1, false),
            ("Gossip", 65_600, true),
            ("Gossip", 70_000, false),
            ("Examine", 30_000, true),
            ("Unheard", 2_000_000, false),
        ] {
            let taken = codec(&budget, 1).decode(&mut start(length, kind));
            assert_eq!(taken.is_ok(), fits, "{kind} {length}");
        }
        for message in [FromMember::Gossip(vec![0; 65_507]), FromMember::Waiting] {
            let (bytes, mut codec) = (encode(&message).unwrap(), codec(&budget, 1));
            let mut frame = BytesMut::from(&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..]);
            frame.extend_from_slice(&bytes);
            let taken = codec.decode(&mut frame).unwrap().unwrap();
            assert_eq!(taken, bytes);
            assert!(frame.capacity() == 0 || bytes.len() < FREE, "the large buffer went with the frame");
        }
    }

    #[test]
    fn one_member_can_not_spend_what_others_need() {
        let budget = FrameBudget::new(1_000_000, 400_000);
        let hold = |of: u8, bytes: usize| {
            let mut codec = codec(&budget, of);
            codec.hold(bytes).map(|()| codec)
        };
        let first = hold(1, 300_000).unwrap();
        assert!(hold(1, 200_000).is_err(), "its own share is spent");
        let others: Vec<_> = (2..4).map(|of| hold(of, 300_000).unwrap()).collect();
        assert!(hold(4, 200_000).is_err(), "all is spent");
        assert!(hold(4, FREE).is_ok(), "what is small is served all the same");
        drop(first);
        assert!(hold(4, 200_000).is_ok());
        drop(others);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_frame_that_drips_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut stream = framed(ours, MAX_FRAME);
        let began = Instant::now();
        let drip = tokio::spawn(async move {
            theirs.write_all(&start(1_000_000, "Sync")).await.unwrap();
            while theirs.write_all(&[0; 10]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let (within, whole) = (Duration::from_secs(20), Duration::from_millis(200));
        let error = receive_whole::<FromMember>(&mut stream, within, whole).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drip.abort();
    }
}
