//! Connections that are held through a proxy and compared byte for byte, while something happens to the proxy.
//!
//! The server behind it does what the first byte of a connection asks for; see [`Kind`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, Node};
use crate::mesh::{GOSSIP, SOON, Status};
use crate::wait::eventually;

/// Longest wait for a byte: any other wait is a lost connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connections that may wait to be accepted by the server.
const BACKLOG: i32 = 4_096;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Says nothing until it is over, and then one word that is echoed.
    Silent,
    /// A small message every few milliseconds, each echoed before the next.
    Active,
    /// The same, a few times a second.
    Steady,
    /// Sends as fast as it can, or as [`Watch::bulk_rate`] lets it, and gets all of it back.
    Bulk,
    /// Has said all it has to say and closed its half; the server answers when it is over.
    HalfClosed,
    /// The server does not read until it is over, so that the proxy is left with what it has read.
    Stuck,
}

impl Kind {
    const ALL: [(u8, Kind); 4] =
        [(b'e', Kind::Active), (b'b', Kind::Bulk), (b'h', Kind::HalfClosed), (b's', Kind::Stuck)];

    fn first(self) -> u8 {
        Kind::ALL.iter().find(|(_, kind)| *kind == self).map_or(b'e', |(first, _)| *first)
    }
}

/// The bytes of a connection, the same each time.
#[derive(Debug, Clone)]
struct Stream(u64);

impl Stream {
    fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 56) as u8;
        }
    }
}

/// Serves at an address of a node until it is dropped. What waits for the end goes on once `over` is set.
///
/// # Errors
/// It can't listen there.
pub fn serve(node: &Node, at: SocketAddr, over: &Arc<AtomicBool>) -> Result<()> {
    let listener = node.inside(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        // As an apiserver has it (Go takes net.core.somaxconn). With std's 128 what is lost is the server's: a proxy
        // that dials a thousand times at once has its SYNs dropped, and sends them again after one, three and seven
        // seconds.
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    })?;
    let over = over.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let over = over.clone();
            std::thread::spawn(move || answer(stream, &over));
        }
    });
    Ok(())
}

fn wait(over: &AtomicBool) {
    while !over.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn answer(mut stream: TcpStream, over: &AtomicBool) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut first = [0];
    stream.read_exact(&mut first).ok()?;
    let mut buffer = vec![0; 256 * 1024];
    match first[0] {
        b's' => wait(over),
        b'h' => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).ok()?;
            wait(over);
            return stream.write_all(&all).ok();
        }
        _ => {}
    }
    loop {
        let n = stream.read(&mut buffer).ok()?;
        if n == 0 {
            return None;
        }
        stream.write_all(&buffer[..n]).ok()?;
    }
}

/// A held connection.
pub struct Held {
    kind: Kind,
    running: JoinHandle<Result<u64>>,
}

/// What all held connections share.
#[derive(Default)]
pub struct Watch {
    /// They come to an end.
    pub over: Arc<AtomicBool>,
    /// Messages of active ones that came back.
    pub messages: AtomicU64,
    /// Longest wait for one, in microseconds.
    pub longest_us: AtomicU64,
    /// Bytes of bulk ones that came back.
    pub bytes: AtomicU64,
    /// Bytes a second that each bulk one sends; none: all that it can.
    pub bulk_rate: Option<u32>,
}

/// Opens a connection to a proxy inside a node, and holds it on a thread of its own.
///
/// # Errors
/// There is no connection.
pub fn hold(node: &Node, proxy: SocketAddr, kind: Kind, seed: u64, watch: &Arc<Watch>) -> Result<Held> {
    let mut stream = node.inside(|| Ok(TcpStream::connect(proxy)?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    if kind != Kind::Silent {
        stream.write_all(&[kind.first()])?;
    }
    let watch = watch.clone();
    let bytes = Stream(seed);
    let running = std::thread::spawn(move || match kind {
        Kind::Silent => silent(stream, &watch),
        Kind::Active => active(stream, bytes, &watch, Duration::from_millis(5)),
        // Out of step with each other and with whatever happens once a second.
        Kind::Steady => active(stream, bytes, &watch, Duration::from_millis(200 + seed * 37 % 97)),
        Kind::Bulk => bulk(&stream, bytes, &watch),
        Kind::HalfClosed => half_closed(stream, bytes),
        Kind::Stuck => stuck(stream, bytes, &watch),
    });
    Ok(Held { kind, running })
}

impl Held {
    /// Waits for its end; returns how many bytes came back, each of them right.
    ///
    /// # Errors
    /// It was lost, or a byte was.
    pub fn end(self) -> Result<u64> {
        let kind = self.kind;
        let ended = self.running.join().map_err(|_| anyhow!("a client panicked"))?;
        ended.with_context(|| format!("a connection was lost: {kind:?}"))
    }
}

fn silent(mut stream: TcpStream, watch: &Watch) -> Result<u64> {
    // Whether it ends meanwhile is seen by reading.
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    while !watch.over.load(Relaxed) {
        match stream.read(&mut [0; 1]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => return Err(anyhow!("{other:?} where nothing should come")),
        }
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"eword")?;
    let mut word = [0; 4];
    stream.read_exact(&mut word)?;
    ensure!(&word == b"word", "{word:?} came back");
    Ok(4)
}

fn active(mut stream: TcpStream, mut bytes: Stream, watch: &Watch, pause: Duration) -> Result<u64> {
    let (mut sent, mut back, mut all) = ([0; 100], [0; 100], 0);
    while !watch.over.load(Relaxed) {
        bytes.fill(&mut sent);
        let began = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut back)?;
        ensure!(sent == back, "other bytes came back");
        watch.longest_us.fetch_max(u64::try_from(began.elapsed().as_micros())?, Relaxed);
        watch.messages.fetch_add(1, Relaxed);
        all += 100;
        std::thread::sleep(pause);
    }
    Ok(all)
}

fn bulk(stream: &TcpStream, mut bytes: Stream, watch: &Watch) -> Result<u64> {
    let mut expected = bytes.clone();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<u64> {
            let (mut part, mut sent, mut stream) = (vec![0; 64 * 1024], 0, stream);
            let began = Instant::now();
            while !watch.over.load(Relaxed) {
                if let Some(rate) = watch.bulk_rate {
                    let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
                    std::thread::sleep(due.saturating_sub(began.elapsed()));
                }
                bytes.fill(&mut part);
                stream.write_all(&part)?;
                sent += part.len() as u64;
            }
            stream.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let (mut part, mut wanted, mut all, mut from) = (vec![0; 64 * 1024], vec![0; 64 * 1024], 0, stream);
        loop {
            let n = from.read(&mut part)?;
            if n == 0 {
                break;
            }
            expected.fill(&mut wanted[..n]);
            ensure!(part[..n] == wanted[..n], "other bytes came back after {all}");
            all += n as u64;
            watch.bytes.fetch_add(n as u64, Relaxed);
        }
        let sent = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        ensure!(sent == all, "{sent} bytes were sent, and {all} came back");
        Ok(all)
    })
}

