//! A vCPU's thread: run the guest, hand what it accesses to the buses, until it or the machine
//! ends. The vCPU's part in a virtio kick ends at an eventfd, mostly without leaving the kernel.

#![allow(unsafe_code, reason = "a signal handler and fields of kvm_run's union")]

mod gate;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use casita_devices::bus::Bus;
use casita_devices::stamp::monotonic_ns;
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::machine::{Event, EventSender, panic_message};
use crate::stats::ExitCounts;
pub use gate::{Gate, Parked};

/// What a guest reaches through ports and through memory without RAM.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Guest-physical addresses.
    pub mmio: Arc<Bus>,
}

/// Why a vCPU can't go on.
#[derive(Debug)]
pub enum VcpuFailure {
    /// A triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault(Box<Registers>),
    /// KVM gave up (`KVM_EXIT_INTERNAL_ERROR`).
    Internal {
        /// KVM's reason: 1 is an instruction that it can't emulate.
        suberror: u32,
        /// Where.
        registers: Box<Registers>,
    },
    /// The CPU refused the vCPU's state (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// The hardware's reason.
        reason: u64,
        /// Where.
        registers: Box<Registers>,
    },
    /// An exit that this machine never asked for.
    Unexpected(String),
    /// `KVM_RUN` itself failed.
    Host(io::Error),
}

impl fmt::Display for VcpuFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault(registers) => write!(f, "the guest triple-faulted ({registers})"),
            Self::Internal {
                suberror: 1,
                registers,
            } => {
                write!(f, "KVM can't run an instruction of the guest ({registers})")
            }
            Self::Internal {
                suberror,
                registers,
            } => {
                write!(f, "KVM failed with internal error {suberror} ({registers})")
            }
            Self::FailEntry { reason, registers } => {
                write!(
                    f,
                    "the CPU refused to enter the guest, reason {reason:#x} ({registers})"
                )
            }
            Self::Unexpected(exit) => write!(f, "KVM returned an unexpected exit: {exit}"),
            // The guest has touched memory that is not there: a page of a file that was cut off.
            Self::Host(error) if error.raw_os_error() == Some(libc::EFAULT) => write!(
                f,
                "KVM_RUN failed: {error}; was the kernel or the root image made shorter while it ran?"
            ),
            Self::Host(error) => write!(f, "KVM_RUN failed: {error}"),
        }
    }
}

/// The registers that tell where a guest was when it failed.
#[derive(Debug, Default)]
pub struct Registers {
    regs: kvm_regs,
    sregs: kvm_sregs,
}

impl Registers {
    fn of(fd: &VcpuFd) -> Box<Self> {
        Box::new(Self {
            regs: fd.get_regs().unwrap_or_default(),
            sregs: fd.get_sregs().unwrap_or_default(),
        })
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (r, s) = (&self.regs, &self.sregs);
        write!(
            f,
            "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} cs={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
            r.rip,
            r.rsp,
            r.rflags,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            s.cs.selector,
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer
        )
    }
}

/// What a vCPU's thread leaves behind.
#[derive(Debug, Default)]
pub struct VcpuReport {
    /// Exits to user space, by kind.
    pub exits: ExitCounts,
    /// `CLOCK_MONOTONIC` just before the first `KVM_RUN`, in nanoseconds.
    pub first_run_ns: u64,
    /// The same when the guest first came back with something to do; 0 if it never did.
    pub first_exit_ns: u64,
}

/// A running vCPU.
pub struct VcpuThread {
    thread: JoinHandle<VcpuReport>,
    exits: Arc<AtomicU64>,
}

