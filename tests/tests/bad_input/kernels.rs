//! Kernels, initial RAM file systems and command lines.

use std::fs;

use casita_tests::kernel::{Payload, field, patched};
use casita_tests::suite::Suite;

use super::{ContentCase, each, good, place, refused, special_files};

pub fn tests(suite: &mut Suite) {
    let cases: &[(&str, ContentCase)] = &[
        ("kernel_empty", (Vec::new, "empty")),
        ("kernel_of_one_byte", (|| vec![0x7f], "")),
        (
            "kernel_script",
            (|| b"#!/bin/sh\necho hello\n".to_vec(), "a script"),
        ),
        ("kernel_text", (|| b"just some words\n".repeat(100), "text")),
        ("kernel_zeros", (|| vec![0; 10_000], "zeros")),
        (
            "kernel_gzip",
            (|| b"\x1f\x8b\x08\0aaaaaaaaaaaaaaaaaaaaaa".to_vec(), "gzip"),
        ),
        ("kernel_pe", (pe, "PE")),
        ("kernel_aarch64_image", (aarch64_image, "aarch64")),
        (
            "kernel_aarch64_elf",
            (|| changed(field::MACHINE, &[183, 0]), ""),
        ),
        ("kernel_elf_cut_in_its_header", (|| cut(40), "truncated")),
        (
            "kernel_elf_cut_in_its_program_headers",
            (|| cut(100), "truncated"),
        ),
        ("kernel_elf_cut_in_its_text", (|| cut(0x1001), "truncated")),
        (
            "kernel_elf_headers_far_outside",
            (|| changed(field::SEGMENTS_OFFSET, &[0xff; 8]), ""),
        ),
        (
            "kernel_elf_too_many_headers",
            (|| changed(field::SEGMENT_COUNT, &[0xff; 2]), ""),
        ),
        (
            "kernel_elf_without_segments",
            (|| changed(field::SEGMENT_COUNT, &[0; 2]), "no segment"),
        ),
        (
            "kernel_elf_huge_file_size",
            (|| changed(field::FILE_SIZE, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_huge_memory_size",
            (|| changed(field::MEMORY_SIZE, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_offset_wraps",
            (|| changed(field::OFFSET, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_address_wraps",
            (|| changed(field::ADDRESS, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_in_low_memory",
            (
                || changed(field::ADDRESS, &0x1000_u64.to_le_bytes()),
                "1 MiB",
            ),
        ),
        (
            "kernel_elf_outside_of_memory",
            (
                || changed(field::ADDRESS, &(1_u64 << 32).to_le_bytes()),
                "outside of the guest's memory",
            ),
        ),
        ("kernel_elf_segments_overlap", (overlapping, "overlap")),
        (
            "kernel_elf_entry_outside",
            (
                || changed(field::PVH_ENTRY, &[0, 0, 0, 0x40]),
                "entry point",
            ),
        ),
        ("kernel_bzimage_cut", (|| bzimage(0x0f0f_0f0f), "truncated")),
        ("kernel_bzimage_old", (old_bzimage, "2.12")),
    ];
    each(suite, cases, |place, (content, says)| {
        place.write("foreign", content())?;
        refused(place, &["--kernel", "foreign"], &["foreign", says])
    });
    others(suite);
}

fn others(suite: &mut Suite) {
    suite.test("kernel_missing", || {
        let says = ["missing.elf", "No such file"];
        refused(&place()?, &["--kernel", "missing.elf"], &says)
    });
    suite.test("kernel_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| {
            refused(&place, &["--kernel", name], &[name, "not a regular file"])
        })
    });
    suite.test("initrd_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| {
            refused(&place, &["--initrd", name], &[name, "not a regular file"])
        })
    });
    suite.test("initrd_missing", || {
        refused(&place()?, &["--initrd", "none.cpio"], &["none.cpio"])
    });
    suite.test("initrd_empty", || {
        let place = place()?;
        place.write("nothing", "")?;
        refused(&place, &["--initrd", "nothing"], &["nothing", "empty"])
    });
    suite.test("initrd_larger_than_memory", || {
        let place = place()?;
        fs::File::create(place.path("large"))?.set_len(64 << 20)?;
        refused(
            &place,
            &["--initrd", "large", "--memory", "32M"],
            &["large", "does not fit"],
        )
    });
    suite.test("cmdline_too_long", || {
        let long = "x".repeat(3000);
        refused(&place()?, &["--cmdline", &long], &["command line", "2047"])
    });
    suite.test("cmdline_longer_than_its_room", || {
        let long = "x".repeat(100_000);
        refused(&place()?, &["--cmdline", &long], &["command line", "65535"])
    });
    suite.test("cmdline_with_nul", || {
        let place = place()?;
        place.write(
            "m.json",
            r#"{"kernel": "kernel", "initrd": "initrd", "boot": "plain", "cmdline": "a\u0000b"}"#,
        )?;
        refused(&place, &["--config", "m.json"], &["command line", "NUL"])
    });
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    patched(good(), at, bytes)
}

fn cut(len: usize) -> Vec<u8> {
    let mut file = good();
    file.truncate(len);
    file
}

/// The note's header made into another segment at the first one's address.
fn overlapping() -> Vec<u8> {
    let second = changed(field::SECOND_KIND, &1_u32.to_le_bytes());
    patched(
        second,
        field::SECOND_KIND + 24,
        &u64::from(Payload::ENTRY).to_le_bytes(),
    )
}

/// A PE program that is no Linux kernel.
fn pe() -> Vec<u8> {
    let mut file = vec![0; 4096];
    file = patched(file, 0, b"MZ");
    patched(patched(file, 0x3c, &[0x80]), 0x80, b"PE\0\0d\x86")
}

/// The header of `Documentation/arch/arm64/booting.rst`.
fn aarch64_image() -> Vec<u8> {
    patched(pe(), 0x38, b"ARM\x64")
}

/// The setup header of `Documentation/arch/x86/boot.rst`, with a payload of `paragraphs`.
fn bzimage(paragraphs: u32) -> Vec<u8> {
    let mut file = vec![0; 8192];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &paragraphs.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa]),
        (0x200, &[0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x236, &[1, 0]),
        (0x238, &[0xff, 7, 0, 0]),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x10_0000_u32.to_le_bytes()),
    ] {
        file = patched(file, at, bytes);
    }
    file
}

fn old_bzimage() -> Vec<u8> {
    patched(bzimage(100), 0x206, &[0x00, 0x02])
}
