//! The guest's RAM.
//!
//! Ordinarily it is private anonymous memory, with the kernel's pages mapped over it from its file so
//! that all guests of one host share them until they write. With [`Backing::Shared`] it is one memory
//! file, which other processes that serve the guest's devices map as well. Then nothing is mapped over
//! it, and the kernel is copied: what lies over the file only the guest would see, and not only its
//! kernel is there. Linux gives the pages of its initialization code and of the gaps between its
//! sections, like those of the initrd, to its allocator once it runs, so that a queue or a buffer may
//! come to lie in any of them.

#![allow(unsafe_code, reason = "mapping a file over guest RAM")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use casita_boot::{BootPlan, FileCopy, FileMapping, GuestRange, MemoryLayout, PlanFile};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, memfd_create, seek, sendfile};
use thiserror::Error;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Why guest memory could not be made or filled.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// More than the host has.
    #[error("{asked} MiB of guest memory are more than this host's {host} MiB")]
    MoreThanHost {
        /// MiB asked for.
        asked: u64,
        /// MiB in the host.
        host: u64,
    },
    /// The host has no address space or memory left.
    #[error("the host could not reserve {mib} MiB of guest memory")]
    Reserve {
        /// MiB asked for.
        mib: u64,
        /// The host's answer.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// No memory that can be shared.
    #[error("the host has no memory file of {mib} MiB for the guest")]
    MemoryFile {
        /// MiB asked for.
        mib: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel or initrd could not be mapped.
    #[error("{len} bytes of the {file} could not be mapped to guest address {addr:#x}")]
    Map {
        /// Which file.
        file: &'static str,
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        len: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel or initrd could not be read.
    #[error("{len} bytes of the {file} at offset {offset} could not be read")]
    Read {
        /// Which file.
        file: &'static str,
        /// Offset in it, in bytes.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A plan that does not fit its memory.
    #[error("guest address {addr:#x} is not in RAM")]
    NotRam {
        /// Guest-physical address.
        addr: u64,
    },
}

/// Up to this size, in bytes, a guest gets its memory page by page; a larger one gets huge pages
/// where the host gives them. An idle small guest of 128 MiB holds 12 MiB so, and 26 MiB with huge
/// pages, of which it uses a part; whoever runs a large one wants the speed instead.
const SMALL_GUEST: u64 = 512 << 20;

/// Whose the memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// This process's alone.
    #[default]
    Private,
    /// Also of processes that get its file.
    Shared,
}

/// The guest's RAM. Clones share it.
#[derive(Clone)]
pub struct GuestRam {
    memory: Arc<GuestMemoryMmap>,
    layout: MemoryLayout,
    backing: Backing,
}

/// The files that a plan's mappings and copies refer to.
pub struct PlanFiles<'a> {
    /// The kernel.
    pub kernel: &'a File,
    /// By part of the initrd: its file, if it is one.
    pub initrd: &'a [Option<&'a File>],
}

impl PlanFiles<'_> {
    fn get(&self, file: PlanFile) -> (Option<&File>, &'static str) {
        match file {
            PlanFile::Kernel => (Some(self.kernel), "kernel"),
            PlanFile::Initrd(part) => (self.initrd.get(part).copied().flatten(), "initrd"),
        }
    }
}