impl VcpuThread {
    /// Starts vCPU `index`, whose registers are set, on its own thread, which runs while `gate`
    /// says so. What ends it without being asked is told to `events`.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub fn spawn(
        index: u8,
        fd: VcpuFd,
        buses: Buses,
        gate: Arc<Gate>,
        events: EventSender,
    ) -> io::Result<Self> {
        let exits = Arc::new(AtomicU64::new(0));
        let counted = exits.clone();
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let mut vcpu = Vcpu {
                    fd,
                    buses,
                    report: VcpuReport::default(),
                    exits: counted,
                };
                let end = panic::catch_unwind(AssertUnwindSafe(|| vcpu.run(&gate)));
                gate.leave();
                match end {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => events.send(Event::VcpuFailed { index, failure }),
                    Err(panic) => {
                        let thread = format!("vcpu{index}");
                        events.send(Event::Panicked {
                            thread,
                            message: panic_message(&*panic),
                        });
                    }
                }
                vcpu.report
            })?;
        Ok(Self { thread, exits })
    }

    /// Makes the vCPU leave the guest and look at the gate; returns at once.
    pub fn kick(&self) {
        // SAFETY: the thread is not joined yet, so its pthread_t is valid; the signal has a handler.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Exits to user space so far.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// CPU time that it has used, in the guest and for it.
    pub fn cpu_time(&self) -> Duration {
        let mut clock = 0;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the thread is not joined yet, so its pthread_t is valid; both places are ours.
        let told = unsafe {
            libc::pthread_getcpuclockid(self.thread.as_pthread_t(), &raw mut clock) == 0
                && libc::clock_gettime(clock, &raw mut time) == 0
        };
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
        // Of a thread that has ended nothing is told.
        if told {
            Duration::new(seconds, nanoseconds)
        } else {
            Duration::ZERO
        }
    }

    /// Waits for the end of the thread.
    pub fn join(self) -> VcpuReport {
        self.thread.join().unwrap_or_default()
    }
}

struct Vcpu {
    fd: VcpuFd,
    buses: Buses,
    report: VcpuReport,
    /// All exits, for others to look at.
    exits: Arc<AtomicU64>,
}

impl Vcpu {
    fn run(&mut self, gate: &Gate) -> Result<(), VcpuFailure> {
        let _kick = KickTarget::set(&mut self.fd.get_kvm_run().immediate_exit);
        self.report.first_run_ns = monotonic_ns();
        let mut exits = 0;
        loop {
            if !gate.is_open() {
                if !gate.wait() {
                    return Ok(());
                }
                // The guest's clock has gone on without it. A guest without KVM's clock can't be
                // told of that, and has no watchdog that looks at it either.
                let _ = self.fd.kvmclock_ctrl();
            }
            self.step()?;
            if self.report.first_exit_ns == 0 {
                self.report.first_exit_ns = monotonic_ns();
            }
            exits += 1;
            self.exits.store(exits, Ordering::Relaxed);
        }
    }

    /// Runs the guest until its next exit and serves that.
    fn step(&mut self) -> Result<(), VcpuFailure> {
        let exits = &mut self.report.exits;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                exits.port_out += 1;
                self.buses.ports.write(u64::from(port), data);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                exits.port_in += 1;
                self.buses.ports.read(u64::from(port), data);
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                exits.mmio_write += 1;
                self.buses.mmio.write(addr, data);
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                exits.mmio_read += 1;
                self.buses.mmio.read(addr, data);
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => exits.other += 1,
            Ok(VcpuExit::Shutdown) => {
                return Err(VcpuFailure::TripleFault(Registers::of(&self.fd)));
            }
            Ok(VcpuExit::InternalError) => return Err(self.internal_error()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(VcpuFailure::FailEntry {
                    reason,
                    registers: Registers::of(&self.fd),
                });
            }
            Ok(exit) => return Err(VcpuFailure::Unexpected(format!("{exit:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                exits.interrupted += 1;
                self.fd.set_kvm_immediate_exit(0);
            }
            Err(error) => return Err(VcpuFailure::Host(error.into())),
        }
        Ok(())
    }

    fn internal_error(&mut self) -> VcpuFailure {
        // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so KVM filled this member.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        VcpuFailure::Internal {
            suberror,
            registers: Registers::of(&self.fd),
        }
    }
}

thread_local! {
    /// This thread's `kvm_run.immediate_exit`, while it is a vCPU's. Const and without destructor,
    /// so that a signal handler may use it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// While it lives, a kick makes this thread's `KVM_RUN` return: the one that runs, and the next
/// one if none does. So a kick between a look at the stop flag and `KVM_RUN` is not lost.
struct KickTarget;

impl KickTarget {
    fn set(immediate_exit: &mut u8) -> Self {
        IMMEDIATE_EXIT.set(ptr::from_mut(immediate_exit));
        Self
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let target = IMMEDIATE_EXIT.get();
    if !target.is_null() {
        // SAFETY: set by `KickTarget` on this very thread, which unsets it before the vCPU's
        // kvm_run is unmapped; the byte is shared with the kernel, hence volatile.
        unsafe { target.write_volatile(1) };
    }
}

/// Installs the handler of the signal that makes a vCPU leave `KVM_RUN`. Once per process.
///
/// # Errors
/// If the signal can't be handled.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick).map_err(io::Error::from)
}
