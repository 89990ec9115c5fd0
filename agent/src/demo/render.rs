//! Renders the screen as lines of styled text. No terminal here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::board::{Board, LATELY, RequestOutcome};
use super::process::ProcessState as Process;
use super::watch::WatchedMaster;

/// Style of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextStyle {
    Plain,
    Dim,
    Bold,
    Good,
    Warn,
    Bad,
}

/// A line of pieces.
pub(super) type StyledLine = Vec<(TextStyle, String)>;

/// A line with its escape sequences.
pub(super) fn painted(line: &StyledLine, colours: bool) -> String {
    let mut text = String::new();
    for (style, piece) in line {
        let code = if colours { code(*style) } else { "" };
        text.push_str(code);
        text.push_str(piece);
        if !code.is_empty() {
            text.push_str("\x1b[0m");
        }
    }
    text
}

fn code(style: TextStyle) -> &'static str {
    match style {
        TextStyle::Plain => "",
        TextStyle::Dim => "\x1b[2m",
        TextStyle::Bold => "\x1b[1m",
        TextStyle::Good => "\x1b[32m",
        TextStyle::Warn => "\x1b[33m",
        TextStyle::Bad => "\x1b[31m",
    }
}

/// Slower requests are shown as slow.
const SLOW: Duration = Duration::from_millis(500);

/// A master's row of the table.
pub(super) struct MasterRow {
    pub(super) name: &'static str,
    pub(super) apiserver: Process,
    pub(super) agent: Process,
}

/// Everything on the screen.
pub(super) struct DemoScreen<'a> {
    pub(super) rows: &'a [MasterRow],
    /// The row that keys act on; `None`: there are no keys.
    pub(super) chosen: Option<usize>,
    pub(super) board: &'a Board,
    pub(super) through: &'static str,
    pub(super) proxy: SocketAddr,
    pub(super) now: Instant,
}

impl DemoScreen<'_> {
    /// The lines for a screen of this size.
    pub(super) fn lines(&self, columns: usize, rows: usize) -> Vec<StyledLine> {
        let mut lines = vec![self.title(columns), StyledLine::new(), self.head()];
        lines.extend(self.rows.iter().enumerate().map(|(i, row)| self.row(i, row)));
        lines.push(StyledLine::new());
        let what =
            format!("  client through {} ({}), a new TLS connection every 100 ms:", self.through, self.proxy);
        lines.push(vec![(TextStyle::Plain, what)]);
        lines.push(self.strip(columns));
        lines.push(self.counts());
        lines.push(self.held());
        lines.push(StyledLine::new());
        if self.chosen.is_some() {
            lines.push(vec![
                (TextStyle::Bold, "  1 2 3".into()),
                (TextStyle::Plain, " choose a master; its apiserver: ".into()),
                (TextStyle::Bold, "k".into()),
                (TextStyle::Plain, " kill  ".into()),
                (TextStyle::Bold, "h".into()),
                (TextStyle::Plain, " hang  ".into()),
                (TextStyle::Bold, "s".into()),
                (TextStyle::Plain, " stop  ".into()),
                (TextStyle::Bold, "b".into()),
                (TextStyle::Plain, " restart".into()),
            ]);
            lines.push(vec![
                (TextStyle::Bold, "  K".into()),
                (TextStyle::Plain, " kill the whole node with its agent          ".into()),
                (TextStyle::Bold, "q".into()),
                (TextStyle::Plain, " quit and remove everything".into()),
            ]);
            lines.push(StyledLine::new());
        }
        let room = rows.saturating_sub(lines.len());
        let events = &self.board.events;
        let last = events.iter().skip(events.len().saturating_sub(room));
        lines.extend(last.map(|event| vec![(TextStyle::Plain, event.to_string())]));
        lines.truncate(rows);
        for line in &mut lines {
            clip(line, columns);
        }
        lines
    }

    fn title(&self, columns: usize) -> StyledLine {
        let title = "  agent demo: three masters and two workers on this machine";
        let age = format!("{:.1} s ", self.board.age(self.now).as_secs_f64());
        let gap = columns.saturating_sub(title.len() + age.len());
        vec![(TextStyle::Bold, title.into()), (TextStyle::Dim, format!("{}{age}", " ".repeat(gap)))]
    }

    fn head(&self) -> StyledLine {
        let seen = format!("{} sees it", self.through);
        vec![(TextStyle::Dim, format!("    master  apiserver  agent     {seen:<11}because{:>29}", "conns"))]
    }

    fn row(&self, index: usize, row: &MasterRow) -> StyledLine {
        let chosen = self.chosen == Some(index);
        let mark = if chosen { ">" } else { " " };
        let name = format!(" {mark}{} {:<7} ", index + 1, row.name);
        let mut line = vec![
            (if chosen { TextStyle::Bold } else { TextStyle::Plain }, name),
            (process(row.apiserver), format!("{:<10} ", row.apiserver.as_str())),
            (process(row.agent), format!("{:<9} ", row.agent.as_str())),
        ];
        match self.board.seen_of(row.name) {
            Some(WatchedMaster { state, reason, connections, .. }) => {
                let style = match state {
                    state if state.is_good() => TextStyle::Good,
                    proto::backends::BackendState::Down | proto::backends::BackendState::NotReady => {
                        TextStyle::Bad
                    }
                    _ => TextStyle::Warn,
                };
                let reason: String = reason.chars().take(29).collect();
                line.push((style, format!("{:<10} ", state.as_str())));
                line.push((TextStyle::Plain, format!("{reason:<30} {connections:>5}")));
            }
            None => line.push((TextStyle::Dim, format!("{:<10} ", "-"))),
        }
        line
    }

    /// The last requests, oldest first: the number of the master that answered.
    fn strip(&self, columns: usize) -> StyledLine {
        let slots = &self.board.slots;
        let room = columns.saturating_sub(4);
        let mut line: StyledLine = vec![(TextStyle::Plain, "  ".into())];
        for slot in slots.iter().skip(slots.len().saturating_sub(room)) {
            let (style, mark) = match &slot.outcome {
                RequestOutcome::Pending => (TextStyle::Dim, '.'),
                RequestOutcome::Failed(_) => (TextStyle::Bad, 'x'),
                RequestOutcome::Served(name, took) => {
                    let style = if *took >= SLOW { TextStyle::Warn } else { TextStyle::Good };
                    (style, name.chars().next_back().unwrap_or('?'))
                }
            };
            match line.last_mut() {
                Some((last, text)) if *last == style => text.push(mark),
                _ => line.push((style, mark.into())),
            }
        }
        line
    }

    fn counts(&self) -> StyledLine {
        let Board { ok, failed, .. } = self.board;
        let slowest = self.board.slowest_recent(self.now);
        vec![
            (TextStyle::Plain, format!("  ok {ok:<8}")),
            (if *failed > 0 { TextStyle::Bad } else { TextStyle::Plain }, format!("failed {failed:<6}")),
            (
                if slowest >= SLOW { TextStyle::Warn } else { TextStyle::Plain },
                format!("slowest of the last {} s: {} ms", LATELY.as_secs(), slowest.as_millis()),
            ),
        ]
    }

    fn held(&self) -> StyledLine {
        let on = self.board.held.as_deref().unwrap_or("nobody");
        let text = format!("  long-lived connection: on {on}; closed so far: {}", self.board.resets);
        vec![(TextStyle::Plain, text)]
    }
}