impl GuestRam {
    /// Reserves RAM as `layout` says. Nothing is committed: the host gives pages as they are
    /// touched.
    ///
    /// # Errors
    /// If that is more than the host has, or more than it will reserve.
    pub fn new(layout: MemoryLayout, backing: Backing) -> Result<Self, MemoryError> {
        const MIB: u64 = 1 << 20;
        let host = host_memory();
        if layout.bytes() > host {
            return Err(MemoryError::MoreThanHost {
                asked: layout.bytes() / MIB,
                host: host / MIB,
            });
        }
        let mib = layout.bytes() / MIB;
        let file = match backing {
            Backing::Private => None,
            Backing::Shared => {
                let file = memory_file(layout.bytes());
                Some(file.map_err(|source| MemoryError::MemoryFile { mib, source })?)
            }
        };
        let mut offset = 0;
        let ranges: Vec<_> = layout
            .ram_ranges()
            .map(|range| {
                let file = file.clone().map(|file| FileOffset::from_arc(file, offset));
                offset += range.len;
                (GuestAddress(range.start), range.len as usize, file)
            })
            .collect();
        let memory = GuestMemoryMmap::from_ranges_with_files(&ranges)
            .map_err(|source| MemoryError::Reserve { mib, source })?;
        let ram = Self {
            memory: Arc::new(memory),
            layout,
            backing,
        };
        // What a guest has in memory is nobody's who reads core files.
        ram.advise(libc::MADV_DONTDUMP);
        if layout.bytes() <= SMALL_GUEST {
            // A host without huge pages refuses, and has nothing to avoid.
            ram.advise(libc::MADV_NOHUGEPAGE);
        }
        Ok(ram)
    }

    fn advise(&self, advice: libc::c_int) {
        for range in self.layout.ram_ranges() {
            if let Ok(host) = self.host_range(range.start, range.len) {
                // SAFETY: the range is a mapping of ours, whose content neither advice changes.
                unsafe { libc::madvise(host.cast(), range.len as usize, advice) };
            }
        }
    }

    /// The memory itself.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// Where it lies.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Carries out a boot plan's mappings, copies and blobs.
    ///
    /// # Errors
    /// If a file can't be mapped or read.
    pub fn load(&self, plan: &BootPlan, files: &PlanFiles<'_>) -> Result<(), MemoryError> {
        for mapping in &plan.mappings {
            self.place(mapping, files)?;
        }
        for copy in &plan.copies {
            self.copy(copy, files)?;
        }
        for blob in &plan.blobs {
            self.write(&blob.bytes, blob.guest_addr)?;
        }
        Ok(())
    }

    /// The host address of a range that must lie in RAM.
    fn host_range(&self, addr: u64, len: u64) -> Result<*mut u8, MemoryError> {
        let not_ram = MemoryError::NotRam { addr };
        let inside = GuestRange::new(addr, len).is_some_and(|range| self.layout.is_ram(&range));
        match self.memory.get_host_address(GuestAddress(addr)) {
            Ok(host) if inside => Ok(host),
            _ => Err(not_ram),
        }
    }

    fn place(&self, mapping: &FileMapping, files: &PlanFiles<'_>) -> Result<(), MemoryError> {
        match self.backing {
            Backing::Private => self.map(mapping, files),
            Backing::Shared => self.transfer(mapping, files),
        }
    }

    fn map(&self, mapping: &FileMapping, files: &PlanFiles<'_>) -> Result<(), MemoryError> {
        let FileMapping {
            guest_addr: addr,
            file_offset,
            len,
            ..
        } = *mapping;
        let host = self.host_range(addr, len)?;
        let (file, name) = files.get(mapping.file);
        let failed = |source| MemoryError::Map {
            file: name,
            addr,
            len,
            source,
        };
        let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let offset = libc::off_t::try_from(file_offset)
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: the range lies inside one mapping of guest RAM that `self.memory` owns, so what
        // MAP_FIXED replaces is ours; guest RAM is only ever read through volatile accesses. The
        // region unmaps the whole range when it is dropped.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the range was mapped just now, and its content does not change.
        unsafe { libc::madvise(mapped, len as usize, libc::MADV_DONTDUMP) };
        Ok(())
    }

    /// Copies from file to file within the host's kernel. What is a hole in one becomes one in the
    /// other; a kernel has some.
    fn transfer(&self, mapping: &FileMapping, files: &PlanFiles<'_>) -> Result<(), MemoryError> {
        let FileMapping {
            guest_addr: addr,
            file_offset,
            len,
            ..
        } = *mapping;
        self.host_range(addr, len)?;
        let place = self.memory.to_region_addr(GuestAddress(addr));
        let place = place.and_then(|(region, at)| Some((region.file_offset()?, at)));
        let (out, at) = place.ok_or(MemoryError::NotRam { addr })?;
        let (file, name) = files.get(mapping.file);
        let failed = |source| MemoryError::Read {
            file: name,
            offset: file_offset,
            len,
            source,
        };
        let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let end = file_offset + len;
        let mut from = file_offset;
        while let Some((start, stop)) = next_data(file, from, end).map_err(failed)? {
            let to = out.start() + at.0 + (start - file_offset);
            send(file, start, stop, out.file(), to).map_err(failed)?;
            from = stop;
        }
        Ok(())
    }

