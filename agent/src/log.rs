//! The log: text for people, JSON for machines, journald's own protocol under systemd.

use std::io::{self, IsTerminal};

use proto::config::{LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts the log of this process. A second call changes nothing.
pub(crate) fn init(format: LogFormat, level: LogLevel) {
    let (layer, failed) = match resolve(format) {
        LogFormat::Journald => match journald() {
            Ok(layer) => (layer, None),
            Err(error) => (text(), Some(error)),
        },
        LogFormat::Json => (json(), None),
        LogFormat::Text | LogFormat::Auto => (text(), None),
    };
    // Only fails where a log was started before, which then stays.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter(level))).try_init();
    if let Some(error) = failed {
        tracing::warn!(%error, "journald does not answer, the log goes to stderr");
    }
}

/// What is ours is logged at the level that was asked for; what our dependencies say only from a warning
/// on, since their detail drowns the changes of state that an operator looks for.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("agent", level)
        .with_target("proto", level)
        // Asked for by itself, for each service, so at every level.
        .with_target("access", LevelFilter::INFO)
}

/// Auto becomes journald where stderr is connected to it, and text elsewhere.
fn resolve(format: LogFormat) -> LogFormat {
    if format != LogFormat::Auto {
        return format;
    }
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = rustix::fs::fstat(io::stderr()).map(|about| (about.st_dev, about.st_ino));
    match stderr {
        Ok(file) if is_journal(&stream, file) => LogFormat::Journald,
        _ => LogFormat::Text,
    }
}

/// Whether stderr is the very stream that systemd named (systemd.exec(5), $JOURNAL_STREAM): the variable
/// is inherited by children whose stderr goes elsewhere.
fn is_journal(stream: &str, (device, inode): (u64, u64)) -> bool {
    stream.split_once(':').is_some_and(|(dev, ino)| {
        dev.parse::<u64>().is_ok_and(|dev| dev == device) && ino.parse::<u64>().is_ok_and(|ino| ino == inode)
    })
}

fn journald() -> io::Result<Boxed> {
    let layer = tracing_journald::layer()?
        .with_syslog_identifier("agent".to_owned())
        .with_field_prefix(Some("AGENT".to_owned()))
        // The default calls every change of state a notice, which some setups show as a warning.
        .with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        });
    Ok(layer.boxed())
}

fn json() -> Boxed {
    tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed()
}

fn text() -> Boxed {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal() && !refused)
        .with_writer(io::stderr)
        .boxed()
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn dependencies_are_quiet_and_we_are_not() {
        let debug = filter(LogLevel::Debug);
        assert!(debug.would_enable("agent::gossip", &Level::DEBUG));
        assert!(!debug.would_enable("agent::gossip", &Level::TRACE));
        assert!(debug.would_enable("chitchat::server", &Level::WARN));
        assert!(!debug.would_enable("chitchat::server", &Level::INFO));
        assert!(!filter(LogLevel::Error).would_enable("chitchat", &Level::WARN));
        assert!(!filter(LogLevel::Error).would_enable("agent", &Level::WARN));
        assert!(filter(LogLevel::Error).would_enable("access", &Level::INFO));
    }

    #[test]
    fn only_the_stream_that_systemd_named_is_the_journal() {
        assert!(is_journal("8:123", (8, 123)));
        for other in ["", "8", "8:124", "9:123", "8:123:1", "a:b"] {
            assert!(!is_journal(other, (8, 123)), "{other}");
        }
    }
}
