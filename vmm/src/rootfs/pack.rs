//! Packing a directory into an EROFS image, once.
//!
//! `CACHE/rootfs/SHA256.erofs` are the images, named by their content, so that equal trees share
//! one file and with it the host's page cache. `CACHE/rootfs/KEY.memo` are symbolic links from a
//! directory's fingerprint to its image: an unchanged directory costs a walk.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::{RootImage, RootfsError, open_image, tree};
use crate::dirs::Dirs;
use crate::progress::{Bytes, Progress};
use crate::staging::{self, Partial};

/// Raised whenever the same tree has to become another image.
const RECIPE: &str = "casita root image 1";
/// A pmem device's length is a multiple of this, so images are padded to it.
const PADDING: u64 = 2 << 20;
/// Makes the image repeatable: nothing needs to tell two of them apart by it.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// How files' owners and times get into the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    /// As in the tree. The image's own time is that of the newest file.
    Kept,
    /// All owned by root, all with this time in seconds since 1970.
    Fixed {
        /// The time.
        mtime: u64,
    },
}

/// The folder with the images.
pub(super) fn folder(dirs: &Dirs) -> PathBuf {
    dirs.cache().join("rootfs")
}

/// Opens the image of a directory, and makes it where there is none of its present state.
pub(super) fn directory(path: &Path, dirs: &Dirs) -> Result<RootImage, RootfsError> {
    directory_with(path, dirs, &|partial, tree| {
        mkfs(path, partial, Metadata::Kept, tree.newest, tree.bytes)
    })
}

/// How a tree gets into a partial file.
type Pack<'a> = dyn Fn(&Partial, &tree::Tree) -> Result<(), RootfsError> + 'a;

pub(super) fn directory_with(
    path: &Path,
    dirs: &Dirs,
    pack: &Pack<'_>,
) -> Result<RootImage, RootfsError> {
    let folder = folder(dirs);
    let mut before = tree::look(path)?;
    if let Some(image) = remembered(&folder, &key(&before)) {
        return Ok(image);
    }
    Dirs::ensure(&folder)?;
    refuse_cache_inside(path, &folder)?;
    tree::check_readable(path)?;
    staging::sweep(&folder);
    for _ in 0..2 {
        let key = key(&before);
        let partial = lock(&folder, &key, path)?;
        // Another process may have packed it while this one waited for the lock.
        if let Some(image) = remembered(&folder, &key) {
            return Ok(image);
        }
        let packed = pack(&partial, &before);
        // It may have failed because a file vanished; that is a change and not an error yet.
        let after = tree::look(path)?;
        if after.fingerprint == before.fingerprint {
            packed?;
            return publish(&folder, partial, &key);
        }
        before = after;
    }
    Err(RootfsError::Changing(path.to_owned()))
}

fn key(tree: &tree::Tree) -> String {
    let mut digest = Sha256::new();
    digest.update(RECIPE);
    digest.update(tree.fingerprint);
    staging::hex(&digest.finalize())
}

/// The image that was made for a key, if it is still there and sound.
pub(super) fn remembered(folder: &Path, key: &str) -> Option<RootImage> {
    let name = std::fs::read_link(memo(folder, key)).ok()?;
    open_image(&folder.join(name)).ok()
}

fn memo(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.memo"))
}

/// Takes the lock under which one process makes the image for a key.
pub(super) fn lock(folder: &Path, key: &str, of: &Path) -> Result<Partial, RootfsError> {
    let _progress = Progress::start(format!("waiting for the image of {}", of.display()));
    Partial::lock(folder, key).map_err(RootfsError::io("lock an image in", folder))
}

fn refuse_cache_inside(path: &Path, folder: &Path) -> Result<(), RootfsError> {
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(RootfsError::io("look at", path))
    };
    if real(folder)?.starts_with(real(path)?) {
        return Err(RootfsError::CacheInside {
            path: path.to_owned(),
            cache: folder.to_owned(),
        });
    }
    Ok(())
}

/// Runs `mkfs.erofs` into the partial file and pads the result.
pub(super) fn mkfs(
    path: &Path,
    partial: &Partial,
    metadata: Metadata,
    newest: u64,
    bytes: u64,
) -> Result<(), RootfsError> {
    let io = || RootfsError::io("write", partial.path());
    let lock = partial.file().try_clone().map_err(io())?;
    let grown = partial.file().try_clone().map_err(io())?;
    let what = match metadata {
        Metadata::Kept => path.display().to_string(),
        // The path is where it was put together.
        Metadata::Fixed { .. } => "the built-in root".to_owned(),
    };
    let _progress = Progress::with_bytes(format!("packing {what}"), move || Bytes {
        done: grown.metadata().map_or(0, |found| found.len().min(bytes)),
        total: Some(bytes),
    });
    let mut command = Command::new("mkfs.erofs");
    // Neither compressed nor inlined, so that guests can map the data in place (DAX).
    command.args(["--quiet", "-E", "noinline_data", "-U", UUID]);
    match metadata {
        // Clamps times to this and uses it as the image's own; no file is newer.
        Metadata::Kept => command.env("SOURCE_DATE_EPOCH", newest.to_string()),
        Metadata::Fixed { mtime } => command
            .env_remove("SOURCE_DATE_EPOCH")
            .arg("--all-root")
            .arg(format!("-T{mtime}")),
    };
    let output = command
        .arg(partial.path())
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(lock)
        .stdout(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RootfsError::NoMkfs,
            _ => RootfsError::io("run mkfs.erofs for", path)(error),
        })?;
    if !output.status.success() {
        return Err(RootfsError::Mkfs {
            path: path.to_owned(),
            message: first_complaint(&output.stderr).unwrap_or_else(|| output.status.to_string()),
        });
    }
    let len = partial.file().metadata().map_err(io())?.len();
    partial
        .file()
        .set_len(len.next_multiple_of(PADDING))
        .map_err(io())
}

/// The first line that is an error (`<E> erofs: ...`), else the last of any kind.
fn first_complaint(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines
        .clone()
        .find_map(|line| line.split_once("<E> erofs: ").map(|(_, what)| what));
    error.or_else(|| lines.next_back()).map(str::to_owned)
}

/// Gives the image its name and remembers it under `key`.
pub(super) fn publish(
    folder: &Path,
    partial: Partial,
    key: &str,
) -> Result<RootImage, RootfsError> {
    let digest = digest(partial.file()).map_err(RootfsError::io("read", partial.path()))?;
    let name = format!("{digest}.erofs");
    let path = folder.join(&name);
    // The one that is there may be in a running machine: replacing it by an equal one would make
    // the host hold both.
    let len = partial.file().metadata().map_or(0, |found| found.len());
    let image = match open_image(&path) {
        Ok(image) if image.len == len => image,
        _ => {
            partial
                .file()
                .set_permissions(PermissionsExt::from_mode(0o444))
                .and_then(|()| partial.publish(&path))
                .map_err(RootfsError::io("write", &path))?;
            open_image(&path)?
        }
    };
    // Under the key's lock or over an equal link, so the name in between is nobody else's.
    let link = folder.join(format!("{key}.{}.link", std::process::id()));
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&name, &link)
        .and_then(|()| std::fs::rename(&link, memo(folder, key)))
        .map_err(RootfsError::io("write", &link))?;
    Ok(image)
}

fn digest(mut file: &File) -> io::Result<String> {
    let _progress = Progress::start("hashing the image");
    file.rewind()?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(staging::hex(&digest.finalize())),
            got => digest.update(&buffer[..got]),
        }
    }
}
