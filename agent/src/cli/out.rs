//! Writing to people: stdout and stderr that may be closed, and colours that may not be wanted.

use std::io::{self, IsTerminal, Write};

/// Writes to stdout. A reader that has gone, as in `agent status | head -1`, is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes one line to stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes one value as one line of JSON to stdout.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string(value)?)?)
}

/// Writes a remark to stderr, where it does not get between a command's result and whoever reads it.
pub(crate) fn warn(text: &str) {
    // When even stderr is gone there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{}", tame(text));
}

/// A text without what a terminal would obey: parts of it may be as files, arguments and other nodes have them.
pub(crate) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}

/// Writes what went wrong to stderr.
pub(crate) fn error(text: &str) {
    warn(&format!("agent: {text}"));
}

/// Whether stdout may be coloured: a terminal, and nobody said no (no-color.org).
pub(crate) fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// Columns to write in: those of the terminal, within reason; 80 where there is none.
pub(crate) fn columns() -> usize {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return 80;
    }
    rustix::termios::tcgetwinsize(stdout)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .map_or(80, |columns| columns.clamp(60, 160))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_is_told() {
        assert_eq!(tame("a\u{1b}[2J\r\n\tb\u{9b}"), "a?[2J?\n\tb?");
    }
}
