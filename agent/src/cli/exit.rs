//! How a command ends: codes of sysexits(3), so that scripts can tell a mistake in the configuration from
//! an agent that is not running, without reading a message.

use std::fmt;
use std::io;
use std::process::ExitCode;

use proto::control::RefusalCode;
use proto::invite::{EXIT_ISSUER_DEMOTED, EXIT_NOT_CONFIRMED, EXIT_WRONG_PIN};

use crate::app::setup::SetupError;
use crate::membership::disk::LoadError;
use crate::membership::join::JoinError;
use crate::net::ResolveError;
use crate::state::StateError;
use crate::transport::BindError;

/// The command line is wrong (EX_USAGE).
pub(crate) const USAGE: u8 = 64;
/// What was given is wrong: an invite, a code, a name (EX_DATAERR).
pub(crate) const DATA: u8 = 65;
/// A file that was named is not there (EX_NOINPUT).
pub(crate) const NO_INPUT: u8 = 66;
/// The agent, or a peer, can't be reached or would not do it (EX_UNAVAILABLE).
pub(crate) const UNAVAILABLE: u8 = 69;
/// A bug, or an error of the system with no code of its own (EX_SOFTWARE).
pub(crate) const SOFTWARE: u8 = 70;
/// A file can't be written (EX_CANTCREAT).
pub(crate) const CANT_CREATE: u8 = 73;
/// Not finished in the time that was given (EX_TEMPFAIL).
pub(crate) const NOT_FINISHED: u8 = 75;
/// Not allowed (EX_NOPERM).
pub(crate) const NO_PERMISSION: u8 = 77;
/// The configuration is wrong (EX_CONFIG).
pub(crate) const CONFIG: u8 = 78;

/// `agent status --exit-code`: something is wrong, and masters serve. `agent doctor`: the worst is a warning.
/// `agent events --cluster`: a member did not answer. `agent migrate`: the result is not whole.
pub(crate) const DEGRADED: u8 = 10;
/// `agent status --exit-code`: no master serves.
pub(crate) const NO_MASTER: u8 = 11;
/// `agent doctor`: the worst is an error.
pub(crate) const FAULTY: u8 = 11;

/// Only a master could do it, and this node is a worker.
pub(crate) const NOT_MASTER: u8 = 12;
/// The cluster would lose its last master.
pub(crate) const LAST_MASTER: u8 = 13;
/// Another process has the port.
const PORT_IN_USE: u8 = 14;

/// An error that knows the code to end with. Wherever it stands in the chain of an [`anyhow::Error`], its
/// code is used.
#[derive(Debug)]
pub(crate) struct ExitError {
    /// The code to end with.
    pub(crate) code: u8,
    /// What is wrong and what would be right.
    pub(crate) message: String,
}

impl ExitError {
    /// An error with its code.
    pub(crate) fn error(code: u8, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(ExitError { code, message: message.into() })
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExitError {}

/// Why a node did not enter a cluster, with the code to end with.
pub(super) fn of_setup(error: SetupError) -> anyhow::Error {
    let code = match &error {
        SetupError::NotMaster(_) => NOT_MASTER,
        SetupError::Invite(_) | SetupError::Vips(_) | SetupError::Renamed(_) => DATA,
        SetupError::Seed(ResolveError::Syntax { .. }) => DATA,
        SetupError::Seed(ResolveError::Failed { .. }) => UNAVAILABLE,
        SetupError::Address(_) => USAGE,
        SetupError::Port(error) if error.is_in_use() => PORT_IN_USE,
        SetupError::Join(JoinError::Refused(refusal)) => refusal.exit_code(),
        SetupError::Join(JoinError::IssuerDemoted { .. }) => EXIT_ISSUER_DEMOTED,
        SetupError::Join(JoinError::WrongPin(_)) => EXIT_WRONG_PIN,
        SetupError::Join(JoinError::NotConfirmed(_)) => EXIT_NOT_CONFIRMED,
        SetupError::Join(_) => UNAVAILABLE,
        _ => return anyhow::Error::new(error),
    };
    ExitError::error(code, error.to_string())
}

/// The code of a refusal of the running agent.
pub(super) fn of_refusal(code: RefusalCode) -> u8 {
    match code {
        RefusalCode::BadInput => DATA,
        RefusalCode::NotMaster => NOT_MASTER,
        RefusalCode::LastMaster => LAST_MASTER,
        RefusalCode::Other(_) => UNAVAILABLE,
    }
}

/// The code of an error: that of the first in its chain that has one.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    // A context that is a Failure is found by downcast only, its causes only by the chain.
    if let Some(failure) = error.downcast_ref::<ExitError>() {
        return failure.code;
    }
    error.chain().find_map(code_of_cause).unwrap_or(SOFTWARE)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(failure) = cause.downcast_ref::<ExitError>() {
        return Some(failure.code);
    }
    if let Some(refusal) = cause.downcast_ref::<proto::invite::JoinRefusal>() {
        return Some(refusal.exit_code());
    }
    if cause.downcast_ref::<BindError>().is_some_and(BindError::is_in_use) {
        return Some(PORT_IN_USE);
    }
    // SetupError and LoadError show their source as themselves, so the source is not in the chain.
    let load = match cause.downcast_ref::<SetupError>() {
        Some(SetupError::Load(error)) => Some(error),
        _ => cause.downcast_ref::<LoadError>(),
    };
    let state = match (load, cause.downcast_ref::<SetupError>()) {
        (Some(LoadError::Store(error)), _) | (None, Some(SetupError::State(error))) => Some(error),
        _ => cause.downcast_ref::<StateError>(),
    };
    if state.is_some_and(StateError::is_kept) {
        return Some(CONFIG);
    }
    match cause.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::PermissionDenied => Some(NO_PERMISSION),
        io::ErrorKind::NotFound => Some(NO_INPUT),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => Some(CANT_CREATE),
        _ => None,
    }
}

