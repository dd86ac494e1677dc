//! The agent as a writer and a reader of tar archives, in a process of its own whose standard
//! streams are the archive's.
#![allow(
    unsafe_code,
    reason = "the standard streams come from the process that was forked, owned by nobody"
)]

use alloc::format;
use alloc::vec::Vec;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::stdio::{stderr, stdin, stdout};

use casita_agent::copy::{CopyError, Pack, Top, Unpack, open_directory, pack, unpack};
use casita_agent::tar::EXIT_MISSING;

/// Writes the file or directory at `path` to standard output, under its last name: that of `/a/b`
/// is `b`, that of `/a/b/.` and of `/` is `.`. Returns the exit status.
pub(crate) fn copy_out(path: &[u8]) -> u8 {
    let mut left_out = false;
    let mut complain = |error: CopyError| {
        left_out = true;
        print(&error);
    };
    // SAFETY: the process has a standard output, which is not closed before its end.
    let out = unsafe { stdout() };
    let rules = Pack {
        name: last_name(path),
        content: false,
        owners: true,
    };
    let result = pack(path, &rules, out, &mut complain);
    status(result, left_out)
}

/// Unpacks standard input below the directory `dir`. Returns the exit status.
pub(crate) fn copy_in(dir: &[u8]) -> u8 {
    let mut left_out = false;
    let mut complain = |error: CopyError| {
        left_out = true;
        print(&error);
    };
    let root = geteuid().is_root();
    let rules = Unpack {
        top: Top::Keep,
        owners: root,
        special: root,
        limit: u64::MAX,
    };
    // SAFETY: the process has a standard input, which is not closed before its end.
    let input = unsafe { stdin() };
    let result =
        open_directory(dir).and_then(|dir| unpack(dir.as_fd(), input, &rules, &mut complain));
    status(result, left_out)
}

/// Writes the paths that match `pattern` to standard output, each with a NUL behind it. Returns the
/// exit status.
pub(crate) fn find(pattern: &[u8]) -> u8 {
    let mut list = Vec::new();
    for path in casita_agent::find::find(pattern) {
        list.extend_from_slice(&path);
        list.push(0);
    }
    // SAFETY: the process has a standard output, which is not closed before its end.
    let out = unsafe { stdout() };
    let mut rest = list.as_slice();
    while !rest.is_empty() {
        match rustix::io::write(out, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return 1,
        }
    }
    0
}

/// The last name of `path`; empty if it has none of its own.
fn last_name(path: &[u8]) -> &[u8] {
    let mut names = path.rsplit(|byte| *byte == b'/');
    match names.find(|name| !name.is_empty()) {
        None | Some(b"." | b"..") => b"",
        Some(name) => name,
    }
}

fn status(result: Result<(), CopyError>, left_out: bool) -> u8 {
    match result {
        Ok(()) => left_out.into(),
        Err(error) => {
            print(&error);
            if matches!(error, CopyError::Missing(_)) {
                EXIT_MISSING
            } else {
                1
            }
        }
    }
}

/// One line; whoever does not read it does not want to.
fn print(error: &CopyError) {
    let line = format!("{error}\n");
    // SAFETY: the process has a standard error, which is not closed before its end.
    let _ = rustix::io::write(unsafe { stderr() }, line.as_bytes());
}
