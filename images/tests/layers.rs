//! What layers make of each other, read back from the image.

mod support;

use std::process::Command;

use support::{Tar, listing, tree};
use tar::EntryType;

#[test]
fn entries_get_there_with_all_that_they_are() {
    let mut header = Tar::header(EntryType::Regular, 0o104_755);
    header.set_uid(70_000);
    header.set_gid(12);
    header.set_mtime(1_700_000_000);
    let mut null = Tar::header(EntryType::Char, 0o666);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let mut disk = Tar::header(EntryType::Block, 0o660);
    disk.set_device_major(259).unwrap();
    disk.set_device_minor(0x12345).unwrap();
    let tree = tree(&[Tar::new()
        .entry(EntryType::Directory, "./", "", 0o1777)
        .dir("./usr/")
        .raw(header, b"usr/su", b"", b"program")
        .link("usr/su2", "./usr/su")
        .symlink("bin", "usr")
        .raw(null, b"null", b"", b"")
        .raw(disk, b"disk", b"", b"")
        .entry(EntryType::Fifo, "fifo", "", 0o600)
        .file("empty", "")
        .done()]);
    assert_eq!(tree["/"].mode, 0o041_777);
    let su = &tree["usr/su"];
    assert_eq!(
        (su.mode, su.uid, su.gid, su.links),
        (0o104_755, 70_000, 12, 2)
    );
    assert_eq!(
        (su.mtime, &su.content[..]),
        ((1_700_000_000, 0), &b"program"[..])
    );
    assert_eq!(tree["usr/su2"].nid, su.nid);
    assert_eq!(
        (tree["bin"].mode, &tree["bin"].content[..]),
        (0o120_777, &b"usr"[..])
    );
    assert_eq!((tree["null"].mode, tree["null"].device), (0o020_666, 0x103));
    assert_eq!(
        (tree["disk"].mode, tree["disk"].device),
        (0o060_660, 0x1231_0345)
    );
    assert_eq!(tree["fifo"].mode, 0o010_600);
    assert!(tree["empty"].content.is_empty());
}

#[test]
fn pax_records_replace_what_the_header_says() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let capability = b"\x01\0\0\x02\n\0\0\0";
    let tree = tree(&[Tar::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"4000000000"),
            ("mtime", b"-5.5"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.btrfs.compression", b"zstd"),
            ("LIBARCHIVE.xattr.user.b%20c", b"AQI="),
        ])
        .file("short", "data")
        .done()]);
    let node = &tree[&long];
    assert_eq!((node.uid, node.mtime), (4_000_000_000, (-6, 500_000_000)));
    let names: Vec<&str> = node.xattrs.keys().map(String::as_str).collect();
    assert_eq!(names, ["security.capability", "user.b c", "user.empty"]);
    assert_eq!(node.xattrs["security.capability"], capability);
    assert_eq!(node.xattrs["user.b c"], [1, 2]);
    // A directory that no entry made.
    assert_eq!(tree[&"d".repeat(200)].mode, 0o040_755);
}

#[test]
fn gnus_long_names_are_read() {
    let (name, target) = ("n".repeat(180), "t".repeat(300));
    let long = |kind, text: &str| (Tar::header(EntryType::new(kind), 0), format!("{text}\0"));
    let (name_header, name_data) = long(b'L', &name);
    let (link_header, link_data) = long(b'K', &target);
    let lines = listing(&[Tar::new()
        .raw(name_header, b"././@LongLink", b"", name_data.as_bytes())
        .raw(link_header, b"././@LongLink", b"", link_data.as_bytes())
        .symlink("n", "t")
        .done()]);
    assert_eq!(lines, [format!("{name} -> {target}")]);
}

#[test]
fn whiteouts_hide_what_lower_layers_have() {
    let lower = Tar::new()
        .file("a", "1")
        .dir("d")
        .file("d/x", "1")
        .file("d/e/y", "1")
        .done();
    let upper = |tar: Tar| listing(&[lower.clone(), tar.done()]);
    assert_eq!(
        upper(Tar::new().file(".wh.a", "")),
        ["d/", "d/e/", "d/e/y = 1", "d/x = 1"]
    );
    assert_eq!(upper(Tar::new().file(".wh.d", "")), ["a = 1"]);
    assert_eq!(
        upper(Tar::new().file("d/.wh.e", "")),
        ["a = 1", "d/", "d/x = 1"]
    );
    // Of what is not there, or below what is not there.
    assert_eq!(
        upper(Tar::new().file(".wh.z", "").file("z/.wh.z", "")).len(),
        5
    );
    // AUFS's own files mean nothing.
    assert_eq!(
        upper(Tar::new().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "")).len(),
        5
    );
}

