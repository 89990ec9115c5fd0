//! The terminal: its own page, keys without Enter, and everything as it was when it ends, however it ends.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// How the terminal was before; none: it is as it was.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Value of a special character that switches it off (_POSIX_VDISABLE).
const OFF: u8 = 0;

/// The terminal while it belongs to one command.
pub(crate) struct Screen {
    colours: bool,
}

impl Screen {
    /// Takes the terminal; none where there is none.
    pub(crate) fn take() -> io::Result<Option<Screen>> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !stdin.is_terminal() || !stdout.is_terminal() || dumb {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal, which whoever took the terminal ends by. Being stopped would leave the terminal
        // strange, and what else was started running; Ctrl-S would hold up the loop.
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
        // The alternate page, without a cursor, where long lines are cut instead of pushing the others down.
        write(b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(Some(screen))
    }

    /// Whether colours are wanted.
    pub(crate) fn colours(&self) -> bool {
        self.colours
    }

    /// Columns and rows.
    pub(crate) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
    }

    /// Shows these lines.
    pub(crate) fn draw<'a>(&self, lines: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (i, line) in lines.enumerate() {
            if i > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
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

/// Reads keys until `take` wants no more. A read can't be called off, so this belongs on a thread that nothing
/// waits for.
pub(crate) fn read_keys(mut take: impl FnMut(u8) -> bool) {
    let mut stdin = io::stdin().lock();
    let mut bytes = [0; 64];
    while let Ok(n @ 1..) = stdin.read(&mut bytes) {
        // Arrows and their like come as one piece that begins with ESC.
        if !bytes[..n].iter().take_while(|byte| **byte != 0x1b).all(|byte| take(*byte)) {
            return;
        }
    }
}

/// Gives the terminal back as it was; once.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // When the terminal has gone there is nothing to give back.
        let _ = write(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
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
