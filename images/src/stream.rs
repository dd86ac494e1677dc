//! Layers as a stream of tar bytes: one thread reads, decompresses and hashes, another applies.
//!
//! Blocks go from one to the other through a channel of a few, and come back empty, so memory is
//! bounded and no byte is copied between decompression and the place where it is written.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Small enough that a block is still in the cache when it is written.
const BLOCK: usize = 256 << 10;
/// How far the one thread may be ahead of the other.
const AHEAD: usize = 8;
const INPUT_BUFFER: usize = 128 << 10;

/// Why a layer's bytes can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Reading or decompressing failed.
    #[error("it can't be read: {0}")]
    Read(io::Error),
    /// It ends before its end.
    #[error("it is cut off")]
    Truncated,
    /// Compressed in a way that images never are.
    #[error("it is compressed by {0}; layers are plain, gzip or zstd")]
    Compression(&'static str),
    /// All layers together have more than the limit allows.
    #[error("it is too much: unpacked, the layers have more than {0} bytes (see --max-size)")]
    TooLarge(u64),
    /// The thread that should have sent more is gone.
    #[error("it can't be read: the thread that unpacks it has failed")]
    Gone,
}

enum Message {
    Data(Vec<u8>),
    /// A layer is complete, and this is its tar's digest.
    End(Digest),
    Failed(StreamError),
}

/// The layers' tars, one after another; as a reader, the present one.
pub struct LayerStream {
    messages: Option<Receiver<Message>>,
    empty: Sender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    /// The present layer's digest; there is no more of it.
    end: Option<Digest>,
    failed: Option<StreamError>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl LayerStream {
    /// Starts to read. `limit` is for the unpacked bytes of all together.
    pub fn start(readers: Vec<Box<dyn Read + Send>>, limit: u64) -> Self {
        let (sender, messages) = sync_channel(AHEAD);
        let (empty, returned) = channel();
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        let mut unpacker = Unpacker {
            sender,
            returned,
            left: limit,
            limit,
        };
        let run = move || {
            for reader in readers {
                let counted = Counted {
                    reader,
                    count: Arc::clone(&count),
                };
                if !unpacker.layer(counted) {
                    break;
                }
            }
        };
        // Without a thread the channel is closed, and the first read says so.
        let thread = std::thread::Builder::new()
            .name("unpack".into())
            .spawn(run)
            .ok();
        Self {
            messages: Some(messages),
            empty,
            block: Vec::new(),
            at: 0,
            end: None,
            failed: None,
            done,
            thread,
        }
    }

    /// How many bytes of the readers are read.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Goes on to the next layer, when the present one was read to its end. Returns the digest of
    /// that one's tar.
    ///
    /// # Errors
    /// If the rest of it can't be read.
    pub fn next_layer(&mut self) -> Result<Digest, StreamError> {
        loop {
            if let Some(digest) = self.end.take() {
                return Ok(digest);
            }
            match self.fill_buf().map(<[u8]>::len) {
                Ok(count) => self.consume(count),
                Err(_) => return Err(self.failed().unwrap_or(StreamError::Gone)),
            }
        }
    }

    /// Why reading failed, if it did.
    pub fn failed(&mut self) -> Option<StreamError> {
        self.failed.take()
    }

    /// Gets the next block. The reader's error is only a sign: `failed` has the cause.
    fn receive(&mut self) -> io::Result<()> {
        let message = self
            .messages
            .as_ref()
            .and_then(|messages| messages.recv().ok());
        match message {
            Some(Message::Data(block)) => {
                let read = std::mem::replace(&mut self.block, block);
                // Nobody takes it when all layers are unpacked.
                let _ = self.empty.send(read);
                self.at = 0;
            }
            Some(Message::End(digest)) => self.end = Some(digest),
            Some(Message::Failed(error)) => {
                self.failed = Some(error);
                return Err(io::ErrorKind::Other.into());
            }
            None => {
                self.failed = Some(StreamError::Gone);
                return Err(io::ErrorKind::Other.into());
            }
        }
        Ok(())
    }
}

impl Read for LayerStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for LayerStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.block.len() && self.end.is_none() {
            self.receive()?;
        }
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = self.block.len().min(self.at + count);
    }
}

