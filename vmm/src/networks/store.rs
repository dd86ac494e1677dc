//! The user's networks: their records.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use casita_net::{Cidr, subnet};
use serde::{Deserialize, Serialize};

use super::members::{self, Join, Member, Membership};
use super::{NetworkError, leases};
use crate::dirs::Dirs;
use crate::disk::check_name;
use crate::staging::{self, Moment};
use crate::time::now;

const META: &str = "network.json";
/// Networks in the making and networks being removed. No network's name begins so.
const HALF: &str = ".half-";

/// What `network.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    subnet: Cidr,
    subnet6: Option<Cidr>,
    created: u64,
}

/// All networks of this user.
#[derive(Debug, Clone)]
pub struct Networks {
    folder: PathBuf,
    runtime: PathBuf,
    vms: PathBuf,
}

/// The range of IPv6 that a network is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subnet6 {
    /// None.
    None,
    /// A local one by chance (RFC 4193).
    Random,
    /// This one.
    Given(Cidr),
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    name: String,
    meta: Meta,
    folder: PathBuf,
    runtime: PathBuf,
}

impl Networks {
    /// Opens them; their folder is made if it is missing.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn open(dirs: &Dirs) -> Result<Self, NetworkError> {
        let folder = dirs.data().join("networks");
        Dirs::ensure(&folder)?;
        Ok(Self {
            folder,
            runtime: dirs.runtime().join("networks"),
            vms: dirs.data().join("vms"),
        })
    }

    /// Makes a network; without a range it gets a free one.
    ///
    /// # Errors
    /// If there is one of that name, or no such range is possible; nothing is left then.
    pub fn create(
        &self,
        name: &str,
        subnet: Option<Cidr>,
        subnet6: Subnet6,
    ) -> Result<Network, NetworkError> {
        check_name(name)?;
        if let Some(range) = subnet {
            subnet::check_v4(range)?;
        }
        let subnet6 = match subnet6 {
            Subnet6::None => None,
            Subnet6::Random => subnet::unique_v6(random(&self.folder)?),
            Subnet6::Given(range) => {
                subnet::check_v6(range)?;
                Some(range)
            }
        };
        let _lock = self.lock()?;
        if self.get(name)?.is_some() {
            return Err(NetworkError::Exists(name.to_owned()));
        }
        self.sweep();
        let meta = Meta {
            subnet: match subnet {
                Some(range) => range,
                None => self.free_range()?,
            },
            subnet6,
            created: now(),
        };
        let half = self.folder.join(format!("{HALF}{name}"));
        let network = self.network(name, meta);
        let made = make_record(&half, &meta)
            .and_then(|()| fs::rename(&half, &network.folder))
            .map_err(NetworkError::io("make", &network.folder));
        if made.is_err() {
            let _ = staging::remove_tree(&half);
        }
        made.map(|()| network)
    }

    fn free_range(&self) -> Result<Cidr, NetworkError> {
        let mut taken: Vec<Cidr> = self.list()?.iter().map(Network::subnet).collect();
        taken.extend(host_ranges());
        subnet::free_v4(&taken).ok_or(NetworkError::NoRange)
    }

    /// The network of this name, if there is one.
    ///
    /// # Errors
    /// If the name can't be one, or what is there is not a network.
    pub fn get(&self, name: &str) -> Result<Option<Network>, NetworkError> {
        check_name(name)?;
        let folder = self.folder.join(name);
        let damaged = |why: String| NetworkError::Damaged {
            path: folder.clone(),
            why,
        };
        let text = match staging::read_record(&folder.join(META)) {
            Ok(text) => text,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&folder).is_err() {
                    return Ok(None);
                }
                return Err(damaged(format!("it has no {META}")));
            }
            Err(error) => return Err(NetworkError::io("read", &folder)(error)),
        };
        let meta: Meta =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        // Whoever wrote it was not we, perhaps.
        subnet::check_v4(meta.subnet)
            .and_then(|()| meta.subnet6.map_or(Ok(()), subnet::check_v6))
            .map_err(|error| damaged(error.to_string()))?;
        Ok(Some(self.network(name, meta)))
    }

    /// The network of this name.
    ///
    /// # Errors
    /// Also if there is none.
    pub fn find(&self, name: &str) -> Result<Network, NetworkError> {
        self.get(name)?
            .ok_or_else(|| NetworkError::Missing(name.to_owned()))
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// If they can't be read. What is no network is left out.
    pub fn list(&self) -> Result<Vec<Network>, NetworkError> {
        let entries = fs::read_dir(&self.folder).map_err(NetworkError::io("read", &self.folder))?;
        let mut networks: Vec<Network> = entries
            .flatten()
            .filter_map(|entry| self.get(entry.file_name().to_str()?).ok()?)
            .collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    /// Removes a network.
    ///
    /// # Errors
    /// If there is none, or a VM runs on it.
    pub fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        let network = self.find(name)?;
        let members = network.members();
        if !members.is_empty() {
            let users: Vec<_> = members.iter().map(Member::name).collect();
            return Err(NetworkError::InUse {
                name: name.to_owned(),
                users: users.join(" "),
            });
        }
        let half = self.folder.join(format!("{HALF}{name}"));
        let removed = staging::remove_tree(&half)
            .and_then(|()| fs::rename(&network.folder, &half))
            .and_then(|()| staging::remove_tree(&half))
            // What killed monitors have left.
            .and_then(|()| staging::remove_tree(&network.runtime));
        removed.map_err(NetworkError::io("remove", &network.folder))
    }

    /// Makes a VM a member of the network `name` until the result is dropped. It gets the address
    /// that it had before, if it had one.
    ///
    /// # Errors
    /// If there is no such network, no address is left, or what makes it a member is another's.
    pub fn join(&self, name: &str, join: &Join) -> Result<Membership, NetworkError> {
        join.check()?;
        let _lock = self.lock()?;
        let network = self.find(name)?;
        let others = network.members();
        let running: BTreeMap<String, u32> = others
            .iter()
            .map(|other| (other.id.clone(), other.number))
            .collect();
        let exists = |id: &str| self.vms.join(id).exists();
        let number = leases::take(
            &network.folder,
            network.subnet(),
            &join.id,
            &running,
            exists,
        )?;
        let number = number.ok_or_else(|| NetworkError::Full(name.to_owned()))?;
        Membership::enter(&network, join, number, &others)
    }

    fn network(&self, name: &str, meta: Meta) -> Network {
        Network {
            name: name.to_owned(),
            meta,
            folder: self.folder.join(name),
            runtime: self.runtime.join(name),
        }
    }

    /// Removes what killed processes left. The folder is locked, so nobody is at it.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(HALF.as_bytes())
            {
                // What can't be removed is for the next one.
                let _ = staging::remove_tree(&entry.path());
            }
        }
    }

    fn lock(&self) -> Result<Moment, NetworkError> {
        Moment::lock(&self.folder).map_err(NetworkError::io("lock", &self.folder))
    }
}

