//! Archives that mean harm, or are broken: each is refused with one line that names layer and
//! entry, and leaves nothing in the store.

mod support;

use std::io::Write as _;

use casita_images::{ImportError, Limits};
use support::{Stores, Tar, listing};
use tar::EntryType;

/// What the message has to have, for these layers.
fn refused(layers: &[Vec<u8>], parts: &[&str]) {
    refused_within(layers, &Limits::default(), parts);
}

fn refused_within(layers: &[Vec<u8>], limits: &Limits, parts: &[&str]) {
    let stores = Stores::new();
    let message = match stores.import_within(layers, limits) {
        Ok(_) => panic!("accepted, where {parts:?} was expected"),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
    assert!(
        !message.contains('\n') && message.len() < 700,
        "{message:?}"
    );
    assert_eq!(stores.files(), [""; 0], "nothing is left");
}

fn one(tar: Tar) -> [Vec<u8>; 1] {
    [tar.done()]
}

#[test]
fn names_that_lead_up_are_refused() {
    for name in ["../evil", "a/../../evil", "a/..", ".."] {
        refused(&one(Tar::new().file(name, "x")), &["layer 1", name, "'..'"]);
    }
    refused(&one(Tar::new().file("a/.wh...", "x")), &["whiteout"]);
    refused(&one(Tar::new().file(".wh.", "x")), &["whiteout"]);
    refused(&one(Tar::new().file("../.wh.a", "x")), &["'..'"]);
}

#[test]
fn absolute_names_of_layers_are_below_the_images_root() {
    // As to all container engines: there are tools that write all names so.
    let lines = listing(&one(Tar::new()
        .dir("/")
        .dir("/etc")
        .file("//etc/evil", "x")
        .link("/l", "/etc/evil")));
    assert_eq!(lines, ["etc/", "etc/evil = x", "l = x"]);
}

#[test]
fn impossible_names_are_refused() {
    let long = "x".repeat(256);
    refused(
        &one(Tar::new().pax(&[("path", long.as_bytes())]).file("a", "")),
        &["256 bytes"],
    );
    let deep = "x/".repeat(3000);
    refused(
        &one(Tar::new().pax(&[("path", deep.as_bytes())]).file("a", "")),
        &["6000 bytes"],
    );
    refused(
        &one(Tar::new().pax(&[("path", b"a\0b")]).file("a", "")),
        &["NUL"],
    );
    refused(&one(Tar::new().file("", "")), &["no name"]);
    // A message stays one line, and short, whatever the name.
    refused(
        &one(Tar::new().pax(&[("path", b"../a\n\x1b[2J")]).file("a", "")),
        &["\\n\\u{1b}"],
    );
}

#[test]
fn symbolic_links_out_are_refused() {
    let cases = [
        ("evil", "../../etc"),
        ("d/evil", "../.."),
        ("evil", "a/../../b"),
        ("e", ".."),
    ];
    for (name, target) in cases {
        refused(
            &one(Tar::new().symlink(name, target)),
            &[name, target, "out of the image"],
        );
    }
    for target in [&b""[..], b"a\0b", &[b'x'; 4096]] {
        let tar = Tar::new().pax(&[("linkpath", target)]).symlink("l", "");
        refused(&one(tar), &["impossible target"]);
    }
}

#[test]
fn entries_through_links_to_nowhere_are_refused() {
    let tar = Tar::new().symlink("l", "/tmp/outside").file("l/evil", "x");
    refused(&one(tar), &["l/evil", "leads to nothing"]);
    let tar = Tar::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "");
    refused(&one(tar), &["40 symbolic links"]);
    let lower = Tar::new().file("f", "1").done();
    refused(
        &[lower, Tar::new().file("f/x", "").done()],
        &["layer 2", "\"f\"", "no directory"],
    );
    let tar = Tar::new().file("f", "").symlink("l", "f").file("l/x", "");
    refused(&one(tar), &["no directory"]);
}

