//! The terminal: its own page, keys without Enter, and everything as it was when it ends, however it ends.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

use super::render::{Line, Style};

/// How the terminal was before; none: it is as it was.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Value of a special character that switches it off (_POSIX_VDISABLE).
const OFF: u8 = 0;

/// The terminal while it belongs to the demo.
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    /// Takes the terminal; none where there is none.
    pub(super) fn take() -> io::Result<Option<Screen>> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !stdin.is_terminal() || !stdout.is_terminal() || dumb {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal, which the demo ends by. Stopping the demo would leave its processes running
        // and the terminal strange, and Ctrl-S would hold up its loop.
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        raw.input_modes.remove(InputModes::IXON);
        raw.special_codes[SpecialCodeIndex::VSUSP] = OFF;
        raw.special_codes[SpecialCodeIndex::VQUIT] = OFF;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        restore_on_panic();
        let screen = Screen { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) };
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        // The alternate page, without a cursor.
        write(b"\x1b[?1049h\x1b[?25l\x1b[2J")?;
        Ok(Some(screen))
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
    }

    /// Shows these lines.
    pub(super) fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (i, line) in lines.iter().enumerate() {
            if i > 0 {
                text.push_str("\r\n");
            }
            for (style, piece) in line {
                let code = if self.colours { code(*style) } else { "" };
                text.push_str(code);
                text.push_str(piece);
                if !code.is_empty() {
                    text.push_str("\x1b[0m");
                }
            }
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(text.as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
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

/// Gives the terminal back as it was; once.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // When the terminal has gone there is nothing to give back.
        let _ = write(b"\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// A panic's message belongs on the page that stays.
fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
    });
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
