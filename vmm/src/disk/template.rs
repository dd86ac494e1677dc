//! Freshly made ext4 file systems, one per size, kept as the few blocks that are not zero.
//!
//! `mke2fs` runs once per size (some 20 ms). What it wrote is stored under the cache directory as a
//! list of extents and their bytes: some 50 KiB for a disk of 2 GiB, so that formatting a new disk
//! is one read and a handful of writes, on any host file system, reflinks or not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::file::for_data;
use super::{DiskError, MIN_SIZE, ext4};
use crate::dirs::Dirs;
use crate::progress::Progress;
use crate::staging::{self, Partial};

/// Raised whenever the stored form or its use changes.
const RECIPE: &str = "casita disk template 1";
const MAGIC: &[u8; 8] = b"CasitaT1";
const BLOCK: u64 = 4096;
/// More extents than any template has; a damaged file can't ask for more memory than this.
const MAX_EXTENTS: u64 = 1 << 20;

/// The features, with what each is for:
/// - extent, filetype, large_file, huge_file, dir_nlink, dir_index, ext_attr, extra_isize: what any
///   ext4 of today has, and what overlayfs asks of its upper directory (d_type, xattrs);
/// - 64bit: disks above 16 TiB, and full checksums of the bitmaps;
/// - flex_bg: the metadata of 16 groups lies together, so that a mount reads few places;
/// - metadata_csum, metadata_csum_seed: torn metadata is noticed, and the UUID can be changed by
///   rewriting the superblock alone;
/// - sparse_super2: none or one backup superblock instead of one in many groups;
/// - not resize_inode: a disk keeps its size, and the reserved blocks would have to be written.
const FEATURES: &str = "none,extent,64bit,filetype,flex_bg,sparse_super2,large_file,huge_file,\
    dir_nlink,extra_isize,ext_attr,dir_index,metadata_csum,metadata_csum_seed";

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Thrown away: no journal, no backup superblock.
    Temporary,
    /// Kept: both.
    Kept,
}

/// The non-zero parts of a fresh file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    /// Its length in bytes.
    len: u64,
    /// Offset and bytes, in order; each a whole number of blocks.
    extents: Vec<(u64, Vec<u8>)>,
}

/// Takes the template from the cache, or makes it.
pub(super) fn get(len: u64, kind: Kind, dirs: &Dirs) -> Result<Template, DiskError> {
    let mke2fs = find_mke2fs();
    let arguments = arguments(len, kind);
    let folder = dirs.cache().join("disks");
    let key = key(len, &arguments, mke2fs.as_deref());
    let path = folder.join(format!("{key}.template"));
    if let Some(template) = load(&path, len) {
        return Ok(template);
    }
    let mke2fs = mke2fs.ok_or(DiskError::NoMke2fs)?;
    Dirs::ensure(&folder)?;
    staging::sweep(&folder);
    let _progress = Progress::start("making a file system");
    let io = |error| DiskError::io("prepare a template for", &path, error);
    let partial = Partial::lock(&folder, &key).map_err(io)?;
    // Another process may have made it while this one waited for the lock.
    if let Some(template) = load(&path, len) {
        return Ok(template);
    }
    partial
        .file()
        .set_len(len)
        .map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => DiskError::TooLargeForHost {
                path: folder.clone(),
                len,
            },
            _ => io(error),
        })?;
    run(&mke2fs, &arguments, &partial, len)?;
    let template = Template::collect(partial.file(), len).map_err(io)?;
    partial.file().set_len(0).map_err(io)?;
    template.store(partial.file()).map_err(io)?;
    partial.publish(&path).map_err(io)?;
    Ok(template)
}

