//! Disks with the real `mke2fs`, `e2fsck` and `blkid`.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use rustix::fs::FlockOperation;

use super::file::holder;
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
    let dirs = Dirs::below(folder.path());
    Some(Lab { folder, dirs })
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, size: Option<u64>) -> DiskSpec {
        DiskSpec::File {
            path: self.path(name),
            size,
        }
    }

    fn open(&self, spec: &DiskSpec) -> Result<Disk, DiskError> {
        open(spec, Expect::Ext4, &self.dirs)
    }

    fn refusal(&self, spec: &DiskSpec) -> String {
        self.open(spec).unwrap_err().to_string()
    }
}

fn named(name: &str, size: Option<u64>) -> DiskSpec {
    DiskSpec::Named {
        name: name.into(),
        size,
    }
}

/// Closes a disk. Unlocks it by hand, as a process that another test forks at this moment can
/// have a copy of the descriptor until it executes its program.
#[allow(clippy::needless_pass_by_value, reason = "it closes the disk")]
fn close(disk: Disk) {
    rustix::fs::flock(&disk.file, FlockOperation::Unlock).unwrap();
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

fn fsck(path: &str) {
    let (clean, said) = run("e2fsck", &["-fn", path]);
    assert!(clean, "{said}");
    // It would also offer to mend what it does not count as an error.
    assert!(!said.contains("? no"), "{said}");
}

fn uuid(path: &str) -> String {
    let (known, said) = run("blkid", &["-p", "-s", "UUID", "-o", "value", path]);
    assert!(known, "{said}");
    said.trim().to_owned()
}

fn descriptor(disk: &Disk) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), raw(&disk.file))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_new_file_goes_again_unless_its_machine_was_made() {
    let test = "a_new_file_goes_again_unless_its_machine_was_made";
    let Some(lab) = lab(test, &["mke2fs"]) else {
        return;
    };
    let disk = lab.open(&lab.file("d.raw", Some(MIN_SIZE))).unwrap();
    drop(NewFile::of(&disk));
    assert!(!disk.path.exists());
    let disk = lab.open(&lab.file("d.raw", Some(MIN_SIZE))).unwrap();
    NewFile::of(&disk).keep();
    assert!(disk.path.exists());
    close(disk);
    let found = lab.open(&lab.file("d.raw", None)).unwrap();
    drop(NewFile::of(&found));
    assert!(found.path.exists(), "it was there before");
}

#[test]
fn a_disk_for_the_images_own_init_may_hold_anything() {
    let Some(lab) = lab("a_disk_for_the_images_own_init_may_hold_anything", &[]) else {
        return;
    };
    // A file for each: what locks the first one may live on in a process that another test forks.
    for name in ["refused.raw", "taken.raw"] {
        std::fs::write(lab.path(name), vec![0x55; 1 << 20]).unwrap();
    }
    let refused = lab.open(&lab.file("refused.raw", None));
    assert!(matches!(refused, Err(DiskError::Foreign(_))));
    let taken = open(&lab.file("taken.raw", None), Expect::Anything, &lab.dirs);
    assert!(!taken.unwrap().fresh);
}

#[test]
fn temporary_disks_are_sound_distinct_and_nameless() {
    let Some(lab) = lab("temporary disks", &["mke2fs", "e2fsck", "blkid"]) else {
        return;
    };
    let mut uuids = BTreeSet::new();
    for size in [16 << 20, 200 << 20, 2 << 30, 2 << 30, (20 << 30) + 4096] {
        let disk = lab.open(&DiskSpec::Temporary { size }).unwrap();
        assert!(disk.fresh);
        assert_eq!(disk.len, size);
        assert_eq!(disk.file.metadata().unwrap().len(), size);
        assert_eq!(disk.file.metadata().unwrap().nlink(), 0);
        let path = descriptor(&disk);
        fsck(&path);
        uuids.insert(uuid(&path));
        assert!(
            disk.file.metadata().unwrap().blocks() * 512 < 1 << 20,
            "sparse"
        );
    }
    assert_eq!(uuids.len(), 5, "each has its own: {uuids:?}");
    assert!(files_below(&lab.dirs.data()).is_empty());
}

