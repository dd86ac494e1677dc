//! Reading a tar: ustar, PAX, and GNU's extensions, as a stream, within bounds.
//!
//! This is a reader of our own because layers are hostile and large: long names and PAX records
//! are bounded before they are read, records are cut by their length (attributes hold any bytes,
//! line feeds too), every form of sparse file is known, and data is handed over in the buffers that
//! it was decompressed into.

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead, Read as _};

use header::{BLOCK, Header};
use pax::Pax;
pub use sparse::Extent;

/// Of a long name, a long link, or the PAX records of one entry.
const MAX_EXTENSION: u64 = 1 << 20;
/// Linux's own limit of what an inode's attributes may have together, names and values.
const MAX_XATTRS: usize = 64 << 10;

/// A time: seconds since 1970, and nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Seconds; before 1970 they are negative.
    pub seconds: i64,
    /// Nanoseconds, less than a second, later than `seconds`.
    pub nanoseconds: u32,
}

/// An extended attribute: its name, as in `user.x`, and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Its name with its prefix.
    pub name: Box<[u8]>,
    /// Its value.
    pub value: Box<[u8]>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with data.
    File,
    /// Another name of the file at `link`.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry of the archive, checked no further than its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name, as it stands there.
    pub path: Vec<u8>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// The lower 12 bits of the mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last changed.
    pub mtime: Time,
    /// A device's major and minor numbers.
    pub device: (u32, u32),
    /// A file's length, holes included.
    pub size: u64,
    /// Where a sparse file has data.
    pub extents: Option<Vec<Extent>>,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its bytes can't be had.
    #[error(transparent)]
    Read(io::Error),
    /// It stops in the middle.
    #[error("the archive is cut off")]
    Truncated,
    /// No tar, or a damaged one.
    #[error("this is no tar archive, or a damaged one (wrong header checksum)")]
    Checksum,
    /// An empty header with more behind it.
    #[error("the archive is damaged (an empty header in its middle)")]
    EmptyHeader,
    /// A field.
    #[error("the header's {0} is not valid")]
    Field(&'static str),
    /// A type that has no meaning here.
    #[error("entries of type {0:?} are not supported")]
    Type(char),
    /// A long name, or PAX records.
    #[error("the {what} has {size} bytes; at most 1 MiB are accepted")]
    ExtensionTooLarge {
        /// Which extension.
        what: &'static str,
        /// Its size.
        size: u64,
    },
    /// PAX records.
    #[error("the PAX header is not valid")]
    Pax,
    /// The map of a sparse file.
    #[error("the map of the sparse file is not valid")]
    Sparse,
    /// Attributes.
    #[error("the extended attributes have more than 64 KiB")]
    XattrsTooLarge,
}

fn read_error(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
        _ => ArchiveError::Read(error),
    }
}

/// Who takes a file's data, in order.
pub trait Sink {
    /// Why it can't.
    type Error: From<ArchiveError>;

    /// The next bytes.
    ///
    /// # Errors
    /// If they can't be taken; then the copy ends.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// The next bytes are so many zeroes.
    ///
    /// # Errors
    /// As for data.
    fn hole(&mut self, len: u64) -> Result<(), Self::Error>;
}

/// A tar that is being read.
pub struct Archive<R> {
    input: R,
    /// Data of the present entry that nobody has read yet.
    data: u64,
    /// What follows it up to the next header.
    padding: u64,
}

impl<R: BufRead> Archive<R> {
    /// Reads this.
    pub fn new(input: R) -> Self {
        Self {
            input,
            data: 0,
            padding: 0,
        }
    }

    /// What it is read from.
    pub fn input(&self) -> &R {
        &self.input
    }

