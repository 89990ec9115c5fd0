//! From file, environment and flags to one checked configuration.

use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use proto::config::{self, Config, LogFormat, LogLevel, MAX_FILE, Mistake};
use proto::node::Name;

use super::exit::{self, ExitError};
use crate::trusted::{self, TrustError};

/// The configuration file that is read when none is named; it need not exist.
const DEFAULT_FILE: &str = "/etc/agent/agent.toml";

/// Opens a pipe that nobody writes to without waiting for one who does.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// Options that every command takes.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Configuration file [default: /etc/agent/agent.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// State directory [default: /var/lib/agent]
    #[arg(long, global = true, value_name = "DIR", value_parser = absolute)]
    pub(crate) state_dir: Option<String>,
    /// Directory of the control socket [default: /run/agent]
    #[arg(long, global = true, value_name = "DIR", value_parser = short)]
    pub(crate) runtime_dir: Option<String>,
    /// Log format; auto means journald under systemd, else text
    #[arg(long, global = true, value_name = "FORMAT", value_parser = log_format())]
    pub(crate) log: Option<LogFormat>,
    /// Log level
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_level())]
    pub(crate) log_level: Option<LogLevel>,
}

fn absolute(text: &str) -> Result<String, config::BadValue> {
    config::check_path(text)
}

fn short(text: &str) -> Result<String, config::BadValue> {
    config::check_runtime_dir(text)
}

fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(LogFormat::ALL.map(LogFormat::as_str)).try_map(|word| word.parse::<LogFormat>())
}

fn log_level() -> impl TypedValueParser<Value = LogLevel> {
    PossibleValuesParser::new(LogLevel::ALL.map(LogLevel::as_str)).try_map(|word| word.parse::<LogLevel>())
}

/// What a command works with.
#[derive(Debug, Clone)]
pub(crate) struct CommandSettings {
    /// File, environment and flags, in this order, the later over the earlier.
    pub(crate) config: Config,
    /// The flags themselves, to read the file again.
    pub(crate) global: Global,
}

impl CommandSettings {
    /// Reads everything for the first time.
    pub(crate) fn load(global: Global) -> anyhow::Result<CommandSettings> {
        let config = read(&global)?;
        Ok(CommandSettings { config, global })
    }

    /// Reads everything again, as SIGHUP asks. What is in use stays as it is when something is wrong.
    pub(crate) fn reload(&self) -> anyhow::Result<Config> {
        let config = read(&self.global)?;
        self.warn(&config);
        Ok(config)
    }

    /// Logs what is wrong with the permissions of the file.
    pub(crate) fn warn(&self, config: &Config) {
        for suspicion in permission_warnings(self.global.config.as_deref(), config) {
            tracing::warn!("{suspicion}");
        }
    }

    /// The name and the place that flags give this node: alone, and over the configuration.
    pub(super) fn with_place(
        &self,
        name: Option<Name>,
        address: Option<IpAddr>,
        interface: Option<String>,
    ) -> anyhow::Result<(Config, Config)> {
        let flags = Config { name: name.clone(), address, interface: interface.clone(), ..Config::default() };
        let config = self.config.clone().with_flags(name, address, interface);
        Ok((flags, config.map_err(|error| ExitError::error(exit::DATA, error.to_string()))?))
    }

    /// Where the control socket is.
    pub(crate) fn runtime_dir(&self) -> &Path {
        Path::new(&self.config.runtime_dir)
    }

    /// Where state is kept.
    pub(crate) fn state_dir(&self) -> &Path {
        Path::new(&self.config.state_dir)
    }
}

fn read(global: &Global) -> anyhow::Result<Config> {
    let (source, parsed) = read_file(global.config.as_deref())?;
    let config = parsed.map_err(|mistakes| wrong(&source, &mistakes))?;
    let config =
        config::apply_env(config, environment()).map_err(|mistakes| wrong("the environment", &mistakes))?;
    Ok(over(config, global))
}

/// Lays the flags over a configuration.
pub(super) fn over(mut config: Config, global: &Global) -> Config {
    let Global { config: _, state_dir, runtime_dir, log, log_level } = global.clone();
    config.state_dir = state_dir.unwrap_or(config.state_dir);
    config.runtime_dir = runtime_dir.unwrap_or(config.runtime_dir);
    config.log_format = log.unwrap_or(config.log_format);
    config.log_level = log_level.unwrap_or(config.log_level);
    config
}

/// The variables of this process that are text; ours always are.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| {
        let key = key.into_string().ok()?;
        Some((key, value.to_string_lossy().into_owned()))
    })
}

