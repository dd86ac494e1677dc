//! Tap devices of the host's: made, or taken if they are there already; in a network namespace, and as
//! a port of a bridge, if that is wanted.
//!
//! A device that was made here goes when its last descriptor is closed. Nothing of one that was there
//! before is changed but what is asked for, and that it is up.
#![allow(unsafe_code, reason = "ioctls of network devices")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::NetError;
use super::spec::{Interface, Mtu, NetNs};

const TUN: &str = "/dev/net/tun";
/// The kernel puts a number there.
const NEW_NAME: &str = "casita%d";

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

// linux/sockios.h, linux/if.h
const SIOCGIFFLAGS: libc::c_ulong = 0x8913;
const SIOCSIFFLAGS: libc::c_ulong = 0x8914;
const SIOCGIFMTU: libc::c_ulong = 0x8921;
const SIOCSIFMTU: libc::c_ulong = 0x8922;
const SIOCGIFINDEX: libc::c_ulong = 0x8933;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
const IFF_UP: u16 = 1;

/// A tap device that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name; a new one is made if there is none.
    pub name: Option<&'a Interface>,
    /// The bridge that it is to be a port of.
    pub bridge: Option<&'a Interface>,
    /// The namespace that both are in; this process's if there is none.
    pub netns: Option<&'a NetNs>,
    /// Its MTU; the bridge's, or its own, if nothing is said.
    pub mtu: Option<Mtu>,
    /// How many queues.
    pub queues: u8,
}

/// A tap device that this process has.
#[derive(Debug)]
pub struct Taken {
    /// Its name in its namespace.
    pub name: String,
    /// Its queues.
    pub queues: Vec<File>,
    /// Its MTU.
    pub mtu: Option<Mtu>,
    /// What goes through it.
    pub counters: Counters,
}

/// Takes a tap device.
///
/// # Errors
/// If the namespace, the device or the bridge can't be had.
pub fn take(wanted: Wanted<'_>) -> Result<Taken, NetError> {
    let Some(netns) = wanted.netns else {
        return take_here(wanted);
    };
    let path = netns.path();
    let failed = |source: io::Error| NetError::Namespace {
        hint: match source.raw_os_error() {
            Some(libc::ENOENT) => ": `ip netns list` tells which there are",
            Some(libc::EPERM) => ": that takes root",
            _ => "",
        },
        path: path.clone(),
        source,
    };
    let namespace = File::open(&path).map_err(failed)?;
    thread::scope(|scope| {
        // The namespace is a thread's, and goes with it.
        let work = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind)
                .map_err(|errno| failed(errno.into()))?;
            take_here(wanted)
        });
        work.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn take_here(wanted: Wanted<'_>) -> Result<Taken, NetError> {
    let control = Control::open()?;
    let bridge_mtu = wanted.bridge.map(|name| control.bridge_mtu(name));
    let bridge_mtu = bridge_mtu.transpose()?;
    let existed = wanted
        .name
        .is_some_and(|name| control.index(name.as_str()).is_ok());
    let (name, queues) = open_queues(wanted, existed)?;
    let failed = |what: &str| {
        let (name, what) = (name.clone(), what.to_owned());
        move |source| NetError::Tap { name, what, source }
    };
    match wanted.mtu.or(bridge_mtu) {
        Some(mtu) if control.mtu(&name).ok() != Some(mtu) => {
            let what = format!("its MTU can't be set to {mtu}");
            control.set_mtu(&name, mtu).map_err(failed(&what))?;
        }
        _ => {}
    }
    if let Some(bridge) = wanted.bridge {
        control.add_port(bridge, &name)?;
    }
    let hint = format!("it is down, and can't be brought up: sudo ip link set {name} up");
    control.bring_up(&name).map_err(failed(&hint))?;
    Ok(Taken {
        mtu: control.mtu(&name).ok(),
        counters: Counters::open(&name),
        name,
        queues,
    })
}

/// Opens all queues; the first one decides on the device.
fn open_queues(wanted: Wanted<'_>, existed: bool) -> Result<(String, Vec<File>), NetError> {
    let mut name = wanted.name.map_or(NEW_NAME, Interface::as_str).to_owned();
    let mut flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if wanted.queues > 1 {
        flags |= IFF_MULTI_QUEUE;
    }
    let mut queues = Vec::new();
    for _ in 0..wanted.queues {
        let file = open_tun()?;
        let mut attached = attach(&file, &name, flags);
        // A device with several queues may be used with one.
        if wanted.queues == 1 && attached.as_ref().is_err_and(is_invalid) {
            attached = attach(&file, &name, flags | IFF_MULTI_QUEUE);
        }
        name = attached.map_err(|source| NetError::Tap {
            what: why_not(&name, &source, existed, wanted.queues > 1),
            name: name.clone(),
            source,
        })?;
        queues.push(file);
    }
    Ok((name, queues))
}

