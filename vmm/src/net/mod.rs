//! A VM's network on the host's side: what its one network device leads to.
//!
//! [`prepare`] opens or starts everything that takes a right or a file, before the guest exists; what
//! the guest is told of it is plain data ([`Prepared::guest`]). [`Prepared::device`] puts it behind a
//! virtio device ([`attach`] is where frames can be looked at on their way).

pub mod attach;
mod dormant;
mod error;
mod host;
pub mod passt;
mod policy;
mod ports;
pub mod spec;
mod state;
pub mod tap;
mod user;
mod wall;

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use casita_agent::spec::{Address, Network};
use casita_devices::virtio::net::{MacAddress, Net};
use sha2::{Digest, Sha256};

pub use attach::NetDevice;
pub use dormant::Starter;
pub use error::NetError;
pub use state::{NetworkState, PublishedPort};

use crate::config::{BootMode, MachineConfig};
use crate::dirs::Dirs;
use crate::networks::Outside;
use attach::{HostEnd, Settings};
use host::Resolvers;
use passt::{Order, Passt};
use policy::Policy;
use spec::{Mtu, NetMode, NetSpec, PortSpec};
use user::Addresses;

/// What of a VM its network goes by, beside its description.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The VM's ID, which no other VM has.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its network the last time it ran: what may be chosen freely stays as it was.
    pub before: Option<NetworkState>,
    /// Whoever reaches other VMs on its network for it, if not this process.
    pub outside: Option<Arc<dyn Outside>>,
    /// Whoever can start passt for it when it can't itself any more.
    pub starter: Option<Arc<dyn Starter>>,
}

impl Identity {
    /// The MAC address of a VM that is given none.
    pub fn mac(&self) -> MacAddress {
        let digest = Sha256::digest(format!("casita mac {}", self.id));
        let mut bytes = [0; 6];
        bytes
            .iter_mut()
            .zip(digest)
            .for_each(|(to, from)| *to = from);
        MacAddress::local(bytes)
    }
}

/// A network that is ready on the host's side.
#[derive(Debug)]
pub struct Prepared {
    /// What the guest's agent sets up.
    pub guest: Network,
    /// What is told of it.
    pub state: NetworkState,
    /// `ip=` of the kernel's command line, for a guest without an agent.
    pub kernel_ip: Option<String>,
    end: HostEnd,
    settings: Settings,
    policy: Policy,
    /// passt is waited for, with these.
    awaited: Option<Addresses>,
}

/// Refuses options that have no effect together.
///
/// # Errors
/// One line that says which.
pub fn check(config: &MachineConfig) -> Result<(), NetError> {
    let mode = config.net.clone().unwrap_or_default().mode;
    let name = mode.name();
    let options = Options::of(config);
    let refuse = |text: String| Err(NetError::Options(text));
    if mode != NetMode::None {
        policy::check(config, &mode)?;
    }
    match mode {
        NetMode::None => match options.first() {
            None => Ok(()),
            Some(option) => refuse(format!(
                "--net none leaves the guest without a network: leave out {option}"
            )),
        },
        NetMode::Tap { .. } | NetMode::Bridge { .. } if options.ports.is_some() => {
            let option = options.ports.unwrap_or_default();
            refuse(format!(
                "{option} needs --net user: with --net {name} the guest's ports are reached at its \
                 own address"
            ))
        }
        _ if config.boot == Some(BootMode::Plain)
            && mode != NetMode::User
            && config.ip.iter().any(|ip| ip.ip.is_ipv6()) =>
        {
            refuse(
                "with --boot plain the kernel takes IPv4 addresses only: leave out the --ip of IPv6"
                    .to_owned(),
            )
        }
        _ => Ok(()),
    }
}

/// Which options about networks are there.
struct Options {
    ports: Option<&'static str>,
    others: Option<&'static str>,
}

impl Options {
    fn of(config: &MachineConfig) -> Self {
        let find = |options: &[(&'static str, bool)]| {
            let given = options.iter().find(|(_, given)| *given);
            given.map(|(name, _)| *name)
        };
        Self {
            ports: find(&[
                ("--publish", !config.publish.is_empty()),
                ("--publish-all", config.publish_all),
            ]),
            others: find(&[
                ("--ip", !config.ip.is_empty()),
                ("--mac", config.mac.is_some()),
                ("--mtu", config.mtu.is_some()),
                ("--dns", !config.dns.is_empty()),
                ("--net-rate", config.net_rate.is_some()),
                ("--network", config.network.is_some()),
                ("--network-alias", !config.network_alias.is_empty()),
                ("--egress", config.egress.is_some()),
            ]),
        }
    }

    fn first(&self) -> Option<&'static str> {
        self.ports.or(self.others)
    }
}