#[test]
fn hard_links_out_are_refused() {
    refused(&one(Tar::new().link("l", "../../etc/shadow")), &["'..'"]);
    refused(
        &one(Tar::new().link("l", "/etc/shadow")),
        &["/etc/shadow", "not in the image"],
    );
    refused(
        &one(Tar::new().dir("d").link("l", "d")),
        &["is a directory"],
    );
    refused(&one(Tar::new().link("l", "/")), &["is a directory"]);
    refused(
        &one(Tar::new().file("f", "").link("/", "f")),
        &["root directory"],
    );
    let tar = Tar::new().symlink("s", "/etc").link("l", "s/shadow");
    refused(&one(tar), &["leads to nothing"]);
}

#[test]
fn the_root_stays_a_directory() {
    refused(&one(Tar::new().file("./.", "x")), &["root directory"]);
    refused(&one(Tar::new().symlink("/", "x")), &["root directory"]);
}

#[test]
fn devices_that_linux_can_not_have_are_refused() {
    let mut header = Tar::header(EntryType::Char, 0o666);
    header.set_device_major(4096).unwrap();
    header.set_device_minor(0).unwrap();
    refused(
        &one(Tar::new().raw(header, b"dev", b"", b"")),
        &["\"dev\"", "4096:0"],
    );
}

#[test]
fn types_without_meaning_are_refused() {
    refused(
        &one(Tar::new().entry(EntryType::new(b'M'), "m", "", 0)),
        &["'M'"],
    );
}

#[test]
fn broken_archives_are_refused() {
    refused(&[b"no archive at all".to_vec()], &["cut off"]);
    refused(&[vec![b'x'; 2048]], &["header"]);
    let whole = Tar::new()
        .file("a", "1")
        .file("b", &"2".repeat(2000))
        .done();
    refused(&[whole[..1800].to_vec()], &["\"b\"", "cut off"]);
    refused(
        &[whole[..700].to_vec()],
        &["after the entry \"a\"", "cut off"],
    );
    let mut wrong = whole.clone();
    wrong[1024] ^= 1;
    refused(&[wrong], &["after the entry \"a\"", "checksum"]);
    let gap = [
        Tar::new().file("a", "1").done()[..1024].to_vec(),
        vec![0; 512],
        whole,
    ]
    .concat();
    refused(&[gap], &["empty header"]);
}

#[test]
fn broken_compression_is_refused() {
    let tar = Tar::new().file("a", &"1".repeat(9000)).done();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    refused(
        &[gzip[..gzip.len() - 5].to_vec()],
        &["layer 1: it is cut off"],
    );
    let mut damaged = gzip.clone();
    damaged[20] ^= 0xff;
    refused(&[damaged], &["layer 1: it can't be read"]);
    refused(&[tar, b"\xfd7zXZ\0...".to_vec()], &["layer 2", "xz"]);
}

#[test]
fn wrong_digests_are_refused() {
    let stores = Stores::new();
    let mut layers = support::inputs(&one(Tar::new().file("a", "1")));
    layers[0].diff_id = Some(casita_images::Digest::of(b"other"));
    let digest = casita_images::Digest::of(b"image");
    let import = casita_images::Import {
        reference: None,
        digest,
        config: b"{}",
        layers,
    };
    let error = stores
        .store
        .import(import, &Limits::default(), &|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("unpacks to sha256:"), "{error}");
    assert_eq!(stores.files(), [""; 0]);
}

