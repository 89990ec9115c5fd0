use std::collections::VecDeque;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::*;

/// Longer than any step here takes; whatever reaches it has failed.
const LONG: Duration = Duration::from_secs(10);

/// Two ends of one connection, with buffers small enough for writes to be taken in parts.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    socket2::SockRef::from(&listener).set_recv_buffer_size(8 * 1024).unwrap();
    socket2::SockRef::from(&listener).set_send_buffer_size(8 * 1024).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    let dialled = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

/// An end of it as the copy has it.
fn stream(end: TcpStream) -> Stream {
    Stream::open(end.into_std().unwrap())
}

/// A client and a master with a copy between them; the handle returns how the copy ended.
async fn joined(
    linger: Duration,
) -> (TcpStream, TcpStream, tokio::task::JoinHandle<Result<(), BrokenConnection>>) {
    joined_in(CopyMode::default(), linger).await
}

async fn joined_in(
    mode: CopyMode,
    linger: Duration,
) -> (TcpStream, TcpStream, tokio::task::JoinHandle<Result<(), BrokenConnection>>) {
    let (client, left) = pair().await;
    let (right, master) = pair().await;
    let copy = tokio::spawn(async move {
        let mut copy = CopyBoth::new(stream(left), stream(right), linger);
        (copy.up.mode, copy.down.mode) = (mode, mode);
        copy.await
    });
    (client, master, copy)
}

#[derive(Debug, Clone)]
enum Op {
    Write(usize, usize),
    Read(usize, usize),
    Finish(usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..2usize, 1..200_000usize).prop_map(|(side, n)| Op::Write(side, n)),
        4 => (0..2usize, 1..100_000usize).prop_map(|(side, n)| Op::Read(side, n)),
        1 => (0..2usize).prop_map(Op::Finish),
    ]
}

/// Runs `ops` on both ends and compares what arrives with what was sent. At the end either both sides finish,
/// or one resets: what arrived is then a prefix of what was sent.
async fn play(ops: Vec<Op>, mode: CopyMode, reset: Option<usize>) {
    let (client, master, copy) = joined_in(mode, LONG).await;
    let mut ends = [client, master];
    // Per side: what it has sent and the other has not read, and whether it has sent FIN.
    let mut sent = [VecDeque::<u8>::new(), VecDeque::new()];
    let mut finished = [false; 2];
    let mut counter = 0u32;
    for op in ops {
        match op {
            Op::Write(side, n) if !finished[side] => {
                let bytes: Vec<u8> = std::iter::repeat_with(|| {
                    counter = counter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (counter >> 24) as u8
                })
                .take(n)
                .collect();
                // As much as fits now: the model needs no task for a blocked writer. Yields to the copy in
                // between, so that it has to buffer what the other side does not read.
                let mut taken = 0;
                for _ in 0..8 {
                    taken += ends[side].try_write(&bytes[taken..]).unwrap_or(0);
                    tokio::task::yield_now().await;
                }
                sent[side].extend(&bytes[..taken]);
            }
            Op::Read(side, n) => {
                let n = n.min(sent[1 - side].len());
                let mut bytes = vec![0; n];
                timeout(LONG, ends[side].read_exact(&mut bytes)).await.unwrap().unwrap();
                assert!(sent[1 - side].drain(..n).eq(bytes), "other bytes came out than went in");
            }
            Op::Finish(side) if !finished[side] => {
                ends[side].shutdown().await.unwrap();
                finished[side] = true;
            }
            Op::Write(..) | Op::Finish(_) => {}
        }
    }
    // A side that finished before the reset notices it by a write or the linger, not by a read.
    if let Some(side) = reset.filter(|side| !finished[*side]) {
        let [client, master] = ends;
        let (broken, mut other) = if side == 0 { (client, master) } else { (master, client) };
        super::super::socket::reset_on_drop(&broken);
        drop(broken);
        let (mut rest, mut more) = (Vec::<u8>::new(), [0; 4096]);
        while let Ok(n @ 1..) = timeout(LONG, other.read(&mut more)).await.unwrap() {
            rest.extend(&more[..n]);
        }
        assert!(sent[side].iter().copied().take(rest.len()).eq(rest), "something else arrived");
        assert!(timeout(LONG, copy).await.unwrap().unwrap().is_err());
        return;
    }
    for side in 0..2 {
        ends[side].shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(LONG, ends[1 - side].read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(sent[side].drain(..).eq(rest), "the rest differs");
    }
    timeout(LONG, copy).await.unwrap().unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    #[test]
    fn bytes_arrive_unchanged_in_both_directions(
        ops in proptest::collection::vec(any_op(), 0..24),
        // The first may switch modes; the second starts with a pipe; the third never has one.
        mode in proptest::sample::select(vec![CopyMode::Copy(0), CopyMode::Splice(0), CopyMode::CopyOnly]),
        reset in proptest::option::weighted(0.3, 0..2usize),
    ) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(play(ops, mode, reset));
    }
}

