//! Root images with the real `mkfs.erofs`, `mksquashfs`, `mke2fs`, `genisoimage` and busybox.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Barrier;

use rustix::fs::{CWD, FileType, Mode};

use super::*;

struct Lab {
    folder: tempfile::TempDir,
    dirs: Dirs,
}

/// `None`, and a line that says so, when a program is not there.
fn lab(test: &str, programs: &[&str]) -> Option<Lab> {
    for program in programs {
        let there = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
        if !there {
            eprintln!("SKIPPED {test}: no {program}");
            return None;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(&folder.path().join("own"));
    Some(Lab { folder, dirs })
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A small tree with one of most things.
    fn tree(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/sh"), "a shell").unwrap();
        std::fs::write(root.join("big"), vec![7; 300_000]).unwrap();
        std::fs::hard_link(root.join("big"), root.join("bin/big")).unwrap();
        symlink("bin/sh", root.join("link")).unwrap();
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        root
    }

    fn open(&self, path: &Path) -> Result<RootImage, RootfsError> {
        open(path, &self.dirs)
    }

    fn refusal(&self, name: &str) -> String {
        let said = self.open(&self.path(name)).unwrap_err().to_string();
        assert!(!said.contains('\n'), "one line: {said}");
        said
    }

    /// What lies in the cache, by suffix.
    fn cached(&self, suffix: &str) -> usize {
        std::fs::read_dir(self.dirs.cache().join("rootfs"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(suffix))
            .count()
    }

    /// Nothing but images and memos.
    fn assert_tidy(&self) {
        assert_eq!(
            self.cached(""),
            self.cached(".erofs") + self.cached(".memo")
        );
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

#[test]
fn images_of_each_type_are_known_and_cut_ones_refused() {
    let Some(lab) = lab(
        "image types",
        &["mkfs.erofs", "mksquashfs", "mke2fs", "genisoimage"],
    ) else {
        return;
    };
    let tree = lab.tree("tree");
    std::fs::remove_file(tree.join("fifo")).unwrap();
    // So that squashfs can't compress it away: what is cut off has to be content.
    let noise: Vec<u8> = (0..100_000_u32)
        .flat_map(|n| {
            n.wrapping_mul(2_654_435_761)
                .rotate_left(n % 32)
                .to_le_bytes()
        })
        .collect();
    std::fs::write(tree.join("noise"), noise).unwrap();
    let (tree, at) = (tree.as_os_str(), |name: &str| {
        lab.path(name).into_os_string()
    });
    run("mkfs.erofs", &[&at("erofs"), tree]);
    run("mksquashfs", &[tree, &at("squashfs"), "-quiet".as_ref()]);
    run(
        "mke2fs",
        &[
            "-qF".as_ref(),
            "-d".as_ref(),
            tree,
            &at("ext4"),
            "4M".as_ref(),
        ],
    );
    run(
        "genisoimage",
        &[
            "-quiet".as_ref(),
            "-R".as_ref(),
            "-o".as_ref(),
            &at("iso9660"),
            tree,
        ],
    );
    for fs in [
        FsType::Erofs,
        FsType::Squashfs,
        FsType::Ext4,
        FsType::Iso9660,
    ] {
        let path = lab.path(fs.name());
        let image = lab.open(&path).unwrap();
        assert_eq!(image.fs, fs);
        assert_eq!(image.len, path.metadata().unwrap().len());
        let flags = rustix::fs::fcntl_getfl(&image.file).unwrap();
        assert!(!flags.intersects(OFlags::RDWR | OFlags::WRONLY | OFlags::NONBLOCK));

        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(image.len * 2 / 3).unwrap();
        let said = lab.refusal(fs.name());
        assert!(said.contains("is truncated"), "{said}");
    }
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let Some(lab) = lab("refusals", &[]) else {
        return;
    };
    std::fs::write(lab.path("empty"), "").unwrap();
    std::fs::write(lab.path("text"), "hello").unwrap();
    std::fs::write(lab.path("archive"), b"\x1F\x8B\x08").unwrap();
    rustix::fs::mknodat(CWD, lab.path("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(lab.path("socket")).unwrap();
    symlink("/dev/null", lab.path("device")).unwrap();
    symlink("nowhere", lab.path("dangling")).unwrap();
    symlink("loop", lab.path("loop")).unwrap();

    for (name, said) in [
        ("none", "does not exist"),
        ("dangling", "does not exist"),
        ("empty", "is empty"),
        ("text", "is of unknown type"),
        ("archive", "is gzip data; decompress it first"),
        ("fifo", "is a FIFO"),
        ("socket", "is a socket"),
        ("device", "is a character device"),
        ("loop", "can't open the root image"),
    ] {
        let got = lab.refusal(name);
        assert!(got.contains(said), "{name}: {got}");
    }
}

#[test]
fn a_directory_is_packed_once_per_state() {
    let Some(lab) = lab("directory", &["mkfs.erofs", "fsck.erofs"]) else {
        return;
    };
    let tree = lab.tree("tree");
    let image = lab.open(&tree).unwrap();
    assert_eq!(image.fs, FsType::Erofs);
    assert!(image.len.is_multiple_of(2 << 20));
    assert_eq!(image.path.metadata().unwrap().mode() & 0o777, 0o444);
    run("fsck.erofs", &[image.path.as_os_str()]);

    let again = lab.open(&tree).unwrap();
    let inode = |image: &RootImage| image.file.metadata().unwrap().ino();
    assert_eq!(inode(&again), inode(&image));
    assert_eq!(lab.cached(".memo"), 1);

    std::fs::write(tree.join("more"), "more").unwrap();
    let changed = lab.open(&tree).unwrap();
    assert_ne!(changed.path, image.path);
    assert_eq!((lab.cached(".memo"), lab.cached(".erofs")), (2, 2));
    lab.assert_tidy();
}

#[test]
fn equal_trees_share_one_image() {
    let Some(lab) = lab("equal trees", &["mkfs.erofs", "cp"]) else {
        return;
    };
    let one = lab.tree("one");
    let two = lab.path("two");
    run("cp", &["-a".as_ref(), one.as_os_str(), two.as_os_str()]);
    let (one, two) = (lab.open(&one).unwrap(), lab.open(&two).unwrap());
    assert_eq!(one.path, two.path);
    let inode = |image: &RootImage| image.file.metadata().unwrap().ino();
    assert_eq!(inode(&one), inode(&two), "not replaced by an equal one");
    assert_eq!((lab.cached(".memo"), lab.cached(".erofs")), (2, 1));
}

#[test]
fn modification_times_are_kept() {
    let Some(lab) = lab("times", &["mkfs.erofs", "dump.erofs"]) else {
        return;
    };
    let tree = lab.tree("tree");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_hours(24);
    let file = File::open(tree.join("bin/sh")).unwrap();
    file.set_modified(old).unwrap();
    let image = lab.open(&tree).unwrap();
    let output = Command::new("dump.erofs")
        .arg("--path=/bin/sh")
        .arg(&image.path)
        .env("TZ", "UTC")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Timestamp: 1970-01-02 00:00:00"), "{said}");
}

#[test]
fn a_lost_or_cut_image_is_packed_again() {
    let Some(lab) = lab("lost image", &["mkfs.erofs"]) else {
        return;
    };
    let tree = lab.tree("tree");
    let path = lab.open(&tree).unwrap().path;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(lab.open(&tree).unwrap().path, path);

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(lab.open(&tree).unwrap().len > 0);
    lab.assert_tidy();
}

#[test]
fn many_at_once_pack_once() {
    let Some(lab) = lab("concurrent packing", &["mkfs.erofs"]) else {
        return;
    };
    let tree = lab.tree("tree");
    let barrier = Barrier::new(6);
    let inodes: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            barrier.wait();
            lab.open(&tree).unwrap().file.metadata().unwrap().ino()
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    lab.assert_tidy();
}

#[test]
fn a_change_while_packing_is_noticed_and_tried_once_more() {
    let Some(lab) = lab("changing tree", &["mkfs.erofs"]) else {
        return;
    };
    let tree = lab.tree("tree");
    let runs = std::cell::Cell::new(0);
    // Packs, and lets a file appear in the first so many runs.
    let pack = |changes: u32| {
        runs.set(0);
        pack::directory_with(&tree, &lab.dirs, &|partial, found| {
            runs.set(runs.get() + 1);
            let kept = pack::Metadata::Kept;
            pack::mkfs(&tree, partial, kept, found.newest, found.bytes)?;
            if runs.get() <= changes {
                std::fs::write(tree.join(format!("{changes}{}", runs.get())), "").unwrap();
            }
            Ok(())
        })
    };
    let said = pack(2).unwrap_err().to_string();
    assert!(said.contains("changed twice while it was packed"), "{said}");
    assert_eq!(lab.cached(""), 0, "nothing is left behind");
    let image = pack(1).unwrap();
    assert_eq!(runs.get(), 2);
    assert_eq!(lab.open(&tree).unwrap().path, image.path);
    lab.assert_tidy();
}

#[test]
fn a_cache_inside_the_directory_is_refused() {
    let Some(lab) = lab("cache inside", &[]) else {
        return;
    };
    let said = lab.refusal("");
    assert!(said.contains("XDG_CACHE_HOME"), "{said}");
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let Some(lab) = lab("leftovers", &["mkfs.erofs"]) else {
        return;
    };
    let cache = lab.dirs.cache().join("rootfs");
    std::fs::create_dir_all(cache.join("dead.stage")).unwrap();
    std::fs::write(cache.join("dead.partial"), "half an image").unwrap();
    lab.open(&lab.tree("tree")).unwrap();
    lab.assert_tidy();
}

/// Runs `work` as a user without rights to root's files; as that user's files where it is one
/// already.
#[allow(unsafe_code, reason = "setfsuid(2) has no safe wrapper")]
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                if rustix::process::geteuid().is_root() {
                    // SAFETY: changes only this thread's identity for file access, which ends
                    // with the closure; the kernel drops its file capabilities with it.
                    unsafe { libc::setfsuid(65534) };
                }
                work()
            })
            .join()
            .unwrap()
    })
}

#[test]
fn files_without_permission_are_named() {
    let Some(lab) = lab("permissions", &[]) else {
        return;
    };
    let forbid =
        |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o000)).unwrap();
    let open_up = |path: &Path| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    open_up(lab.folder.path());
    std::fs::write(lab.path("image"), "x").unwrap();
    forbid(&lab.path("image"));
    let said = as_nobody(|| lab.refusal("image"));
    assert!(
        said.contains("no permission to read the root image"),
        "{said}"
    );

    let tree = lab.tree("tree");
    std::fs::create_dir(tree.join("closed")).unwrap();
    forbid(&tree.join("closed"));
    let said = as_nobody(|| lab.refusal("tree"));
    assert!(
        said.contains("no permission to read") && said.contains("tree/closed"),
        "{said}"
    );

    open_up(&tree.join("closed"));
    for file in ["big", "bin/sh"] {
        forbid(&tree.join(file));
    }
    let error = as_nobody(|| tree::check_readable(&tree).unwrap_err());
    assert!(matches!(error, RootfsError::Unreadable(path) if path == tree.join("big")));
}