fn half_closed(mut stream: TcpStream, mut bytes: Stream) -> Result<u64> {
    let mut sent = vec![0; 10_000];
    bytes.fill(&mut sent);
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    // The answer comes when all is over.
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    ensure!(back == sent, "{} bytes came back, not the same {}", back.len(), sent.len());
    Ok(back.len() as u64)
}

fn stuck(mut stream: TcpStream, mut bytes: Stream, watch: &Watch) -> Result<u64> {
    let mut expected = bytes.clone();
    stream.set_write_timeout(Some(Duration::from_millis(300)))?;
    let (mut part, mut sent) = (vec![0; 64 * 1024], 0_u64);
    // Until nobody takes any more.
    'full: loop {
        bytes.fill(&mut part);
        let mut rest = part.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(n) => {
                    sent += n as u64;
                    rest = &rest[n..];
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break 'full;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    wait(&watch.over);
    stream.shutdown(Shutdown::Write)?;
    let (mut back, mut all, mut wanted) = (vec![0; 64 * 1024], 0_u64, vec![0; 64 * 1024]);
    loop {
        let n = stream.read(&mut back)?;
        if n == 0 {
            break;
        }
        expected.fill(&mut wanted[..n]);
        ensure!(back[..n] == wanted[..n], "other bytes came back after {all}");
        all += n as u64;
    }
    ensure!(all == sent, "{sent} bytes were sent, and {all} came back");
    Ok(all)
}

/// Waits until more has passed through the active and the bulk connections.
///
/// # Errors
/// Nothing passes any more.
pub fn wait_for_more(watch: &Watch) -> Result<()> {
    let (messages, bytes) = (watch.messages.load(Relaxed), watch.bytes.load(Relaxed));
    eventually("messages and bytes pass", SOON, || {
        let (now, moved) = (watch.messages.load(Relaxed), watch.bytes.load(Relaxed));
        ensure!(now > messages + 20 && moved > bytes + 1_000_000, "{now} messages, {moved} bytes");
        Ok(())
    })?;
    Ok(())
}

/// A connection for one message.
///
/// # Errors
/// It is refused, or something else comes back.
pub fn echo_once(proxy: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"eword")?;
    let mut word = [0; 4];
    stream.read_exact(&mut word)?;
    ensure!(&word == b"word", "{word:?}");
    Ok(())
}

/// Where the proxy under test listens for what is compared byte for byte.
pub const PROXY: ([u8; 4], u16) = ([127, 0, 0, 1], 17_000);

/// Its port on the nodes that serve it.
const SERVED: u16 = 7_000;

/// A service that echoes on all nodes but the last: served, set by `agent set` with these arguments, and ready in the
/// status of the last node.
///
/// # Errors
/// It can't be served or set, or is not ready in time.
pub fn serve_echo(
    lab: &Lab,
    over: &Arc<AtomicBool>,
    set: impl FnOnce(&[&str]) -> Result<String>,
    status: impl Fn() -> Result<Status>,
) -> Result<()> {
    let last = lab.size() - 1;
    for i in 0..last {
        serve(lab.node(i), SocketAddr::new(lab.node(i).mesh_ip(), SERVED), over)?;
    }
    let listen = format!("service.echo.listen={}", SocketAddr::from(PROXY));
    let port = format!("service.echo.port={SERVED}");
    set(&["set", &listen, &port, "service.echo.check=tcp"])?;
    eventually("all echo", GOSSIP, || {
        let status = status()?;
        let echo = status.services.iter().find(|one| one.name == "echo").context("no such service yet")?;
        let ready = echo.backends.iter().filter(|one| one.state == "ready").count();
        ensure!(ready == last, "{:?}", echo.backends);
        Ok(())
    })?;
    Ok(())
}

/// So many of each kind, through the last node's proxy.
///
/// # Errors
/// There is no connection.
pub fn hold_all(lab: &Lab, counts: &[(Kind, u64)], watch: &Arc<Watch>) -> Result<Vec<Held>> {
    let node = lab.node(lab.size() - 1);
    let all = counts.iter().flat_map(|(kind, count)| (0..*count).map(|seed| (*kind, seed)));
    all.map(|(kind, seed)| hold(node, PROXY.into(), kind, seed + 1, watch)).collect()
}
