//! What this machine can do for casita, why not, and the command that mends it.

pub mod payload;

use std::fs;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm};
use serde::Serialize;

use crate::config::default_kernel;
use crate::confine::{self, state::LayerState};
use crate::dirs::Dirs;
use crate::kvm;
use payload::Findings;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Guests run, but something is missing.
    Warn,
    /// No guest can run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// The command or deed that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            fix: None,
        }
    }

    fn bad(
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            name,
            status,
            detail: detail.into(),
            fix: Some(fix.into()),
        }
    }
}

/// All that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether a guest can run on this machine's own KVM.
    pub can_run_guests: bool,
    /// One by one.
    pub checks: Vec<Check>,
    /// The layers of a sandbox on this host, tried out.
    pub sandbox: Vec<LayerState>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_error: Option<String>,
}

const USE_THE_LAB: &str =
    "use a machine with hardware virtualization, or the lab: `tests/lab/run casita run ...`";

/// Looks at everything.
pub fn examine(dirs: &Dirs) -> Report {
    // First, while there is one thread.
    let (sandbox, sandbox_error) = match confine::trial() {
        Ok(layers) => (layers, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut checks = Vec::new();
    match kvm::open() {
        Ok(kvm) => {
            checks.push(Check::ok(
                "kvm",
                format!("{} opens{}", kvm::DEVICE, back_end()),
            ));
            checks.push(check_payload(&kvm));
            checks.push(Check::ok(
                "vcpus",
                format!("up to {} for one guest", kvm.get_max_vcpus()),
            ));
            checks.push(check_tsc_deadline(&kvm));
        }
        Err(error) => {
            let (what, fix) = split_hint(&error.to_string());
            checks.push(Check::bad("kvm", Status::Fail, what, fix));
        }
    }
    checks.push(check_io_uring());
    checks.push(check_program(
        "mkfs.erofs",
        "erofs-utils",
        "packs directories into root images",
    ));
    checks.push(check_program(
        "mke2fs",
        "e2fsprogs",
        "formats writable disks",
    ));
    checks.push(check_program(
        "passt",
        "passt",
        "connects guests to the network (--net user) and publishes their ports",
    ));
    checks.push(check_tun());
    checks.push(check_vhost_net());
    checks.push(check_kernel(dirs));
    let can_run_guests = checks.iter().all(|check| check.status != Status::Fail);
    Report {
        can_run_guests,
        checks,
        sandbox,
        sandbox_error,
    }
}

/// Why KVM that opens can't run guests: one sentence.
pub fn sentence(findings: &Findings) -> String {
    let mut reasons = Vec::new();
    if findings.million_instructions_per_second > 0.0 {
        reasons.push(format!(
            "it runs {:.1} million instructions a second",
            findings.million_instructions_per_second
        ));
    } else {
        reasons.push("it can't run a simple loop".to_owned());
    }
    if !findings.failing.is_empty() {
        reasons.push(format!("gives up on {}", findings.failing.join(", ")));
    }
    format!(
        "{} is there but can't run a Linux guest: {}{}",
        kvm::DEVICE,
        reasons.join(" and "),
        back_end()
    )
}

/// Refuses a KVM that can't run guests. A host that passed once since its last boot is not tried
/// again; one that failed is.
///
/// # Errors
/// The sentence that says why, with what to do.
pub fn require_usable(kvm: &Kvm, dirs: &Dirs) -> Result<(), String> {
    let passed = passed_marker(dirs);
    if passed.as_deref().is_some_and(Path::exists) {
        return Ok(());
    }
    match payload::run(kvm) {
        Ok(findings) if findings.usable() => {
            if let Some(marker) = passed {
                // A marker that can't be written costs the next start a millisecond.
                let _ = Dirs::ensure(&dirs.runtime()).map(|()| fs::write(marker, b""));
            }
            Ok(())
        }
        Ok(findings) => Err(format!("{}; {USE_THE_LAB}", sentence(&findings))),
        Err(error) => Err(format!("{error}; `casita doctor` tells more")),
    }
}

/// The file that says that this host, since its boot, passed.
fn passed_marker(dirs: &Dirs) -> Option<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(dirs.runtime().join(format!("kvm-usable-{}", boot.trim())))
}

fn check_payload(kvm: &Kvm) -> Check {
    const NAME: &str = "guest-code";
    match payload::run(kvm) {
        Ok(findings) if findings.usable() => Check::ok(
            NAME,
            format!(
                "{:.0} million instructions a second; {} work",
                findings.million_instructions_per_second,
                findings.working.join(", ")
            ),
        ),
        Ok(findings) => Check::bad(NAME, Status::Fail, sentence(&findings), USE_THE_LAB),
        Err(error) => Check::bad(NAME, Status::Fail, error.to_string(), USE_THE_LAB),
    }
}

/// Which of KVM's back ends is loaded, as a parenthesis.
fn back_end() -> String {
    let loaded = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .find(|name| Path::new("/sys/module").join(name).exists());
    loaded.map_or_else(String::new, |name| format!(" (back end {name})"))
}

fn check_tsc_deadline(kvm: &Kvm) -> Check {
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        Check::ok("timer", "guests get a TSC-deadline timer")
    } else {
        Check::bad(
            "timer",
            Status::Warn,
            "no TSC-deadline timer: guests calibrate their APIC timer, which costs start-up time",
            "run a newer host kernel",
        )
    }
}

