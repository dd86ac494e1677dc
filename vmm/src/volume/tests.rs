use super::*;
use casita_agent::mounts::{GuestMount, MountError};

const SMALL: VolumeKind = VolumeKind::Disk { size: 16 << 20 };

/// Folders of a test's own, but for the templates of disks.
fn place() -> (tempfile::TempDir, Dirs) {
    let place = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(place.path());
    (place, dirs)
}

fn volumes(texts: &[&str]) -> Vec<VolumeSpec> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn names(store: &Store) -> Vec<String> {
    let volumes = store.list().unwrap();
    volumes.iter().map(|volume| volume.name.clone()).collect()
}

/// Whether `mke2fs` is there, which makes the templates.
fn formats() -> bool {
    ["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/bin/mke2fs"]
        .iter()
        .any(|path| Path::new(path).exists())
}

/// Unlocks by hand, as a process that another test forks at this moment can have a copy of the
/// descriptor until it executes its program.
#[allow(clippy::needless_pass_by_value, reason = "it closes the file")]
fn close(file: File) {
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
}

#[test]
fn what_is_created_is_listed_and_found_until_it_is_removed() {
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    assert_eq!(names(&store), [""; 0]);
    store.create("b", VolumeKind::Shared).unwrap();
    let made = store.create("a", VolumeKind::Shared).unwrap();
    assert_eq!(names(&store), ["a", "b"]);
    assert_eq!(store.find("a").unwrap(), made);
    assert!(made.path().is_dir());
    fs::write(made.path().join("file"), "x").unwrap();
    store.remove("a").unwrap();
    assert_eq!(names(&store), ["b"]);
    let left: Vec<_> = fs::read_dir(&store.folder).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_name_is_taken_once() {
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    store.create("a", VolumeKind::Shared).unwrap();
    let again = store.create("a", VolumeKind::Shared);
    assert!(matches!(again, Err(VolumeError::Exists(_))), "{again:?}");
    for bad in ["", "../a", ".half-a", "a/b"] {
        assert!(matches!(
            store.create(bad, VolumeKind::Shared),
            Err(VolumeError::Spec(_))
        ));
        assert!(matches!(store.remove(bad), Err(VolumeError::Spec(_))));
    }
    assert!(matches!(store.remove("c"), Err(VolumeError::Missing(_))));
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    let tiny = VolumeKind::Disk { size: 4096 };
    store.create("a", tiny).unwrap_err();
    assert_eq!(names(&store), [""; 0]);
    // What a killed process left is no hindrance.
    fs::create_dir_all(store.folder.join(".half-a/data")).unwrap();
    fs::create_dir_all(store.folder.join(".half-other/data")).unwrap();
    store.create("a", VolumeKind::Shared).unwrap();
    assert!(!store.folder.join(".half-a").exists());
    assert!(!store.folder.join(".half-other").exists());
}

#[test]
fn a_folder_that_is_no_volume_is_left_alone() {
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    let folder = store.folder.join("mine");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "x").unwrap();
    for result in [
        store.create("mine", VolumeKind::Shared).map(drop),
        store.remove("mine"),
    ] {
        assert!(
            matches!(result, Err(VolumeError::Damaged { .. })),
            "{result:?}"
        );
    }
    fs::write(folder.join(META), "{}").unwrap();
    assert!(matches!(
        store.find("mine"),
        Err(VolumeError::Damaged { .. })
    ));
    assert!(folder.join("file").exists());
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    if !formats() {
        return;
    }
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    let volume = store.create("db", SMALL).unwrap();
    let in_use = |result: Result<Disk, VolumeError>| matches!(result, Err(VolumeError::InUse { pid, .. }) if pid == Some(std::process::id()));
    let writer = volume.open_disk(false, &dirs).unwrap();
    assert_eq!(volume.user(), Some(std::process::id()));
    assert!(in_use(volume.open_disk(false, &dirs)));
    assert!(in_use(volume.open_disk(true, &dirs)));
    assert!(matches!(store.remove("db"), Err(VolumeError::InUse { .. })));
    close(writer.file);
    let first = volume.open_disk(true, &dirs).unwrap();
    let second = volume.open_disk(true, &dirs).unwrap();
    assert!(in_use(volume.open_disk(false, &dirs)));
    close(first.file);
    close(second.file);
    assert_eq!(volume.user(), None);
    store.remove("db").unwrap();
    assert!(matches!(
        volume.open_disk(true, &dirs),
        Err(VolumeError::Missing(_))
    ));
    assert!(matches!(
        volume.open_disk(false, &dirs),
        Err(VolumeError::Missing(_))
    ));
}

#[test]
fn a_reader_can_not_write() {
    use std::os::unix::fs::FileExt;
    if !formats() {
        return;
    }
    let (_place, dirs) = place();
    let volume = Store::open(&dirs).unwrap().create("db", SMALL).unwrap();
    let disk = volume.open_disk(true, &dirs).unwrap();
    assert!(disk.file.write_at(b"x", 0).is_err());
}

