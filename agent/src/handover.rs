//! How this process becomes another program, or has one follow it, and nothing of what it holds is lost.
//!
//! [`exec`] writes a [`HandOver`] into a memfd and has the kernel start the program at this one's path in its place:
//! same process id, same descriptors, as far as they are marked by [`keep_open`]. The new program calls [`begin`]
//! before anything else, which finds the memfd by [`VARIABLE`] and takes what is named in it. A descriptor that nobody
//! asks for afterwards is closed. With systemd, [`store`] carries the same over a restart of the service.

pub(crate) mod store;

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use proto::handover::{HandOver, Slot};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Names the descriptor of the memfd. It is removed at once, since it is for this process alone.
const VARIABLE: &str = "AGENT_HANDOVER_FD";

/// Descriptors above this are not looked for where nobody says which there are.
const MOST: RawFd = 1 << 16;

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
    let received = match env::var_os(VARIABLE) {
        Some(named) => {
            unset(OsStr::new(VARIABLE));
            named.to_str().and_then(|number| number.parse().ok()).and_then(receive)
        }
        None if env::var_os("LISTEN_PID").is_some() => store::receive(),
        None => return,
    };
    *RECEIVED.lock().unwrap_or_else(PoisonError::into_inner) = received;
}

/// Removes a variable, which was meant for this process alone.
fn unset(name: &OsStr) {
    // SAFETY: only called while no other thread exists that could read the environment.
    #[allow(unsafe_code)]
    unsafe {
        env::remove_var(name);
    };
}

/// What the memfd with this number holds. If it can't be read, whatever was inherited is closed, and the process
/// starts as after a stop.
fn receive(number: RawFd) -> Option<Received> {
    let Some(form) = read_form(File::from(claim(number)?)) else {
        (0..MOST).for_each(|one| drop(claim(one)));
        return None;
    };
    let slots = form.descriptors.iter().map(|one| claim(RawFd::try_from(*one).ok()?)).collect();
    Some(Received { form, slots })
}

/// The form that a memfd holds.
fn read_form(mut memory: File) -> Option<HandOver> {
    let mut bytes = Vec::new();
    memory.seek(SeekFrom::Start(0)).and_then(|_| memory.read_to_end(&mut bytes)).ok()?;
    HandOver::from_bytes(&bytes).ok()
}

/// Takes an inherited descriptor, once: from then on it is closed when a program is started, and nothing inherited is.
fn claim(number: RawFd) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: a number that is not open is only asked about. One that is and was not marked to be closed was inherited,
    // so that nothing of this program owns it, and it is marked before it could be taken again.
    #[allow(unsafe_code)]
    let descriptor = unsafe {
        let flags = fcntl_getfd(BorrowedFd::borrow_raw(number));
        flags.is_ok_and(|flags| flags.is_empty()).then(|| OwnedFd::from_raw_fd(number))
    }?;
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

/// Marks the time during which no other program may be started, since it would inherit what stays open. Returns whether
/// it was marked already.
pub(crate) fn set_under_way(is: bool) -> bool {
    UNDER_WAY.swap(is, Relaxed)
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
    let path = CString::new(program.as_os_str().as_bytes())?;
    let arguments = c_strings(&mut env::args_os())?;
    let number = OsString::from(memory.as_raw_fd().to_string());
    let variables = env::vars_os().chain([(OsString::from(VARIABLE), number)]);
    let variables = c_strings(&mut variables.map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        key
    }))?;
    Ok(nix::unistd::execve(&path, &arguments, &variables)?)
}

fn c_strings(texts: &mut dyn Iterator<Item = OsString>) -> io::Result<Vec<CString>> {
    let mut all = Vec::new();
    for text in texts {
        all.push(CString::new(text.into_vec())?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    /// As it is inherited: open, and nobody's.
    fn inherited() -> RawFd {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        keep_open(&read, true);
        read.into_raw_fd()
    }

    #[test]
    fn a_descriptor_is_taken_once_and_closed_for_programs_that_are_started() {
        let number = inherited();
        let descriptor = claim(number).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&descriptor).unwrap(), FdFlags::CLOEXEC);
        assert!(claim(number).is_none(), "twice");
        assert!(claim(2).is_none(), "stderr");
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
