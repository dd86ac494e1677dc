//! Which ports of the host's lead to the guest: chosen, and tried, before it starts.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;

use super::NetError;
use super::spec::{PortSpec, Protocol};
use super::state::PublishedPort;

/// A port of the host's, and what keeps others from it until passt takes it over.
#[derive(Debug)]
pub struct Reserved {
    /// The host's address; all of them if there is none.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
    /// What both are of.
    pub protocol: Protocol,
    _socket: Socket,
}

#[derive(Debug)]
#[allow(dead_code, reason = "they are there to be open")]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Reserved {
    /// As it is told: one for each version of IP.
    pub fn published(&self, ipv6: bool) -> impl Iterator<Item = PublishedPort> {
        let (guest_port, protocol, host_port) = (self.guest, self.protocol, self.host);
        let all: [Option<IpAddr>; 2] = match self.address {
            Some(address) => [Some(address), None],
            None => [
                Some(Ipv4Addr::UNSPECIFIED.into()),
                ipv6.then_some(Ipv6Addr::UNSPECIFIED.into()),
            ],
        };
        all.into_iter().flatten().map(move |host_ip| PublishedPort {
            guest_port,
            protocol,
            host_ip,
            host_port,
        })
    }
}

/// Finds a port of the host's for each of the guest's. One that may be any is what it was in
/// `before`, if that is free.
///
/// # Errors
/// If one is in use, forbidden, or published twice.
pub fn reserve(
    specs: &[PortSpec],
    before: &[PublishedPort],
    ipv6: bool,
) -> Result<Vec<Reserved>, NetError> {
    let mut reserved: Vec<Reserved> = Vec::new();
    for spec in specs {
        if let Some(ip @ IpAddr::V6(_)) = spec.address
            && !ipv6
        {
            return Err(NetError::NoIpv6(ip));
        }
        for (host, guest) in spec.pairs() {
            let (address, protocol) = (spec.address, spec.protocol);
            let at = Place {
                address,
                protocol,
                ipv6,
            };
            let (host, socket) = match host {
                Some(ports) => {
                    refuse_twice(&reserved, &ports, protocol)?;
                    at.take_one_of(ports)?
                }
                None => at.take_any(guest, before)?,
            };
            reserved.push(Reserved {
                address,
                host,
                guest,
                protocol,
                _socket: socket,
            });
        }
    }
    Ok(reserved)
}

/// passt keeps one target for each port, whatever the address.
fn refuse_twice(
    reserved: &[Reserved],
    ports: &RangeInclusive<u16>,
    protocol: Protocol,
) -> Result<(), NetError> {
    let port = *ports.start();
    let taken = |other: &Reserved| other.host == port && other.protocol == protocol;
    if ports.len() == 1 && reserved.iter().any(taken) {
        return Err(NetError::Twice { port, protocol });
    }
    Ok(())
}

/// Where ports are looked for.
struct Place {
    address: Option<IpAddr>,
    protocol: Protocol,
    ipv6: bool,
}

impl Place {
    fn bind(&self, port: u16) -> io::Result<(u16, Socket)> {
        let ip = self.address.unwrap_or(if self.ipv6 {
            // Both versions at once.
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        });
        Ok(match self.protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind((ip, port))?;
                (socket.local_addr()?.port(), Socket::Tcp(socket))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind((ip, port))?;
                (socket.local_addr()?.port(), Socket::Udp(socket))
            }
        })
    }

    fn take_one_of(&self, ports: RangeInclusive<u16>) -> Result<(u16, Socket), NetError> {
        let (first, last) = (*ports.start(), *ports.end());
        for port in ports {
            match self.bind(port) {
                Ok(taken) => return Ok(taken),
                Err(error) if error.kind() == ErrorKind::AddrInUse && first != last => {}
                Err(error) => return Err(self.blame(port, error)),
            }
        }
        Err(NetError::NoFreePort {
            address: self.address,
            first,
            last,
            protocol: self.protocol,
        })
    }

    fn take_any(&self, guest: u16, before: &[PublishedPort]) -> Result<(u16, Socket), NetError> {
        let was = before
            .iter()
            .find(|port| port.guest_port == guest && port.protocol == self.protocol);
        if let Some(taken) = was.and_then(|port| self.bind(port.host_port).ok()) {
            return Ok(taken);
        }
        self.bind(0).map_err(|error| self.blame(0, error))
    }

    fn blame(&self, port: u16, source: io::Error) -> NetError {
        let (address, protocol) = (self.address, self.protocol);
        match (source.kind(), address) {
            (ErrorKind::AddrInUse, _) => NetError::PortInUse {
                address,
                port,
                protocol,
            },
            (ErrorKind::PermissionDenied, _) => NetError::PortForbidden {
                port,
                protocol,
                least: first_free_of_rights(),
            },
            (ErrorKind::AddrNotAvailable, Some(address)) => NetError::NoSuchAddress(address),
            _ => NetError::Port {
                address,
                port,
                protocol,
                source,
            },
        }
    }
}

fn first_free_of_rights() -> u16 {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    setting
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(texts: &[&str]) -> Vec<PortSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_port_in_use_is_refused_and_of_a_range_the_next_is_taken() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let text = format!("127.0.0.1:{port}:80");
        let error = reserve(&specs(&[&text]), &[], false).unwrap_err();
        assert!(matches!(error, NetError::PortInUse { .. }), "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
        let text = format!("127.0.0.1:{port}-{}:80", port.saturating_add(20));
        let taken = reserve(&specs(&[&text]), &[], false).unwrap();
        assert!(taken[0].host != port && taken[0].guest == 80);
        // Of the other protocol it is free.
        let text = format!("127.0.0.1:{port}:80/udp");
        reserve(&specs(&[&text]), &[], false).unwrap();
    }

    #[test]
    fn a_port_that_may_be_any_stays_what_it_was() {
        let chosen = reserve(&specs(&["127.0.0.1::80"]), &[], false).unwrap();
        let before: Vec<_> = chosen[0].published(false).collect();
        assert_ne!(before[0].host_port, 0);
        drop(chosen);
        let again = reserve(&specs(&["127.0.0.1::80"]), &before, false).unwrap();
        assert_eq!(again[0].host, before[0].host_port);
        // Unless somebody else has it meanwhile.
        let other = reserve(&specs(&["127.0.0.1::80"]), &before, false).unwrap();
        assert_ne!(other[0].host, before[0].host_port);
    }

    #[test]
    fn what_can_not_be_published_is_named() {
        let refused = |texts: &[&str]| reserve(&specs(texts), &[], false).unwrap_err();
        let error = refused(&["192.0.2.99::80"]);
        assert!(matches!(error, NetError::NoSuchAddress(_)), "{error}");
        let error = refused(&["[::1]::80"]);
        assert!(matches!(error, NetError::NoIpv6(_)), "{error}");
    }

    #[test]
    fn a_port_of_all_addresses_is_told_for_both_versions_of_ip() {
        let reserved = reserve(&specs(&["80"]), &[], false).unwrap();
        let told = |ipv6| -> Vec<String> {
            let ports = reserved[0].published(ipv6);
            ports.map(|port| port.host_ip.to_string()).collect()
        };
        assert_eq!(told(true), ["0.0.0.0", "::"]);
        assert_eq!(told(false), ["0.0.0.0"]);
    }
}
