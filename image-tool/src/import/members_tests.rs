use super::*;
use std::io::{Read, Write};

fn tar(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &str) {
    let mut header = Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, content.as_bytes())
        .unwrap();
}

fn link(builder: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, to: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    builder.append_link(&mut header, name, to).unwrap();
}

fn index(bytes: &[u8]) -> Result<Members, MembersError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Members::index(file)
}

fn read(members: &Members, name: &str) -> Option<String> {
    let mut content = String::new();
    members.open(name)?.read_to_string(&mut content).unwrap();
    Some(content)
}

#[test]
fn members_are_read_by_name_in_any_order() {
    let long = "d/".repeat(80) + "file";
    let members = index(&tar(|tar| {
        add(tar, "./manifest.json", "[]");
        add(tar, "empty", "");
        add(tar, &long, "long");
        add(tar, "manifest.json", "[1]");
    }))
    .unwrap();
    assert_eq!(read(&members, "manifest.json").as_deref(), Some("[1]"));
    assert_eq!(read(&members, "empty").as_deref(), Some(""));
    assert_eq!(read(&members, &long).as_deref(), Some("long"));
    assert_eq!(read(&members, "other"), None);
}

#[test]
fn links_lead_to_members_and_never_out() {
    let members = index(&tar(|tar| {
        add(tar, "a/layer.tar", "layer");
        link(tar, EntryType::Symlink, "b/layer.tar", "../a/layer.tar");
        link(tar, EntryType::Link, "c/layer.tar", "b/layer.tar");
        link(tar, EntryType::Symlink, "out", "../../etc/passwd");
        link(tar, EntryType::Symlink, "round", "round");
    }))
    .unwrap();
    assert_eq!(read(&members, "b/layer.tar").as_deref(), Some("layer"));
    assert_eq!(read(&members, "c/layer.tar").as_deref(), Some("layer"));
    assert_eq!(read(&members, "out"), None);
    assert_eq!(read(&members, "round"), None);
}

#[test]
fn a_truncated_or_damaged_tar_is_refused() {
    let whole = tar(|tar| add(tar, "blobs/x", &"x".repeat(5000)));
    assert!(matches!(
        index(&whole[..3000]),
        Err(MembersError::Truncated(3000))
    ));
    let mut damaged = whole.clone();
    damaged[3] ^= 1;
    assert!(matches!(
        index(&damaged),
        Err(MembersError::Header { at: 0, .. })
    ));
    let mut huge = whole;
    huge[124..136].copy_from_slice(b"77777777777\0");
    let mut header = Header::from_byte_slice(&huge[..512]).clone();
    header.set_cksum();
    huge[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(index(&huge), Err(MembersError::Truncated(_))));
}

#[test]
fn the_first_member_tells_images_from_files() {
    let first = |name: &str| {
        kind(&tar(|tar| {
            add(tar, name, "x");
            add(tar, "more", "x");
        }))
    };
    let hex = "0123456789abcdef".repeat(4);
    for name in [
        "oci-layout",
        "blobs/sha256/x",
        "manifest.json",
        &format!("{hex}.tar"),
        &format!("{hex}/VERSION"),
        &format!("./{hex}.json"),
    ] {
        assert_eq!(first(name), Kind::Images, "{name}");
    }
    for name in ["bin/sh", "etc/manifest.json", "blob", &hex[1..]] {
        assert_eq!(first(name), Kind::Files, "{name}");
    }
    assert_eq!(kind(&[0; 1024]), Kind::Files);
    assert_eq!(kind(b"\x7fELF"), Kind::NoTar);
    assert_eq!(kind(&[7; 4096]), Kind::NoTar);
}

#[test]
fn the_folder_itself_tells_nothing() {
    let folder = |tar: &mut tar::Builder<Vec<u8>>| {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        tar.append_data(&mut header, "./", std::io::empty())
            .unwrap();
    };
    let layout = tar(|tar| {
        folder(tar);
        add(tar, "./blobs/sha256/x", "x");
    });
    assert_eq!(kind(&layout), Kind::Images);
    let files = tar(|tar| {
        folder(tar);
        add(tar, "./bin/sh", "x");
    });
    assert_eq!(kind(&files), Kind::Files);
}

#[test]
fn names_longer_than_any_that_is_looked_for_take_no_memory() {
    let long = "d/".repeat(MAX_NAME / 2) + "file";
    let members = index(&tar(|tar| {
        add(tar, &long, "long");
        add(tar, "index.json", "{}");
    }))
    .unwrap();
    // What the header itself has of the name is short.
    assert!(members.members.keys().all(|name| name.len() <= MAX_NAME));
    assert_eq!(read(&members, "index.json").as_deref(), Some("{}"));
}

#[test]
fn a_size_beyond_all_numbers_is_no_reason_to_panic() {
    let mut header = Header::new_gnu();
    header.set_path("./").unwrap();
    header.set_entry_type(EntryType::Directory);
    header.as_mut_bytes()[124..136].fill(0xff);
    header.set_cksum();
    assert_eq!(
        kind(&[header.as_bytes(), &[0; 512][..]].concat()),
        Kind::Files
    );
}
