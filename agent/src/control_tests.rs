//! Tests of the control socket, over real sockets in directories of their own.

use proto::time::UnixMs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn echo(request: Request) -> Response {
    match request {
        Request::Remove { node } => Response::Done(format!("removed {node}")),
        Request::Invite { seconds, .. } => {
            Response::Invite { line: "agent1x".to_owned(), expires: UnixMs(seconds) }
        }
        _ => Response::Failed("not now".to_owned()),
    }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn end(life: &Lifecycle) {
    life.draining.cancel();
    life.shutdown.cancel();
    life.finished().await;
}

#[tokio::test]
async fn a_request_gets_its_answer_and_the_socket_goes_with_the_agent() {
    let (dir, life) = (dir(), Lifecycle::new());
    serve(bind(dir.path()).unwrap(), echo, &life);
    let request = Request::Remove { node: "m3".to_owned() };
    let answer = call(dir.path(), &request).await.unwrap();
    assert!(matches!(&answer, Response::Done(text) if text == "removed m3"), "{answer:?}");
    let answer = call(dir.path(), &Request::Rotate).await.unwrap();
    assert!(matches!(&answer, Response::Failed(text) if text == "not now"), "{answer:?}");
    end(&life).await;
    assert!(!dir.path().join(SOCKET).exists());
}

#[tokio::test]
async fn without_an_agent_the_error_says_how_to_start_it() {
    let dir = dir();
    let absent = call(dir.path(), &Request::Status).await.unwrap_err();
    assert!(matches!(absent, CallError::NotRunning { .. }), "{absent}");

    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    let stale = call(dir.path(), &Request::Status).await.unwrap_err();
    assert!(matches!(stale, CallError::NotRunning { .. }), "{stale}");
}

#[tokio::test]
async fn an_agent_that_ends_during_a_call_is_no_broken_response() {
    let dir = dir();
    let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
    let ends = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        // It has read the start of the request: what is left unread resets the connection.
        stream.read_u8().await.unwrap();
    };
    let (answer, ()) = tokio::join!(call(dir.path(), &Request::Status), ends);
    assert!(matches!(answer, Err(CallError::Stopped)), "{answer:?}");
}

#[tokio::test]
async fn the_socket_of_a_killed_agent_is_replaced_and_of_a_running_one_not() {
    let dir = dir();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    let first = bind(dir.path()).unwrap();
    let refused = bind(dir.path()).err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    let pid = std::process::id();
    assert!(
        refused.to_string().contains(&format!("another agent (pid {pid}) is already running")),
        "{refused}"
    );
    drop(first);
    assert!(bind(dir.path()).is_ok());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_end_of_one_agent_does_not_take_the_socket_of_the_next() {
    let dir = dir();
    let first = bind(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join(SOCKET)).unwrap();
    let second = bind(dir.path()).unwrap();
    drop(first);
    assert!(dir.path().join(SOCKET).exists());
    drop(second);
}

#[tokio::test]
async fn no_other_user_may_use_the_socket() {
    let dir = dir();
    let _listener = bind(dir.path()).unwrap();
    let mode = std::fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode() & 0o777;
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let expected: &[u32] = if gid_of(&text, GROUP).is_some() { &[0o660, 0o600] } else { &[0o600] };
    assert!(expected.contains(&mode), "{mode:o}");
}

#[test]
fn the_group_is_found_in_its_file() {
    let text = "root:x:0:\nagents:x:7:\nagent:x:991:alice,bob\nbroken\nagent2:x:\n";
    assert_eq!(gid_of(text, "agent"), Some(991));
    assert_eq!(gid_of(text, "agent2"), None);
    assert_eq!(gid_of("agent:x:minus one:", "agent"), None);
    assert_eq!(gid_of("", "agent"), None);
}

#[tokio::test]
async fn garbage_is_answered_or_dropped_and_the_next_one_is_served() {
    let (dir, life) = (dir(), Lifecycle::new());
    serve(bind(dir.path()).unwrap(), echo, &life);
    let socket = dir.path().join(SOCKET);

    // A frame that is no request gets a sentence, one of a later version both versions.
    for (frame, said) in [
        (vec![0xc1, 0xff, 0x00], "invalid request"),
        (encode(&"Thaw").unwrap(), "Unsupported"),
        (encode(&std::collections::BTreeMap::from([("Thaw", 7)])).unwrap(), "Unsupported"),
        (encode(&std::collections::BTreeMap::from([("Remove", 7)])).unwrap(), "invalid request"),
    ] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(&[&[0, 0, 0, frame.len() as u8], &frame[..]].concat()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        assert!(String::from_utf8_lossy(&reply).contains(said), "{}", String::from_utf8_lossy(&reply));
    }

    // An absurd length, and half a frame: closed.
    for bytes in [&[0xff_u8; 64][..], &[0, 0, 0, 9, 1], &[]] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        assert!(reply.is_empty());
    }
    let answer =
        call(dir.path(), &Request::Invite { seconds: 5, uses: None, role: proto::node::Role::Worker })
            .await
            .unwrap();
    assert!(matches!(answer, Response::Invite { expires: UnixMs(5), .. }));
    end(&life).await;
}

#[tokio::test]
async fn silent_connections_do_not_block_others() {
    let (dir, life) = (dir(), Lifecycle::new());
    serve(bind(dir.path()).unwrap(), echo, &life);
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 4 {
        silent.push(UnixStream::connect(dir.path().join(SOCKET)).await.unwrap());
    }
    // They time out long before the caller does.
    let answer = call(dir.path(), &Request::Remove { node: "x".to_owned() }).await.unwrap();
    assert!(matches!(&answer, Response::Done(text) if text == "removed x"), "{answer:?}");
    end(&life).await;
}
