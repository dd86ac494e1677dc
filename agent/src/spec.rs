//! What the host asks of the guest's PID 1, and the file in which it does.
//!
//! The file is [`MAGIC`], a version (`u16`), the length of the body (`u32`), both little-endian,
//! and the body in postcard's format. Whatever changes the body's layout raises [`VERSION`]: host
//! and agent are built together, and an agent refuses a version that is not its own.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::mounts::{self, GuestMount, MountError};
use crate::wire::Key;

/// The first bytes of an encoded spec.
pub const MAGIC: [u8; 8] = *b"CASITA\0\x01";

/// The version of the body's layout.
pub const VERSION: u16 = 4;

/// The longest body, in bytes.
pub const MAX_BODY_LEN: usize = 1 << 20;

/// The longest hostname, in bytes (`__NEW_UTS_LEN` of Linux).
pub const MAX_HOSTNAME_LEN: usize = 64;

/// Magic, version and length.
const HEADER_LEN: usize = MAGIC.len() + 2 + 4;

/// What the guest's PID 1 is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// The guest's hostname: letters, digits, `-`, `_` and `.`; at most [`MAX_HOSTNAME_LEN`].
    pub hostname: String,
    /// The image that is the lower, read-only layer of the guest's root.
    pub root: Mount,
    /// The disk that takes what the guest writes; without one, memory does.
    pub disk: Option<Mount>,
    /// Whether the disk outlives the machine. If it does not, nothing waits for it at the end.
    pub keep_disk: bool,
    /// What the agent shows on its control connection, so that the host knows that it is the agent.
    pub key: Key,
    /// What else is mounted, in this order, when the root is there.
    pub mounts: Vec<GuestMount>,
    /// The guest's network; without one it has its loopback interface alone.
    pub network: Option<Network>,
}

/// How the guest's one network interface is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The interface's MTU; the device's own if there is none.
    pub mtu: Option<u16>,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Default routes, at most one for each version of IP.
    pub gateways: Vec<IpAddr>,
    /// Name servers, in this order.
    pub dns: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    pub search: Vec<String>,
    /// Names of others that the guest knows without asking.
    pub hosts: Vec<Host>,
    /// Whether the network is asked for what is missing above: IPv4 by DHCP, IPv6 by router
    /// advertisements. Nothing waits for the answer.
    pub automatic: bool,
}

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// An address.
    pub ip: IpAddr,
    /// Its name.
    pub name: String,
}

/// An address and the network around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits are the network's: at most 32 or 128.
    pub prefix: u8,
}

impl Address {
    /// Whether `other` is in the same network.
    pub fn reaches(&self, other: IpAddr) -> bool {
        let shared = match (self.ip, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        shared >= u32::from(self.prefix)
    }
}

/// A block device of the guest and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The device's node, such as `/dev/vda`.
    pub device: String,
    /// The file system on it.
    pub fs: FsType,
}

/// A file system that the agent mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsType {
    /// EROFS: the default for root images.
    Erofs,
    /// squashfs.
    Squashfs,
    /// ext4: the only one for disks.
    Ext4,
    /// ISO 9660.
    Iso9660,
}

