//! Runs sandboxes one after the other, and looks what they have left on the host: `tests/soak` runs
//! it where guests run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casita::sandbox::{
    Content, End, Limit, Limits, PutFile, Sandbox, SandboxRequest, SandboxResult,
};
use clap::Parser;

/// Runs that come before anything is counted: what is made once, such as a disk's template, is
/// there then.
const WARM: usize = 5;
/// So much more memory may the host use at the end than after a tenth of the runs. Its kernel keeps
/// what it may need again; what leaks with each run is more than this after a thousand.
const GROWTH: u64 = 8 << 20;
/// There are so many kinds of runs, and some leave more to be dropped later than others. What the
/// host uses is the median after one run of each.
const KINDS: usize = 5;

/// Run sandboxes in a row, and see that nothing is left of them.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many
    #[arg(long, default_value_t = 1000, overrides_with = "runs")]
    runs: usize,
    /// Tell how it goes after so many
    #[arg(long, default_value_t = 100)]
    every: usize,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new()?;
    for number in 0..WARM {
        run(&sandbox, number)?;
    }
    let before = State::now()?;
    let mut soak = Soak::default();
    for number in 0..arguments.runs {
        let begin = Instant::now();
        run(&sandbox, number).with_context(|| format!("run {number}"))?;
        soak.took.push(begin.elapsed());
        let used = used_memory()?;
        soak.used.push(used);
        if (number + 1) % arguments.every == 0 {
            println!("{} runs, host memory {} KiB", number + 1, used >> 10);
        }
    }
    let after = State::now()?;
    let left = after.beside(&before);
    soak.tell();
    for what in &left {
        println!("left behind: {what}");
    }
    let (early, late) = soak.memory();
    let grown = late.saturating_sub(early);
    if grown > GROWTH {
        println!("the host uses {} KiB more", grown >> 10);
    }
    let good = left.is_empty() && grown <= GROWTH;
    println!("{}", if good { "nothing is left" } else { "NOT GOOD" });
    Ok(ExitCode::from(u8::from(!good)))
}

#[derive(Default)]
struct Soak {
    took: Vec<Duration>,
    /// The host's memory after each run, in bytes.
    used: Vec<u64>,
}

impl Soak {
    /// What the host used after a tenth of the runs, and at the end, in bytes.
    fn memory(&self) -> (u64, u64) {
        let round = |from: usize| {
            let mut part: Vec<_> = self.used.iter().skip(from).take(KINDS).copied().collect();
            part.sort_unstable();
            part.get(part.len() / 2).copied().unwrap_or_default()
        };
        let last = self.used.len().saturating_sub(KINDS);
        (round((self.used.len() / 10).min(last)), round(last))
    }

    fn tell(&mut self) {
        self.took.sort();
        let at = |part: usize| {
            let index = self.took.len().saturating_sub(1) * part / 100;
            self.took.get(index).map_or(0, Duration::as_millis)
        };
        let (early, late) = self.memory();
        println!(
            "{} runs: median {} ms, 99 of 100 within {} ms; host memory {} KiB, then {} KiB",
            self.took.len(),
            at(50),
            at(99),
            early >> 10,
            late >> 10
        );
    }
}

/// One run; each kind in turn.
fn run(sandbox: &Sandbox, number: usize) -> Result<()> {
    let shell = |script: &str| SandboxRequest {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        limits: Limits {
            time: Duration::from_mins(1),
            cpu_time: Duration::from_mins(1),
            memory: 32 << 20,
            disk: 64 << 20,
            ..Limits::default()
        },
        ..SandboxRequest::default()
    };
    let limit = |limit| End::Limit { limit };
    let (request, end) = match number % KINDS {
        0 | 1 => return put_and_take(sandbox, shell("cat in in >out"), number),
        2 => {
            let mut request = shell("sleep 1000 & sleep 1000");
            request.limits.time = Duration::from_millis(50);
            (request, limit(Limit::Time))
        }
        3 => {
            let mut request = shell("yes");
            request.limits.output = 100_000;
            (request, limit(Limit::Output))
        }
        _ => (
            shell("dd if=/dev/zero of=/x bs=1M count=5; kill -KILL $$"),
            End::Signaled { signal: 9 },
        ),
    };
    let result = sandbox.run(&request)?;
    expect(&result, &end)
}

fn expect(result: &SandboxResult, end: &End) -> Result<()> {
    ensure!(result.end == *end, "{end:?} was expected: {result:?}");
    Ok(())
}

