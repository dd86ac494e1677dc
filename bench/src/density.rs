//! `casita bench density`: what many VMs cost together, one after the other, beside as many
//! containers, idle and at work.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casita::cli::bench::{DensityArgs, Rival};

use crate::boot::{container, name_of};
use crate::containers::{Containers, Kind, Standing, is_installed};
use crate::fingerprint::Fingerprint;
use crate::hostmem::{self, HostMemory};
use crate::interrupt::{self, Child, output_of};
use crate::peers::{self, CASITA, Qemu};
use crate::process::Running;
use crate::progress::Progress;
use crate::record::{Crowd, Missing, Point, Record, Results, Settings};
use crate::smaps;
use crate::subjects::{self, Subjects};

const READY: &str = "bench-ready";
/// Says that it is there, and sleeps.
const IDLE: &str = "echo bench-ready; exec sleep 100000";
/// Reads all of its image, keeps 16 MiB in memory, and reads those once a second.
const WORKING: &str = "find / -xdev -type f -exec cat {} + >/dev/null 2>&1; \
    dd if=/dev/zero of=/dev/shm/bench bs=1M count=16 2>/dev/null; echo bench-ready; \
    while :; do cat /dev/shm/bench >/dev/null; sleep 1; done";
/// What all get to give back what they do not need, after the last one is there.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures casita and those that it is to be measured beside.
///
/// # Errors
/// If casita itself can't be measured.
pub fn measure(args: &DensityArgs, casita: &Path) -> Result<Record> {
    let disk = Path::new("/lab-disk");
    let lab_disk = crate::place::lab().is_some() && disk.is_dir();
    let place = if lab_disk {
        disk.to_owned()
    } else {
        subjects::default_place()
    };
    let subjects = Subjects::of(&args.setup, casita, &place)?;
    let host = Fingerprint::take(&subjects)?;
    let containers = Containers::new(&subjects)?;
    let mut hosted = vec![(CASITA, Who::Casita)];
    let mut missing = Vec::new();
    for rival in &args.against {
        match who(*rival, &subjects, &containers) {
            Ok(who) => hosted.push((name_of(*rival), who)),
            Err(error) => {
                interrupt::check()?;
                missing.push(Missing {
                    name: name_of(*rival).to_owned(),
                    reason: error.to_string(),
                });
            }
        }
    }
    let crowds = Crowds {
        subjects: &subjects,
        containers: &containers,
        memory: format!("{}M", args.memory),
        count: args.count,
    };
    let mut results = Vec::new();
    let mut progress = Progress::new("density", 2 * args.count * hosted.len());
    for (name, who) in &hosted {
        for (state, script) in [("idle", IDLE), ("working", WORKING)] {
            let name = format!("{name}, {state}");
            match crowds.measure(who, &name, script, &mut progress) {
                Ok(points) => results.push(Crowd {
                    name,
                    points,
                    shared: who.shared().to_owned(),
                }),
                Err(error) => {
                    interrupt::check()?;
                    if matches!(who, Who::Casita) {
                        return Err(error.context(name));
                    }
                    let reason = format!("does not work here: {error:#}");
                    missing.push(Missing { name, reason });
                }
            }
        }
    }
    drop(progress);
    Ok(Record {
        host,
        settings: Settings {
            image: args
                .setup
                .image
                .clone()
                .unwrap_or_else(|| "built-in".to_owned()),
            command: "idle: sleep; working: reads its image and 16 MiB of memory".to_owned(),
            memory_mib: args.memory,
            runs: args.count,
        },
        notes: notes(),
        missing,
        results: Results::Density(results),
    })
}

/// Who is started many times.
enum Who {
    Casita,
    Container(Kind),
    Qemu { cmdline: String },
}