#[test]
fn a_temporary_disk_has_no_journal_and_a_kept_one_has() {
    let Some(lab) = lab("journals", &["mke2fs", "dumpe2fs"]) else {
        return;
    };
    let features = |disk: &Disk| run("dumpe2fs", &["-h", &descriptor(disk)]).1;
    let size = 256 << 20;
    let temporary = features(&lab.open(&DiskSpec::Temporary { size }).unwrap());
    let kept = features(&lab.open(&named("a", Some(size))).unwrap());
    assert!(temporary.contains("metadata_csum_seed"), "{temporary}");
    assert!(!temporary.contains("has_journal"), "{temporary}");
    assert!(kept.contains("has_journal"), "{kept}");
}

#[test]
fn guests_need_not_zero_the_inode_tables() {
    let Some(lab) = lab("inode tables", &["mke2fs", "dumpe2fs"]) else {
        return;
    };
    let disk = lab.open(&DiskSpec::Temporary { size: 1 << 30 }).unwrap();
    let (_, said) = run("dumpe2fs", &[&descriptor(&disk)]);
    let groups: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("Group ") && line.contains("(Blocks "))
        .collect();
    assert_eq!(groups.len(), 8);
    assert!(
        groups.iter().all(|group| group.contains("ITABLE_ZEROED")),
        "{groups:?}"
    );
}

#[test]
fn a_named_disk_is_made_once_and_kept() {
    let Some(lab) = lab("named disk", &["mke2fs", "e2fsck"]) else {
        return;
    };
    let disk = lab.open(&named("web.1", None)).unwrap();
    assert!(disk.fresh);
    assert_eq!(disk.len, DEFAULT_SIZE);
    assert_eq!(disk.path, lab.dirs.data().join("disks/web.1.raw"));
    fsck(disk.path.to_str().unwrap());
    let first = uuid(disk.path.to_str().unwrap());
    close(disk);
    let again = lab.open(&named("web.1", Some(DEFAULT_SIZE))).unwrap();
    assert!(!again.fresh);
    assert_eq!(uuid(again.path.to_str().unwrap()), first);
    assert_eq!(files_below(&lab.dirs.data()), [again.path]);
    assert!(lab.refusal(&named("../x", None)).contains("is not a name"));
}

#[test]
fn the_backup_superblock_has_the_new_identity_too() {
    let Some(lab) = lab("backup superblock", &["mke2fs"]) else {
        return;
    };
    let disk = lab.open(&named("a", None)).unwrap();
    let uuid_at = |offset: u64| {
        let mut uuid = [0; 16];
        disk.file.read_exact_at(&mut uuid, offset + 0x68).unwrap();
        uuid
    };
    assert_eq!(uuid_at(1024), uuid_at(32768 * 4096));
    assert_ne!(uuid_at(1024), [0; 16]);
}

#[test]
fn an_open_disk_is_refused_with_its_holder() {
    let Some(lab) = lab("lock", &["mke2fs"]) else {
        return;
    };
    let size = Some(MIN_SIZE);
    let disk = lab.open(&lab.file("d.raw", size)).unwrap();
    let said = lab.refusal(&lab.file("d.raw", None));
    assert!(said.contains("in use by another VM"), "{said}");
    if std::fs::read_to_string("/proc/locks").is_ok_and(|locks| !locks.is_empty()) {
        assert!(
            said.contains(&format!("(pid {})", std::process::id())),
            "{said}"
        );
    }
    close(disk);
    assert!(!lab.open(&lab.file("d.raw", None)).unwrap().fresh);
}

#[test]
fn of_many_at_once_one_gets_a_new_disk_and_the_template_is_made_once() {
    let Some(lab) = lab("concurrent opens", &["mke2fs"]) else {
        return;
    };
    let spec = named("shared", Some(64 << 20));
    let barrier = std::sync::Barrier::new(8);
    let results: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            barrier.wait();
            lab.open(&spec)
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(good.len(), 1);
    assert!(
        bad.iter()
            .all(|error| matches!(error, Err(DiskError::InUse { .. }))),
        "{bad:?}"
    );
    let cached = files_below(&lab.dirs.cache());
    assert_eq!(cached.len(), 1, "{cached:?}");
    assert_eq!(files_below(&lab.dirs.data()).len(), 1);
}