fn put_and_take(sandbox: &Sandbox, request: SandboxRequest, number: usize) -> Result<()> {
    let content = format!("run {number}\n");
    let result = sandbox.run(&SandboxRequest {
        put: vec![PutFile::new("/work/in", Content::from(content.as_str()))],
        workdir: Some("/work".to_owned()),
        take: vec!["/work/out".to_owned()],
        ..request
    })?;
    expect(&result, &End::Exited { code: 0 })?;
    let file = result.files.first().context("nothing was taken")?;
    ensure!(file.data.to_text() == content.repeat(2), "{file:?}");
    Ok(())
}

/// Everything of the host that a run could leave something in.
struct State {
    /// Each thing of each kind, by name.
    things: BTreeSet<String>,
}

impl State {
    fn now() -> Result<Self> {
        let mut things = BTreeSet::new();
        processes(&mut things)?;
        for mount in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            things.insert(format!("mount {mount}"));
        }
        for device in fs::read_dir("/sys/class/net")? {
            things.insert(format!("network device {}", device?.path().display()));
        }
        directories(Path::new("/sys/fs/cgroup"), "cgroup", &mut things);
        for folder in folders() {
            files(&folder, &mut things);
        }
        let own = |what: &str| fs::read_dir(format!("/proc/self/{what}")).map(Iterator::count);
        things.insert(format!("{} own file descriptors", own("fd")?));
        things.insert(format!("{} own threads", own("task")?));
        Ok(Self { things })
    }

    /// What is here and was not in `before`.
    fn beside(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// Processes that are programs, and the namespaces that they are in.
fn processes(things: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let words = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let is_zombie = stat.contains(") Z ");
        // The kernel's own threads come and go.
        if words.is_empty() && !is_zombie {
            continue;
        }
        things.insert(format!("process {name} {}", words.replace('\0', " ")));
        for namespace in fs::read_dir(path.join("ns"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Ok(target) = fs::read_link(namespace.path()) {
                things.insert(format!("namespace {}", target.display()));
            }
        }
    }
    Ok(())
}

/// Where casita keeps files, and where programs keep temporary ones.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HOME").unwrap_or_else(|| "/root".into());
    let xdg = |name: &str, below: &str| variable(name).unwrap_or_else(|| home.join(below));
    vec![
        xdg("XDG_DATA_HOME", ".local/share").join("casita"),
        xdg("XDG_CACHE_HOME", ".cache").join("casita/disks"),
        xdg("XDG_RUNTIME_DIR", "/run/user/0").join("casita"),
        variable("TMPDIR").unwrap_or_else(|| "/tmp".into()),
        "/dev/shm".into(),
    ]
}

fn files(folder: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        things.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), things);
        }
    }
}

fn directories(folder: &Path, what: &str, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            things.insert(format!("{what} {}", entry.path().display()));
            directories(&entry.path(), what, things);
        }
    }
}

/// What the host's memory holds beside what it could drop at any time, in bytes.
fn used_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib << 10)
            .with_context(|| format!("no {name} in /proc/meminfo"))
    };
    let droppable = ["MemFree", "Buffers", "Cached", "SReclaimable"].map(field);
    let droppable = droppable.into_iter().sum::<Result<u64>>()?;
    // Files in memory are in the cache, and can't be dropped.
    Ok((field("MemTotal")? + field("Shmem")?).saturating_sub(droppable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_odd_run_is_no_growth() {
        let mut soak = Soak {
            used: vec![59, 59, 53, 60, 64, 59, 60, 59, 59, 80],
            ..Soak::default()
        };
        assert_eq!(soak.memory(), (59, 59));
        soak.used.extend([70, 71, 70, 69, 75]);
        assert_eq!(soak.memory(), (59, 70));
        soak.used.truncate(2);
        assert_eq!(soak.memory(), (59, 59));
    }

    #[test]
    fn what_is_left_behind_is_found() {
        let before = State::now().unwrap();
        let place = tempfile::tempdir().unwrap();
        let name = place.path().display().to_string();
        let after = State::now().unwrap();
        let left = after.beside(&before);
        let found = left.iter().any(|thing| thing.contains(&name));
        assert!(found || std::env::var_os("TMPDIR").is_some(), "{left:?}");
        assert!(used_memory().unwrap() > 1 << 20);
    }
}
