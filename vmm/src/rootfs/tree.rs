//! A directory tree's fingerprint: a digest of its metadata, which changes whenever a file does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::RootfsError;
use crate::disk::open_regular;

/// What a walk over a tree found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    /// Digest of path, type, mode, owner, size, times, inode, device numbers and link target of
    /// everything in it. Content is not read: no file changes without its ctime.
    pub fingerprint: [u8; 32],
    /// The newest modification time, in seconds since 1970, and not below 0.
    pub newest: u64,
    /// The regular files' length together, in bytes.
    pub bytes: u64,
}

/// File systems of the kernel's own, whose files have no content that could be packed
/// (include/uapi/linux/magic.h). A root directory in use as a chroot often has some mounted.
const KERNEL_FILE_SYSTEMS: &[(u32, &str)] = &[
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x1cd1, "devpts"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676C, "pstore"),
    (0x6265_6570, "configfs"),
];

/// Walks the tree once.
pub(super) fn look(root: &Path) -> Result<Tree, RootfsError> {
    let mut digest = Sha256::new();
    let mut tree = Tree {
        fingerprint: [0; 32],
        newest: 0,
        bytes: 0,
    };
    walk(root, &mut |name, path, found| {
        tree.newest = tree.newest.max(found.mtime().try_into().unwrap_or(0));
        if found.is_file() {
            tree.bytes = tree.bytes.saturating_add(found.len());
        }
        let target = if found.is_symlink() {
            // One that is gone again shows in its directory's times.
            std::fs::read_link(path).unwrap_or_default()
        } else {
            PathBuf::new()
        };
        // Lengths first, so that no two trees give the same bytes.
        for text in [name.as_os_str().as_bytes(), target.as_os_str().as_bytes()] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
        for number in [found.mode(), found.uid(), found.gid()] {
            digest.update(number.to_le_bytes());
        }
        for number in [found.len(), found.ino(), found.dev(), found.rdev()] {
            digest.update(number.to_le_bytes());
        }
        for number in [
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec(),
        ] {
            digest.update(number.to_le_bytes());
        }
        Ok(())
    })?;
    tree.fingerprint = digest.finalize().into();
    Ok(tree)
}

/// Finds the first regular file, in order, that may not be read.
pub(super) fn check_readable(root: &Path) -> Result<(), RootfsError> {
    walk(root, &mut |_, path, found| {
        // Asking access(2) would leave out what else can deny it, such as a security module.
        match found
            .is_file()
            .then(|| open_regular(path, false, OFlags::NOFOLLOW))
        {
            Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(RootfsError::Unreadable(path.to_owned()))
            }
            _ => Ok(()),
        }
    })
}

type Visit<'a> = dyn FnMut(&Path, &Path, &std::fs::Metadata) -> Result<(), RootfsError> + 'a;

/// Calls `visit` with the path below `root`, the full path and the metadata of everything from
/// `root` on, directories before what is in them, siblings in the order of their names' bytes.
/// Does not follow symbolic links. What vanishes meanwhile is left out.
fn walk(root: &Path, visit: &mut Visit<'_>) -> Result<(), RootfsError> {
    let found = root
        .metadata()
        .map_err(|error| failed("look at", root, error))?;
    visit(Path::new(""), root, &found)?;
    let mut pending = vec![(PathBuf::new(), found.dev())];
    while let Some((below, device)) = pending.pop() {
        let folder = root.join(&below);
        let entries = match sorted(&folder) {
            Ok(entries) => entries,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("read", &folder, error)),
        };
        let mut folders = Vec::new();
        for (name, found) in entries {
            let (name, path) = (below.join(&name), folder.join(&name));
            visit(&name, &path, &found)?;
            if found.is_dir() {
                if found.dev() != device {
                    refuse_kernel_mount(&path)?;
                }
                folders.push((name, found.dev()));
            }
        }
        pending.extend(folders.into_iter().rev());
    }
    Ok(())
}

fn sorted(folder: &Path) -> io::Result<BTreeMap<OsString, std::fs::Metadata>> {
    let mut entries = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(found) => {
                entries.insert(entry.file_name(), found);
            }
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

fn refuse_kernel_mount(path: &Path) -> Result<(), RootfsError> {
    let Ok(found) = rustix::fs::statfs(path) else {
        return Ok(());
    };
    match KERNEL_FILE_SYSTEMS
        .iter()
        .find(|(magic, _)| i64::from(*magic) == found.f_type)
    {
        Some((_, kind)) => Err(RootfsError::Mounted {
            path: path.to_owned(),
            kind,
        }),
        None => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> RootfsError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return RootfsError::Unreadable(path.to_owned());
    }
    RootfsError::io(action, path)(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn every_kind_of_change_shows() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/file"), "one").unwrap();
        symlink("target", at("link")).unwrap();
        let look = || look(dir.path()).unwrap();
        let mut last = look();
        assert_eq!(last, look(), "nothing changed");
        assert_eq!(last.bytes, 3);

        let changes: [(&str, &dyn Fn()); 6] = [
            ("same size", &|| {
                std::fs::write(at("sub/file"), "two").unwrap();
            }),
            ("new file", &|| std::fs::write(at("new"), "").unwrap()),
            ("removed", &|| std::fs::remove_file(at("new")).unwrap()),
            ("mode", &|| {
                let mode = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(at("sub/file"), mode).unwrap();
            }),
            ("link", &|| {
                std::fs::remove_file(at("link")).unwrap();
                symlink("other", at("link")).unwrap();
            }),
            ("moved", &|| {
                std::fs::rename(at("sub"), at("bus")).unwrap();
            }),
        ];
        for (what, change) in changes {
            // The kernel's clock for files is coarse: touch until it has moved on.
            loop {
                change();
                if look().fingerprint != last.fingerprint || what == "moved" {
                    break;
                }
            }
            assert_ne!(look().fingerprint, last.fingerprint, "{what}");
            last = look();
        }
    }

    #[test]
    fn a_mounted_proc_is_named() {
        // The only directory with one that every machine has.
        let error = walk(Path::new("/"), &mut |_, _, _| Ok(())).unwrap_err();
        assert!(
            matches!(
                error,
                RootfsError::Mounted { .. } | RootfsError::Unreadable(_)
            ),
            "{error}"
        );
    }
}
