//! A tiny guest that shows whether KVM here runs ordinary code: how fast, and whether the
//! instructions that every Linux kernel uses work. Some hosts have a `/dev/kvm` that answers every
//! request and then interprets the guest instruction by instruction, or gives up on some.

use std::time::{Duration, Instant};

use casita_boot::MemoryLayout;
use casita_boot::layout::PAGE_TABLES;
use casita_boot::registers::EntryState;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::cpuid::CpuidTemplate;
use crate::kvm::entry;
use crate::kvm::vm::{KvmError, Vm};
use crate::memory::{Backing, GuestRam, MemoryError, Sharing};

/// Guest-physical addresses of the payload's parts. Low memory below the entry state's tables.
const CODE: u64 = 0x2000;
const STACK_TOP: u64 = 0x4000;
const DATA: u64 = 0x4000;
const IDT: u64 = 0x5000;
const BREAKPOINT_HANDLER: u64 = 0x1000;
/// The port that ends each part.
const DONE_PORT: u16 = 0x10;
/// 16 MiB are the least that a layout takes; only a few pages are touched.
const MEMORY: u64 = 16 << 20;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_OSFXSR: u64 = 1 << 9;
const CR0_MP: u64 = 1 << 1;

/// Instructions of the timed loop: 2 each turn.
const LOOP_TURNS: u32 = 20_000;

/// An instruction that guests rely on.
struct Instruction {
    name: &'static str,
    code: &'static [u8],
    /// CPUID leaf, register (0 eax .. 3 edx) and bit that announce it.
    cpuid: Option<(u32, usize, u32)>,
}

/// With rdi at a free, 64-byte aligned area and eax = 1, edx = 0.
const INSTRUCTIONS: [Instruction; 6] = [
    Instruction {
        name: "cmpxchg16b",
        code: &[0x48, 0x0f, 0xc7, 0x0f],
        cpuid: Some((1, 2, 13)),
    },
    Instruction {
        name: "xsave/xrstor",
        code: &[0x0f, 0xae, 0x27, 0x0f, 0xae, 0x2f],
        cpuid: Some((1, 2, 26)),
    },
    Instruction {
        name: "stac/clac",
        code: &[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca],
        cpuid: Some((7, 1, 20)),
    },
    Instruction {
        name: "popcnt",
        code: &[0xf3, 0x0f, 0xb8, 0xc0],
        cpuid: Some((1, 2, 23)),
    },
    Instruction {
        name: "int3",
        code: &[0xcc],
        cpuid: None,
    },
    Instruction {
        name: "fwait",
        code: &[0x9b],
        cpuid: None,
    },
];

/// What the payload found.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// Guest instructions a second, in millions.
    pub million_instructions_per_second: f64,
    /// Instructions that work.
    pub working: Vec<&'static str>,
    /// Instructions on which KVM gives up.
    pub failing: Vec<&'static str>,
}

/// Slower than this, a guest is interpreted: that gives about one. Hardware runs thousands, and an
/// emulated CPU with nested paging on a busy machine was seen at five.
const USABLE_MIPS: f64 = 3.0;

/// The loop is timed this often at most: one turn can fall into a pause of the host's.
const SPEED_ATTEMPTS: u32 = 3;

impl Findings {
    /// Whether an ordinary kernel can run.
    pub fn usable(&self) -> bool {
        self.failing.is_empty() && self.million_instructions_per_second >= USABLE_MIPS
    }
}

/// Why the payload could not even start.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// KVM refused a request.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The payload did not fit, which is our mistake.
    #[error("the payload does not fit its memory")]
    Layout,
}

/// Runs the payload.
///
/// # Errors
/// If KVM can't make the VM for it.
pub fn run(kvm: &Kvm) -> Result<Findings, PayloadError> {
    let mut payload = Payload::new(kvm)?;
    let mut findings = Findings {
        million_instructions_per_second: payload.speed()?,
        working: Vec::new(),
        failing: Vec::new(),
    };
    for instruction in &INSTRUCTIONS {
        if payload.announced(instruction) {
            let works = payload.works(instruction)?;
            let list = if works {
                &mut findings.working
            } else {
                &mut findings.failing
            };
            list.push(instruction.name);
        }
    }
    Ok(findings)
}

struct Payload {
    vcpu: VcpuFd,
    cpuid: kvm_bindings::CpuId,
    entry: EntryState,
    // After the vCPU: it runs in this VM's memory.
    vm: Vm,
}

