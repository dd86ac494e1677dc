//! Synthetic kernels: as little as makes one valid, every field open to a test's change.

#![allow(dead_code, reason = "each test program uses another part")]

pub mod safety;

use casita_boot::{
    AcpiDevices, BootError, BootPlan, BootSpec, Cmdline, ImageFile, InitrdPart, MemoryLayout,
    PowerPorts, SerialPort, VirtioMmio, plan,
};

pub const PAGE: u64 = 4096;
pub const MIB: u64 = 1 << 20;

/// A program header.
#[derive(Debug, Clone)]
pub struct Segment {
    pub kind: u32,
    pub offset: u64,
    pub phys_addr: u64,
    pub file_size: u64,
    pub mem_size: u64,
    pub align: u64,
}

impl Segment {
    pub fn load(offset: u64, phys_addr: u64, file_size: u64, mem_size: u64) -> Self {
        Self {
            kind: 1,
            offset,
            phys_addr,
            file_size,
            mem_size,
            align: PAGE,
        }
    }
}

/// An ELF file of the given size, every byte behind the headers telling its own offset.
#[derive(Debug, Clone)]
pub struct Elf {
    pub class: u8,
    pub data: u8,
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub segments_offset: u64,
    pub segment_header_size: u16,
    /// `None`: as many as there are.
    pub segment_count: Option<u16>,
    pub segments: Vec<Segment>,
    /// Put at [`Elf::NOTES`], with a program header of their own, if there are any.
    pub notes: Vec<u8>,
    pub size: u64,
}

impl Elf {
    pub const NOTES: u64 = 0x800;
    pub const ENTRY: u64 = 16 * MIB + 0x40;

    /// A kernel with text and data, the data's last page shared with .bss.
    pub fn vmlinux() -> Self {
        Self {
            class: 2,
            data: 1,
            kind: 2,
            machine: 62,
            entry: Self::ENTRY,
            segments_offset: 64,
            segment_header_size: 56,
            segment_count: None,
            segments: vec![
                Segment::load(PAGE, 16 * MIB, 4 * PAGE, 4 * PAGE),
                Segment::load(5 * PAGE, 18 * MIB, 2 * PAGE + 100, 8 * PAGE),
            ],
            notes: Vec::new(),
            size: 8 * PAGE,
        }
    }

