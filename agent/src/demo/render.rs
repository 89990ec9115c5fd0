//! The picture: what the screen shows, as lines of styled text. No terminal here.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::board::{Board, Fate, LATELY};
use super::process::State as Process;
use super::watch::Seen;

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Dim,
    Bold,
    Good,
    Warn,
    Bad,
}

/// A line of pieces.
pub(super) type Line = Vec<(Style, String)>;

/// A line as a terminal takes it.
pub(super) fn painted(line: &Line, colours: bool) -> String {
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

fn code(style: Style) -> &'static str {
    match style {
        Style::Plain => "",
        Style::Dim => "\x1b[2m",
        Style::Bold => "\x1b[1m",
        Style::Good => "\x1b[32m",
        Style::Warn => "\x1b[33m",
        Style::Bad => "\x1b[31m",
    }
}

/// A request that takes longer is shown as slow.
const SLOW: Duration = Duration::from_millis(500);

/// A master's row of the table.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) apiserver: Process,
    pub(super) agent: Process,
}

/// All that is shown.
pub(super) struct Picture<'a> {
    pub(super) rows: &'a [Row],
    /// The row that keys act on; none: there are no keys.
    pub(super) chosen: Option<usize>,
    pub(super) board: &'a Board,
    pub(super) through: &'static str,
    pub(super) proxy: SocketAddr,
    pub(super) now: Instant,
}