fn arguments(len: u64, kind: Kind) -> Vec<String> {
    // A temporary disk has nothing to recover; a kept one gets the smallest journal that does not
    // hold writers up.
    let journal = match (kind, len >> 30) {
        (Kind::Temporary, _) => None,
        (Kind::Kept, 0) => Some(4),
        (Kind::Kept, 1..8) => Some(16),
        (Kind::Kept, 8..64) => Some(64),
        (Kind::Kept, _) => Some(128),
    };
    // An inode per 16 KiB suits trees of many small files; their tables cost nothing until used.
    let bytes_per_inode = if len >= 1 << 40 { 65536 } else { 16384 };
    let backups = u8::from(kind == Kind::Kept);
    let mut all: Vec<String> = ["-q", "-F", "-b", "4096", "-m", "0", "-L", "casita"]
        .map(String::from)
        .into();
    // 256-byte inodes hold nanoseconds and overlayfs's small xattrs without a block of their own.
    all.extend(["-I".into(), "256".into()]);
    all.extend(["-i".into(), bytes_per_inode.to_string()]);
    let mut features = FEATURES.to_owned();
    if let Some(mib) = journal {
        features.push_str(",has_journal");
        all.extend(["-J".into(), format!("size={mib}")]);
    }
    all.extend(["-O".into(), features]);
    // The file is all holes: the inode tables are zero already, and marked so, or the guest's
    // kernel would write zeros over each of them after the mount.
    all.extend([
        "-E".into(),
        format!(
            "num_backup_sb={backups},lazy_itable_init=1,assume_storage_prezeroed=1,root_owner=0:0"
        ),
    ]);
    all
}

/// Names the template by everything that decides its bytes; `mke2fs` by its file, since asking it
/// for its version would cost a process on each start.
fn key(len: u64, arguments: &[String], mke2fs: Option<&Path>) -> String {
    let program = mke2fs.and_then(|path| path.metadata().ok()).map(|meta| {
        let (seconds, nanoseconds) = (meta.mtime(), meta.mtime_nsec());
        (meta.len(), seconds, nanoseconds)
    });
    let text = format!("{RECIPE}\n{len}\n{arguments:?}\n{program:?}\n");
    staging::hex(&Sha256::digest(text)[..16])
}

/// In `PATH`, then where it is when `PATH` has no system directories, as for ordinary users.
fn find_mke2fs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join("mke2fs"))
        .find(|program| program.is_file())
}

