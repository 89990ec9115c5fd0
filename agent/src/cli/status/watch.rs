//! `agent status --watch`: the same screen, again and again.

use std::process::ExitCode;
use std::time::Duration;

use proto::control::Status;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::{CommandSettings, ask, render, time, verdict};
use crate::cli::exit::{self, ExitError};
use crate::screen::{self, Screen};

/// Time between two questions: what a second hides, nobody reads.
const ASK: Duration = Duration::from_secs(1);

/// Keys that wait to be taken: more than anyone types while a picture is drawn.
const KEYS: usize = 64;

/// Narrowest picture that is laid out; the rest of it is cut.
const NARROWEST: usize = 40;

/// Shows the status until a key or a signal says that it is enough.
pub(super) async fn run(settings: &CommandSettings) -> anyhow::Result<ExitCode> {
    let mut picture = WatchScreen { status: ask::status(settings).await?, trouble: None, scrolled: 0 };
    let Some(screen) = Screen::take()? else {
        let message = "--watch needs a terminal; without one, poll: agent status --json";
        return Err(ExitError::error(exit::USAGE, message));
    };
    let mut keys = read_keys();
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut ticks = tokio::time::interval(ASK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        picture.draw(&screen)?;
        tokio::select! {
            _ = ticks.tick() => match ask::status(settings).await {
                Ok(status) => (picture.status, picture.trouble) = (status, None),
                Err(error) => picture.trouble = Some(format!("{error:#}")),
            },
            _ = resized.recv() => {}
            key = keys.recv() => match key {
                Some(b'q' | b'Q') | None => break,
                Some(b'j' | b' ') => picture.scrolled += 1,
                Some(b'k') => picture.scrolled = picture.scrolled.saturating_sub(1),
                Some(_) => {}
            },
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hang_up.recv() => break,
        }
    }
    drop(screen);
    // The thread that reads keys waits for one more, and nothing should wait for it.
    Ok(ExitCode::SUCCESS)
}

fn read_keys() -> mpsc::Receiver<u8> {
    let (typed, keys) = mpsc::channel(KEYS);
    std::thread::spawn(move || screen::read_keys(|key| typed.blocking_send(key).is_ok()));
    keys
}

/// What is shown.
struct WatchScreen {
    status: Status,
    /// Why the status is not the newest.
    trouble: Option<String>,
    /// Lines that are above the screen.
    scrolled: usize,
}

impl WatchScreen {
    fn draw(&mut self, screen: &Screen) -> anyhow::Result<()> {
        let (columns, rows) = screen.size();
        let now = crate::lifecycle::wall();
        let verdict = verdict::summarize(&self.status, now);
        let text = render::render(&self.status, &verdict, now, columns.max(NARROWEST), screen.colours());
        let lines: Vec<&str> = text.lines().collect();
        let (from, last) = window(lines.len(), rows, self.scrolled);
        self.scrolled = from;
        let rest = lines.len() - last;
        let endpoint = match (&self.trouble, rest + from) {
            (Some(trouble), _) => super::table::sanitize(trouble),
            (None, 0) => format!("{}  q quits", time::at(now, now)),
            (None, _) => format!("{}  {rest} more lines: j and k scroll, q quits", time::at(now, now)),
        };
        let endpoint = super::Severity::Dim.paint(&super::table::cut(&endpoint, columns), screen.colours());
        let blank = (rows.saturating_sub(1)).saturating_sub(last - from);
        let shown = lines[from..last].iter().copied().chain(std::iter::repeat_n("", blank));
        Ok(screen.draw(shown.chain([endpoint.as_str()]))?)
    }
}

/// The lines from and up to which a screen of so many rows shows, its last row kept for the foot.
fn window(lines: usize, rows: usize, scrolled: usize) -> (usize, usize) {
    let room = rows.saturating_sub(1);
    let from = scrolled.min(lines.saturating_sub(room));
    (from, (from + room).min(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_scrolled_and_never_past_the_end() {
        for (lines, rows, scrolled, expected) in [
            (10, 24, 0, (0, 10)),
            (10, 24, 5, (0, 10)),
            (30, 24, 0, (0, 23)),
            (30, 24, 3, (3, 26)),
            (30, 24, 99, (7, 30)),
            (30, 1, 2, (2, 2)),
            (30, 0, 0, (0, 0)),
            (0, 24, 1, (0, 0)),
        ] {
            assert_eq!(window(lines, rows, scrolled), expected, "{lines} {rows} {scrolled}");
        }
    }
}
