//! What stands between a guest and its network: the guard of its egress policy, and its port of a
//! network of the user's VMs.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use casita_agent::spec::{Address, Host, Network};
use casita_devices::virtio::net::MacAddress;
use casita_devices::virtio::net::backend::Backend;
use casita_net::{EgressPolicy, Guard, GuardConfig, Mac, Resolved};

use super::attach::Wrap;
use super::spec::{IpSpec, NetMode};
use super::{Identity, NetError};
use crate::config::{BootMode, MachineConfig};
use crate::dirs::Dirs;
use crate::networks::members::check_alias;
use crate::networks::{Join, Membership, Networks, Switch, SwitchConfig, resolve};

/// What a guest may reach, and what it is a member of.
#[derive(Debug, Default)]
pub struct Policy {
    egress: EgressPolicy,
    resolved: Resolved,
    membership: Option<Membership>,
    /// Whoever is behind the device is the user's own process, and nobody else hears the guest.
    local: bool,
    /// The image's own init sets the network up.
    plain: bool,
    /// Nothing is known of an outside resolver.
    without_resolver: bool,
}

impl Policy {
    /// The policy of `config`. Its names are resolved, and the network is joined.
    ///
    /// # Errors
    /// If a name means nothing, or the network can't be joined.
    pub fn new(
        config: &MachineConfig,
        mode: &NetMode,
        mac: MacAddress,
        identity: &Identity,
        dirs: &Dirs,
    ) -> Result<Self, NetError> {
        let egress = config.egress.clone().unwrap_or_default();
        let resolved = resolve(&egress)?;
        let mut membership = None;
        if let Some(network) = &config.network {
            let own = identity.name.clone();
            let names = [own]
                .into_iter()
                .chain(config.network_alias.iter().cloned());
            let join = Join {
                id: identity.id.clone(),
                names: names.collect(),
                mac,
                process: identity
                    .outside
                    .as_ref()
                    .map_or_else(std::process::id, |outside| outside.process()),
            };
            let mut joined = Networks::open(dirs)?.join(network, &join)?;
            if let Some(outside) = &identity.outside {
                joined.reach_through(outside.clone());
            }
            membership = Some(joined);
        }
        Ok(Self {
            egress,
            resolved,
            membership,
            local: *mode == NetMode::User,
            plain: config.boot == Some(BootMode::Plain),
            without_resolver: false,
        })
    }

    /// The addresses that the guest gets from its network; `wanted` if it is on none. `ipv6` tells
    /// whether there is a way out for that.
    pub fn addresses(&self, wanted: &[IpSpec], ipv6: bool) -> Vec<IpSpec> {
        let Some(membership) = &self.membership else {
            return wanted.to_vec();
        };
        let (network, member) = (membership.network(), membership.member());
        let v4 = (Some(member.ipv4), Some(network.subnet()), network.gateway());
        let v6 = (member.ipv6, network.subnet6(), network.gateway6());
        [Some(v4), ipv6.then_some(v6)]
            .into_iter()
            .flatten()
            .filter_map(|(ip, range, gateway)| {
                Some(IpSpec {
                    ip: ip?,
                    prefix: Some(range?.bits()),
                    gateway,
                })
            })
            .collect()
    }

    /// Whom the guest asks for names, if nobody outside is known: its network's gateway, which we
    /// answer for.
    pub fn resolver(&mut self, known: &[IpAddr]) -> Option<IpAddr> {
        let membership = self.membership.as_ref().filter(|_| known.is_empty())?;
        self.without_resolver = true;
        membership.network().gateway()
    }

    /// Adds to the guest's network what it has of this.
    pub fn complete(&self, guest: &mut Network) {
        if let Some(membership) = &self.membership {
            let (network, member) = (membership.network(), membership.member());
            let known = |guest: &Network, ip| guest.addresses.iter().any(|own| own.ip == ip);
            if let (Some(ip), Some(range)) = (member.ipv6, network.subnet6())
                && !known(guest, ip)
            {
                let prefix = range.bits();
                guest.addresses.push(Address { ip, prefix });
            }
            guest.search.insert(0, network.name().to_owned());
        }
        let hosts = self.resolved.iter().flat_map(|(name, addresses)| {
            let name = name.as_str().to_owned();
            addresses.iter().map(move |ip| Host {
                ip: *ip,
                name: name.clone(),
            })
        });
        guest.hosts.extend(hosts);
    }

    /// The network's name and the guest's names there.
    pub fn network(&self) -> Option<(&str, &[String])> {
        let membership = self.membership.as_ref()?;
        Some((membership.network().name(), &membership.member().names))
    }

    /// What may be reached.
    pub fn egress(&self) -> &EgressPolicy {
        &self.egress
    }

    /// Calls `attach` with what is to be between the device and its back ends, if anything is.
    pub fn wrapped<T>(
        self,
        guest: &Network,
        mac: MacAddress,
        attach: impl FnOnce(Option<Wrap<'_>>) -> Result<T, NetError>,
    ) -> Result<T, NetError> {
        let addresses: Vec<_> = guest.addresses.iter().map(|own| own.ip).collect();
        if let Some(membership) = self.membership {
            let config = SwitchConfig {
                addresses,
                gateways: guest.gateways.clone(),
                resolvers: guest.dns.clone(),
                forwards: !self.without_resolver,
                policy: self.egress,
                resolved: self.resolved,
            };
            let mut membership = Some(membership);
            return attach(Some(&mut |uplink: Box<dyn Backend>| {
                let Some(membership) = membership.take() else {
                    return Err(NetError::Options(
                        "a network has one queue pair for each VM".to_owned(),
                    ));
                };
                let switch = Switch::new(membership, uplink, config.clone())
                    .map_err(|error| NetError::Host("watch the network's members", error))?;
                Ok(Box::new(switch))
            }));
        }
        if self.egress.is_all() {
            return attach(None);
        }
        let guard = Guard::new(GuardConfig {
            mac: Some(Mac(mac.0)),
            learns_addresses: self.plain || addresses.is_empty(),
            addresses,
            local_uplink: self.local,
            gateways: guest.gateways.clone(),
            resolvers: guest.dns.clone(),
            inside: Vec::new(),
            policy: self.egress,
            resolved: self.resolved,
        });
        let guard = Arc::new(Mutex::new(guard));
        attach(Some(&mut |uplink: Box<dyn Backend>| {
            let guarded = crate::networks::Guarded::new(uplink, guard.clone());
            Ok(Box::new(guarded))
        }))
    }
}

/// Refuses options that have no effect together.
///
/// # Errors
/// One line that says which.
pub fn check(config: &MachineConfig, mode: &NetMode) -> Result<(), NetError> {
    let refuse = |text: String| Err(NetError::Options(text));
    if config.network.is_none() {
        return match config.network_alias.first() {
            Some(alias) => refuse(format!(
                "--network-alias {alias} is a name on a network: give --network, too"
            )),
            None => Ok(()),
        };
    }
    if *mode != NetMode::User {
        return refuse(format!(
            "--network needs --net user: a VM with --net {} is on the host's network",
            mode.name()
        ));
    }
    if let Some(ip) = config.ip.first() {
        return refuse(format!(
            "--network gives the guest its address: leave out --ip {ip}"
        ));
    }
    config
        .network_alias
        .iter()
        .try_for_each(|alias| check_alias(alias).map_err(NetError::from))
}
