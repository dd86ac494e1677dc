//! The kernel's command line.

use thiserror::Error;

use crate::layout::CMDLINE_AREA;

/// The longest command line, without its terminating zero, of a kernel that does not say its own
/// maximum: Linux's `COMMAND_LINE_SIZE` on x86 is 2048 with the zero.
pub const MAX_LEN: usize = 2047;

/// The longest command line that there is room for, whatever a kernel says.
const ROOM: usize = CMDLINE_AREA as usize - 1;

/// Why a command line was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// Longer than the kernel would read; it would silently lose the end.
    #[error("the kernel command line has {len} bytes, this kernel takes at most {max}")]
    TooLong {
        /// Its length in bytes, without the terminating zero.
        len: usize,
        /// The most that this kernel takes.
        max: usize,
    },
    /// A NUL would end the command line early.
    #[error("the kernel command line has a NUL byte at offset {offset}")]
    Nul {
        /// Where the first one is.
        offset: usize,
    },
}

/// A command line without NUL bytes, short enough for the room it has in guest memory.
///
/// The kernel's own maximum is checked by [`plan`](crate::plan()), once the kernel is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline(Vec<u8>);

impl Cmdline {
    /// A command line of these bytes. Anything but NUL is allowed, newlines too.
    ///
    /// # Errors
    /// If there is a NUL byte, or more than 65535 bytes.
    pub fn new(text: impl Into<Vec<u8>>) -> Result<Self, CmdlineError> {
        let mut line = Self::default();
        line.append(&text.into())?;
        Ok(line)
    }

    /// Adds one or more parameters, parted from what is there by a space.
    ///
    /// # Errors
    /// As [`Cmdline::new`]; the command line is then unchanged.
    pub fn push(&mut self, parameters: impl AsRef<[u8]>) -> Result<(), CmdlineError> {
        let parameters = parameters.as_ref();
        if self.is_empty() || parameters.is_empty() {
            return self.append(parameters);
        }
        let mut text = Vec::with_capacity(1 + parameters.len());
        text.push(b' ');
        text.extend_from_slice(parameters);
        self.append(&text)
    }

    fn append(&mut self, text: &[u8]) -> Result<(), CmdlineError> {
        if let Some(at) = text.iter().position(|byte| *byte == 0) {
            let offset = self.len() + at;
            return Err(CmdlineError::Nul { offset });
        }
        let len = self.len() + text.len();
        if len > ROOM {
            return Err(CmdlineError::TooLong { len, max: ROOM });
        }
        self.0.extend_from_slice(text);
        Ok(())
    }

    /// The text, without a terminating zero.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes, without a terminating zero.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes for guest memory, with the terminating zero, for a kernel that takes at most `max`
    /// bytes without it.
    ///
    /// # Errors
    /// If the text is longer than `max`.
    pub fn to_guest_bytes(&self, max: usize) -> Result<Vec<u8>, CmdlineError> {
        if self.len() > max {
            return Err(CmdlineError::TooLong {
                len: self.len(),
                max: max.min(ROOM),
            });
        }
        let mut bytes = Vec::with_capacity(self.len() + 1);
        bytes.extend_from_slice(&self.0);
        bytes.push(0);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_joined_by_one_space() {
        let mut line = Cmdline::default();
        line.push("").unwrap();
        line.push("console=ttyS0").unwrap();
        line.push("").unwrap();
        line.push("-- a\nb").unwrap();
        assert_eq!(line.as_bytes(), b"console=ttyS0 -- a\nb");
        assert_eq!(
            line.to_guest_bytes(MAX_LEN).unwrap(),
            b"console=ttyS0 -- a\nb\0"
        );
    }

    #[test]
    fn a_nul_is_refused_and_leaves_the_line_as_it_was() {
        let mut line = Cmdline::new("ab").unwrap();
        assert_eq!(line.push("c\0"), Err(CmdlineError::Nul { offset: 4 }));
        assert_eq!(line.as_bytes(), b"ab");
    }

    #[test]
    fn the_maximum_is_the_kernels_or_the_room_there_is() {
        let line = Cmdline::new(vec![b'x'; MAX_LEN]).unwrap();
        assert_eq!(line.to_guest_bytes(MAX_LEN).unwrap().len(), MAX_LEN + 1);
        let error = line.to_guest_bytes(MAX_LEN - 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel command line has 2047 bytes, this kernel takes at most 2046"
        );
        assert!(Cmdline::new(vec![b'x'; 65535]).is_ok());
        assert_eq!(
            Cmdline::new(vec![b'x'; 65536]),
            Err(CmdlineError::TooLong {
                len: 65536,
                max: 65535
            })
        );
    }
}
