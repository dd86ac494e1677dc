//! Why a VM can't have the network that it was to have.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use casita_devices::virtio::net::NetError as DeviceError;
use thiserror::Error;

use super::spec::{Interface, Protocol};
use crate::networks::NetworkError;

/// Why a VM can't have the network that it was to have.
#[derive(Debug, Error)]
pub enum NetError {
    /// Options that contradict each other.
    #[error("{0}")]
    Options(String),
    /// Two ways to one port of the host's.
    #[error("port {port}/{protocol} of the host is published twice: it can lead to one port only")]
    Twice {
        /// The host's port.
        port: u16,
        /// Of this.
        protocol: Protocol,
    },
    /// Somebody else has the port.
    #[error("port {port}/{protocol} {at} is in use: choose another one with -p", at = At(*.address))]
    PortInUse {
        /// The host's address.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
        /// Of this.
        protocol: Protocol,
    },
    /// All of them are taken.
    #[error("none of the ports {first}-{last}/{protocol} {at} is free", at = At(*.address))]
    NoFreePort {
        /// The host's address.
        address: Option<IpAddr>,
        /// From this one.
        first: u16,
        /// To this one.
        last: u16,
        /// Of this.
        protocol: Protocol,
    },
    /// The port takes a right.
    #[error(
        "port {port}/{protocol} takes a right that you do not have: choose one from {least} on, or \
         allow it to all with `sudo sysctl net.ipv4.ip_unprivileged_port_start={port}`"
    )]
    PortForbidden {
        /// The port.
        port: u16,
        /// Of this.
        protocol: Protocol,
        /// The first port that takes no right.
        least: u16,
    },
    /// No interface has the address.
    #[error("this host has no address {0} to publish a port at")]
    NoSuchAddress(IpAddr),
    /// Ports can't be published there for another reason.
    #[error("port {port}/{protocol} {at} can't be published", at = At(*.address))]
    Port {
        /// The host's address.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
        /// Of this.
        protocol: Protocol,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// IPv6 was asked for, and the host has none.
    #[error(
        "{0} can't be used: no network interface of this host has an IPv6 address, of which \
         --net user needs one"
    )]
    NoIpv6(IpAddr),
    /// The program is not installed.
    #[error("passt is not installed, which --net user needs: sudo apt install passt")]
    PasstMissing,
    /// The program does not run.
    #[error("the program {} can't be started", path.display())]
    PasstStart {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program has ended at once, and says why.
    #[error("passt does not run: {0}")]
    Passt(String),
    /// It says nothing.
    #[error("passt does not answer")]
    PasstSilent(#[source] io::Error),
    /// The namespace can't be entered.
    #[error("the network namespace {} can't be entered{hint}", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no way to make tap devices.
    #[error("/dev/net/tun can't be opened{hint}")]
    Tun {
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tap device can't be had.
    #[error("tap device {name}: {what}")]
    Tap {
        /// Its name, as far as it is known.
        name: String,
        /// What is wrong and what to do.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such bridge.
    #[error(
        "there is no bridge {0}: make it with `sudo ip link add {0} type bridge && sudo ip link set \
         {0} up`"
    )]
    NoBridge(Interface),
    /// It is something else.
    #[error("{0} is not a bridge: `ip link show type bridge` lists those there are")]
    NotABridge(Interface),
    /// The network of VMs, or what a policy names.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The device can't be made so.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host refused something ordinary.
    #[error("the host could not {0}")]
    Host(&'static str, #[source] io::Error),
}

/// An address of the host's, or all of them, in a sentence.
struct At(Option<IpAddr>);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("of this host"),
            Some(address) => write!(f, "at {address}"),
        }
    }
}
