//! What the monitor does to guest memory before the first vCPU runs.

use std::fmt;

use thiserror::Error;

use crate::acpi::{self, AcpiDevices, AcpiError};
use crate::cmdline::{Cmdline, CmdlineError};
use crate::image_file::ImageFile;
use crate::initrd::{self, InitrdError, InitrdPart};
use crate::kernel::{self, KernelEntry, KernelError};
use crate::layout::{CMDLINE_START, GuestRange, MAX_VCPUS, MemoryLayout, PAGE_SIZE};
use crate::registers::EntryState;
use crate::{page_tables, pvh, zero_page};

/// What to boot, and on which machine.
#[derive(Clone, Copy)]
pub struct BootSpec<'a> {
    /// An ELF or bzImage kernel; `&File` is one.
    pub kernel: &'a dyn ImageFile,
    /// Parts of the initrd, in order. None: no initrd.
    pub initrd: &'a [InitrdPart<'a>],
    /// The kernel's command line.
    pub cmdline: &'a Cmdline,
    /// Where RAM lies.
    pub memory: &'a MemoryLayout,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Devices that the ACPI tables name.
    pub devices: &'a AcpiDevices,
}

/// A file that a plan refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanFile {
    /// [`BootSpec::kernel`].
    Kernel,
    /// The part of [`BootSpec::initrd`] with this index.
    Initrd(usize),
}

/// Whole pages of a file to be mapped privately over guest RAM (`MAP_PRIVATE | MAP_FIXED`,
/// readable and writable), so that guests share them until they write to them.
///
/// Guest address, file offset and length are multiples of [`PAGE_SIZE`], and the range lay in the
/// file when the plan was made. A file that is truncated later makes accesses fail with `SIGBUS`,
/// or `EFAULT` from `KVM_RUN`; kernels are to be replaced by renaming, not by overwriting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMapping {
    /// Which file.
    pub file: PlanFile,
    /// Where in guest memory.
    pub guest_addr: u64,
    /// Where in the file.
    pub file_offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// Bytes of a file to be read into guest RAM: the ends of a range whose middle is mapped, or all
/// of a range whose place in the file does not allow mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileCopy {
    /// Which file.
    pub file: PlanFile,
    /// Where in guest memory.
    pub guest_addr: u64,
    /// Where in the file.
    pub file_offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// Bytes to be written into guest RAM.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    /// Where in guest memory.
    pub guest_addr: u64,
    /// What.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Page tables and initrds would fill the screen.
        let (guest_addr, len) = (self.guest_addr, self.bytes.len());
        write!(f, "Blob({len} bytes at {guest_addr:#x})")
    }
}

/// What to do to fresh, zeroed guest RAM, and with which registers to start.
///
/// No two of the ranges share a byte, and all lie in RAM. Nothing has to be zeroed: a page is mapped
/// only if all of it belongs to the file's range, so a kernel's .bss stays the zeroed RAM it was.
/// Mappings come first, then copies and blobs in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// Pages to map.
    pub mappings: Vec<FileMapping>,
    /// Bytes to read from files.
    pub copies: Vec<FileCopy>,
    /// Bytes to write.
    pub blobs: Vec<Blob>,
    /// The first vCPU's registers.
    pub entry: EntryState,
    /// RAM that the kernel occupies at its start, .bss or decompression buffer included.
    pub kernel: GuestRange,
    /// The part of it that the kernel writes to from the start on, if the file tells.
    pub kernel_data: Option<GuestRange>,
    /// Where the initrd lies, if there is one.
    pub initrd: Option<GuestRange>,
}

/// Why a guest cannot be booted so.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel was refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd was refused.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line was refused.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The devices cannot be described.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// No vCPU, or too many.
    #[error("{vcpus} vCPUs are not possible: 1 to {MAX_VCPUS} are")]
    Vcpus {
        /// What was asked for.
        vcpus: u8,
    },
}

