//! What a guest may reach: `none`, `all`, or a list.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Cidr, CidrError};

/// The most items of a list.
pub const MAX_ITEMS: usize = 256;

/// What a guest may reach outside of its network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EgressPolicy {
    /// Everything.
    #[default]
    All,
    /// Nothing. Answers of connections that come from outside are not the guest's doing.
    None,
    /// These, and the resolver.
    List(Vec<EgressItem>),
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EgressItem {
    /// Whom it allows.
    pub target: Target,
    /// The one port that it allows; all without it.
    pub port: Option<u16>,
    /// The one transport that it allows; TCP and UDP without it.
    pub transport: Option<Transport>,
}

/// Whom an item allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Addresses.
    Range(Cidr),
    /// The addresses of a name.
    Host(HostName),
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A name as the domain name system has it, in small letters and without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// Why a text is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// Nothing at all, or nothing between two commas.
    #[error(
        "an egress list has an empty item: write none, all, or items such as 10.0.0.0/8, example.org:443 or 1.1.1.1:53/udp with commas between them"
    )]
    Empty,
    /// Words that stand alone.
    #[error("{0:?} stands alone: it can't be an item of an egress list")]
    Alone(String),
    /// Too long.
    #[error("an egress list has {0} items; at most {MAX_ITEMS} are possible")]
    TooMany(usize),
    /// Not a port.
    #[error("egress item {item:?}: {port:?} is not a port: write a number from 1 to 65535")]
    Port {
        /// The item.
        item: String,
        /// What is at the port's place.
        port: String,
    },
    /// Not a range of addresses.
    #[error("egress item {item:?}: {source}")]
    Range {
        /// The item.
        item: String,
        /// Why.
        source: CidrError,
    },
    /// Neither an address nor a name.
    #[error("egress item {item:?}: {host:?} is neither an address nor a host's name{hint}")]
    Host {
        /// The item.
        item: String,
        /// What is at the host's place.
        host: String,
        /// What may have been meant.
        hint: &'static str,
    },
}

impl EgressPolicy {
    /// The names that it has, each once.
    pub fn names(&self) -> Vec<&HostName> {
        let mut names: Vec<_> = self
            .items()
            .iter()
            .filter_map(|item| match &item.target {
                Target::Host(name) => Some(name),
                Target::Range(_) => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Its items; none unless it is a list.
    pub fn items(&self) -> &[EgressItem] {
        match self {
            Self::List(items) => items,
            Self::All | Self::None => &[],
        }
    }

    /// Whether it allows everything.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// What names of a policy mean, as the host resolved them before the guest ran.
pub type Resolved = BTreeMap<HostName, Vec<IpAddr>>;

impl EgressItem {
    /// Whether it allows this transport and port, of a host that it allows.
    pub fn allows(&self, transport: Transport, port: u16) -> bool {
        self.transport.is_none_or(|own| own == transport) && self.port.is_none_or(|own| own == port)
    }

    /// Whether it says nothing of ports and transports.
    pub fn is_whole(&self) -> bool {
        self.port.is_none() && self.transport.is_none()
    }
}

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = &'static str;

    /// The error is a hint at what may have been meant; it may be empty.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.contains('*') {
            return Err(
                ": names with * can't be resolved; name each host, or a range of addresses",
            );
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let digits = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() > 253 || !name.split('.').all(label) {
            return Err("");
        }
        // As 10.0.0 or 1.2.3.4.5: no top-level domain is a number.
        if name.rsplit('.').next().is_some_and(digits) {
            return Err(": an IPv4 address has four numbers");
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EgressPolicy {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        match text.trim() {
            "all" => return Ok(Self::All),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let count = text.split(',').count();
        if count > MAX_ITEMS {
            return Err(EgressError::TooMany(count));
        }
        let items = text.split(',').map(|item| item.trim().parse());
        Ok(Self::List(items.collect::<Result<_, _>>()?))
    }
}

impl FromStr for EgressItem {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        match text {
            "" => return Err(EgressError::Empty),
            "all" | "none" => return Err(EgressError::Alone(text.to_owned())),
            _ => {}
        }
        if text.contains("://") {
            return Err(EgressError::Host {
                item: text.to_owned(),
                host: text.to_owned(),
                hint: ": leave out what is before and behind the host's name",
            });
        }
        let (rest, transport) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Transport::Tcp)),
            Some((rest, "udp")) => (rest, Some(Transport::Udp)),
            _ => (text, None),
        };
        let (host, port, bracketed) = split_port(rest).ok_or_else(|| EgressError::Host {
            item: text.to_owned(),
            host: rest.to_owned(),
            hint: ": a bracket is open",
        })?;
        let port = port.map(|port| parse_port(text, port)).transpose()?;
        Ok(Self {
            target: target(text, host, bracketed)?,
            port,
            transport,
        })
    }
}

/// Host, port, and whether the host is in brackets, as an IPv6 address before a port is.
fn split_port(text: &str) -> Option<(&str, Option<&str>, bool)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, behind) = inner.split_once(']')?;
        return match behind {
            "" => Some((host, None, true)),
            behind => Some((host, Some(behind.strip_prefix(':')?), true)),
        };
    }
    match text.split_once(':') {
        // An IPv6 address has two colons at least.
        Some((_, rest)) if rest.contains(':') => Some((text, None, false)),
        Some((host, port)) => Some((host, Some(port), false)),
        None => Some((text, None, false)),
    }
}

fn parse_port(item: &str, text: &str) -> Result<u16, EgressError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if plain && port > 0 => Ok(port),
        _ => Err(EgressError::Port {
            item: item.to_owned(),
            port: text.to_owned(),
        }),
    }
}

fn target(item: &str, host: &str, bracketed: bool) -> Result<Target, EgressError> {
    let is_address = host.parse::<IpAddr>().is_ok();
    if is_address || host.contains('/') || host.contains(':') || bracketed {
        let range = host.parse().map_err(|source| EgressError::Range {
            item: item.to_owned(),
            source,
        })?;
        return Ok(Target::Range(range));
    }
    let name = host.parse().map_err(|hint| EgressError::Host {
        item: item.to_owned(),
        host: host.to_owned(),
        hint,
    })?;
    Ok(Target::Host(name))
}

impl fmt::Display for EgressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::None => f.write_str("none"),
            Self::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{item}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for EgressItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, self.port) {
            (Target::Range(range), Some(_)) if range.address().is_ipv6() => write!(f, "[{range}]")?,
            (Target::Range(range), _) => write!(f, "{range}")?,
            (Target::Host(name), _) => write!(f, "{name}")?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.transport {
            Some(Transport::Tcp) => f.write_str("/tcp"),
            Some(Transport::Udp) => f.write_str("/udp"),
            None => Ok(()),
        }
    }
}

impl Serialize for EgressPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EgressPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