#[tokio::test]
async fn a_half_closed_and_silent_connection_ends() {
    let (mut client, mut master, copy) = joined(Duration::from_millis(50)).await;
    client.shutdown().await.unwrap();
    assert_eq!(master.read(&mut [0; 1]).await.unwrap(), 0);
    let ended = timeout(LONG, copy).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_half_closed_connection_lives_while_bytes_move() {
    let linger = Duration::from_millis(200);
    let (mut client, mut master, copy) = joined(linger).await;
    client.shutdown().await.unwrap();
    let begin = Instant::now();
    while begin.elapsed() < linger * 4 {
        master.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::sleep(linger / 10).await;
    }
    assert!(!copy.is_finished());
    master.shutdown().await.unwrap();
    timeout(LONG, copy).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn an_open_connection_has_no_idle_time_out() {
    let linger = Duration::from_millis(20);
    let (mut client, mut master, copy) = joined(linger).await;
    tokio::time::sleep(linger * 5).await;
    client.write_all(b"still here").await.unwrap();
    master.read_exact(&mut [0; 10]).await.unwrap();
    assert!(!copy.is_finished());
}

#[tokio::test]
async fn a_broken_upstream_is_an_error_after_its_last_bytes_arrive() {
    let (mut client, mut master, copy) = joined(LONG).await;
    master.write_all(b"last words").await.unwrap();
    client.read_exact(&mut [0; 10]).await.unwrap();
    super::super::socket::reset_on_drop(&master);
    drop(master);
    let ended = timeout(LONG, copy).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (mut client, left) = pair().await;
    let (right, mut master) = pair().await;
    let mut copy = Box::pin(CopyBoth::new(stream(left), stream(right), LONG));
    // The master reads nothing yet: data has to be buffered, and the buffer is bounded.
    let pattern = |at: usize| (at % 251) as u8;
    let flood: Vec<u8> = (0..4 << 20).map(pattern).collect();
    let mut sent = 0;
    let _ = timeout(Duration::from_millis(300), async {
        loop {
            tokio::select! {
                biased;
                n = client.write(&flood[sent..]) => sent += n.unwrap(),
                _ = &mut copy => unreachable!("nobody has closed"),
            }
        }
    })
    .await;
    assert!(copy.up.piped > 0 && matches!(copy.up.mode, CopyMode::Splice(_)), "a flood is spliced");
    assert!(copy.up.left.is_none());
    let mut received = vec![0; sent];
    tokio::select! {
        result = timeout(LONG, master.read_exact(&mut received)) => { result.unwrap().unwrap(); }
        _ = &mut copy => unreachable!("nobody has closed"),
    }
    // One more poll, to find that there is nothing more.
    let _ = timeout(Duration::from_millis(20), &mut copy).await;
    assert!(copy.up.left.is_none() && copy.down.left.is_none());
    assert!(copy.up.pipe.is_none() && copy.down.pipe.is_none());
    assert!(received.iter().copied().eq((0..sent).map(pattern)), "other bytes came out than went in");
}

#[tokio::test]
async fn unwritten_bytes_are_buffered_and_the_buffer_is_freed() {
    let (mut client, left) = pair().await;
    let (right, mut master) = pair().await;
    let mut copy = Box::pin(CopyBoth::new(stream(left), stream(right), LONG));
    copy.up.mode = CopyMode::CopyOnly;
    let mut sent = 0;
    let _ = timeout(Duration::from_millis(300), async {
        loop {
            tokio::select! {
                biased;
                n = client.write(&[7; 8192]) => sent += n.unwrap(),
                _ = &mut copy => unreachable!("nobody has closed"),
            }
        }
    })
    .await;
    assert!(copy.up.left.as_ref().is_some_and(|left| left.bytes.len() <= SCRATCH_BYTES));
    let mut received = vec![0; sent];
    tokio::select! {
        result = timeout(LONG, master.read_exact(&mut received)) => { result.unwrap().unwrap(); }
        _ = &mut copy => unreachable!("nobody has closed"),
    }
    assert!(copy.up.left.is_none() && copy.up.pipe.is_none());
}

#[tokio::test]
async fn after_bulk_data_small_messages_are_copied_again() {
    let (mut client, left) = pair().await;
    let (right, mut master) = pair().await;
    let mut copy = Box::pin(CopyBoth::new(stream(left), stream(right), LONG));
    copy.up.mode = CopyMode::Splice(0);
    for i in 0..SMALL_AFTER {
        assert_eq!(copy.up.mode, CopyMode::Splice(i));
        client.write_all(b"small").await.unwrap();
        let mut received = [0; 5];
        tokio::select! {
            result = timeout(LONG, master.read_exact(&mut received)) => { result.unwrap().unwrap(); }
            _ = &mut copy => unreachable!("nobody has closed"),
        }
    }
    assert_eq!((copy.up.mode, copy.up.moved), (CopyMode::Copy(0), 5 * u64::from(SMALL_AFTER)));
    assert!(copy.up.pipe.is_none());
}

#[tokio::test]
async fn an_error_names_the_side_that_broke() {
    for (client_breaks, cause) in [(true, Termination::Client), (false, Termination::Server)] {
        let (client, master, copy) = joined(LONG).await;
        let (broken, _other) = if client_breaks { (client, master) } else { (master, client) };
        super::super::socket::reset_on_drop(&broken);
        drop(broken);
        assert_eq!(timeout(LONG, copy).await.unwrap().unwrap().unwrap_err().cause, cause);
    }
    for (client_ends, cause) in [(true, Termination::ServerTimeout), (false, Termination::ClientTimeout)] {
        let (mut client, mut master, copy) = joined(Duration::from_millis(20)).await;
        if client_ends { &mut client } else { &mut master }.shutdown().await.unwrap();
        assert_eq!(timeout(LONG, copy).await.unwrap().unwrap().unwrap_err().cause, cause);
    }
}

#[tokio::test]
async fn what_was_read_and_not_written_goes_over_to_another_copy() {
    for mode in [CopyMode::default(), CopyMode::Splice(0)] {
        let (mut client, left) = pair().await;
        let (right, mut master) = pair().await;
        let mut copy = CopyBoth::new(stream(left), stream(right), LONG);
        (copy.up.mode, copy.down.mode) = (mode, mode);
        // The master does not read, until nothing moves any more.
        let sent: Vec<u8> = (0..600_000_u32).map(|i| (i >> 4) as u8).collect();
        let mut written = 0;
        while let Ok(taken) = timeout(Duration::from_millis(100), async {
            tokio::select! {
                taken = client.write(&sent[written..]) => taken.unwrap(),
                ended = &mut copy => panic!("{ended:?}"),
            }
        })
        .await
        {
            written += taken;
        }
        let (handed, _) = copy.hand_over().unwrap();
        assert!(!handed.up.left.is_empty() && copy.up.piped == 0, "{mode:?}");
        let (again, _) = copy.hand_over().unwrap();
        assert_eq!(again, handed, "it is only looked at");
        let CopyBoth { client: left, master: right, .. } = copy;
        let copy = CopyBoth::new(left, right, LONG).continued(handed.up, handed.down);
        let copy = tokio::spawn(copy);
        client.shutdown().await.unwrap();
        let mut arrived = Vec::new();
        timeout(LONG, master.read_to_end(&mut arrived)).await.unwrap().unwrap();
        assert!(arrived == sent[..written], "{mode:?}: {} of {written} bytes", arrived.len());
        drop(master);
        timeout(LONG, copy).await.unwrap().unwrap().unwrap();
    }
}
