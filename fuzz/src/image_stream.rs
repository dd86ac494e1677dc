//! A compressed layer of any bytes: no more comes out than the limit, and it ends.

use std::io::{Cursor, Read};

use casita_images::stream::LayerStream;

const LIMIT: u64 = 1 << 20;

/// The first byte says how many magic bytes to put in front, and of what.
pub fn run(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    let magic: &[u8] = match kind % 3 {
        0 => &[],
        1 => &[0x1f, 0x8b, 8],
        _ => &[0x28, 0xb5, 0x2f, 0xfd],
    };
    let layer = [magic, bytes].concat();
    let layers: Vec<Box<dyn Read + Send>> = vec![
        Box::new(Cursor::new(layer.clone())),
        Box::new(Cursor::new(layer)),
    ];
    let mut stream = LayerStream::start(layers, LIMIT);
    let mut total = 0;
    let mut buffer = [0; 4096];
    for _ in 0..2 {
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            total += count as u64;
            assert!(total <= LIMIT);
        }
        if stream.next_layer().is_err() {
            return;
        }
    }
}