#[test]
fn layers_are_counted_by_the_configuration() {
    let stores = Stores::new();
    let digest = casita_images::Digest::of(b"image");
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{digest}","{digest}"]}}}}"#);
    let layers = support::inputs(&one(Tar::new().file("a", "1")));
    let import = casita_images::Import {
        reference: None,
        digest,
        config: config.as_bytes(),
        layers,
    };
    let error = stores
        .store
        .import(import, &Limits::default(), &|_| ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImportError::LayerCount {
                layers: 1,
                diff_ids: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn bombs_are_stopped_by_the_limits() {
    let limits = Limits {
        max_size: 1 << 20,
        max_entries: 10,
    };
    let zeroes = vec![0; 8 << 20];
    let bomb = zstd::encode_all(zeroes.as_slice(), 1).unwrap();
    refused_within(
        &[bomb],
        &limits,
        &["layer 1", "1048576 bytes", "--max-size"],
    );
    // Two layers, each within the limit.
    let half = Tar::new().file("a", &"x".repeat(600 << 10)).done();
    refused_within(
        &[half.clone(), half],
        &limits,
        &["layer 2", "1048576 bytes"],
    );
    let many = (0..11).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), ""));
    refused_within(&one(many), &limits, &["more than 10 entries"]);
    refused_within(
        &one(Tar::new().dir("a/b/c/d/e/f/g/h/i/j/k")),
        &limits,
        &["10 entries"],
    );
    let whiteouts = (0..11).fold(Tar::new(), |tar, number| {
        tar.file(&format!(".wh.{number}"), "")
    });
    refused_within(&one(whiteouts), &limits, &["more than 10 entries"]);
    // A hole of a terabyte in a file of 512 bytes.
    let sparse: [(&str, &[u8]); 5] = [
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.size", b"1099511627776"),
        ("GNU.sparse.map", b"0,1"),
    ];
    refused_within(
        &one(Tar::new().pax(&sparse).file("s", "x")),
        &limits,
        &["\"s\"", "--max-size"],
    );
}

#[test]
fn extensions_are_bounded_before_they_are_read() {
    for kind in [b'x', b'g', b'L', b'K'] {
        let mut header = Tar::header(EntryType::new(kind), 0);
        header.set_size(1 << 40);
        header.set_cksum();
        refused(
            &[header.as_bytes().to_vec()],
            &["1099511627776 bytes", "1 MiB"],
        );
    }
}

#[test]
fn maps_of_sparse_files_have_to_be_in_order() {
    for map in [
        "0,1,0,1",
        "5",
        "2,1",
        "0,99",
        "0,0",
        "18446744073709551615,2",
        "0,x",
    ] {
        let sparse: [(&str, &[u8]); 3] = [
            ("GNU.sparse.size", b"10"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let stores = Stores::new();
        let accepted = stores.import(&one(Tar::new().pax(&sparse).file("s", "x")));
        // Data at 2 is in order; all others are not.
        assert_eq!(accepted.is_ok(), map == "2,1", "{map}");
    }
}

#[test]
fn attributes_are_bounded() {
    let large = vec![b'x'; 65 << 10];
    let tar = Tar::new()
        .pax(&[("SCHILY.xattr.user.a", &large)])
        .file("f", "");
    refused(&one(tar), &["64 KiB"]);
    let name = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    refused(
        &one(Tar::new().pax(&[(&name, b"")]).file("f", "")),
        &["\"f\"", "attribute"],
    );
}

#[test]
fn a_deep_tree_is_taken_away_without_recursion() {
    let mut lower = Tar::new();
    for _ in 0..40 {
        let path = "d/".repeat(2000);
        lower = lower.pax(&[("path", path.as_bytes())]).dir("x");
    }
    let upper = Tar::new().file(".wh.d", "").file("f", "1").done();
    let lines = listing(&[lower.done(), upper]);
    assert_eq!(lines, ["f = 1"]);
}

#[test]
fn an_image_for_another_machine_is_refused() {
    let stores = Stores::new();
    let digest = casita_images::Digest::of(b"image");
    let config = br#"{"os":"linux","architecture":"arm64"}"#;
    let import = casita_images::Import {
        reference: None,
        digest,
        config,
        layers: Vec::new(),
    };
    let error = stores
        .store
        .import(import, &Limits::default(), &|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("linux/arm64") && error.contains("linux/amd64"),
        "{error}"
    );
}
