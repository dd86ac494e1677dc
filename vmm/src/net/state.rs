//! A VM's network as it was made: what `inspect`, `ps` and `port` tell, and what the next start
//! goes by.

use std::fmt;
use std::net::IpAddr;

use casita_devices::virtio::net::MacAddress;
use casita_net::EgressPolicy;
use serde::{Deserialize, Serialize};

use super::spec::Protocol;

/// A VM's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// `user`, `tap`, `bridge` or `none`.
    pub mode: String,
    /// The host's end of it: the tap device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The bridge that this is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The network namespace that they are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Whether the host's kernel moves the frames.
    #[serde(default)]
    pub vhost: bool,
    /// The guest's device.
    pub mac: Option<MacAddress>,
    /// In bytes.
    pub mtu: Option<u16>,
    /// The guest's addresses that were chosen for it, with their prefixes. Empty if it asks the
    /// network for them.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Its routers.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Its name servers.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Ports of the host's that lead to the guest.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// The network of the user's VMs that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its names there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// What it may reach outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressPolicy>,
}

impl NetworkState {
    /// No network.
    pub fn none() -> Self {
        Self {
            mode: "none".to_owned(),
            interface: None,
            bridge: None,
            netns: None,
            vhost: false,
            mac: None,
            mtu: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            dns: Vec::new(),
            ports: Vec::new(),
            network: None,
            names: Vec::new(),
            egress: None,
        }
    }
}

/// A port of the host's that leads to one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The guest's.
    pub guest_port: u16,
    /// What both are of.
    pub protocol: Protocol,
    /// The host's address; unspecified for all of that version of IP.
    pub host_ip: IpAddr,
    /// The host's.
    pub host_port: u16,
}

impl PublishedPort {
    /// Where it is reached, such as `0.0.0.0:8080` or `[::]:8080`.
    pub fn host(&self) -> std::net::SocketAddr {
        (self.host_ip, self.host_port).into()
    }
}

/// As Docker's `ps` has it.
impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/{}", self.host(), self.guest_port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_shown_as_docker_does() {
        let port = |ip: &str| PublishedPort {
            guest_port: 80,
            protocol: Protocol::Tcp,
            host_ip: ip.parse().unwrap(),
            host_port: 8080,
        };
        assert_eq!(port("0.0.0.0").to_string(), "0.0.0.0:8080->80/tcp");
        assert_eq!(port("::").to_string(), "[::]:8080->80/tcp");
    }
}