fn process(state: Process) -> TextStyle {
    match state {
        Process::Running => TextStyle::Good,
        Process::Hung | Process::Stopping => TextStyle::Warn,
        Process::Stopped | Process::Killed | Process::Failed => TextStyle::Bad,
    }
}

/// Cuts a line to the width.
fn clip(line: &mut StyledLine, columns: usize) {
    let mut room = columns;
    for (_, text) in line.iter_mut() {
        if let Some((at, _)) = text.char_indices().nth(room) {
            text.truncate(at);
        }
        room = room.saturating_sub(text.chars().count());
    }
}

/// The text of lines without their styles, for output without a terminal.
pub(super) fn plain(lines: &[StyledLine]) -> String {
    let mut text = String::new();
    for line in lines {
        let whole: String = line.iter().map(|(_, piece)| piece.as_str()).collect();
        text.push_str(whole.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use proto::backends::BackendState;

    use super::super::client::{ClientReport, RequestError};
    use super::*;

    fn draw(chosen: Option<usize>, columns: usize, height: usize) -> String {
        let t0 = Instant::now();
        let mut board = Board::new(t0);
        let seen = |node: &str, state, reason: &str, connections| WatchedMaster {
            node: node.into(),
            state,
            reason: reason.into(),
            connections,
        };
        board.agent_reported(
            t0,
            "w1",
            Some(vec![
                seen("m1", BackendState::Ready, "200 from /readyz", 12),
                seen("m2", BackendState::Suspect, "a reason that is much longer than there is room for", 1),
            ]),
        );
        for number in 0..90 {
            board.request_started(t0, number);
        }
        for number in 0..89 {
            let result =
                if number == 50 { Err(RequestError::Cut) } else { Ok(format!("m{}", number % 3 + 1)) };
            let took = Duration::from_millis(12);
            board.client_reported(t0, ClientReport::Request { number, took, result });
        }
        board.client_reported(t0, ClientReport::Held("m1".into()));
        for i in 0..20 {
            board.record(t0, format!("event {i}"));
        }
        let row = |name, apiserver, agent| MasterRow { name, apiserver, agent };
        let rows = [
            row("m1", Process::Running, Process::Running),
            row("m2", Process::Hung, Process::Running),
            row("m3", Process::Killed, Process::Killed),
        ];
        let proxy = "127.0.0.14:16443".parse().unwrap();
        let now = t0 + Duration::from_secs(5);
        let picture = DemoScreen { rows: &rows, chosen, board: &board, through: "w1", proxy, now };
        plain(&picture.lines(columns, height))
    }

    #[test]
    fn everything_fits_a_screen_of_80_by_24() {
        let text = draw(Some(1), 80, 24);
        assert_eq!(text.lines().count(), 24, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for wanted in [
            " >2 m2      hung       running   suspect    a reason that is much longer",
            "  3 m3      killed     killed    -",
            "200 from /readyz                  12\n",
            "  ok 88      failed 1     slowest of the last 10 s: 5000 ms",
            "on m1; closed so far: 0",
            "5.0 s",
            "k kill",
            "event 19",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        }
        assert!(text.contains("3x2312") || text.contains("2x1231"), "{text}");
        assert!(text.lines().any(|line| line.ends_with("12.")), "the last is under way\n{text}");
        assert!(!text.contains("event 1\n"), "old events make room\n{text}");
    }

    #[test]
    fn without_keys_none_are_shown_and_a_small_screen_works() {
        assert!(!draw(None, 80, 24).contains("k kill"));
        for (columns, height) in [(0, 0), (1, 1), (20, 5), (300, 100)] {
            let text = draw(Some(0), columns, height);
            assert!(text.lines().count() <= height);
            assert!(text.lines().all(|line| line.chars().count() <= columns));
        }
    }
}