impl Network {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its range of IPv4.
    pub fn subnet(&self) -> Cidr {
        self.meta.subnet
    }

    /// Its range of IPv6, if it has one.
    pub fn subnet6(&self) -> Option<Cidr> {
        self.meta.subnet6
    }

    /// When it was made, in seconds since the beginning of 1970.
    pub fn created(&self) -> u64 {
        self.meta.created
    }

    /// Where its record is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The IPv4 address of its gateway, which is also its resolver.
    pub fn gateway(&self) -> Option<IpAddr> {
        subnet::host(self.subnet(), subnet::GATEWAY)
    }

    /// The same of IPv6.
    pub fn gateway6(&self) -> Option<IpAddr> {
        subnet::host(self.subnet6()?, subnet::GATEWAY)
    }

    /// Where its members are.
    pub(super) fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The VMs that run on it.
    pub fn members(&self) -> Vec<Member> {
        members::running(&self.runtime)
    }
}

fn make_record(half: &Path, meta: &Meta) -> io::Result<()> {
    // What a killed process left; the folder is locked, so nobody else is at it.
    staging::remove_tree(half)?;
    DirBuilder::new().mode(0o700).create(half)?;
    let text = serde_json::to_vec_pretty(meta).map_err(io::Error::from)?;
    staging::replace(&half.join(META), &text, true)
}

fn random(path: &Path) -> Result<[u8; 5], NetworkError> {
    let mut bytes = [0; 5];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(rest, flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(NetworkError::io("choose a range in", path)(error.into())),
        }
    }
    Ok(bytes)
}

/// The ranges that the host itself reaches without a router, as far as it tells.
fn host_ranges() -> Vec<Cidr> {
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    table.lines().skip(1).filter_map(range_of_route).collect()
}

/// A line of /proc/net/route, whose numbers are in the byte order of the host.
fn range_of_route(line: &str) -> Option<Cidr> {
    let mut fields = line.split_ascii_whitespace();
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let address = Ipv4Addr::from(number(fields.nth(1)?)?.to_ne_bytes());
    let bits = number(fields.nth(5)?)?.count_ones();
    Cidr::around(address.into(), u8::try_from(bits).ok()?).filter(|range| range.bits() > 0)
}

#[cfg(test)]
mod tests;
