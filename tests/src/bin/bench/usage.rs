//! Resource usage of a process, by the kernel's counters.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Clock ticks a second in /proc/PID/stat (USER_HZ, the same on every Linux).
const TICKS: f64 = 100.0;

/// CPU seconds of a process group: nginx has its workers in it.
pub(crate) fn cpu_seconds(group: u32) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in members(group)? {
        let Ok(fields) = stat(pid) else { continue };
        for i in [11, 12] {
            ticks += fields.get(i).context("a short stat")?.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS)
}

/// Run time of a process' threads in seconds, exact to the nanosecond: ticks miss wake-ups of microseconds.
/// Ended threads are not included.
pub(crate) fn run_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends in between does not matter.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split_whitespace().next().context("an empty schedstat")?.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

/// The same of a process group: nginx has its workers in it.
pub(crate) fn run_seconds_of(group: u32) -> Result<f64> {
    members(group)?.into_iter().map(run_seconds).sum()
}

/// The fields after the name in /proc/PID/stat.
fn stat(pid: u32) -> Result<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    Ok(after.split_whitespace().map(str::to_owned).collect())
}

/// The processes of a group.
pub(crate) fn members(group: u32) -> Result<Vec<u32>> {
    let group = group.to_string();
    let all = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    Ok(all.filter(|pid| stat(*pid).is_ok_and(|fields| fields.get(2) == Some(&group))).collect())
}

/// Resident memory of a process group, and the part of it that no other process shares, in kilobytes.
pub(crate) fn memory(group: u32) -> Result<(u64, u64)> {
    memory_of(&members(group)?)
}

/// The same of some processes.
pub(crate) fn memory_of(processes: &[u32]) -> Result<(u64, u64)> {
    let mut text = String::new();
    for pid in processes {
        text += &std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    }
    let sum = |names: &[&str]| -> u64 {
        let value = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        let named = |line: &&str| names.iter().any(|name| line.starts_with(name));
        text.lines().filter(named).filter_map(value).sum()
    };
    Ok((sum(&["Rss:"]), sum(&["Private_Clean:", "Private_Dirty:"])))
}

/// Peak of the resident memory of a process, in kilobytes.
pub(crate) fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().next().context("an empty VmHWM")?.parse()?)
}

/// Bytes that an interface in the network of a process has received and sent, with all headers.
pub(crate) fn traffic(pid: u32, interface: &str) -> Result<(u64, u64)> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let line = all.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let fields: Vec<&str> = line.with_context(|| format!("no {interface}"))?.split_whitespace().collect();
    let field = |i: usize| -> Result<u64> { Ok(fields.get(i).context("a short line")?.parse()?) };
    Ok((field(0)?, field(8)?))
}

/// What one thread has used since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ThreadUsage {
    /// Run time, exact to the nanosecond.
    pub(crate) seconds: f64,
    /// How often it has slept and been woken.
    pub(crate) wakeups: u64,
}

/// What each thread of a process has used, by its id and its name.
pub(crate) fn threads(pid: u32) -> Result<BTreeMap<(String, String), ThreadUsage>> {
    let mut all = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let read = |name: &str| std::fs::read_to_string(task.path().join(name));
        // A thread that ends in between does not matter.
        let (Ok(name), Ok(run), Ok(status)) = (read("comm"), read("schedstat"), read("status")) else {
            continue;
        };
        let nanoseconds: f64 = run.split_whitespace().next().context("an empty schedstat")?.parse()?;
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let wakeups = switches.context("no voluntary_ctxt_switches")?.trim().parse()?;
        let id = (task.file_name().to_string_lossy().into_owned(), name.trim().to_owned());
        all.insert(id, ThreadUsage { seconds: nanoseconds / 1e9, wakeups });
    }
    Ok(all)
}
