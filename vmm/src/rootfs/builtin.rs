//! The small built-in image: the host's static busybox and the few files around it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::pack::{self, Metadata};
use super::{RootImage, RootfsError};
use crate::dirs::Dirs;
use crate::staging;

/// Raised whenever the tree below changes.
const RECIPE: &str = "casita built-in image 1";
/// Overrides where busybox is looked for.
const VARIABLE: &str = "CASITA_BUSYBOX";
const PLACES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

const FOLDERS: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hostname", "casita\n"),
    (
        "etc/hosts",
        "127.0.0.1 localhost casita\n::1 localhost ip6-localhost\n",
    ),
    (
        "etc/profile",
        "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n",
    ),
    (
        "etc/os-release",
        "NAME=\"Casita\"\nID=casita\nPRETTY_NAME=\"Casita's built-in image (busybox)\"\n\
         VARIANT=\"Built-in image\"\nVARIANT_ID=builtin\n",
    ),
    // For --boot plain, where busybox's own init runs.
    (
        "etc/inittab",
        "::sysinit:/bin/mount -t proc proc /proc\n::sysinit:/bin/mount -t sysfs sysfs /sys\n\
         ::sysinit:/bin/mount -t tmpfs tmpfs /run\n::sysinit:/bin/mount -t tmpfs tmpfs /tmp\n\
         ::respawn:-/bin/sh\n::ctrlaltdel:/sbin/reboot\n::shutdown:/bin/umount -a -r\n",
    ),
];