/// Makes the host's side of the network of `config`; None if it has none. With `wrapped`, frames are
/// going to be looked at.
///
/// # Errors
/// If it can't be had. Without passt, a VM of which nothing was said goes without a network.
pub fn prepare(
    config: &MachineConfig,
    identity: &Identity,
    dirs: &Dirs,
) -> Result<Option<Prepared>, NetError> {
    check(config)?;
    let mut spec = config.net.clone().unwrap_or_default();
    spec.mac = config.mac.or(spec.mac);
    spec.mtu = config.mtu.or(spec.mtu);
    match spec.mode {
        NetMode::None => Ok(None),
        NetMode::User => prepare_user(config, &spec, identity, dirs),
        NetMode::Tap { .. } | NetMode::Bridge { .. } => {
            prepare_tap(config, &spec, identity, dirs).map(Some)
        }
    }
}

fn prepare_user(
    config: &MachineConfig,
    spec: &NetSpec,
    identity: &Identity,
    dirs: &Dirs,
) -> Result<Option<Prepared>, NetError> {
    let asked = config.net.is_some() || Options::of(config).first().is_some();
    let Some(program) = passt::find() else {
        if asked {
            return Err(NetError::PasstMissing);
        }
        log::warn!("passt is not installed, so the guest has no network: sudo apt install passt");
        return Ok(None);
    };
    let mtu = spec.mtu.unwrap_or(Mtu::MAX);
    let narrow = mtu < Mtu::IPV6;
    if let Some(ip) = config.ip.iter().find(|ip| narrow && ip.ip.is_ipv6()) {
        let least = Mtu::IPV6;
        return Err(NetError::Options(format!(
            "IPv6 takes an MTU of {least} at least: leave out --ip {ip}"
        )));
    }
    let interface = host::ipv6_interface().filter(|_| !narrow);
    let resolvers = host::resolvers();
    let ipv6 = interface.is_some();
    let mac = spec.mac.unwrap_or_else(|| identity.mac());
    let mut policy = Policy::new(config, &spec.mode, mac, identity, dirs)?;
    let ips = policy.addresses(&config.ip, ipv6);
    let mut addresses = Addresses::new(&ips, &config.dns, &resolvers, ipv6)?;
    let own_resolver = policy.resolver(&addresses.dns);
    addresses.dns.extend(own_resolver);
    let before = identity
        .before
        .as_ref()
        .map_or(&[][..], |state| &state.ports);
    let ports = ports::reserve(&published(config)?, before, ipv6)?;
    let told = ports.iter().flat_map(|port| port.published(ipv6)).collect();
    // Where somebody counts on it, it is there before the guest starts.
    let counted_on = config.net.is_some() || !ports.is_empty();
    let awaited = (asked || counted_on).then(|| addresses.clone());
    let setup = passt::Setup {
        addresses: &addresses,
        search: &resolvers.search,
        mtu,
        ipv6_interface: interface.as_deref(),
    };
    let gateways = if setup.maps_gateway(&ports) {
        addresses.sides.iter().map(|side| side.gateway).collect()
    } else {
        Vec::new()
    };
    let order = Order::new(program, &setup, &ports);
    let end = match &identity.starter {
        Some(starter) if !counted_on => dormant::end(&order, starter)?,
        _ => HostEnd::Passt(Passt::start(order, ports)?, gateways),
    };
    let mut guest = Network {
        mtu: Some(mtu.bytes()),
        addresses: addresses.sides.iter().map(|side| side.address).collect(),
        gateways: addresses.sides.iter().map(|side| side.gateway).collect(),
        dns: addresses.dns.clone(),
        search: resolvers.search,
        ..Network::default()
    };
    policy.complete(&mut guest);
    let mut prepared = Prepared::new(config, spec, identity, (guest, policy), end);
    prepared.state.ports = told;
    prepared.awaited = awaited;
    Ok(Some(prepared))
}

/// The ports that are asked for, and those of the image.
fn published(config: &MachineConfig) -> Result<Vec<PortSpec>, NetError> {
    let mut specs = config.publish.clone();
    if config.publish_all {
        let given = |guest: u16, of| {
            let mut specs = config.publish.iter();
            specs.any(|spec| spec.protocol == of && spec.guest.contains(&guest))
        };
        for port in &config.exposed {
            let spec = PortSpec::exposed(port).map_err(NetError::Options)?;
            if !given(*spec.guest.start(), spec.protocol) {
                specs.push(spec);
            }
        }
    }
    Ok(specs)
}

