//! Notifications to systemd: ready, stopping, status, and the watchdog. Without systemd all of it does
//! nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::lifecycle::Lifecycle;
use crate::notify::{self, socket};

/// systemd waits for this one, so waiting for a busy manager is worth it.
const READY_PATIENCE: Duration = Duration::from_secs(2);
/// All others are repeated or matter little; a busy manager must not hold up a thread that copies bytes.
const PATIENCE: Duration = Duration::from_millis(10);

/// The proxy listens; units ordered after this one may start.
pub(crate) fn ready() {
    report(send(socket().as_deref(), &[NotifyState::Ready], READY_PATIENCE));
}

/// Shutdown has started.
pub(crate) fn stopping() {
    report(send(socket().as_deref(), &[NotifyState::Stopping], PATIENCE));
}

/// The process becomes another program, which will be ready again.
pub(crate) fn reloading() {
    report(send(socket().as_deref(), &[NotifyState::Reloading], PATIENCE));
}

/// One line for `systemctl status`.
pub(crate) fn status(line: &str) {
    let line = line.replace('\n', " "); // each line of a message is a field of its own
    report(send(socket().as_deref(), &[NotifyState::Status(&line)], PATIENCE));
}

/// Pings systemd's watchdog, twice in each of its periods until the end, from a task of this runtime: if
/// tasks could not run, the pings would stop.
pub(crate) fn spawn_watchdog(life: &Lifecycle) {
    if let Some(period) = sd_notify::watchdog_enabled() {
        spawn_pings(life, socket(), period);
    }
}

fn spawn_pings(life: &Lifecycle, socket: Option<OsString>, period: Duration) {
    let tasks = life.clone();
    life.supervise_each("systemd", move || {
        let (tasks, socket) = (tasks.clone(), socket.clone());
        async move {
            let over = tasks.shutdown.clone();
            over.run_until_cancelled(ping(&tasks, socket.as_deref(), period)).await;
        }
    });
}

async fn ping(tasks: &Lifecycle, socket: Option<&OsStr>, period: Duration) {
    let mut ticks = interval(period / 2);
    // After a stall one ping is right; a burst would only pretend that the runtime had not stalled.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // That a timer fires is not enough: a new task has to get its turn, too.
        let (turn, had_turn) = tokio::sync::oneshot::channel();
        tasks.spawn(async move {
            let _ = turn.send(());
        });
        if had_turn.await.is_ok() {
            report(send(socket, &[NotifyState::Watchdog], PATIENCE));
        }
    }
}

fn report(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!("cannot notify systemd: {error}");
    }
}

/// sd_notify's own send blocks without limit and knows no abstract sockets, which containers use.
fn send(socket: Option<&OsStr>, state: &[NotifyState], patience: Duration) -> io::Result<()> {
    let Some(path) = socket else { return Ok(()) };
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    notify::send(path, &lines, &[], patience)
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    fn manager() -> (tempfile::TempDir, OsString, tokio::net::UnixDatagram) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
        (dir, path.into_os_string(), socket)
    }

    async fn heard(manager: &tokio::net::UnixDatagram) -> String {
        let mut buf = [0; 200];
        let len = manager.recv(&mut buf).await.unwrap();
        String::from_utf8_lossy(&buf[..len]).into_owned()
    }

    #[tokio::test]
    async fn states_are_lines_of_one_message() {
        let (_dir, path, manager) = manager();
        send(Some(&path), &[NotifyState::Ready, NotifyState::Status("3 ready")], PATIENCE).unwrap();
        assert_eq!(heard(&manager).await, "READY=1\nSTATUS=3 ready\n");
    }

    #[tokio::test]
    async fn an_abstract_socket_is_reached() {
        let name = format!("agent-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(Some(OsStr::new(&format!("@{name}"))), &[NotifyState::Stopping], PATIENCE).unwrap();
        let mut buf = [0; 20];
        let len = manager.recv(&mut buf).unwrap();
        assert_eq!(&buf[..len], b"STOPPING=1\n");
    }

    #[test]
    fn without_a_manager_or_with_one_that_is_gone_nothing_breaks() {
        send(None, &[NotifyState::Ready], PATIENCE).unwrap();
        assert!(send(Some(OsStr::new("/nowhere/notify")), &[NotifyState::Ready], PATIENCE).is_err());
        ready();
        status("two\nlines");
        stopping();
    }

    #[tokio::test]
    async fn a_manager_that_does_not_read_holds_up_nobody() {
        let (_dir, path, _manager) = manager();
        // The queue of a datagram socket is short (net.unix.max_dgram_qlen).
        let full = (0..10_000).find_map(|_| send(Some(&path), &[NotifyState::Watchdog], PATIENCE).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn the_watchdog_is_fed_until_the_end() {
        let (_dir, path, manager) = manager();
        let life = Lifecycle::new();
        spawn_pings(&life, Some(path), Duration::from_millis(20));
        for _ in 0..3 {
            assert_eq!(heard(&manager).await, "WATCHDOG=1\n");
        }
        crate::supervisor::tests::fail_once("systemd");
        while !crate::supervisor::tests::has_failed() {
            heard(&manager).await;
        }
        assert_eq!(heard(&manager).await, "WATCHDOG=1\n", "it goes on after a panic");
        // Finishing what is in progress can take longer than the watchdog's period.
        life.draining.cancel();
        assert_eq!(heard(&manager).await, "WATCHDOG=1\n");
        life.shutdown.cancel();
        life.finished().await;
    }

    #[tokio::test]
    async fn the_watchdog_starves_when_the_runtime_hangs() {
        let (_dir, path, manager) = manager();
        let life = Lifecycle::new();
        spawn_pings(&life, Some(path), Duration::from_millis(20));
        assert_eq!(heard(&manager).await, "WATCHDOG=1\n");
        // This runtime has one thread, and it is busy here.
        std::thread::sleep(Duration::from_millis(200));
        let mut queued = 0;
        while manager.try_recv(&mut [0; 50]).is_ok() {
            queued += 1;
        }
        assert_eq!(queued, 0);
        life.shutdown.cancel();
        life.finished().await;
    }
}
