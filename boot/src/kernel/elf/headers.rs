//! The file header and the program headers of an ELF file, and what they say a file is.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::ElfError;
use crate::image_file::Reader;
use crate::kernel::KernelError;

/// The most program headers: a vmlinux has about five.
const MAX_SEGMENTS: u16 = 64;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const DATA_BIG_ENDIAN: u8 = 2;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const TYPE_CORE: u16 = 4;
const MACHINE_X86_64: u16 = 62;
/// What `Elf32_Ehdr` and `Elf64_Ehdr` have in common (System V ABI, "ELF Header").
#[derive(Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CommonHeader {
    pub ident: [u8; 16],
    pub kind: u16,
    pub machine: u16,
}

/// `Elf64_Ehdr`.
#[derive(Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct FileHeader {
    pub ident: [u8; 16],
    pub kind: u16,
    pub machine: u16,
    pub version: u32,
    pub entry: u64,
    pub segments_offset: u64,
    pub sections_offset: u64,
    pub flags: u32,
    pub header_size: u16,
    pub segment_header_size: u16,
    pub segment_count: u16,
    pub section_header_size: u16,
    pub section_count: u16,
    pub section_names: u16,
}

/// `Elf64_Phdr` (System V ABI, "Program Header").
#[derive(Debug, Clone, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SegmentHeader {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub virt_addr: u64,
    pub phys_addr: u64,
    pub file_size: u64,
    pub mem_size: u64,
    pub align: u64,
}

/// The file's header, once it is known to be a 64-bit x86 executable's.
pub(super) fn file_header(reader: &Reader<'_>) -> Result<FileHeader, KernelError> {
    // Up to the machine, a header is laid out the same for 32 and 64 bits.
    require(reader, "headers", 0, size_of::<CommonHeader>() as u64)?;
    let common: CommonHeader = reader.value(0)?;
    let [_, _, _, _, class, data, ..] = common.ident;
    let found = match (class, data) {
        (CLASS_32, _) => Some("a 32-bit ELF file"),
        (CLASS_64, DATA_BIG_ENDIAN) => Some("a big-endian ELF file"),
        (CLASS_64, DATA_LITTLE_ENDIAN) => foreign_machine(common.machine),
        (CLASS_64, _) => return Err(corrupt("EI_DATA", data).into()),
        _ => return Err(corrupt("EI_CLASS", class).into()),
    };
    let found = found.or(match common.kind {
        TYPE_EXECUTABLE => None,
        TYPE_RELOCATABLE => Some("a relocatable object, an unlinked part of a program or a module"),
        TYPE_SHARED => Some("a shared object or a program for user space"),
        TYPE_CORE => Some("a core dump"),
        kind => return Err(corrupt("e_type", kind).into()),
    });
    if let Some(found) = found {
        return Err(KernelError::Foreign { found });
    }
    require(reader, "headers", 0, size_of::<FileHeader>() as u64)?;
    Ok(reader.value(0)?)
}

/// What an ELF file for another machine is.
fn foreign_machine(machine: u16) -> Option<&'static str> {
    match machine {
        MACHINE_X86_64 => None,
        3 => Some("an ELF file for 32-bit x86"),
        8 => Some("an ELF file for MIPS"),
        21 => Some("an ELF file for 64-bit PowerPC"),
        22 => Some("an ELF file for s390"),
        40 => Some("an ELF file for 32-bit ARM"),
        183 => Some("an ELF file for aarch64"),
        243 => Some("an ELF file for RISC-V"),
        247 => Some("a BPF program"),
        258 => Some("an ELF file for LoongArch"),
        _ => Some("an ELF file for another machine"),
    }
}

/// All program headers.
pub(super) fn segment_headers(
    reader: &Reader<'_>,
    header: &FileHeader,
) -> Result<Vec<SegmentHeader>, KernelError> {
    let size = size_of::<SegmentHeader>() as u64;
    if header.segment_count == 0 {
        return Err(ElfError::NoSegments.into());
    }
    if header.segment_count > MAX_SEGMENTS {
        return Err(corrupt("e_phnum", header.segment_count).into());
    }
    if u64::from(header.segment_header_size) != size {
        return Err(corrupt("e_phentsize", header.segment_header_size).into());
    }
    let total = size * u64::from(header.segment_count);
    require(reader, "program headers", header.segments_offset, total)?;
    (0..u64::from(header.segment_count))
        .map(|i| Ok(reader.value(header.segments_offset + i * size)?))
        .collect()
}

/// Checks that `len` bytes from `offset` on lie in the file.
pub(super) fn require(
    reader: &Reader<'_>,
    what: &'static str,
    offset: u64,
    len: u64,
) -> Result<(), ElfError> {
    if reader.has(offset, len) {
        return Ok(());
    }
    Err(ElfError::Truncated {
        what,
        end: offset.saturating_add(len),
        size: reader.size(),
    })
}

fn corrupt(what: &'static str, value: impl Into<u64>) -> ElfError {
    let value = value.into();
    ElfError::Header { what, value }
}
