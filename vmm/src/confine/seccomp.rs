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
    let answers = REFUSED.len() as u8;
    // Of other architectures' calls the numbers mean something else: the rest ends them.
    let mut filter = vec![
        instruction(LOAD, 0, 0, ARCH),
        instruction(JUMP_IF_EQUAL, 0, 1 + 2 * answers, AUDIT_ARCH_X86_64),
        instruction(LOAD, 0, 0, NUMBER),
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

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
/// seccomp_data.nr and .arch.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// linux/audit.h.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> seccompiler::sock_filter {
    seccompiler::sock_filter { code, jt, jf, k }
}

fn allow(role: Option<Role>) -> io::Result<BpfProgram> {
    in_sections(rules(role)?)
}

fn rules(role: Option<Role>) -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
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
    Ok(rules)
}

/// A section looks at some of the calls, one after the other.
const SECTION: usize = 10;

/// One program of many, each for a range of the calls' numbers: the kernel tries a filter with every
/// number that there is before it takes it, which one long row of comparisons would make slow.
fn in_sections(mut rules: BTreeMap<i64, Vec<SeccompRule>>) -> io::Result<BpfProgram> {
    let (mut jumps, mut sections) = (Vec::new(), BpfProgram::new());
    while let Some(&start) = rules.keys().next() {
        let next = rules.keys().nth(SECTION).copied();
        let later = next.map(|next| rules.split_off(&next)).unwrap_or_default();
        let section = in_a_row(std::mem::replace(&mut rules, later))?;
        if !sections.is_empty() {
            // To this one, over all that there is before it; what is below is for those.
            let start = u32::try_from(start).map_err(io::Error::other)?;
            let before = u32::try_from(2 * jumps.len() + sections.len());
            jumps.push([
                instruction(JUMP_IF_AT_LEAST, 0, 1, start),
                instruction(JUMP, 0, 0, before.map_err(io::Error::other)?),
            ]);
        }
        sections.extend(section);
    }
    if sections.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut program = vec![instruction(LOAD, 0, 0, NUMBER)];
    program.extend(jumps.into_iter().rev().flatten());
    program.extend(sections);
    Ok(program)
}

/// A program that compares with one call after the other.
fn in_a_row(rules: BTreeMap<i64, Vec<SeccompRule>>) -> io::Result<BpfProgram> {
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

    const AARCH64: u32 = 0xc000_00b7;

    /// What the kernel makes of a call, and in how many steps.
    fn judge(program: &[seccompiler::sock_filter], number: u32, arch: u32, arg: u64) -> (u32, u32) {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for place in data[16..].chunks_exact_mut(8) {
            place.copy_from_slice(&arg.to_ne_bytes());
        }
        let (mut at, mut steps, mut value) = (0, 0, 0);
        loop {
            let step = &program[at];
            steps += 1;
            at += 1;
            let holds = match step.code {
                RETURN => return (step.k, steps),
                LOAD => {
                    let place = step.k as usize;
                    value = u32::from_ne_bytes(data[place..place + 4].try_into().unwrap());
                    continue;
                }
                JUMP => {
                    at += step.k as usize;
                    continue;
                }
                // BPF_ALU | BPF_AND | BPF_K
                0x54 => {
                    value &= step.k;
                    continue;
                }
                JUMP_IF_EQUAL => value == step.k,
                JUMP_IF_AT_LEAST => value >= step.k,
                // BPF_JMP | BPF_JGT | BPF_K
                0x25 => value > step.k,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds { step.jt } else { step.jf });
        }
    }

    #[test]
    fn a_filter_in_sections_judges_as_one_in_a_row_does_and_sooner() {
        for role in [None, Some(Role::Vcpu), Some(Role::Io), Some(Role::Control)] {
            let sections = in_sections(rules(role).unwrap()).unwrap();
            let row = in_a_row(rules(role).unwrap()).unwrap();
            let numbers = (0..600).chain([0x4000_0000, 0x4000_0001, 0x4000_0010, u32::MAX]);
            let mut steps = (0, 0);
            for number in numbers {
                for arg in [0, 1, 2, 0xae80, 0x5421, u64::MAX] {
                    let [new, old] =
                        [&sections, &row].map(|it| judge(it, number, AUDIT_ARCH_X86_64, arg));
                    assert_eq!(new.0, old.0, "{role:?} {number} {arg:#x}");
                    if arg == 0 {
                        steps = (steps.0 + new.1, steps.1 + old.1);
                    }
                }
                let foreign = judge(&sections, number, AARCH64, 0).0;
                assert_eq!(foreign, libc::SECCOMP_RET_KILL_PROCESS, "{number}");
            }
            assert!(3 * steps.0 < steps.1, "{role:?}: {steps:?}");
        }
    }

    #[test]
    fn filters_are_made_for_all_roles_and_fit_the_kernel() {
        let roles = Role::ALL.map(|role| allow(Some(role)).unwrap());
        for filter in roles.iter().chain([&process_filter().unwrap()]) {
            // BPF_MAXINSNS.
            assert!(!filter.is_empty() && filter.len() < 4096);
        }
    }
}
