//! How a program of the host's says which port of the guest it wants: it sends `CONNECT <port>`
//! and a newline, and gets `OK <host's port>` and a newline when the guest has accepted.

#![deny(clippy::indexing_slicing)]

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags, recv, send};

/// The longest line, with its newline.
const MAX_LINE: usize = 32;

/// What came of the line so far.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    line: Vec<u8>,
}

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// It sent something else.
    #[error("a client did not send 'CONNECT <port>'")]
    NoConnect,
    /// It hung up, or its socket failed.
    #[error("a client's socket failed")]
    Socket(#[from] io::Error),
}

impl Handshake {
    /// Reads what there is of the line and not a byte of what follows it. Some(port) once it is
    /// whole.
    pub fn read(&mut self, stream: &UnixStream) -> Result<Option<u32>, HandshakeError> {
        let mut ahead = [0; MAX_LINE];
        let flags = RecvFlags::DONTWAIT;
        let seen = match recv(stream, &mut ahead, flags | RecvFlags::PEEK) {
            Ok((seen, _)) => seen,
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(HandshakeError::Socket(error.into())),
        };
        if seen == 0 {
            return Err(HandshakeError::Socket(io::ErrorKind::UnexpectedEof.into()));
        }
        let newline = ahead.iter().take(seen).position(|byte| *byte == b'\n');
        let len = newline.map_or(seen, |at| at + 1);
        let part = ahead.get_mut(..len).unwrap_or_default();
        let (taken, _) = recv(stream, &mut *part, flags).map_err(io::Error::from)?;
        self.line.extend(part.iter().take(taken));
        if self.line.len() > MAX_LINE {
            return Err(HandshakeError::NoConnect);
        }
        match newline {
            None => Ok(None),
            Some(_) => parse(&self.line).map(Some),
        }
    }
}

fn parse(line: &[u8]) -> Result<u32, HandshakeError> {
    let text = std::str::from_utf8(line).map_err(|_| HandshakeError::NoConnect)?;
    let port = text.trim_end().strip_prefix("CONNECT ");
    let port = port.and_then(|port| port.parse().ok());
    port.ok_or(HandshakeError::NoConnect)
}

/// Answers a client. Its socket is new, so the line always fits.
pub(super) fn accept(stream: &UnixStream, host_port: u32) -> io::Result<()> {
    let line = format!("OK {host_port}\n");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = send(stream, line.as_bytes(), flags)?;
    if sent == line.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn line_arrives_in_pieces_and_what_follows_stays() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::default();
        assert_eq!(handshake.read(&ours).unwrap(), None);
        client.write_all(b"CONN").unwrap();
        assert_eq!(handshake.read(&ours).unwrap(), None);
        client.write_all(b"ECT 1024\nhello").unwrap();
        assert_eq!(handshake.read(&ours).unwrap(), Some(1024));
        let mut rest = [0; 5];
        (&ours).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"CONNECT\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"\xff\n",
            &[b'x'; MAX_LINE + 1],
        ] {
            let (ours, mut client) = UnixStream::pair().unwrap();
            client.write_all(line).unwrap();
            let mut handshake = Handshake::default();
            let first = handshake.read(&ours);
            let result =
                first.and_then(|port| port.map_or_else(|| handshake.read(&ours), |p| Ok(Some(p))));
            assert!(
                matches!(result, Err(HandshakeError::NoConnect)),
                "{line:?}: {result:?}"
            );
        }
    }

    #[test]
    fn hang_up_ends_it() {
        let (ours, client) = UnixStream::pair().unwrap();
        drop(client);
        let result = Handshake::default().read(&ours);
        assert!(matches!(result, Err(HandshakeError::Socket(_))));
    }
}
