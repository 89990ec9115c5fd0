//! `agent run`: the agent itself.

use std::process::ExitCode;

use super::CommandSettings;
use super::exit::{self, ExitError};
use crate::app::{self, setup};
use crate::log;
use crate::membership::disk::LoadError;

/// Run the agent in the foreground; this is what the service runs
///
/// SIGTERM stops it, SIGHUP reloads the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) async fn run(_args: Args, settings: CommandSettings) -> anyhow::Result<ExitCode> {
    log::init(settings.config.log_format, settings.config.log_level);
    settings.warn(&settings.config);
    let disk = setup::open(&settings.config)?;
    let member = disk.member_or_degraded().map_err(|error| match error {
        // The unit does not restart on this code: nothing would change by itself.
        LoadError::NotMember | LoadError::Identity(_) | LoadError::Lost(_) => {
            ExitError::error(exit::CONFIG, error.to_string())
        }
        LoadError::Store(error) => error.into(),
    })?;
    let reload = {
        let settings = settings.clone();
        move || settings.reload()
    };
    app::run(settings.config, disk, member, reload, |_, _| {}).await?;
    Ok(ExitCode::SUCCESS)
}
