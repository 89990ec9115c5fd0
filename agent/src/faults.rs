//! Causes of the operating system's errors.

use std::io::{self, ErrorKind};

use proto::cause::{Cause, Fault};
use rustix::io::Errno;

/// The cause of an operating system error, with its text if that says more.
pub(crate) fn fault(error: &io::Error) -> Fault {
    match cause(error) {
        Some(cause) => cause.into(),
        None => Fault::new(Cause::ConnectionBroken, error),
    }
}

/// The cause of an operating system error; `None`: no particular one.
pub(crate) fn cause(error: &io::Error) -> Option<Cause> {
    if let Some(Errno::MFILE | Errno::NFILE) = Errno::from_io_error(error) {
        return Some(Cause::NoDescriptors);
    }
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => Cause::PortClosed,
        ErrorKind::TimedOut => Cause::TimedOut,
        ErrorKind::UnexpectedEof => Cause::ClosedEarly,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            Cause::Unreachable
        }
        ErrorKind::AddrInUse => Cause::AddressInUse,
        ErrorKind::AddrNotAvailable => Cause::AddressUnavailable,
        ErrorKind::PermissionDenied => Cause::NotPermitted,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_have_their_causes() {
        let of = |errno: Errno| fault(&io::Error::from(errno)).cause;
        assert_eq!(of(Errno::CONNREFUSED), Cause::PortClosed);
        assert_eq!(of(Errno::MFILE), Cause::NoDescriptors);
        assert_eq!(of(Errno::HOSTUNREACH), Cause::Unreachable);
        assert_eq!(of(Errno::ADDRINUSE), Cause::AddressInUse);
        let reset = fault(&io::Error::from(Errno::CONNRESET));
        assert_eq!(reset.cause, Cause::ConnectionBroken);
        assert!(!reset.detail.is_empty(), "what else is known is shown");
    }
}
