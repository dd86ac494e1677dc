//! What a VM's network is to be, as on the command line and in a machine file.

mod address;
mod publish;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use casita_devices::virtio::net::{MAX_MTU, MAX_QUEUE_PAIRS, MIN_MTU, MacAddress};
use serde::{Deserialize, Serialize};

pub use address::IpSpec;
pub use publish::{PortSpec, Protocol};

/// What a VM's one network device leads to: `user`, `tap[:NAME]`, `bridge:NAME` or `none`, each but
/// the last with `,mac=MAC`, `,mtu=N`, and the middle two with `,netns=NAME|PATH` and `,queues=N`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetSpec {
    /// What kind of network.
    pub mode: NetMode,
    /// The device's address; made from the VM's ID if there is none.
    pub mac: Option<MacAddress>,
    /// The device's MTU in bytes.
    pub mtu: Option<Mtu>,
    /// The network namespace that the tap device is in; the monitor's own if there is none.
    pub netns: Option<NetNs>,
    /// Queue pairs, from 1 to 8; 1 if nothing is said.
    pub queues: Option<u8>,
}

/// The kind of a VM's network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NetMode {
    /// Connections are made by a process of the user's, passt, which needs no right.
    #[default]
    User,
    /// A tap device of the host's.
    Tap {
        /// Its name; one that goes with the VM is made if there is none.
        name: Option<Interface>,
    },
    /// A tap device that is a port of a bridge.
    Bridge {
        /// The bridge's name.
        name: Interface,
    },
    /// No device.
    None,
}

impl NetMode {
    /// Its name, as in `inspect`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Tap { .. } => "tap",
            Self::Bridge { .. } => "bridge",
            Self::None => "none",
        }
    }
}

impl FromStr for NetSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let mut spec = Self {
            mode: parse_mode(head)?,
            ..Self::default()
        };
        for part in parts {
            spec.set(part)?;
        }
        spec.check()
    }
}

fn parse_mode(text: &str) -> Result<NetMode, String> {
    match text.split_once(':') {
        None if text == "user" => Ok(NetMode::User),
        None if text == "none" => Ok(NetMode::None),
        None if text == "tap" => Ok(NetMode::Tap { name: None }),
        Some(("tap", name)) => Ok(NetMode::Tap {
            name: Some(name.parse()?),
        }),
        Some(("bridge", name)) => Ok(NetMode::Bridge {
            name: name.parse()?,
        }),
        None if text == "bridge" => Err("which bridge? give bridge:NAME".to_owned()),
        _ => Err(format!(
            "{text:?} is not a network: give user, tap, tap:NAME, bridge:NAME or none"
        )),
    }
}

impl NetSpec {
    fn set(&mut self, part: &str) -> Result<(), String> {
        let unknown = || {
            format!(
                "{part:?} is not a setting of a network: there are mac=MAC, mtu=N, netns=NAME and \
                 queues=N"
            )
        };
        let (name, value) = part.split_once('=').ok_or_else(unknown)?;
        let twice = match name {
            "mac" => self.mac.replace(parse_mac(value)?).is_some(),
            "mtu" => self.mtu.replace(value.parse()?).is_some(),
            "netns" => self.netns.replace(value.parse()?).is_some(),
            "queues" => self.queues.replace(parse_queues(value)?).is_some(),
            _ => return Err(unknown()),
        };
        if twice {
            return Err(format!("{name} is given twice"));
        }
        Ok(())
    }

    fn check(self) -> Result<Self, String> {
        let name = self.mode.name();
        let has_tap = matches!(self.mode, NetMode::Tap { .. } | NetMode::Bridge { .. });
        if self.netns.is_some() && !has_tap {
            return Err(format!("{name} takes no netns: tap and bridge do"));
        }
        if self.queues.is_some() && !has_tap {
            return Err(format!("{name} takes no queues: tap and bridge do"));
        }
        if self.mode == NetMode::None && (self.mac.is_some() || self.mtu.is_some()) {
            return Err("none is no network: it takes neither mac nor mtu".to_owned());
        }
        Ok(self)
    }
}

/// A MAC address that a device can have.
///
/// # Errors
/// One line that says what is wrong with it.
pub fn parse_mac(text: &str) -> Result<MacAddress, String> {
    text.parse()
        .map_err(|error: casita_devices::virtio::net::MacError| error.to_string())
}

fn parse_queues(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(queues) if (1..=MAX_QUEUE_PAIRS).contains(&usize::from(queues)) => Ok(queues),
        _ => Err(format!(
            "{text} queues are not possible: give 1 to {MAX_QUEUE_PAIRS}"
        )),
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mode.name())?;
        match &self.mode {
            NetMode::Tap { name: Some(name) } | NetMode::Bridge { name } => write!(f, ":{name}")?,
            _ => {}
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        if let Some(netns) = &self.netns {
            write!(f, ",netns={netns}")?;
        }
        if let Some(queues) = self.queues {
            write!(f, ",queues={queues}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for NetSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NetSpec> for String {
    fn from(spec: NetSpec) -> Self {
        spec.to_string()
    }
}

/// The longest packet that an interface sends, in bytes: 68 to 65520.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Mtu(u16);

impl Mtu {
    /// The largest: what passt moves at once.
    pub const MAX: Mtu = Mtu(MAX_MTU);
    /// What IPv6 needs (RFC 8200, section 5).
    pub const IPV6: Mtu = Mtu(1280);

    /// One of `bytes`, if that is possible.
    pub fn new(bytes: u32) -> Option<Self> {
        let bytes = u16::try_from(bytes).ok()?;
        (MIN_MTU..=MAX_MTU).contains(&bytes).then_some(Self(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| {
            format!("an MTU of {text} is not possible: give {MIN_MTU} to {MAX_MTU} bytes")
        })
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The name of a network interface of the host's: 1 to 15 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Interface(String);

impl Interface {
    /// `IFNAMSIZ`, without the NUL.
    const MAX: usize = 15;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As the kernel's dev_valid_name; '%' would have the kernel choose a number, and the rest
        // is what our own syntax needs.
        let valid = |byte: u8| byte.is_ascii_graphic() && !b"/:%,=".contains(&byte);
        let dots = matches!(text, "." | "..");
        if text.is_empty() || text.len() > Self::MAX || dots || !text.bytes().all(valid) {
            return Err(format!(
                "{text:?} can't be the name of a network interface: it has 1 to {} letters, digits \
                 and signs",
                Self::MAX
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Interface {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Interface> for String {
    fn from(name: Interface) -> Self {
        name.0
    }
}

/// A network namespace: a name as `ip netns` makes it, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetNs(String);

impl NetNs {
    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        if self.0.contains('/') {
            PathBuf::from(&self.0)
        } else {
            PathBuf::from("/run/netns").join(&self.0)
        }
    }
}

impl FromStr for NetNs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let relative = text.contains('/') && !text.starts_with('/');
        if text.is_empty() || text == "." || text == ".." || relative || text.contains('\0') {
            return Err(format!(
                "{text:?} is not a network namespace: give a name from `ip netns`, or an absolute \
                 path"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
