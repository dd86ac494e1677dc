//! PAX records (POSIX.1-2001): `LENGTH KEY=VALUE\n`, one after another. They replace what the
//! header says of the same entry.

use std::collections::BTreeMap;

use super::sparse::PaxSparse;
use super::{ArchiveError, MAX_XATTRS, Time, Xattr};

#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) sparse: PaxSparse,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names and values of all records, also of those that another one replaces.
    xattrs_len: usize,
}

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        // Some writers end the records with NULs.
        while bytes.first().is_some_and(|&byte| byte != 0) {
            let (key, value, rest) = record(bytes).ok_or(ArchiveError::Pax)?;
            pax.set(key, value)?;
            bytes = rest;
        }
        let len = |(name, value): (&Vec<u8>, &Vec<u8>)| name.len() + value.len();
        if pax.xattrs.iter().map(len).sum::<usize>() > MAX_XATTRS {
            return Err(ArchiveError::XattrsTooLarge);
        }
        Ok(pax)
    }

    /// Extended attributes, sorted by name.
    pub(super) fn xattrs(self) -> Vec<Xattr> {
        let pairs = self.xattrs.into_iter();
        pairs
            .map(|(name, value)| Xattr {
                name: name.into(),
                value: value.into(),
            })
            .collect()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.set_xattr(name.to_vec(), value.to_vec(), true)?;
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = decode_percent(name).ok_or(ArchiveError::Pax)?;
            let value = decode_base64(value).ok_or(ArchiveError::Pax)?;
            self.set_xattr(name, value, false)?;
        } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            self.sparse.set(key, value)?;
        } else {
            // An empty value takes the record back.
            let given = !value.is_empty();
            let number = || decimal(value).ok_or(ArchiveError::Pax);
            let id = || u32::try_from(number()?).map_err(|_| ArchiveError::Pax);
            match key {
                b"path" => self.path = given.then(|| value.to_vec()),
                b"linkpath" => self.link = given.then(|| value.to_vec()),
                b"size" => self.size = given.then(number).transpose()?,
                b"uid" => self.uid = given.then(id).transpose()?,
                b"gid" => self.gid = given.then(id).transpose()?,
                b"mtime" => {
                    let time = || decode_time(value).ok_or(ArchiveError::Pax);
                    self.mtime = given.then(time).transpose()?;
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// libarchive writes both forms; the other one can't have lost anything.
    fn set_xattr(
        &mut self,
        name: Vec<u8>,
        value: Vec<u8>,
        replace: bool,
    ) -> Result<(), ArchiveError> {
        self.xattrs_len += name.len() + value.len();
        if self.xattrs_len > 2 * MAX_XATTRS {
            return Err(ArchiveError::XattrsTooLarge);
        }
        if replace || !self.xattrs.contains_key(&name) {
            self.xattrs.insert(name, value);
        }
        Ok(())
    }
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(8).position(|&byte| byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..blank])?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let pair = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], rest))
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `-1.25` is a second and a quarter before 1970; digits after the ninth are dropped.
fn decode_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |value, at| {
        value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn decode_percent(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            decoded.push(*first);
            rest = after;
        }
    }
    Some(decoded)
}

/// Base 64, with or without its padding.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last + 1);
    let mut decoded = Vec::with_capacity(end * 3 / 4);
    for group in text[..end].chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        decoded.extend_from_slice(&bytes[1..group.len()]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_of(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len = body + len.to_string().len();
        }
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_are_cut_by_their_length() {
        let bytes = [
            record_of("path", b"a\nb=c"),
            record_of("SCHILY.xattr.security.capability", b"\x01\n\x00=\n"),
            record_of("mtime", b"-1.25"),
            record_of("uid", b"4294967295"),
            record_of("comment", b"9 x=y\n"),
        ]
        .concat();
        let pax = Pax::parse(&bytes).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb=c"[..]));
        assert_eq!(pax.uid, Some(u32::MAX));
        assert_eq!(
            pax.mtime,
            Some(Time {
                seconds: -2,
                nanoseconds: 750_000_000
            })
        );
        let xattrs = pax.xattrs();
        assert_eq!(&*xattrs[0].name, b"security.capability");
        assert_eq!(&*xattrs[0].value, b"\x01\n\x00=\n");
    }

    #[test]
    fn both_forms_of_attributes_are_read_and_the_plain_one_wins() {
        let bytes = [
            record_of("LIBARCHIVE.xattr.user.a%3d", b"AQID"),
            record_of("LIBARCHIVE.xattr.user.b", b"eA"),
            record_of("SCHILY.xattr.user.b", b"y"),
        ]
        .concat();
        let xattrs = Pax::parse(&bytes).unwrap().xattrs();
        assert_eq!(
            (&*xattrs[0].name, &*xattrs[0].value),
            (&b"user.a="[..], &[1u8, 2, 3][..])
        );
        assert_eq!(
            (&*xattrs[1].name, &*xattrs[1].value),
            (&b"user.b"[..], &b"y"[..])
        );
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        let pax = Pax::parse(&[record_of("path", b"a"), record_of("path", b"")].concat()).unwrap();
        assert_eq!(pax.path, None);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bad in [
            &b"x"[..],
            b"6 a=\n",
            b"99 a=b\n",
            b"7 a=bc\n7",
            b"6 abc\n",
            b"99999999999999999999 a=b\n",
            b"12 uid=-100\n",
            b"13 mtime=1.x\n",
            b"2 \n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn attributes_beyond_64_kib_are_refused() {
        let half = vec![b'x'; 33 << 10];
        let bytes = [
            record_of("SCHILY.xattr.user.a", &half),
            record_of("SCHILY.xattr.user.b", &half),
        ];
        assert!(matches!(
            Pax::parse(&bytes.concat()),
            Err(ArchiveError::XattrsTooLarge)
        ));
    }
}
