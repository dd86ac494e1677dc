//! A driver's request, copied out of guest memory once, checked, and never read there again.
//!
//! virtio 1.2 lets a driver cut a request into descriptors as it likes (section 2.7.4.1), so
//! nothing here asks where one descriptor ends: the header is the first 16 readable bytes, the
//! status is the last writable byte, and the data is what lies between.

use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{
    F_DISCARD, F_WRITE_ZEROES, HEADER_LEN, Header, MAX_DISCARD_SECTORS, MAX_RANGES,
    MAX_WRITE_ZEROES_SECTORS, RANGE_FLAG_UNMAP, RANGE_LEN, SECTOR_SHIFT, SECTOR_SIZE, Status,
    TYPE_DISCARD, TYPE_FLUSH, TYPE_GET_ID, TYPE_IN, TYPE_OUT, TYPE_WRITE_ZEROES, WireRange,
};
use crate::virtio::chain::Chain;

/// Bytes of the status that ends a request.
pub const STATUS_LEN: u32 = 1;

/// What a request is checked against. Fixed while the device is active.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Capacity in sectors of 512 bytes.
    pub capacity: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// The feature bits that driver and device agreed on.
    pub features: u64,
}

/// A checked range of bytes on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The blocks under the range may be given back.
    pub unmap: bool,
}

/// A request that may be carried out: it lies within the disk, and the device allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes at `offset` into the start of the writable part.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Length in bytes, a multiple of 512.
        len: u32,
    },
    /// Write `len` bytes, which follow the header, at `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Length in bytes, a multiple of 512.
        len: u32,
    },
    /// Make all completed writes durable.
    Flush,
    /// Copy the serial number into the writable part, which has room for `len` bytes.
    GetId {
        /// Length of the driver's buffer in bytes.
        len: u32,
    },
    /// Give back the ranges' blocks.
    Discard(Vec<Range>),
    /// Make the ranges read as zeroes.
    WriteZeroes(Vec<Range>),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// There is nowhere to write the status.
    #[error("request without a writable status byte")]
    NoStatus,
    /// The header is cut off.
    #[error("request header has {0} bytes instead of {HEADER_LEN}")]
    ShortHeader(u32),
    /// The chain's memory could not be read.
    #[error("request cannot be read from guest memory: {0}")]
    Memory(String),
    /// The device does not serve this type, or the driver did not negotiate it.
    #[error("request type {0} is not supported")]
    UnsupportedType(u32),
    /// The disk is read-only.
    #[error("request type {0} on a read-only disk")]
    ReadOnly(u32),
    /// Data does not consist of whole sectors.
    #[error("data length {0} is not a multiple of {SECTOR_SIZE} bytes")]
    Unaligned(u32),
    /// The request lies outside of the disk.
    #[error("sector {sector}, {len} bytes, is beyond the disk's {capacity} sectors")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Length in bytes.
        len: u64,
        /// The disk's capacity in sectors.
        capacity: u64,
    },
    /// The list of ranges has an odd length, is empty or too long.
    #[error("{0} bytes of ranges instead of 1 to {MAX_RANGES} times {RANGE_LEN}")]
    RangeList(u32),
    /// A range is longer than the device said that it may be.
    #[error("a range of {len} sectors, the limit is {limit}")]
    LongRange {
        /// Length in sectors.
        len: u32,
        /// The limit in sectors.
        limit: u32,
    },
    /// A range has flags that its request type does not know.
    #[error("range flags {0:#x} are not supported")]
    RangeFlags(u32),
}

impl RequestError {
    /// The status that tells the driver, where there is room for one.
    pub fn status(&self) -> Status {
        match self {
            Self::UnsupportedType(_) | Self::RangeFlags(_) => Status::Unsupported,
            _ => Status::IoErr,
        }
    }
}

impl Request {
    /// Copies the request in `chain` from guest memory and checks it.
    ///
    /// # Errors
    /// Returns why the request must not be carried out.
    pub fn read(
        chain: &Chain,
        memory: &GuestMemoryMmap,
        limits: &Limits,
    ) -> Result<Self, RequestError> {
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        check_frame(readable, writable)?;
        let mut header = Header::default();
        chain
            .read_exact(memory, 0, header.as_mut_bytes())
            .map_err(|error| RequestError::Memory(error.to_string()))?;
        Self::parse(&header, readable, writable, limits, |ranges| {
            chain
                .read_exact(memory, HEADER_LEN, ranges)
                .map_err(|error| RequestError::Memory(error.to_string()))
        })
    }

