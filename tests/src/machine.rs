//! What this machine has, and where the things under test are.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

/// The checkout.
pub fn checkout() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The program under test: `$CASITA_BIN`, or the release build.
pub fn casita() -> PathBuf {
    env::var_os("CASITA_BIN")
        .filter(|path| !path.is_empty())
        .map_or_else(
            || checkout().join("target/release/casita"),
            |path| env::current_dir().unwrap_or_default().join(path),
        )
}

/// The program that attacks its host, for tests of the sandbox: `$CASITA_TAKEOVER_BIN`, or the
/// debug build with the feature `takeover`.
pub fn takeover() -> PathBuf {
    env::var_os("CASITA_TAKEOVER_BIN")
        .filter(|path| !path.is_empty())
        .map_or_else(
            || checkout().join("target/debug/casita-takeover"),
            PathBuf::from,
        )
}

fn xdg(variable: &str, below_home: &str) -> PathBuf {
    let set = env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
    set.unwrap_or_else(|| home.join(below_home))
}

/// The cache that this user's VMs share.
pub fn cache_home() -> PathBuf {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// The guest kernel that this user's VMs boot.
pub fn default_kernel() -> PathBuf {
    env::var_os("CASITA_KERNEL")
        .filter(|path| !path.is_empty())
        .map_or_else(
            || xdg("XDG_DATA_HOME", ".local/share").join("casita/kernel/vmlinux"),
            PathBuf::from,
        )
}

/// Whether this process may do anything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Why a test that needs the program `name` of Debian's `package` can't run, if it can't.
pub fn lacks(name: &str, package: &str) -> Option<String> {
    match program(name) {
        Some(_) => None,
        None => Some(format!("needs {name}: apt install {package}")),
    }
}

/// Why a test that needs a file can't run, if it can't.
pub fn lacks_file(path: &Path) -> Option<String> {
    (!path.exists()).then(|| format!("needs {}", path.display()))
}

/// Why a test that mounts file systems of its own can't run, if it can't.
pub fn lacks_mounts() -> Option<String> {
    let works = Command::new(OWN_MOUNTS[0])
        .args(&own_mounts()[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!works).then(|| "needs to mount file systems (root, or user namespaces)".to_owned())
}

const OWN_MOUNTS: [&str; 3] = ["unshare", "--mount", "--map-root-user"];

/// The start of a command that runs in a mount namespace of its own.
pub fn own_mounts() -> &'static [&'static str] {
    if is_root() {
        &OWN_MOUNTS[..2]
    } else {
        &OWN_MOUNTS
    }
}

/// What `casita doctor` says of one of its checks: its status and its detail.
fn doctor(name: &str) -> Option<(String, String)> {
    let output = Command::new(casita())
        .args(["doctor", "--format", "json"])
        .output()
        .ok()?;
    let report: Value = serde_json::from_slice(&output.stdout).ok()?;
    let checks = report.get("checks")?.as_array()?;
    let check = checks.iter().find(|check| check["name"] == name)?;
    let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("detail")))
}

/// Why no VM at all can be made here, if none can.
pub fn lacks_kvm() -> Option<String> {
    match doctor("kvm") {
        Some((status, _)) if status == "ok" => None,
        Some((_, detail)) => Some(format!("needs KVM: {detail}")),
        None => Some(format!("needs {}", casita().display())),
    }
}

/// Whether Linux guests run on this machine's own KVM.
pub fn runs_guests() -> bool {
    doctor("guest-code").is_some_and(|(status, _)| status == "ok")
}

/// Whether everything is to be tried at full length, `$CASITA_LONG`: what takes hours in the lab.
pub fn is_long() -> bool {
    env::var_os("CASITA_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Whether this is the lab already.
pub fn is_lab() -> bool {
    env::var_os("CASITA_LAB").is_some()
}

/// Goes on with this very program, and its arguments, in the lab. Returns only if it can't.
///
/// # Errors
/// If the lab can't be started.
pub fn go_on_in_the_lab(limit_seconds: u32) -> Result<()> {
    let program = env::current_exe()?;
    let error = Command::new(checkout().join("tests/lab/run"))
        .args(["--mem", "7G", "--timeout", &limit_seconds.to_string(), "--"])
        .arg(program)
        .args(env::args_os().skip(1))
        .exec();
    Err(error).context("starting tests/lab/run")
}

/// The start of a command for which file permissions count, although it may be root's.
pub fn bound_by_permissions() -> &'static [&'static str] {
    if is_root() { &BOUND } else { &[] }
}

const BOUND: [&str; 4] = [
    "setpriv",
    "--inh-caps=-dac_override,-dac_read_search",
    "--bounding-set=-dac_override,-dac_read_search",
    "--",
];

/// Why a test of permissions can't run, if it can't.
pub fn lacks_permissions() -> Option<String> {
    if is_root() {
        lacks("setpriv", "util-linux")
    } else {
        None
    }
}
