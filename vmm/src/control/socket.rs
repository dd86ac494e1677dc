//! Where a VM's control socket is. A socket's address holds 107 bytes of path, and folders may
//! have longer ones: the socket is reached through its folder's descriptor.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

/// The socket's name in its folder.
pub const NAME: &str = "control.sock";

/// A path that is short, and good as long as the descriptor is open.
fn short_path(dir: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()).into()
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(dir, flags, Mode::empty())?)
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
