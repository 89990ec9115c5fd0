//! systemd's descriptor store, which keeps what this process holds while `systemctl restart` starts the next one.
//!
//! systemd compares a new descriptor with each that it stores and hands their names over in one variable, so it gets
//! one alone: a socket in whose queue the others wait (SCM_RIGHTS), the memfd with the form before them. The next
//! process reads them out of it and has it removed from the store.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use proto::handover::HandOver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Received, claim, read_form};
use crate::notify;

/// The name of the socket in the store.
const NAME: &str = "agent-hand-over";

/// The first descriptor that systemd passes: sd_listen_fds(3).
const FIRST: RawFd = 3;

/// As many descriptors fit into one message: SCM_MAX_FD of unix(7).
const IN_ONE: usize = 253;

/// systemd answers a notification within milliseconds unless it hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether systemd stops this service only to start it again. Blocks for as long as systemctl runs.
pub(crate) fn is_restart() -> bool {
    let Some(unit) = env::var_os("NOTIFY_SOCKET").and_then(|_| own_unit()) else { return false };
    let mut command = Command::new("systemctl");
    command.args(["list-jobs", "--no-legend", "--no-pager", "--full", "--", &unit]).stdin(Stdio::null());
    command.output().is_ok_and(|ran| has_restart(&String::from_utf8_lossy(&ran.stdout), &unit))
}

/// Whether this list of jobs has a restart of the unit.
fn has_restart(jobs: &str, unit: &str) -> bool {
    let is_it = |job: &str| job.split_whitespace().skip(1).take(2).eq([unit, "restart"]);
    jobs.lines().any(is_it)
}

