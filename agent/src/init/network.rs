//! The guest's name, the network that a machine has with itself, and its one interface to others.

use alloc::format;
use alloc::string::String;
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
use crate::{dhcp, sys};

/// The kernel's name for the machine's one network device.
pub(crate) const INTERFACE: &str = "eth0";

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
    network.map_or(Ok(()), |network| set_up(hostname, network))
}

fn set_up(hostname: &str, network: &Network) -> Result<(), Failure> {
    let Ok(index) = index() else {
        // Another kernel than ours may do without a driver, and its guest without a network.
        let what = format_args!("the guest's kernel has no network device {INTERFACE}");
        Failure::new(what).print();
        return Ok(());
    };
    set_ipv6("accept_dad", b"0");
    if !network.automatic {
        // Routers' advertisements would add to what is known already.
        set_ipv6("accept_ra", b"0");
    }
    apply(index, network)?;
    if network.automatic {
        let mac = mac().doing(|| format!("cannot read the address of {INTERFACE}"))?;
        dhcp::start(index, mac, hostname, network)?;
    }
    Ok(())
}

/// Sets the interface `index` up. What the kernel does not know at all, such as IPv6, is told and done
/// without.
pub(crate) fn apply(index: u32, network: &Network) -> Result<(), Failure> {
    let requests = Requests::new(index, network);
    let answers = ask(&requests).doing(|| "cannot set the network up")?;
    for (purpose, errno) in requests.failures(&answers) {
        let errno = Errno::from_raw_os_error(errno);
        let failure = Failure::errno(format!("cannot {purpose}"), errno);
        match errno {
            Errno::OPNOTSUPP | Errno::AFNOSUPPORT => failure.print(),
            _ => return Err(failure),
        }
    }
    Ok(())
}

fn index() -> Result<u32, Errno> {
    attribute("ifindex")?
        .trim()
        .parse()
        .map_err(|_| Errno::INVAL)
}

fn mac() -> Result<[u8; 6], Errno> {
    let text = attribute("address")?;
    let mut bytes = [0; 6];
    for (byte, field) in bytes.iter_mut().zip(text.trim().split(':')) {
        *byte = u8::from_str_radix(field, 16).map_err(|_| Errno::INVAL)?;
    }
    Ok(bytes)
}

/// What sysfs says of the interface.
fn attribute(name: &str) -> Result<String, Errno> {
    let path = format!("/sys/class/net/{INTERFACE}/{name}");
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(64);
    read(&file, spare_capacity(&mut text))?;
    String::from_utf8(text).map_err(|_| Errno::INVAL)
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
