//! What the relay asks of the lab, as one message.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The command to run and the world it expects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Working directory, absolute.
    pub directory: OsString,
    /// The folder that both sides share, absolute.
    pub share: OsString,
    /// The lab kernel's modules (the folder named after its release), absolute.
    pub modules: OsString,
    /// The command and its arguments; never empty.
    pub arguments: Vec<OsString>,
    /// `NAME=value` strings, as `/proc/PID/environ` holds them.
    pub environment: Vec<OsString>,
}

impl Request {
    /// The message's bytes: each string with its length, each list with its count, as little-endian `u32`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for string in [&self.directory, &self.share, &self.modules] {
            put(&mut bytes, string);
        }
        for list in [&self.arguments, &self.environment] {
            bytes.extend_from_slice(&(list.len() as u32).to_le_bytes());
            for string in list {
                put(&mut bytes, string);
            }
        }
        bytes
    }

    /// Reads what [`Request::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes end early.
    pub fn decode(mut bytes: &[u8]) -> io::Result<Self> {
        let bytes = &mut bytes;
        Ok(Self {
            directory: get(bytes)?,
            share: get(bytes)?,
            modules: get(bytes)?,
            arguments: get_list(bytes)?,
            environment: get_list(bytes)?,
        })
    }
}

fn put(bytes: &mut Vec<u8>, string: &OsStr) {
    bytes.extend_from_slice(&(string.len() as u32).to_le_bytes());
    bytes.extend_from_slice(string.as_bytes());
}

fn get_number(bytes: &mut &[u8]) -> io::Result<u32> {
    let mut number = [0; 4];
    bytes.read_exact(&mut number)?;
    Ok(u32::from_le_bytes(number))
}

fn get(bytes: &mut &[u8]) -> io::Result<OsString> {
    let length = get_number(bytes)? as usize;
    let (string, rest) = bytes
        .split_at_checked(length)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *bytes = rest;
    Ok(OsString::from_vec(string.to_vec()))
}

fn get_list(bytes: &mut &[u8]) -> io::Result<Vec<OsString>> {
    (0..get_number(bytes)?).map(|_| get(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let odd = OsString::from_vec(b"a b\n\"'\xff\x01".to_vec());
        Request {
            directory: "/somewhere".into(),
            share: odd.clone(),
            modules: "/m".into(),
            arguments: vec!["".into(), odd.clone(), "".into()],
            environment: vec![odd],
        }
    }

    #[test]
    fn every_byte_survives() {
        assert_eq!(Request::decode(&request().encode()).unwrap(), request());
    }

    #[test]
    fn a_cut_message_is_an_error() {
        let bytes = request().encode();
        for length in 0..bytes.len() {
            assert!(Request::decode(&bytes[..length]).is_err(), "{length}");
        }
    }
}
