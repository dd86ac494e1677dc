//! An archive of any bytes is refused, or each of its entries is one that could have been written.

use casita_agent::tar::{BLOCK, Reader, Step, end, header, padding};

/// One input.
pub fn run(bytes: &[u8]) {
    // A fuzzer is long in finding a checksum, so headers get the right one every other time.
    let (mend, mut rest) = match bytes.split_first() {
        Some((first, rest)) => (first & 1 == 1, rest),
        None => return,
    };
    let mut reader = Reader::default();
    while let Some((block, behind)) = rest.split_first_chunk::<BLOCK>() {
        rest = behind;
        let mut block = *block;
        if mend {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let Ok(step) = reader.block(&block) else { return };
        match step {
            Step::More => {}
            Step::End => return,
            Step::Entry(entry) => {
                let mut again = Vec::new();
                if header(&entry, &mut again).is_ok() {
                    end(&mut again);
                    let mut second = Reader::default();
                    let read = again.chunks_exact(BLOCK).find_map(|block| {
                        match second.block(block.try_into().expect("a block")) {
                            Ok(Step::More) => None,
                            step => Some(step),
                        }
                    });
                    assert_eq!(read, Some(Ok(Step::Entry(entry.clone()))));
                }
                let len = usize::try_from(entry.size).unwrap_or(usize::MAX);
                rest = rest
                    .get(len.saturating_add(padding(entry.size))..)
                    .unwrap_or_default();
            }
        }
    }
}
