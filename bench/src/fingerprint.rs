//! What a figure depends on besides the program.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::place::{self, Lab};
use crate::subjects::Subjects;

/// Where and with what a part ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The CPU as the system names it, and how many.
    pub cpu: String,
    /// The host's kernel release.
    pub host_kernel: String,
    /// `kvm_intel`, `kvm_amd`, or another module that runs guests.
    pub kvm: String,
    /// `no`, or how the lab's clock runs.
    pub lab: String,
    /// The CPU frequency governor, where there is one.
    pub governor: String,
    /// The host's setting for transparent huge pages.
    pub huge_pages: String,
    /// How the part was scheduled: `real-time` or `normal`.
    pub scheduling: String,
    /// What the kernel does against the flaws of its CPU.
    #[serde(default)]
    pub mitigations: Vec<String>,
    /// Load average of the last minute when the part began.
    pub load: String,
    /// MiB of the host's memory.
    pub memory_mib: u64,
    /// Of the program.
    pub casita: String,
    /// The guest kernel's file and size.
    pub guest_kernel: String,
    /// The peer.
    pub qemu: String,
    /// The containers' programs, those that are installed.
    #[serde(default)]
    pub containers: Vec<String>,
}

impl Fingerprint {
    /// Looks at this host.
    pub fn take(subjects: &Subjects) -> Result<Self> {
        let info = read("/proc/cpuinfo");
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let cpus = std::thread::available_parallelism()?;
        Ok(Self {
            cpu: format!("{cpus} x {model}"),
            host_kernel: read("/proc/sys/kernel/osrelease"),
            kvm: kvm_module(),
            lab: lab(),
            governor: or_none(read(
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            )),
            huge_pages: or_none(selected(&read(
                "/sys/kernel/mm/transparent_hugepage/enabled",
            ))),
            scheduling: scheduling(),
            mitigations: mitigations(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            memory_mib: memory_mib(),
            casita: first_line(Command::new(&subjects.casita).arg("--version")),
            guest_kernel: guest_kernel(&subjects.given_kernel)?,
            qemu: first_line(Command::new("qemu-system-x86_64").arg("--version")),
            containers: ["crun", "runc", "bwrap", "unshare", "umoci"]
                .map(|name| first_line(Command::new(name).arg("--version")))
                .into_iter()
                .filter(|line| line != "not installed")
                .collect(),
        })
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn or_none(text: String) -> String {
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}

/// The word in brackets.
fn selected(text: &str) -> String {
    let start = text.split('[').nth(1).unwrap_or_default();
    start.split(']').next().unwrap_or_default().to_owned()
}

/// Field 41 of proc_pid_stat(5): 1 and 2 are the real-time policies.
fn scheduling() -> String {
    let stat = read("/proc/self/stat");
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    match fields.split(' ').nth(41 - 3) {
        Some("1" | "2") => "real-time".to_owned(),
        _ => "normal".to_owned(),
    }
}

fn kvm_module() -> String {
    let found = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|name| Path::new("/sys/module").join(name).exists());
    or_none(found.collect::<Vec<_>>().join(", "))
}

fn lab() -> String {
    let text = match place::lab() {
        None => "no",
        Some(Lab::Instructions) => "yes; its time counts instructions, 1 ns each (icount)",
        Some(Lab::RealTime) => "yes; a software CPU in real time",
    };
    text.to_owned()
}

/// What the kernel does against each flaw of the CPU that it has.
fn mitigations() -> Vec<String> {
    let Ok(files) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return Vec::new();
    };
    let mut found: Vec<String> = files
        .filter_map(|file| {
            let path = file.ok()?.path();
            let text = read(path.to_str()?);
            let affected = !text.is_empty() && text != "Not affected";
            affected.then(|| format!("{}: {text}", path.file_name().unwrap_or_default().display()))
        })
        .collect();
    found.sort();
    found
}

fn memory_mib() -> u64 {
    read("/proc/meminfo")
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or_default()
        / 1024
}

fn first_line(command: &mut Command) -> String {
    command
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.lines().next().map(str::to_owned))
        .unwrap_or_else(|| "not installed".to_owned())
}

fn guest_kernel(path: &Path) -> Result<String> {
    let path = fs::canonicalize(path)?;
    let folder = path
        .parent()
        .and_then(Path::file_name)
        .unwrap_or_default()
        .display();
    let kib = fs::metadata(&path)?.len() / 1024;
    Ok(format!("vmlinux {folder}, {kib} KiB"))
}

impl Fingerprint {
    /// Whether this was the lab.
    pub fn is_lab(&self) -> bool {
        self.lab.starts_with("yes")
    }
}

impl Fingerprint {
    /// The machine in a few lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{}, {} MiB; Linux {}",
                self.cpu, self.memory_mib, self.host_kernel
            ),
            format!(
                "{}; lab: {}; governor {}; huge pages {}; {} scheduling; load {}",
                self.kvm, self.lab, self.governor, self.huge_pages, self.scheduling, self.load
            ),
        ];
        let none = "none needed or none told".to_owned();
        let mitigations = Some(self.mitigations.join("; ")).filter(|text| !text.is_empty());
        lines.push(format!("mitigations: {}", mitigations.unwrap_or(none)));
        let programs: Vec<&str> = [&self.casita, &self.guest_kernel, &self.qemu]
            .into_iter()
            .chain(&self.containers)
            .map(String::as_str)
            .filter(|text| !text.is_empty() && *text != "not installed")
            .collect();
        lines.push(programs.join("; "));
        lines
    }
}
