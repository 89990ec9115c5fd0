//! What an attack costs its victim, by the kernel's counters.

use std::time::Instant;

use anyhow::{Context, Result};

/// Clock ticks a second in /proc/PID/stat (USER_HZ, the same on every Linux).
const TICKS: f64 = 100.0;

/// A watched process.
pub struct Victim {
    pid: u32,
    began: Instant,
    cpu: f64,
    resident: u64,
}

/// What an attack cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// How long the attack took, in seconds.
    pub seconds: f64,
    /// CPU time in seconds.
    pub cpu: f64,
    /// Resident memory before the attack, in kilobytes.
    pub before: u64,
    /// The peak of resident memory.
    pub peak: u64,
}

impl Victim {
    /// Starts to watch a process: its peak is reset.
    ///
    /// # Errors
    /// It does not exist, or the kernel keeps no peak.
    pub fn watch(pid: u32) -> Result<Victim> {
        // 5 resets the peak to what is resident now (proc_pid_clear_refs(5)).
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak")?;
        Ok(Victim { pid, began: Instant::now(), cpu: cpu_seconds(pid)?, resident: kilobytes(pid, "VmRSS:")? })
    }

    /// The cost so far.
    ///
    /// # Errors
    /// The process has ended.
    pub fn cost(&self) -> Result<Cost> {
        Ok(Cost {
            seconds: self.began.elapsed().as_secs_f64(),
            cpu: cpu_seconds(self.pid)? - self.cpu,
            before: self.resident,
            peak: kilobytes(self.pid, "VmHWM:")?,
        })
    }
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |i: usize| -> Result<f64> { Ok(fields.get(i).context("a short stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// A line of /proc/PID/status that ends with kB.
fn kilobytes(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Number of open descriptors of a process.
///
/// # Errors
/// There is none.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