#[test]
fn a_whiteout_hides_nothing_of_its_own_layer() {
    let lower = Tar::new().dir("d").file("d/old", "1").file("f", "1").done();
    for tar in [
        Tar::new()
            .file(".wh.d", "")
            .dir("d")
            .file("d/new", "2")
            .file(".wh.f", "")
            .file("f", "2"),
        Tar::new()
            .dir("d")
            .file("d/new", "2")
            .file(".wh.d", "")
            .file("f", "2")
            .file(".wh.f", ""),
        Tar::new()
            .file("d/new", "2")
            .file(".wh.d", "")
            .file("f", "2")
            .file(".wh.f", ""),
    ] {
        let lines = listing(&[lower.clone(), tar.done()]);
        assert_eq!(lines, ["d/", "d/new = 2", "f = 2"]);
    }
}

#[test]
fn an_opaque_directory_hides_what_is_below_wherever_its_marker_stands() {
    let lower = Tar::new()
        .dir("d")
        .file("d/old", "1")
        .file("d/s/old", "1")
        .file("f", "1")
        .done();
    for tar in [
        Tar::new()
            .dir("d")
            .file("d/.wh..wh..opq", "")
            .file("d/s/new", "2"),
        Tar::new()
            .dir("d")
            .file("d/s/new", "2")
            .file("d/.wh..wh..opq", ""),
        Tar::new()
            .dir("d")
            .dir("d/s")
            .file("d/s/new", "2")
            .file("d/.wh..wh..opq", ""),
    ] {
        let lines = listing(&[lower.clone(), tar.done()]);
        assert_eq!(lines, ["d/", "d/s/", "d/s/new = 2", "f = 1"]);
    }
    let all = listing(&[
        lower,
        Tar::new().file(".wh..wh..opq", "").file("new", "2").done(),
    ]);
    assert_eq!(all, ["new = 2"]);
}

#[test]
fn a_later_entry_replaces_one_of_another_type() {
    let lower = Tar::new()
        .file("a", "1")
        .dir("d")
        .file("d/x", "1")
        .symlink("l", "d")
        .done();
    let upper = Tar::new()
        .dir("a")
        .file("a/y", "2")
        .file("d", "2")
        .dir("l")
        .file("l/z", "2")
        .done();
    assert_eq!(
        listing(&[lower, upper]),
        ["a/", "a/y = 2", "d = 2", "l/", "l/z = 2"]
    );
}

#[test]
fn a_directory_that_comes_again_keeps_its_names_and_gets_new_metadata() {
    let lower = Tar::new().dir("d").file("d/x", "1").done();
    let upper = Tar::new()
        .entry(EntryType::Directory, "d/", "", 0o700)
        .done();
    let tree = tree(&[lower, upper]);
    assert_eq!(tree["d"].mode, 0o040_700);
    assert_eq!(tree["d/x"].content, b"1");
}

#[test]
fn paths_go_through_symbolic_links_as_in_a_container() {
    let lower = Tar::new()
        .dir("usr/bin")
        .symlink("bin", "usr/bin")
        .symlink("abs", "/usr/../usr/./bin/")
        .symlink("usr/up", "../bin")
        .symlink("chain", "usr/up")
        .done();
    let upper = Tar::new()
        .file("bin/a", "1")
        .file("abs/b", "2")
        .file("chain/c", "3");
    let upper = upper.link("usr/up/d", "bin/a").file("bin/.wh.b", "").done();
    let lines = listing(&[lower, upper]);
    for line in [
        "usr/bin/a = 1",
        "usr/bin/b = 2",
        "usr/bin/c = 3",
        "usr/bin/d = 1",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line} in {lines:?}");
    }
    assert!(lines.contains(&"bin -> usr/bin".to_owned()));
}