/// Says what is wrong on stderr and returns the code to end with.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    super::out::error(&format!("{error:#}"));
    ExitCode::from(code_of(error))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_node_that_does_not_enter_ends_with_the_code_of_its_reason_and_one_sentence() {
        let refused = |error: JoinError| of_setup(error.into());
        let at = "10.0.0.1:7646".parse().unwrap();
        for (error, code) in [
            (refused(proto::invite::JoinRefusal::UsedUp.into()), 22),
            (refused(JoinError::WrongPin(vec![at])), EXIT_WRONG_PIN),
            (refused(JoinError::IssuerDemoted { at, masters: Vec::new() }), EXIT_ISSUER_DEMOTED),
            (refused(JoinError::NotConfirmed("mistyped".to_owned())), EXIT_NOT_CONFIRMED),
            (refused(JoinError::Busy), UNAVAILABLE),
            (of_setup(SetupError::NotMaster("a worker".to_owned())), NOT_MASTER),
            (of_setup(SetupError::Vips(Vec::new())), DATA),
            (of_setup(SetupError::NoDocument), SOFTWARE),
        ] {
            assert_eq!(code_of(&error), code, "{error}");
        }
        let source = io::Error::from(io::ErrorKind::TimedOut);
        let silent = refused(JoinError::Unreachable { addresses: vec![at], port: 7646, source });
        assert_eq!(format!("{silent:#}"), silent.to_string(), "the source is in the sentence already");
        let source = io::Error::from(io::ErrorKind::TimedOut);
        let dead = refused(JoinError::IssuerUnreachable { addresses: vec![at], port: 7646, source });
        assert_eq!((code_of(&dead), format!("{dead:#}")), (code_of(&silent), dead.to_string()));
        assert!(dead.to_string().ends_with("make a new one on another master with: agent invite"), "{dead}");
    }

    #[test]
    fn the_code_survives_being_wrapped() {
        let wrapped = Err::<(), _>(ExitError::error(DATA, "no such node")).context("remove").unwrap_err();
        assert_eq!(code_of(&wrapped), DATA);
        assert_eq!(format!("{wrapped:#}"), "remove: no such node");

        let refused = anyhow::Error::new(proto::invite::JoinRefusal::Expired).context("join");
        assert_eq!(code_of(&refused), 21);

        let denied = anyhow::Error::new(io::Error::from(io::ErrorKind::PermissionDenied)).context("read");
        assert_eq!(code_of(&denied), NO_PERMISSION);
        assert_eq!(code_of(&anyhow::anyhow!("whatever")), SOFTWARE);

        let newer = || StateError::Kept { path: "/var/lib/agent/cluster".into() };
        assert_eq!(code_of(&anyhow::Error::new(LoadError::Store(newer())).context("run")), CONFIG);
        assert_eq!(code_of(&newer().into()), CONFIG);
        assert_eq!(code_of(&of_setup(newer().into())), CONFIG);
        assert_eq!(code_of(&of_setup(LoadError::Store(newer()).into())), CONFIG);
    }
}
