//! Byte streams as frames, so that the end of a stream is a message of its own.
//!
//! A virtio-serial port has no end of file that both sides can trust: a write returns before the
//! other side has read it, and a port that nobody has opened yet reads as empty. A frame is a
//! little-endian `u32` length and that many bytes; a frame of length 0 ends the stream.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Linux cuts each write to a port at 32 KiB; a frame with its header fits in one.
const FRAME: usize = 32 * 1024;
const HEADER: usize = 4;

/// Copies `from` until its end into frames on `to`, and ends the stream there.
///
/// A read error counts as the end: what was read before it still arrives. So does `stop`, which is
/// looked at after each read: `from` is then closed with the last piece unsent.
///
/// # Errors
/// When `to` cannot be written.
pub fn send(mut from: impl Read, mut to: impl Write, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; FRAME];
    loop {
        let length = match from.read(&mut buffer[HEADER..]) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let length = if stop.load(Ordering::Relaxed) {
            0
        } else {
            length
        };
        buffer[..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        to.write_all(&buffer[..HEADER + length])?;
        to.flush()?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Copies frames from `from` into `to` until the stream's end.
///
/// When `to` breaks (its reader left), `broken` is called once, and the rest is read and dropped, so
/// that the sender is not stuck.
///
/// # Errors
/// When `from` ends or fails before the stream's end.
pub fn receive(
    mut from: impl Read,
    mut to: impl Write,
    broken: impl FnOnce(io::Error),
) -> io::Result<()> {
    let mut broken = Some(broken);
    let mut payload = Vec::new();
    loop {
        read_frame(&mut from, &mut payload)?;
        if payload.is_empty() {
            return Ok(());
        }
        if broken.is_some()
            && let Err(error) = to.write_all(&payload).and_then(|()| to.flush())
            && let Some(report) = broken.take()
        {
            report(error);
        }
    }
}

/// Writes one frame.
///
/// # Errors
/// When `to` cannot be written, or `payload` is 4 GiB or larger.
pub fn write_frame(to: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(payload);
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one frame into `payload`, replacing what was there.
///
/// # Errors
/// When `from` fails or ends inside the frame.
pub fn read_frame(from: &mut impl Read, payload: &mut Vec<u8>) -> io::Result<()> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    payload.resize(u32::from_le_bytes(header) as usize, 0);
    from.read_exact(payload)
}

/// A port seen from inside the lab, where a read of nothing means 'not connected yet'.
#[derive(Debug)]
pub struct Port<T>(pub T);

impl<T: Read> Read for Port<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.0.read(buffer) {
                Ok(0) => thread::sleep(Duration::from_millis(1)),
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static GO: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_stream_arrives_whole_and_ends() {
        let data: Vec<u8> = (0..200_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut wire = Vec::new();
        send(data.as_slice(), &mut wire, &GO).unwrap();
        wire.extend_from_slice(b"what follows the end");
        let mut rest = wire.as_slice();
        let mut got = Vec::new();
        receive(&mut rest, &mut got, |_| panic!("not broken")).unwrap();
        assert_eq!(got, data);
        assert_eq!(rest, b"what follows the end");
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let mut wire = Vec::new();
        send(b"hello".as_slice(), &mut wire, &GO).unwrap();
        for length in 0..wire.len() {
            assert!(receive(&wire[..length], io::sink(), |_| ()).is_err());
        }
    }

    #[test]
    fn a_broken_reader_is_reported_once_and_the_stream_drained() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut wire = Vec::new();
        send(vec![1; 100_000].as_slice(), &mut wire, &GO).unwrap();
        let mut reports = 0;
        let mut rest = wire.as_slice();
        receive(&mut rest, Full, |_| reports += 1).unwrap();
        assert_eq!((reports, rest.len()), (1, 0));
    }
}
