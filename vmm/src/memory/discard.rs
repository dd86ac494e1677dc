//! Memory that the guest does not use goes back to the host, and is zeros when it is used again.

use std::io;

use casita_boot::GuestRange;
use casita_devices::virtio::balloon::Discard;
use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Backing, GuestRam};

impl Discard for GuestRam {
    fn discard(&self, addr: GuestAddress, len: u64) -> io::Result<()> {
        let asked = GuestRange::new(addr.0, len).ok_or(io::ErrorKind::InvalidInput)?;
        for ram in self.layout.ram_ranges() {
            let part = intersection(&asked, &ram);
            if part.len == 0 {
                continue;
            }
            match self.backing {
                Backing::Private => self.discard_private(&part)?,
                Backing::Shared => self.punch_hole(&part)?,
            }
        }
        Ok(())
    }
}

impl GuestRam {
    /// Where a file is mapped, dropping the page would bring back what the file has there. The guest
    /// has given that memory away, as it does with its initialization code: it gets zeros instead, and
    /// the file is out of the way for good.
    fn discard_private(&self, part: &GuestRange) -> io::Result<()> {
        let mut start = part.start;
        for file in self.file_ranges.get().into_iter().flatten() {
            let mapped = intersection(part, file);
            if mapped.len == 0 {
                continue;
            }
            self.drop_pages(&GuestRange::from_bounds(start, mapped.start))?;
            self.replace_by_zeros(&mapped)?;
            start = mapped.end();
        }
        self.drop_pages(&GuestRange::from_bounds(start, part.end()))
    }

    fn drop_pages(&self, part: &GuestRange) -> io::Result<()> {
        if part.len == 0 {
            return Ok(());
        }
        let host = self.host_address(part)?;
        // SAFETY: the range is anonymous memory of the guest's, which is only ever read through
        // volatile accesses.
        let done = unsafe { libc::madvise(host.cast(), part.len as usize, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn replace_by_zeros(&self, part: &GuestRange) -> io::Result<()> {
        let host = self.host_address(part)?;
        // SAFETY: as in `GuestRam::map`: the range lies inside one mapping that `self.memory` owns.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                part.len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // As the memory around it, with which it then is one mapping again.
        self.advise(part);
        Ok(())
    }

    fn punch_hole(&self, part: &GuestRange) -> io::Result<()> {
        let place = self.memory.to_region_addr(GuestAddress(part.start));
        let place = place.and_then(|(region, at)| Some((region.file_offset()?, at)));
        let (file, at) = place.ok_or(io::ErrorKind::InvalidInput)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(
            file.file(),
            flags,
            file.start() + at.0,
            part.len,
        )?)
    }

    fn host_address(&self, part: &GuestRange) -> io::Result<*mut u8> {
        self.host_range(part.start, part.len)
            .map_err(io::Error::other)
    }
}

fn intersection(a: &GuestRange, b: &GuestRange) -> GuestRange {
    GuestRange::from_bounds(a.start.max(b.start), a.end().min(b.end()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use casita_boot::{FileMapping, MemoryLayout, PlanFile};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::super::{PlanFiles, Sharing};
    use super::*;

    const MIB: u64 = 1 << 20;
    const PAGE: u64 = 4096;
    /// Where the test's kernel lies, and how many pages it has.
    const KERNEL: u64 = MIB;
    const KERNEL_PAGES: u64 = 8;

    /// RAM whose pages up to 2 MiB are nowhere zero, partly from a file.
    fn ram(backing: Backing) -> (GuestRam, File) {
        let layout = MemoryLayout::new(32 * MIB).unwrap();
        let ram = GuestRam::new(layout, backing, Sharing::default()).unwrap();
        let mut kernel = tempfile::tempfile().unwrap();
        kernel
            .write_all(&vec![7; (KERNEL_PAGES * PAGE) as usize])
            .unwrap();
        let all = vec![9; 2 * MIB as usize];
        ram.memory().write_slice(&all, GuestAddress(0)).unwrap();
        let mapping = FileMapping {
            file: PlanFile::Kernel,
            guest_addr: KERNEL,
            file_offset: 0,
            len: KERNEL_PAGES * PAGE,
        };
        let files = PlanFiles {
            kernel: &kernel,
            initrd: &[],
        };
        ram.place_all(&[mapping], &files).unwrap();
        (ram, kernel)
    }

    fn read(ram: &GuestRam, addr: u64) -> u8 {
        ram.memory().read_obj(GuestAddress(addr)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_given_back_is_zeros_and_nothing_else_is(
            first in 240_u64..270, pages in 1_u64..30, shared: bool, written: bool
        ) {
            let (ram, kernel) = ram(if shared { Backing::Shared } else { Backing::Private });
            if written {
                ram.memory().write_obj(5_u8, GuestAddress(KERNEL + PAGE)).unwrap();
            }
            let given = GuestRange { start: first * PAGE, len: pages * PAGE };
            ram.discard(GuestAddress(given.start), given.len).unwrap();
            for page in 230..310 {
                let addr = page * PAGE;
                let in_kernel = (KERNEL..KERNEL + KERNEL_PAGES * PAGE).contains(&addr);
                let wanted = match addr {
                    _ if (given.start..given.end()).contains(&addr) => 0,
                    addr if written && addr == KERNEL + PAGE => 5,
                    _ if in_kernel => 7,
                    _ => 9,
                };
                prop_assert_eq!(read(&ram, addr), wanted, "page {}", page);
            }
            // The file is as it was.
            prop_assert_eq!(kernel.metadata().unwrap().len(), KERNEL_PAGES * PAGE);
        }
    }

    #[test]
    fn a_memory_file_has_fewer_blocks_then() {
        let (ram, _kernel) = ram(Backing::Shared);
        let region = ram.memory().iter().next().unwrap();
        let blocks = || {
            region
                .file_offset()
                .unwrap()
                .file()
                .metadata()
                .unwrap()
                .blocks()
        };
        let before = blocks();
        ram.discard(GuestAddress(0), MIB / 2).unwrap();
        assert_eq!(before - blocks(), MIB / 2 / 512);
    }

    #[test]
    fn what_is_not_ram_is_left_alone() {
        let (ram, _kernel) = ram(Backing::Private);
        ram.discard(GuestAddress(32 * MIB), MIB).unwrap();
        assert!(ram.discard(GuestAddress(u64::MAX), 2).is_err());
        assert_eq!(read(&ram, 0), 9);
    }
}
