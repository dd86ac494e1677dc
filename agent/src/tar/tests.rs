use std::io::Write as _;
use std::process::{Command, Stdio};
use std::string::ToString;
use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;

fn file(path: &[u8], size: u64) -> Entry {
    Entry {
        path: path.to_vec(),
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        size,
        xattrs: Vec::new(),
    }
}

/// Reads the whole archive; content is passed over.
fn read(bytes: &[u8]) -> Result<Vec<Entry>, TarError> {
    let mut reader = Reader::default();
    let mut entries = Vec::new();
    let mut rest = bytes;
    while let Some((block, behind)) = rest.split_first_chunk::<BLOCK>() {
        rest = behind;
        match reader.block(block)? {
            Step::More => {}
            Step::End => return Ok(entries),
            Step::Entry(entry) => {
                let content = usize::try_from(entry.size)
                    .ok()
                    .and_then(|size| size.checked_add(padding(entry.size)));
                rest = content
                    .and_then(|content| rest.get(content..))
                    .ok_or(TarError::Truncated)?;
                entries.push(entry);
            }
        }
    }
    if reader.at_entry() && rest.is_empty() {
        Ok(entries)
    } else {
        Err(TarError::Truncated)
    }
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        header(entry, &mut out).unwrap();
        let len = usize::try_from(entry.size).unwrap();
        out.extend(vec![b'x'; len]);
        out.extend(vec![0; padding(entry.size)]);
    }
    end(&mut out);
    out
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let lengths = prop_oneof![1..8_usize, 95..106_usize, 250..260_usize];
    lengths.prop_flat_map(|len| proptest::collection::vec(1..=u8::MAX, len..=len))
}

fn kind() -> impl Strategy<Value = Kind> {
    let number = 0..1_u32 << 21;
    prop_oneof![
        Just(Kind::File),
        Just(Kind::Directory),
        Just(Kind::Fifo),
        path().prop_map(Kind::Symlink),
        path().prop_map(Kind::HardLink),
        (number.clone(), number.clone())
            .prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        (number.clone(), number).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
    ]
}

