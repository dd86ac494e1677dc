//! `-p [IP:][HOST[-HOST]:]GUEST[-GUEST][/tcp|/udp]`, as Docker has it.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What ports are of.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(format!(
                "{text:?} is not a protocol of ports: give tcp or udp"
            )),
        }
    }
}

/// Ports of the guest's that are reached through ports of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSpec {
    /// The host's address; all of them if there is none.
    pub address: Option<IpAddr>,
    /// The host's ports; any that are free if there are none. As many as the guest's, each for one;
    /// or, for one of the guest's, those of which one that is free is taken.
    pub host: Option<RangeInclusive<u16>>,
    /// The guest's ports.
    pub guest: RangeInclusive<u16>,
    /// What they are of.
    pub protocol: Protocol,
}

impl PortSpec {
    /// Any free port of the host's for `guest`, such as `80/tcp`: what an image exposes.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub fn exposed(guest: &str) -> Result<Self, String> {
        let spec: Self = guest.parse()?;
        if spec.host.is_some() || spec.address.is_some() {
            return Err(format!("{guest:?} is not a port of the guest's"));
        }
        Ok(spec)
    }

    /// Each port of the guest's with those of the host's that may lead to it.
    pub fn pairs(&self) -> impl Iterator<Item = (Option<RangeInclusive<u16>>, u16)> {
        let one = self.guest.len() == 1;
        let first = *self.guest.start();
        self.guest.clone().map(move |guest| {
            let host = self.host.as_ref().map(|host| {
                // As many as the guest's, else there is one.
                let same = host.start().saturating_add(guest - first);
                if one { host.clone() } else { same..=same }
            });
            (host, guest)
        })
    }
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::default()),
            Some((ports, protocol)) => (ports, protocol.parse()?),
        };
        let (before, guest) = match ports.rsplit_once(':') {
            None => (None, ports),
            Some((before, guest)) => (Some(before), guest),
        };
        let (address, host) = match before {
            None => (None, None),
            Some(before) => match before.rsplit_once(':') {
                None => (None, Some(before)),
                Some((address, host)) => (Some(parse_address(address)?), Some(host)),
            },
        };
        let guest = parse_ports(guest)?;
        let host = host
            .filter(|host| !host.is_empty())
            .map(parse_ports)
            .transpose()?;
        if let Some(host) = &host
            && guest.len() != 1
            && guest.len() != host.len()
        {
            return Err(format!(
                "{} ports of the host can't lead to {} ports of the guest in {text:?}",
                host.len(),
                guest.len()
            ));
        }
        if before == Some("") {
            return Err(format!("{text:?} has no port before its colon"));
        }
        Ok(Self {
            address,
            host,
            guest,
            protocol,
        })
    }
}

/// `127.0.0.1`, `[::1]` or `::1`.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .map_err(|_| format!("{text:?} is not an address of the host's"))
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a port or a range of ports from 1 to 65535");
    let port = |text: &str| match text.parse::<u16>() {
        // A sign is none of a port's.
        Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(wrong()),
    };
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((first, last)) => (port(first)?, port(last)?),
    };
    if first > last {
        return Err(wrong());
    }
    Ok(first..=last)
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            None => {}
        }
        if let Some(host) = &self.host {
            write!(f, "{}:", Ports(host))?;
        } else if self.address.is_some() {
            f.write_str(":")?;
        }
        write!(f, "{}", Ports(&self.guest))?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

/// One port or a range.
struct Ports<'a>(&'a RangeInclusive<u16>);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl TryFrom<String> for PortSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortSpec> for String {
    fn from(spec: PortSpec) -> Self {
        spec.to_string()
    }
}
