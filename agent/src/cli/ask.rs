//! Asking the running agent.

use std::process::ExitCode;

use proto::control::{Refusal, Request, Response, Status};

use super::exit::{self, ExitError};
use super::{CommandSettings, out};
use crate::control::{self, CallError};

/// Sends one request. A refusal of the agent is an error, and so is none that answers.
pub(super) async fn ask(settings: &CommandSettings, request: &Request) -> anyhow::Result<Response> {
    ask_if_running(settings, request)
        .await?
        .map_err(|none| ExitError::error(exit::UNAVAILABLE, none.to_string()))
}

/// The same for a command that can do without an agent: that none runs, or that it ends meanwhile, is left to it.
pub(super) async fn ask_if_running(
    settings: &CommandSettings,
    request: &Request,
) -> anyhow::Result<Result<Response, CallError>> {
    let error = match control::call(settings.runtime_dir(), request).await {
        Ok(Response::Failed(message)) => return Err(ExitError::error(exit::UNAVAILABLE, message)),
        Ok(Response::Refused(Refusal { code, reason })) => {
            return Err(ExitError::error(exit::of_refusal(code), reason));
        }
        Ok(Response::Unsupported { version }) => {
            let message = format!(
                "the running agent has version {version} and does not know this request of version \
                 {}; restart it with: systemctl restart agent",
                env!("CARGO_PKG_VERSION")
            );
            return Err(ExitError::error(exit::UNAVAILABLE, message));
        }
        Ok(response) => return Ok(Ok(response)),
        Err(error) => error,
    };
    let code = match error {
        CallError::NotRunning { .. } | CallError::Stopped => return Ok(Err(error)),
        CallError::TimedOut { .. } => exit::UNAVAILABLE,
        CallError::NotAllowed { .. } => exit::NO_PERMISSION,
        CallError::Broken { .. } => exit::SOFTWARE,
    };
    Err(ExitError::error(code, error.to_string()))
}

/// Sends a request that is answered by a sentence, and prints it.
pub(super) async fn run_and_print(settings: &CommandSettings, request: &Request) -> anyhow::Result<ExitCode> {
    match ask(settings, request).await? {
        Response::Done(message) => {
            out::line(&message)?;
            Ok(ExitCode::SUCCESS)
        }
        other => Err(unexpected(&other)),
    }
}

/// Asks how everything is.
pub(super) async fn status(settings: &CommandSettings) -> anyhow::Result<Status> {
    match ask(settings, &Request::Status).await? {
        Response::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// An answer to some other question: the command and the running agent are not of one version.
pub(super) fn unexpected(response: &Response) -> anyhow::Error {
    let what = match response {
        Response::Status(_) => "a status",
        Response::Invite { .. } => "an invite",
        Response::Waiting(_) | Response::Held(_) | Response::Settings(_) | Response::Events { .. } => {
            "a list"
        }
        Response::Changed(..) => "a change",
        Response::Doctor(_) => "findings",
        Response::Done(_) | Response::Failed(_) | Response::Refused(_) | Response::Unsupported { .. } => {
            "a sentence"
        }
    };
    let message = format!(
        "the running agent answered with {what}, which does not match the request: it has another \
         version; restart it with: systemctl restart agent"
    );
    ExitError::error(exit::SOFTWARE, message)
}
