//! Commands of the demo, by key, by line or by script.

use std::time::Duration;

use proto::time::{BadDuration, parse_duration};

/// Number of masters in a demo.
pub(super) const MASTERS: usize = 3;

/// An action on a master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MasterAction {
    /// SIGKILL to the apiserver.
    Kill,
    /// SIGSTOP to the apiserver.
    Hang,
    /// SIGTERM to the apiserver.
    Stop,
    /// Restarts the apiserver and the agent.
    Back,
    /// SIGKILL to the apiserver and the agent.
    KillNode,
}

/// A command, as typed or scripted. Masters are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DemoCommand {
    /// Do this to that master.
    Do(MasterAction, usize),
    /// Print the status.
    Status,
    /// End.
    Quit,
}

/// Syntax of the lines, for messages.
pub(super) const LINES: &str = "kill|hang|stop|back|kill-node m1|m2|m3, status, quit";

/// A key that does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DemoKey {
    /// Choose a master.
    Choose(usize),
    /// Do this to the chosen one.
    Do(MasterAction),
    /// End.
    Quit,
}

impl DemoKey {
    /// The meaning of a byte that the terminal sent.
    pub(super) fn from_byte(byte: u8) -> Option<DemoKey> {
        Some(match byte {
            b'1'..=b'3' => DemoKey::Choose(usize::from(byte - b'1')),
            b'k' => DemoKey::Do(MasterAction::Kill),
            b'h' => DemoKey::Do(MasterAction::Hang),
            b's' => DemoKey::Do(MasterAction::Stop),
            b'b' => DemoKey::Do(MasterAction::Back),
            b'K' => DemoKey::Do(MasterAction::KillNode),
            b'q' => DemoKey::Quit,
            _ => return None,
        })
    }
}

/// A line that is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a command; use {LINES}")]
pub(crate) struct BadCommand(String);

/// Why a script is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadScript {
    /// A step is not a time and a command.
    #[error("\"{0}\" is not a step; write a time and a command, such as 5s kill m2")]
    Step(String),
    /// The time of a step is invalid.
    #[error(transparent)]
    Time(#[from] BadDuration),
    /// The command of a step is invalid.
    #[error(transparent)]
    Command(#[from] BadCommand),
}

/// Reads one line.
pub(super) fn parse(line: &str) -> Result<DemoCommand, BadCommand> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let wrong = || BadCommand(line.trim().to_owned());
    let act = match words.first().copied() {
        Some("status") if words.len() == 1 => return Ok(DemoCommand::Status),
        Some("quit" | "q") if words.len() == 1 => return Ok(DemoCommand::Quit),
        Some("kill") => MasterAction::Kill,
        Some("hang") => MasterAction::Hang,
        Some("stop") => MasterAction::Stop,
        Some("back") => MasterAction::Back,
        Some("kill-node") => MasterAction::KillNode,
        _ => return Err(wrong()),
    };
    match words[1..] {
        [master] => {
            let number = master.strip_prefix('m').unwrap_or(master).parse::<usize>().ok();
            let number = number.filter(|number| (1..=MASTERS).contains(number)).ok_or_else(wrong)?;
            Ok(DemoCommand::Do(act, number - 1))
        }
        _ => Err(wrong()),
    }
}

/// Commands with their times since the demo serves, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Script(pub(super) Vec<(Duration, DemoCommand)>);

impl std::str::FromStr for Script {
    type Err = BadScript;

    /// Reads `5s kill m2; 10s back m2`.
    fn from_str(text: &str) -> Result<Script, BadScript> {
        let mut steps = Vec::new();
        for step in text.split(';').map(str::trim).filter(|step| !step.is_empty()) {
            let (at, command) =
                step.split_once(char::is_whitespace).ok_or_else(|| BadScript::Step(step.to_owned()))?;
            let at = parse_duration(at)?;
            steps.push((at, parse(command)?));
        }
        steps.sort_by_key(|(at, _)| *at);
        Ok(Script(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_in_the_order_of_its_times() {
        let script: Script = "10s back m2; 5s kill 2;; 500ms kill-node m3; 12s status".parse().unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(
            script.0,
            [
                (Duration::from_millis(500), DemoCommand::Do(MasterAction::KillNode, 2)),
                (seconds(5), DemoCommand::Do(MasterAction::Kill, 1)),
                (seconds(10), DemoCommand::Do(MasterAction::Back, 1)),
                (seconds(12), DemoCommand::Status),
            ]
        );
        assert_eq!("".parse::<Script>(), Ok(Script::default()));
    }

    #[test]
    fn what_is_no_command_is_told_apart() {
        assert_eq!("5s".parse::<Script>(), Err(BadScript::Step("5s".to_owned())));
        for wrong in ["kill m2", "soon kill m2"] {
            assert!(matches!(wrong.parse::<Script>(), Err(BadScript::Time(_))), "{wrong}");
        }
        for wrong in ["kill", "kill m4", "kill m0", "kill w1", "eat m1", "kill m1 m2"] {
            let script = format!("5s {wrong}").parse::<Script>();
            assert_eq!(script, Err(BadScript::Command(BadCommand(wrong.to_owned()))));
        }
        assert!(parse("").is_err());
        assert_eq!(parse(" hang  m1 "), Ok(DemoCommand::Do(MasterAction::Hang, 0)));
        assert_eq!(parse("quit"), Ok(DemoCommand::Quit));
    }
}