/// Opens the built-in image; the first time, or with another busybox, it is made.
///
/// # Errors
/// [`RootfsError`]; [`RootfsError::NoBusybox`] when the host has no static busybox.
pub fn builtin(dirs: &Dirs) -> Result<RootImage, RootfsError> {
    let given = std::env::var_os(VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let candidates = given.map_or_else(|| PLACES.map(PathBuf::from).into(), |path| vec![path]);
    from_candidates(&candidates, dirs)
}

fn from_candidates(candidates: &[PathBuf], dirs: &Dirs) -> Result<RootImage, RootfsError> {
    let folder = pack::folder(dirs);
    let mut problem = None;
    for busybox in candidates {
        let Ok(found) = busybox.metadata() else {
            continue;
        };
        let key = key(busybox, &found);
        if let Some(image) = pack::remembered(&folder, &key) {
            return Ok(image);
        }
        match check_static(busybox) {
            Ok(()) => return make(busybox, &found, &key, &folder),
            Err(why) => {
                problem.get_or_insert(format!("{} {why}", busybox.display()));
            }
        }
    }
    Err(RootfsError::NoBusybox {
        problem: problem.unwrap_or_else(|| match candidates {
            [only] => format!("there is no {}", only.display()),
            _ => "there is no busybox".into(),
        }),
    })
}

/// A busybox that was replaced has another inode or ctime: as good as its content, and far cheaper.
fn key(busybox: &Path, found: &std::fs::Metadata) -> String {
    let text = format!(
        "{RECIPE}\n{}\n{} {} {}\n{} {} {} {}\n",
        busybox.display(),
        found.len(),
        found.dev(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    );
    staging::hex(&Sha256::digest(text))
}

fn make(
    busybox: &Path,
    found: &std::fs::Metadata,
    key: &str,
    folder: &Path,
) -> Result<RootImage, RootfsError> {
    Dirs::ensure(folder)?;
    staging::sweep(folder);
    let partial = pack::lock(folder, key, Path::new("the built-in root"))?;
    if let Some(image) = pack::remembered(folder, key) {
        return Ok(image);
    }
    let stage = Stage(staging::stage_beside(partial.path()));
    // Left by a process that was killed, if at all; the lock says that it is not in use.
    let _ = std::fs::remove_dir_all(&stage.0);
    let applets = applets(busybox)?;
    populate(&stage.0, busybox, &applets).map_err(RootfsError::io("write", &stage.0))?;
    let mtime = found.mtime().try_into().unwrap_or(0);
    pack::mkfs(
        &stage.0,
        &partial,
        Metadata::Fixed { mtime },
        mtime,
        found.len(),
    )?;
    pack::publish(folder, partial, key)
}

/// The tree that is packed; removed on drop.
struct Stage(PathBuf);

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The applets' paths below the root, such as `bin/ls`, as busybox itself would install them.
fn applets(busybox: &Path) -> Result<Vec<PathBuf>, RootfsError> {
    let problem = |why: String| RootfsError::NoBusybox {
        problem: format!("{} {why}", busybox.display()),
    };
    let output = Command::new(busybox)
        .arg("--list-full")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| problem(format!("does not run: {error}")))?;
    let listed: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .filter(|path| {
            let plain = path
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            plain && path.components().count() > 0 && path != Path::new("bin/busybox")
        })
        .collect();
    if !output.status.success() || !listed.iter().any(|path| path.ends_with("sh")) {
        return Err(problem("does not list its applets".into()));
    }
    Ok(listed)
}

fn populate(stage: &Path, busybox: &Path, applets: &[PathBuf]) -> io::Result<()> {
    let folder = |path: &Path, mode: u32| {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        // Whatever the umask is.
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
    };
    folder(stage, 0o755)?;
    for (name, mode) in FOLDERS {
        folder(&stage.join(name), *mode)?;
    }
    for (name, text) in FILES {
        let path = stage.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
    }
    let copy = stage.join("bin/busybox");
    std::fs::copy(busybox, &copy)?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    for applet in applets {
        let path = stage.join(applet);
        if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
            folder(parent, 0o755)?;
        }
        let up = "../".repeat(applet.components().count() - 1);
        let target = match applet.parent() {
            Some(parent) if parent == Path::new("bin") => "busybox".to_owned(),
            _ => format!("{up}bin/busybox"),
        };
        match symlink(target, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

/// Whether a file is a program for this machine's architecture that asks for no loader (ELF-64,
/// no PT_INTERP). Answers what it is instead, to follow its name.
fn check_static(path: &Path) -> Result<(), String> {
    const EM_X86_64: [u8; 2] = [62, 0];
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    const MAX_HEADERS: u64 = 64;
    let unreadable = |error: io::Error| format!("can't be read: {error}");
    let file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("is not a regular file".into());
    }
    let mut head = [0; 64];
    let got = (&file).read(&mut head).map_err(unreadable)?;
    if got < head.len() || !head.starts_with(b"\x7FELF\x02\x01") || head[18..20] != EM_X86_64 {
        return Err("is not an x86-64 program".into());
    }
    let table = u64::from_le_bytes(head[32..40].try_into().unwrap_or_default());
    let size = u64::from(u16::from_le_bytes([head[54], head[55]]));
    let count = u64::from(u16::from_le_bytes([head[56], head[57]]));
    for index in 0..count.min(MAX_HEADERS) {
        let mut kind = [0; 4];
        let at = table.saturating_add(index * size);
        file.read_exact_at(&mut kind, at).map_err(unreadable)?;
        if kind == PT_INTERP {
            return Err("is dynamically linked".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_need_a_loader_are_refused() {
        let dynamic = check_static(Path::new("/proc/self/exe"));
        assert_eq!(dynamic, Err("is dynamically linked".into()));
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), "#!/bin/sh\n").unwrap();
        assert_eq!(
            check_static(script.path()),
            Err("is not an x86-64 program".into())
        );
        assert!(check_static(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn without_a_static_busybox_it_says_what_to_install() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(dir.path());
        let none = from_candidates(&[dir.path().join("busybox")], &dirs).unwrap_err();
        assert!(
            none.to_string().contains("apt install busybox-static"),
            "{none}"
        );
        let this = std::env::current_exe().unwrap();
        let dynamic = from_candidates(&[this], &dirs).unwrap_err().to_string();
        assert!(dynamic.contains("is dynamically linked"), "{dynamic}");
        assert!(dynamic.contains("apt install busybox-static"), "{dynamic}");
    }

    #[test]
    fn links_lead_to_busybox_from_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let stage = dir.path().join("stage");
        let busybox = dir.path().join("busybox");
        std::fs::write(&busybox, "program").unwrap();
        let applets = ["bin/sh", "sbin/init", "usr/bin/env", "linuxrc"].map(PathBuf::from);
        populate(&stage, &busybox, &applets).unwrap();
        for applet in applets {
            let content = std::fs::read(stage.join(&applet)).unwrap();
            assert_eq!(content, b"program", "{}", applet.display());
        }
        let mode = |name: &str| stage.join(name).metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode("tmp"), 0o1777);
        assert_eq!(mode("etc/passwd"), 0o644);
    }
}
