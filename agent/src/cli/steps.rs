//! What `init` and `join` print, and what they do once the node has entered: install and start the
//! service, or go on in the foreground.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::config::{Config, JoinedPlace};
use proto::control::{Request, Response, Status};
use proto::transport::PORT;

use super::{CommandSettings, ask, exit, install, out};
use crate::app::setup::{ReadyNode, RejoinOutcome, SeedKey, SetupStep};
use crate::{app, control, log};

/// Longest wait for something to serve before `join` says that nothing does yet: a few rounds of gossip.
const SERVES: Duration = Duration::from_secs(5);

/// The same on the first node, which is often without an apiserver while someone waits for the invites.
const FIRST_SERVES: Duration = Duration::from_secs(1);

/// Longest wait for an agent that was started elsewhere to answer, and the time between two questions.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

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

    /// One fact about entering the cluster.
    pub(super) fn setup(&self, step: &SetupStep) {
        let (name, ok, detail) = words(step);
        self.step(name, ok, &detail);
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

/// A step of setup as it is printed: what it is about, whether it is good, and the details.
fn words(step: &SetupStep) -> (&'static str, bool, String) {
    match step {
        SetupStep::AlreadyMember(cluster) => ("cluster", true, format!("already a member of \"{cluster}\"")),
        SetupStep::Address { address, interface, kind } => {
            let kind = kind.as_ref().map_or(String::new(), |kind| format!(" ({kind})"));
            ("address", true, format!("{address} on {interface}{kind}"))
        }
        SetupStep::AddressDoubt(doubt) => ("address", false, doubt.clone()),
        SetupStep::Identity { id, dir } => ("identity", true, format!("{id} in {dir}")),
        SetupStep::Created { cluster, node } => {
            ("cluster", true, format!("\"{cluster}\", this node is \"{node}\""))
        }
        SetupStep::Replaces { old, masters } => {
            ("cluster", true, format!("replaces {old}, whose masters were: {masters}"))
        }
        SetupStep::Succeeded { cluster, id } => {
            ("cluster", true, format!("\"{cluster}\" is now {id}, with this node as its master"))
        }
        SetupStep::Setting { key, value } => {
            ("setting", true, format!("{key} = {}", value.as_deref().unwrap_or("not set")))
        }
        SetupStep::StateLost(lost) => ("state", false, lost.to_string()),
        SetupStep::Reached { at, took, key } => {
            let key = match key {
                SeedKey::Invite => "its key matches the invite",
                SeedKey::Given => "its key matches --key",
                SeedKey::Unknown => "its key is not known yet; compare the codes",
            };
            let ms = took.as_secs_f64() * 1e3;
            ("seed", true, format!("{at} answered in {ms:.0} ms, {key}"))
        }
        SetupStep::Redirected { worker } => ("seed", true, format!("{worker} is a worker; asking a master")),
        SetupStep::Waiting { code, time } => {
            let minutes = time.as_secs() / 60;
            (
                "approval",
                true,
                format!("waiting {minutes} minutes for this on a master: agent approve {code}"),
            )
        }
        SetupStep::TypeCode => {
            ("approval", true, "approved; type the code that agent approve printed:".to_owned())
        }
        SetupStep::Admitted { cluster, name, role, members } => {
            let role = role.map_or(String::new(), |role| format!(" ({role})"));
            ("admitted", true, format!("to \"{cluster}\" as \"{name}\"{role}, {members} members"))
        }
        SetupStep::Rejoined(outcome) => ("seed", true, rejoined(outcome)),
        SetupStep::NotAsked(error) => ("seed", false, format!("not asked: {error}")),
        SetupStep::NotListening { port, error } => {
            ("port", false, format!("can't listen on {port}: {error}"))
        }
        SetupStep::PortNotTested(error) => ("port", false, format!("not tested: {error}")),
        SetupStep::Port { protocol, port, from, fault: None } => {
            (protocol, true, format!("port {port} is reachable from {from}"))
        }
        SetupStep::Port { protocol, port, from, fault: Some(fault) } => {
            let text = format!(
                "port {port} is not reachable from {from}: {fault}; open it for {protocol} in the firewall"
            );
            (protocol, false, text)
        }
    }
}

fn rejoined(outcome: &RejoinOutcome) -> String {
    match outcome {
        RejoinOutcome::Adopted => "it knows this node; its cluster document was adopted".to_owned(),
        RejoinOutcome::Replaced => {
            "its cluster document was adopted as it is: none of the masters that this \
                                    node knew is left"
                .to_owned()
        }
        RejoinOutcome::Moved(cluster) => {
            format!("moved to \"{cluster}\", the successor of this node's cluster")
        }
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

/// Refuses a name or a place that the running agent does not have: only a start gives it one.
pub(super) fn same_place(config: &Config, running: &Status) -> anyhow::Result<()> {
    let node = &running.node;
    let Some(address) = node.address.as_ref().and_then(|address| address.parse().ok()) else { return Ok(()) };
    // The port is no flag, and a restart takes it from the file.
    let joined = JoinedPlace {
        name: &node.name,
        address,
        interface: &node.interface,
        port: config.port.unwrap_or(PORT),
    };
    let changes = config.place_changes(&joined);
    let why = changes.name_refused(&node.name).or_else(|| {
        (!changes.is_empty()).then(|| {
            format!(
                "the agent runs with {address} on {}; write {} into agent.toml and restart it: systemctl restart agent",
                node.interface,
                changes.at_restart()
            )
        })
    });
    why.map_or(Ok(()), |why| Err(exit::ExitError::error(exit::DATA, why)))
}

/// Installs and starts the service, or runs in the foreground.
pub(super) async fn go_on(
    entered: ReadyNode,
    settings: CommandSettings,
    steps: Steps,
    foreground: bool,
    no_wait: bool,
) -> anyhow::Result<ExitCode> {
    let ReadyNode { disk, member, invites } = entered;
    let invites = invites.map(|both| (both.masters.to_string(), both.workers.to_string()));
    let within = match &invites {
        _ if no_wait => Duration::ZERO,
        Some(_) => FIRST_SERVES,
        None => SERVES,
    };
    if !foreground && install::is_possible() {
        // The service takes the state directory over.
        drop((disk, member));
        tokio::task::block_in_place(|| {
            install::install(&settings, true, &mut |text| steps.step("service", true, text))
        })?;
        let status = wait_for(&settings, within).await?;
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
            let (ok, text) = running.what_serves(within).await;
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

/// Waits until the service answers, and then so long for something to serve.
async fn wait_for(settings: &CommandSettings, within: Duration) -> anyhow::Result<Status> {
    match status_when(settings, PATIENCE, |_| true).await {
        Ok(status) if status.serving().0 || within.is_zero() => Ok(status),
        Ok(_) => status_when(settings, within, |status| status.serving().0).await,
        Err(error) => {
            let text =
                format!("the service was started but does not answer: {error}; see: journalctl -u agent");
            Err(exit::ExitError::error(exit::UNAVAILABLE, text))
        }
    }
}

/// Asks the agent for its status until it `is_so`, or the time is over. What it answers then is returned in any case.
///
/// # Errors
/// It does not answer.
pub(super) async fn status_when(
    settings: &CommandSettings,
    within: Duration,
    is_so: impl Fn(&Status) -> bool,
) -> anyhow::Result<Status> {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        let asked = control::call(settings.runtime_dir(), &Request::Status).await;
        let late = tokio::time::Instant::now() >= deadline;
        match asked {
            Ok(Response::Status(status)) if late || is_so(&status) => return Ok(*status),
            Ok(other) if late => return Err(ask::unexpected(&other)),
            Err(error) if late => return Err(error.into()),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
