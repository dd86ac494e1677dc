//! The 512 bytes before each entry: POSIX.1-1988 (ustar), and GNU's variant.

use super::{ArchiveError, Kind, Time};

pub(super) const BLOCK: usize = 512;

/// A header whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn check(bytes: &[u8; BLOCK]) -> Result<Self, ArchiveError> {
        let header = Self(*bytes);
        let told = header.number(148..156, "checksum")?;
        // The sum is taken with blanks in its own place. Old writers summed signed bytes.
        let counted = |at: &usize| !(148..156).contains(at);
        let others = (0..BLOCK).filter(counted).map(|at| bytes[at]);
        let blanks = 8 * i64::from(b' ');
        let unsigned = blanks + others.clone().map(i64::from).sum::<i64>();
        let signed = blanks
            + others
                .map(|byte| i64::from(byte.cast_signed()))
                .sum::<i64>();
        if told == unsigned || told == signed {
            Ok(header)
        } else {
            Err(ArchiveError::Checksum)
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.0[257..265] == *b"ustar  \0"
    }

    fn is_ustar(&self) -> bool {
        self.0[257..263] == *b"ustar\0"
    }

    /// What the entry is. Before ustar, directories were files whose names end with a slash.
    pub(super) fn kind(&self, path: &[u8]) -> Result<Kind, ArchiveError> {
        Ok(match self.type_flag() {
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'S' if self.is_gnu() => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(ArchiveError::Type(char::from(other))),
        })
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = self.text(345..500);
        if self.is_ustar() && !prefix.is_empty() {
            return [prefix, name].join(&b'/');
        }
        name.to_vec()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    /// Only the bits that belong to permissions; some writers add the file's type.
    pub(super) fn mode(&self) -> Result<u16, ArchiveError> {
        Ok((self.number(100..108, "mode")?.cast_unsigned() & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, ArchiveError> {
        self.id(108..116, "owner")
    }

    pub(super) fn gid(&self) -> Result<u32, ArchiveError> {
        self.id(116..124, "group")
    }

    pub(super) fn size(&self) -> Result<u64, ArchiveError> {
        self.unsigned(124..136, "size")
    }

    pub(super) fn mtime(&self) -> Result<Time, ArchiveError> {
        Ok(Time {
            seconds: self.number(136..148, "time")?,
            nanoseconds: 0,
        })
    }

    pub(super) fn device(&self) -> Result<(u32, u32), ArchiveError> {
        if !self.is_ustar() && !self.is_gnu() {
            return Err(ArchiveError::Field("device number"));
        }
        Ok((
            self.id(329..337, "device number")?,
            self.id(337..345, "device number")?,
        ))
    }

    /// GNU's real size of a sparse file, and whether the map goes on in another block.
    pub(super) fn sparse(&self) -> Result<(u64, bool), ArchiveError> {
        Ok((self.unsigned(483..495, "size")?, self.0[482] != 0))
    }

    /// The start of GNU's map: pairs of 12 digits.
    pub(super) fn sparse_map(&self) -> &[u8] {
        &self.0[386..482]
    }

    fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.0[range]
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default()
    }

    fn id(&self, range: std::ops::Range<usize>, what: &'static str) -> Result<u32, ArchiveError> {
        u32::try_from(self.number(range, what)?).map_err(|_| ArchiveError::Field(what))
    }

    fn unsigned(
        &self,
        range: std::ops::Range<usize>,
        what: &'static str,
    ) -> Result<u64, ArchiveError> {
        u64::try_from(self.number(range, what)?).map_err(|_| ArchiveError::Field(what))
    }

    fn number(
        &self,
        range: std::ops::Range<usize>,
        what: &'static str,
    ) -> Result<i64, ArchiveError> {
        number(&self.0[range]).ok_or(ArchiveError::Field(what))
    }
}

/// A number: octal digits, or in GNU's way the big-endian bytes themselves, marked by the first
/// one's highest bit. A field without digits is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        // The next bit is the sign.
        first @ 0x80.. => {
            let sign = first & 0x40 != 0;
            let mut value = if sign { -1i64 } else { 0 };
            let top = if sign { *first } else { first & 0x7f };
            for byte in std::iter::once(&top).chain(&field[1..]) {
                // What does not fit is no number that anything has.
                value = value.checked_mul(256)? | i64::from(*byte);
            }
            Some(value)
        }
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = field[start..].split(blank).next().unwrap_or_default();
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
            (b"\x80\0\x01\0\0\x01\x02\x03", Some(0x0000_0100_0001_0203)),
            (b"64x\0", None),
            (b"-1\0\0", None),
            (b"9\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