#[test]
fn the_builtin_image_is_made_once_and_holds_busybox() {
    let Some(lab) = lab("built-in image", &["busybox", "mkfs.erofs", "dump.erofs"]) else {
        return;
    };
    let first = match builtin(&lab.dirs) {
        Ok(image) => image,
        Err(error @ RootfsError::NoBusybox { .. }) => {
            eprintln!("SKIPPED built-in image: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert_eq!(first.fs, FsType::Erofs);
    lab.assert_tidy();
    let second = builtin(&lab.dirs).unwrap();
    assert_eq!(second.path, first.path);
    for path in ["/bin/busybox", "/bin/sh", "/etc/os-release", "/sbin/init"] {
        let output = Command::new("dump.erofs")
            .arg(format!("--path={path}"))
            .arg(&first.path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("Uid: 0   Gid: 0"), "{path}: {said}");
    }
    // Elsewhere the same image comes out, byte for byte.
    let other = Dirs::below(&lab.path("other"));
    assert_eq!(
        builtin(&other).unwrap().path.file_name(),
        first.path.file_name()
    );
}

/// Not a test of anything: run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_opening_images() {
    let Some(lab) = lab("measurement", &["busybox", "mkfs.erofs"]) else {
        return;
    };
    let tree = lab.tree("tree");
    for (what, open) in [
        ("built-in", &(|| builtin(&lab.dirs)) as &dyn Fn() -> _),
        ("directory of 7", &|| lab.open(&tree)),
    ] {
        drop(open().unwrap());
        let mut times: Vec<_> = (0..301)
            .map(|_| {
                let begin = std::time::Instant::now();
                let image = open().unwrap();
                let time = begin.elapsed();
                drop(image);
                time
            })
            .collect();
        times.sort();
        println!("{what}: median {:?}, p99 {:?}", times[150], times[297]);
    }
}
