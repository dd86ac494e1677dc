//! PID 1 inside the lab: from the initramfs to a copy of the machine in which the command can run.

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crate::request::Request;
use crate::stream::{self, Port};
use crate::{command, sys};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Devices whose modules Linux loads when somebody opens their node: path under /dev, major, minor.
const NODES: &[(&str, u64, u64)] = &[
    ("net/tun", 10, 200),
    ("vhost-net", 10, 238),
    ("vhost-vsock", 10, 241),
    ("loop-control", 10, 237),
    ("fuse", 10, 229),
];

/// What is mounted in the new root: source, path, type, options.
const MOUNTS: &[(&str, &str, &str, &str)] = &[
    ("proc", "proc", "proc", ""),
    ("sysfs", "sys", "sysfs", ""),
    ("devpts", "dev/pts", "devpts", "ptmxmode=0666,mode=0620"),
    ("tmpfs", "dev/shm", "tmpfs", "mode=1777"),
    ("tmpfs", "run", "tmpfs", "mode=0755"),
    ("cgroup2", "sys/fs/cgroup", "cgroup2", ""),
    ("debugfs", "sys/kernel/debug", "debugfs", ""),
    ("tracefs", "sys/kernel/tracing", "tracefs", ""),
    ("securityfs", "sys/kernel/security", "securityfs", ""),
    ("bpf", "sys/fs/bpf", "bpf", "mode=0700"),
];

/// The lab's first process. Never returns but by powering the lab off.
pub fn main() -> ExitCode {
    if let Err(error) = start() {
        // Standard error is the console here, and so the log.
        eprintln!("lab: {error}");
    }
    sys::power_off()
}

fn start() -> Result<()> {
    mount("devtmpfs", "/dev", "devtmpfs", "")?;
    load_modules(&open_modules("/modules/base")?)?;
    // KVM takes longest to load and nothing below needs it. Its files are opened before the root changes.
    let modules = open_modules("/modules/kvm")?;
    let kvm = thread::spawn(move || load_modules(&modules));
    let mut control = open_port(command::CONTROL)?;
    let mut bytes = Vec::new();
    stream::read_frame(&mut Port(&mut control), &mut bytes)?;
    let request = Request::decode(&bytes)?;
    // Set on the kernel's command line, whose words that it does not know become PID 1's environment.
    let disk = std::env::var_os("LAB_DISK").is_some();
    if disk {
        load_modules(&open_modules("/modules/disk")?)?;
    }
    let root = Path::new("/new");
    join_files(root)?;
    switch_root(root)?;
    furnish(&request)?;
    if disk {
        fs::create_dir_all("/lab-disk")?;
        mount("/dev/vda", "/lab-disk", "ext4", "")?;
    }
    kvm.join().map_err(|_| "loading KVM's modules panicked")??;
    settle_kvm()?;
    start_processors()?;
    fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)).map_err(at("/dev/kvm"))?;
    command::run(&request, control)?;
    Ok(())
}

/// Adds the path to an I/O error.
fn at(path: &str) -> impl Fn(io::Error) -> String {
    move |error| format!("{path}: {error}")
}

fn mount(source: &str, path: impl AsRef<Path>, kind: &str, options: &str) -> Result<()> {
    let path = path.as_ref();
    sys::mount_at(source, path, kind, 0, options)
        .map_err(|error| format!("mount {kind} at {}: {error}", path.display()).into())
}

/// Opens all modules in `folder`, in the order of their names.
fn open_modules(folder: &str) -> Result<Vec<(PathBuf, File)>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(at(folder))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    paths.sort();
    let open = |path: PathBuf| File::open(&path).map(|file| (path, file));
    Ok(paths.into_iter().map(open).collect::<io::Result<_>>()?)
}

