//! A tap device of the host's as a back end: a frame is one readv or writev, with the header that the
//! kernel understands before it.
#![allow(unsafe_code, reason = "ioctls of a tap device")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use zerocopy::{FromZeros, IntoBytes};

use super::backend::{Abilities, Backend, Frame, Landing, MIN_FRAME_LEN, Offloads, Received, Sent};
use super::header::{HEADER_LEN, VnetHeader, WireHeader};
use super::vector::{Kind, Vector};

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;

const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// Why a descriptor is no tap device that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is none.
    #[error("the descriptor is not that of a tap device")]
    NotTap(#[source] io::Error),
    /// It was set up in another way than is needed.
    #[error("the tap device {name} was not opened as IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    Flags {
        /// The device.
        name: String,
    },
    /// The kernel refused something.
    #[error("the tap device {name}: {what} was refused")]
    Refused {
        /// The device.
        name: String,
        /// What was refused.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// One queue of a tap device.
pub struct Tap {
    file: File,
    name: String,
    multi_queue: bool,
    abilities: Abilities,
    vector: Vector,
}

/// `struct ifreq` as far as it is used.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn new(flags: u16) -> Self {
        Self {
            name: [0; libc::IFNAMSIZ],
            flags,
            rest: [0; 22],
        }
    }
}

impl Tap {
    /// The queue behind `file`: /dev/net/tun after TUNSETIFF with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR and, for
    /// several queues, IFF_MULTI_QUEUE.
    ///
    /// # Errors
    /// It is not that, or the kernel is too old.
    pub fn new(file: File) -> Result<Self, TapError> {
        let mut request = InterfaceRequest::new(0);
        ioctl_pointer(&file, TUNGETIFF, &mut request).map_err(TapError::NotTap)?;
        let name: Vec<u8> = request.name.into_iter().take_while(|&c| c != 0).collect();
        let name = String::from_utf8_lossy(&name).into_owned();
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if request.flags & needed != needed {
            return Err(TapError::Flags { name });
        }
        let refused = |what, name: &str| {
            let name = name.to_owned();
            move |source| TapError::Refused { name, what, source }
        };
        let mut size: libc::c_int = HEADER_LEN.cast_signed();
        ioctl_pointer(&file, TUNSETVNETHDRSZ, &mut size)
            .map_err(refused("the length of its header", &name))?;
        let mut little_endian: libc::c_int = 1;
        ioctl_pointer(&file, TUNSETVNETLE, &mut little_endian)
            .map_err(refused("the byte order of its header", &name))?;
        set_non_blocking(&file).map_err(refused("non-blocking I/O", &name))?;
        let all = Offloads::CHECKSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
        // What the kernel takes from us is the same as what it gives, by version.
        let with_uso = all | Offloads::USO;
        let able = if set_offloads(&file, with_uso).is_ok() {
            with_uso
        } else {
            all
        };
        set_offloads(&file, Offloads::NONE).map_err(refused("the choice of offloads", &name))?;
        Ok(Self {
            multi_queue: request.flags & IFF_MULTI_QUEUE != 0,
            file,
            name,
            abilities: Abilities {
                from_guest: able,
                to_guest: able,
            },
            vector: Vector::default(),
        })
    }

    /// The interface's name in its network namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Backend for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn set_offloads(&mut self, to_guest: Offloads) -> io::Result<()> {
        set_offloads(&self.file, to_guest)
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        let flag = if active {
            IFF_ATTACH_QUEUE
        } else {
            IFF_DETACH_QUEUE
        };
        let mut request = InterfaceRequest::new(flag);
        match ioctl_pointer(&self.file, TUNSETQUEUE, &mut request) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let header = frame.header.to_wire();
        let file = self.file.as_fd();
        let written = self
            .vector
            .write(file, Kind::Device, header.as_bytes(), frame);
        match written {
            Ok(_) => Sent::Done,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Sent::Full,
                Some(libc::EBADFD | libc::ENODEV) => Sent::Closed(error),
                // Down, out of memory, or a header that does not fit what is in the frame.
                _ => Sent::Dropped,
            },
        }
    }

    fn receive(&mut self, landing: &mut Landing<'_>) -> Received {
        let mut wire = WireHeader::new_zeroed();
        let mut too_much = [0];
        let capacity = landing.capacity();
        let read = self.vector.read(
            self.file.as_fd(),
            Kind::Device,
            wire.as_mut_bytes(),
            (landing, 0, capacity),
            &mut too_much,
        );
        let len = match read {
            Ok(read) => read.saturating_sub(HEADER_LEN as usize),
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EAGAIN) => Received::Nothing,
                    Some(libc::EBADFD | libc::ENODEV) => Received::Closed(error),
                    _ => Received::Dropped,
                };
            }
        };
        if len > capacity || len < MIN_FRAME_LEN as usize {
            return Received::Dropped;
        }
        match VnetHeader::from_host(&wire, len as u32) {
            Ok(header) => Received::Frame { header, len },
            Err(_) => Received::Dropped,
        }
    }
}

fn set_non_blocking(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    Ok(fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}

fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    let flags = [
        (Offloads::CHECKSUM, TUN_F_CSUM),
        (Offloads::TSO4, TUN_F_TSO4),
        (Offloads::TSO6, TUN_F_TSO6),
        (Offloads::ECN, TUN_F_TSO_ECN),
        (Offloads::USO, TUN_F_USO4 | TUN_F_USO6),
    ];
    let chosen = flags
        .iter()
        .filter(|(offload, _)| offloads.contains(*offload));
    let value = chosen.fold(0, |all, (_, flag)| all | flag);
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, value) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An ioctl that reads or writes at most a `T`.
fn ioctl_pointer<T>(file: &File, request: libc::c_ulong, value: &mut T) -> io::Result<()> {
    // SAFETY: the callers pair each request with the structure that it is defined for, which is borrowed
    // during the call; none of them has pointers in it.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(value)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
