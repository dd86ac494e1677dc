//! ELF kernels (vmlinux): segments that are mapped where they lie in the file.

mod error;
mod headers;
mod note;

use super::{Kernel, KernelEntry, KernelError};
use crate::cmdline;
use crate::image_file::Reader;
use crate::initrd::DEFAULT_ADDR_MAX;
use crate::layout::{GuestRange, HIMEM_START, MemoryLayout};
use crate::plan::{Piece, PlanFile};
use headers::{SegmentHeader, require};
use linux_loader::loader::bootparam::setup_header;
use note::Notes;

pub use error::ElfError;

/// The longest segment of notes that is read: a vmlinux has about 500 bytes.
const MAX_NOTES: u64 = 64 * 1024;

const SEGMENT_LOAD: u32 = 1;
const SEGMENT_INTERPRETER: u32 = 3;
const SEGMENT_NOTE: u32 = 4;
const SEGMENT_THREAD_LOCAL: u32 = 7;
/// Flag of a segment that the program writes to.
const WRITABLE: u32 = 2;

/// `HdrS`, which tells Linux that the zero page's setup header is filled in.
const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
const SETUP_BOOT_FLAG: u16 = 0xaa55;
/// Any power of two will do: only a decompressor would use it.
const SETUP_ALIGNMENT: u32 = 0x100_0000;

/// A segment whose ranges have been checked.
struct Segment {
    index: usize,
    memory: GuestRange,
    file_offset: u64,
    file_size: u64,
    writable: bool,
}

/// Reads an ELF kernel's headers.
pub(super) fn load(reader: &Reader<'_>, memory: MemoryLayout) -> Result<Kernel, KernelError> {
    let header = headers::file_header(reader)?;
    let headers = headers::segment_headers(reader, &header)?;
    let notes = notes(reader, &headers)?;
    if is_program(&headers, notes.pvh_entry.is_some()) {
        let found = "a program for user space";
        return Err(KernelError::Foreign { found });
    }

    let mut segments = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        if header.kind == SEGMENT_LOAD && header.mem_size > 0 {
            segments.push(check_segment(index, header, reader, memory)?);
        } else if header.kind == SEGMENT_LOAD && header.file_size > 0 {
            return Err(file_size_error(index, header).into());
        }
    }
    segments.sort_by_key(|segment| segment.memory);
    check_overlaps(&segments)?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(ElfError::NoSegments.into());
    };

    let entry = match notes.pvh_entry {
        // By PVH Linux starts in 32-bit mode, and asks CPUID 256 times whether this is Xen, each time
        // an exit. Its own 64-bit entry does neither.
        Some(entry) if !notes.linux => KernelEntry::Pvh {
            entry: check_entry(entry, &segments)?,
        },
        _ => KernelEntry::Linux64 {
            entry: check_entry(header.entry, &segments)?,
            header: minimal_setup_header(),
        },
    };
    Ok(Kernel {
        occupied: GuestRange::from_bounds(first.memory.start, last.memory.end()),
        pieces: segments.iter().filter_map(Segment::piece).collect(),
        entry,
        data: data(&segments),
        cmdline_max: cmdline::MAX_LEN,
        initrd_addr_max: DEFAULT_ADDR_MAX,
    })
}

/// Whether this is a program for user space. A dynamic one has an interpreter, a static one
/// thread-local data; kernels may have the latter, but Linux, the only one that is entered without a
/// PVH note, has not.
fn is_program(headers: &[SegmentHeader], has_pvh_entry: bool) -> bool {
    headers.iter().any(|header| match header.kind {
        SEGMENT_INTERPRETER => true,
        SEGMENT_THREAD_LOCAL => !has_pvh_entry,
        _ => false,
    })
}

