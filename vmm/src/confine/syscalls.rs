//! The system calls of a confined monitor: the one table that all filters are made from. Whoever
//! adds a line says why, and who needs it; what is not in the table ends the process.

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BackendError, SeccompCondition};

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the guest, and starts and stops devices when a driver says so.
    Vcpu,
    /// Serves queues and the serial port.
    Io,
    /// All others: the machine's owner, clients, streams, the agent, signals, the clock.
    Control,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vcpu, Self::Io, Self::Control];

    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Io => "io",
            Self::Control => "control",
        }
    }
}

const V: u8 = Role::Vcpu.bit();
const I: u8 = Role::Io.bit();
const C: u8 = Role::Control.bit();
const ALL: u8 = V | I | C;

/// When a call is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    Always,
    /// One argument has one of these values, in its low 32 bits.
    Arg(u8, &'static [u64]),
    /// These bits of an argument have this value.
    Bits {
        arg: u8,
        mask: u64,
        value: u64,
    },
    /// The first argument is this process.
    OwnProcess,
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Call {
    pub number: libc::c_long,
    pub name: &'static str,
    pub roles: u8,
    pub when: When,
    /// What it is needed for.
    pub why: &'static str,
}

impl Call {
    /// Whether threads of `role` make it; None for those of any role.
    pub(super) fn is_for(&self, role: Option<Role>) -> bool {
        role.is_none_or(|role| self.roles & role.bit() != 0)
    }

    /// The conditions of which one must hold; none if it is always allowed.
    pub(super) fn conditions(&self) -> Result<Vec<SeccompCondition>, BackendError> {
        let equal = |arg, value| SeccompCondition::new(arg, Dword, Eq, value);
        match self.when {
            When::Always => Ok(Vec::new()),
            When::Arg(arg, values) => values.iter().map(|value| equal(arg, *value)).collect(),
            When::Bits { arg, mask, value } => Ok(vec![SeccompCondition::new(
                arg,
                Qword,
                MaskedEq(mask),
                value,
            )?]),
            When::OwnProcess => Ok(vec![equal(0, u64::from(std::process::id()))?]),
        }
    }
}

macro_rules! calls {
    ($($roles:expr, $name:ident, $when:expr, $why:literal;)*) => {
        [$(Call {
            number: libc::$name,
            name: stringify!($name),
            roles: $roles,
            when: $when,
            why: $why,
        },)*]
    };
}

use When::{Always, Arg, Bits, OwnProcess};

/// No memory that can be written to, or was, is executed.
const NOT_EXECUTABLE: When = Bits {
    arg: 2,
    mask: libc::PROT_EXEC.cast_unsigned() as u64,
    value: 0,
};
/// A thread, and nothing that is a process of its own.
const THREAD: When = Bits {
    arg: 0,
    mask: THREAD_FLAGS,
    value: THREAD_FLAGS,
};
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD)
    .cast_unsigned() as u64;
/// Sockets between processes of this host, and no others.
const UNIX: When = Arg(0, &[libc::AF_UNIX.cast_unsigned() as u64]);