    /// The next entry; none at the end of the archive. Data of the one before it is skipped.
    ///
    /// # Errors
    /// If the archive can't be read or is damaged.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut pax = Pax::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let Some(header) = self.next_header()? else {
                return Ok(None);
            };
            match header.type_flag() {
                b'x' | b'X' => pax = Pax::parse(&self.extension(&header, "PAX header")?)?,
                // Docker's engines have never heeded these; git writes a comment into one.
                b'g' => drop(self.extension(&header, "global PAX header")?),
                b'L' => long_path = Some(until_nul(self.extension(&header, "long name")?)),
                b'K' => long_link = Some(until_nul(self.extension(&header, "long link name")?)),
                // A volume's label.
                b'V' => self.set_data(header.size()?)?,
                _ => return self.entry(&header, pax, long_path, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        mut pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ArchiveError> {
        let path = match (pax.sparse.name.take(), pax.path.take(), long_path) {
            (Some(path), ..) | (_, Some(path), _) | (_, _, Some(path)) => path,
            _ => header.path(),
        };
        let kind = header.kind(&path)?;
        // Links, devices and directories have no data, whatever their size says.
        let stored = match kind {
            Kind::File => pax.size.map_or_else(|| header.size(), Ok)?,
            _ => 0,
        };
        self.set_data(stored)?;
        let (size, extents) = match kind {
            Kind::File => self.sparse(header, &mut pax, stored)?,
            _ => (0, None),
        };
        Ok(Entry {
            kind,
            path,
            link: pax
                .link
                .take()
                .or(long_link)
                .unwrap_or_else(|| header.link()),
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
            device: match kind {
                Kind::Char | Kind::Block => header.device()?,
                _ => (0, 0),
            },
            size,
            extents,
            xattrs: pax.xattrs(),
        })
    }

    /// Hands the present entry's data over.
    ///
    /// # Errors
    /// If the archive ends before, or the sink does not take it.
    pub fn copy<S: Sink>(&mut self, entry: &Entry, sink: &mut S) -> Result<(), S::Error> {
        let whole = [Extent {
            offset: 0,
            len: entry.size,
        }];
        let extents = entry.extents.as_deref().unwrap_or(&whole);
        let mut at = 0;
        for extent in extents {
            if extent.offset > at {
                sink.hole(extent.offset - at)?;
            }
            self.copy_data(extent.len, sink)?;
            at = extent.offset + extent.len;
        }
        if entry.size > at {
            sink.hole(entry.size - at)?;
        }
        Ok(())
    }

    fn copy_data<S: Sink>(&mut self, mut len: u64, sink: &mut S) -> Result<(), S::Error> {
        while len > 0 {
            let bytes = match self.input.fill_buf() {
                Ok([]) => return Err(ArchiveError::Truncated.into()),
                Ok(bytes) => bytes,
                Err(error) => return Err(read_error(error).into()),
            };
            let count = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            sink.data(&bytes[..count])?;
            self.input.consume(count);
            self.data -= count as u64;
            len -= count as u64;
        }
        Ok(())
    }

    /// Reads on to the end of the input, past what follows the archive.
    ///
    /// # Errors
    /// If the input can't be read.
    pub fn drain(mut self) -> Result<R, ArchiveError> {
        loop {
            let count = self.input.fill_buf().map_err(read_error)?.len();
            if count == 0 {
                return Ok(self.input);
            }
            self.input.consume(count);
        }
    }

    fn next_header(&mut self) -> Result<Option<Header>, ArchiveError> {
        self.skip(self.data)?;
        // `umoci insert` writes nothing behind the last byte of data; the layer's digest tells
        // whether anything is missing.
        if self.padding > 0 && self.input.fill_buf().map_err(read_error)?.is_empty() {
            return Ok(None);
        }
        self.skip(self.padding)?;
        (self.data, self.padding) = (0, 0);
        let Some(header) = self.block()? else {
            return Ok(None);
        };
        if header.iter().any(|&byte| byte != 0) {
            return Header::check(&header).map(Some);
        }
        // Two empty blocks end an archive, and some writers leave out the second.
        match self.block()? {
            Some(second) if second.iter().any(|&byte| byte != 0) => Err(ArchiveError::EmptyHeader),
            _ => Ok(None),
        }
    }

    /// The next block; none if the input ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        if self.input.fill_buf().map_err(read_error)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(read_error)?;
        Ok(Some(block))
    }

    fn set_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        // No sum with a size may overflow later.
        if size > i64::MAX as u64 {
            return Err(ArchiveError::Field("size"));
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip(&mut self, mut len: u64) -> Result<(), ArchiveError> {
        while len > 0 {
            let count = self.input.fill_buf().map_err(read_error)?.len();
            if count == 0 {
                return Err(ArchiveError::Truncated);
            }
            let count = count.min(usize::try_from(len).unwrap_or(usize::MAX));
            self.input.consume(count);
            len -= count as u64;
        }
        Ok(())
    }

    /// Reads an extension whole.
    fn extension(&mut self, header: &Header, what: &'static str) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size()?;
        if size > MAX_EXTENSION {
            return Err(ArchiveError::ExtensionTooLarge { what, size });
        }
        self.set_data(size)?;
        self.take(size)
    }

    /// Reads so many of the present entry's bytes.
    fn take(&mut self, len: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        let got = (&mut self.input).take(len).read_to_end(&mut bytes);
        if got.map_err(read_error)? as u64 != len {
            return Err(ArchiveError::Truncated);
        }
        self.data -= len;
        Ok(bytes)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(nul);
    }
    bytes
}
