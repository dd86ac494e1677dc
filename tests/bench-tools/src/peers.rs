//! The command lines of the monitors: the same kernel, image, memory and devices for each.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::Subjects;

/// The project's own name in tables.
pub const CASITA: &str = "casita";
/// The peer's.
pub const QEMU: &str = "QEMU microvm";

/// `casita` with folders of its own, so that nothing is left of what is measured.
fn program(subjects: &Subjects) -> Result<Command> {
    let mut command = Command::new(&subjects.casita);
    for (variable, name) in [("XDG_DATA_HOME", "data"), ("XDG_RUNTIME_DIR", "run")] {
        let folder = subjects.work.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        command.env(variable, folder);
    }
    Ok(command)
}

/// `casita run` with one vCPU, of which nothing stays.
pub fn casita(subjects: &Subjects, memory: &str) -> Result<Command> {
    let mut command = program(subjects)?;
    command
        .args(["run", "--rm"])
        .arg("--kernel")
        .arg(&subjects.kernel)
        .arg("--rootfs")
        .arg(&subjects.image)
        .args(["--memory", memory, "--cpus", "1"]);
    Ok(command)
}

/// A VM that runs in the background until this is dropped.
pub struct StandingVm<'a> {
    subjects: &'a Subjects,
    name: String,
}

impl<'a> StandingVm<'a> {
    /// Starts it with `words` as its command.
    pub fn start(subjects: &'a Subjects, memory: &str, name: &str, words: &[&str]) -> Result<Self> {
        let mut command = casita(subjects, memory)?;
        command.args(["--detach", "--name", name, "--"]).args(words);
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(
            output.status.success(),
            "casita run --detach failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self {
            subjects,
            name: name.to_owned(),
        })
    }

    /// `casita exec` of `words` in it.
    pub fn exec(&self, words: &[&str]) -> Result<Command> {
        let mut command = program(self.subjects)?;
        command.args(["exec", &self.name, "--"]).args(words);
        Ok(command)
    }
}

impl Drop for StandingVm<'_> {
    fn drop(&mut self) {
        // What can't be removed ends with the lab, or is named by the next start.
        if let Ok(mut command) = program(self.subjects) {
            // Standard output is for the figures.
            let _ = command
                .args(["rm", "--force", &self.name])
                .stdout(Stdio::null())
                .status();
        }
    }
}

/// What QEMU is to boot, and how.
pub struct Qemu<'a> {
    /// As QEMU writes it, such as `256M`.
    pub memory: &'a str,
    /// The initrd, if any.
    pub initrd: Option<&'a Path>,
    /// The guest kernel's command line.
    pub cmdline: &'a str,
    /// The root image, read-only.
    pub root: &'a Path,
    /// The writable disk.
    pub disk: &'a Path,
    /// More of the disk's `-drive`, such as `aio=io_uring`.
    pub disk_options: &'a str,
    /// Whether the disk has an I/O thread of its own, as Casita's devices have.
    pub io_thread: bool,
    /// Whether a write to the agent's stage port ends QEMU.
    pub exit_at_stage: bool,
}

impl Qemu<'_> {
    /// The smallest machine that QEMU has, with the devices that Casita has: root, disk, random
    /// numbers and serial port. No timer chip, clock chip, or interrupt controller that the guest
    /// does not need.
    pub fn command(&self, subjects: &Subjects) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm,rtc=off,pit=off,pic=off"])
            // The last one for back ends of KVM that do not let this register be set.
            .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
            .args(["-smp", "1", "-m", self.memory])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-kernel"])
            .arg(&subjects.kernel)
            .args(["-append", self.cmdline]);
        if let Some(initrd) = self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        command.arg("-drive").arg(format!(
            "file={},format=raw,if=none,id=root,readonly=on",
            self.root.display()
        ));
        command.arg("-drive").arg(format!(
            "file={},format=raw,if=none,id=disk{}",
            self.disk.display(),
            self.disk_options
        ));
        let thread = if self.io_thread {
            command.args(["-object", "iothread,id=io"]);
            ",iothread=io"
        } else {
            ""
        };
        // The guest finds the later bus first. The first bus of all would share its interrupt with
        // the machine's own devices.
        command
            .args([
                "-device",
                "virtio-blk-device,drive=root,bus=virtio-mmio-bus.22",
            ])
            .arg("-device")
            .arg(format!(
                "virtio-blk-device,drive=disk,bus=virtio-mmio-bus.21{thread}"
            ))
            .args(["-device", "virtio-rng-device,bus=virtio-mmio-bus.23"]);
        if self.exit_at_stage {
            command.args(["-device", "isa-debug-exit,iobase=0x6c0,iosize=1"]);
        }
        command
    }
}

/// An initrd with the agent, which joins image and disk and runs `words`, as `casita run` makes it.
pub fn agent_initrd(subjects: &Subjects, name: &str, words: &[&str]) -> Result<PathBuf> {
    let path = subjects.work.join(name);
    let status = Command::new(&subjects.initrd_tool)
        .arg(&subjects.agent)
        .arg(&path)
        .args(["erofs", "--disk", "--"])
        .args(words)
        .status()
        .with_context(|| format!("{} is missing", subjects.initrd_tool.display()))?;
    ensure!(status.success(), "the agent's initrd could not be packed");
    Ok(path)
}

/// A formatted disk of `size`, with the features that Casita's own have, as a sparse file.
pub fn make_disk(subjects: &Subjects, name: &str, size: &str) -> Result<PathBuf> {
    let path = subjects.work.join(name);
    let _ = std::fs::remove_file(&path);
    let status = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1"])
        .arg(&path)
        .arg(size)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "mke2fs failed");
    Ok(path)
}

/// The kernel command line that `casita run` gives its guest, as the guest sees it.
pub fn casita_cmdline(subjects: &Subjects) -> Result<String> {
    let output = casita(subjects, "256M")?
        .args(["--", "cat", "/proc/cmdline"])
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "no guest boots: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