/// Makes the plan for booting `spec`. Reads the files' headers, never their bulk.
///
/// # Errors
/// One of [`BootError`], each a single line that says what is wrong with which file or value.
pub fn plan(spec: &BootSpec<'_>) -> Result<BootPlan, BootError> {
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        let vcpus = spec.vcpus;
        return Err(BootError::Vcpus { vcpus });
    }
    let memory = *spec.memory;
    let kernel = kernel::load(spec.kernel, memory)?;
    let cmdline = spec.cmdline.to_guest_bytes(kernel.cmdline_max)?;
    let initrd = initrd::place(spec.initrd, &kernel, memory)?;
    let tables = acpi::build(spec.devices, spec.vcpus)?;
    let initrd_range = initrd.as_ref().map(|initrd| initrd.range);

    let (entry, handover) = match &kernel.entry {
        KernelEntry::Pvh { entry } => (
            EntryState::pvh(*entry),
            vec![pvh::start_info(memory, initrd_range)],
        ),
        KernelEntry::Linux64 { entry, header } => (
            EntryState::linux64(*entry),
            vec![
                zero_page::build(header, memory, initrd_range),
                page_tables::identity(memory),
            ],
        ),
    };

    let mut plan = BootPlan {
        mappings: Vec::new(),
        copies: Vec::new(),
        blobs: handover,
        entry,
        kernel: kernel.occupied,
        kernel_data: kernel.data,
        initrd: initrd_range,
    };
    for piece in &kernel.pieces {
        plan.place(piece);
    }
    if let Some(initrd) = initrd {
        for piece in &initrd.pieces {
            plan.place(piece);
        }
        plan.blobs.extend(initrd.blobs);
    }
    plan.blobs.push(plan.entry.gdt_blob());
    plan.blobs.push(tables);
    plan.blobs.push(Blob {
        guest_addr: CMDLINE_START,
        bytes: cmdline,
    });
    Ok(plan)
}

/// A range of a file and where it belongs in guest memory. Checked to lie in the file and in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub file: PlanFile,
    pub guest_addr: u64,
    pub file_offset: u64,
    pub len: u64,
    /// The guest writes to nearly all of it at its start: a mapping would be copied page by page.
    pub written: bool,
}

impl BootPlan {
    /// Maps the whole pages of `piece` and copies its ends; copies all of it if its guest address
    /// and its file offset lie differently in their pages, or if it would not stay shared.
    fn place(&mut self, piece: &Piece) {
        let head = piece.guest_addr.next_multiple_of(PAGE_SIZE) - piece.guest_addr;
        let congruent = piece.guest_addr % PAGE_SIZE == piece.file_offset % PAGE_SIZE;
        let whole = piece.len.saturating_sub(head) / PAGE_SIZE * PAGE_SIZE;
        if !congruent || whole == 0 || piece.written {
            self.copy(piece, 0, piece.len);
            return;
        }
        self.copy(piece, 0, head);
        self.mappings.push(FileMapping {
            file: piece.file,
            guest_addr: piece.guest_addr + head,
            file_offset: piece.file_offset + head,
            len: whole,
        });
        self.copy(piece, head + whole, piece.len - head - whole);
    }

    fn copy(&mut self, piece: &Piece, at: u64, len: u64) {
        if len > 0 {
            self.copies.push(FileCopy {
                file: piece.file,
                guest_addr: piece.guest_addr + at,
                file_offset: piece.file_offset + at,
                len,
            });
        }
    }

    /// All ranges that the plan touches, in no order.
    pub fn ranges(&self) -> impl Iterator<Item = GuestRange> + '_ {
        let range = |start, len| GuestRange { start, len };
        let mappings = self
            .mappings
            .iter()
            .map(move |m| range(m.guest_addr, m.len));
        let copies = self.copies.iter().map(move |c| range(c.guest_addr, c.len));
        let blobs = self
            .blobs
            .iter()
            .map(move |b| range(b.guest_addr, b.bytes.len() as u64));
        mappings.chain(copies).chain(blobs)
    }
}
