//! Where a VM's control socket is. A socket's address holds 107 bytes of path, and folders may
//! have longer ones: the socket is reached through its folder's descriptor.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::process::geteuid;

/// The socket's name in its folder.
pub const NAME: &str = "control.sock";

/// A path that is short, and good as long as the descriptor is open.
fn short_path(dir: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()).into()
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(dir, flags, Mode::empty())?;
    // Where XDG_RUNTIME_DIR leads to a place that others write to, the folder may be theirs.
    let found = fstat(&opened)?;
    let user = geteuid();
    if (found.st_uid != user.as_raw() && !user.is_root()) || found.st_mode & 0o022 != 0 {
        let problem = "its folder belongs to another user, or others may write to it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(opened)
}

/// Listens in `dir`. A socket that is there is replaced: whoever calls this owns the VM.
pub(super) fn listen(dir: &Path) -> io::Result<UnixListener> {
    let dir = open_dir(dir)?;
    let path = short_path(&dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    // The folder is private already; so nobody has come in before this.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the VM that listens in `dir`.
pub(super) fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = open_dir(dir)?;
    UnixStream::connect(short_path(&dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = listen(dir.path()).unwrap();
        connect(dir.path()).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        for refused in [listen(dir.path()).err(), connect(dir.path()).err()] {
            assert_eq!(refused.unwrap().kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
