//! A network's members: what each tells of itself, and how long it is one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use casita_devices::virtio::net::MacAddress;
use casita_net::{Mac, subnet};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::{Folder, Network, NetworkError, Outside};
use crate::dirs::Dirs;
use crate::staging::{self, Moment};
use crate::vms::lock;

const RECORD: &str = "member.json";
const LOCK: &str = "lock";
const SOCKET: &str = "sock";
/// Members that come or go. No VM's ID begins so.
const HALF: &str = ".half-";
/// As many connections wait to be taken.
const BACKLOG: i32 = 128;
/// The longest name.
const MAX_NAME: usize = 253;

/// What a VM brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The VM's ID.
    pub id: String,
    /// Its names: the VM's first, then aliases.
    pub names: Vec<String>,
    /// Its NIC's MAC address.
    pub mac: MacAddress,
    /// The process that connects to others for it.
    pub process: u32,
}

impl Join {
    pub(super) fn check(&self) -> Result<(), NetworkError> {
        self.names.iter().try_for_each(|name| check_alias(name))
    }
}

/// Checks a name that a member is to have.
///
/// # Errors
/// If nobody could ask for it.
pub fn check_alias(name: &str) -> Result<(), NetworkError> {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inner)
    };
    if name.len() <= MAX_NAME && name.split('.').all(label) {
        Ok(())
    } else {
        Err(NetworkError::Alias(name.to_owned()))
    }
}

/// A VM that runs on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The VM's ID.
    pub id: String,
    /// Its names, at least one.
    pub names: Vec<String>,
    /// Its NIC's MAC address.
    pub mac: MacAddress,
    /// Its number in the network's ranges.
    pub number: u32,
    /// Its address.
    pub ipv4: IpAddr,
    /// Its address of IPv6, where the network has some.
    pub ipv6: Option<IpAddr>,
    /// The process that connects for it: its monitor, or its monitor's keeper.
    pub pid: u32,
}

impl Member {
    /// What it is called.
    pub fn name(&self) -> &str {
        self.names.first().map_or(&self.id, String::as_str)
    }

    /// Its addresses on the network.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [Some(self.ipv4), self.ipv6].into_iter().flatten().collect()
    }

    pub(super) fn mac(&self) -> Mac {
        Mac(self.mac.0)
    }

    pub(super) fn link_local(&self) -> Ipv6Addr {
        self.mac().link_local()
    }

    /// Whether `address` is one of its own.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        address == self.ipv4 || Some(address) == self.ipv6 || address == self.link_local()
    }
}

/// The VM in this process as a member, until this is dropped.
#[derive(Debug)]
pub struct Membership {
    network: Network,
    member: Member,
    listener: OwnedFd,
    outside: Arc<dyn Outside>,
    lock: File,
}