impl Payload {
    fn new(kvm: &Kvm) -> Result<Self, PayloadError> {
        let layout = MemoryLayout::new(MEMORY).map_err(|_| PayloadError::Layout)?;
        let ram = GuestRam::new(layout, Backing::Private, Sharing::default())?;
        let vm = Vm::new(kvm, ram)?;
        let vcpu = vm
            .fd()
            .create_vcpu(0)
            .map_err(KvmError::of("create a vCPU"))?;
        let cpuid = CpuidTemplate::new(kvm, 1)?.for_vcpu(0);
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::of("set CPUID"))?;
        let payload = Self {
            vcpu,
            cpuid,
            entry: EntryState::linux64(CODE),
            vm,
        };
        payload.write_tables()?;
        Ok(payload)
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), PayloadError> {
        let memory = self.vm.ram().memory();
        memory
            .write_slice(bytes, GuestAddress(addr))
            .map_err(|_| PayloadError::Layout)
    }

    /// Page tables for the first 2 MiB, the GDT, and an IDT whose breakpoint handler returns.
    fn write_tables(&self) -> Result<(), PayloadError> {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        const INTERRUPT_GATE: u64 = 0x8e00 << 32;
        let (pdpt, directory) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
        self.write(PAGE_TABLES, &(pdpt | PRESENT_WRITABLE).to_le_bytes())?;
        self.write(pdpt, &(directory | PRESENT_WRITABLE).to_le_bytes())?;
        self.write(directory, &(PRESENT_WRITABLE | LARGE).to_le_bytes())?;
        let gdt = self.entry.gdt_blob();
        self.write(gdt.guest_addr, &gdt.bytes)?;
        let selector = u64::from(self.entry.cs.selector);
        let gate = BREAKPOINT_HANDLER | (selector << 16) | INTERRUPT_GATE;
        self.write(IDT + 3 * 16, &gate.to_le_bytes())?;
        self.write(BREAKPOINT_HANDLER, &[0x48, 0xcf]) // iretq
    }

    fn announced(&self, instruction: &Instruction) -> bool {
        let Some((leaf, register, bit)) = instruction.cpuid else {
            return true;
        };
        self.cpuid.as_slice().iter().any(|entry| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            entry.function == leaf && entry.index == 0 && registers[register] & (1 << bit) != 0
        })
    }

    fn works(&mut self, instruction: &Instruction) -> Result<bool, PayloadError> {
        let mut code = vec![0xbf]; // mov edi, DATA
        code.extend((DATA as u32).to_le_bytes());
        code.extend([0xb8, 1, 0, 0, 0, 0x31, 0xd2]); // mov eax, 1; xor edx, edx
        code.extend(instruction.code);
        Ok(self.execute(&code)?.is_some())
    }

    fn speed(&mut self) -> Result<f64, PayloadError> {
        let mut code = vec![0xb9]; // mov ecx, LOOP_TURNS
        code.extend(LOOP_TURNS.to_le_bytes());
        code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jnz
        // The first turn pays for page faults of the host.
        self.execute(&code)?;
        let mut best = 0.0;
        for _ in 0..SPEED_ATTEMPTS {
            let Some(took) = self.execute(&code)? else {
                return Ok(0.0);
            };
            best = f64::max(best, f64::from(2 * LOOP_TURNS) / took.as_secs_f64() / 1e6);
            if best >= USABLE_MIPS {
                break;
            }
        }
        Ok(best)
    }

    /// Runs `code` and returns how long it took, or `None` if it did not get to its end.
    fn execute(&mut self, code: &[u8]) -> Result<Option<Duration>, PayloadError> {
        const OUT_DONE: [u8; 2] = [0xe6, DONE_PORT as u8];
        self.write(CODE, &[code, &OUT_DONE].concat())?;
        self.reset_registers()?;
        let start = Instant::now();
        loop {
            return match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DONE_PORT, _)) => Ok(Some(start.elapsed())),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                _ => Ok(None),
            };
        }
    }

    fn reset_registers(&self) -> Result<(), PayloadError> {
        entry::set_registers(&self.vcpu, &self.entry)?;
        let mut regs = self
            .vcpu
            .get_regs()
            .map_err(KvmError::of("read registers"))?;
        regs.rsp = STACK_TOP;
        self.vcpu
            .set_regs(&regs)
            .map_err(KvmError::of("set registers"))?;
        let mut sregs = self
            .vcpu
            .get_sregs()
            .map_err(KvmError::of("read special registers"))?;
        sregs.idt.base = IDT;
        sregs.idt.limit = 4 * 16 - 1;
        sregs.cr0 |= CR0_MP;
        sregs.cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
        self.vcpu
            .set_sregs(&sregs)
            .map_err(KvmError::of("set special registers"))?;
        Ok(())
    }
}
