//! Booting a fuzzed kernel file.

use std::io;

use casita_boot::{
    AcpiDevices, BootSpec, Cmdline, ImageFile, InitrdPart, MemoryLayout, PowerPorts, SerialPort,
    VirtioMmio, plan,
};

#[path = "../../boot/tests/images/safety.rs"]
mod safety;

const MIB: u64 = 1 << 20;

/// A file of which only the first bytes are fuzzed: the rest, up to its size, reads as zeros, so
/// that small inputs make large files.
pub struct SparseFile<'a> {
    head: &'a [u8],
    size: u64,
}

impl ImageFile for SparseFile<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_bytes_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        let head = self.head.get(offset as usize..).unwrap_or_default();
        for (to, from) in buf.iter_mut().zip(head) {
            *to = *from;
        }
        Ok(())
    }
}

/// Plans a boot of the kernel that `data` describes: a byte for the machine's memory, a byte for the
/// initrd, two for the file's size in KiB (0: no more than the bytes there are), the file's first
/// bytes. `magic` is put at its place in the file, so that no time is spent on finding it.
pub fn plan_kernel(data: &[u8], magic: &[(usize, &[u8])], cmdline: &Cmdline) {
    let &[memory, initrd, size_low, size_high, ref head @ ..] = data else {
        return;
    };
    let mut head = head.to_vec();
    for (at, bytes) in magic {
        if let Some(place) = head.get_mut(*at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    let size = match u16::from_le_bytes([size_low, size_high]) {
        0 => head.len() as u64,
        kib => u64::from(kib) * 1024,
    };
    head.truncate(size as usize);
    let kernel = SparseFile { head: &head, size };

    let sizes = [u64::from(initrd) * 1023, 5];
    let file = SparseFile {
        head: &[],
        size: sizes[0],
    };
    let parts = [InitrdPart::File(&file), InitrdPart::Bytes(&[0; 5])];
    let parts = if initrd == 0 { &[][..] } else { &parts };
    let bytes = match memory {
        255 => 8 << 30,
        mib => 16 * MIB + u64::from(mib) * MIB + u64::from(mib) * 4096,
    };
    let Ok(memory) = MemoryLayout::new(bytes) else {
        return;
    };
    let spec = BootSpec {
        kernel: &kernel,
        initrd: parts,
        cmdline,
        memory: &memory,
        vcpus: 2,
        devices: &devices(),
    };
    match plan(&spec) {
        Ok(plan) => safety::assert_safe(&plan, memory, size, &sizes),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

fn devices() -> AcpiDevices {
    AcpiDevices {
        virtio_mmio: vec![VirtioMmio {
            base: 0xd000_0000,
            len: 0x1000,
            gsi: 5,
        }],
        serial: Some(SerialPort {
            port: 0x3f8,
            gsi: 4,
        }),
        power: PowerPorts {
            sleep_control: 0x600,
            sleep_status: 0x601,
            reset: 0x602,
            reset_value: 1,
        },
    }
}