impl FsType {
    /// The kernel's name for it, as in `/proc/filesystems`.
    pub const fn name(self) -> &'static str {
        match self {
            FsType::Erofs => "erofs",
            FsType::Squashfs => "squashfs",
            FsType::Ext4 => "ext4",
            FsType::Iso9660 => "iso9660",
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// Why a spec was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A string that goes to the kernel as a C string has a NUL inside.
    #[error("{field} has a NUL byte at offset {offset}; leave it out")]
    Nul {
        /// Which string.
        field: &'static str,
        /// Where, in bytes.
        offset: usize,
    },
    /// The hostname is empty, too long or has a character that hostnames do not have.
    #[error("hostname {0:?} is not usable: it takes 1-64 letters, digits, '-', '_' and '.'")]
    Hostname(String),
    /// A device's node is not an absolute path.
    #[error("device {0:?} is not an absolute path")]
    Device(String),
    /// The disk has a file system that cannot be written.
    #[error("a disk with {0} cannot be written; it takes ext4")]
    DiskFs(&'static str),
    /// A domain or a host's name that would break the file that it is written into.
    #[error("domain {0:?} is not usable: it takes letters, digits, '-', '_' and '.'")]
    Search(String),
    /// More of an address is the network's than there is.
    #[error("a prefix of {} bits is too long for the address {}", .0.prefix, .0.ip)]
    Prefix(Address),
    /// A mount that no guest can have.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// It is too long.
    #[error("the guest spec takes {0} bytes; the limit is {MAX_BODY_LEN}")]
    TooLong(usize),
    /// Not a spec at all.
    #[error("not a guest spec: it does not start with the magic bytes")]
    Magic,
    /// A spec of another version.
    #[error("guest spec of version {0}; this agent reads version {VERSION}")]
    Version(u16),
    /// The header's length and the bytes that follow it differ.
    #[error("guest spec with {actual} bytes after its header, which announces {announced}")]
    Length {
        /// What the header says.
        announced: usize,
        /// What is there.
        actual: usize,
    },
    /// The body is not what postcard writes.
    #[error("guest spec with a malformed body")]
    Body,
}

/// Encodes `spec`.
///
/// # Errors
/// When the guest could not follow it: a NUL inside a string, a bad hostname, relative paths, more
/// than [`MAX_BODY_LEN`] bytes.
pub fn encode(spec: &GuestSpec) -> Result<Vec<u8>, SpecError> {
    validate(spec)?;
    let body = postcard::to_allocvec(spec).map_err(|_| SpecError::Body)?;
    let too_long = || SpecError::TooLong(body.len());
    if body.len() > MAX_BODY_LEN {
        return Err(too_long());
    }
    let len = u32::try_from(body.len()).map_err(|_| too_long())?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// When `bytes` are anything else, down to one byte too many; and for all that [`encode`] refuses.
pub fn decode(bytes: &[u8]) -> Result<GuestSpec, SpecError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(SpecError::Magic)?;
    let (version, rest) = rest.split_first_chunk().ok_or(SpecError::Magic)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(SpecError::Version(version));
    }
    let (len, body) = rest.split_first_chunk().ok_or(SpecError::Magic)?;
    let announced = u32::from_le_bytes(*len) as usize;
    if announced > MAX_BODY_LEN {
        return Err(SpecError::TooLong(announced));
    }
    if announced != body.len() {
        return Err(SpecError::Length {
            announced,
            actual: body.len(),
        });
    }
    let (spec, rest) = postcard::take_from_bytes(body).map_err(|_| SpecError::Body)?;
    if !rest.is_empty() {
        return Err(SpecError::Body);
    }
    validate(&spec)?;
    Ok(spec)
}

/// What [`encode`] and [`decode`] both insist on.
fn validate(spec: &GuestSpec) -> Result<(), SpecError> {
    if !is_hostname(&spec.hostname) {
        return Err(SpecError::Hostname(spec.hostname.clone()));
    }
    for mount in core::iter::once(&spec.root).chain(&spec.disk) {
        refuse_nul(&mount.device, "device")?;
        if !mount.device.starts_with('/') {
            return Err(SpecError::Device(mount.device.clone()));
        }
    }
    if let Some(disk) = spec.disk.as_ref().filter(|disk| disk.fs != FsType::Ext4) {
        return Err(SpecError::DiskFs(disk.fs.name()));
    }
    mounts::validate(&spec.mounts)?;
    spec.network.as_ref().map_or(Ok(()), validate_network)
}

fn validate_network(network: &Network) -> Result<(), SpecError> {
    let hosts = network.hosts.iter().map(|host| &host.name);
    if let Some(domain) = network
        .search
        .iter()
        .chain(hosts)
        .find(|name| !is_domain(name))
    {
        return Err(SpecError::Search(domain.clone()));
    }
    for address in &network.addresses {
        let bits = if address.ip.is_ipv4() { 32 } else { 128 };
        if address.prefix > bits {
            return Err(SpecError::Prefix(*address));
        }
    }
    Ok(())
}

fn refuse_nul(text: &str, field: &'static str) -> Result<(), SpecError> {
    match text.bytes().position(|byte| byte == 0) {
        None => Ok(()),
        Some(offset) => Err(SpecError::Nul { field, offset }),
    }
}

/// It is written into `/etc/hosts`, so blanks and line ends would add to that file.
fn is_hostname(name: &str) -> bool {
    name.len() <= MAX_HOSTNAME_LEN && is_domain(name)
}

/// The longest domain name, in bytes (RFC 1035, 2.3.4).
const MAX_DOMAIN_LEN: usize = 255;

fn is_domain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= MAX_DOMAIN_LEN && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
