//! What the kernel tells of a process: the memory that is its own, its threads' turns, its files.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Private memory of a process, in bytes (`smaps_rollup`).
///
/// # Errors
/// If there is no such process.
pub fn anonymous_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib = number(&text, "Anonymous:").with_context(|| path)?;
    Ok(kib * 1024)
}

/// How often each thread of a process has given up the processor, or lost it. A thread that has run
/// in between has done so once more.
///
/// # Errors
/// If there is no such process.
pub fn turns(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut turns = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let status = fs::read_to_string(task.join("status"))?;
        let name = fs::read_to_string(task.join("comm"))?;
        let key = format!("{} {}", task.display(), name.trim());
        let sum = number(&status, "voluntary_ctxt_switches:").unwrap_or(0)
            + number(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        turns.insert(key, sum);
    }
    Ok(turns)
}

/// How many files a process has open.
///
/// # Errors
/// If there is no such process.
pub fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The number at the line that starts with `name`.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