    fn copy(&self, copy: &FileCopy, files: &PlanFiles<'_>) -> Result<(), MemoryError> {
        const CHUNK: u64 = 1 << 20;
        let (file, name) = files.get(copy.file);
        let failed = |source| MemoryError::Read {
            file: name,
            offset: copy.file_offset,
            len: copy.len,
            source,
        };
        let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let mut buffer = vec![0; copy.len.min(CHUNK) as usize];
        let mut done = 0;
        while done < copy.len {
            let chunk = &mut buffer[..(copy.len - done).min(CHUNK) as usize];
            file.read_exact_at(chunk, copy.file_offset + done)
                .map_err(failed)?;
            self.write(chunk, copy.guest_addr + done)?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], addr: u64) -> Result<(), MemoryError> {
        self.memory
            .write_slice(bytes, GuestAddress(addr))
            .map_err(|_| MemoryError::NotRam { addr })
    }
}

/// The first part of `file` from `from` on that is no hole, up to `end`.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= end {
        return Ok(None);
    }
    if file.metadata()?.len() < end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let start = match seek(file, SeekFrom::Data(from)) {
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        other => other?,
    };
    if start >= end {
        return Ok(None);
    }
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?.min(end))))
}

/// Copies the bytes from `start` to `stop` of `file` to the place `to` of `out`.
fn send(file: &File, mut start: u64, stop: u64, out: &File, to: u64) -> io::Result<()> {
    seek(out, SeekFrom::Start(to))?;
    while start < stop {
        let len = usize::try_from(stop - start).unwrap_or(usize::MAX);
        match sendfile(out, file, Some(&mut start), len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A memory file whose size nobody can change: not those that it is shared with, either. Who touches
/// a mapping whose file has become shorter gets SIGBUS.
fn memory_file(len: u64) -> io::Result<Arc<File>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("guest-ram", flags)?);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(Arc::new(file))
}

/// All memory of the host, in bytes.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const MIB: u64 = 1 << 20;

    fn ram(mib: u64) -> GuestRam {
        GuestRam::new(MemoryLayout::new(mib * MIB).unwrap(), Backing::Private).unwrap()
    }

    fn shared_ram(mib: u64) -> GuestRam {
        GuestRam::new(MemoryLayout::new(mib * MIB).unwrap(), Backing::Shared).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn files(kernel: &File) -> PlanFiles<'_> {
        PlanFiles {
            kernel,
            initrd: &[],
        }
    }

    fn read(ram: &GuestRam, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ram.memory()
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    #[test]
    fn a_mapped_kernel_is_seen_in_the_guest_and_its_file_stays_as_it_was() {
        let (ram, kernel) = (ram(32), file(&[7; 8192]));
        let mapping = FileMapping {
            file: PlanFile::Kernel,
            guest_addr: MIB,
            file_offset: 4096,
            len: 4096,
        };
        ram.map(&mapping, &files(&kernel)).unwrap();
        assert_eq!(read(&ram, MIB, 4096), vec![7; 4096]);
        assert_eq!(read(&ram, MIB + 4096, 1), [0]);
        ram.memory().write_slice(&[9], GuestAddress(MIB)).unwrap();
        let mut byte = [0];
        kernel.read_exact_at(&mut byte, 4096).unwrap();
        assert_eq!(byte, [7]);
    }

    /// What another process sees of shared memory.
    fn through_the_file(ram: &GuestRam, addr: u64, len: usize) -> Vec<u8> {
        let (region, at) = ram.memory().to_region_addr(GuestAddress(addr)).unwrap();
        let file = region.file_offset().unwrap();
        let mut bytes = vec![0; len];
        let at = file.start() + at.0;
        file.file().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    #[test]
    fn who_shares_memory_sees_the_kernel_and_what_the_guest_writes_over_it() {
        let (ram, kernel) = (shared_ram(32), file(&[7; 4096]));
        kernel.set_len(16 * 4096).unwrap();
        kernel.write_all_at(&[8; 4096], 8 * 4096).unwrap();
        let mapping = FileMapping {
            file: PlanFile::Kernel,
            guest_addr: MIB,
            file_offset: 0,
            len: 16 * 4096,
        };
        ram.place(&mapping, &files(&kernel)).unwrap();
        let mut wanted = vec![0; 16 * 4096];
        wanted[..4096].fill(7);
        wanted[8 * 4096..9 * 4096].fill(8);
        assert_eq!(through_the_file(&ram, MIB, 16 * 4096), wanted);
        assert_eq!(read(&ram, MIB, 16 * 4096), wanted);
        for addr in [MIB, MIB + 4096, 31 * MIB] {
            ram.memory().write_slice(&[9], GuestAddress(addr)).unwrap();
            assert_eq!(through_the_file(&ram, addr, 1), [9]);
        }
    }

    #[test]
    fn a_kernel_that_shrank_is_not_copied() {
        let (ram, kernel) = (shared_ram(32), file(&[7; 8192]));
        let mapping = FileMapping {
            file: PlanFile::Kernel,
            guest_addr: MIB,
            file_offset: 4096,
            len: 8192,
        };
        let error = ram.place(&mapping, &files(&kernel)).unwrap_err();
        assert!(matches!(error, MemoryError::Read { .. }), "{error}");
    }

    #[test]
    fn who_shares_memory_cannot_change_its_size() {
        let ram = shared_ram(32);
        let region = ram.memory().iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        for len in [0, 31 * MIB, 33 * MIB] {
            let error = file.set_len(len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
        assert!(fcntl_add_seals(file, SealFlags::WRITE).is_err());
    }

    #[test]
    fn a_mapping_outside_ram_is_refused() {
        let (ram, kernel) = (ram(32), file(&[7; 8192]));
        for (guest_addr, len) in [
            (32 * MIB, 4096),
            (32 * MIB - 4096, 8192),
            (u64::MAX - 4095, 8192),
        ] {
            let mapping = FileMapping {
                file: PlanFile::Kernel,
                guest_addr,
                file_offset: 0,
                len,
            };
            let error = ram.map(&mapping, &files(&kernel)).unwrap_err();
            assert!(matches!(error, MemoryError::NotRam { .. }), "{error}");
        }
    }

    #[test]
    fn a_copy_of_a_file_that_shrank_is_an_error() {
        let (ram, kernel) = (ram(32), file(&[7; 100]));
        let copy = FileCopy {
            file: PlanFile::Kernel,
            guest_addr: MIB,
            file_offset: 50,
            len: 51,
        };
        let error = ram.copy(&copy, &files(&kernel)).unwrap_err();
        assert!(matches!(error, MemoryError::Read { .. }), "{error}");
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        let error = GuestRam::new(MemoryLayout::new(1 << 40).unwrap(), Backing::Private)
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("more than this host's"),
            "{error}"
        );
    }

    /// proc_pid_smaps(5): `dd` is "do not include area into core dump".
    #[test]
    fn guest_memory_is_in_no_core_file() {
        for ram in [ram(16), shared_ram(16)] {
            let start = ram.host_range(0, MIB).unwrap() as usize;
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut flags = None;
            let mut inside = false;
            for line in maps.lines() {
                let bounds = line
                    .split_once(' ')
                    .and_then(|(range, _)| range.split_once('-'));
                if let Some((from, to)) = bounds {
                    let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
                    inside = (number(from)..number(to)).contains(&start);
                }
                if let (true, Some(found)) = (inside, line.strip_prefix("VmFlags:")) {
                    flags = Some(found.to_owned());
                }
            }
            let flags = flags.unwrap();
            assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
        }
    }
}
