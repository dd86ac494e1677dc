//! Layers of any bytes are refused with one line, or become an image with a superblock.

use std::io::Cursor;

use casita_images::archive::Archive;
use casita_images::erofs::{self, DataWriter};
use casita_images::layer::{AbsoluteNames, apply};
use casita_images::tree::Tree;

const MAX_SIZE: u64 = 1 << 20;

/// One input.
pub fn run(bytes: &[u8]) {
    // Two layers, cut where the first byte says: the second meets what the first has made.
    let Some((&cut, bytes)) = bytes.split_first() else {
        return;
    };
    let cut = (usize::from(cut) * 512).min(bytes.len());
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC);
    let mut writer = DataWriter::new(file.expect("a file in memory").into(), MAX_SIZE);
    let mut tree = Tree::new(1000);
    for layer in [&bytes[..cut], &bytes[cut..]] {
        let mut layer = layer.to_vec();
        mend(&mut layer);
        let applied = apply(
            &mut tree,
            &mut writer,
            Cursor::new(layer),
            AbsoluteNames::BelowRoot,
            &mut |_| (),
        );
        if let Err(error) = applied {
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
        tree.next_layer();
    }
    let (file, size) = erofs::finish(&tree, writer, [7; 16]).expect("what is accepted is written");
    assert!(size <= file.metadata().expect("a file in memory").len());
}

/// Gives every block that could be a header its checksum, for a fuzzer is long in finding one.
fn mend(layer: &mut [u8]) {
    let _ = Archive::new(&layer[..]).next_entry();
    for block in layer
        .chunks_exact_mut(512)
        .filter(|block| block[148..156] == *b"????????")
    {
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let sum = sum - 8 * u32::from(b'?') + 8 * u32::from(b' ');
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
