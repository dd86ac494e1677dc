//! Telling what a file is from its first bytes, so that a refusal can name it.

use std::io;

use crate::image_file::Reader;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Elf,
    BzImage,
    /// Something that cannot be booted, with its article.
    Foreign(&'static str),
}

/// As much of the file as the farthest signature below needs (ISO 9660's, in sector 16).
const HEAD_LEN: usize = 0x8006;

/// Bytes at an offset, and what has them there. The order matters: an EFI program for aarch64 has
/// Linux's aarch64 signature too.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0x38, b"ARM\x64", "a Linux kernel for aarch64 (Image)"),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V (Image)"),
    (
        0,
        b"MZ\0\0zimg",
        "an EFI program with a compressed kernel in it (zboot)",
    ),
    (0, b"MZ", "a PE/EFI program without a Linux boot header"),
    (0, b"#!", "a script"),
    (0, b"\x1f\x8b", "gzip-compressed data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (0, b"\xfd7zXZ\0", "xz-compressed data"),
    (0, b"BZh", "bzip2-compressed data"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed data"),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed data"),
    (0, b"07070", "a cpio archive (an initrd)"),
    (
        0,
        b"!<arch>\n",
        "an archive (a library or a Debian package)",
    ),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O program"),
    (0x101, b"ustar", "a tar archive"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
];

/// Offset of the boot sector's signature, which bzImages have too.
const BOOT_FLAG: (usize, &[u8]) = (0x1fe, &[0x55, 0xaa]);
/// Offset of the setup header's signature (`boot.rst`, "The Real-Mode Kernel Header").
const SETUP_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// What the file is, going by its first bytes.
pub(super) fn identify(reader: &Reader<'_>) -> io::Result<Format> {
    let head = reader.head(HEAD_LEN)?;
    Ok(identify_head(&head))
}

fn identify_head(head: &[u8]) -> Format {
    let has = |(offset, bytes): (usize, &[u8])| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(bytes))
    };
    if has((0, b"\x7fELF")) {
        return Format::Elf;
    }
    if has(BOOT_FLAG) && has(SETUP_MAGIC) {
        return Format::BzImage;
    }
    let known = SIGNATURES
        .iter()
        .find(|(offset, bytes, _)| has((*offset, bytes)));
    Format::Foreign(match known {
        Some((_, _, found)) => found,
        None if has(BOOT_FLAG) => "a boot sector without a Linux boot header",
        None if head.iter().all(|byte| *byte == 0) => "a file of zeros",
        None if head.iter().all(|byte| is_text(*byte)) => "text",
        None => "data of no known kind",
    })
}

fn is_text(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte.is_ascii_whitespace() || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_both_signatures_of_a_bzimage_is_one() {
        let mut head = vec![0; 0x400];
        head[..2].copy_from_slice(b"MZ");
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(
            identify_head(&head),
            Format::Foreign("a PE/EFI program without a Linux boot header")
        );
        head[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(identify_head(&head), Format::BzImage);
    }

    #[test]
    fn an_aarch64_image_is_named_although_it_is_a_pe_file_too() {
        let mut head = vec![0; 64];
        head[..2].copy_from_slice(b"MZ");
        head[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert_eq!(
            identify_head(&head),
            Format::Foreign("a Linux kernel for aarch64 (Image)")
        );
    }

    #[test]
    fn every_signature_is_found_where_it_stands() {
        for (offset, bytes, found) in SIGNATURES {
            let mut head = vec![0xf8; *offset];
            head.extend_from_slice(bytes);
            assert_eq!(identify_head(&head), Format::Foreign(found));
        }
    }

    #[test]
    fn what_has_no_signature_is_named_by_its_bytes() {
        assert_eq!(identify_head(&[0; 9]), Format::Foreign("a file of zeros"));
        assert_eq!(identify_head(b"hello\n"), Format::Foreign("text"));
        assert_eq!(
            identify_head(&[1, 2, 3]),
            Format::Foreign("data of no known kind")
        );
    }
}