fn check_io_uring() -> Check {
    const NAME: &str = "io_uring";
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match casita_devices::virtio::block::backend::uring::available() {
        Ok(()) => Check::ok(NAME, "available for block devices"),
        Err(error) => {
            let fix = if matches!(setting.trim(), "1" | "2") {
                "sudo sysctl kernel.io_uring_disabled=0"
            } else {
                "run a host kernel with io_uring, and a container policy that allows it"
            };
            let detail = format!("not available ({error}): block devices use preadv and pwritev");
            Check::bad(NAME, Status::Warn, detail, fix)
        }
    }
}

fn check_program(program: &'static str, package: &str, purpose: &str) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file());
    match found {
        Some(path) => Check::ok(program, format!("{} {purpose}", path.display())),
        None => Check::bad(
            program,
            Status::Warn,
            format!("not installed; it {purpose}"),
            format!("sudo apt install {package}"),
        ),
    }
}

fn check_tun() -> Check {
    const NAME: &str = "tun";
    match open_device("/dev/net/tun") {
        Ok(()) => Check::ok(NAME, "/dev/net/tun opens, for --net tap and bridge"),
        Err(error) => Check::bad(
            NAME,
            Status::Warn,
            format!(
                "/dev/net/tun does not open ({error}): no --net tap or bridge; --net user works"
            ),
            device_fix(&error, "tun", "/dev/net/tun"),
        ),
    }
}

fn check_vhost_net() -> Check {
    const NAME: &str = "vhost-net";
    match open_device("/dev/vhost-net") {
        Ok(()) => Check::ok(NAME, "/dev/vhost-net opens: the kernel serves tap devices"),
        Err(error) => Check::bad(
            NAME,
            Status::Warn,
            format!("/dev/vhost-net does not open ({error}): casita serves tap devices itself"),
            device_fix(&error, "vhost_net", "/dev/vhost-net"),
        ),
    }
}

fn open_device(path: &str) -> std::io::Result<()> {
    fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
}

fn device_fix(error: &std::io::Error, module: &str, path: &str) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!("sudo setfacl -m u:$USER:rw {path}"),
        _ => format!("sudo modprobe {module}"),
    }
}

fn check_kernel(dirs: &Dirs) -> Check {
    const NAME: &str = "guest-kernel";
    match default_kernel(dirs) {
        Ok(path) => Check::ok(NAME, format!("{}", path.display())),
        Err(error) => {
            let (what, _) = split_hint(&error.to_string());
            Check::bad(NAME, Status::Warn, what, "make kernel")
        }
    }
}

/// An error of ours as "what: fix" or "what; fix".
fn split_hint(error: &str) -> (String, String) {
    match error.split_once(": ") {
        Some((what, fix)) => (what.to_owned(), fix.to_owned()),
        None => (error.to_owned(), "casita doctor -v".to_owned()),
    }
}