impl Drop for LayerStream {
    fn drop(&mut self) {
        // A thread that has more to send sees that nobody listens.
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Counts what is read.
struct Counted {
    reader: Box<dyn Read + Send>,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// The other end, in its own thread.
struct Unpacker {
    sender: SyncSender<Message>,
    returned: Receiver<Vec<u8>>,
    left: u64,
    limit: u64,
}

impl Unpacker {
    /// Sends a layer; false if it is not worth going on.
    fn layer(&mut self, reader: Counted) -> bool {
        match self.unpack(reader) {
            Ok(Some(digest)) => self.sender.send(Message::End(digest)).is_ok(),
            Ok(None) => false,
            Err(error) => {
                let _ = self.sender.send(Message::Failed(error));
                false
            }
        }
    }

    /// The digest of the whole tar; none if nobody listens any more.
    fn unpack(&mut self, reader: Counted) -> Result<Option<Digest>, StreamError> {
        let mut tar = decompress(reader)?;
        let mut hash = Sha256::new();
        loop {
            let mut block = self.returned.try_recv().unwrap_or_default();
            block.resize(BLOCK, 0);
            let count = fill(&mut tar, &mut block).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => StreamError::Truncated,
                _ => StreamError::Read(error),
            })?;
            block.truncate(count);
            if count == 0 {
                return Ok(Some(Digest::from_bytes(hash.finalize().into())));
            }
            let left = self.left.checked_sub(count as u64);
            self.left = left.ok_or(StreamError::TooLarge(self.limit))?;
            hash.update(&block);
            if self.sender.send(Message::Data(block)).is_err() {
                return Ok(None);
            }
        }
    }
}

fn fill(reader: &mut dyn Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The tar inside, by the first bytes.
fn decompress(reader: Counted) -> Result<Box<dyn Read>, StreamError> {
    let mut reader = BufReader::with_capacity(INPUT_BUFFER, reader);
    let mut start = [0; 6];
    let count = fill(&mut reader, &mut start).map_err(StreamError::Read)?;
    // What was looked at is read again.
    let start = start[..count].to_vec();
    let again = io::Cursor::new(start.clone()).chain(reader);
    Ok(match start.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(again)),
        // A frame, or one to be skipped that stands before it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::with_buffer(again).map_err(StreamError::Read)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(StreamError::Compression("xz")),
        [b'B', b'Z', b'h', ..] => return Err(StreamError::Compression("bzip2")),
        _ => Box::new(again),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn stream(layers: &[Vec<u8>], limit: u64) -> LayerStream {
        let readers = layers
            .iter()
            .cloned()
            .map(|layer| Box::new(io::Cursor::new(layer)) as _);
        LayerStream::start(readers.collect(), limit)
    }

    #[test]
    fn each_compression_gives_the_same_tar_and_its_digest() {
        let tar: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7) as u8).collect();
        let two_members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
        let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
        let two_frames = [
            &zstd::encode_all(&tar[..9], 1).unwrap()[..],
            &zstd::encode_all(&tar[9..], 1).unwrap(),
        ]
        .concat();
        let layers = [
            tar.clone(),
            gzip(&tar),
            two_members,
            zstd,
            two_frames,
            Vec::new(),
        ];
        let mut stream = stream(&layers, u64::MAX);
        for _ in 0..5 {
            let mut read = Vec::new();
            stream.read_to_end(&mut read).unwrap();
            assert!(read == tar);
            assert_eq!(stream.next_layer().unwrap(), Digest::of(&tar));
        }
        // A layer needs not be read before the next one is asked for.
        assert_eq!(stream.next_layer().unwrap(), Digest::of(b""));
        assert_eq!(
            stream.done(),
            layers.iter().map(|layer| layer.len() as u64).sum::<u64>()
        );
    }

    fn refusal(layer: Vec<u8>, limit: u64) -> StreamError {
        stream(&[layer], limit).next_layer().unwrap_err()
    }

    #[test]
    fn bad_compression_is_refused_for_its_reason() {
        let tar = vec![7; 100_000];
        let mut cut = gzip(&tar);
        cut.truncate(cut.len() - 9);
        assert!(matches!(refusal(cut, u64::MAX), StreamError::Truncated));
        let mut cut = zstd::encode_all(tar.as_slice(), 1).unwrap();
        cut.truncate(cut.len() - 1);
        assert!(matches!(refusal(cut, u64::MAX), StreamError::Truncated));
        let mut wrong = gzip(&tar);
        let sum = wrong.len() - 8;
        wrong[sum] ^= 1;
        assert!(matches!(refusal(wrong, u64::MAX), StreamError::Read(_)));
        assert!(matches!(
            refusal(b"BZh91AY".to_vec(), 99),
            StreamError::Compression("bzip2")
        ));
        assert!(matches!(
            refusal(gzip(&tar), 99_999),
            StreamError::TooLarge(99_999)
        ));
    }

    #[test]
    fn a_stream_that_is_dropped_ends_its_thread() {
        let mut stream = stream(&[vec![1; 64 << 20]], u64::MAX);
        assert_eq!(stream.fill_buf().unwrap().len(), BLOCK);
        // Joins the thread, which waits in `send`.
        drop(stream);
    }
}
