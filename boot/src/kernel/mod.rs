//! Kernels: telling what a file is, and reading what booting it takes.

mod bzimage;
mod elf;
mod identify;

use std::io;

use linux_loader::loader::bootparam::setup_header;
use thiserror::Error;

pub use bzimage::BzImageError;
pub use elf::ElfError;

use crate::image_file::{ImageFile, Reader};
use crate::layout::{GuestRange, MemoryLayout};
use crate::plan::Piece;
use identify::Format;

/// Why a kernel was refused.
#[derive(Debug, Error)]
pub enum KernelError {
    /// Nothing to boot.
    #[error("the kernel file is empty")]
    Empty,
    /// It is something else.
    #[error(
        "this is not a kernel for x86-64 but {found}: give a vmlinux (ELF) or a vmlinuz (bzImage)"
    )]
    Foreign {
        /// What it is, with its article.
        found: &'static str,
    },
    /// It cannot be read.
    #[error("cannot read the kernel")]
    Read {
        /// Why.
        #[from]
        source: io::Error,
    },
    /// An ELF file that cannot be booted.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A bzImage that cannot be booted.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
}

/// What booting a kernel takes, checked against its file's size and the guest's RAM.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Ranges of the file and where they belong; disjoint.
    pub pieces: Vec<Piece>,
    /// All RAM that the kernel uses before it knows the memory map.
    pub occupied: GuestRange,
    /// The part of it that is written from the start on, if the file tells.
    pub data: Option<GuestRange>,
    pub entry: KernelEntry,
    /// The longest command line, in bytes without the terminating zero.
    pub cmdline_max: usize,
    /// The highest address that the initrd may reach into.
    pub initrd_addr_max: u64,
}

/// How the kernel is entered.
#[derive(Debug)]
pub(crate) enum KernelEntry {
    Pvh {
        entry: u64,
    },
    Linux64 {
        entry: u64,
        /// The kernel's own header, or the minimum for a kernel without one.
        header: setup_header,
    },
}

/// Reads and checks a kernel's headers.
pub(crate) fn load(file: &dyn ImageFile, memory: MemoryLayout) -> Result<Kernel, KernelError> {
    let reader = Reader::new(file)?;
    if reader.size() == 0 {
        return Err(KernelError::Empty);
    }
    match identify::identify(&reader)? {
        Format::Elf => elf::load(&reader, memory),
        Format::BzImage => bzimage::load(&reader, memory),
        Format::Foreign(found) => Err(KernelError::Foreign { found }),
    }
}
