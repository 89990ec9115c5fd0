//! Waits for conditions, and reports what was true instead.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two polls: short compared with everything that is awaited, long compared with the cost of a poll.
const PAUSE: Duration = Duration::from_millis(50);

/// Polls until `look` succeeds, and returns its result and how long that took.
///
/// # Errors
/// It did not within `limit`; the error of the last poll is kept as the reason.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<(T, Duration)> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok((found, began.elapsed())),
            Err(last) if began.elapsed() > limit => {
                return Err(last).with_context(|| format!("not within {limit:?}: {what}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Polls for all of `span`.
///
/// # Errors
/// The first poll that fails.
pub fn always(what: &str, span: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < span {
        if let Err(error) = look() {
            let after = began.elapsed();
            return Err(error).with_context(|| format!("no longer after {after:?}: {what}"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Turns a condition into a result.
///
/// # Errors
/// The condition does not hold.
pub fn ensure_that(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds {
        return Ok(());
    }
    bail!(otherwise())
}
