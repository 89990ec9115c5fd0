//! The two ends of proxied connections: a server with a thread for each connection, and clients that measure.
//! The first byte of a connection selects its purpose.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use socket2::SockRef;

/// The server sends until the client disconnects.
const SOURCE: u8 = b'S';
/// The same, and the server's own buffer is small.
const SLOW: u8 = b'L';
/// The server echoes, [`SMALL`] bytes at a time.
const ECHO: u8 = b'E';
/// The server answers once and closes.
const SHORT: u8 = b'X';
/// The server answers once and keeps the connection for as long as the client does.
const HELD: u8 = b'H';

/// A small message.
const SMALL: usize = 100;

/// Unit of bulk reads and writes.
const CHUNK: usize = 256 * 1024;

/// The buffer of an end that should cost little.
const SMALL_BUFFER: usize = 64 * 1024;

/// Longest duration of anything small: a hang must not look slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections that the server keeps without a thread.
pub(crate) type Kept = Arc<Mutex<Vec<TcpStream>>>;

/// Serves for as long as the process lives. Called inside a node's network, and stays there.
pub(crate) fn serve(address: SocketAddr) -> Result<Kept> {
    let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
    let kept = Kept::default();
    let mine = Arc::clone(&kept);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kept = Arc::clone(&mine);
            std::thread::spawn(move || serve_one(stream, &kept));
        }
    });
    Ok(kept)
}

fn serve_one(mut stream: TcpStream, kept: &Kept) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (mut kind, mut small) = ([0], [0; SMALL]);
    stream.read_exact(&mut kind).ok()?;
    if kind[0] == SLOW {
        SockRef::from(&stream).set_send_buffer_size(SMALL_BUFFER).ok()?;
    }
    match kind[0] {
        SOURCE | SLOW => {
            let chunk = vec![7; CHUNK];
            while stream.write_all(&chunk).is_ok() {}
        }
        ECHO => loop {
            stream.read_exact(&mut small).ok()?;
            stream.write_all(&small).ok()?;
        },
        SHORT => {
            stream.read_exact(&mut small).ok()?;
            stream.write_all(&small).ok()?;
        }
        HELD => {
            stream.write_all(&kind).ok()?;
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        }
        _ => {}
    }
    Some(())
}

fn open(address: SocketAddr, kind: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// Reads from `count` sources at once; returns bytes and the time that they took.
pub(crate) fn bulk(address: SocketAddr, count: usize, span: Duration) -> Result<(u64, Duration)> {
    let (barrier, stop) = (Barrier::new(count + 1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let read = || -> Result<u64> {
            let opened = open(address, SOURCE);
            barrier.wait();
            let (mut stream, mut buffer, mut sum) = (opened?, vec![0; CHUNK], 0);
            while !stop.load(Ordering::Relaxed) {
                let read = stream.read(&mut buffer)?;
                ensure!(read > 0, "a source ended");
                sum += read as u64;
            }
            Ok(sum)
        };
        let readers: Vec<_> = (0..count).map(|_| scope.spawn(read)).collect();
        barrier.wait();
        let began = Instant::now();
        std::thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        let mut sum = 0;
        for reader in readers {
            sum += reader.join().map_err(|_| anyhow!("a reader panicked"))??;
        }
        Ok((sum, took))
    })
}

/// Opens connections for one short exchange each, from a few threads; returns how many ended well.
pub(crate) fn short(address: SocketAddr, threads: usize, span: Duration) -> Result<(u64, Duration)> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let client = || -> Result<u64> {
            let mut count = 0;
            while began.elapsed() < span {
                let mut stream = open(address, SHORT)?;
                stream.write_all(&[1; SMALL])?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer)?;
                ensure!(answer.len() == SMALL, "an answer of {} bytes", answer.len());
                count += 1;
            }
            Ok(count)
        };
        let clients: Vec<_> = (0..threads).map(|_| scope.spawn(client)).collect();
        let mut sum = 0;
        for client in clients {
            sum += client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok((sum, began.elapsed()))
    })
}

/// Sends small messages back and forth on one connection; returns each round trip, sorted.
pub(crate) fn ping_pong(address: SocketAddr, span: Duration) -> Result<Vec<Duration>> {
    let mut stream = open(address, ECHO)?;
    let (mut small, mut times) = ([2; SMALL], Vec::new());
    let began = Instant::now();
    while began.elapsed() < span {
        let sent = Instant::now();
        stream.write_all(&small)?;
        stream.read_exact(&mut small)?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Opens `count` connections that then are idle.
pub(crate) fn hold(address: SocketAddr, count: u64) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for i in 0..count {
        let one = || -> Result<TcpStream> {
            let mut stream = open(address, HELD)?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            Ok(stream)
        };
        held.push(one().with_context(|| format!("connection {i} of {count}"))?);
    }
    Ok(held)
}

/// Opens `count` connections whose other side sends as much as it can; nothing is read yet, and a read does
/// not wait.
pub(crate) fn sources(address: SocketAddr, count: u64) -> Result<Vec<TcpStream>> {
    let one = |_| {
        let stream = open(address, SLOW)?;
        // The buffers of the two ends are not measured, and one machine has all three.
        SockRef::from(&stream).set_recv_buffer_size(SMALL_BUFFER)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

/// How many of these the other side has closed.
pub(crate) fn ended(held: &[TcpStream]) -> usize {
    let gone = |mut stream: &TcpStream| {
        let _ = stream.set_nonblocking(true);
        !matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    held.iter().filter(|stream| gone(stream)).count()
}
