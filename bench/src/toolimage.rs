//! A root image with what loads are made with: busybox, and programs of this machine with the
//! libraries that they are linked with.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::interrupt::output_of;

/// Init of the guests that measure their own disk, and of those that serve the network.
const SCRIPTS: [(&str, &[u8]); 2] = [
    ("bench", include_bytes!("../guest/guest-fio")),
    ("bench-net", include_bytes!("../guest/guest-net")),
];
/// What answers in the latter, from net-peer.c.
const NET_PEER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/net-peer"));
const FOLDERS: [&str; 11] = [
    "bin", "data", "dev", "etc", "lib64", "proc", "root", "run", "sys", "tmp", "usr/bin",
];
const APPLETS: [&str; 11] = [
    "sh", "true", "cat", "echo", "sleep", "mount", "ls", "dd", "find", "rm", "ip",
];

/// Makes an EROFS image with `programs` at `image`; `folder` is for the tree of files on the way.
///
/// # Errors
/// If a program is not installed, or the image can't be made.
pub fn make(image: &Path, programs: &[&str], folder: &Path) -> Result<()> {
    let tree = tempfile::tempdir_in(folder).context("no folder for the image's files")?;
    let tree = tree.path();
    for name in FOLDERS {
        fs::create_dir_all(tree.join(name))?;
    }
    copy(&find("busybox")?, &tree.join("bin/busybox"))?;
    for name in APPLETS {
        symlink("busybox", tree.join("bin").join(name))?;
    }
    for (name, bytes) in SCRIPTS.into_iter().chain([("usr/bin/net-peer", NET_PEER)]) {
        fs::write(tree.join(name), bytes)?;
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let mut libraries = BTreeSet::new();
    for name in programs {
        let program = find(name)?;
        copy(&program, &tree.join("usr/bin").join(name))?;
        libraries.extend(libraries_of(&program)?);
    }
    for library in libraries {
        // The loader has a path of its own; the others are found by it in their folders.
        let to = tree.join(library.strip_prefix("/").unwrap_or(&library));
        copy(&library, &to)?;
    }
    let new = image.with_extension("new");
    let mut command = Command::new("mkfs.erofs");
    command
        .args(["-T", "0", "--all-root", "-E", "noinline_data"])
        .arg(&new)
        .arg(tree)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    output_of(&mut command).context("the image can't be made; it takes erofs-utils")?;
    // As casita makes its own, so that it can be memory of the guest's.
    let file = fs::File::options().write(true).open(&new)?;
    file.set_len(file.metadata()?.len().next_multiple_of(2 << 20))?;
    fs::rename(&new, image).with_context(|| format!("writing {}", image.display()))
}

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file());
    let Some(path) = found else {
        bail!(
            "{program} is not installed: sudo apt install {}",
            package(program)
        );
    };
    Ok(path)
}

/// Debian's.
fn package(program: &str) -> &str {
    match program {
        "busybox" => "busybox-static",
        other => other,
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = output_of(Command::new("ldd").arg(program))?;
    Ok(parse_ldd(&String::from_utf8_lossy(&output)))
}

/// The paths in lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_libraries_are_read_and_the_kernels_own_is_left_out() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibaio.so.1 => /lib/x86_64-linux-gnu/libaio.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let wanted = [
            "/lib/x86_64-linux-gnu/libaio.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse_ldd(text), wanted.map(PathBuf::from));
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn a_program_that_is_missing_is_told_with_its_package() {
        let place = tempfile::tempdir().unwrap();
        let error = make(
            &place.path().join("i"),
            &["casita-no-such-program"],
            place.path(),
        );
        let error = format!("{:#}", error.unwrap_err());
        assert!(
            error.contains("casita-no-such-program is not installed"),
            "{error}"
        );
    }
}
