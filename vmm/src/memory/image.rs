//! A read-only image in guest memory (virtio-pmem): the file's own pages, which all guests of a host
//! share with each other and with its page cache.
//!
//! What the guest may not do is kept from it three times: the file is open for reading only, its
//! mapping can't be written, and KVM's slot is read-only. Devices don't write there either
//! (`casita_devices::virtio::memory`).
//!
//! A file can become shorter while it is mapped: images are replaced by renaming and not by
//! overwriting, but their owner is the user, and nothing can hold a user off their own file. A guest
//! that reads what is gone then ends (`KVM_RUN` fails with `EFAULT`), and so does a request to a disk
//! with such a buffer. For what the monitor itself reads there, see [`super::truncated`].

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use casita_boot::GuestRange;
use casita_boot::layout::PAGE_SIZE;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::{GuestRam, MemoryError, truncated};

/// Linux makes memory of a device's in pieces of this size, in bytes (a sub-section of its memory
/// map), and takes no part of one.
const PIECE: u64 = 2 << 20;

impl GuestRam {
    /// This memory, with `len` bytes of `file` above all RAM, and where they are. What the image is
    /// short of a whole number of 2 MiB is zeros.
    ///
    /// # Errors
    /// If the host can't map it.
    pub fn with_image(self, file: &File, len: u64) -> Result<(Self, GuestRange), MemoryError> {
        let range = GuestRange {
            start: self.layout.device_memory_start(),
            len: len.next_multiple_of(PIECE),
        };
        let failed = |source| MemoryError::Map {
            file: "root image",
            addr: range.start,
            len,
            source,
        };
        let region = region(range).map_err(failed)?;
        lay_file(&region, file, len).map_err(failed)?;
        let memory = self.memory.insert_region(Arc::new(region));
        let memory = memory.map_err(|error| failed(io::Error::other(error)))?;
        let with_image = Self {
            memory: Arc::new(memory),
            ..self
        };
        Ok((with_image, range))
    }
}

/// Pages of zeros that can only be read. They cost nothing: all of them are the host's one.
fn region(range: GuestRange) -> io::Result<GuestRegionMmap> {
    let mapping = MmapRegionBuilder::new(range.len as usize)
        .with_mmap_prot(libc::PROT_READ)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, GuestAddress(range.start))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Maps the file over the beginning of `region`. The rest of its last page reads as zeros.
fn lay_file(region: &GuestRegionMmap, file: &File, len: u64) -> io::Result<()> {
    let host = region
        .get_host_address(MemoryRegionAddress(0))
        .map_err(io::Error::other)?;
    let len = len.next_multiple_of(PAGE_SIZE).min(region.len()) as usize;
    // SAFETY: the range lies inside the mapping that `region` owns and unmaps whole; nobody has a
    // reference into it.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    truncated::survive(host as usize, len)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use casita_boot::MemoryLayout;
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::super::{Backing, Sharing};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram_with(bytes: &[u8]) -> (GuestRam, GuestRange, File) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let layout = MemoryLayout::new(32 * MIB).unwrap();
        let ram = GuestRam::new(layout, Backing::Private, Sharing::default()).unwrap();
        let (ram, range) = ram.with_image(&file, bytes.len() as u64).unwrap();
        (ram, range, file)
    }

    fn read(ram: &GuestRam, addr: u64) -> u8 {
        ram.memory().read_obj(GuestAddress(addr)).unwrap()
    }

    #[test]
    fn an_image_is_padded_with_zeros_to_whole_pieces() {
        let (ram, range, _file) = ram_with(&[7; 5000]);
        assert_eq!((range.start, range.len), (4096 * MIB, PIECE));
        assert_eq!(read(&ram, range.start), 7);
        assert_eq!(read(&ram, range.start + 4999), 7);
        for at in [5000, 8191, 8192, PIECE - 1] {
            assert_eq!(read(&ram, range.start + at), 0, "byte {at}");
        }
        assert!(!ram.memory().address_in_range(GuestAddress(range.end())));
    }

    #[test]
    fn what_has_been_cut_off_a_file_reads_as_zeros() {
        let (ram, range, file) = ram_with(&[7; 3 * 4096]);
        file.set_len(4096).unwrap();
        assert_eq!(read(&ram, range.start), 7);
        assert_eq!(read(&ram, range.start + 4096), 0);
        assert_eq!(read(&ram, range.start + 3 * 4096 - 1), 0);
    }

    #[test]
    fn the_mapping_can_only_be_read() {
        let (ram, range, _file) = ram_with(&[7; 4096]);
        let region = ram.memory().find_region(GuestAddress(range.start)).unwrap();
        assert_eq!(region.prot(), libc::PROT_READ);
    }
}
