//! Headers as archives have them.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::{BLOCK, Entry, Kind, MAX_EXTENSION, MAX_PATH, TarError, Time, number, pax};

/// What a block was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A part of what describes the next entry.
    More,
    /// The end of what describes this entry. Its content comes next, [`Entry::size`] bytes and
    /// [`super::padding`], and only then the next block for [`Reader::block`].
    Entry(Entry),
    /// The end of the archive. Programs write more zeros behind it.
    End,
}

/// Reads an archive's headers.
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
    over: Over,
    /// Bytes of extended headers since the last entry.
    extended: u64,
}

#[derive(Debug, Default)]
enum State {
    /// Between entries.
    #[default]
    Header,
    /// In the content of an extended header.
    Extension {
        kind: Extension,
        bytes: Vec<u8>,
        left: u64,
    },
    /// After one block of zeros.
    Zero,
}

#[derive(Debug, Clone, Copy)]
enum Extension {
    /// Records for the next entry.
    Pax,
    /// Records for all entries. What is known of them in the wild are comments.
    Global,
    /// The path of the next entry.
    GnuPath,
    /// The link target of the next entry.
    GnuLink,
}

/// What extended headers said of the next entry.
#[derive(Debug, Default)]
struct Over {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Reader {
    /// Takes the next block.
    ///
    /// # Errors
    /// If it can't be part of an archive. Nothing that follows it can be read then.
    pub fn block(&mut self, block: &[u8; BLOCK]) -> Result<Step, TarError> {
        match mem::take(&mut self.state) {
            State::Extension {
                kind,
                mut bytes,
                left,
            } => {
                let here = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
                bytes.extend_from_slice(block.get(..here).unwrap_or_default());
                let left = left.saturating_sub(here as u64);
                if left == 0 {
                    self.over.take_extension(kind, &bytes)?;
                } else {
                    self.state = State::Extension { kind, bytes, left };
                }
                Ok(Step::More)
            }
            before => {
                if block.iter().all(|byte| *byte == 0) {
                    if matches!(before, State::Zero) {
                        return Ok(Step::End);
                    }
                    self.state = State::Zero;
                    return Ok(Step::More);
                }
                self.header(&Header::new(block)?)
            }
        }
    }

    /// Whether the archive may end here though no [`Step::End`] was there: nothing was begun.
    pub fn at_entry(&self) -> bool {
        let between = matches!(self.state, State::Header | State::Zero);
        between && self.extended == 0
    }

