//! Users and capabilities: away with them.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

use super::{ConfineError, Layer, Progress};

/// A user and a group of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

impl Ids {
    /// The first of the numbers that VMs have of their own: a range that nobody else is known to
    /// use, of 2^28 numbers.
    pub const FIRST: u32 = 0x7000_0000;

    /// The numbers of the VM with this ID, of which the last 28 bits count: an ID is random, so two
    /// VMs that run at a time have the same ones once in a blue moon.
    pub fn of_vm(id: &str) -> Self {
        let digits = id.len().saturating_sub(7);
        let number = u32::from_str_radix(id.get(digits..).unwrap_or_default(), 16).unwrap_or(0);
        let own = Self::FIRST + (number & 0x0fff_ffff);
        Self { uid: own, gid: own }
    }
}

/// Becomes another user, for good. The process has one thread, so that this is the whole process.
pub(super) fn become_user(ids: Option<Ids>, progress: &mut Progress) -> Result<(), ConfineError> {
    if !progress.wants(Layer::Uid) {
        return Ok(());
    }
    let Some(ids) = ids else {
        return progress.without(Layer::Uid, "it stays root, as --uid 0 says");
    };
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    // Both before the user, who may not change them.
    let _ = empty_bounding_set();
    let changed = set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid));
    if let Err(error) = changed {
        let why = format!(
            "user {} can't be had: {error}; give another by --uid",
            ids.uid
        );
        return progress.without(Layer::Uid, why);
    }
    // The kernel has taken it for a program that changes users for others: its own files in /proc
    // are needed for its namespace.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(ConfineError::host("use its own files in /proc"))
}

/// Gives up all capabilities, and all ways to get any.
pub(super) fn drop_all(progress: &mut Progress) -> Result<(), ConfineError> {
    if !progress.wants(Layer::Capabilities) {
        return Ok(());
    }
    set_no_new_privs(true).map_err(ConfineError::host("renounce new privileges"))?;
    let _ = clear_ambient_capability_set();
    let bounding = empty_bounding_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(ConfineError::host("give up its capabilities"))?;
    match bounding {
        Ok(()) => Ok(()),
        // Without a user namespace an ordinary user has no say in its bounding set, and nothing in
        // its other sets.
        Err(error) => {
            let why = format!(
                "the bounding set stays as it was: {}",
                io::Error::from(error)
            );
            progress.without(Layer::Capabilities, why)
        }
    }
}

fn empty_bounding_set() -> rustix::io::Result<()> {
    let mut result = Ok(());
    // The kernel tells which one is the first that it does not know.
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => result = Err(error),
        }
    }
    result
}

/// Nobody of the same user can trace it, or read its memory.
pub(super) fn hide(progress: &mut Progress) -> Result<(), ConfineError> {
    if !progress.wants(Layer::NotDumpable) {
        return Ok(());
    }
    match set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        Ok(()) => Ok(()),
        Err(error) => progress.without(Layer::NotDumpable, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_has_a_user_of_its_own_in_the_range() {
        let (a, b) = (Ids::of_vm("00000abcdef0"), Ids::of_vm("ffffffffffff"));
        assert_eq!(a.uid, 0x7000_0000 + 0x0abc_def0 % 0x1000_0000);
        assert_eq!(b.uid, 0x7fff_ffff);
        assert_eq!(a.uid, a.gid);
        assert_eq!(Ids::of_vm("").uid, Ids::FIRST);
    }
}
