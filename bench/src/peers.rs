//! The command lines of the monitors: the same kernel, image, memory and devices for each.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::interrupt::output_of;
use crate::subjects::Subjects;

/// The project's own name in tables.
pub const CASITA: &str = "casita";
/// The peer's.
pub const QEMU: &str = "QEMU microvm";

/// Its program.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";

/// What is in the guests whose PID 1 is not the image's.
pub const WHAT_RUNS: &str = "Casita runs as its users run it (`casita run --rm`): its agent in the \
    guest, vsock, the command's streams through it, a record of the VM on the host. QEMU boots the \
    same kernel with the same command line, root image and kind of disk, and an initrd of 3 KiB: \
    bench/guest/guest-init.c mounts the same file systems as the agent, joins image and disk \
    with overlayfs, runs the command on the serial console, and powers off without writing the disk \
    back, which `--rm` does not do either. So all that Casita does beyond that is in its figures.";

/// `casita` with folders of its own, so that nothing is left of what is measured.
fn program(subjects: &Subjects) -> Result<Command> {
    let mut command = Command::new(&subjects.casita);
    for (variable, name) in [
        ("XDG_DATA_HOME", "data"),
        ("XDG_RUNTIME_DIR", "run"),
        ("XDG_CACHE_HOME", "cache"),
    ] {
        let folder = subjects.work.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        command.env(variable, folder);
    }
    Ok(command)
}

/// `casita run` with one vCPU, of which nothing stays. It has no network, for its peers have none but
/// their loopback devices either.
pub fn casita(subjects: &Subjects, memory: &str) -> Result<Command> {
    let mut command = casita_with_network(subjects, memory)?;
    command.args(["--net", "none"]);
    Ok(command)
}

/// The same with the network that it has unless another is asked for.
pub fn casita_with_network(subjects: &Subjects, memory: &str) -> Result<Command> {
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

/// Has casita take notice of VMs whose monitors were killed, which removes those with `--rm`.
pub fn forget_killed(subjects: &Subjects) -> Result<()> {
    output_of(program(subjects)?.args(["ps", "--all"]))?;
    Ok(())
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
    /// The guest kernel's command line.
    pub cmdline: &'a str,
    /// What the benchmark's own init runs in the joined root; none for the image's own init.
    pub words: &'a [&'a str],
    /// The root image, read-only.
    pub root: &'a Path,
    /// The writable disk.
    pub disk: &'a Path,
    /// More of the disk's `-drive`, such as `aio=io_uring`.
    pub disk_options: &'a str,
    /// Whether the disk has an I/O thread of its own, as Casita's devices have.
    pub io_thread: bool,
    /// Whether init's first write to its stage port ends QEMU.
    pub exit_at_stage: bool,
}

impl Qemu<'_> {
    /// The smallest machine that QEMU has, with the devices that Casita has: root, disk, random
    /// numbers and serial port. No timer chip, clock chip, or interrupt controller that the guest
    /// does not need.
    pub fn command(&self, subjects: &Subjects) -> Command {
        let mut command = Command::new(QEMU_PROGRAM);
        command
            .args(["-M", "microvm,rtc=off,pit=off,pic=off"])
            // The last one for back ends of KVM that do not let this register be set.
            .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
            .args(["-smp", "1", "-m", self.memory])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-kernel"])
            .arg(&subjects.kernel)
            .arg("-append");
        if self.words.is_empty() {
            command.arg(self.cmdline);
        } else {
            command.arg(format!("{} -- {}", self.cmdline, quoted(self.words)));
            command.arg("-initrd").arg(&subjects.initrd);
            // A command that failed is no figure: see guest-init.c.
            command.args(["-device", "isa-debug-exit,iobase=0x6c4,iosize=4"]);
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

/// `words` as the kernel's command line has them: in quotes, which the kernel takes away.
fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    quoted.join(" ")
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
