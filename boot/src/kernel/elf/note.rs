//! What an ELF file's notes tell of a kernel: whose it is, and PVH's entry point.

use thiserror::Error;

/// Name of Xen's notes, with the terminating zero that is part of it.
const XEN_NAME: &[u8] = b"Xen\0";
/// Name of Linux's own notes.
const LINUX_NAME: &[u8] = b"Linux\0";
/// Type of the note that holds the 32-bit entry point (Xen's `public/elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Size of a note's header: sizes of name and descriptor, type.
const HEADER_LEN: usize = 12;

/// Why the notes cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum NoteError {
    #[error("the note at offset {offset} of its notes does not end within them")]
    Truncated { offset: usize },
    #[error("its PVH entry note holds {len} bytes instead of 4 or 8")]
    EntrySize { len: usize },
}

/// What is of interest in the notes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notes {
    /// PVH's 32-bit entry point.
    pub pvh_entry: Option<u64>,
    /// The kernel is Linux.
    pub linux: bool,
}

/// Reads a segment of notes that are aligned to `align` bytes (4 or 8). The first entry point counts.
pub(super) fn read(notes: &[u8], align: usize) -> Result<Notes, NoteError> {
    let mut found = Notes::default();
    let mut offset = 0_usize;
    // Anything shorter than a header is padding.
    while let Some(header) = notes.get(offset..offset.saturating_add(HEADER_LEN)) {
        let (name, desc, next) =
            fields(notes, offset, header, align).ok_or(NoteError::Truncated { offset })?;
        if name == XEN_NAME && word(header, 8) == Some(XEN_ELFNOTE_PHYS32_ENTRY) {
            found.pvh_entry = found.pvh_entry.or(Some(entry_value(desc)?));
        }
        found.linux |= name == LINUX_NAME;
        offset = next;
    }
    Ok(found)
}

/// Name and descriptor of the note at `offset`, and where the next one starts; `None` if it does
/// not end within `notes`.
fn fields<'a>(
    notes: &'a [u8],
    offset: usize,
    header: &[u8],
    align: usize,
) -> Option<(&'a [u8], &'a [u8], usize)> {
    let name_len = usize::try_from(word(header, 0)?).ok()?;
    let desc_len = usize::try_from(word(header, 4)?).ok()?;
    let name_start = offset.checked_add(HEADER_LEN)?;
    let name_end = name_start.checked_add(name_len)?;
    let desc_start = name_end.checked_next_multiple_of(align)?;
    let desc_end = desc_start.checked_add(desc_len)?;
    let name = notes.get(name_start..name_end)?;
    let desc = notes.get(desc_start..desc_end)?;
    Some((name, desc, desc_end.checked_next_multiple_of(align)?))
}

fn entry_value(desc: &[u8]) -> Result<u64, NoteError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(desc) {
        Ok(u32::from_le_bytes(bytes).into())
    } else if let Ok(bytes) = <[u8; 8]>::try_from(desc) {
        Ok(u64::from_le_bytes(bytes))
    } else {
        Err(NoteError::EntrySize { len: desc.len() })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pvh_entry(notes: &[u8], align: usize) -> Result<Option<u64>, NoteError> {
        read(notes, align).map(|found| found.pvh_entry)
    }

    fn note(name: &[u8], kind: u32, desc: &[u8], align: usize) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend_from_slice(&(name.len() as u32).to_le_bytes());
        note.extend_from_slice(&(desc.len() as u32).to_le_bytes());
        note.extend_from_slice(&kind.to_le_bytes());
        note.extend_from_slice(name);
        note.resize(note.len().next_multiple_of(align), 0);
        note.extend_from_slice(desc);
        note.resize(note.len().next_multiple_of(align), 0);
        note
    }

    #[test]
    fn the_entry_is_found_behind_other_notes_in_both_sizes_and_alignments() {
        for align in [4, 8] {
            for desc in [&[1, 2, 3, 4][..], &[1, 2, 3, 4, 0, 0, 0, 0]] {
                let mut notes = note(b"GNU\0", 18, b"12345", align);
                notes.extend(note(b"Xen\0", 17, b"", align));
                notes.extend(note(b"Xen\0", 18, desc, align));
                assert_eq!(pvh_entry(&notes, align), Ok(Some(0x0403_0201)));
            }
        }
    }

    #[test]
    fn notes_without_it_have_no_entry() {
        assert_eq!(pvh_entry(&[], 4), Ok(None));
        assert_eq!(pvh_entry(&note(b"Xen", 18, &[0; 4], 4), 4), Ok(None));
        assert_eq!(pvh_entry(&[0xff; HEADER_LEN - 1], 4), Ok(None));
    }

    #[test]
    fn linux_is_known_by_its_name() {
        let mut notes = note(b"Xen\0", 18, &[0; 4], 4);
        assert!(!read(&notes, 4).unwrap().linux);
        notes.extend(note(b"Linux\0", 0x101, &[0; 4], 4));
        assert!(read(&notes, 4).unwrap().linux);
        assert_eq!(pvh_entry(&notes, 4), Ok(Some(0)));
    }

    #[test]
    fn a_note_that_reaches_out_of_its_segment_is_refused() {
        let mut notes = note(b"GNU\0", 1, b"", 4);
        let offset = notes.len();
        notes.extend(note(b"Xen\0", 18, &[0; 4], 4));
        notes.pop();
        assert_eq!(pvh_entry(&notes, 4), Err(NoteError::Truncated { offset }));
        let huge = [0xff; HEADER_LEN];
        assert_eq!(pvh_entry(&huge, 8), Err(NoteError::Truncated { offset: 0 }));
    }

    #[test]
    fn an_entry_of_another_size_is_refused() {
        let notes = note(b"Xen\0", 18, &[0; 5], 4);
        assert_eq!(pvh_entry(&notes, 4), Err(NoteError::EntrySize { len: 5 }));
    }
}
