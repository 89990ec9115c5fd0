//! `agent completions`: from the same definition as the command line itself.

use std::process::ExitCode;

use clap_complete::Shell;

use super::out;

/// Print shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent completions bash > /etc/bash_completion.d/agent
  agent completions fish > ~/.config/fish/completions/agent.fish")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs the command.
pub(super) fn run(args: &Args, mut definition: clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition, "agent", &mut script);
    out::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
