//! bzImage kernels (vmlinuz), entered by the 64-bit boot protocol
//! (`Documentation/arch/x86/boot.rst`).

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use thiserror::Error;
use vm_memory::ByteValued;

use super::{Kernel, KernelEntry, KernelError};
use crate::image_file::Reader;
use crate::layout::{GuestRange, HIMEM_START, MIB, MemoryLayout};
use crate::plan::{Piece, PlanFile};

/// Offset of the setup header in the file.
const SETUP_HEADER: u64 = 0x1f1;
/// Offset of the byte that says how far behind offset 0x202 the header ends.
const JUMP_LENGTH: u64 = 0x201;
const JUMP_BASE: u64 = 0x202;
/// The header must reach up to and including `init_size`.
const MIN_HEADER_END: u64 = 0x264;
/// The first protocol version that tells of a 64-bit entry point (`xloadflags`).
const MIN_VERSION: u16 = 0x020c;
/// Offset of the 64-bit entry point in the loaded kernel.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// What `setup_sects` means when it is 0.
const DEFAULT_SETUP_SECTORS: u64 = 4;
/// The unit of `syssize`, in bytes.
const PARAGRAPH: u64 = 16;

/// Why a bzImage was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BzImageError {
    /// The file is shorter than its header says.
    #[error("the bzImage is truncated: it needs {needed} bytes, the file has only {size}")]
    Truncated {
        /// What the header implies.
        needed: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// Too old a kernel.
    #[error(
        "the bzImage speaks boot protocol {}.{:02}: at least 2.12 (Linux 3.8) is needed",
        version >> 8, version & 0xff
    )]
    OldProtocol {
        /// `version`: major in the high byte, minor in the low byte.
        version: u16,
    },
    /// A zImage.
    #[error("this is a zImage, which loads into low memory: give a bzImage")]
    LoadedLow,
    /// A 32-bit kernel.
    #[error("the bzImage has no 64-bit entry point: it is a 32-bit kernel")]
    No64Bit,
    /// A header field makes no sense.
    #[error("the bzImage's header is corrupt: {field} is {value:#x}")]
    Header {
        /// The field, by its name in `boot.rst`.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// It needs more memory than there is.
    #[error(
        "the bzImage needs memory up to {} MiB, the guest's ends at {} MiB below the hole for \
         devices: give it more memory",
        end.div_ceil(MIB), ram_end / MIB
    )]
    OutsideMemory {
        /// First address behind what it needs.
        end: u64,
        /// Where low RAM ends.
        ram_end: u64,
    },
}

/// Reads a bzImage's header.
pub(super) fn load(reader: &Reader<'_>, memory: MemoryLayout) -> Result<Kernel, KernelError> {
    let mut header = read_header(reader)?;
    check_flags(&header)?;
    let payload = payload(reader, &header)?;
    let occupied = occupied(&header, payload.len, memory)?;

    // Both are below the hole.
    header.code32_start = occupied.start as u32;
    Ok(Kernel {
        pieces: vec![Piece {
            guest_addr: occupied.start,
            ..payload
        }],
        entry: KernelEntry::Linux64 {
            entry: occupied.start + ENTRY_64,
            header,
        },
        cmdline_max: usize::try_from(header.cmdline_size).unwrap_or(usize::MAX),
        initrd_addr_max: header.initrd_addr_max.into(),
        data: None,
        occupied,
    })
}

/// The setup header, without what lies behind its own end.
fn read_header(reader: &Reader<'_>) -> Result<setup_header, KernelError> {
    require(reader, MIN_HEADER_END)?;
    let jump: u8 = reader.value(JUMP_LENGTH)?;
    let end = JUMP_BASE + u64::from(jump);
    if end < MIN_HEADER_END {
        // Older headers are shorter, so this is where most of them show.
        let version = reader.value::<[u8; 2]>(0x206).map(u16::from_le_bytes)?;
        check_version(version)?;
        return Err(corrupt("jump", jump.into()).into());
    }
    require(reader, end)?;
    let len = (end - SETUP_HEADER).min(size_of::<setup_header>() as u64);
    let bytes = reader.bytes(SETUP_HEADER, len as usize)?;
    let mut header = setup_header::default();
    for (to, from) in header.as_mut_slice().iter_mut().zip(bytes) {
        *to = from;
    }
    Ok(header)
}

fn check_version(version: u16) -> Result<(), BzImageError> {
    if version < MIN_VERSION {
        return Err(BzImageError::OldProtocol { version });
    }
    Ok(())
}

fn check_flags(header: &setup_header) -> Result<(), BzImageError> {
    check_version(header.version)?;
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(BzImageError::LoadedLow);
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BzImageError::No64Bit);
    }
    Ok(())
}

/// The protected-mode part of the file, its guest address yet unknown.
fn payload(reader: &Reader<'_>, header: &setup_header) -> Result<Piece, BzImageError> {
    let sectors = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors.into(),
    };
    let start = (sectors + 1) * SECTOR;
    let len = u64::from(header.syssize) * PARAGRAPH;
    if len <= ENTRY_64 {
        return Err(corrupt("syssize", header.syssize.into()));
    }
    // The size was rounded up when it was put into the header.
    let available = reader.size().saturating_sub(start);
    if available.saturating_add(PARAGRAPH) <= len {
        return Err(truncated(reader, start + len));
    }
    Ok(Piece {
        file: PlanFile::Kernel,
        guest_addr: 0,
        file_offset: start,
        len: len.min(available),
        written: false,
    })
}

/// All memory that the kernel needs: from its preferred address on, where it need not move itself,
/// as much as its decompressor says.
fn occupied(
    header: &setup_header,
    payload_len: u64,
    memory: MemoryLayout,
) -> Result<GuestRange, BzImageError> {
    let preferred = header.pref_address;
    let alignment = u64::from(header.kernel_alignment);
    let start = if header.relocatable_kernel == 0 {
        Some(preferred)
    } else if alignment.is_power_of_two() {
        preferred.checked_next_multiple_of(alignment)
    } else {
        return Err(corrupt("kernel_alignment", alignment));
    };
    let range = start
        .filter(|start| *start >= HIMEM_START)
        .and_then(|start| GuestRange::new(start, payload_len.max(header.init_size.into())))
        .ok_or(corrupt("pref_address", preferred))?;
    let ram = memory.low_ram();
    if !ram.contains(&range) {
        return Err(BzImageError::OutsideMemory {
            end: range.end(),
            ram_end: ram.end(),
        });
    }
    Ok(range)
}

fn require(reader: &Reader<'_>, needed: u64) -> Result<(), BzImageError> {
    if reader.has(0, needed) {
        Ok(())
    } else {
        Err(truncated(reader, needed))
    }
}

fn truncated(reader: &Reader<'_>, needed: u64) -> BzImageError {
    let size = reader.size();
    BzImageError::Truncated { needed, size }
}

fn corrupt(field: &'static str, value: u64) -> BzImageError {
    BzImageError::Header { field, value }
}