/// What KVM is asked by a vCPU that runs: KVM_RUN, KVM_KVMCLOCK_CTRL, KVM_GET_REGS,
/// KVM_GET_SREGS; and what a device is asked when it is started or stopped: FIONBIO, TUNSETOFFLOAD,
/// TUNSETVNETHDRSZ, TUNSETQUEUE, and vhost's SET_FEATURES, SET_OWNER, SET_MEM_TABLE,
/// SET_VRING_NUM, _ADDR, _BASE, GET_VRING_BASE, SET_VRING_KICK, _CALL, _ERR, NET_SET_BACKEND.
const VCPU_IOCTLS: &[u64] = &[
    0xae80,
    0xaead,
    0x8090_ae81,
    0x8138_ae83,
    0x5421,
    0x4004_54d0,
    0x4004_54d8,
    0x4004_54d9,
    0x4008_af00,
    0xaf01,
    0x4008_af03,
    0x4008_af10,
    0x4028_af11,
    0x4008_af12,
    0xc008_af12,
    0x4008_af20,
    0x4008_af21,
    0x4008_af22,
    0x4008_af30,
];
/// FIONBIO, FIONREAD; TUNSETOFFLOAD, TUNSETQUEUE, as a driver asks for less or more; and of vhost
/// what ends it.
const IO_IOCTLS: &[u64] = &[
    0x5421,
    0x541b,
    0x4004_54d0,
    0x4004_54d9,
    0xc008_af12,
    0x4008_af20,
    0x4008_af21,
    0x4008_af22,
    0x4008_af30,
];
/// TCGETS, TCSETS, TCSETSW, TCSETSF, and the same with a speed (TCGETS2 and so on), TIOCGPGRP,
/// TIOCGWINSZ, FIONBIO, FIONREAD: the user's terminal, into which nothing is typed (TIOCSTI).
/// KVM_IRQFD, KVM_IOEVENTFD, TUNSETOFFLOAD, TUNSETQUEUE, and vhost's GET_VRING_BASE,
/// SET_VRING_KICK, _CALL, _ERR, NET_SET_BACKEND: devices are unplugged at the end.
const CONTROL_IOCTLS: &[u64] = &[
    0x5401,
    0x5402,
    0x5403,
    0x5404,
    0x802c_542a,
    0x402c_542b,
    0x402c_542c,
    0x402c_542d,
    0x540f,
    0x5413,
    0x5421,
    0x541b,
    0x4020_ae76,
    0x4040_ae79,
    0x4004_54d0,
    0x4004_54d9,
    0xc008_af12,
    0x4008_af20,
    0x4008_af21,
    0x4008_af22,
    0x4008_af30,
];
/// PR_SET_NAME, PR_GET_NAME, PR_SET_NO_NEW_PRIVS, PR_SET_VMA.
const PRCTLS: &[u64] = &[15, 16, 38, 0x5356_4d41];