fn prepare_tap(
    config: &MachineConfig,
    spec: &NetSpec,
    identity: &Identity,
    dirs: &Dirs,
) -> Result<Prepared, NetError> {
    let (name, bridge) = match &spec.mode {
        NetMode::Tap { name } => (name.as_ref(), None),
        NetMode::Bridge { name } => (None, Some(name)),
        _ => (None, None),
    };
    let taken = tap::take(tap::Wanted {
        name,
        bridge,
        netns: spec.netns.as_ref(),
        mtu: spec.mtu,
        queues: spec.queues.unwrap_or(1),
    })?;
    let ips = &config.ip;
    let resolvers = match (&config.dns[..], ips.is_empty()) {
        ([], true) => Resolvers::default(),
        // The guest reaches what it reaches: a stub on the host's loopback it does not.
        ([], false) => {
            let mut host = host::resolvers();
            host.servers.retain(|server| !server.is_loopback());
            host
        }
        (dns, _) => Resolvers {
            servers: dns.to_vec(),
            search: Vec::new(),
        },
    };
    let mut guest = Network {
        mtu: taken.mtu.map(Mtu::bytes),
        addresses: ips.iter().map(spec::IpSpec::address).collect(),
        gateways: first_of_each_version(ips.iter().filter_map(|ip| ip.gateway)),
        dns: resolvers.servers,
        search: resolvers.search,
        automatic: ips.is_empty(),
        ..Network::default()
    };
    let mac = spec.mac.unwrap_or_else(|| identity.mac());
    let policy = Policy::new(config, &spec.mode, mac, identity, dirs)?;
    policy.complete(&mut guest);
    let interface = taken.name.clone();
    let mut prepared = Prepared::new(config, spec, identity, (guest, policy), HostEnd::Tap(taken));
    prepared.state.interface = Some(interface);
    prepared.state.bridge = bridge.map(ToString::to_string);
    prepared.state.netns = spec.netns.as_ref().map(ToString::to_string);
    Ok(prepared)
}

fn first_of_each_version(gateways: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut first: Vec<IpAddr> = Vec::new();
    for gateway in gateways {
        if !first
            .iter()
            .any(|other| other.is_ipv4() == gateway.is_ipv4())
        {
            first.push(gateway);
        }
    }
    first
}

impl Prepared {
    fn new(
        config: &MachineConfig,
        spec: &NetSpec,
        identity: &Identity,
        (guest, policy): (Network, Policy),
        end: HostEnd,
    ) -> Self {
        let mac = spec.mac.unwrap_or_else(|| identity.mac());
        let address = |own: &Address| format!("{}/{}", own.ip, own.prefix);
        let state = NetworkState {
            mac: Some(mac),
            mtu: guest.mtu,
            addresses: guest.addresses.iter().map(address).collect(),
            gateways: guest.gateways.clone(),
            dns: guest.dns.clone(),
            network: policy.network().map(|(name, _)| name.to_owned()),
            names: policy
                .network()
                .map_or_else(Vec::new, |(_, names)| names.to_vec()),
            egress: Some(policy.egress().clone()),
            ..NetworkState::none()
        };
        Self {
            kernel_ip: kernel_ip(config, &guest),
            settings: Settings {
                mac,
                mtu: guest.mtu,
                rate: config.net_rate,
            },
            state: NetworkState {
                mode: spec.mode.name().to_owned(),
                ..state
            },
            guest,
            end,
            policy,
            awaited: None,
        }
    }

    /// Makes the device, with what the policy puts before the host's end. What serves the device is
    /// waited for if anybody counts on it.
    ///
    /// # Errors
    /// If that does not come, or the device can't be made.
    pub fn device(mut self) -> Result<(Net, NetDevice, NetworkState), NetError> {
        if let (HostEnd::Passt(passt, _), Some(addresses)) = (&mut self.end, &self.awaited) {
            passt.wait_ready(self.settings.mac, addresses)?;
        }
        let (end, settings) = (self.end, self.settings);
        let attached = self.policy.wrapped(&self.guest, settings.mac, |wrap| {
            attach::attach(end, &settings, wrap)
        });
        let (net, device) = attached?;
        self.state.vhost = device.vhost;
        Ok((net, device, self.state))
    }
}

/// How the kernel sets up its interface by itself, if the user has said with which IPv4 address
/// (Documentation/admin-guide/nfs/nfsroot.rst); else whatever runs in the guest asks by DHCP.
fn kernel_ip(config: &MachineConfig, guest: &Network) -> Option<String> {
    if !config.ip.iter().any(|ip| ip.ip.is_ipv4()) {
        return None;
    }
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    let own = guest.addresses.iter().find(|own| own.ip.is_ipv4())?;
    let (ip, mask) = (
        v4(&own.ip)?,
        u32::MAX.checked_shl(32 - u32::from(own.prefix)),
    );
    let mask = std::net::Ipv4Addr::from_bits(mask.unwrap_or(0));
    let gateway = guest.gateways.iter().find_map(v4);
    let gateway = gateway.map_or_else(String::new, |ip| ip.to_string());
    let mut text = format!("ip={ip}::{gateway}:{mask}:{}:eth0:off", config.hostname());
    for server in guest.dns.iter().filter_map(v4).take(2) {
        // A string takes all that is written to it.
        let _ = write!(text, ":{server}");
    }
    Some(text)
}

#[cfg(test)]
mod tests;