/// Checks one loadable segment against the file and the guest's RAM.
fn check_segment(
    index: usize,
    header: &SegmentHeader,
    reader: &Reader<'_>,
    memory: MemoryLayout,
) -> Result<Segment, ElfError> {
    if header.file_size > header.mem_size {
        return Err(file_size_error(index, header));
    }
    let wraps = |start, len| ElfError::Wraps { index, start, len };
    if header.offset.checked_add(header.file_size).is_none() {
        return Err(wraps(header.offset, header.file_size));
    }
    require(reader, "segments", header.offset, header.file_size)?;

    let range = GuestRange::new(header.phys_addr, header.mem_size)
        .ok_or(wraps(header.phys_addr, header.mem_size))?;
    if range.start < HIMEM_START {
        return Err(ElfError::LowMemory {
            index,
            start: range.start,
        });
    }
    let ram = memory.low_ram();
    if !ram.contains(&range) {
        return Err(ElfError::OutsideMemory {
            index,
            start: range.start,
            end: range.end(),
            ram_end: ram.end(),
        });
    }
    Ok(Segment {
        index,
        memory: range,
        file_offset: header.offset,
        file_size: header.file_size,
        writable: header.flags & WRITABLE != 0,
    })
}

fn file_size_error(index: usize, header: &SegmentHeader) -> ElfError {
    ElfError::FileSize {
        index,
        file_size: header.file_size,
        mem_size: header.mem_size,
    }
}

/// Checks that no two of the segments, in ascending order, share memory.
fn check_overlaps(segments: &[Segment]) -> Result<(), ElfError> {
    let overlap = segments.windows(2).find_map(|pair| match pair {
        [a, b] if a.memory.overlaps(&b.memory) => Some((a.index, b.index)),
        _ => None,
    });
    match overlap {
        Some((a, b)) => Err(ElfError::Overlap {
            first: a.min(b),
            second: a.max(b),
        }),
        None => Ok(()),
    }
}

impl Segment {
    /// The part that comes from the file, if any does.
    fn piece(&self) -> Option<Piece> {
        (self.file_size > 0).then_some(Piece {
            file: PlanFile::Kernel,
            guest_addr: self.memory.start,
            file_offset: self.file_offset,
            len: self.file_size,
            written: self.writable,
        })
    }
}

/// The entry point, if it lies in the bytes of a segment that come from the file.
fn check_entry(entry: u64, segments: &[Segment]) -> Result<u64, ElfError> {
    let point = GuestRange {
        start: entry,
        len: 1,
    };
    let in_file = |segment: &Segment| {
        GuestRange {
            start: segment.memory.start,
            len: segment.file_size,
        }
        .overlaps(&point)
    };
    if segments.iter().any(in_file) {
        Ok(entry)
    } else {
        Err(ElfError::Entry { entry })
    }
}

/// What the kernel writes to as soon as it runs: from its first writable segment to the end of the
/// last, if there is nothing else in between.
fn data(segments: &[Segment]) -> Option<GuestRange> {
    let first = segments.iter().position(|segment| segment.writable)?;
    let data = segments.get(first..).unwrap_or_default();
    let (start, end) = (data.first()?.memory.start, data.last()?.memory.end());
    let all = data.iter().all(|segment| segment.writable);
    all.then_some(GuestRange::from_bounds(start, end))
}

/// What all segments of notes tell.
fn notes(reader: &Reader<'_>, headers: &[SegmentHeader]) -> Result<Notes, KernelError> {
    let mut all = Notes::default();
    for header in headers.iter().filter(|h| h.kind == SEGMENT_NOTE) {
        require(reader, "notes", header.offset, header.file_size)?;
        let len = header.file_size;
        if len > MAX_NOTES {
            let what = format!("{len} bytes of them, more than {MAX_NOTES}");
            return Err(ElfError::Notes { what }.into());
        }
        let align = if header.align == 8 { 8 } else { 4 };
        let notes = reader.bytes(header.offset, len as usize)?;
        let found = note::read(&notes, align).map_err(ElfError::from)?;
        all.pvh_entry = all.pvh_entry.or(found.pvh_entry);
        all.linux |= found.linux;
    }
    Ok(all)
}

/// What a loader that skips the decompressor fills in.
fn minimal_setup_header() -> setup_header {
    setup_header {
        boot_flag: SETUP_BOOT_FLAG,
        header: SETUP_HEADER_MAGIC,
        kernel_alignment: SETUP_ALIGNMENT,
        ..Default::default()
    }
}
