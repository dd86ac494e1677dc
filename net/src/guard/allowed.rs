//! The egress policy, ready to be asked.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::Cidr;
use crate::egress::{EgressItem, EgressPolicy, Resolved, Target, Transport};

/// As many addresses as a name may get from answers; the ones that end first go.
const MAX_PER_NAME: usize = 64;
/// An address holds no shorter, so that whoever asked can still use it.
const SHORTEST: Duration = Duration::from_mins(1);
/// And no longer.
const LONGEST: Duration = Duration::from_hours(24);

#[derive(Debug)]
pub(super) struct Allowed {
    policy: Kind,
    /// Items with their addresses as they were at the start.
    fixed: Vec<(Cidr, EgressItem)>,
    /// What names have got from answers since, each with what is allowed there.
    names: BTreeMap<String, Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    All,
    Nothing,
    List,
}

#[derive(Debug, Default)]
struct Name {
    items: Vec<EgressItem>,
    /// Addresses, and when they end.
    addresses: HashMap<IpAddr, Instant>,
}

impl Allowed {
    pub(super) fn new(policy: &EgressPolicy, resolved: &Resolved) -> Self {
        let mut allowed = Self {
            policy: match policy {
                EgressPolicy::All => Kind::All,
                EgressPolicy::None => Kind::Nothing,
                EgressPolicy::List(_) => Kind::List,
            },
            fixed: Vec::new(),
            names: BTreeMap::new(),
        };
        for item in policy.items() {
            match &item.target {
                Target::Range(range) => allowed.fixed.push((*range, item.clone())),
                Target::Host(name) => {
                    let addresses = resolved.get(name).map(Vec::as_slice).unwrap_or_default();
                    let ranges = addresses
                        .iter()
                        .map(|address| (Cidr::of(*address), item.clone()));
                    allowed.fixed.extend(ranges);
                    let name = allowed.names.entry(name.as_str().to_owned()).or_default();
                    name.items.push(item.clone());
                }
            }
        }
        allowed
    }

    pub(super) fn everything(&self) -> bool {
        self.policy == Kind::All
    }

    pub(super) fn nothing(&self) -> bool {
        self.policy == Kind::Nothing
    }

    pub(super) fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether an item allows it that means the same for as long as the guest runs.
    pub(super) fn fixed(&self, to: IpAddr, transport: Transport, port: u16) -> bool {
        let mut items = self.fixed.iter();
        items.any(|(range, item)| range.contains(to) && item.allows(transport, port))
    }

    /// Whether a name allows it that has got this address from an answer.
    pub(super) fn learned(
        &self,
        to: IpAddr,
        transport: Transport,
        port: u16,
        now: Instant,
    ) -> bool {
        self.learned_items(to, now)
            .any(|item| item.allows(transport, port))
    }

    /// Whether all ports of TCP and UDP at `to` are allowed.
    pub(super) fn whole(&self, to: IpAddr, now: Instant) -> bool {
        let mut fixed = self.fixed.iter();
        fixed.any(|(range, item)| range.contains(to) && item.is_whole())
            || self.learned_items(to, now).any(EgressItem::is_whole)
    }

    /// Whether anything at `to` is allowed.
    pub(super) fn somehow(&self, to: IpAddr, now: Instant) -> bool {
        self.fixed.iter().any(|(range, _)| range.contains(to))
            || self.learned_items(to, now).next().is_some()
    }

    fn learned_items(&self, to: IpAddr, now: Instant) -> impl Iterator<Item = &EgressItem> {
        let holds = move |name: &&Name| name.addresses.get(&to).is_some_and(|end| *end > now);
        self.names
            .values()
            .filter(holds)
            .flat_map(|name| &name.items)
    }

    /// `name`, if it is one of the policy's, has `address` for as long as `lifetime`.
    pub(super) fn learn(&mut self, name: &str, address: IpAddr, lifetime: Duration, now: Instant) {
        let Some(name) = self.names.get_mut(name) else {
            return;
        };
        let end = now + lifetime.clamp(SHORTEST, LONGEST);
        if name.addresses.len() >= MAX_PER_NAME && !name.addresses.contains_key(&address) {
            name.addresses.retain(|_, end| *end > now);
        }
        if name.addresses.len() >= MAX_PER_NAME && !name.addresses.contains_key(&address) {
            let first = name.addresses.iter().min_by_key(|(_, end)| **end);
            if let Some(first) = first.map(|(address, _)| *address) {
                name.addresses.remove(&first);
            }
        }
        let known = name.addresses.entry(address).or_insert(end);
        *known = (*known).max(end);
    }
}
