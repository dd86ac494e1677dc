use std::process::{Command, Stdio};

use super::*;
use crate::spec::{FsType, Mount};
use crate::wire::Key;

fn spec() -> GuestSpec {
    GuestSpec {
        hostname: "yard".into(),
        root: Mount {
            device: "/dev/vda".into(),
            fs: FsType::Erofs,
        },
        disk: None,
        keep_disk: false,
        key: Key([1; 16]),
        mounts: Vec::new(),
        network: None,
    }
}

/// An entry as a reader of the format finds it.
struct Read {
    name: String,
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// Reads an archive by the format's description alone.
fn read(mut archive: &[u8]) -> Vec<Read> {
    let mut entries = Vec::new();
    let total = archive.len();
    loop {
        let at = total - archive.len();
        assert_eq!(at % 4, 0, "a header starts on a multiple of four");
        assert_eq!(&archive[..6], b"070701");
        let field = |index: usize| {
            let digits = &archive[6 + 8 * index..14 + 8 * index];
            u32::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        let (name_len, data_len) = (field(11) as usize, field(6) as usize);
        let name_end = 110 + name_len;
        assert_eq!(archive[name_end - 1], 0, "a name ends with NUL");
        let name = String::from_utf8(archive[110..name_end - 1].to_vec()).unwrap();
        let data_start = name_end.next_multiple_of(4);
        let data_end = data_start + data_len;
        if name == "TRAILER!!!" {
            assert_eq!(archive.len(), data_end, "nothing follows the trailer");
            return entries;
        }
        entries.push(Read {
            name,
            mode: field(1),
            device: (field(9), field(10)),
            data: archive[data_start..data_end].to_vec(),
        });
        archive = &archive[data_end.next_multiple_of(4)..];
    }
}

fn entry<'a>(entries: &'a [Read], name: &str) -> &'a Read {
    entries.iter().find(|entry| entry.name == name).unwrap()
}

#[test]
fn the_kernel_finds_the_agent_as_its_first_program() {
    let agent = b"\x7fELF program";
    let entries = read(&build(agent, &spec()).unwrap());
    let init = entry(&entries, "init");
    assert_eq!(
        (init.mode, init.data.as_slice()),
        (0o100_755, agent.as_slice())
    );
}

#[test]
fn the_kernel_finds_a_console_to_open() {
    let entries = read(&build(b"", &spec()).unwrap());
    let console = entry(&entries, "dev/console");
    assert_eq!((console.mode, console.device), (0o020_600, (5, 1)));
}

#[test]
fn the_agent_finds_its_spec_and_its_directories() {
    let entries = read(&build(b"agent", &spec()).unwrap());
    assert_eq!(
        spec::decode(&entry(&entries, "casita.spec").data),
        Ok(spec())
    );
    for directory in ["dev", "image", "disk", "root"] {
        assert_eq!(entry(&entries, directory).mode, 0o040_755, "{directory}");
    }
}

#[test]
fn the_guest_is_named() {
    let entries = read(&build(b"agent", &spec()).unwrap());
    assert_eq!(entry(&entries, "hostname").data, b"yard\n");
    let hosts = String::from_utf8(entry(&entries, "hosts").data.clone()).unwrap();
    assert!(hosts.contains("127.0.0.1\tlocalhost\n"));
    assert!(hosts.contains("127.0.1.1\tyard\n"));
}

#[test]
fn a_directory_comes_before_what_is_in_it() {
    let entries = read(&build(b"agent", &spec()).unwrap());
    let position = |name| entries.iter().position(|entry| entry.name == name).unwrap();
    assert!(position("dev") < position("dev/console"));
}

#[test]
fn a_spec_that_cannot_be_encoded_is_refused() {
    let mut spec = spec();
    spec.hostname.clear();
    assert_eq!(
        build(b"agent", &spec),
        Err(SpecError::Hostname(String::new()))
    );
}

#[test]
fn data_of_any_length_are_padded() {
    for len in 0..9 {
        let agent = vec![7; len];
        let entries = read(&build(&agent, &spec()).unwrap());
        assert_eq!(entry(&entries, "init").data, agent);
    }
}

/// Needs the cpio program; says so and ends where there is none.
#[test]
fn cpio_lists_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initrd");
    std::fs::write(&path, build(b"agent", &spec()).unwrap()).unwrap();
    let output = Command::new("cpio")
        .args(["--list", "--quiet", "--file"])
        .arg(&path)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: cpio is not installed");
        return;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listed = String::from_utf8(output.stdout).unwrap();
    let expected = "dev dev/console image disk root hosts hostname casita.spec init";
    let listed = listed.lines().collect::<Vec<_>>().join(" ");
    assert_eq!(listed, expected);
}
