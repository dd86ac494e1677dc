//! Directories of the host in a guest: each is served by a program of its own, `casita-fs`, which is
//! confined to that directory.
//!
//! Start it early and ask for the connection late: it needs some milliseconds, in which the machine
//! can be made.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};
use thiserror::Error;

use crate::helpers::{self, HelperError};

/// It needs a hundredth of a second, on a host that is not busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
pub enum ShareError {
    /// There is no such directory.
    #[error("there is no directory {} on this host to share", .0.display())]
    Missing(PathBuf),
    /// It is something else.
    #[error("{} is not a directory; only directories can be shared", .0.display())]
    NotADirectory(PathBuf),
    /// The host does not let this user.
    #[error("the directory {} could not be opened", dir.display())]
    Open {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The helper does not run.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The helper says why.
    #[error("the directory {} can't be shared: {reason}", dir.display())]
    Refused {
        /// The directory.
        dir: PathBuf,
        /// In its words.
        reason: String,
    },
    /// The helper says nothing.
    #[error("the program that is to share {} does not answer", dir.display())]
    Silent {
        /// The directory.
        dir: PathBuf,
        /// What happened instead.
        #[source]
        source: io::Error,
    },
}

/// A directory that is served, or about to be. Nobody serves it any more when this is dropped.
#[derive(Debug)]
pub struct Share {
    dir: PathBuf,
    tag: String,
    /// The program's word that it is ready comes here.
    channel: OwnedFd,
    _program: Program,
}

/// A running program.
#[derive(Debug)]
struct Program(Child);

/// How long a program may take to end with its connection.
const LAST_BREATH: Duration = Duration::from_secs(2);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, with its connection.
        if self.0.kill().is_ok() {
            let _ = self.0.wait();
            return;
        }
        // A confined process may signal nobody: the end of the connection has to do.
        let until = Instant::now() + LAST_BREATH;
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() > until {
                log::warn!("a program that serves a directory does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Share {
    /// Starts to serve `dir`, which the guest will find under `tag`. With `read_only` nothing in it
    /// can be changed, whatever the guest does.
    ///
    /// The program ends with the thread that calls this, at the latest.
    ///
    /// # Errors
    /// The directory can't be opened, or the program not started.
    pub fn start(dir: &Path, tag: &str, read_only: bool) -> Result<Self, ShareError> {
        let opened = open(dir)?;
        let path = helpers::find(helpers::FS)?;
        let failed = |source| HelperError::Start {
            path: path.clone(),
            source,
        };
        let (channel, theirs) = channel().map_err(failed)?;
        // The two descriptors are passed as standard streams, which are the only ones that survive
        // the start of a program. Its standard error would be a terminal to a confined process.
        let mut command = Command::new(&path);
        command
            .args(["--fd", "0", "--dir-fd", "1"])
            .stdin(theirs)
            .stdout(opened)
            .stderr(Stdio::null())
            .current_dir("/")
            .env_clear();
        if read_only {
            command.arg("--read-only");
        }
        helpers::harden(&mut command);
        let program = command.spawn().map(Program).map_err(failed)?;
        Ok(Self {
            dir: dir.to_owned(),
            tag: tag.to_owned(),
            channel,
            _program: program,
        })
    }

    /// The name by which the guest mounts it.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Waits until all is in place, and returns the connection to the program, which speaks
    /// vhost-user. There is one for each share.
    ///
    /// # Errors
    /// The program says that it can't serve the directory, or says nothing.
    pub fn connect(&self) -> Result<UnixStream, ShareError> {
        let silent = |source: io::Error| ShareError::Silent {
            dir: self.dir.clone(),
            source,
        };
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(&mut text)];
            match recvmsg(&self.channel, parts, &mut rights, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(|error| silent(error.into()))?.bytes,
            }
        };
        let connection = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match (text.get(..received), connection) {
            (Some([0]), Some(connection)) => Ok(connection.into()),
            (Some([1, reason @ ..]), None) => Err(ShareError::Refused {
                dir: self.dir.clone(),
                reason: String::from_utf8_lossy(reason).into_owned(),
            }),
            _ => Err(silent(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn open(dir: &Path) -> Result<File, ShareError> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(dir);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT) => ShareError::Missing(dir.to_owned()),
        Some(libc::ENOTDIR) => ShareError::NotADirectory(dir.to_owned()),
        _ => ShareError::Open {
            dir: dir.to_owned(),
            source,
        },
    })
}

/// One message is all that passes, and it passes whole.
fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directory_is_not_shared() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        File::create(&file).unwrap();
        let error = Share::start(&file, "t", false).unwrap_err();
        assert!(matches!(error, ShareError::NotADirectory(_)), "{error}");
        let error = Share::start(&place.path().join("none"), "t", false).unwrap_err();
        assert!(matches!(error, ShareError::Missing(_)), "{error}");
    }

    /// Tests lie in a folder of their own, where the program is not.
    #[test]
    fn missing_program_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = Share::start(place.path(), "t", false).unwrap_err();
        assert!(
            matches!(error, ShareError::Helper(HelperError::Missing(_))),
            "{error}"
        );
        assert!(error.to_string().contains("casita-fs"), "{error}");
    }
}