fn open_tun() -> Result<File, NetError> {
    let opened = File::options().read(true).write(true).open(TUN);
    opened.map_err(|source| NetError::Tun {
        hint: match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "; load the kernel's module with `sudo modprobe tun`"
            }
            Some(libc::EACCES | libc::EPERM) => "; it takes root, or rights on that file",
            _ => "",
        },
        source,
    })
}

/// Makes `file` a queue of the device `name`; returns the name that it really has.
fn attach(file: &File, name: &str, flags: u16) -> io::Result<String> {
    let mut request = Request::new(name);
    request.value[..2].copy_from_slice(&flags.to_ne_bytes());
    request.ioctl(file, TUNSETIFF)?;
    Ok(request.name())
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

fn why_not(name: &str, error: &io::Error, existed: bool, many: bool) -> String {
    match (error.raw_os_error(), existed) {
        (Some(libc::EBUSY), _) => {
            "another program has it: end that one, or name another".to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), true) => format!(
            "it belongs to another user: sudo ip tuntap del {name} mode tap, and add it with `user \
             $USER`"
        ),
        (Some(libc::EPERM | libc::EACCES), false) => format!(
            "it can't be made without CAP_NET_ADMIN: sudo ip tuntap add {made} mode tap user $USER",
            made = name.replace(NEW_NAME, "NAME")
        ),
        (Some(libc::EINVAL), true) if many => format!(
            "it is no tap device, or one with a single queue: sudo ip tuntap add {name} mode tap \
             multi_queue"
        ),
        (Some(libc::EINVAL), true) => "it is no tap device, as made by `ip tuntap add`".to_owned(),
        _ => "it can't be had".to_owned(),
    }
}

/// What has gone through a tap device, in the words of the guest, which is on its other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes that the guest has received.
    pub rx_bytes: u64,
    /// Frames.
    pub rx_frames: u64,
    /// Frames that it should have.
    pub rx_dropped: u64,
    /// Bytes that it has sent.
    pub tx_bytes: u64,
    /// Frames.
    pub tx_frames: u64,
    /// Frames that did not get through.
    pub tx_dropped: u64,
}

/// The kernel's counters of a tap device. Opened in its namespace, they are read from anywhere.
#[derive(Debug, Clone)]
pub struct Counters {
    table: Option<Arc<File>>,
    name: String,
}

impl Counters {
    fn open(name: &str) -> Self {
        Self {
            table: File::open("/proc/thread-self/net/dev").ok().map(Arc::new),
            name: name.to_owned(),
        }
    }

    /// What they are now; nothing if the device has gone.
    pub fn read(&self) -> Counted {
        let mut bytes = vec![0; 64 << 10];
        let table = self.table.as_ref();
        let read = table.and_then(|table| table.read_at(&mut bytes, 0).ok());
        let text = String::from_utf8_lossy(bytes.get(..read.unwrap_or(0)).unwrap_or_default());
        parse_counters(&text, &self.name).unwrap_or_default()
    }
}

/// proc_pid_net(5): `name: bytes packets errs drop fifo frame compressed multicast`, and the same for
/// what was sent. What the host receives the guest has sent.
fn parse_counters(table: &str, name: &str) -> Option<Counted> {
    let line = table.lines().find_map(|line| {
        let (device, rest) = line.trim_start().split_once(':')?;
        (device == name).then_some(rest)
    })?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let number = |index: usize| numbers.get(index).copied();
    Some(Counted {
        tx_bytes: number(0)?,
        tx_frames: number(1)?,
        tx_dropped: number(3)?,
        rx_bytes: number(8)?,
        rx_frames: number(9)?,
        rx_dropped: number(11)?,
    })
}

/// A socket, through which the kernel is asked about interfaces, netdevice(7).
struct Control(OwnedFd);

impl Control {
    fn open() -> Result<Self, NetError> {
        let flags = SocketFlags::CLOEXEC;
        socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
            .map(Self)
            .map_err(|errno| NetError::Host("open a socket", errno.into()))
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        let mut request = Request::new(name);
        request.ioctl(&self.0, SIOCGIFINDEX)?;
        Ok(request.number())
    }

