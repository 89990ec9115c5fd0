//! The log: text for people, JSON for machines, journald's own protocol under systemd.

use std::io::{self, IsTerminal};

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;

use proto::config::{LogFormat, LogLevel};
use proto::event::{Event, EventLevel};
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{FilterExt, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::log_limit::LineLimit;

/// Where journald listens (systemd, "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Socket for events: tracing's layer would add a prefix to their fields and MESSAGE_ID.
static DIRECT: OnceLock<UnixDatagram> = OnceLock::new();

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts the log of this process. A second call changes nothing.
pub(crate) fn init(format: LogFormat, level: LogLevel) {
    let (layer, failed) = match resolve(format) {
        LogFormat::Journald => match journald() {
            Ok(layer) => {
                if let Ok(socket) = journal_socket(Path::new(JOURNAL)) {
                    let _ = DIRECT.set(socket);
                }
                (layer, None)
            }
            Err(error) => (text(), Some(error)),
        },
        LogFormat::Json => (json(), None),
        LogFormat::Text | LogFormat::Auto => (text(), None),
    };
    // Fails only if a log was started before, which then stays.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter(level).and(LineLimit::default())))
        .try_init();
    if let Some(error) = failed {
        tracing::warn!(%error, "journald does not respond; logging to stderr");
    }
}

/// Our own messages are logged at the configured level; those of dependencies only from warnings on, since
/// their detail hides the changes of state that an operator looks for.
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
        .with_target("event", level)
        // Enabled separately, for each service, so at every level.
        .with_target("access", LevelFilter::INFO)
}

/// Auto means journald if stderr is connected to it, and text otherwise.
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

/// Whether stderr is the very stream that systemd named (systemd.exec(5), $JOURNAL_STREAM): children whose
/// stderr goes elsewhere inherit the variable.
fn is_journal(stream: &str, (device, inode): (u64, u64)) -> bool {
    stream.split_once(':').is_some_and(|(dev, ino)| {
        dev.parse::<u64>().is_ok_and(|dev| dev == device) && ino.parse::<u64>().is_ok_and(|ino| ino == inode)
    })
}

fn journald() -> io::Result<Boxed> {
    let layer = tracing_journald::layer()?
        .with_syslog_identifier("agent".to_owned())
        .with_field_prefix(Some("AGENT".to_owned()))
        // The default makes every change of state a notice, which some setups show as a warning.
        .with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        });
    Ok(layer.boxed())
}

fn journal_socket(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    // A journal that does not read must not block the sender.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Logs an event: a sentence, and under journald its fields and MESSAGE_ID.
pub(crate) fn event(event: &Event) {
    let enabled = match event.level {
        EventLevel::Info => tracing::enabled!(target: "event", tracing::Level::INFO),
        EventLevel::Warning | EventLevel::Error => tracing::enabled!(target: "event", tracing::Level::WARN),
    };
    if enabled && DIRECT.get().is_some_and(|socket| socket.send(fields(event).as_bytes()).is_ok()) {
        return;
    }
    let sentence = event.sentence();
    match event.level {
        EventLevel::Info => tracing::info!(target: "event", "{sentence}"),
        EventLevel::Warning | EventLevel::Error => tracing::warn!(target: "event", "{sentence}"),
    }
}

/// An event in journald's own protocol. Its texts have no control characters, so each field is a line.
fn fields(event: &Event) -> String {
    let mut text = format!(
        "MESSAGE={}\nMESSAGE_ID={}\nPRIORITY={}\nSYSLOG_IDENTIFIER=agent\n",
        event.sentence(),
        event.kind.message_id(),
        event.level.syslog(),
    );
    for (name, value) in [
        ("EVENT", event.kind.name()),
        ("SUBJECT", &event.subject),
        ("FROM", &event.from),
        ("TO", &event.to),
        ("CAUSE", &event.cause),
        ("REASON", &event.reason.to_string()),
        ("NODE", &event.node),
        ("COUNT", &event.count.map_or(String::new(), |count| count.to_string())),
        ("NODES", &event.nodes.join(" ")),
        ("SEQ", &event.seq.to_string()),
        ("DURATION_MS", &event.duration_ms.map_or(String::new(), |ms| ms.to_string())),
    ] {
        if !value.is_empty() {
            for part in ["AGENT_", name, "=", value, "\n"] {
                text.push_str(part);
            }
        }
    }
    text
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
    fn dependencies_log_warnings_only() {
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
    fn an_event_reaches_the_journal_with_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let told = proto::event::Event::new(
            proto::event::EventKind::Member,
            proto::time::UnixMs(9_000),
            "m1",
            "down",
        );
        let told =
            proto::event::Event { count: Some(147), nodes: vec!["m1".to_owned(), "m2".to_owned()], ..told };
        let told = told
            .since("up", proto::time::UnixMs(2_000))
            .because(proto::cause::Cause::NotHeard)
            .level(super::EventLevel::Error);
        journal_socket(&path).unwrap().send(fields(&told).as_bytes()).unwrap();
        let mut bytes = [0; 1000];
        let len = journal.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        for field in [
            "MESSAGE=member m1: up -> down after 7s: no answer from the node",
            "MESSAGE_ID=6073eb1aa88b4c6593729c0379b918ac",
            "PRIORITY=3",
            "SYSLOG_IDENTIFIER=agent",
            "AGENT_EVENT=member",
            "AGENT_CAUSE=not-heard",
            "AGENT_FROM=up",
            "AGENT_TO=down",
            "AGENT_DURATION_MS=7000",
            "AGENT_COUNT=147",
            "AGENT_NODES=m1 m2",
        ] {
            assert!(text.lines().any(|line| line == field), "{field} is missing in\n{text}");
        }
        assert!(!text.contains("AGENT_NODE="), "an empty field is left out");
    }

    #[test]
    fn only_the_stream_that_systemd_named_is_the_journal() {
        assert!(is_journal("8:123", (8, 123)));
        for other in ["", "8", "8:124", "9:123", "8:123:1", "a:b"] {
            assert!(!is_journal(other, (8, 123)), "{other}");
        }
    }
}