/// The service that this process is the main one of.
fn own_unit() -> Option<String> {
    unit_in(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The service in what /proc/PID/cgroup says, with one hierarchy or several: cgroups(7).
fn unit_in(cgroup: &str) -> Option<String> {
    let of_systemd = |line: &&str| line.starts_with("0::") || line.contains(":name=systemd:");
    let mut last = cgroup.lines().filter(of_systemd).filter_map(|line| line.rsplit('/').next());
    last.find(|name| name.ends_with(".service")).map(str::to_owned)
}

/// Gives all of it to systemd, which hands it to the next process of this service. On an error systemd has nothing,
/// and this process still has everything.
///
/// # Errors
/// systemd does not take it: the unit has no FileDescriptorStoreMax=, or systemd is older than version 246.
pub(crate) fn keep(form: &HandOver) -> io::Result<()> {
    let (queue, writer) = fill(form)?;
    let told = format!("FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0\n");
    tell(&told, &[queue.as_fd()])?;
    drop(queue);
    // systemd closes its end of this once it has read what was sent before.
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    tell("BARRIER=1\n", &[write.as_fd()])?;
    drop(write);
    if !has_hung_up(&read, PATIENCE)? {
        forget();
        return Err(io::Error::other("systemd does not answer"));
    }
    if has_hung_up(&writer, Duration::ZERO)? {
        let why = "systemd does not keep it: FileDescriptorStoreMax= is not set in the unit, or systemd is \
                   older than version 246";
        return Err(io::Error::other(why));
    }
    Ok(())
}

fn tell(lines: &str, with: &[BorrowedFd<'_>]) -> io::Result<()> {
    let systemd = notify::socket().ok_or(io::ErrorKind::NotFound)?;
    notify::send(&systemd, lines, with, PATIENCE)
}

/// A socket with all of it in its queue, and the end that was written to.
fn fill(form: &HandOver) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut memory = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    memory.write_all(&form.to_bytes())?;
    memory.seek(SeekFrom::Start(0))?;
    let (queue, writer) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    send_descriptors(&writer, &[memory.as_fd()])?;
    // SAFETY: whoever placed these numbers in the form owns them until this process ends or goes on.
    #[allow(unsafe_code)]
    let borrow =
        |number: &u64| RawFd::try_from(*number).map(|number| unsafe { BorrowedFd::borrow_raw(number) }).ok();
    let held: Vec<BorrowedFd<'_>> = form.descriptors.iter().filter_map(borrow).collect();
    if held.len() != form.descriptors.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    held.chunks(IN_ONE).try_for_each(|some| send_descriptors(&writer, some))?;
    Ok((queue, writer))
}

fn send_descriptors(to: &OwnedFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(IN_ONE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    // A byte, since a message without any is none.
    sendmsg(to, &[IoSlice::new(b".")], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

fn has_hung_up(end: &impl AsFd, within: Duration) -> io::Result<bool> {
    let mut ends = [PollFd::new(end, PollFlags::empty())];
    let limit = Timespec::try_from(within).map_err(io::Error::other)?;
    poll(&mut ends, Some(&limit))?;
    Ok(ends[0].revents().contains(PollFlags::HUP))
}

/// Has systemd forget what it keeps.
fn forget() {
    let told = format!("FDSTOREREMOVE=1\nFDNAME={NAME}\n");
    let _ = tell(&told, &[]);
}

/// What systemd kept for this process. Whatever else it passes is closed.
pub(super) fn receive() -> Option<Received> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let passed = passed(&variable("LISTEN_PID"), &variable("LISTEN_FDS"), &variable("LISTEN_FDNAMES"));
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        super::unset(OsStr::new(name));
    }
    let kept: Vec<OwnedFd> =
        passed.into_iter().filter_map(|(number, is_it)| claim(number).filter(|_| is_it)).collect();
    if kept.is_empty() {
        return None;
    }
    forget();
    // More than one only if a process ended before it came to this.
    kept.iter().filter_map(empty).max_by_key(|received| received.form.at)
}

/// The descriptors that systemd passes to this process, and whether each is what was kept.
fn passed(process: &str, count: &str, names: &str) -> Vec<(RawFd, bool)> {
    let count = count.parse::<RawFd>().unwrap_or(0);
    if process.parse() != Ok(std::process::id()) {
        return Vec::new();
    }
    let names = names.split(':').chain(std::iter::repeat(""));
    (FIRST..FIRST.saturating_add(count)).zip(names).map(|(number, name)| (number, name == NAME)).collect()
}

/// All that waits in the queue.
fn empty(queue: &OwnedFd) -> Option<Received> {
    let mut all = Vec::new();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(IN_ONE))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut byte = [0];
        match recvmsg(queue, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
            Ok(message) if message.bytes > 0 => {}
            Ok(_) | Err(_) => break,
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                all.extend(descriptors);
            }
        }
    }
    let mut all = all.into_iter();
    let form = read_form(File::from(all.next()?))?;
    Some(Received { form, slots: all.map(Some).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_told_from_a_restart() {
        let jobs = "  41 agent.service    restart running\n 42 other.service stop waiting\n";
        assert!(has_restart(jobs, "agent.service"));
        assert!(!has_restart(jobs, "other.service"));
        assert!(!has_restart("7 agent.service stop running\n", "agent.service"));
        assert!(!has_restart("7 restart agent.service stop\n", "agent.service"));
        assert!(!has_restart("", "agent.service"));
    }

    #[test]
    fn the_own_service_is_found_with_one_hierarchy_and_with_several() {
        let unit = |text| unit_in(text);
        assert_eq!(unit("0::/system.slice/agent.service\n").as_deref(), Some("agent.service"));
        let hybrid =
            "4:memory:/x.service\n1:name=systemd:/system.slice/agent-ha.service\n0::/a/agent-ha.service\n";
        assert_eq!(unit(hybrid).as_deref(), Some("agent-ha.service"));
        assert_eq!(unit("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(unit(""), None);
    }

    #[test]
    fn only_what_was_kept_for_this_process_is_taken() {
        let own = std::process::id().to_string();
        assert_eq!(passed(&own, "2", "agent-hand-over:http"), [(3, true), (4, false)]);
        assert_eq!(passed(&own, "1", ""), [(3, false)]);
        assert_eq!(passed("1", "1", "agent-hand-over"), []);
        for count in ["", "-1", "x"] {
            assert_eq!(passed(&own, count, "agent-hand-over"), []);
        }
    }

    #[test]
    fn thousands_of_descriptors_wait_in_one_socket_in_their_order() {
        use std::os::fd::AsRawFd;
        let files: Vec<File> = (0..700)
            .map(|number| {
                let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
                write!(file, "{number}").unwrap();
                file
            })
            .collect();
        let mut form = HandOver { agent: "1.2.3".to_owned(), ..HandOver::default() };
        let slots: Vec<_> = files.iter().map(|file| form.place(file.as_raw_fd() as u64)).collect();
        let (queue, writer) = fill(&form).unwrap();
        drop((writer, files));
        let mut received = empty(&queue).unwrap();
        assert_eq!(received.form, form);
        for (number, slot) in slots.into_iter().enumerate() {
            let mut file = File::from(received.take(slot).unwrap());
            file.seek(SeekFrom::Start(0)).unwrap();
            assert_eq!(io::read_to_string(file).unwrap(), number.to_string());
        }
        assert!(empty(&queue).is_none(), "twice");
    }

    #[test]
    fn a_descriptor_that_is_none_fails_the_whole() {
        let mut form = HandOver::default();
        form.place(1_000_000);
        assert!(fill(&form).is_err());
    }
}