impl Who {
    fn shared(&self) -> &'static str {
        match self {
            Self::Casita => {
                "VMs share what each has mapped from the same file: the guest kernel's pages until a \
                 guest writes to one, casita's own program, and the root image where guests have it \
                 as memory instead of as a disk. The image is in the host's page cache once. What a \
                 guest reads of a disk is in its own memory besides, and counts as private."
            }
            Self::Container(_) => {
                "Containers share the host's kernel, and the pages of every file that they read: \
                 programs and libraries are in memory once."
            }
            Self::Qemu { .. } => {
                "VMs share QEMU's own program and libraries. Each has a copy of the kernel, and of \
                 what its guest reads of a disk."
            }
        }
    }
}

fn who(rival: Rival, subjects: &Subjects, containers: &Containers) -> Result<Who> {
    if let Some(kind) = container(rival) {
        ensure!(containers.can_run(kind), "not installed");
        return Ok(Who::Container(kind));
    }
    ensure!(is_installed(peers::QEMU_PROGRAM), "not installed");
    let cmdline = peers::casita_cmdline(subjects)?;
    Ok(Who::Qemu { cmdline })
}

/// One that stands.
enum Instance {
    /// The monitor or the container's program, which is our child.
    Child(Running),
    /// A container whose program has gone; its output shows that it lives.
    Named {
        roots: Vec<u32>,
        _output: BufReader<ChildStdout>,
        _client: Option<Child>,
        _standing: Standing,
    },
}

impl Instance {
    fn roots(&self) -> Vec<u32> {
        match self {
            Self::Child(running) => vec![running.id()],
            Self::Named { roots, .. } => roots.clone(),
        }
    }
}

struct Crowds<'a> {
    subjects: &'a Subjects,
    containers: &'a Containers,
    memory: String,
    count: usize,
}

impl Crowds<'_> {
    fn measure(
        &self,
        who: &Who,
        name: &str,
        script: &str,
        progress: &mut Progress,
    ) -> Result<Vec<Point>> {
        let words = ["/bin/sh", "-c", script];
        // The first of all warms caches, in the kernel too.
        drop(self.start(who, 0, &words)?);
        let before = HostMemory::now()?;
        let files = match who {
            Who::Container(_) => hostmem::files_below(self.containers.root())?,
            _ => vec![self.subjects.kernel.clone(), self.subjects.image.clone()],
        };
        let mut instances = Vec::new();
        let mut points = Vec::new();
        for number in 1..=self.count {
            let instance = self.start(who, number, &words);
            instances.push(instance.with_context(|| format!("{name}, number {number}"))?);
            interrupt::check()?;
            std::thread::sleep(SETTLE);
            interrupt::check()?;
            points.push(point(&instances, &before, &files)?);
            progress.step(name);
        }
        Ok(points)
    }

    fn start(&self, who: &Who, number: usize, words: &[&str]) -> Result<Instance> {
        let mut command = match who {
            Who::Casita => {
                let mut command = peers::casita(self.subjects, &self.memory)?;
                command.arg("--").args(words);
                command
            }
            Who::Qemu { cmdline } => {
                let disk = peers::make_disk(self.subjects, &format!("{number}.disk"), "2G")?;
                Qemu {
                    memory: &self.memory,
                    cmdline,
                    words,
                    root: &self.subjects.image,
                    disk: &disk,
                    disk_options: "",
                    io_thread: false,
                    exit_at_stage: false,
                }
                .command(self.subjects)
            }
            Who::Container(kind) if kind.is_named() => return self.named(*kind, number, words),
            Who::Container(kind) => self.containers.run(*kind, "", words)?,
        };
        let mut running = Running::start(&mut command)?;
        running.line_with(READY)?;
        Ok(Instance::Child(running))
    }

    fn named(&self, kind: Kind, number: usize, words: &[&str]) -> Result<Instance> {
        let name = format!("casita-bench-{}-{number}", std::process::id());
        let standing = Standing::new(kind, &name);
        let mut command = self.containers.background(kind, &name, words)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Child::start(&mut command)?;
        let output = child.stdout().context("its output is a pipe")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        if line.trim() != READY {
            let status = child.wait()?;
            interrupt::check()?;
            anyhow::bail!("{} ended with {status}", kind.name());
        }
        // Podman's client waits for its container; the others go.
        let client = if kind == Kind::Podman {
            Some(child)
        } else {
            child.wait()?;
            None
        };
        Ok(Instance::Named {
            roots: roots(kind, &name)?,
            _output: output,
            _client: client,
            _standing: standing,
        })
    }
}