    fn mtu(&self, name: &str) -> io::Result<Mtu> {
        let mut request = Request::new(name);
        request.ioctl(&self.0, SIOCGIFMTU)?;
        // One beyond what a device can have.
        Ok(Mtu::new(request.number()).unwrap_or(Mtu::MAX))
    }

    fn set_mtu(&self, name: &str, mtu: Mtu) -> io::Result<()> {
        let mut request = Request::new(name);
        request.value[..4].copy_from_slice(&u32::from(mtu.bytes()).to_ne_bytes());
        request.ioctl(&self.0, SIOCSIFMTU)
    }

    fn bring_up(&self, name: &str) -> io::Result<()> {
        let mut request = Request::new(name);
        request.ioctl(&self.0, SIOCGIFFLAGS)?;
        let flags = u16::from_ne_bytes([request.value[0], request.value[1]]);
        if flags & IFF_UP != 0 {
            return Ok(());
        }
        request.value[..2].copy_from_slice(&(flags | IFF_UP).to_ne_bytes());
        request.ioctl(&self.0, SIOCSIFFLAGS)
    }

    fn bridge_mtu(&self, name: &Interface) -> Result<Mtu, NetError> {
        self.mtu(name.as_str())
            .map_err(|_| NetError::NoBridge(name.clone()))
    }

    fn add_port(&self, bridge: &Interface, tap: &str) -> Result<(), NetError> {
        let index = self.index(tap);
        let added = index.and_then(|index| {
            let mut request = Request::new(bridge.as_str());
            request.value[..4].copy_from_slice(&index.to_ne_bytes());
            request.ioctl(&self.0, SIOCBRADDIF)
        });
        added.map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => NetError::NoBridge(bridge.clone()),
            Some(libc::EOPNOTSUPP) => NetError::NotABridge(bridge.clone()),
            _ => NetError::Tap {
                name: tap.to_owned(),
                what: format!("it can't be a port of the bridge {bridge}"),
                source,
            },
        })
    }
}

/// `struct ifreq` of `linux/if.h`.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl Request {
    /// `name` is a valid one.
    fn new(name: &str) -> Self {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            value: [0; 24],
        };
        let most = libc::IFNAMSIZ - 1;
        for (to, from) in request.name.iter_mut().take(most).zip(name.bytes()) {
            *to = from;
        }
        request
    }

    fn name(&self) -> String {
        let bytes = self.name.iter().take_while(|byte| **byte != 0);
        String::from_utf8_lossy(&bytes.copied().collect::<Vec<_>>()).into_owned()
    }

    /// A number where the kernel puts numbers.
    fn number(&self) -> u32 {
        let [a, b, c, d, ..] = self.value;
        u32::from_ne_bytes([a, b, c, d])
    }

    fn ioctl(&mut self, file: &impl AsFd, request: libc::c_ulong) -> io::Result<()> {
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: all requests that are made here read and write a whole `struct ifreq`, which this is,
        // and no pointer is in it.
        match unsafe { libc::ioctl(fd, request, std::ptr::from_mut(self)) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_from_the_guests_side() {
        let table = "Inter-|   Receive                                                |  Transmit\n\
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n\
                lo:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
            casita1: 100 10 0 1 0 0 0 0 200 20 0 2 0 0 0 0\n";
        let counted = parse_counters(table, "casita1").unwrap();
        assert_eq!(
            (counted.tx_bytes, counted.tx_frames, counted.tx_dropped),
            (100, 10, 1)
        );
        assert_eq!(
            (counted.rx_bytes, counted.rx_frames, counted.rx_dropped),
            (200, 20, 2)
        );
        assert_eq!(parse_counters(table, "casita"), None);
        assert_eq!(parse_counters("casita1: 1 2\n", "casita1"), None);
    }

    #[test]
    fn the_kernels_counters_are_found() {
        assert!(Counters::open("lo").table.is_some());
        assert_eq!(Counters::open("nosuch").read(), Counted::default());
    }

    #[test]
    fn a_missing_namespace_is_named() {
        let netns: NetNs = "/nowhere/ns".parse().unwrap();
        let error = take(Wanted {
            name: None,
            bridge: None,
            netns: Some(&netns),
            mtu: None,
            queues: 1,
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/ns") && error.contains("ip netns"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_bridge_is_named_with_the_command_that_makes_it() {
        let error = NetError::NoBridge("br7".parse().unwrap()).to_string();
        assert!(error.contains("ip link add br7 type bridge"), "{error}");
    }
}
