//! What a run's caller and the process that runs its VM say to each other, over one socket.
//!
//! The caller sends an [`Order`], then the archives and the standard input that the order announces,
//! each as [`Kind::Data`] and one [`Kind::End`]. The monitor sends [`Kind::Started`], output as it
//! comes, the files that are taken out as archives, and at last its [`Report`]; or
//! [`Kind::Refused`] and nothing more. Neither sends anything else, and neither trusts the other
//! with more memory than a frame takes.

use std::io::{self, ErrorKind, Read, Write};

use casita_net::EgressPolicy;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::result::{End, NotTaken, Usage};
use super::{ImageSource, Limits};
use crate::images::PullPolicy;

/// Raised with each change of what is sent.
pub(super) const PROTOCOL: u32 = 1;
/// The longest frame, in bytes.
pub(super) const MAX_FRAME: usize = 8 << 20;
/// Data are sent in parts of this size, in bytes.
pub(super) const PART: usize = 128 << 10;
/// A kind and a length (`u32`, little-endian).
const HEADER: usize = 5;

/// What a frame has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To the monitor: an [`Order`] in JSON.
    Order = 1,
    /// To the monitor: a part of an archive or of standard input.
    Data,
    /// To the monitor: the end of that.
    End,
    /// The command is about to start.
    Started,
    /// The command wrote this to its standard output.
    Stdout,
    /// The command wrote this to its standard error.
    Stderr,
    /// An archive of what is at this path comes next.
    Take,
    /// A part of it.
    Archive,
    /// Its end; why it is not whole, if it is not.
    TakeEnd,
    /// A [`Report`] in JSON.
    Report,
    /// Why there is no run: one line for people; empty if they have been told already.
    Refused,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Order,
        Self::Data,
        Self::End,
        Self::Started,
        Self::Stdout,
        Self::Stderr,
        Self::Take,
        Self::Archive,
        Self::TakeEnd,
        Self::Report,
        Self::Refused,
    ];
}

/// What a monitor is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// First, so that another version of it is told as such: [`PROTOCOL`].
    pub protocol: u32,
    pub image: ImageSource,
    pub pull: PullPolicy,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    /// Whether standard input is sent, after the archives.
    pub stdin: bool,
    /// The directories that the archives are unpacked in, in the order in which they are sent.
    pub archives: Vec<String>,
    pub take: Vec<String>,
    pub limits: Limits,
    pub egress: EgressPolicy,
    pub cpus: u8,
    pub kernel: Option<std::path::PathBuf>,
    pub check_kvm: bool,
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    pub end: End,
    /// Whether there was more standard output, and more standard error, than was sent.
    pub truncated: [bool; 2],
    pub not_taken: Vec<NotTaken>,
    pub usage: Usage,
}

/// Sends a frame.
pub(super) fn send(to: &mut impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).ok();
    let length = length.filter(|_| content.len() <= MAX_FRAME);
    let length = length.ok_or(ErrorKind::InvalidInput)?.to_le_bytes();
    let mut header = [0; HEADER];
    header[0] = kind as u8;
    header[1..].copy_from_slice(&length);
    to.write_all(&header)?;
    to.write_all(content)
}

/// Sends a value in JSON.
pub(super) fn send_json(to: &mut impl Write, kind: Kind, value: &impl Serialize) -> io::Result<()> {
    send(to, kind, &serde_json::to_vec(value)?)
}

/// Receives a frame into `content`; `None` at the end.
pub(super) fn receive(from: &mut impl Read, content: &mut Vec<u8>) -> io::Result<Option<Kind>> {
    content.clear();
    let mut header = [0; HEADER];
    match from.read(&mut header[..1]) {
        Ok(0) => return Ok(None),
        Ok(_) => from.read_exact(&mut header[1..])?,
        Err(error) if error.kind() == ErrorKind::Interrupted => return receive(from, content),
        Err(error) => return Err(error),
    }
    let wrong = || io::Error::from(ErrorKind::InvalidData);
    let mut kinds = Kind::ALL.into_iter();
    let kind = kinds
        .find(|kind| *kind as u8 == header[0])
        .ok_or_else(wrong)?;
    let [_, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(wrong());
    }
    // Memory is taken as bytes come.
    let got = from.take(length as u64).read_to_end(content)?;
    if got < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(kind))
}

/// The value that a frame has in JSON.
pub(super) fn json<T: DeserializeOwned>(content: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(content)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let mut bytes = Vec::new();
        for kind in Kind::ALL {
            send(&mut bytes, kind, &[kind as u8; 7]).unwrap();
        }
        let (mut from, mut content) = (bytes.as_slice(), Vec::new());
        for kind in Kind::ALL {
            assert_eq!(receive(&mut from, &mut content).unwrap(), Some(kind));
            assert_eq!(content, [kind as u8; 7]);
        }
        assert_eq!(receive(&mut from, &mut content).unwrap(), None);
        send(&mut bytes, Kind::Data, &vec![0; MAX_FRAME + 1]).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_refused(bytes: Vec<u8>) {
            let (mut from, mut content) = (bytes.as_slice(), Vec::new());
            while let Ok(Some(_)) = receive(&mut from, &mut content) {
                prop_assert!(content.len() <= bytes.len());
            }
        }
    }
}
