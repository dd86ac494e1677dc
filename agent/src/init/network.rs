//! The guest's name, the network that a machine has with itself, and its one interface to others.

use alloc::format;
use alloc::vec::Vec;

use casita_agent::rtnetlink::{Requests, count_answers};
use casita_agent::spec::Network;
use rustix::buffer::spare_capacity;
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read, write};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use rustix::system::sethostname;

use crate::failure::{Doing, Failure};
use crate::sys;

/// The kernel's name for the machine's one network device.
const INTERFACE: &str = "eth0";

/// The kernel's answer to a dozen messages, each of which it repeats.
const MOST_ANSWERS: usize = 16 << 10;

/// Sets the hostname, brings the loopback interface up, and the one that leads outside if there is
/// to be one.
pub(crate) fn prepare(hostname: &str, network: Option<&Network>) -> Result<(), Failure> {
    sethostname(hostname.as_bytes()).doing(|| format!("cannot be named {hostname:?}"))?;
    // A kernel without a network has no loopback either, and its guest wants none.
    let flags = SocketFlags::CLOEXEC;
    if let Ok(socket) = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None) {
        const IFF_UP: u16 = 1;
        let _ =
            sys::set_interface_flags(socket.as_fd(), *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0", IFF_UP);
    }
    network.map_or(Ok(()), set_up)
}

fn set_up(network: &Network) -> Result<(), Failure> {
    let index =
        index().doing(|| format!("the guest's kernel has no network device {INTERFACE}"))?;
    set_ipv6("accept_dad", b"0");
    if !network.automatic {
        // Routers' advertisements would add to what is known already.
        set_ipv6("accept_ra", b"0");
    }
    let requests = Requests::new(index, network);
    let answers = ask(&requests).doing(|| "cannot set the network up")?;
    match requests.failures(&answers).next() {
        None => Ok(()),
        Some((purpose, errno)) => {
            let errno = Errno::from_raw_os_error(errno);
            Err(Failure::errno(format!("cannot {purpose}"), errno))
        }
    }
}

fn index() -> Result<u32, Errno> {
    let path = format!("/sys/class/net/{INTERFACE}/ifindex");
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(16);
    read(&file, spare_capacity(&mut text))?;
    let text = core::str::from_utf8(&text).map_err(|_| Errno::INVAL)?;
    text.trim().parse().map_err(|_| Errno::INVAL)
}

/// A setting of the interface's. A kernel without IPv6 has none.
fn set_ipv6(name: &str, value: &[u8]) {
    let path = format!("/proc/sys/net/ipv6/conf/{INTERFACE}/{name}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let _ = openat(CWD, path, flags, Mode::empty()).and_then(|file| write(&file, value));
}

/// Has the kernel do it; returns its answers.
fn ask(requests: &Requests) -> Result<Vec<u8>, Errno> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    // Of this family no protocol is NETLINK_ROUTE, which is 0.
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    send(&socket, requests.bytes(), SendFlags::empty())?;
    let mut answers = Vec::with_capacity(MOST_ANSWERS);
    while count_answers(&answers) < requests.count() && answers.spare_capacity_mut().len() > 1024 {
        recv(&socket, spare_capacity(&mut answers), RecvFlags::empty())?;
    }
    Ok(answers)
}
