//! Pipes for splice(2): a connection that moves bulk data borrows one, and returns it when it pauses.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Wanted capacity of a pipe: the most that the kernel grants without privileges (fs.pipe-max-size). The fewer
/// calls per megabyte, the better.
const WANTED_BYTES: usize = 1 << 20;

/// What all connections of a thread together move before it looks for new clients: below a millisecond.
const IN_A_ROUND: usize = 2 << 20;

/// The least capacity at which a pipe beats the buffer. A user with many pipes gets tiny ones
/// (fs.pipe-user-pages-soft).
const LEAST_BYTES: usize = 64 * 1024;

/// Empty pipes that each thread keeps for reuse: making one takes as long as moving some kilobytes.
const KEPT: usize = 8;

/// Most pipes in use at once, over all threads. Each takes two descriptors, and as much memory as it holds
/// while its reader is slow; connections beyond it copy.
static MOST: AtomicUsize = AtomicUsize::new(256);

static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// Bounds the pipes by the descriptors that this process has for them.
pub(super) fn bound(most: u64) {
    MOST.store(usize::try_from(most).unwrap_or(usize::MAX), Relaxed);
}

thread_local! {
    // Boxed as in use: most connections have none and should be small.
    #[allow(clippy::vec_box)]
    static EMPTY: RefCell<Vec<Box<PipeEnds>>> = const { RefCell::new(Vec::new()) };

    /// Pipes in use on this thread.
    static HERE: Cell<usize> = const { Cell::new(0) };
}

struct PipeEnds {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// A pipe in use. Dropped with bytes in it, it is closed.
pub(super) struct Pipe(Option<Box<PipeEnds>>);

impl Pipe {
    /// An empty pipe; `None` when none can be had.
    pub(super) fn take() -> Option<Pipe> {
        if IN_USE.fetch_add(1, Relaxed) >= MOST.load(Relaxed) {
            IN_USE.fetch_sub(1, Relaxed);
            return None;
        }
        let ends = EMPTY.with_borrow_mut(Vec::pop).or_else(make);
        if ends.is_none() {
            IN_USE.fetch_sub(1, Relaxed);
        }
        ends.map(|ends| {
            HERE.set(HERE.get() + 1);
            Pipe(Some(ends))
        })
    }

    /// Keeps an empty pipe for reuse.
    pub(super) fn give_back(mut self) {
        let ends = self.0.take();
        EMPTY.with_borrow_mut(|empty| {
            if empty.len() < KEPT {
                empty.extend(ends);
            }
        });
    }

    /// Its read end, its write end, and how much may be moved at a time: its capacity, or the less the more are in use
    /// on this thread. All together then keep a new client waiting no longer than one alone.
    pub(super) fn ends(&self) -> Option<(&OwnedFd, &OwnedFd, usize)> {
        let share = (IN_A_ROUND / HERE.get().max(1)).max(LEAST_BYTES);
        self.0.as_ref().map(|ends| (&ends.read, &ends.write, ends.size.min(share)))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Relaxed);
        HERE.set(HERE.get().saturating_sub(1));
    }
}

fn make() -> Option<Box<PipeEnds>> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // Refused to users who have many already; they may still get the usual 64 KiB.
    let _ = fcntl_setpipe_size(&write, WANTED_BYTES);
    let size = fcntl_getpipe_size(&write).ok()?;
    (size >= LEAST_BYTES).then(|| Box::new(PipeEnds { read, write, size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_reused_and_bounded() {
        let first = Pipe::take().unwrap();
        let (_, _, size) = first.ends().unwrap();
        assert!(size >= LEAST_BYTES);
        first.give_back();
        EMPTY.with_borrow(|empty| assert_eq!(empty.len(), 1));
        let many: Vec<Pipe> = std::iter::from_fn(Pipe::take).take(KEPT + 3).collect();
        EMPTY.with_borrow(|empty| assert!(empty.is_empty()));
        many.into_iter().for_each(Pipe::give_back);
        EMPTY.with_borrow(|empty| assert_eq!(empty.len(), KEPT));
    }
}