/// All of them, several lines for one call where roles differ.
pub(super) static CALLS: &[Call] = &calls! {
    // Memory and time of a program.
    ALL, SYS_mmap, NOT_EXECUTABLE, "memory";
    ALL, SYS_mprotect, NOT_EXECUTABLE, "stacks of threads, the allocator";
    ALL, SYS_munmap, Always, "memory";
    ALL, SYS_mremap, Always, "the allocator";
    ALL, SYS_madvise, Always, "memory is given back";
    ALL, SYS_brk, Always, "the allocator";
    ALL, SYS_futex, Always, "locks";
    ALL, SYS_sched_yield, Always, "locks";
    ALL, SYS_clock_gettime, Always, "time, where the vDSO can't tell it; CPU time";
    ALL, SYS_clock_getres, Always, "time";
    ALL, SYS_gettimeofday, Always, "time";
    ALL, SYS_time, Always, "time";
    ALL, SYS_clock_nanosleep, Always, "waits with an end";
    ALL, SYS_nanosleep, Always, "waits with an end";
    ALL, SYS_getrandom, Always, "keys of hash tables, entropy for the guest";
    // Threads.
    V | C, SYS_clone, THREAD, "threads: of devices, of clients";
    ALL, SYS_clone3, Always, "answered with ENOSYS: its flags can't be seen, those of clone can";
    ALL, SYS_set_robust_list, Always, "a thread begins";
    ALL, SYS_rseq, Always, "a thread begins";
    ALL, SYS_sigaltstack, Always, "a thread begins or ends: overflow of its stack is told";
    ALL, SYS_sched_getaffinity, Always, "the allocator counts processors";
    ALL, SYS_prlimit64, Arg(2, &[0]), "the size of stacks; to be read only";
    ALL, SYS_prctl, Arg(0, PRCTLS), "names of threads and of memory";
    V | C, SYS_seccomp, Arg(0, &[1]), "a new thread narrows its filter";
    ALL, SYS_gettid, Always, "names a thread";
    ALL, SYS_getpid, Always, "a signal to a thread of its own";
    ALL, SYS_tgkill, OwnProcess, "kicks vCPUs";
    ALL, SYS_rt_sigprocmask, Always, "threads begin with signals held back";
    ALL, SYS_rt_sigreturn, Always, "a kick has been handled";
    ALL, SYS_restart_syscall, Always, "the kernel goes on with a wait";
    ALL, SYS_membarrier, Always, "the allocator of io_uring's rings";
    ALL, SYS_getcpu, Always, "per-CPU arenas";
    ALL, SYS_exit, Always, "a thread ends";
    ALL, SYS_exit_group, Always, "the process ends";
    // Descriptors.
    ALL, SYS_read, Always, "files, events, sockets";
    ALL, SYS_write, Always, "files, events, sockets";
    ALL, SYS_readv, Always, "files";
    ALL, SYS_writev, Always, "files, messages";
    ALL, SYS_close, Always, "descriptors";
    ALL, SYS_fcntl, Always, "descriptors: flags, copies, locks";
    ALL, SYS_dup, Always, "descriptors";
    ALL, SYS_lseek, Always, "files";
    ALL, SYS_fstat, Always, "kinds and lengths of files";
    ALL, SYS_statx, Always, "the same; by name there is nothing";
    ALL, SYS_newfstatat, Always, "the same; by name there is nothing";
    ALL, SYS_ftruncate, Always, "logs begin again";
    ALL, SYS_poll, Always, "waits";
    ALL, SYS_ppoll, Always, "waits";
    ALL, SYS_eventfd2, Always, "wakes threads";
    ALL, SYS_pipe2, Always, "wakes threads";
    V, SYS_ioctl, Arg(1, VCPU_IOCTLS), "runs the guest";
    I, SYS_ioctl, Arg(1, IO_IOCTLS), "sockets";
    C, SYS_ioctl, Arg(1, CONTROL_IOCTLS), "the user's terminal; devices are unplugged";
    // Devices.
    ALL, SYS_epoll_create1, Always, "an event loop";
    ALL, SYS_epoll_ctl, Always, "what an event loop waits for";
    ALL, SYS_epoll_wait, Always, "an event loop waits";
    ALL, SYS_epoll_pwait, Always, "an event loop waits";
    ALL, SYS_timerfd_create, Always, "timers of devices";
    ALL, SYS_timerfd_settime, Always, "timers of devices";
    ALL, SYS_pread64, Always, "disks, figures of the host's";
    ALL, SYS_pwrite64, Always, "disks";
    V | I, SYS_preadv, Always, "disks";
    V | I, SYS_pwritev, Always, "disks";
    V | I, SYS_preadv2, Always, "disks";
    V | I, SYS_pwritev2, Always, "disks";
    ALL, SYS_fsync, Always, "disks";
    ALL, SYS_fdatasync, Always, "disks";
    V | I, SYS_fallocate, Always, "disks: discard, write zeroes";
    V | I, SYS_io_uring_enter, Always, "disks, by rings that were made and restricted before";
    // Sockets.
    ALL, SYS_socketpair, UNIX, "streams of the guest's";
    ALL, SYS_accept4, Always, "clients";
    ALL, SYS_sendmsg, Always, "streams, datagrams, answers with descriptors";
    ALL, SYS_recvmsg, Always, "streams, datagrams";
    ALL, SYS_sendmmsg, Always, "datagrams";
    ALL, SYS_recvmmsg, Always, "datagrams";
    ALL, SYS_sendto, Always, "streams";
    ALL, SYS_recvfrom, Always, "streams";
    ALL, SYS_shutdown, Always, "ends of streams";
    ALL, SYS_getsockopt, Always, "errors and peers of sockets";
    ALL, SYS_setsockopt, Always, "time limits of sockets";
    ALL, SYS_getsockname, Always, "the standard library asks what a socket is";
    ALL, SYS_getpeername, Always, "the standard library asks what a socket is";
    C, SYS_splice, Always, "standard output into a pipe";
    // The end, and figures.
    C, SYS_wait4, Always, "helpers have ended";
    C, SYS_waitid, Always, "helpers have ended";
    C, SYS_geteuid, Always, "whether a client is of this user";
    C, SYS_getuid, Always, "whether a client is of this user";
    C, SYS_getrusage, Always, "what a run of casita sandbox has used";
    C, SYS_uname, Always, "the standard library";
    C, SYS_sysinfo, Always, "the standard library";
};

