//! Random schedules of reads, writes, ends and resets over the real copy loop on socket pairs with small buffers:
//! every byte and every end is accounted for. The reactor turns when the schedule says so, so a seed always plays the
//! same schedule.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::task::Waker;

use socket2::{Domain, Socket, Type};

use super::super::reactor::Reactor;
use super::*;

/// Schedules that are played, unless COPY_SCHEDULES says how many; COPY_SEED plays one.
const SCHEDULES: u64 = 3_000;

/// Turns after which a schedule that has not come to its end hangs.
const HANGS: u32 = 200_000;

/// Schedules that share a listening address: more would use up its ports, while closed connections wait.
const EACH_ADDRESS: u64 = 2_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> usize {
        (self.next() % n) as usize
    }

    fn size(&mut self) -> usize {
        let most = [2, 100, 4_000, 5_000, 20_000, 60_000][self.below(6)];
        1 + self.below(most)
    }
}

/// What a side sends at a place of its stream.
fn pattern(side: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) >> 3) as u8 ^ (at as u8) ^ if side == 0 { 0x5A } else { 0 }
}

fn listen(at: u64) -> TcpListener {
    let address = std::net::SocketAddr::from(([127, 78, (at >> 8) as u8, at as u8], 0));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

/// Two ends of a connection with small buffers.
fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    socket.connect(&listener.local_addr().unwrap().into()).unwrap();
    let ends = (TcpStream::from(socket), listener.accept().unwrap().0);
    for end in [&ends.0, &ends.1] {
        end.set_nonblocking(true).unwrap();
        end.set_nodelay(true).unwrap();
    }
    ends
}

struct Play<'a> {
    reactor: &'a Arc<Reactor>,
    /// `None` once it has ended and is closed.
    copy: Option<Box<CopyBoth>>,
    ended: Option<Result<(u64, u64), BrokenConnection>>,
    ends: [Option<TcpStream>; 2],
    wrote: [usize; 2],
    read: [usize; 2],
    finished: [bool; 2],
    saw_end: [bool; 2],
}

impl Play<'_> {
    /// Lets the reactor and the copy have a turn, as the thread that serves clients does.
    fn turn(&mut self) {
        let waker = Waker::from(Arc::clone(self.reactor));
        self.reactor.begin();
        waker.wake_by_ref(); // a turn that does not wait
        self.reactor.turn().unwrap();
        let Some(copy) = &mut self.copy else { return };
        if let Poll::Ready(ended) = Pin::new(&mut **copy).poll(&mut Context::from_waker(&waker)) {
            if ended.is_err() {
                copy.reset();
            }
            self.ended = Some(ended.map(|()| (copy.sent(), copy.received())));
            self.copy = None;
        }
    }

    fn write(&mut self, side: usize, n: usize) {
        let Some(mut end) = self.ends[side].as_ref().filter(|_| !self.finished[side]) else { return };
        let from = self.wrote[side];
        let bytes: Vec<u8> = (from..from + n).map(|at| pattern(side, at)).collect();
        self.wrote[side] += end.write(&bytes).unwrap_or(0);
    }

    /// Reads, and checks what it reads; the error of a connection that is broken.
    fn read(&mut self, side: usize, n: usize) -> io::Result<()> {
        let Some(mut end) = self.ends[side].as_ref().filter(|_| !self.saw_end[side]) else { return Ok(()) };
        let mut bytes = vec![0; n];
        let found = match end.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            found => found?,
        };
        let (other, from) = (1 - side, self.read[side]);
        for (at, byte) in (from..).zip(&bytes[..found]) {
            assert_eq!(*byte, pattern(other, at), "byte {at} of side {other}");
        }
        self.read[side] += found;
        assert!(self.read[side] <= self.wrote[other], "more than was sent");
        self.saw_end[side] = found == 0;
        Ok(())
    }

    fn finish(&mut self, side: usize) {
        if let Some(end) = self.ends[side].as_ref().filter(|_| !self.finished[side]) {
            end.shutdown(Shutdown::Write).unwrap();
            self.finished[side] = true;
        }
    }
}

fn play(seed: u64, reactor: &Arc<Reactor>, listener: &TcpListener) {
    let mut random = Random(seed);
    let (client, left) = pair(listener);
    let (right, master) = pair(listener);
    let mut copy = Box::new(CopyBoth::new(Stream::open(left), Stream::open(right), LINGER));
    let modes = [CopyMode::Copy(0), CopyMode::Splice(0), CopyMode::CopyOnly];
    (copy.up.mode, copy.down.mode) = (modes[random.below(3)], modes[random.below(3)]);
    let mut play = Play {
        reactor,
        copy: Some(copy),
        ended: None,
        ends: [Some(client), Some(master)],
        wrote: [0; 2],
        read: [0; 2],
        finished: [false; 2],
        saw_end: [false; 2],
    };
    let mut reset = None;
    for _ in 0..random.below(40) {
        let side = random.below(2);
        match random.below(20) {
            0..6 => play.write(side, random.size()),
            6..11 => play.read(side, random.size()).unwrap(),
            11 => play.finish(side),
            12 if !play.finished[side] => {
                reset = Some(side);
                break;
            }
            _ => play.turn(),
        }
        let [client, master] = [0, 1].map(|side| play.saw_end[side] && !play.finished[1 - side]);
        assert!(!client && !master, "an end that nobody has sent");
    }
    let Some(side) = reset else {
        play.finish(0);
        play.finish(1);
        for turns in 0.. {
            assert!(turns < HANGS, "hangs: {:?} of {:?} bytes", play.read, play.wrote);
            play.turn();
            (0..2).for_each(|side| play.read(side, 10_000).unwrap());
            if play.saw_end == [true; 2] {
                break;
            }
        }
        play.turn();
        assert_eq!([play.read[1], play.read[0]], play.wrote, "bytes are missing");
        let moved = play.ended.expect("both have ended").expect("nothing broke");
        assert_eq!(moved, (play.wrote[0] as u64, play.wrote[1] as u64), "counted otherwise than moved");
        return;
    };
    let other = 1 - side;
    super::super::socket::reset_on_drop(play.ends[side].as_ref().unwrap());
    play.ends[side] = None;
    for turns in 0.. {
        assert!(turns < HANGS, "hangs after a reset");
        play.turn();
        let broken = play.read(other, 10_000).is_err();
        if broken || play.ended.is_some() && play.saw_end[other] {
            break;
        }
    }
    play.turn();
    assert!(play.ended.is_some_and(|ended| ended.is_err()), "a reset is no end");
}

#[test]
fn every_byte_and_every_end_of_a_random_schedule_is_accounted_for() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let reactor = Reactor::new().unwrap();
    reactor.enter();
    let (first, count) = match number("COPY_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("COPY_SCHEDULES").unwrap_or(SCHEDULES)),
    };
    let mut listener = listen(0);
    for seed in first..first + count {
        if seed % EACH_ADDRESS == 0 {
            listener = listen(seed / EACH_ADDRESS);
        }
        let played =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(seed, &reactor, &listener)));
        assert!(played.is_ok(), "seed {seed}: play it alone with COPY_SEED={seed}");
    }
    Reactor::leave();
}
