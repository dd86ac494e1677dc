//! Streams that may be compressed, and may have only one reading in them.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// How much is looked at to tell what something is; a tar's first headers are within.
const HEAD: usize = 64 << 10;

/// What a stream's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed, as far as is known.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// One that is not read here, and the program that does.
    Other(&'static str),
}

/// A stream whose beginning has been read and will be read again.
pub struct Peeked<R> {
    head: Vec<u8>,
    rest: R,
}

/// What is left to read of a [`Peeked`].
pub type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

impl<R: Read> Peeked<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// What reading gave.
    pub fn new(mut rest: R) -> io::Result<Self> {
        let mut head = Vec::new();
        rest.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        Ok(Self { head, rest })
    }

    /// The beginning, decompressed as far as it goes.
    pub fn plain_head(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        if let Ok(reader) = decompress(Cursor::new(&self.head), self.compression()) {
            // It breaks off where the head does.
            let _ = reader.take(HEAD as u64).read_to_end(&mut plain);
        }
        plain
    }

    /// How it is compressed.
    pub fn compression(&self) -> Compression {
        match self.head.as_slice() {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Other("xz"),
            [b'B', b'Z', b'h', ..] => Compression::Other("bzip2"),
            [4, 0x22, 0x4d, 0x18, ..] => Compression::Other("lz4"),
            _ => Compression::None,
        }
    }

    /// All of it, as it came.
    pub fn whole(self) -> Whole<R> {
        Cursor::new(self.head).chain(self.rest)
    }
}

/// Decompresses a stream.
///
/// # Errors
/// If it is compressed in a way that is not read here.
pub fn decompress<'a>(
    stream: impl Read + Send + 'a,
    compression: Compression,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let buffered = || BufReader::with_capacity(HEAD, stream);
    Ok(match compression {
        Compression::None => Box::new(buffered()),
        Compression::Gzip => Box::new(MultiGzDecoder::new(buffered())),
        Compression::Zstd => Box::new(zstd(buffered())?),
        Compression::Other(_) => return Err(io::ErrorKind::Unsupported.into()),
    })
}

fn zstd<'a, R: BufRead + 'a>(stream: R) -> io::Result<zstd::Decoder<'a, R>> {
    let mut decoder = zstd::Decoder::with_buffer(stream)?;
    // 128 MiB, as the command line tool has it: a frame may not ask for more memory.
    decoder.window_log_max(27)?;
    Ok(decoder)
}