impl Membership {
    /// Enters the network; its store is locked by the caller.
    pub(super) fn enter(
        network: &Network,
        join: &Join,
        number: u32,
        others: &[Member],
    ) -> Result<Self, NetworkError> {
        let name = || network.name().to_owned();
        for other in others {
            if other.id == join.id {
                return Err(NetworkError::Twice {
                    name: name(),
                    id: join.id.clone(),
                });
            }
            if other.mac == join.mac {
                return Err(NetworkError::MacTaken {
                    name: name(),
                    mac: join.mac.to_string(),
                    owner: other.name().to_owned(),
                });
            }
        }
        let ipv4 =
            subnet::host(network.subnet(), number).ok_or_else(|| NetworkError::Full(name()))?;
        let member = Member {
            id: join.id.clone(),
            names: join.names.clone(),
            mac: join.mac,
            number,
            ipv4,
            ipv6: network
                .subnet6()
                .and_then(|range| subnet::host(range, number)),
            pid: join.process,
        };
        let runtime = network.runtime();
        Dirs::ensure(runtime)?;
        let io = |action| NetworkError::io(action, runtime);
        let _moment = Moment::lock(runtime).map_err(io("lock"))?;
        sweep(runtime);
        let half = runtime.join(format!("{HALF}{}", member.id));
        let place = runtime.join(&member.id);
        let made = make(&half, &member).and_then(|made| {
            // What is there is the trace of one that is gone: it is not among the others.
            staging::remove_tree(&place)?;
            fs::rename(&half, &place).map(|()| made)
        });
        match made {
            Ok((listener, lock)) => Ok(Self {
                network: network.clone(),
                member,
                listener,
                outside: Arc::new(Folder::open(runtime).map_err(io("open"))?),
                lock,
            }),
            Err(error) => {
                let _ = staging::remove_tree(&half);
                Err(NetworkError::io("join the network in", runtime)(error))
            }
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What it tells of itself.
    pub fn member(&self) -> &Member {
        &self.member
    }

    pub(super) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// The way to the others.
    pub(super) fn outside(&self) -> &Arc<dyn Outside> {
        &self.outside
    }

    /// Has another process go that way, as this one will not be able to.
    pub fn reach_through(&mut self, outside: Arc<dyn Outside>) {
        self.outside = outside;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let runtime = self.network.runtime();
        let half = runtime.join(format!("{HALF}{}", self.member.id));
        if let Ok(_moment) = Moment::lock(runtime) {
            // What is left is found dead by whoever looks next.
            let _ = fs::rename(runtime.join(&self.member.id), &half);
            let _ = staging::remove_tree(&half);
        }
        lock::release(&self.lock);
    }
}

fn make(half: &Path, member: &Member) -> io::Result<(OwnedFd, File)> {
    staging::remove_tree(half)?;
    DirBuilder::new().mode(0o700).create(half)?;
    let text = serde_json::to_vec_pretty(member).map_err(io::Error::from)?;
    staging::replace(&half.join(RECORD), &text, false)?;
    let file = lock::open(&half.join(LOCK), true)?;
    // Nobody else can know it yet.
    lock::try_own(&file)?;
    let folder = open_folder(half)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(short_path(&folder, SOCKET))?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, file))
}

/// Where the member `id` takes connections, by way of the network's open folder.
pub(super) fn socket_of(folder: &OwnedFd, id: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(short_path(
        folder,
        &format!("{id}/{SOCKET}"),
    ))?)
}

/// A socket's address holds 107 bytes of path; folders may have longer ones.
fn short_path(folder: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into()
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A member's record, and its lock's file, which tells whether it runs.
pub(super) fn read(runtime: &Path, id: &str) -> Option<(Member, File)> {
    let folder = runtime.join(id);
    let lock = lock::open(&folder.join(LOCK), false).ok()?;
    let text = staging::read_record(&folder.join(RECORD)).ok()?;
    let member: Member = serde_json::from_slice(&text).ok()?;
    (member.id == id && !member.names.is_empty()).then_some((member, lock))
}

/// Whether the owner of a member's lock lives.
pub(super) fn lives(lock: &File) -> bool {
    lock::is_owned(lock).unwrap_or(false)
}

/// The IDs of those that have a place in a network's folder, alive or not.
pub(super) fn ids(runtime: &Path) -> Vec<String> {
    let entries = fs::read_dir(runtime).into_iter().flatten().flatten();
    let mut ids: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .take(2 * subnet::MAX_MEMBERS as usize)
        .collect();
    ids.sort();
    ids
}

/// The members that run.
pub(super) fn running(runtime: &Path) -> Vec<Member> {
    let read = |id: String| read(runtime, &id).filter(|(_, lock)| lives(lock));
    ids(runtime)
        .into_iter()
        .filter_map(read)
        .map(|(member, _)| member)
        .collect()
}

/// Removes what killed monitors left. The folder is locked, so nobody comes or goes.
pub(super) fn sweep(runtime: &Path) {
    let Ok(entries) = fs::read_dir(runtime) else {
        return;
    };
    for entry in entries.flatten() {
        let half = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(HALF.as_bytes());
        let dead = || lock::open(&entry.path().join(LOCK), false).is_ok_and(|lock| !lives(&lock));
        if half || dead() {
            // What can't be removed is for the next one.
            let _ = staging::remove_tree(&entry.path());
        }
    }
}

#[cfg(test)]
impl Membership {
    /// Loses the lock and nothing else, as a process does that is killed.
    pub(super) fn forget_lock(&mut self) {
        lock::release(&self.lock);
    }

    /// Loses its socket.
    pub(super) fn forget_listener(&mut self) {
        let (unused, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        self.listener = unused.into();
    }
}