#[test]
fn a_damaged_template_is_made_again() {
    let Some(lab) = lab("damaged template", &["mke2fs", "e2fsck"]) else {
        return;
    };
    let spec = DiskSpec::Temporary { size: 64 << 20 };
    drop(lab.open(&spec).unwrap());
    let cached = files_below(&lab.dirs.cache());
    let [template] = cached.as_slice() else {
        panic!("one template: {cached:?}");
    };
    let good = std::fs::read(template).unwrap();
    for damage in [&good[..100], b"", &[0; 5000]] {
        std::fs::write(template, damage).unwrap();
        fsck(&descriptor(&lab.open(&spec).unwrap()));
    }
}

#[test]
fn an_all_zero_file_is_formatted_and_a_foreign_one_left_alone() {
    let Some(lab) = lab("existing files", &["mke2fs", "e2fsck"]) else {
        return;
    };
    // An odd number of sectors: the file system takes the whole blocks.
    let len = (20 << 20) + 512;
    std::fs::write(lab.path("zero"), vec![0; len]).unwrap();
    let disk = lab.open(&lab.file("zero", None)).unwrap();
    assert!(disk.fresh);
    assert_eq!(disk.len, len as u64);
    fsck(lab.path("zero").to_str().unwrap());
    close(disk);
    assert!(!lab.open(&lab.file("zero", None)).unwrap().fresh);

    let foreign = |name: &str, at: usize, bytes: &[u8]| {
        let mut content = vec![0; MIN_SIZE as usize];
        content[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(lab.path(name), &content).unwrap();
        let said = lab.refusal(&lab.file(name, None));
        assert!(said.contains("not an ext4 file system"), "{said}");
        assert!(
            std::fs::read(lab.path(name)).unwrap() == content,
            "untouched"
        );
    };
    // What a guest could have written to have it taken for a qcow2 with a backing file.
    foreign("qcow2", 0, b"QFI\xFB\0\0\0\x02");
    foreign("end", MIN_SIZE as usize - 1, b"x");
}

#[test]
fn a_disk_smaller_than_its_file_system_is_refused() {
    let Some(lab) = lab("smaller disk", &["mke2fs"]) else {
        return;
    };
    close(lab.open(&lab.file("d", Some(64 << 20))).unwrap());
    let file = OpenOptions::new().write(true).open(lab.path("d")).unwrap();
    file.set_len(63 << 20).unwrap();
    let said = lab.refusal(&lab.file("d", None));
    assert!(said.contains("smaller than its file system"), "{said}");
    assert!(said.contains("truncate -s 67108864"), "{said}");
}

#[test]
fn wrong_sizes_and_kinds_of_files_are_refused() {
    let Some(lab) = lab("refusals", &[]) else {
        return;
    };
    let refusal = |name: &str, size| lab.refusal(&lab.file(name, size));
    std::fs::write(lab.path("odd"), [0; 1000]).unwrap();
    std::fs::write(lab.path("empty"), []).unwrap();
    std::fs::write(lab.path("small"), [0; 4096]).unwrap();
    std::fs::create_dir(lab.path("dir")).unwrap();
    rustix::fs::mknodat(
        CWD,
        lab.path("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(lab.path("socket")).unwrap();
    symlink(lab.path("nowhere"), lab.path("dangling")).unwrap();

    assert!(refusal("none", None).contains("does not exist"));
    assert!(refusal("odd", None).contains("512-byte sectors"));
    assert!(refusal("empty", None).contains("needs at least 16 MiB"));
    assert!(refusal("small", None).contains("needs at least 16 MiB"));
    assert!(refusal("small", Some(MIN_SIZE)).contains("has 4K and not the 16M asked for"));
    assert!(refusal("dir", None).contains("is a directory"));
    assert!(refusal("fifo", None).contains("is a FIFO"));
    assert!(refusal("socket", None).contains("is a socket"));
    assert!(refusal("no/such/folder", Some(MIN_SIZE)).contains("can't make the disk"));
    let null = DiskSpec::File {
        path: "/dev/null".into(),
        size: None,
    };
    assert!(lab.refusal(&null).contains("is a character device"));
    assert!(
        lab.refusal(&DiskSpec::Temporary { size: 5 })
            .contains("outside of")
    );
    assert!(!lab.path("none").exists());
}

#[test]
fn symbolic_links_are_never_followed_to_make_a_disk() {
    let Some(lab) = lab("symbolic links", &["mke2fs"]) else {
        return;
    };
    let target = lab.path("target");
    symlink(&target, lab.path("link")).unwrap();
    let said = lab.refusal(&lab.file("link", Some(MIN_SIZE)));
    assert!(
        said.contains("symbolic link to a file that does not exist"),
        "{said}"
    );
    Dirs::ensure(&lab.dirs.data().join("disks")).unwrap();
    symlink(&target, lab.dirs.data().join("disks/a.raw")).unwrap();
    let said = lab.refusal(&named("a", Some(MIN_SIZE)));
    assert!(said.contains("is a symbolic link"), "{said}");
    assert!(!target.exists());

    // The user's own link to an own disk is fine.
    close(lab.open(&lab.file("target", Some(MIN_SIZE))).unwrap());
    assert!(!lab.open(&lab.file("link", None)).unwrap().fresh);
}

#[test]
fn a_full_host_leaves_no_disk_behind() {
    const FOLDER: &str = "CASITA_TEST_FULL_HOST";
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        // In the child: a file system of 16 KiB is mounted there.
        let dirs = Dirs::below(folder.parent().unwrap());
        for (name, size) in [("new", Some(MIN_SIZE)), ("zero", None)] {
            let path = folder.join(name);
            if size.is_none() {
                File::create(&path).unwrap().set_len(MIN_SIZE).unwrap();
            }
            let said = open(
                &DiskSpec::File {
                    path: path.clone(),
                    size,
                },
                Expect::Ext4,
                &dirs,
            )
            .unwrap_err()
            .to_string();
            assert!(said.contains("no space is left for the disk"), "{said}");
            assert_eq!(path.exists(), size.is_none());
        }
        let zero = File::open(folder.join("zero")).unwrap();
        assert!(all_zero(&zero, MIN_SIZE).unwrap(), "can be tried again");
        println!("the child has seen it");
        return;
    }
    let Some(lab) = lab("full host", &["mke2fs", "unshare", "mount"]) else {
        return;
    };
    let folder = lab.path("small");
    std::fs::create_dir(&folder).unwrap();
    let script = "mount -t tmpfs -o size=16k none \"$0\" || exit 99; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(&folder)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("disk::tests::a_full_host_leaves_no_disk_behind")
        .env(FOLDER, &folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) || said.contains("unshare:") {
        eprintln!("SKIPPED full host: no mounts in a namespace of our own: {said}");
        return;
    }
    assert!(said.contains("the child has seen it"), "{said}");
    assert!(output.status.success(), "{said}");
}

#[test]
fn holders_are_read_from_proc_locks() {
    let pid = std::process::id();
    let device = rustix::fs::makedev(0xfd, 1);
    let locks = format!(
        "1: POSIX  ADVISORY  WRITE 1 fd:01:42 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 1 fd:01:42 0 EOF\n\
         3: FLOCK  ADVISORY  WRITE 1 fd:01:43 0 EOF\ngarbage\n\n\
         4: FLOCK  ADVISORY  WRITE {pid} fd:01:42 0 EOF\n"
    );
    assert_eq!(holder(&locks, device, 42), Some(pid));
    assert_eq!(holder(&locks, device, 44), None);
    assert_eq!(holder("", device, 42), None);
}

/// Not a test of anything: run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_opening_a_temporary_disk() {
    let Some(lab) = lab("measurement", &["mke2fs"]) else {
        return;
    };
    let temporary = DiskSpec::Temporary { size: 2 << 30 };
    let kept = named("a", None);
    close(lab.open(&kept).unwrap());
    for (what, spec) in [("temporary", temporary), ("kept, existing", kept)] {
        drop(lab.open(&spec).unwrap());
        let mut times: Vec<_> = (0..301)
            .map(|_| {
                let begin = std::time::Instant::now();
                let disk = lab.open(&spec).unwrap();
                let time = begin.elapsed();
                close(disk);
                time
            })
            .collect();
        times.sort();
        println!("{what}: median {:?}, p99 {:?}", times[150], times[297]);
    }
}