fn load_modules(modules: &[(PathBuf, File)]) -> Result<(), String> {
    for (path, file) in modules {
        sys::load_module(file, c"").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Opens port `number` of the relay, as soon as the driver has found it.
///
/// # Errors
/// When it cannot be opened.
pub fn open_port(number: u32) -> io::Result<File> {
    // Named after the virtio device's place among all others, so only the end is known.
    let end = format!("p{number}");
    loop {
        for entry in fs::read_dir("/dev")? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_bytes().starts_with(b"vport") && name.as_bytes().ends_with(end.as_bytes()) {
                return OpenOptions::new().read(true).write(true).open(entry.path());
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Mounts the machine's files with a layer above them that takes all writes and lives in memory.
fn join_files(root: &Path) -> Result<()> {
    for folder in ["/lower", "/upper", "/new"] {
        fs::create_dir(folder)?;
    }
    sys::mount_at(
        "machine",
        Path::new("/lower"),
        "9p",
        sys::MS_RDONLY,
        "trans=virtio,version=9p2000.L,msize=512000,cache=loose",
    )
    .map_err(at("the machine's files over 9p"))?;
    mount("tmpfs", "/upper", "tmpfs", "size=90%,mode=0755")?;
    fs::create_dir("/upper/files")?;
    fs::create_dir("/upper/work")?;
    mount(
        "overlay",
        root,
        "overlay",
        "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work",
    )
}

/// Makes `root` the root of everything. Moving the mount, rather than chroot alone, is what lets
/// processes in the lab make user namespaces.
fn switch_root(root: &Path) -> Result<()> {
    sys::mount_at("/dev", &root.join("dev"), "", sys::MS_MOVE, "").map_err(at("move /dev"))?;
    std::env::set_current_dir(root)?;
    sys::mount_at(".", Path::new("/"), "", sys::MS_MOVE, "").map_err(at("move the root"))?;
    sys::chroot_here()?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Adds what a running machine has and its files do not show.
fn furnish(request: &Request) -> Result<()> {
    for folder in ["dev/pts", "dev/shm", "dev/net", "tmp", "run"] {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    for (source, path, kind, options) in MOUNTS {
        mount(source, path, kind, options)?;
    }
    for (name, major, minor) in NODES {
        sys::character_device(&Path::new("/dev").join(name), *major, *minor).map_err(at(name))?;
    }
    for (name, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        symlink(
            format!("/proc/self/fd{target}"),
            Path::new("/dev").join(name),
        )
        .map_err(at(name))?;
    }
    fs::write("/proc/sys/kernel/hostname", "lab").map_err(at("hostname"))?;
    sys::loopback_up().map_err(at("lo"))?;
    link_modules(Path::new(&request.modules))?;
    mount_share(Path::new(&request.share))?;
    make_runtime_folder(&request.environment)
}

/// Has KVM rewrite, before other processors run, what it rewrites of the kernel when the first machine
/// comes and the last one goes; a machine that stays keeps it from doing so again. See
/// [`start_processors`] for why that matters.
fn settle_kvm() -> Result<()> {
    let kvm = File::open("/dev/kvm").map_err(at("/dev/kvm"))?;
    Ok(sys::keep_virtual_machine(&kvm).map_err(at("/dev/kvm"))?)
}

/// Starts the processors that `maxcpus=1` left off.
///
/// QEMU before 8.1 can keep a stale translation of code that one processor rewrites while another
/// one runs it. A kernel rewrites itself most while it boots, so it boots with one.
fn start_processors() -> Result<()> {
    for entry in fs::read_dir("/sys/devices/system/cpu")? {
        let switch = entry?.path().join("online");
        if fs::read(&switch).is_ok_and(|state| state.starts_with(b"0")) {
            fs::write(&switch, "1").map_err(at(&switch.to_string_lossy()))?;
        }
    }
    Ok(())
}

/// Shows the kernel's modules where modprobe looks for them, so that the kernel loads the rest of
/// what the command needs on demand.
fn link_modules(modules: &Path) -> Result<()> {
    let Some(release) = modules.file_name() else {
        return Err("the modules' folder has no name".into());
    };
    fs::create_dir_all("/lib/modules")?;
    match symlink(modules, Path::new("/lib/modules").join(release)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

fn mount_share(share: &Path) -> Result<()> {
    fs::create_dir_all(share)?;
    // Without the loose cache: both sides see at once what the other one writes.
    mount(
        "share",
        share,
        "9p",
        "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=client",
    )
}

/// /run is fresh, so the user's folder in it, which a login would have made, is made here.
fn make_runtime_folder(environment: &[std::ffi::OsString]) -> Result<()> {
    let folder = environment
        .iter()
        .find_map(|entry| entry.as_bytes().strip_prefix(b"XDG_RUNTIME_DIR="))
        .map(|value| Path::new(OsStr::from_bytes(value)));
    if let Some(folder) = folder
        && folder.starts_with("/run")
    {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}
