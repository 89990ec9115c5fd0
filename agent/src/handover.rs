//! How this process becomes another program and keeps what it holds.
//!
//! [`exec`] writes a [`HandOver`] into a memfd and has the kernel start the program at this one's path in its place:
//! same process id, same descriptors, as far as they are marked by [`keep_open`]. The new program calls [`begin`]
//! before anything else, which finds the memfd by [`VARIABLE`] and takes what is named in it. A descriptor that nobody
//! asks for afterwards is closed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use proto::handover::{HandOver, Slot};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

/// Names the descriptor of the memfd. It is removed at once, since it is for this process alone.
const VARIABLE: &str = "AGENT_HANDOVER_FD";

/// Where this program was started from: whatever is there is what the process becomes.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// What was handed to this process, until it is taken.
static RECEIVED: Mutex<Option<Received>> = Mutex::new(None);

/// Descriptors may be marked to stay open.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// What was handed to this process. Dropped, it closes what was not taken out of it.
pub(crate) struct Received {
    /// All but descriptors.
    pub(crate) form: HandOver,
    slots: Vec<Option<OwnedFd>>,
}

impl Received {
    /// Takes a descriptor out; `None` where there is none, or not any more.
    pub(crate) fn take(&mut self, slot: Slot) -> Option<OwnedFd> {
        self.slots.get_mut(usize::try_from(slot).ok()?)?.take()
    }
}

/// Remembers where this program was started from, and takes up what was handed to it. To be called before anything
/// else, while there is one thread and nothing is open but what was inherited.
pub(crate) fn begin() {
    if let Ok(program) = env::current_exe() {
        // By the name that it was called by, which may be a link that an upgrade sets anew.
        let called = env::args_os().next().map(PathBuf::from).filter(|called| called.is_absolute());
        let is_it = |called: &PathBuf| called.canonicalize().is_ok_and(|real| real == program);
        let _ = PROGRAM.set(called.filter(is_it).unwrap_or(program));
    }
    let Some(named) = env::var_os(VARIABLE) else { return };
    // SAFETY: no other thread exists yet that could read the environment.
    #[allow(unsafe_code)]
    unsafe {
        env::remove_var(VARIABLE);
    };
    let received = named.to_str().and_then(|number| number.parse().ok()).and_then(receive);
    *RECEIVED.lock().unwrap_or_else(PoisonError::into_inner) = received;
}

/// What the memfd with this number holds. If it can't be read, whatever was inherited is closed, and the process
/// starts as after a stop.
fn receive(number: RawFd) -> Option<Received> {
    let mut claimed = BTreeSet::new();
    let mut bytes = Vec::new();
    let mut memory = File::from(claim(number, &mut claimed)?);
    let read = memory.seek(SeekFrom::Start(0)).and_then(|_| memory.read_to_end(&mut bytes));
    let Some(form) = read.ok().and_then(|_| HandOver::from_bytes(&bytes).ok()) else {
        let open: Vec<_> = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().collect();
        let numbers: Vec<RawFd> =
            open.iter().filter_map(|one| one.file_name().to_str()?.parse().ok()).collect();
        drop(open);
        numbers.into_iter().for_each(|one| drop(claim(one, &mut claimed)));
        return None;
    };
    let slots = form.descriptors.iter().map(|one| claim(RawFd::try_from(*one).ok()?, &mut claimed)).collect();
    Some(Received { form, slots })
}

/// Takes an inherited descriptor, once, and has it closed when a program is started.
fn claim(number: RawFd, claimed: &mut BTreeSet<RawFd>) -> Option<OwnedFd> {
    let is_open = Path::new("/proc/self/fd").join(number.to_string()).symlink_metadata().is_ok();
    if number <= 2 || !is_open || !claimed.insert(number) {
        return None;
    }
    // SAFETY: it is open, it was inherited, so that nothing of this program owns it, and it is taken once.
    #[allow(unsafe_code)]
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    keep_open(&descriptor, false);
    Some(descriptor)
}

/// What was handed to this process; each caller after the first gets nothing.
pub(crate) fn received() -> Option<Received> {
    RECEIVED.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Whether something was handed to this process that nobody has taken yet.
pub(crate) fn is_pending() -> bool {
    RECEIVED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Where this program was started from.
pub(crate) fn program() -> Option<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path)
}

/// Says whether a descriptor stays open when this process becomes another program.
pub(crate) fn keep_open(descriptor: impl AsFd, stays: bool) {
    let _ = fcntl_setfd(descriptor, if stays { FdFlags::empty() } else { FdFlags::CLOEXEC });
}

/// Marks the time during which no other program may be started: it would inherit what stays open.
pub(crate) fn set_under_way(is: bool) {
    UNDER_WAY.store(is, Relaxed);
}

/// Whether that time is now.
pub(crate) fn is_under_way() -> bool {
    UNDER_WAY.load(Relaxed)
}

/// Becomes the program that lies where this one was started from, with the same arguments and environment. Returns
/// only when that fails, and then nothing has changed.
pub(crate) fn exec(form: &HandOver) -> io::Error {
    attempt(form).map_or_else(|error| error, |never| match never {})
}

fn attempt(form: &HandOver) -> io::Result<Infallible> {
    let program = program().ok_or(io::ErrorKind::NotFound)?;
    let mut memory = File::from(memfd_create(c"agent-hand-over", MemfdFlags::empty())?);
    memory.write_all(&form.to_bytes())?;
    let text = |text: &OsStr| CString::new(text.as_bytes());
    let path = text(program.as_os_str())?;
    let arguments = env::args_os().map(|one| text(&one)).collect::<Result<Vec<_>, _>>()?;
    let number = OsString::from(memory.as_raw_fd().to_string());
    let variables = env::vars_os().chain([(OsString::from(VARIABLE), number)]);
    let pair = |(mut key, value): (OsString, OsString)| {
        key.push("=");
        key.push(value);
        text(&key)
    };
    let variables = variables.map(pair).collect::<Result<Vec<_>, _>>()?;
    Ok(nix::unistd::execve(&path, &arguments, &variables)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    /// As it is inherited: open, and nobody's.
    fn inherited() -> RawFd {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        read.into_raw_fd()
    }

    #[test]
    fn a_descriptor_is_taken_once_and_closed_for_programs_that_are_started() {
        let (number, mut claimed) = (inherited(), BTreeSet::new());
        let descriptor = claim(number, &mut claimed).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&descriptor).unwrap(), FdFlags::CLOEXEC);
        assert!(claim(number, &mut claimed).is_none(), "twice");
        assert!(claim(2, &mut claimed).is_none(), "stderr");
        keep_open(&descriptor, true);
        assert_eq!(rustix::io::fcntl_getfd(&descriptor).unwrap(), FdFlags::empty());
    }

    #[test]
    fn what_is_named_in_the_memfd_can_be_taken_out_of_it() {
        let mut form = HandOver::default();
        let slots = [form.place(inherited() as u64), form.place(1_000_000), form.place(u64::MAX)];
        let memory = memfd_create(c"test", MemfdFlags::empty()).unwrap();
        let mut file = File::from(memory);
        file.write_all(&form.to_bytes()).unwrap();
        let mut received = receive(file.into_raw_fd()).unwrap();
        assert_eq!(received.form, form);
        assert!(received.take(slots[0]).is_some() && received.take(slots[0]).is_none());
        assert!(received.take(slots[1]).is_none() && received.take(slots[2]).is_none());
        assert!(received.take(99).is_none());
    }
}