    /// The same with a PVH entry point.
    pub fn pvh() -> Self {
        Self {
            notes: xen_note(18, &(Self::ENTRY as u32).to_le_bytes()),
            ..Self::vmlinux()
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file: Vec<u8> = (0..self.size).map(|i| (i % 251) as u8).collect();
        let mut segments = self.segments.clone();
        if !self.notes.is_empty() {
            segments.push(Segment {
                kind: 4,
                align: 4,
                ..Segment::load(Self::NOTES, 0, self.notes.len() as u64, 0)
            });
            put(&mut file, Self::NOTES, &self.notes);
        }
        let mut ident = [0; 16];
        ident[..4].copy_from_slice(b"\x7fELF");
        ident[4..7].copy_from_slice(&[self.class, self.data, 1]);
        put(&mut file, 0, &ident);
        put(&mut file, 16, &self.kind.to_le_bytes());
        put(&mut file, 18, &self.machine.to_le_bytes());
        put(&mut file, 24, &self.entry.to_le_bytes());
        put(&mut file, 32, &self.segments_offset.to_le_bytes());
        put(&mut file, 54, &self.segment_header_size.to_le_bytes());
        let count = self.segment_count.unwrap_or(segments.len() as u16);
        put(&mut file, 56, &count.to_le_bytes());
        for (i, segment) in segments.iter().enumerate() {
            let at = 64 + 56 * i as u64;
            put(&mut file, at, &segment.kind.to_le_bytes());
            let words = [
                segment.offset,
                segment.phys_addr | 0xffff_ffff_8000_0000,
                segment.phys_addr,
                segment.file_size,
                segment.mem_size,
                segment.align,
            ];
            for (i, word) in words.iter().enumerate() {
                put(&mut file, at + 8 + 8 * i as u64, &word.to_le_bytes());
            }
        }
        file
    }
}

/// A note by Xen, of this type, with this descriptor.
pub fn xen_note(kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend_from_slice(&4_u32.to_le_bytes());
    note.extend_from_slice(&(desc.len() as u32).to_le_bytes());
    note.extend_from_slice(&kind.to_le_bytes());
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(desc);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// A bzImage: four setup sectors and their boot sector, then the protected-mode kernel.
#[derive(Debug, Clone)]
pub struct BzImage {
    pub setup_sects: u8,
    pub syssize: u32,
    pub jump: u8,
    pub version: u16,
    pub loadflags: u8,
    pub initrd_addr_max: u32,
    pub kernel_alignment: u32,
    pub relocatable: u8,
    pub xloadflags: u16,
    pub cmdline_size: u32,
    pub pref_address: u64,
    pub init_size: u32,
    pub size: usize,
}

impl BzImage {
    pub fn vmlinuz() -> Self {
        Self {
            setup_sects: 7,
            syssize: 0x400,
            jump: 0x6a,
            version: 0x020f,
            loadflags: 1,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: 0x20_0000,
            relocatable: 1,
            xloadflags: 1,
            cmdline_size: 2047,
            pref_address: 16 * MIB,
            init_size: 0x100_0000,
            size: 8 * 512 + 0x4000,
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file: Vec<u8> = (0..self.size.max(0x400)).map(|i| (i % 251) as u8).collect();
        put(&mut file, 0, b"MZ");
        file[0x1f1..0x26c].fill(0);
        put(&mut file, 0x1f1, &[self.setup_sects]);
        put(&mut file, 0x1f4, &self.syssize.to_le_bytes());
        put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, self.jump]);
        put(&mut file, 0x202, b"HdrS");
        put(&mut file, 0x206, &self.version.to_le_bytes());
        put(&mut file, 0x211, &[self.loadflags]);
        put(&mut file, 0x22c, &self.initrd_addr_max.to_le_bytes());
        put(&mut file, 0x230, &self.kernel_alignment.to_le_bytes());
        put(&mut file, 0x234, &[self.relocatable]);
        put(&mut file, 0x236, &self.xloadflags.to_le_bytes());
        put(&mut file, 0x238, &self.cmdline_size.to_le_bytes());
        put(&mut file, 0x258, &self.pref_address.to_le_bytes());
        put(&mut file, 0x260, &self.init_size.to_le_bytes());
        file.truncate(self.size);
        file
    }
}

/// Writes `bytes` at `offset`, as far as the file reaches.
pub fn put(file: &mut [u8], offset: u64, bytes: &[u8]) {
    for (to, from) in file.iter_mut().skip(offset as usize).zip(bytes) {
        *to = *from;
    }
}

/// `count` virtio devices, a serial port, the power ports.
pub fn devices(count: u32) -> AcpiDevices {
    AcpiDevices {
        virtio_mmio: (0..count)
            .map(|i| VirtioMmio {
                base: 0xd000_0000 + u64::from(i) * 0x1000,
                len: 0x1000,
                gsi: 5 + i % 19,
            })
            .collect(),
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

/// What a test boots: a kernel in a small machine, the rest open to its change.
pub struct Machine<'a> {
    pub kernel: &'a dyn ImageFile,
    pub initrd: &'a [InitrdPart<'a>],
    pub cmdline: Cmdline,
    pub memory: MemoryLayout,
    pub vcpus: u8,
    pub devices: AcpiDevices,
}

impl<'a> Machine<'a> {
    pub fn new(kernel: &'a dyn ImageFile) -> Self {
        Self {
            kernel,
            initrd: &[],
            cmdline: Cmdline::new("console=ttyS0").unwrap(),
            memory: MemoryLayout::new(64 * MIB).unwrap(),
            vcpus: 2,
            devices: devices(3),
        }
    }

    pub fn plan(&self) -> Result<BootPlan, BootError> {
        plan(&BootSpec {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: &self.cmdline,
            memory: &self.memory,
            vcpus: self.vcpus,
            devices: &self.devices,
        })
    }
}

/// The message that `kernel` is refused with.
pub fn refusal(kernel: &dyn ImageFile) -> String {
    let error = Machine::new(kernel).plan().expect_err("a refusal");
    let message = error.to_string();
    assert!(!message.contains('\n'), "not one line: {message}");
    message
}

/// Guest RAM after the plan was carried out, as far as the range that is asked for.
pub fn guest_memory(plan: &BootPlan, kernel: &[u8], initrd: &[&[u8]], len: usize) -> Vec<u8> {
    use casita_boot::PlanFile;
    let bytes = |file, offset: u64, len: u64| -> &[u8] {
        let file = match file {
            PlanFile::Kernel => kernel,
            PlanFile::Initrd(index) => initrd[index],
        };
        &file[offset as usize..(offset + len) as usize]
    };
    let mut memory = vec![0; len];
    for mapping in &plan.mappings {
        let from = bytes(mapping.file, mapping.file_offset, mapping.len);
        put(&mut memory, mapping.guest_addr, from);
    }
    for copy in &plan.copies {
        let from = bytes(copy.file, copy.file_offset, copy.len);
        put(&mut memory, copy.guest_addr, from);
    }
    for blob in &plan.blobs {
        put(&mut memory, blob.guest_addr, &blob.bytes);
    }
    memory
}
