//! The terminal: an alternate screen, keys without Enter, and everything restored when it ends, however it
//! ends.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// Saved terminal settings; `None`: the terminal is unchanged.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Value of a special character that switches it off (_POSIX_VDISABLE).
const OFF: u8 = 0;

/// The terminal while it belongs to one command.
pub(crate) struct Screen {
    colours: bool,
}

impl Screen {
    /// Takes the terminal; `None` without one.
    pub(crate) fn take() -> io::Result<Option<Screen>> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !stdin.is_terminal() || !stdout.is_terminal() || dumb {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        // Ctrl-C stays a signal, which ends the command. Being suspended would leave the terminal in a
        // strange state, and children running; Ctrl-S would block the loop.
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
        // The alternate screen, without a cursor, where long lines are cut instead of wrapped.
        write(b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(Some(screen))
    }

    /// Whether to use colours.
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

/// Reads keys until `take` returns false. A read can't be cancelled, so this belongs on a thread that nothing
/// waits for.
pub(crate) fn read_keys(mut take: impl FnMut(u8) -> bool) {
    let mut stdin = io::stdin().lock();
    let mut bytes = [0; 64];
    while let Ok(n @ 1..) = stdin.read(&mut bytes) {
        // Arrows and the like come as one piece that starts with ESC.
        if !bytes[..n].iter().take_while(|byte| **byte != 0x1b).all(|byte| take(*byte)) {
            return;
        }
    }
}

/// Restores the terminal, once.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // When the terminal has gone there is nothing to restore.
        let _ = write(b"\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// A panic's message belongs on the normal screen.
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
