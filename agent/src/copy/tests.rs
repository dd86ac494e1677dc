use std::fs;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::string::ToString as _;
use std::{vec, vec::Vec};

use rustix::fd::AsFd as _;

use super::*;
use crate::tar::{self, Entry, Kind, Time, padding};

const ALL: Unpack<'static> = Unpack {
    top: Top::Keep,
    owners: false,
    special: false,
    limit: 1 << 30,
};

fn entry(path: &str, kind: Kind, size: usize) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time {
            seconds: 1_000_000_000,
            nanoseconds: 0,
        },
        size: size as u64,
        xattrs: Vec::new(),
    }
}

fn archive(entries: &[(&str, Kind, &[u8])]) -> fs::File {
    let mut bytes = Vec::new();
    for (path, kind, content) in entries {
        tar::header(&entry(path, kind.clone(), content.len()), &mut bytes).unwrap();
        bytes.extend_from_slice(content);
        bytes.extend(vec![0; padding(content.len() as u64)]);
    }
    tar::end(&mut bytes);
    holding(&bytes)
}

fn holding(bytes: &[u8]) -> fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn link(to: &str) -> Kind {
    Kind::Symlink(to.as_bytes().to_vec())
}

fn hard(to: &str) -> Kind {
    Kind::HardLink(to.as_bytes().to_vec())
}

/// Unpacks into `directory`; gives the error and what was complained about.
fn unpack_into(
    directory: &Path,
    archive: &fs::File,
    rules: &Unpack<'_>,
) -> (Result<(), CopyError>, Vec<CopyError>) {
    let directory = fs::File::open(directory).unwrap();
    let mut complaints = Vec::new();
    let result = unpack(directory.as_fd(), archive.as_fd(), rules, &mut |error| {
        complaints.push(error);
    });
    (result, complaints)
}

fn pack_all(source: &Path, name: &str) -> fs::File {
    let mut out = tempfile::tempfile().unwrap();
    let path = source.as_os_str().as_encoded_bytes();
    let rules = Pack {
        name: name.as_bytes(),
        content: false,
        owners: true,
    };
    let mut complain = |error: CopyError| panic!("{error}");
    pack(path, &rules, out.as_fd(), &mut complain).unwrap();
    out.rewind().unwrap();
    out
}

