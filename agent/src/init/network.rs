//! The guest's name, and the network that a machine has with itself.

use rustix::fd::AsFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::system::sethostname;

use crate::failure::{Doing, Failure};
use crate::sys;

/// Sets the hostname and brings the loopback interface up.
pub(crate) fn prepare(hostname: &str) -> Result<(), Failure> {
    sethostname(hostname.as_bytes()).doing(|| alloc::format!("cannot be named {hostname:?}"))?;
    // A kernel without a network has no loopback either, and its guest wants none.
    let flags = SocketFlags::CLOEXEC;
    if let Ok(socket) = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None) {
        const IFF_UP: u16 = 1;
        let _ =
            sys::set_interface_flags(socket.as_fd(), *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0", IFF_UP);
    }
    Ok(())
}