/// The table for people: the roles, the call, its condition and its reason.
pub fn describe() -> impl Iterator<Item = String> {
    CALLS.iter().map(|call| {
        let roles = Role::ALL
            .into_iter()
            .filter(|role| call.is_for(Some(*role)));
        let roles: Vec<&str> = roles.map(Role::name).collect();
        let name = call.name.trim_start_matches("SYS_");
        let when = match call.when {
            Always => String::new(),
            Arg(arg, values) => {
                let values: Vec<String> =
                    values.iter().map(|value| format!("{value:#x}")).collect();
                format!(" if argument {arg} is {}", values.join(" or "))
            }
            Bits { arg, mask, value } => format!(" if argument {arg} & {mask:#x} is {value:#x}"),
            OwnProcess => " to itself".to_owned(),
        };
        format!("{:<16} {name}{when}: {}", roles.join(","), call.why)
    })
}

/// Calls that libraries make and can do without: they are told that it is not allowed.
pub(super) static REFUSED: &[(libc::c_long, i32)] = &[
    (libc::SYS_open, libc::EACCES),
    (libc::SYS_openat, libc::EACCES),
    (libc::SYS_access, libc::EACCES),
    (libc::SYS_faccessat, libc::EACCES),
    (libc::SYS_readlink, libc::EACCES),
    (libc::SYS_readlinkat, libc::EACCES),
    (libc::SYS_stat, libc::EACCES),
    (libc::SYS_lstat, libc::EACCES),
    (libc::SYS_getcwd, libc::EACCES),
    (libc::SYS_unlink, libc::EACCES),
    (libc::SYS_rmdir, libc::EACCES),
    // A helper ends with its connection; that it is ended by hand as well is for a host without
    // this filter.
    (libc::SYS_kill, libc::EPERM),
    (libc::SYS_clone3, libc::ENOSYS),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(number: libc::c_long) -> bool {
        CALLS.iter().any(|call| call.number == number)
    }

    #[test]
    fn each_line_has_a_reason_and_a_role() {
        for call in CALLS {
            assert!(!call.why.is_empty() && call.roles != 0, "{}", call.name);
        }
    }

    #[test]
    fn what_changes_the_host_is_in_no_filter() {
        for number in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setresgid,
            libc::SYS_capset,
            libc::SYS_tkill,
            libc::SYS_pidfd_send_signal,
            libc::SYS_pidfd_getfd,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_openat2,
            libc::SYS_open_by_handle_at,
            libc::SYS_memfd_create,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_setrlimit,
            libc::SYS_reboot,
            libc::SYS_iopl,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
        ] {
            assert!(!is_allowed(number), "{number}");
        }
    }

    #[test]
    fn vcpus_run_the_guest_and_nobody_makes_machines() {
        const KVM_RUN: u64 = 0xae80;
        const KVM_CREATE_VM: u64 = 0xae01;
        const TIOCSTI: u64 = 0x5412;
        let ioctls = |role: Role| -> Vec<u64> {
            let lines = CALLS
                .iter()
                .filter(|call| call.number == libc::SYS_ioctl && call.is_for(Some(role)));
            lines
                .flat_map(|call| match call.when {
                    Arg(1, values) => values.to_vec(),
                    _ => panic!("any ioctl is allowed"),
                })
                .collect()
        };
        assert!(ioctls(Role::Vcpu).contains(&KVM_RUN));
        for role in [Role::Io, Role::Control] {
            assert!(!ioctls(role).contains(&KVM_RUN));
        }
        for role in Role::ALL {
            assert!(!ioctls(role).contains(&KVM_CREATE_VM));
            assert!(!ioctls(role).contains(&TIOCSTI));
        }
    }
}
