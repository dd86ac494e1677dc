//! The way to the other members of a network: by its folder, or, for a monitor that is confined and
//! has no folders any more, by a process that is not.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{self as sockets, AddressFamily, SocketFlags, SocketType};

use super::members::{self, Member};
use crate::dirs::Dirs;
use crate::staging::Moment;

/// What is asked of the system for each socket; it gives as much as it may.
const SOCKET_BUFFER: usize = 4 << 20;

/// Whoever can look at a network's members and connect to them.
pub trait Outside: Debug + Send + Sync {
    /// The process that connects.
    fn process(&self) -> u32;

    /// The IDs of those that have a place on the network, alive or not.
    ///
    /// # Errors
    /// If they can't be had.
    fn ids(&self) -> io::Result<Vec<String>>;

    /// A member, and its lock's file, which tells whether it runs.
    ///
    /// # Errors
    /// If there is none.
    fn member(&self, id: &str) -> io::Result<(Member, File)>;

    /// A connection to a member, which does not wait.
    ///
    /// # Errors
    /// If it can't be reached.
    fn connect(&self, id: &str) -> io::Result<OwnedFd>;
}

/// The folder of a network's running members.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// For short names of sockets.
    open: OwnedFd,
}

impl Folder {
    /// That of the network `name`.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn of(dirs: &Dirs, name: &str) -> io::Result<Self> {
        Self::open(&dirs.runtime().join("networks").join(name))
    }

    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            open: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// Removes what members left that are gone.
    ///
    /// # Errors
    /// If the folder can't be locked.
    pub fn sweep(&self) -> io::Result<()> {
        let _moment = Moment::lock(&self.path)?;
        members::sweep(&self.path);
        Ok(())
    }
}

impl Outside for Folder {
    fn process(&self) -> u32 {
        std::process::id()
    }

    fn ids(&self) -> io::Result<Vec<String>> {
        Ok(members::ids(&self.path))
    }

    fn member(&self, id: &str) -> io::Result<(Member, File)> {
        check(id)?;
        members::read(&self.path, id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn connect(&self, id: &str) -> io::Result<OwnedFd> {
        check(id)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = sockets::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // As much as one may have is better than what one gets by itself, but no condition.
        let _ = sockets::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        sockets::connect(&socket, &members::socket_of(&self.open, id)?)?;
        Ok(socket)
    }
}

/// An ID that comes from elsewhere is a name in the folder, and no way out of it.
fn check(id: &str) -> io::Result<()> {
    let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain
        .then_some(())
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for id in ["", ".", "..", "../other", "a/b", ".half-a", "/etc"] {
            let error = folder.connect(id).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{id}");
            let error = folder.member(id).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{id}");
        }
    }
}
