//! `--ip ADDR[/PREFIX][,gw=ADDR]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use casita_agent::spec::Address;
use serde::{Deserialize, Serialize};

/// An address that the guest gets, with the network around it and the router in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpSpec {
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits are the network's; 24 or 64 if nothing is said.
    pub prefix: Option<u8>,
    /// Where packets to other networks go.
    pub gateway: Option<IpAddr>,
}

impl IpSpec {
    /// The address with its network.
    pub fn address(&self) -> Address {
        let default = if self.ip.is_ipv4() { 24 } else { 64 };
        Address {
            ip: self.ip,
            prefix: self.prefix.unwrap_or(default),
        }
    }
}

impl FromStr for IpSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, gateway) = match text.split_once(',') {
            None => (text, None),
            Some((address, rest)) => (address, Some(rest)),
        };
        let (ip, prefix) = match address.split_once('/') {
            None => (address, None),
            Some((ip, prefix)) => (ip, Some(prefix)),
        };
        let ip = parse_host(ip)?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map(|prefix| match prefix.parse() {
            Ok(bits) if (1..=most).contains(&bits) => Ok(bits),
            _ => Err(format!(
                "a prefix of {prefix} bits is not possible for {ip}: give 1 to {most}"
            )),
        });
        let gateway = gateway.map(|rest| {
            let gateway = rest.strip_prefix("gw=").ok_or_else(|| {
                format!("{rest:?} is not a setting of an address: there is gw=ADDRESS")
            })?;
            match parse_host(gateway)? {
                gateway if gateway.is_ipv4() != ip.is_ipv4() => {
                    Err(format!("{gateway} can't be a gateway for {ip}"))
                }
                gateway if gateway == ip => Err(format!("{ip} can't be its own gateway")),
                gateway => Ok(gateway),
            }
        });
        Ok(Self {
            ip,
            prefix: prefix.transpose()?,
            gateway: gateway.transpose()?,
        })
    }
}

/// An address of one machine.
fn parse_host(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is not an IP address"))?;
    let broadcast = ip == IpAddr::from([255; 4]);
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
        return Err(format!(
            "{ip} can't be the address of a machine on a network"
        ));
    }
    Ok(ip)
}

impl fmt::Display for IpSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ip)?;
        if let Some(prefix) = self.prefix {
            write!(f, "/{prefix}")?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, ",gw={gateway}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for IpSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<IpSpec> for String {
    fn from(spec: IpSpec) -> Self {
        spec.to_string()
    }
}