/// The processes that a container keeps: its own first one, and who watches over it.
fn roots(kind: Kind, name: &str) -> Result<Vec<u32>> {
    let mut command = Command::new(kind.name());
    match kind {
        Kind::Podman => command.args([
            "inspect",
            "--format",
            "{\"pid\":{{.State.Pid}},\"conmon\":{{.State.ConmonPid}}}",
        ]),
        _ => command.arg("state"),
    };
    let state: serde_json::Value = serde_json::from_slice(&output_of(command.arg(name))?)?;
    let id = |field: &str| state[field].as_u64().and_then(|id| u32::try_from(id).ok());
    let first = id("pid").with_context(|| format!("{} tells no process of {name}", kind.name()))?;
    Ok([first].into_iter().chain(id("conmon")).collect())
}

fn point(instances: &[Instance], before: &HostMemory, files: &[PathBuf]) -> Result<Point> {
    let now = HostMemory::now()?;
    let processes = hostmem::Processes::now()?;
    let shmem_kib = now.shmem_kib.saturating_sub(before.shmem_kib);
    let mut mapped_shmem_kib = 0;
    let mut point = Point {
        instances: instances.len(),
        page_cache_kib: hostmem::cached_kib(files)?,
        kernel_kib: now.kernel_kib().saturating_sub(before.kernel_kib()),
        slab_kib: now.slab_kib.saturating_sub(before.slab_kib),
        page_tables_kib: now.page_tables_kib.saturating_sub(before.page_tables_kib),
        guest_page_tables_kib: now
            .guest_page_tables_kib
            .saturating_sub(before.guest_page_tables_kib),
        machine_kib: before.available_kib.saturating_sub(now.available_kib),
        ..Point::default()
    };
    for root in instances.iter().flat_map(Instance::roots) {
        for pid in processes.family(root) {
            let usage = match smaps::rollup(pid) {
                Ok(usage) => usage,
                // A process of a container that came and went.
                Err(_) if pid != root => continue,
                Err(error) => return Err(error.context("an instance has ended")),
            };
            point.private_kib += usage.private;
            point.mapped_shared_kib += usage.shared;
            point.proportional_kib += usage.proportional;
            mapped_shmem_kib += usage.shmem;
        }
    }
    point.tmpfs_kib = shmem_kib.saturating_sub(mapped_shmem_kib);
    Ok(point)
}

fn notes() -> Vec<String> {
    let mut notes = vec![
        "Instances are started one after the other and stay; two seconds after each is ready, all are \
         looked at. 'private', 'shared' and 'proportional' are sums of /proc/PID/smaps_rollup over \
         their processes, helpers and supervisors included. 'kernel' is what Slab, PageTables, \
         SecPageTables and KernelStack of /proc/meminfo have grown by since before the first."
            .to_owned(),
        "'in memory files' is what Shmem has grown by, beyond what processes have mapped of it: what a \
         container writes to /dev/shm. 'in all' is that, 'proportional' and 'kernel'. The page cache of their files (kernel and root image; \
         the containers' root) is there once for all, can be taken back, and is not in it unless it is \
         mapped."
            .to_owned(),
        "What one more costs is the slope from the second to the last.".to_owned(),
    ];
    if crate::place::lab().is_some() {
        notes.push(
            "Memory is counted by the lab's kernel as by any other: these figures are not slower or \
             faster, but the lab's clock ticks of its guests' own accord, which keeps them busier."
                .to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_says_what_is_shared_and_why() {
        let all = [
            Who::Casita,
            Who::Container(Kind::Crun),
            Who::Qemu {
                cmdline: String::new(),
            },
        ];
        for who in all {
            assert!(who.shared().contains("share"));
        }
    }
}