    /// Checks a request whose header has been copied. `readable` and `writable` are the lengths of
    /// the chain's parts in bytes; `read_ranges` fills a buffer with the data after the header.
    ///
    /// # Errors
    /// Returns why the request must not be carried out.
    pub fn parse(
        header: &Header,
        readable: u32,
        writable: u32,
        limits: &Limits,
        read_ranges: impl FnOnce(&mut [u8]) -> Result<(), RequestError>,
    ) -> Result<Self, RequestError> {
        check_frame(readable, writable)?;
        let data_out = readable - HEADER_LEN;
        let data_in = writable - STATUS_LEN;
        let sector = header.sector.get();
        let kind = header.kind.get();
        if limits.read_only && matches!(kind, TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES) {
            return Err(RequestError::ReadOnly(kind));
        }
        match kind {
            TYPE_IN => Ok(Self::Read {
                offset: limits.data_offset(sector, data_in)?,
                len: data_in,
            }),
            TYPE_OUT => Ok(Self::Write {
                offset: limits.data_offset(sector, data_out)?,
                len: data_out,
            }),
            TYPE_FLUSH => Ok(Self::Flush),
            TYPE_GET_ID => Ok(Self::GetId { len: data_in }),
            TYPE_DISCARD if limits.features & F_DISCARD != 0 => limits
                .ranges(kind, data_out, read_ranges)
                .map(Self::Discard),
            TYPE_WRITE_ZEROES if limits.features & F_WRITE_ZEROES != 0 => limits
                .ranges(kind, data_out, read_ranges)
                .map(Self::WriteZeroes),
            _ => Err(RequestError::UnsupportedType(kind)),
        }
    }
}

fn check_frame(readable: u32, writable: u32) -> Result<(), RequestError> {
    if writable < STATUS_LEN {
        return Err(RequestError::NoStatus);
    }
    if readable < HEADER_LEN {
        return Err(RequestError::ShortHeader(readable));
    }
    Ok(())
}

impl Limits {
    /// The byte offset of `len` bytes at `sector`, which must lie within the disk.
    fn data_offset(&self, sector: u64, len: u32) -> Result<u64, RequestError> {
        if !u64::from(len).is_multiple_of(SECTOR_SIZE) {
            return Err(RequestError::Unaligned(len));
        }
        self.byte_offset(sector, u64::from(len) >> SECTOR_SHIFT)
    }

    fn byte_offset(&self, sector: u64, sectors: u64) -> Result<u64, RequestError> {
        match sector.checked_add(sectors) {
            // The capacity is a file's length in sectors, so the product stays below 2^64.
            Some(end) if end <= self.capacity => Ok(sector << SECTOR_SHIFT),
            _ => Err(RequestError::OutOfRange {
                sector,
                len: sectors.saturating_mul(SECTOR_SIZE),
                capacity: self.capacity,
            }),
        }
    }

    fn ranges(
        &self,
        kind: u32,
        len: u32,
        read: impl FnOnce(&mut [u8]) -> Result<(), RequestError>,
    ) -> Result<Vec<Range>, RequestError> {
        let count = len / RANGE_LEN;
        if !len.is_multiple_of(RANGE_LEN) || count == 0 || count > MAX_RANGES {
            return Err(RequestError::RangeList(len));
        }
        let mut wire = [WireRange::default(); MAX_RANGES as usize];
        let wire = wire
            .get_mut(..count as usize)
            .ok_or(RequestError::RangeList(len))?;
        read(wire.as_mut_bytes())?;
        let ranges = wire.iter().map(|range| self.range(kind, range));
        // Empty ranges are legal and leave nothing to do.
        ranges
            .filter(|range| !range.as_ref().is_ok_and(|range| range.len == 0))
            .collect()
    }

    fn range(&self, kind: u32, wire: &WireRange) -> Result<Range, RequestError> {
        let (sectors, flags) = (wire.sectors.get(), wire.flags.get());
        // Section 5.2.6.2: a discard with the unmap flag is unsupported, as is any unknown flag.
        let (limit, known) = match kind {
            TYPE_DISCARD => (MAX_DISCARD_SECTORS, 0),
            _ => (MAX_WRITE_ZEROES_SECTORS, RANGE_FLAG_UNMAP),
        };
        if flags & !known != 0 {
            return Err(RequestError::RangeFlags(flags));
        }
        if sectors > limit {
            return Err(RequestError::LongRange {
                len: sectors,
                limit,
            });
        }
        Ok(Range {
            offset: self.byte_offset(wire.sector.get(), u64::from(sectors))?,
            len: u64::from(sectors) << SECTOR_SHIFT,
            unmap: kind == TYPE_DISCARD || flags & RANGE_FLAG_UNMAP != 0,
        })
    }
}

/// Checks one request from raw bytes: the first 16 are the header, the rest the data that follows
/// it. For tests and fuzzing; a device reads chains.
///
/// # Errors
/// Returns why the request must not be carried out.
pub fn parse_bytes(
    readable: &[u8],
    writable: u32,
    limits: &Limits,
) -> Result<Request, RequestError> {
    let len = u32::try_from(readable.len()).unwrap_or(u32::MAX);
    let (header, rest) =
        Header::read_from_prefix(readable).map_err(|_| RequestError::ShortHeader(len))?;
    Request::parse(&header, len, writable, limits, |ranges| {
        match rest.get(..ranges.len()) {
            Some(bytes) => {
                ranges.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(RequestError::RangeList(len)),
        }
    })
}

#[cfg(test)]
mod tests;
