//! casita-fs as a guest would see it whose kernel sends whatever it likes, and as the host sees it.

mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{Guest, ROOT, Served, op};
use tempfile::TempDir;

const SECRET: &str = "the host's own";
/// Some user that is not root.
const USER: u32 = 12345;

/// `shared` is given to the guest; `secret` beside it is not.
struct Host {
    place: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            place: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(host.shared().join("sub")).unwrap();
        fs::write(host.shared().join("file"), "shared").unwrap();
        fs::write(host.secret(), SECRET).unwrap();
        symlink(host.secret(), host.shared().join("out")).unwrap();
        symlink("../secret", host.shared().join("up")).unwrap();
        symlink("/", host.shared().join("root")).unwrap();
        host
    }

    fn shared(&self) -> PathBuf {
        self.place.path().join("shared")
    }

    fn secret(&self) -> PathBuf {
        self.place.path().join("secret")
    }

    /// Gives everything to [`USER`]. False if this test is not root's, and cannot.
    fn give_to_user(&self) -> bool {
        let public = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.place.path(), public).unwrap();
        let all = ["shared", "shared/sub", "shared/file"];
        all.iter().all(|name| {
            std::os::unix::fs::chown(self.place.path().join(name), Some(USER), Some(USER)).is_ok()
        })
    }

    /// What there is, with contents.
    fn tree(&self) -> BTreeMap<PathBuf, (u64, u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.place.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let data = path.symlink_metadata().unwrap();
                let mut contents = Vec::new();
                if data.is_file() {
                    contents = fs::read(&path).unwrap();
                } else if data.is_dir() {
                    dirs.push(path.clone());
                }
                found.insert(path, (data.ino(), data.mode(), contents));
            }
        }
        found
    }

    /// Inodes that the guest may know.
    fn shared_inodes(&self) -> Vec<u64> {
        let own = fs::metadata(self.shared()).unwrap().ino();
        let tree = self.tree();
        let below = tree
            .iter()
            .filter(|(path, _)| path.starts_with(self.shared()));
        below.map(|(_, (ino, ..))| *ino).chain([own]).collect()
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn guest_reads_and_writes_the_directory() {
    let host = Host::new();
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    let file = guest.lookup(ROOT, "file").unwrap();
    assert_eq!(guest.read_all(file.node).unwrap(), b"shared");
    let made = guest.create(ROOT, "new", 0).unwrap();
    guest.write(made, b"from the guest").unwrap();
    assert_eq!(text(&host.shared().join("new")), "from the guest");
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let host = Host::new();
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    let sub = guest.lookup(ROOT, "sub").unwrap().node;
    let secret = host.secret();
    let absolute = secret.to_str().unwrap();
    let names = [
        "..",
        ".",
        "../secret",
        "sub/../../secret",
        "/",
        "/etc/passwd",
        absolute,
        "./../secret",
        "root/etc/passwd",
        "out",
        "up",
        "",
    ];
    let known = host.shared_inodes();
    for parent in [ROOT, sub] {
        for name in names {
            if let Ok(found) = guest.lookup(parent, name) {
                assert!(
                    known.contains(&found.ino),
                    "{name:?} leads to inode {}",
                    found.ino
                );
            }
        }
    }
}

#[test]
fn symbolic_links_are_not_followed_on_the_host() {
    let host = Host::new();
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    for name in ["out", "up"] {
        let link = guest.lookup(ROOT, name).unwrap();
        assert_eq!(link.mode & libc::S_IFMT, libc::S_IFLNK);
        assert!(guest.read_all(link.node).is_err(), "{name} was read");
        assert!(
            guest.open(link.node, libc::O_RDWR).is_err(),
            "{name} was opened"
        );
    }
    let root = guest.lookup(ROOT, "root").unwrap().node;
    assert_eq!(guest.lookup(root, "etc").err(), Some(libc::ENOTDIR));
    // One that the guest makes itself.
    let target = host.secret();
    let names = [
        b"made\0".as_slice(),
        target.to_str().unwrap().as_bytes(),
        b"\0",
    ]
    .concat();
    guest.call(op::SYMLINK, ROOT, &names).unwrap();
    let made = guest.lookup(ROOT, "made").unwrap().node;
    assert!(guest.read_all(made).is_err());
    assert_eq!(text(&host.secret()), SECRET);
}

#[test]
fn nothing_outside_is_changed() {
    let host = Host::new();
    let outside = || {
        let tree = host.tree();
        let outside = tree
            .into_iter()
            .filter(|(path, _)| !path.starts_with(host.shared()));
        outside.collect::<Vec<_>>()
    };
    let before = outside();
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    for name in ["../new", "../secret", "/tmp/casita-fs-test-escaped", "up"] {
        let _ = guest.create(ROOT, name, 0);
        let named = [name.as_bytes(), b"\0"].concat();
        let _ = guest.call(op::UNLINK, ROOT, &named);
        let _ = guest.call(
            op::MKDIR,
            ROOT,
            &[&[0o755_u32.to_le_bytes(), [0; 4]].concat()[..], &named].concat(),
        );
        let to_name = [&1_u64.to_le_bytes()[..], b"file\0", &named].concat();
        let _ = guest.call(op::RENAME, ROOT, &to_name);
        let file = guest.lookup(ROOT, "sub").unwrap().node;
        let _ = guest.call(op::LINK, ROOT, &[&file.to_le_bytes()[..], &named].concat());
    }
    assert_eq!(outside(), before);
    assert!(!Path::new("/tmp/casita-fs-test-escaped").exists());
}

/// What is mounted below comes along, and is as little to be changed.
#[test]
fn whole_root_can_be_shared() {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    fs::write(file.path(), "below").unwrap();
    let mut guest = Guest::of(Served::start(Path::new("/"), true));
    let mut node = ROOT;
    for name in file.path().iter().skip(1) {
        node = guest.lookup(node, name.to_str().unwrap()).unwrap().node;
    }
    assert_eq!(guest.read_all(node).unwrap(), b"below");
    assert_eq!(guest.open(node, libc::O_RDWR).err(), Some(libc::EROFS));
}

#[test]
fn read_only_directory_stays_as_it_is() {
    let host = Host::new();
    let before = host.tree();
    let mut guest = Guest::of(Served::start(&host.shared(), true));
    let file = guest.lookup(ROOT, "file").unwrap().node;
    assert_eq!(guest.read_all(file).unwrap(), b"shared");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert!(guest.open(file, flags).is_err(), "opened with {flags:#x}");
    }
    assert_eq!(guest.create(ROOT, "new", 0).err(), Some(libc::EROFS));
    let named = |name: &str| [name.as_bytes(), b"\0"].concat();
    let mode = [0o755_u32.to_le_bytes(), [0; 4]].concat();
    for (opcode, body) in [
        (op::UNLINK, named("file")),
        (op::MKDIR, [mode.clone(), named("dir")].concat()),
        (op::SYMLINK, [named("link"), named("target")].concat()),
        (
            op::RENAME,
            [1_u64.to_le_bytes().to_vec(), named("file"), named("moved")].concat(),
        ),
        (
            op::LINK,
            [file.to_le_bytes().to_vec(), named("hard")].concat(),
        ),
    ] {
        let answer = guest.call(opcode, ROOT, &body);
        assert_eq!(answer.err(), Some(libc::EROFS), "operation {opcode}");
    }
    assert_eq!(guest.truncate(file).err(), Some(libc::EROFS));
    // A handle that was opened for reading does not write.
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert!(
        guest
            .write(guest::Open { node: file, handle }, b"x")
            .is_err()
    );
    assert_eq!(host.tree(), before);
}