    fn header(&mut self, header: &Header<'_>) -> Result<Step, TarError> {
        let kind = match header.kind() {
            b'x' => Extension::Pax,
            b'g' => Extension::Global,
            b'L' => Extension::GnuPath,
            b'K' => Extension::GnuLink,
            _ => {
                self.extended = 0;
                return entry(header, mem::take(&mut self.over)).map(Step::Entry);
            }
        };
        let left = header.size()?;
        // A header block counts too, so that one without content can't come for ever.
        self.extended = self
            .extended
            .saturating_add(left)
            .saturating_add(BLOCK as u64);
        if self.extended > MAX_EXTENSION + BLOCK as u64 {
            return Err(TarError::Extension);
        }
        if left > 0 {
            self.state = State::Extension {
                kind,
                bytes: Vec::new(),
                left,
            };
        }
        Ok(Step::More)
    }
}

impl Over {
    fn take_extension(&mut self, kind: Extension, bytes: &[u8]) -> Result<(), TarError> {
        let text = || until_nul(bytes).to_vec();
        match kind {
            Extension::GnuPath => self.path = Some(text()),
            Extension::GnuLink => self.link = Some(text()),
            Extension::Global => {}
            Extension::Pax => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let record;
                    (record, rest) = pax::next(rest)?;
                    self.take_record(record)?;
                }
            }
        }
        Ok(())
    }

    fn take_record(&mut self, (key, value): pax::Record<'_>) -> Result<(), TarError> {
        let number = || pax::decimal(value);
        let id = || u32::try_from(number()?).ok();
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number().ok_or(TarError::Field("size"))?),
            b"uid" => self.uid = Some(id().ok_or(TarError::Field("owner"))?),
            b"gid" => self.gid = Some(id().ok_or(TarError::Field("group"))?),
            b"mtime" => self.mtime = Some(pax::time(value).ok_or(TarError::Field("time"))?),
            _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::Sparse),
            _ => {
                if let Some(name) = key.strip_prefix(pax::XATTR) {
                    if name.is_empty() || name.contains(&0) {
                        return Err(TarError::Field("name of an extended attribute"));
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn entry(header: &Header<'_>, over: Over) -> Result<Entry, TarError> {
    let path = checked(over.path.unwrap_or_else(|| header.path()))?;
    let kind = kind(header, &path, over.link)?;
    let size = match over.size {
        Some(size) => size,
        None => header.size()?,
    };
    let id = |over: Option<u32>, at, what| match over {
        Some(id) => Ok(id),
        None => header.number(at, 8, what).and_then(|id| {
            let wrong = TarError::Field(what);
            u32::try_from(id).map_err(|_| wrong)
        }),
    };
    Ok(Entry {
        // Some programs give directories and links a size, but no content.
        size: if kind == Kind::File { size } else { 0 },
        mode: (header.number(100, 8, "mode")?.cast_unsigned() & 0o7777) as u32,
        uid: id(over.uid, 108, "owner")?,
        gid: id(over.gid, 116, "group")?,
        mtime: match over.mtime {
            Some(time) => time,
            None => Time {
                seconds: header.number(136, 12, "time")?,
                nanoseconds: 0,
            },
        },
        path,
        kind,
        xattrs: over.xattrs,
    })
}

fn kind(header: &Header<'_>, path: &[u8], link: Option<Vec<u8>>) -> Result<Kind, TarError> {
    let link = || checked(link.unwrap_or_else(|| until_nul(header.field(157, 100)).to_vec()));
    let device = |make: fn(u32, u32) -> Kind| {
        let number = |at| u32::try_from(number::read(header.field(at, 8))?).ok();
        let numbers = number(329).zip(number(337));
        numbers
            .map(|(major, minor)| make(major, minor))
            .ok_or(TarError::Field("device number"))
    };
    Ok(match header.kind() {
        // Before POSIX a slash made a directory.
        0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink(link()?),
        b'2' => Kind::Symlink(link()?),
        b'3' => device(|major, minor| Kind::CharDevice { major, minor })?,
        b'4' => device(|major, minor| Kind::BlockDevice { major, minor })?,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(TarError::Sparse),
        kind => {
            return Err(TarError::Type {
                path: String::from_utf8_lossy(path).into_owned(),
                kind: kind.into(),
            });
        }
    })
}

fn checked(path: Vec<u8>) -> Result<Vec<u8>, TarError> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
        return Err(TarError::Path);
    }
    Ok(path)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A header block whose checksum is right.
struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    fn new(block: &'a [u8; BLOCK]) -> Result<Self, TarError> {
        let header = Header(block);
        // The checksum's own field counts as blanks. Old programs added signed bytes.
        let mut sums = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            sums.0 += i64::from(byte);
            sums.1 += i64::from(byte.cast_signed());
        }
        match number::read(header.field(148, 8)) {
            Some(sum) if sum == sums.0 || sum == sums.1 => Ok(header),
            _ => Err(TarError::Checksum),
        }
    }

    fn field(&self, at: usize, len: usize) -> &'a [u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or_default()
    }

    fn number(&self, at: usize, len: usize, what: &'static str) -> Result<i64, TarError> {
        number::read(self.field(at, len)).ok_or(TarError::Field(what))
    }

    fn size(&self) -> Result<u64, TarError> {
        let size = self.number(124, 12, "size")?;
        u64::try_from(size).map_err(|_| TarError::Field("size"))
    }

    /// POSIX's prefix is only there in its own format: GNU's has times in the same place.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = until_nul(self.field(345, 155));
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }
}
