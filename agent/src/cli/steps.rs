//! What `init` and `join` print, and what they do once the node has entered: install and start the
//! service, or go on in the foreground.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::control::{Request, Response, Status};

use super::{CommandSettings, exit, install, out};
use crate::app::setup::{ReadyNode, what_serves};
use crate::{app, control, log};

/// Longest wait for something to serve before `join` says that nothing does yet: a few rounds of gossip.
const SERVES: Duration = Duration::from_secs(5);

/// Prints checked facts, a line each.
#[derive(Clone)]
pub(super) struct Steps {
    json: bool,
    failed: Arc<Mutex<bool>>,
}

impl Steps {
    /// Lines for people, or JSON objects.
    pub(super) fn new(json: bool) -> Steps {
        Steps { json, failed: Arc::default() }
    }

    /// One fact.
    pub(super) fn step(&self, step: &str, ok: bool, detail: &str) {
        if !ok {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
        let printed = if self.json {
            out::json(&serde_json::json!({ "step": step, "ok": ok, "detail": detail }))
        } else {
            let mark = if ok { " " } else { "!" };
            out::line(&format!("{mark} {step:<9} {detail}")).map_err(Into::into)
        };
        // Whoever closed our output does not want to read; the work goes on.
        drop(printed);
    }

    /// The lines for other nodes: masters, then workers.
    pub(super) fn invites(&self, masters: &str, workers: &str) {
        if self.json {
            self.step("invite", true, &format!("agent join {masters}"));
            return self.step("invite-workers", true, &format!("agent join {workers}"));
        }
        let _ = out::line(&format!(
            "\nWithin an hour, run this on the other masters:\n\n  agent join {masters}\n\n\
             and this on the workers:\n\n  agent join {workers}\n"
        ));
    }
}

/// The status of the agent that runs here already, if one does.
pub(super) async fn already_runs(settings: &CommandSettings) -> anyhow::Result<Option<Status>> {
    match control::call(settings.runtime_dir(), &Request::Status).await {
        Ok(Response::Status(status)) => Ok(Some(*status)),
        Ok(_) | Err(control::CallError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(exit::ExitError::error(exit::UNAVAILABLE, error.to_string())),
    }
}

/// Installs and starts the service, or runs in the foreground.
pub(super) async fn go_on(
    entered: ReadyNode,
    settings: CommandSettings,
    steps: Steps,
    foreground: bool,
) -> anyhow::Result<ExitCode> {
    let ReadyNode { disk, member, invites } = entered;
    let invites = invites.map(|both| (both.masters.to_string(), both.workers.to_string()));
    if !foreground && install::is_possible() {
        // The service takes the state directory over.
        drop((disk, member));
        tokio::task::block_in_place(|| {
            install::install(&settings, true, &mut |text| steps.step("service", true, text))
        })?;
        let status = wait_for(&settings).await?;
        let (ok, text) = status.serving();
        steps.step("serves", ok, &text);
        if let Some((masters, workers)) = invites {
            steps.invites(&masters, &workers);
        }
        return Ok(ExitCode::SUCCESS);
    }
    log::init(settings.config.log_format, settings.config.log_level);
    let reload = {
        let settings = settings.clone();
        move || settings.reload()
    };
    app::run(settings.config, disk, member, reload, |running, life| {
        life.spawn(async move {
            // A first node is often without an apiserver, and someone waits for the invite.
            let within = if invites.is_some() { Duration::from_secs(1) } else { SERVES };
            let (ok, text) = what_serves(&running, within).await;
            steps.step("serves", ok, &text);
            if let Some((masters, workers)) = invites {
                steps.invites(&masters, &workers);
            }
            steps.step("running", true, "in the foreground; press Ctrl-C to stop");
        });
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until the service answers and serves; a few seconds at most.
async fn wait_for(settings: &CommandSettings) -> anyhow::Result<Status> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let asked = control::call(settings.runtime_dir(), &Request::Status).await;
        let late = tokio::time::Instant::now() >= deadline;
        match asked {
            Ok(Response::Status(status)) if late || status.serving().0 => return Ok(*status),
            Err(error) if late => {
                let text = format!("the service was started but does not answer: {error}");
                return Err(exit::ExitError::error(
                    exit::UNAVAILABLE,
                    format!("{text}; see: journalctl -u agent"),
                ));
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