fn run(mke2fs: &Path, arguments: &[String], partial: &Partial, len: u64) -> Result<(), DiskError> {
    let failed = |message: String| DiskError::Mke2fs { len, message };
    let lock = partial
        .file()
        .try_clone()
        .map_err(|error| failed(error.to_string()))?;
    let output = Command::new(mke2fs)
        .args(arguments)
        .arg(partial.path())
        .arg((len / BLOCK).to_string())
        // Not the host's settings: the same bytes everywhere.
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("LC_ALL", "C")
        .stdin(lock)
        .stdout(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // It warns first, about the settings file that it was not given.
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    Err(failed(
        last.map_or_else(|| output.status.to_string(), str::to_owned),
    ))
}

impl Template {
    /// Finds the blocks of a fresh file system that are not zero.
    fn collect(file: &File, len: u64) -> io::Result<Self> {
        let mut extents: Vec<(u64, Vec<u8>)> = Vec::new();
        for_data(file, len, &mut |begin, end| {
            let mut at = begin - begin % BLOCK;
            while at < end {
                let mut block = [0; BLOCK as usize];
                file.read_exact_at(&mut block, at)?;
                if block.iter().any(|byte| *byte != 0) {
                    match extents.last_mut() {
                        Some((first, bytes)) if *first + bytes.len() as u64 == at => {
                            bytes.extend_from_slice(&block);
                        }
                        _ => extents.push((at, block.to_vec())),
                    }
                }
                at += BLOCK;
            }
            Ok(true)
        })?;
        Ok(Self { len, extents })
    }

    /// Magic, length, number of extents, then offset and length of each, then their bytes; numbers
    /// are 64 bits, little-endian.
    fn store(&self, file: &File) -> io::Result<()> {
        let mut head = MAGIC.to_vec();
        head.extend(self.len.to_le_bytes());
        head.extend((self.extents.len() as u64).to_le_bytes());
        for (offset, bytes) in &self.extents {
            head.extend(offset.to_le_bytes());
            head.extend((bytes.len() as u64).to_le_bytes());
        }
        let mut file = file;
        io::Seek::rewind(&mut file)?;
        file.write_all(&head)?;
        for (_, bytes) in &self.extents {
            file.write_all(bytes)?;
        }
        Ok(())
    }

    fn parse(mut stored: &[u8]) -> Option<Self> {
        let number = |from: &mut &[u8]| {
            let (first, rest) = from.split_first_chunk()?;
            *from = rest;
            Some(u64::from_le_bytes(*first))
        };
        stored = stored.strip_prefix(MAGIC)?;
        let len = number(&mut stored)?;
        let count = number(&mut stored).filter(|count| *count <= MAX_EXTENTS)?;
        let mut places = Vec::new();
        for _ in 0..count {
            places.push((number(&mut stored)?, number(&mut stored)?));
        }
        let mut extents = Vec::new();
        for (offset, size) in places {
            let (bytes, rest) = stored.split_at_checked(usize::try_from(size).ok()?)?;
            stored = rest;
            offset.checked_add(size).filter(|end| *end <= len)?;
            extents.push((offset, bytes.to_vec()));
        }
        stored.is_empty().then_some(Self { len, extents })
    }

    /// Whether the first block is a superblock for a file system of this length.
    fn is_sound(&self) -> bool {
        let superblock = self.extents.first().and_then(|(offset, bytes)| {
            let block = bytes.get(ext4::SUPERBLOCK_OFFSET..)?;
            (*offset == 0).then(|| ext4::Superblock::parse(block))?
        });
        self.len >= MIN_SIZE && superblock.is_some_and(|superblock| superblock.len == self.len)
    }

    /// Writes the file system into a file that is all zero, as long or longer. Its first block comes
    /// last, so that a file in which this was cut off is not taken for a file system.
    pub(super) fn write_to(
        &self,
        file: &File,
        mut uuid: [u8; 16],
        hash_seed: [u8; 16],
    ) -> io::Result<()> {
        // RFC 9562, 5.4: version 4, variant 10.
        uuid[6] = uuid[6] & 0x0F | 0x40;
        uuid[8] = uuid[8] & 0x3F | 0x80;
        for (offset, bytes) in self.extents.iter().rev() {
            let at = if *offset == 0 {
                ext4::SUPERBLOCK_OFFSET
            } else {
                0
            };
            let end = at + ext4::SUPERBLOCK_LEN;
            // The first group's superblock, or a backup, which begins its group's first block.
            match bytes.get(at..end) {
                Some(block)
                    if ext4::Superblock::parse(block).is_some_and(|sb| sb.len == self.len) =>
                {
                    let mut bytes = bytes.clone();
                    if !ext4::set_identity(&mut bytes[at..end], uuid, hash_seed) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    file.write_all_at(&bytes, *offset)?;
                }
                _ => file.write_all_at(bytes, *offset)?,
            }
        }
        Ok(())
    }
}

/// `None` when it is not there or damaged; then it is made again.
fn load(path: &Path, len: u64) -> Option<Template> {
    let mut stored = Vec::new();
    File::open(path).ok()?.read_to_end(&mut stored).ok()?;
    Template::parse(&stored).filter(|template| template.len == len && template.is_sound())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(template: &Template) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        template.store(file.as_file()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn a_stored_template_reads_back_and_a_cut_one_does_not() {
        let template = Template {
            len: 5 * BLOCK,
            extents: vec![(0, vec![1; 4096]), (2 * BLOCK, vec![2; 8192])],
        };
        let bytes = stored(&template);
        assert_eq!(Template::parse(&bytes), Some(template));
        for cut in [0, 7, 8, 20, 40, bytes.len() - 1] {
            assert_eq!(Template::parse(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn an_extent_beyond_the_end_is_refused() {
        let template = Template {
            len: BLOCK,
            extents: vec![(1, vec![1; 4096])],
        };
        assert_eq!(Template::parse(&stored(&template)), None);
    }

    #[test]
    fn collecting_keeps_only_blocks_with_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * BLOCK).unwrap();
        file.write_all_at(&[0; 3 * 4096], 8 * BLOCK).unwrap();
        file.write_all_at(&[7], 9 * BLOCK + 5).unwrap();
        file.write_all_at(&[7], 63 * BLOCK).unwrap();
        let template = Template::collect(&file, 64 * BLOCK).unwrap();
        let places: Vec<_> = template
            .extents
            .iter()
            .map(|(at, b)| (at / BLOCK, b.len()))
            .collect();
        assert_eq!(places, [(9, 4096), (63, 4096)]);
    }

    proptest! {
        #[test]
        fn damaged_templates_never_panic(
            tail in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(tail);
            let _ = Template::parse(&bytes).map(|template| template.is_sound());
        }
    }
}
