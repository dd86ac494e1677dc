//! A real tap device, in a network namespace of its own. Its other side is a packet socket on the device.
#![allow(
    unsafe_code,
    reason = "a tap device and a packet socket are made by ioctls"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::super::layout::{F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF};
use super::super::tap::{Tap, TapError};
use super::super::*;
use super::wire::*;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const FLAGS: libc::c_short =
    (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
/// No protocol of anybody's: what the host itself sends on a device that is up is another one.
const PROTOCOL: [u8; 2] = [0x88, 0xb5];

/// `struct ifreq` for a name and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

fn request(value: libc::c_short) -> Request {
    let mut request = Request {
        name: [0; 16],
        value: [0; 24],
    };
    request.name[..4].copy_from_slice(b"tap0");
    request.value[..2].copy_from_slice(&value.to_ne_bytes());
    request
}

fn ioctl(fd: &impl AsRawFd, number: libc::c_ulong, request: &mut Request) -> io::Result<()> {
    // SAFETY: all of these requests take a struct ifreq.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(request)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_tap(flags: libc::c_short) -> io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    ioctl(&tap, TUNSETIFF, &mut request(flags))?;
    Ok(tap)
}

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: it takes no pointer, and what it returns is ours.
    unsafe {
        match libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// The device comes up, and a packet socket sees its frames.
fn other_side() -> io::Result<File> {
    let control = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    ioctl(
        &control,
        libc::SIOCSIFFLAGS,
        &mut request(libc::IFF_UP as libc::c_short),
    )?;
    let mut index = request(0);
    ioctl(&control, libc::SIOCGIFINDEX, &mut index)?;
    let protocol = libc::c_int::from(u16::from_ne_bytes(PROTOCOL));
    let packets = socket(libc::AF_PACKET, libc::SOCK_RAW, protocol)?;
    // SAFETY: zeroes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = u16::from_ne_bytes(PROTOCOL);
    address.sll_ifindex = i32::from_ne_bytes(index.value[..4].try_into().unwrap());
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is of this length.
    match unsafe { libc::bind(packets.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(File::from(packets)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `test` in a network namespace of its own, on this test's thread. Without the right to make one
/// there is no test.
fn in_namespace(name: &str, test: impl FnOnce()) {
    // SAFETY: it takes a number; this thread alone changes its namespace.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !moved || open_tap(FLAGS).is_err() {
        eprintln!(
            "skipped: {name}: a tap device in a network namespace needs root and /dev/net/tun"
        );
        return;
    }
    test();
}

fn tagged(to: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame = frame(to, len, seed);
    frame[12..14].copy_from_slice(&PROTOCOL);
    frame
}

#[test]
fn frames_go_through_a_tap_device_both_ways() {
    in_namespace("frames_go_through_a_tap_device_both_ways", || {
        let tap = Tap::new(open_tap(FLAGS).unwrap()).unwrap();
        assert_eq!(tap.name(), "tap0");
        let mut other = other_side().unwrap();
        let mut bench = transport(net(&NetConfig::new(MAC), tap), None);
        let offloads = F_CSUM | F_HOST_TSO4 | F_GUEST_CSUM | F_GUEST_TSO4;
        let features = bench.driver.start(RING | F_MRG_RXBUF | offloads);
        assert_eq!(features & offloads, offloads);
        for _ in 0..100 {
            bench.driver.send(RX, &[], &[1526]);
        }
        bench.driver.kick(RX);
        let mut bytes = [0; 2000];
        for (len, seed) in [(60, 1), (300, 2), (1514, 3)] {
            bench.send(&[&plain(), &tagged([2; 6], len, seed)]);
            let count = other.read(&mut bytes).unwrap();
            assert_eq!(bytes[..count], tagged([2; 6], len, seed));
            other.write_all(&tagged(MAC.0, len, seed)).unwrap();
            // The host's own frames may come in between.
            loop {
                let used = bench.driver.wait_used(RX, 1);
                if used
                    .iter()
                    .any(|used| received(used).1 == tagged(MAC.0, len, seed))
                {
                    break;
                }
            }
        }
    });
}

#[test]
fn tap_device_that_is_not_as_it_has_to_be_is_refused() {
    in_namespace("tap_device_that_is_not_as_it_has_to_be_is_refused", || {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(Tap::new(null), Err(TapError::NotTap(_))));
        let plain = FLAGS & !(libc::IFF_VNET_HDR as libc::c_short);
        let refused = Tap::new(open_tap(plain).unwrap()).err().unwrap();
        assert!(matches!(refused, TapError::Flags { name } if name == "tap0"));
    });
}

#[test]
fn tap_device_that_is_deleted_takes_the_link_down() {
    in_namespace("tap_device_that_is_deleted_takes_the_link_down", || {
        for buffers in [0, 1] {
            let tap = Tap::new(open_tap(FLAGS).unwrap()).unwrap();
            let _other = other_side().unwrap();
            let mut bench = transport(net(&NetConfig::new(MAC), tap), None);
            bench.driver.start(RING | F_MRG_RXBUF);
            for _ in 0..buffers {
                bench.driver.send(RX, &[], &[70_000]);
            }
            bench.driver.kick(RX);
            bench.send(&[&plain(), &tagged([2; 6], 60, 1)]);
            delete_tap();
            while bench.link.closed().is_none() {
                std::thread::yield_now();
            }
            bench.send(&[&plain(), &tagged([2; 6], 60, 1)]);
        }
    });
}

/// `ip link delete tap0`, by rtnetlink.
fn delete_tap() {
    let route = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
    let mut message = Vec::new();
    // struct nlmsghdr: length, RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, port
    message.extend(44_u32.to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(5_u16.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: nothing but the attribute says which
    message.extend([0; 16]);
    // IFLA_IFNAME
    message.extend(9_u16.to_ne_bytes());
    message.extend(libc::IFLA_IFNAME.to_ne_bytes());
    message.extend(*b"tap0\0\0\0\0");
    let mut route = File::from(route);
    route.write_all(&message).unwrap();
    let mut answer = [0; 256];
    let count = route.read(&mut answer).unwrap();
    assert!(count >= 20);
    assert_eq!(answer[16..20], [0; 4], "the tap device was not deleted");
}