/// Two places: one to unpack into, and the world around it that must stay as it is.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("in")).unwrap();
        fs::create_dir(place.path().join("out")).unwrap();
        fs::write(place.path().join("out/secret"), "secret").unwrap();
        World(place)
    }

    fn inside(&self) -> std::path::PathBuf {
        self.0.path().join("in")
    }

    fn check(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|found| found.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(self.0.path()), ["in", "out"]);
        assert_eq!(names(&self.0.path().join("out")), ["secret"]);
        let secret = self.0.path().join("out/secret");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
    }
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/file"), vec![7; 700_001]).unwrap();
    fs::set_permissions(source.join("a/b/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(source.join("a/b/file"), source.join("a/other")).unwrap();
    symlink("b/file", source.join("a/soft")).unwrap();
    fs::write(source.join("empty"), "").unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    fs::set_permissions(source.join("a"), fs::Permissions::from_mode(0o555)).unwrap();

    let into = place.path().join("into");
    fs::create_dir(&into).unwrap();
    let (result, complaints) = unpack_into(&into, &pack_all(&source, "copy"), &ALL);
    result.unwrap();
    assert_eq!(complaints, []);
    let copy = into.join("copy");
    for path in ["", "a", "a/b", "a/b/file", "a/soft", "empty", "sparse"] {
        let (from, to) = (source.join(path), copy.join(path));
        let (from, to) = (
            fs::symlink_metadata(from).unwrap(),
            fs::symlink_metadata(to).unwrap(),
        );
        assert_eq!(from.mode(), to.mode(), "{path}");
        assert_eq!(
            (from.mtime(), from.mtime_nsec()),
            (to.mtime(), to.mtime_nsec()),
            "{path}"
        );
    }
    assert_eq!(fs::read(copy.join("a/b/file")).unwrap(), vec![7; 700_001]);
    assert_eq!(
        fs::read_link(copy.join("a/soft")).unwrap(),
        Path::new("b/file")
    );
    let ino = |path: &str| fs::metadata(copy.join(path)).unwrap().ino();
    assert_eq!(ino("a/b/file"), ino("a/other"));
    let sparse = fs::metadata(copy.join("sparse")).unwrap();
    assert_eq!((sparse.len(), sparse.blocks()), (8 << 20, 0));
    // For whoever removes it without being root.
    for folder in [&source, &copy] {
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    for path in ["../x", "/x", "a/../../x", "..", "a/..", "/", "./../x"] {
        let world = World::new();
        let archive = archive(&[(path, Kind::File, b"x")]);
        let (result, _) = unpack_into(&world.inside(), &archive, &ALL);
        assert_eq!(result, Err(CopyError::Outside(path.to_string())));
        world.check();
    }
    for target in ["../out/secret", "/etc/passwd"] {
        let world = World::new();
        let (result, _) = unpack_into(&world.inside(), &archive(&[("l", hard(target), b"")]), &ALL);
        assert_eq!(result, Err(CopyError::Outside(target.to_string())));
        world.check();
    }
}

#[test]
fn links_of_the_archive_are_not_followed() {
    for to in ["../out", ".."] {
        for attack in [
            vec![("l", link(to), &b""[..]), ("l/new", Kind::File, b"x")],
            vec![("l", link(to), b""), ("l/new", Kind::Directory, b"")],
            vec![
                ("l", link(to), b""),
                ("l", Kind::Directory, b""),
                ("l/n", Kind::File, b""),
            ],
            vec![("l", link(to), b""), ("h", hard("l/secret"), b"")],
            vec![("l", link(to), b""), ("l/out/secret", Kind::File, b"x")],
        ] {
            let world = World::new();
            let (result, _) = unpack_into(&world.inside(), &archive(&attack), &ALL);
            assert!(
                matches!(result, Err(CopyError::InTheWay { .. })),
                "{result:?}"
            );
            world.check();
        }
    }
}

#[test]
fn a_file_replaces_a_link_instead_of_what_it_leads_to() {
    let world = World::new();
    let secret = "../out/secret";
    let attack = [("l", link(secret), &b""[..]), ("l", Kind::File, b"mine")];
    unpack_into(&world.inside(), &archive(&attack), &ALL)
        .0
        .unwrap();
    world.check();
    let made = world.inside().join("l");
    assert!(fs::symlink_metadata(&made).unwrap().is_file());
    assert_eq!(fs::read(&made).unwrap(), b"mine");
    // And a hard link to a link is one to the link.
    let attack = [
        ("l", link(secret), &b""[..]),
        ("h", hard("l"), b""),
        ("h", Kind::File, b"x"),
    ];
    unpack_into(&world.inside(), &archive(&attack), &ALL)
        .0
        .unwrap();
    world.check();
}

#[test]
fn a_link_that_was_there_before_is_not_followed_either() {
    let world = World::new();
    symlink("../out", world.inside().join("l")).unwrap();
    let (result, _) = unpack_into(
        &world.inside(),
        &archive(&[("l/x", Kind::File, b"x")]),
        &ALL,
    );
    assert!(matches!(result, Err(CopyError::InTheWay { .. })));
    world.check();
}

#[test]
fn directories_and_other_things_do_not_replace_each_other() {
    let world = World::new();
    fs::create_dir(world.inside().join("d")).unwrap();
    fs::write(world.inside().join("f"), "f").unwrap();
    for attack in [
        ("d", Kind::File, &b"x"[..]),
        ("d", link("x"), b""),
        ("f", Kind::Directory, b""),
    ] {
        let (result, _) = unpack_into(&world.inside(), &archive(&[attack]), &ALL);
        assert!(
            matches!(result, Err(CopyError::InTheWay { .. })),
            "{result:?}"
        );
    }
    assert_eq!(fs::read(world.inside().join("f")).unwrap(), b"f");
}

#[test]
fn devices_and_set_id_bits_are_left_out_unless_wanted() {
    let world = World::new();
    let mut setuid = entry("s", Kind::File, 0);
    setuid.mode = 0o4755;
    let mut bytes = Vec::new();
    let device = Kind::CharDevice { major: 1, minor: 3 };
    for entry in [
        entry("null", device, 0),
        entry("fifo", Kind::Fifo, 0),
        setuid,
    ] {
        tar::header(&entry, &mut bytes).unwrap();
    }
    tar::end(&mut bytes);
    let (result, complaints) = unpack_into(&world.inside(), &holding(&bytes), &ALL);
    result.unwrap();
    let left_out = ["null", "fifo"].map(|name| CopyError::Special(name.to_string()));
    assert_eq!(complaints, left_out);
    let made: Vec<_> = fs::read_dir(world.inside()).unwrap().collect();
    assert_eq!(made.len(), 1);
    let mode = fs::metadata(world.inside().join("s")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn more_than_the_limit_is_refused_before_it_is_written() {
    let world = World::new();
    let mut bytes = Vec::new();
    let bomb = Entry {
        size: u64::MAX >> 2,
        ..entry("bomb", Kind::File, 0)
    };
    tar::header(&bomb, &mut bytes).unwrap();
    let (result, _) = unpack_into(&world.inside(), &holding(&bytes), &ALL);
    assert_eq!(result, Err(CopyError::Limit(ALL.limit)));
    assert!(!world.inside().join("bomb").exists());
    // Together, too.
    let rules = Unpack { limit: 5, ..ALL };
    let two = [("a", Kind::File, &b"123"[..]), ("b", Kind::File, b"456")];
    let (result, _) = unpack_into(&world.inside(), &archive(&two), &rules);
    assert_eq!(result, Err(CopyError::Limit(5)));
}

#[test]
fn the_first_name_is_replaced_or_left_out() {
    let entries = [
        ("d", Kind::Directory, &b""[..]),
        ("d/f", Kind::File, b"1"),
        ("d/h", hard("d/f"), b""),
    ];
    for (top, expected) in [
        (Top::Keep, "d/h"),
        (Top::Rename(b"new"), "new/h"),
        (Top::Content, "h"),
    ] {
        let world = World::new();
        let rules = Unpack { top, ..ALL };
        unpack_into(&world.inside(), &archive(&entries), &rules)
            .0
            .unwrap();
        assert_eq!(
            fs::read(world.inside().join(expected)).unwrap(),
            b"1",
            "{top:?}"
        );
    }
    let world = World::new();
    let rules = Unpack {
        top: Top::Rename(b"new"),
        ..ALL
    };
    unpack_into(
        &world.inside(),
        &archive(&[("./f", Kind::File, b"1")]),
        &rules,
    )
    .0
    .unwrap();
    assert_eq!(fs::read(world.inside().join("new/f")).unwrap(), b"1");
}

#[test]
fn the_content_of_a_directory_leaves_the_one_that_gets_it_as_it_is() {
    let world = World::new();
    fs::set_permissions(world.inside(), fs::Permissions::from_mode(0o711)).unwrap();
    let mut packed = tempfile::tempfile().unwrap();
    let source = world.0.path().join("out");
    let rules = Pack {
        name: b"",
        content: true,
        owners: false,
    };
    let path = source.as_os_str().as_encoded_bytes();
    pack(path, &rules, packed.as_fd(), &mut |_| {}).unwrap();
    packed.rewind().unwrap();
    unpack_into(&world.inside(), &packed, &ALL).0.unwrap();
    assert!(world.inside().join("secret").exists());
    let mode = || fs::metadata(world.inside()).unwrap().mode() & 0o777;
    assert_eq!(mode(), 0o711);
    let rules = Unpack {
        top: Top::Content,
        ..ALL
    };
    unpack_into(
        &world.inside(),
        &archive(&[("d", Kind::Directory, b"")]),
        &rules,
    )
    .0
    .unwrap();
    assert_eq!(mode(), 0o711);
}

#[test]
fn an_archive_that_is_cut_off_is_told() {
    let world = World::new();
    let mut whole = Vec::new();
    archive(&[("f", Kind::File, &[1; 5000])])
        .read_to_end(&mut whole)
        .unwrap();
    for cut in [100, 512, 700, 5512] {
        let (result, _) = unpack_into(&world.inside(), &holding(&whole[..cut]), &ALL);
        assert_eq!(result, Err(TarError::Truncated.into()), "{cut}");
    }
}

#[test]
fn what_does_not_exist_can_not_be_packed() {
    let out = tempfile::tempfile().unwrap();
    let rules = Pack {
        name: b"x",
        content: false,
        owners: true,
    };
    let result = pack(b"/does/not/exist", &rules, out.as_fd(), &mut |_| {});
    assert_eq!(
        result,
        Err(CopyError::Missing("/does/not/exist".to_string()))
    );
    assert_eq!(out.metadata().unwrap().len(), 0);
    assert!(matches!(
        open_directory(b"/does/not/exist"),
        Err(CopyError::Missing(_))
    ));
}

#[test]
fn the_kernels_own_files_are_left_out() {
    let mut list = Vec::new();
    pack_all(Path::new("/proc/self/"), "p")
        .read_to_end(&mut list)
        .unwrap();
    // The directory's own headers and the end.
    assert!(list.len() <= 5 * BLOCK, "{} bytes", list.len());
}
