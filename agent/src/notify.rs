//! Messages to systemd, with or without descriptors: sd_notify(3).

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Where systemd reads them; `None` where it has not started this process.
pub(crate) fn socket() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET")
}

/// Sends lines, with one descriptor at most. `patience`: how long a manager that does not read is waited for.
///
/// # Errors
/// Nobody reads there, or not in time.
pub(crate) fn send(path: &OsStr, lines: &str, with: &[BorrowedFd<'_>], patience: Duration) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect_addr(&address)?;
    sendmsg(&socket, &[IoSlice::new(lines.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
