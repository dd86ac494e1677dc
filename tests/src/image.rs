//! Root images and initial RAM file systems, made with the programs that people make them with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::machine;

/// What the programs below need installed, as pairs of program and package.
pub const EROFS: (&str, &str) = ("mkfs.erofs", "erofs-utils");
/// For [`squashfs`].
pub const SQUASHFS: (&str, &str) = ("mksquashfs", "squashfs-tools");
/// For [`ext4`].
pub const EXT4: (&str, &str) = ("mke2fs", "e2fsprogs");
/// For [`iso9660`].
pub const ISO9660: (&str, &str) = ("genisoimage", "genisoimage");
/// For [`initrd`].
pub const CPIO: (&str, &str) = ("cpio", "cpio");
/// For [`tree`].
pub const BUSYBOX: (&str, &str) = ("busybox", "busybox-static");

/// Applets that tests use.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "mount", "poweroff", "reboot", "sleep", "sync", "uname", "stat",
    "wc", "readlink", "grep", "test", "mkdir", "dmesg",
];

/// Fills `folder` with a small root: busybox, and some files whose names and properties an image
/// has to carry. `init` becomes `/sbin/init`.
///
/// # Errors
/// If there is no busybox, or the folder can't be filled.
pub fn tree(folder: &Path, init: &str) -> Result<()> {
    for name in ["bin", "sbin", "etc", "dev", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let busybox = machine::program("busybox").context("busybox is not installed")?;
    fs::copy(busybox, folder.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", folder.join("bin").join(applet))?;
    }
    let script = folder.join("sbin/init");
    fs::write(&script, format!("#!/bin/sh\n{init}\n"))?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    fs::write(folder.join("etc/marker"), "from the image\n")?;
    fs::write(
        folder.join("etc/a long name, with spaces, of an image's file"),
        "long\n",
    )?;
    symlink("marker", folder.join("etc/link"))?;
    let secret = folder.join("etc/secret");
    fs::write(&secret, "")?;
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o640))?;
    fs::write(folder.join("etc/large"), vec![b'x'; 3_000_000])?;
    Ok(())
}

/// Runs a program with `options`, which may stand behind the paths with most, and with some must.
fn make(program: (&str, &str), paths: [&Path; 2], options: &[&str]) -> Result<()> {
    let (name, package) = program;
    let path = machine::program(name).with_context(|| format!("{name} ({package}) is missing"))?;
    let output = Command::new(path).args(paths).args(options).output()?;
    ensure!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Makes an EROFS image of `tree`.
///
/// # Errors
/// If the program fails, here and below.
pub fn erofs(tree: &Path, image: &Path) -> Result<()> {
    make(EROFS, [image, tree], &["--quiet"])
}

/// Makes a squashfs image.
///
/// # Errors
/// If the program fails.
pub fn squashfs(tree: &Path, image: &Path) -> Result<()> {
    make(SQUASHFS, [tree, image], &["-quiet", "-no-progress"])
}

/// Makes an ISO 9660 image with Rock Ridge names, as Linux media have.
///
/// # Errors
/// If the program fails.
pub fn iso9660(tree: &Path, image: &Path) -> Result<()> {
    let options = ["-quiet", "-R"];
    make(
        ISO9660,
        [Path::new("-o"), image],
        &[&options[..], &[&tree.display().to_string()]].concat(),
    )
}

/// Makes an ext4 image.
///
/// # Errors
/// If the program fails.
pub fn ext4(tree: &Path, image: &Path) -> Result<()> {
    let tree = tree.display().to_string();
    fs::File::create(image)?.set_len(24 << 20)?;
    make(
        EXT4,
        [Path::new("-m0"), image],
        &["-q", "-F", "-t", "ext4", "-d", &tree],
    )
}

/// Makes an initial RAM file system of `tree`, with `/init` as its `/sbin/init`.
///
/// # Errors
/// If the program fails.
pub fn initrd(tree: &Path, archive: &Path) -> Result<()> {
    symlink("sbin/init", tree.join("init"))?;
    let mut names = Vec::new();
    list(tree, Path::new(""), &mut names)?;
    let mut child = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(archive)?)
        .spawn()
        .context("starting cpio")?;
    let mut stdin = child.stdin.take().context("a pipe to cpio")?;
    for name in names {
        writeln!(stdin, "{}", name.display())?;
    }
    drop(stdin);
    ensure!(child.wait()?.success(), "cpio failed");
    Ok(())
}

/// Adds the paths below `base` of what is in `base/folder`, folders before what is in them.
fn list(base: &Path, folder: &Path, names: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(base.join(folder))? {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        names.push(name.clone());
        if entry.file_type()?.is_dir() {
            list(base, &name, names)?;
        }
    }
    Ok(())
}
