//! `agent man`: manual pages from the same definition as the command line itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use super::exit::{self, ExitError};
use super::{out, settings};

/// Print the manual page, or write those of all commands to a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  agent man | man -l -
  agent man /usr/local/share/man/man1")]
pub(crate) struct Args {
    /// Directory to write all pages to
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &Args, definition: clap::Command) -> anyhow::Result<ExitCode> {
    match &args.dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(definition).render(&mut page)?;
            out::print(&String::from_utf8_lossy(&page))?;
        }
        Some(dir) => write_all(definition, dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_all(definition: clap::Command, dir: &Path) -> anyhow::Result<()> {
    let unable = |error: std::io::Error| {
        ExitError::error(
            exit::CANT_CREATE,
            format!("can't write {}: {}", dir.display(), settings::plain(&error)),
        )
    };
    std::fs::create_dir_all(dir).map_err(unable)?;
    clap_mangen::generate_to(definition, dir).map_err(unable)?;
    let pages = std::fs::read_dir(dir).context("count the pages")?.count();
    out::line(&format!("wrote {pages} pages to {}", dir.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_gets_its_page() {
        let dir = tempfile::tempdir().unwrap();
        write_all(super::super::Cli::command(), dir.path()).unwrap();
        for page in ["agent.1", "agent-init.1", "agent-join.1", "agent-status.1", "agent-demo.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(".TH agent"), "{page}");
        }
    }

    #[test]
    fn every_shell_gets_its_completions() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let shell: clap_complete::Shell = shell.parse().unwrap();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut super::super::Cli::command(), "agent", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("approve"), "{shell}");
        }
    }
}