#[test]
fn a_disk_with_a_journal_to_replay_is_refused_to_readers() {
    use std::os::unix::fs::FileExt;
    if !formats() {
        return;
    }
    let (_place, dirs) = place();
    let volume = Store::open(&dirs).unwrap().create("db", SMALL).unwrap();
    // The feature bit that a mounted file system has: INCOMPAT_RECOVER.
    let disk = volume.open_disk(false, &dirs).unwrap();
    let mut features = [0; 4];
    disk.file.read_exact_at(&mut features, 1024 + 0x60).unwrap();
    features[0] |= 4;
    disk.file.write_all_at(&features, 1024 + 0x60).unwrap();
    close(disk.file);
    let refused = volume.open_disk(true, &dirs).unwrap_err();
    assert!(refused.to_string().contains("may write to it"), "{refused}");
    volume.open_disk(false, &dirs).unwrap();
}

#[test]
fn shared_volumes_are_held_by_many_but_not_removed_under_them() {
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    let volume = store.create("s", VolumeKind::Shared).unwrap();
    let holds = [
        volume.hold_directory().unwrap(),
        volume.hold_directory().unwrap(),
    ];
    assert!(matches!(store.remove("s"), Err(VolumeError::InUse { .. })));
    holds.into_iter().for_each(close);
    store.remove("s").unwrap();
    assert!(matches!(
        volume.hold_directory(),
        Err(VolumeError::Missing(_))
    ));
}

#[test]
fn parents_are_mounted_first_and_disks_are_counted() {
    if !formats() {
        return;
    }
    let (place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    store.create("one", SMALL).unwrap();
    store.create("two", SMALL).unwrap();
    let host = place.path().join("host");
    fs::create_dir(&host).unwrap();
    let host = format!("{}:/a/b:ro", host.display());
    let specs = volumes(&["one:/a/b/c", "two:/a-b:ro", &host]);
    let (mounts, new) = plan(&specs, &["/a".parse().unwrap()], &dirs).unwrap();
    new.unwrap().keep();
    let told: Vec<_> = guest_mounts(&mounts, 2)
        .into_iter()
        .map(|mount| {
            let how = match &mount {
                GuestMount::Volume {
                    device, read_only, ..
                } => format!("{device} {read_only}"),
                GuestMount::Tmpfs { mode, .. } => format!("{mode:o}"),
                GuestMount::Share { tag, read_only, .. } => format!("{tag} {read_only}"),
            };
            format!("{} {how}", String::from_utf8_lossy(mount.target()))
        })
        .collect();
    let expected = [
        "/a 1777",
        "/a/b share2 true",
        "/a/b/c /dev/vdc false",
        "/a-b /dev/vdd true",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_missing_volume_is_made_and_stays_only_with_its_machine() {
    let (_place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    let specs = volumes(&["s:/s:shared"]);
    for _ in 0..2 {
        let (mounts, new) = plan(&specs, &[], &dirs).unwrap();
        assert_eq!(names(&store), ["s"]);
        drop(mounts);
        drop(new);
        assert_eq!(
            names(&store),
            [""; 0],
            "nothing is left of a machine that did not start"
        );
    }
    let (_mounts, new) = plan(&specs, &[], &dirs).unwrap();
    new.unwrap().keep();
    assert_eq!(names(&store), ["s"]);
    // One that was there before stays, too.
    let (mounts, new) = plan(&specs, &[], &dirs).unwrap();
    drop(mounts);
    drop(new);
    assert_eq!(names(&store), ["s"]);
}

#[test]
fn wrong_mounts_are_told_and_leave_nothing() {
    let (place, dirs) = place();
    let store = Store::open(&dirs).unwrap();
    let refused = |specs: &[&str]| plan(&volumes(specs), &[], &dirs).unwrap_err();
    let twice = refused(&["a:/x:shared", "b:/x/:shared"]);
    assert!(
        matches!(twice, VolumeError::Mount(MountError::Twice(_))),
        "{twice}"
    );
    let missing = refused(&["a:/x:shared", "/does/not/exist:/y"]);
    assert!(missing.to_string().contains("/does/not/exist"), "{missing}");
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let file = refused(&[&format!("{}:/y", file.display())]);
    assert!(matches!(file, VolumeError::Directory { .. }), "{file}");
    assert_eq!(names(&store), [""; 0]);
    if !formats() {
        return;
    }
    store.create("disk", SMALL).unwrap();
    let kind = refused(&["disk:/x:shared"]);
    assert!(matches!(kind, VolumeError::NotShared(_)), "{kind}");
    let twice = refused(&["disk:/x", "disk:/y"]);
    assert!(matches!(twice, VolumeError::Twice(_)), "{twice}");
}