#[test]
fn files_of_any_user_of_the_guest_belong_to_the_user_who_shares() {
    let host = Host::new();
    if !host.give_to_user() {
        return eprintln!("skipped: only root can be another user");
    }
    let mut guest = Guest::of(Served::start_as(&host.shared(), false, Some(USER)));
    for (name, uid) in [("roots", 0), ("somebodys", 1000)] {
        guest.create(ROOT, name, uid).unwrap();
        let made = fs::metadata(host.shared().join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (USER, USER), "{name}");
        let seen = guest.lookup(ROOT, name).unwrap();
        assert_eq!((seen.uid, seen.gid), (0, 0), "{name}");
    }
    // What belongs to others is theirs.
    fs::write(host.shared().join("roots-own"), SECRET).unwrap();
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(host.shared().join("roots-own"), mode).unwrap();
    let other = guest.lookup(ROOT, "roots-own").unwrap().node;
    assert_eq!(guest.read_all(other).err(), Some(libc::EACCES));
}

#[test]
fn roots_guest_has_the_users_of_the_host() {
    let host = Host::new();
    if !host.give_to_user() {
        return eprintln!("skipped: only root has other users");
    }
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    assert_eq!(guest.lookup(ROOT, "file").unwrap().uid, USER);
    guest.create(ROOT, "theirs", USER).unwrap();
    let made = fs::metadata(host.shared().join("theirs")).unwrap();
    assert_eq!((made.uid(), made.gid()), (USER, USER));
}

