//! Waiting for what must come true, and saying what was true instead.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks: short beside everything that is waited for, long beside what a look costs.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks again and again until `look` succeeds, and returns what it found and how long that took.
///
/// # Errors
/// It did not within `limit`; the error of the last look is kept as the reason.
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

/// Looks again and again for all of `span`.
///
/// # Errors
/// The first look that fails.
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

/// Turns a condition into a look.
///
/// # Errors
/// The condition does not hold.
pub fn ensure_that(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds {
        return Ok(());
    }
    bail!(otherwise())
}
