//! Filters of system calls (seccomp(2)), made from the one table: all roles' together for the
//! process, and each role's for its threads. A thread has both; what either does not allow is not
//! allowed.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use super::syscalls::{CALLS, REFUSED, Role, When};
use super::{ConfineError, Layer, Progress};

/// Those of the roles, for threads that start later.
static ROLES: OnceLock<[BpfProgram; 3]> = OnceLock::new();

/// All that a process needs.
pub(super) struct Filters {
    process: BpfProgram,
    refused: Vec<BpfProgram>,
    roles: [BpfProgram; 3],
}

impl Filters {
    /// Makes them; `socket_folders` says whether there are any.
    pub(super) fn compile(socket_folders: bool) -> io::Result<Self> {
        let [vcpu, io, control] = Role::ALL.map(|role| allow(Some(role), socket_folders));
        let mut errors: BTreeMap<i32, Vec<libc::c_long>> = BTreeMap::new();
        for (number, errno) in REFUSED {
            errors.entry(*errno).or_default().push(*number);
        }
        Ok(Self {
            process: allow(None, socket_folders)?,
            refused: errors
                .into_iter()
                .map(|(errno, numbers)| refuse(&numbers, errno))
                .collect::<io::Result<_>>()?,
            roles: [vcpu?, io?, control?],
        })
    }

    /// Puts this process under them.
    pub(super) fn install(self, progress: &mut Progress) -> Result<(), ConfineError> {
        if !progress.wants(Layer::Seccomp) {
            return Ok(());
        }
        let mut filters = self.refused.iter().chain([&self.process]);
        if let Err(error) = filters.try_for_each(|filter| seccompiler::apply_filter(filter)) {
            return progress.without(Layer::Seccomp, error.to_string());
        }
        let _ = ROLES.set(self.roles);
        Ok(())
    }
}

/// To be called by each thread before it does anything: from here on it makes the system calls of
/// its role alone. In a process that is not confined this does nothing.
pub fn enter_role(role: Role) {
    if let Some(filters) = ROLES.get()
        // The process has filters already, so that this can't fail but for want of memory; that of
        // the process holds then.
        && let Err(error) = seccompiler::apply_filter(&filters[role as usize])
    {
        log::error!("a thread for {} has no filter of its own: {error}", role.name());
    }
    #[cfg(feature = "takeover")]
    if super::is_confined() {
        crate::takeover::strike(role);
    }
}

fn allow(role: Option<Role>, socket_folders: bool) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in CALLS.iter().filter(|call| call.is_for(role)) {
        if matches!(call.when, When::SocketFolders) && !socket_folders {
            continue;
        }
        let conditions = call.conditions().map_err(io::Error::other)?;
        let any = rules.entry(call.number).or_default();
        for condition in conditions {
            any.push(SeccompRule::new(vec![condition]).map_err(io::Error::other)?);
        }
    }
    for (number, _) in REFUSED {
        // Whatever its arguments: the other filter answers.
        rules.insert(*number, Vec::new());
    }
    compile(rules, SeccompAction::Trap, SeccompAction::Allow)
}

fn refuse(numbers: &[libc::c_long], errno: i32) -> io::Result<BpfProgram> {
    let rules = numbers.iter().map(|number| (*number, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, others, these, TargetArch::x86_64);
    filter
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_made_for_all_roles_and_fit_the_kernel() {
        for folders in [false, true] {
            let filters = Filters::compile(folders).unwrap();
            for filter in filters.roles.iter().chain([&filters.process]).chain(&filters.refused) {
                // BPF_MAXINSNS.
                assert!(!filter.is_empty() && filter.len() < 4096);
            }
        }
    }
}