impl Picture<'_> {
    /// The lines for a screen of this size.
    pub(super) fn lines(&self, columns: usize, rows: usize) -> Vec<Line> {
        let mut lines = vec![self.title(columns), Line::new(), self.head()];
        lines.extend(self.rows.iter().enumerate().map(|(i, row)| self.row(i, row)));
        lines.push(Line::new());
        let what =
            format!("  client through {} ({}), a new TLS connection every 100 ms:", self.through, self.proxy);
        lines.push(vec![(Style::Plain, what)]);
        lines.push(self.strip(columns));
        lines.push(self.counts());
        lines.push(self.held());
        lines.push(Line::new());
        if self.chosen.is_some() {
            lines.push(vec![
                (Style::Bold, "  1 2 3".into()),
                (Style::Plain, " choose a master; its apiserver: ".into()),
                (Style::Bold, "k".into()),
                (Style::Plain, " kill  ".into()),
                (Style::Bold, "h".into()),
                (Style::Plain, " hang  ".into()),
                (Style::Bold, "s".into()),
                (Style::Plain, " stop  ".into()),
                (Style::Bold, "b".into()),
                (Style::Plain, " restart".into()),
            ]);
            lines.push(vec![
                (Style::Bold, "  K".into()),
                (Style::Plain, " kill the whole node with its agent          ".into()),
                (Style::Bold, "q".into()),
                (Style::Plain, " quit and remove everything".into()),
            ]);
            lines.push(Line::new());
        }
        let room = rows.saturating_sub(lines.len());
        let events = &self.board.events;
        let last = events.iter().skip(events.len().saturating_sub(room));
        lines.extend(last.map(|event| vec![(Style::Plain, event.to_string())]));
        lines.truncate(rows);
        for line in &mut lines {
            clip(line, columns);
        }
        lines
    }

    fn title(&self, columns: usize) -> Line {
        let title = "  agent demo: three masters and two workers on this machine";
        let age = format!("{:.1} s ", self.board.age(self.now).as_secs_f64());
        let gap = columns.saturating_sub(title.len() + age.len());
        vec![(Style::Bold, title.into()), (Style::Dim, format!("{}{age}", " ".repeat(gap)))]
    }

    fn head(&self) -> Line {
        let seen = format!("{} sees it", self.through);
        vec![(Style::Dim, format!("    master  apiserver  agent     {seen:<11}because{:>29}", "conns"))]
    }

    fn row(&self, index: usize, row: &Row) -> Line {
        let chosen = self.chosen == Some(index);
        let mark = if chosen { ">" } else { " " };
        let name = format!(" {mark}{} {:<7} ", index + 1, row.name);
        let mut line = vec![
            (if chosen { Style::Bold } else { Style::Plain }, name),
            (process(row.apiserver), format!("{:<10} ", row.apiserver.word())),
            (process(row.agent), format!("{:<9} ", row.agent.word())),
        ];
        match self.board.seen_of(row.name) {
            Some(Seen { state, reason, connections, .. }) => {
                let style = match state {
                    state if state.is_good() => Style::Good,
                    proto::backends::State::Down | proto::backends::State::NotReady => Style::Bad,
                    _ => Style::Warn,
                };
                let reason: String = reason.chars().take(29).collect();
                line.push((style, format!("{:<10} ", state.word())));
                line.push((Style::Plain, format!("{reason:<30} {connections:>5}")));
            }
            None => line.push((Style::Dim, format!("{:<10} ", "-"))),
        }
        line
    }

    /// The last requests, oldest first: the number of who answered.
    fn strip(&self, columns: usize) -> Line {
        let slots = &self.board.slots;
        let room = columns.saturating_sub(4);
        let mut line: Line = vec![(Style::Plain, "  ".into())];
        for slot in slots.iter().skip(slots.len().saturating_sub(room)) {
            let (style, mark) = match &slot.fate {
                Fate::Pending => (Style::Dim, '.'),
                Fate::Failed(_) => (Style::Bad, 'x'),
                Fate::Served(name, took) => {
                    let style = if *took >= SLOW { Style::Warn } else { Style::Good };
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

    fn counts(&self) -> Line {
        let Board { ok, failed, .. } = self.board;
        let slowest = self.board.slowest_lately(self.now);
        vec![
            (Style::Plain, format!("  ok {ok:<8}")),
            (if *failed > 0 { Style::Bad } else { Style::Plain }, format!("failed {failed:<6}")),
            (
                if slowest >= SLOW { Style::Warn } else { Style::Plain },
                format!("slowest of the last {} s: {} ms", LATELY.as_secs(), slowest.as_millis()),
            ),
        ]
    }

    fn held(&self) -> Line {
        let on = self.board.held.as_deref().unwrap_or("nobody");
        let text = format!("  long-lived connection: on {on}; closed so far: {}", self.board.resets);
        vec![(Style::Plain, text)]
    }
}

fn process(state: Process) -> Style {
    match state {
        Process::Running => Style::Good,
        Process::Hung | Process::Stopping => Style::Warn,
        Process::Stopped | Process::Killed | Process::Failed => Style::Bad,
    }
}

/// Cuts a line to what fits.
fn clip(line: &mut Line, columns: usize) {
    let mut room = columns;
    for (_, text) in line.iter_mut() {
        if let Some((at, _)) = text.char_indices().nth(room) {
            text.truncate(at);
        }
        room = room.saturating_sub(text.chars().count());
    }
}

/// The text of lines without their styles, for where there is no terminal.
pub(super) fn plain(lines: &[Line]) -> String {
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
    use proto::backends::State;

    use super::super::client::{RequestError, Told};
    use super::*;

    fn draw(chosen: Option<usize>, columns: usize, height: usize) -> String {
        let t0 = Instant::now();
        let mut board = Board::new(t0);
        let seen = |node: &str, state, reason: &str, connections| Seen {
            node: node.into(),
            state,
            reason: reason.into(),
            connections,
        };
        board.sees(
            t0,
            "w1",
            Some(vec![
                seen("m1", State::Ready, "200 from /readyz", 12),
                seen("m2", State::Suspect, "a reason that is much longer than there is room for", 1),
            ]),
        );
        for number in 0..90 {
            board.asked(t0, number);
        }
        for number in 0..89 {
            let result =
                if number == 50 { Err(RequestError::Cut) } else { Ok(format!("m{}", number % 3 + 1)) };
            let took = Duration::from_millis(12);
            board.told(t0, Told::Request { number, took, result });
        }
        board.told(t0, Told::Held("m1".into()));
        for i in 0..20 {
            board.say(t0, format!("event {i}"));
        }
        let row = |name, apiserver, agent| Row { name, apiserver, agent };
        let rows = [
            row("m1", Process::Running, Process::Running),
            row("m2", Process::Hung, Process::Running),
            row("m3", Process::Killed, Process::Killed),
        ];
        let proxy = "127.0.0.14:16443".parse().unwrap();
        let now = t0 + Duration::from_secs(5);
        let picture = Picture { rows: &rows, chosen, board: &board, through: "w1", proxy, now };
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
    fn without_keys_none_are_shown_and_a_small_screen_is_no_trouble() {
        assert!(!draw(None, 80, 24).contains("k kill"));
        for (columns, height) in [(0, 0), (1, 1), (20, 5), (300, 100)] {
            let text = draw(Some(0), columns, height);
            assert!(text.lines().count() <= height);
            assert!(text.lines().all(|line| line.chars().count() <= columns));
        }
    }
}
