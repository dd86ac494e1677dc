//! virtiofsd's file system and device, on one connection.

use std::fs::File;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtiofsd::filesystem::{FileSystem, SerializableFileSystem};
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};
use virtiofsd::soft_idmap::cmdline::IdMap;
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::confine::Root;

/// Descriptors that the guest's files leave for everything else: the pieces of guest memory, the
/// queues' events, the directories above.
const OWN_DESCRIPTORS: u64 = 128;

/// What a guest knows of a file is true for so long; others may change files, too.
const CACHE_TIME: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("at most {0} files can be open at once, which is too few: see `ulimit -Hn`")]
    Descriptors(u64),
    #[error("its socket could not be made")]
    Socket(#[source] io::Error),
    #[error("the directory could not be opened")]
    Directory(#[source] io::Error),
    #[error("its system calls could not be restricted: {0}")]
    Seccomp(virtiofsd::seccomp::Error),
    #[error("its device could not be made: {0}")]
    Device(String),
    #[error("casita could not be told")]
    Tell(#[source] io::Error),
}

/// A connection with nobody at either end yet. The listener is what the daemon's library wants; its
/// name is one of this process's own network namespace, where nobody else can connect to it.
pub fn connection() -> Result<(UnixListener, UnixStream), ServeError> {
    let make = || {
        let name = SocketAddr::from_abstract_name("vhost-user")?;
        let listener = UnixListener::bind_addr(&name)?;
        let connection = UnixStream::connect_addr(&name)?;
        Ok((listener, connection))
    };
    make().map_err(ServeError::Socket)
}

/// Serves the root directory until the connection that waits in `listener` ends. `ready` tells the
/// other end to start.
pub fn serve(
    root: Root,
    listener: &UnixListener,
    read_only: bool,
    files: u64,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), ServeError> {
    let config = config(root, files)?;
    // Before there is a second thread, which would not have it.
    enable_seccomp(SeccompAction::Kill, false).map_err(ServeError::Seccomp)?;
    if read_only {
        let files = PassthroughFsRo::new(config).map_err(ServeError::Directory)?;
        serve_files(files, listener, ready)
    } else {
        let files = PassthroughFs::new(config).map_err(ServeError::Directory)?;
        serve_files(files, listener, ready)
    }
}

fn config(root: Root, files: u64) -> Result<Config, ServeError> {
    let guest_files = files.saturating_sub(OWN_DESCRIPTORS);
    if guest_files < OWN_DESCRIPTORS {
        return Err(ServeError::Descriptors(files));
    }
    // All users of the guest are the one that there is; what the guest's root makes is the host
    // user's own. A change of owner has no effect then.
    let only_one = || {
        vec![IdMap::SquashGuest {
            from_guest: 0,
            to_host: 0,
            count: u32::MAX,
        }]
    };
    Ok(Config {
        entry_timeout: CACHE_TIME,
        attr_timeout: CACHE_TIME,
        cache_policy: CachePolicy::Auto,
        root_dir: "/".to_owned(),
        proc_sfd_rawfd: Some(File::from(root.descriptors)),
        announce_submounts: true,
        // File handles need a capability over the whole host.
        inode_file_handles: InodeFileHandlesMode::Never,
        readdirplus: true,
        clean_noatime: true,
        uid_map: root.one_user.then(only_one),
        gid_map: root.one_user.then(only_one),
        guest_fd_limit: guest_files,
        ..Config::default()
    })
}

/// Requests are served one after the other, in the order in which they came. The front end counts on
/// that: it answers what was left open by a process that died.
fn serve_files<F: FileSystem + SerializableFileSystem + Send + Sync + 'static>(
    files: F,
    listener: &UnixListener,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), ServeError> {
    let device = VhostUserFsBackendBuilder::default()
        .build(files)
        .map_err(|error| ServeError::Device(error.to_string()))?;
    let broken = |error: DaemonError| ServeError::Device(error.to_string());
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon =
        VhostUserDaemon::new("vhost-user".to_owned(), Arc::new(device), memory).map_err(broken)?;
    let listener = listener.try_clone().map_err(ServeError::Socket)?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(broken)?;
    ready().map_err(ServeError::Tell)?;
    match daemon.wait() {
        Err(DaemonError::HandleRequest(
            VhostUserError::Disconnected | VhostUserError::PartialMessage,
        ))
        | Ok(()) => Ok(()),
        Err(error) => Err(broken(error)),
    }
}