prop_compose! {
    fn any_entry()(
        path in path(),
        kind in kind(),
        mode in 0..=0o7777_u32,
        uid: u32,
        gid: u32,
        seconds in prop_oneof![-4_000_000_000_i64..4_000_000_000, Just(i64::from(u32::MAX) << 3)],
        nanoseconds in prop_oneof![Just(0), 0..1_000_000_000_u32],
        size in 0..2000_u64,
        xattrs in proptest::collection::vec(
            ("[a-z.]{1,200}", proptest::collection::vec(any::<u8>(), 0..600)), 0..3),
    ) -> Entry {
        let mut path = path;
        if kind == Kind::File && path.ends_with(b"/") {
            path.push(b'f');
        }
        Entry {
            size: if kind == Kind::File { size } else { 0 },
            path, kind, mode, uid, gid,
            mtime: Time { seconds, nanoseconds },
            xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(entries in proptest::collection::vec(any_entry(), 0..5)) {
        prop_assert_eq!(read(&archive(&entries)), Ok(entries));
    }

    #[test]
    fn damaged_archives_are_answered(
        entries in proptest::collection::vec(any_entry(), 1..3),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = archive(&entries);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()));
        let _ = read(&bytes);
    }

    #[test]
    fn an_archive_that_is_cut_off_is_not_taken_for_a_whole_one(
        entry in any_entry(),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = archive(&[entry]);
        let body = whole.len() - 2 * BLOCK;
        let cut = 1 + cut.index(body - 1);
        prop_assert_eq!(read(&whole[..cut]), Err(TarError::Truncated));
    }

    #[test]
    fn times_read_back(seconds: i64, nanoseconds in 0..1_000_000_000_u32) {
        let time = Time { seconds, nanoseconds };
        let mut record = Vec::new();
        pax::push_time(&mut record, b"mtime", time);
        let ((_, value), rest) = pax::next(&record).unwrap();
        prop_assert_eq!(pax::time(value), Some(time));
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn any_extended_header_is_answered(bytes: Vec<u8>) {
        let mut rest = &bytes[..];
        while let Ok((_, behind)) = pax::next(rest) {
            prop_assert!(behind.len() < rest.len());
            rest = behind;
        }
        let _ = pax::time(&bytes);
        let _ = number::read(&bytes);
    }
}

#[test]
fn numbers_in_base_256_are_read() {
    let mut field = [0; 12];
    field[0] = 0x80;
    field[11] = 7;
    assert_eq!(number::read(&field), Some(7));
    assert_eq!(number::read(&[0xff; 12]), Some(-1));
    field[1] = 1;
    assert_eq!(number::read(&field), None, "more than 64 bits");
}

#[test]
fn octal_numbers_may_stand_between_blanks() {
    for (field, value) in [
        (&b"0000644\0"[..], 0o644),
        (b"   644 \0", 0o644),
        (b"00000644", 0o644),
        (b"\0\0\0\0", 0),
        (b"    ", 0),
    ] {
        assert_eq!(number::read(field), Some(value), "{field:?}");
    }
    for field in [&b"0000648\0"[..], b"12 34567", b"-1\0", b"", b"abc"] {
        assert_eq!(number::read(field), None, "{field:?}");
    }
}

#[test]
fn extended_headers_are_bounded() {
    let mut long = file(b"f", 0);
    long.xattrs = vec![(b"user.x".to_vec(), vec![0; 2 << 20])];
    assert_eq!(header(&long, &mut Vec::new()), Err(TarError::Extension));
    // Many small ones, one after the other, none of them with an entry.
    let mut small = file(b"f", 0);
    small.xattrs = vec![(b"user.x".to_vec(), vec![0; 60_000])];
    let mut once = Vec::new();
    header(&small, &mut once).unwrap();
    let extension = once.len() - BLOCK;
    let many = once[..extension].repeat(20);
    assert_eq!(read(&many), Err(TarError::Extension));
}

#[test]
fn what_can_not_be_a_path_is_refused() {
    for bad in [&b""[..], b"a\0b", &[b'x'; MAX_PATH + 1]] {
        assert_eq!(header(&file(bad, 0), &mut Vec::new()), Err(TarError::Path));
    }
    let link = Entry {
        kind: Kind::Symlink(Vec::new()),
        ..file(b"l", 0)
    };
    assert_eq!(header(&link, &mut Vec::new()), Err(TarError::Path));
}

#[test]
fn a_wrong_checksum_is_told() {
    let mut bytes = archive(&[file(b"f", 0)]);
    bytes[0] ^= 1;
    assert_eq!(read(&bytes), Err(TarError::Checksum));
    assert_eq!(read(&[b'x'; BLOCK]), Err(TarError::Checksum));
}

/// What other programs write is read, and what is written here other programs read.
#[test]
fn tar_itself_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let name = "n".repeat(80);
    let deep = folder.path().join("d".repeat(90)).join(&name);
    std::fs::create_dir_all(deep.parent().unwrap()).unwrap();
    std::fs::write(&deep, "content").unwrap();
    std::fs::hard_link(&deep, folder.path().join("z-hard")).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), folder.path().join("soft")).unwrap();
    for format in ["ustar", "pax", "gnu", "oldgnu"] {
        let mut tar = Command::new("tar");
        tar.args(["-c", "--sort=name", "--format", format, "-C"]);
        // ustar has no such long links.
        tar.arg(folder.path())
            .args([
                "--exclude",
                if format == "ustar" { "./[sz]*" } else { "none" },
            ])
            .arg(".");
        let Ok(output) = tar.output() else { return };
        assert!(output.status.success(), "{format}");
        let entries = read(&output.stdout).unwrap();
        let content = entries
            .iter()
            .find(|entry| entry.path.ends_with(name.as_bytes()));
        assert_eq!(content.map(|entry| entry.size), Some(7), "{format}");
        if format != "ustar" {
            let kinds = |kind: fn(&Kind) -> bool| entries.iter().any(|entry| kind(&entry.kind));
            assert!(kinds(|kind| matches!(kind, Kind::HardLink(_))), "{format}");
            assert!(kinds(
                |kind| matches!(kind, Kind::Symlink(to) if to.len() == 200)
            ));
        }
    }
    let long = [&b"p/"[..], &[b'q'; 130]].concat();
    let mut tar = Command::new("tar")
        .arg("-t")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = archive(&[file(&long, 700), file(b"last", 1)]);
    tar.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = tar.wait_with_output().unwrap();
    let listed = std::string::String::from_utf8(output.stdout).unwrap();
    let expected =
        [&long[..], b"last"].map(|path| std::string::String::from_utf8_lossy(path).to_string());
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
}
