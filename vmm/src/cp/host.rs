//! The host's side: where a copy comes from and goes to.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use casita_agent::copy::{CopyError, Pack, Top, Unpack, pack, unpack};
use rustix::io::Errno;

use super::CpError;
use super::guest::{Copy, GuestFiles};
use super::rules::{self, Found, RuleError};

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Keep owners, and as root set-id bits, devices and extended attributes.
    pub archive: bool,
    /// Copy what a symbolic link leads to if it is the path that was given.
    pub follow: bool,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CpError {
    let path = path.to_owned();
    move |source| CpError::Io {
        action,
        path,
        source,
    }
}

/// Copies `source` of a VM to `target` of the host's; without a target, as an archive to standard
/// output.
///
/// # Errors
/// [`CpError`].
pub fn from_guest(
    files: &GuestFiles,
    source: &str,
    target: Option<&str>,
    options: Options,
) -> Result<(), CpError> {
    let Some(target) = target else {
        return to_stdout(files, source, options);
    };
    let named = source;
    let (found, source) = files.look(named, options.follow)?;
    if found == Found::Nothing {
        return Err(CpError::Missing(source));
    }
    // Under the name that was given: the guest says where its links lead, and no more.
    let put = rules::target(named, found == Found::Directory, target, at_host(target)?)?;
    let path = PathBuf::from(&put.directory);
    let directory = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RuleError::NoParent(put.directory.clone()).into(),
        _ => io_error("open", &path)(error),
    })?;
    if !directory.metadata().is_ok_and(|found| found.is_dir()) {
        return Err(RuleError::NotADirectory(put.directory).into());
    }
    let root = options.archive && rustix::process::geteuid().is_root();
    let rules = Unpack {
        top: match &put.name {
            Some(name) => Top::Rename(name.as_bytes()),
            None => Top::Content,
        },
        owners: root,
        special: root,
        limit: room(&directory).map_err(io_error("look at", &path))?,
    };
    let copy = files.copy_out(&source)?;
    let mut left_out = LeftOut(false);
    let result = unpack(
        directory.as_fd(),
        copy.as_fd(),
        &rules,
        &mut left_out.told(),
    );
    match result {
        Ok(()) => {
            copy.finish()?;
            left_out.result()
        }
        // If the guest has failed, that is why the archive ends early.
        Err(CopyError::Tar(error)) => {
            copy.finish()?;
            Err(CopyError::Tar(error).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn to_stdout(files: &GuestFiles, source: &str, options: Options) -> Result<(), CpError> {
    let stdout = io::stdout();
    let path = Path::new("standard output");
    if stdout.is_terminal() {
        let error =
            io::Error::other("it is a terminal, which shows no archives; use a pipe or a file");
        return Err(io_error("write an archive to", path)(error));
    }
    let source = if options.follow {
        files.look(source, true)?.1
    } else {
        source.to_owned()
    };
    receive_archive(files.copy_out(&source)?, stdout.as_fd(), path)
}

/// Writes the archive that the guest packs to `out`, which is at `path`.
pub(crate) fn receive_archive(copy: Copy, out: BorrowedFd<'_>, path: &Path) -> Result<(), CpError> {
    transfer(copy.as_fd(), out).map_err(io_error("write to", path))?;
    copy.finish()
}

/// Copies `source` of the host's, or the archive at standard input, to `target` of a VM.
///
/// # Errors
/// [`CpError`].
pub fn to_guest(
    files: &GuestFiles,
    source: Option<&str>,
    target: &str,
    options: Options,
) -> Result<(), CpError> {
    let (found, target) = files.look(target, true)?;
    let Some(source) = source else {
        if found != Found::Directory {
            return Err(RuleError::NotADirectory(target).into());
        }
        let copy = files.copy_in(&target)?;
        return send_archive(copy, io::stdin().as_fd());
    };
    let path = resolved(source, options.follow)?;
    // With its last slash, which says to follow a link.
    let kind = fs::symlink_metadata(&path).map_err(io_error("copy", &path))?;
    let name = path.to_string_lossy();
    let put = rules::target(&name, kind.is_dir(), &target, found)?;
    let rules = Pack {
        name: put.name.as_deref().unwrap_or_default().as_bytes(),
        content: put.name.is_none(),
        owners: options.archive,
    };
    let copy = files.copy_in(&put.directory)?;
    let mut left_out = LeftOut(false);
    let source = path.as_os_str().as_encoded_bytes();
    let sent = send(copy, |out| pack(source, &rules, out, &mut left_out.told()));
    match sent {
        Err(CpError::Missing(path)) => Err(RuleError::NoParent(path).into()),
        Err(error) => Err(error),
        Ok(()) => left_out.result(),
    }
}

/// Lets the guest unpack the archive that `from` holds.
pub(crate) fn send_archive(copy: Copy, from: BorrowedFd<'_>) -> Result<(), CpError> {
    send(copy, |out| {
        transfer(from, out).map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            CopyError::Archive("write", errno.unwrap_or(Errno::IO))
        })
    })
}

/// Runs `write`, which writes an archive, while the guest unpacks it. A guest that fails closes its
/// side, and knows best why.
fn send(
    copy: Copy,
    write: impl FnOnce(BorrowedFd<'_>) -> Result<(), CopyError>,
) -> Result<(), CpError> {
    match write(copy.as_fd()) {
        Ok(()) | Err(CopyError::Archive(_, Errno::PIPE | Errno::CONNRESET)) => copy.finish(),
        // The guest sees half an archive, and that is not what is to be told.
        Err(error) => {
            let _ = copy.finish();
            Err(error.into())
        }
    }
}

/// `..` is given its name; with `follow` a link becomes what it leads to.
fn resolved(source: &str, follow: bool) -> Result<PathBuf, CpError> {
    let path = Path::new(source);
    let last = source.rsplit('/').find(|name| !name.is_empty());
    if follow || last == Some("..") {
        fs::canonicalize(path).map_err(io_error("copy", path))
    } else {
        Ok(path.to_owned())
    }
}

fn at_host(path: &str) -> Result<Found, CpError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Found::Directory),
        Ok(_) => Ok(Found::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        // A file with a slash behind it.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(RuleError::NotADirectory(path.to_owned()).into())
        }
        Err(error) => Err(io_error("look at", Path::new(path))(error)),
    }
}

/// What the file system of a directory has left for this user, in bytes.
fn room(directory: &File) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(directory)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// From one descriptor to another, until the first has no more.
fn transfer(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match rustix::io::read(from, &mut buffer[..]) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Whether anything was left out on the host's side.
struct LeftOut(bool);

impl LeftOut {
    fn told(&mut self) -> impl FnMut(CopyError) {
        |error| {
            self.0 = true;
            log::warn!("{error}");
        }
    }

    fn result(&self) -> Result<(), CpError> {
        if self.0 {
            Err(CpError::LeftOut)
        } else {
            Ok(())
        }
    }
}
