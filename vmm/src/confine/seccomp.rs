//! Filters of system calls (seccomp(2)), made from the one table: all roles' together for the
//! process, and each role's for its threads. A thread has both; what either does not allow is not
//! allowed.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use super::syscalls::{CALLS, REFUSED, Role};
use super::{ConfineError, Layer, Progress};

/// Those of the roles, each made by the first thread that needs it: the vCPU's does not wait for
/// the others.
static ROLES: [OnceLock<Option<BpfProgram>>; 3] =
    [OnceLock::new(), OnceLock::new(), OnceLock::new()];
/// Whether this process has filters.
static PROCESS: AtomicBool = AtomicBool::new(false);
/// The thread that all control threads are started by has entered that role; so have they.
static CONTROL: AtomicBool = AtomicBool::new(false);

/// Puts this process, which has one thread, under the filter of all roles together.
pub(super) fn install(progress: &mut Progress) -> Result<(), ConfineError> {
    if !progress.wants(Layer::Seccomp) {
        return Ok(());
    }
    let filter =
        process_filter().map_err(ConfineError::host("make its filters of system calls"))?;
    match seccompiler::apply_filter(&filter) {
        Ok(()) => {
            PROCESS.store(true, Ordering::Release);
            Ok(())
        }
        Err(error) => progress.without(Layer::Seccomp, error.to_string()),
    }
}

/// To be called by each thread before it does anything: from here on it makes the system calls of
/// its role alone. In a process that is not confined this does nothing. The first thread to call it
/// for [`Role::Control`] in a confined process starts all others of that role.
pub fn enter_role(role: Role) {
    if PROCESS.load(Ordering::Acquire)
        && !(role == Role::Control && CONTROL.swap(true, Ordering::AcqRel))
    {
        narrow(role);
    }
    #[cfg(feature = "takeover")]
    if super::is_confined() {
        crate::takeover::strike(role);
    }
}

fn narrow(role: Role) {
    let filter = ROLES[role as usize].get_or_init(|| allow(Some(role)).ok());
    // The process has a filter already, so that this can't fail but for want of memory; that of the
    // process holds then.
    let done = filter
        .as_ref()
        .is_some_and(|filter| seccompiler::apply_filter(filter).is_ok());
    if !done {
        log::error!("a thread for {} has no filter of its own", role.name());
    }
}

/// All roles' calls, behind the answers to those that are refused: one filter instead of one for
/// each error number, as each takes the kernel its time.
fn process_filter() -> io::Result<BpfProgram> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const ARCH: u32 = 4; // seccomp_data.arch
    let instruction = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    let answers = REFUSED.len() as u8;
    // Of other architectures' calls the numbers mean something else: the rest ends them.
    let mut filter = vec![
        instruction(LOAD, 0, 0, ARCH),
        instruction(JUMP_IF_EQUAL, 0, 1 + 2 * answers, AUDIT_ARCH_X86_64),
        instruction(LOAD, 0, 0, 0),
    ];
    for (number, errno) in REFUSED {
        filter.push(instruction(
            JUMP_IF_EQUAL,
            0,
            1,
            number.cast_unsigned() as u32,
        ));
        let answer = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
        filter.push(instruction(RETURN, 0, 0, answer));
    }
    filter.extend(allow(None)?);
    Ok(filter)
}

/// linux/audit.h.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

fn allow(role: Option<Role>) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in CALLS.iter().filter(|call| call.is_for(role)) {
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
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    filter
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_made_for_all_roles_and_fit_the_kernel() {
        let roles = Role::ALL.map(|role| allow(Some(role)).unwrap());
        for filter in roles.iter().chain([&process_filter().unwrap()]) {
            // BPF_MAXINSNS.
            assert!(!filter.is_empty() && filter.len() < 4096);
        }
    }
}
