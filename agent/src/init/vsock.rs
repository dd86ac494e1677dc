//! Connections to the host.

use casita_agent::wire::PORT;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::failure::Failure;
use crate::sys;

/// The host's number.
const HOST: u32 = 2;
/// Seconds that the host has to answer: a busy one is slow, and a dead one ends the machine.
const TIMEOUT: u64 = 60;
/// How often a missing device is looked for again, and how many milliseconds lie between.
const DEVICE_ATTEMPTS: u32 = 200;
const DEVICE_PAUSE: u32 = 10;

/// A connection to the host that is about to be made: it can be written to when it is.
pub(crate) fn begin() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    // A kernel that does not know the option has a timeout of its own.
    let _ = sys::set_vsock_timeout(socket.as_fd(), TIMEOUT);
    match sys::connect_vsock(socket.as_fd(), HOST, PORT) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// A connection to the host; the device may still be on its way.
pub(crate) fn connect() -> Result<OwnedFd, Failure> {
    let mut result = connect_now();
    for _ in 0..DEVICE_ATTEMPTS {
        if result.as_ref().err() != Some(&Errno::NODEV) {
            break;
        }
        sys::sleep(DEVICE_PAUSE);
        result = connect_now();
    }
    result.map_err(|errno| match errno {
        Errno::AFNOSUPPORT => Failure::new(
            "cannot reach the host: the guest's kernel has no vsock; build it with \
             CONFIG_VSOCKETS=y and CONFIG_VIRTIO_VSOCKETS=y",
        ),
        Errno::NODEV => Failure::new(
            "cannot reach the host: the guest has no vsock device; build its kernel with \
             CONFIG_VIRTIO_VSOCKETS=y",
        ),
        errno => Failure::errno("cannot reach the host through vsock", errno),
    })
}

fn connect_now() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    let _ = sys::set_vsock_timeout(socket.as_fd(), TIMEOUT);
    sys::connect_vsock(socket.as_fd(), HOST, PORT)?;
    set_nonblocking(&socket)?;
    Ok(socket)
}

/// Calls on this end return at once from now on.
pub(crate) fn set_nonblocking(file: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(file, fcntl_getfl(file)? | OFlags::NONBLOCK)
}