/// One error out of many mistakes, a line for each.
fn wrong(source: &str, mistakes: &[Mistake]) -> anyhow::Error {
    let mut message = format!("mistakes in {source}; nothing was changed:");
    for mistake in mistakes {
        message.push_str(&format!("\n  {mistake}"));
    }
    ExitError::error(exit::CONFIG, message)
}

/// Reads and parses the file that was named, or the default one, and says which it was. No default file is
/// the default configuration.
pub(super) fn read_file(named: Option<&Path>) -> anyhow::Result<(String, Result<Config, Vec<Mistake>>)> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let source = path.display().to_string();
    match read_text(path) {
        Ok(text) => Ok((source, config::parse(&text))),
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
            Ok(("the defaults".to_owned(), Ok(Config::default())))
        }
        Err(error) => {
            let code = match error.kind() {
                io::ErrorKind::PermissionDenied => exit::NO_PERMISSION,
                io::ErrorKind::InvalidData => exit::CONFIG,
                _ => exit::NO_INPUT,
            };
            Err(ExitError::error(code, format!("can't read {source}: {}", plain(&error))))
        }
    }
}

/// What is wrong with the permissions of the configuration file, and of the files that it names: who may write
/// them decides what this agent does, and who may read the first knows its passwords. They are used all the
/// same: an agent that does not start, or calls a master not ready, because of a mode helps nobody but whoever
/// changed it. Programs are refused instead (`events::hooks`).
pub(super) fn permission_warnings(named: Option<&Path>, config: &Config) -> Vec<String> {
    let Ok(path) = std::path::absolute(named.unwrap_or(Path::new(DEFAULT_FILE))) else { return Vec::new() };
    let mut doubts = Vec::new();
    for file in std::iter::once(path.clone()).chain(config.believed_files().into_iter().map(PathBuf::from)) {
        match trusted::check(&file) {
            Ok(_) | Err(TrustError::Unreadable { .. }) => {}
            Err(why) => doubts.push(format!("{}: {}", file.display(), why.with_fix())),
        }
    }
    if (config.web.login.is_some() || config.web.token.is_some()) && trusted::is_public(&path) {
        let path = path.display();
        doubts.push(format!(
            "{path} contains a password or token and is readable by everyone; run: chmod 600 {path}"
        ));
    }
    doubts
}

/// Opens a file to read it. A pipe or a device may never end, or never begin; what the shell hands over does.
pub(super) fn open_file(path: &Path) -> io::Result<std::fs::File> {
    if path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd") || path == Path::new("/dev/stdin") {
        return std::fs::File::open(path);
    }
    let file = std::fs::OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    let what = match kind {
        kind if kind.is_file() => return Ok(file),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        _ => "a device or a socket",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a file")))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open_file(path)?.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        let message = format!("it is larger than {} kB, too large for a configuration", MAX_FILE / 1024);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::new(io::ErrorKind::InvalidData, format!("line {line} is not valid UTF-8"))
    })
}

/// An error of the system in words, without "(os error 2)".
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pipe_and_a_directory_are_no_files() {
        let dir = crate::testing::trusted_dir();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        assert_eq!(open_file(&pipe).unwrap_err().to_string(), "it is a pipe, not a file");
        assert_eq!(open_file(dir.path()).unwrap_err().to_string(), "it is a directory, not a file");
        assert_eq!(
            open_file(Path::new("/dev/null")).unwrap_err().to_string(),
            "it is a device or a socket, not a file"
        );
        assert!(read_file(Some(&pipe)).unwrap_err().to_string().ends_with(": it is a pipe, not a file"));
    }

    #[test]
    fn a_file_that_others_may_write_or_that_shows_a_password_is_told_of() {
        let dir = crate::testing::trusted_dir();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, "").unwrap();
        let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let told = |config: &Config| permission_warnings(Some(&file), config).join("\n");
        let mut secret = Config::default();
        secret.web.token = Some(config::HiddenText("0123456789".to_owned()));
        mode(0o644);
        assert_eq!(told(&Config::default()), "");
        assert!(told(&secret).contains("is readable by everyone; run: chmod 600 "));
        mode(0o600);
        assert_eq!(told(&secret), "");
        mode(0o622);
        assert!(told(&Config::default()).contains("run: chmod go-w "));
        mode(0o644);
        // What it names and is believed.
        let mut names = config::parse("webhook = \"https://hooks.example/x\"\n").unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, "").unwrap();
        names.webhook.as_mut().unwrap().ca_file = Some(ca.to_string_lossy().into_owned());
        assert_eq!(told(&names), "");
        std::fs::set_permissions(&ca, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(told(&names).contains("ca.pem can be written by others"), "{}", told(&names));
    }
}
