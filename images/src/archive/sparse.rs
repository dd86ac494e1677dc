//! Sparse files: GNU's own entry type, and the three forms in which GNU tar writes them as PAX.

use std::io::BufRead;

use super::header::{BLOCK, Header, number};
use super::pax::{Pax, decimal};
use super::{Archive, ArchiveError};

/// Of one file. Its data would have to lie in shreds of 8 KiB each to have more in 1 GiB.
const MAX_EXTENTS: usize = 1 << 17;

/// Where a sparse file has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// From here.
    pub offset: u64,
    /// So many bytes.
    pub len: u64,
}

/// What PAX records say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Version 1.0, whose map stands before the data.
    map_in_data: bool,
    map: Vec<u64>,
}

impl PaxSparse {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        let number = || decimal(value).ok_or(ArchiveError::Sparse);
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.map_in_data = number()? == 1,
            // Version 0.0 repeats these two.
            b"offset" | b"numbytes" => self.map.push(number()?),
            b"map" => {
                let numbers = value.split(|&byte| byte == b',');
                self.map = numbers
                    .map(|digits| decimal(digits).ok_or(ArchiveError::Sparse))
                    .collect::<Result<_, _>>()?;
            }
            _ => (),
        }
        if self.map.len() > 2 * MAX_EXTENTS {
            return Err(ArchiveError::Sparse);
        }
        Ok(())
    }
}

impl<R: BufRead> Archive<R> {
    /// A file's real size, and its map if it is sparse. `stored` are its bytes in the archive.
    pub(super) fn sparse(
        &mut self,
        header: &Header,
        pax: &mut Pax,
        stored: u64,
    ) -> Result<(u64, Option<Vec<Extent>>), ArchiveError> {
        let (size, map) = if header.type_flag() == b'S' {
            self.gnu_map(header)?
        } else if let Some(size) = pax.sparse.size {
            let map = if pax.sparse.map_in_data {
                self.map_in_data()?
            } else {
                std::mem::take(&mut pax.sparse.map)
            };
            (size, map)
        } else {
            return Ok((stored, None));
        };
        let extents = check(&map, size, self.data)?;
        Ok((size, Some(extents)))
    }

    /// The map begins in the header and goes on in blocks that don't count as data.
    fn gnu_map(&mut self, header: &Header) -> Result<(u64, Vec<u64>), ArchiveError> {
        let (size, mut more) = header.sparse()?;
        let mut map = Vec::new();
        let mut add = |fields: &[u8]| -> Result<(), ArchiveError> {
            for pair in fields.chunks_exact(24).filter(|pair| pair[0] != 0) {
                for field in pair.chunks_exact(12) {
                    let value = number(field).and_then(|value| u64::try_from(value).ok());
                    map.push(value.ok_or(ArchiveError::Sparse)?);
                }
            }
            if map.len() > 2 * MAX_EXTENTS {
                Err(ArchiveError::Sparse)
            } else {
                Ok(())
            }
        };
        add(header.sparse_map())?;
        // A chain of empty blocks would never fill the map.
        let mut blocks = 0;
        while more {
            let block = self.block()?.ok_or(ArchiveError::Truncated)?;
            add(&block[..504])?;
            more = block[504] != 0;
            blocks += 1;
            if blocks > MAX_EXTENTS {
                return Err(ArchiveError::Sparse);
            }
        }
        Ok((size, map))
    }

    /// Decimal numbers, one a line, how many pairs first; the data begins at the next block.
    fn map_in_data(&mut self) -> Result<Vec<u64>, ArchiveError> {
        let (mut numbers, mut value, mut expected) = (Vec::new(), None, 1);
        while numbers.len() < expected {
            if self.data < BLOCK as u64 {
                return Err(ArchiveError::Sparse);
            }
            for byte in self.take(BLOCK as u64)? {
                match byte {
                    b'\n' if numbers.len() < expected => {
                        let number = value.take().ok_or(ArchiveError::Sparse)?;
                        if numbers.is_empty() {
                            let pairs = usize::try_from(number).ok();
                            let pairs = pairs.filter(|&pairs| pairs <= MAX_EXTENTS);
                            expected = 1 + 2 * pairs.ok_or(ArchiveError::Sparse)?;
                        }
                        numbers.push(number);
                    }
                    b'0'..=b'9' => {
                        let digit = u64::from(byte - b'0');
                        let times_ten = value.unwrap_or(0u64).checked_mul(10);
                        let sum = times_ten.and_then(|value| value.checked_add(digit));
                        value = Some(sum.ok_or(ArchiveError::Sparse)?);
                    }
                    _ if numbers.len() == expected => (),
                    _ => return Err(ArchiveError::Sparse),
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

/// The map in order, within the file, and of exactly the data that is there.
fn check(map: &[u64], size: u64, stored: u64) -> Result<Vec<Extent>, ArchiveError> {
    if !map.len().is_multiple_of(2) || size > i64::MAX as u64 {
        return Err(ArchiveError::Sparse);
    }
    let (mut end, mut data) = (0, 0u64);
    let mut extents = Vec::with_capacity(map.len() / 2);
    for pair in map.chunks_exact(2) {
        let (offset, len) = (pair[0], pair[1]);
        let last = offset.checked_add(len).filter(|&last| last <= size);
        let last = last.filter(|_| offset >= end).ok_or(ArchiveError::Sparse)?;
        (end, data) = (last, data + len);
        if len > 0 {
            extents.push(Extent { offset, len });
        }
    }
    if data == stored {
        Ok(extents)
    } else {
        Err(ArchiveError::Sparse)
    }
}