#[test]
fn process_is_confined() {
    for user in [None, Some(USER)] {
        let host = Host::new();
        if user.is_some() && !host.give_to_user() {
            return eprintln!("skipped: only root can be another user");
        }
        let served = Served::start_as(&host.shared(), false, user);
        let process = PathBuf::from(format!("/proc/{}", served.server()));
        for space in ["user", "mnt", "pid", "net", "ipc", "uts"] {
            let of = |process: &Path| fs::read_link(process.join("ns").join(space)).unwrap();
            assert_ne!(of(&process), of(Path::new("/proc/self")), "{space}");
        }
        let status = text(&process.join("status"));
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID.
        assert_eq!(field("CapPrm:"), "00000000000000db");
        // One mount, and it is the directory.
        let mounts = text(&process.join("mountinfo"));
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.contains("nosuid,nodev,noexec"), "{mounts}");
        let links = fs::read_dir(process.join("fd")).unwrap();
        for link in links.map(|link| link.unwrap().path()) {
            let target = fs::read_link(&link).unwrap();
            let target = target.to_str().unwrap();
            let known = ["/", "/dev/null", "socket:", "anon_inode:", "/proc/"];
            assert!(
                known.iter().any(|start| target.starts_with(start)),
                "{target}"
            );
        }
    }
}

#[test]
fn host_that_forbids_namespaces_is_told_what_to_change() {
    let host = Host::new();
    // In a namespace of its own this setting is root's, who the test is there.
    let forbid = r#"echo 0 > /proc/sys/user/max_user_namespaces || exit 9; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", forbid, "sh", guest::PROGRAM]);
    let Err(reason) = Served::start_by(command, &host.shared(), false) else {
        panic!("it was started");
    };
    if reason.is_empty() {
        return eprintln!("skipped: no namespace to forbid them in");
    }
    assert!(reason.contains("user namespaces"), "{reason}");
    assert!(
        reason.contains("sysctl user.max_user_namespaces"),
        "{reason}"
    );
}

#[test]
fn process_ends_with_its_connection() {
    let host = Host::new();
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    guest.lookup(ROOT, "file").unwrap();
    assert!(guest.disconnect().success());
}

#[test]
fn process_ends_with_whoever_started_it() {
    let host = Host::new();
    let served = Served::start(&host.shared(), false);
    let (server, connection) = served.kill_outer();
    // Its end of the connection closes when it has gone.
    assert!(
        guest::has_ended(&connection),
        "process {server} is still there"
    );
}

#[test]
fn request_that_is_none_ends_nothing_but_the_process() {
    let host = Host::new();
    let mut guest = Guest::of(Served::start(&host.shared(), false));
    let error = guest.send_raw(b"short").unwrap_err();
    assert_eq!(error, 0, "no answer, but the buffer is given back");
    assert_eq!(guest.lookup(ROOT, "file").err(), Some(libc::EIO));
    assert_eq!(text(&host.secret()), SECRET);
}
