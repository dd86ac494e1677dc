//! Why an ELF kernel is refused.

use thiserror::Error;

use super::note::NoteError;
use crate::layout::MIB;

/// Why an ELF kernel was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// The file ends before something that its headers speak of.
    #[error(
        "the kernel is truncated: its {what} end at byte {end}, the file has only {size} bytes"
    )]
    Truncated {
        /// What does not lie in the file.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// A header field makes no sense.
    #[error("the kernel's ELF header is corrupt: {what} is {value}")]
    Header {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Nothing to load.
    #[error("the ELF file has no segment to load: it is not a kernel")]
    NoSegments,
    /// More in the file than in memory.
    #[error(
        "the kernel's segment {index} is corrupt: {file_size} bytes in the file \
         do not fit into its {mem_size} bytes of memory"
    )]
    FileSize {
        /// Index of the program header.
        index: usize,
        /// Its `p_filesz`.
        file_size: u64,
        /// Its `p_memsz`.
        mem_size: u64,
    },
    /// A segment's end is beyond the last address there is.
    #[error(
        "the kernel's segment {index} is corrupt: {len:#x} bytes from {start:#x} on wrap around"
    )]
    Wraps {
        /// Index of the program header.
        index: usize,
        /// First address or file offset.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A segment lies where this machine keeps its own tables.
    #[error(
        "the kernel's segment {index} would be loaded at {start:#x}: below 1 MiB lie the machine's \
         own tables"
    )]
    LowMemory {
        /// Index of the program header.
        index: usize,
        /// First address.
        start: u64,
    },
    /// A segment does not lie in RAM.
    #[error(
        "the kernel's segment {index} at {start:#x}-{end:#x} lies outside of the guest's memory, \
         which ends at {} MiB below the hole for devices: give it more memory",
        ram_end / MIB
    )]
    OutsideMemory {
        /// Index of the program header.
        index: usize,
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// Where low RAM ends.
        ram_end: u64,
    },
    /// Two segments share memory.
    #[error("the kernel is corrupt: its segments {first} and {second} overlap in memory")]
    Overlap {
        /// Index of one program header.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// Execution would start in no man's land.
    #[error("the kernel's entry point {entry:#x} lies in none of its segments")]
    Entry {
        /// The entry point, a physical address.
        entry: u64,
    },
    /// The notes cannot be read.
    #[error("the kernel's ELF notes are corrupt: {what}")]
    Notes {
        /// What is wrong with them.
        what: String,
    },
}

impl From<NoteError> for ElfError {
    fn from(error: NoteError) -> Self {
        Self::Notes {
            what: error.to_string(),
        }
    }
}