#[test]
fn hard_links_reach_into_lower_layers_and_outlive_their_first_name() {
    let lower = Tar::new().file("a", "1").symlink("s", "a").done();
    let upper = Tar::new()
        .link("b", "/a")
        .link("t", "s")
        .link("b", "b")
        .file("a", "2")
        .done();
    let top = Tar::new().file(".wh.a", "").done();
    let tree = tree(&[lower, upper, top]);
    assert_eq!((&tree["b"].content[..], tree["b"].links), (&b"1"[..], 1));
    assert_eq!((tree["t"].nid, tree["t"].links), (tree["s"].nid, 2));
    assert!(!tree.contains_key("a"));
}

#[test]
fn large_directories_and_long_links_have_blocks_of_their_own() {
    let mut tar = Tar::new().dir("many");
    for number in 0..3000 {
        tar = tar.file(&format!("many/{number:0>60}"), "x");
    }
    let target = "t".repeat(4095);
    let tar = tar
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("long", "x");
    // Sorts before '.' and between it and '..'.
    let tar = tar.file("-", "1").file(".-", "2").dir("empty");
    let tree = tree(&[tar.done()]);
    assert_eq!(
        tree.keys().filter(|path| path.starts_with("many/")).count(),
        3000
    );
    assert_eq!(tree["long"].content, target.as_bytes());
    assert_eq!(
        (&tree["-"].content[..], &tree[".-"].content[..]),
        (&b"1"[..], &b"2"[..])
    );
}

#[test]
fn many_and_large_attributes_fit_beside_an_inode() {
    let mut tar = Tar::new();
    for number in 0..40 {
        let value = vec![number; usize::from(number) * 100];
        tar = tar.pax(&[
            ("SCHILY.xattr.user.v", &value),
            ("SCHILY.xattr.user.w", b"w"),
        ]);
        tar = tar.symlink(&format!("l{number}"), "target");
    }
    let value = vec![7; 60_000];
    let tar = tar.pax(&[("SCHILY.xattr.user.big", &value)]).dir("d");
    let tree = tree(&[tar.done()]);
    assert_eq!(tree["d"].xattrs["user.big"], value);
    for number in 0..40u8 {
        let node = &tree[&format!("l{number}")];
        assert_eq!(
            node.xattrs["user.v"],
            vec![number; usize::from(number) * 100]
        );
        assert_eq!(node.content, b"target");
    }
}

#[test]
fn data_that_a_later_layer_hides_takes_no_space() {
    let big = "x".repeat(8 << 20);
    let stores = support::Stores::new();
    let lower = Tar::new().file("big", &big).file("small", "1").done();
    let kept = stores.import(std::slice::from_ref(&lower)).unwrap();
    let hidden = stores
        .import(&[lower, Tar::new().file(".wh.big", "").done()])
        .unwrap();
    assert!(kept.size > 8 << 20);
    assert!(hidden.size < 1 << 20, "{}", hidden.size);
    assert_eq!(support::erofs::read(&hidden.path)["small"].content, b"1");
}

#[test]
fn sparse_files_of_every_form_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let mut content = vec![0; 3 << 20];
    for (number, at) in [0, 1 << 20, (2 << 20) + 4096].into_iter().enumerate() {
        content[at..at + 4096].fill(b'a' + number as u8);
    }
    // Enough shreds to need more of the map than a header holds.
    for shred in 0..20 {
        content[(1 << 20) + 65536 * (shred + 1)] = b'z';
    }
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (number, block) in content.chunks(4096).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            use std::os::unix::fs::FileExt as _;
            file.write_all_at(block, number as u64 * 4096).unwrap();
        }
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let output = Command::new("tar")
            .args(["--sparse", "--hole-detection=raw", "-cf", "-", "-C"])
            .arg(dir.path())
            .args(format)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(output.stdout.len() < 1 << 20, "{format:?} is sparse");
        let tree = tree(&[output.stdout]);
        assert!(tree["sparse"].content == content, "{format:?}");
        assert_eq!(tree.len(), 2);
    }
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let layers = [
        Tar::new().file("a", "1").dir("d").file("d/x", "1").done(),
        Tar::new().file("d/.wh.x", "").symlink("l", "a").done(),
    ];
    let import = || {
        let stores = support::Stores::new();
        let image = stores.import(&layers).unwrap();
        std::fs::read(image.path).unwrap()
    };
    assert!(import() == import());
}
