//! Guest kernels of a few instructions. They need nothing of the host but its KVM, so they run
//! where an ordinary kernel does not.
//!
//! A payload is entered by PVH (Xen's `docs/misc/pvh.pandoc`): 32-bit protected mode with flat
//! segments, no paging, and no interrupt table, so that any fault is a triple fault.

/// Data register of the first serial port.
pub const SERIAL: u16 = 0x3f8;
/// ACPI's sleep control register, as the machine's FADT names it.
pub const SLEEP: u16 = 0x600;
/// What powers off there: sleep type 5, and the bit that starts it (ACPI 6.5, 4.8.3.7).
pub const POWER_OFF: u8 = 5 << 2 | 1 << 5;
/// ACPI's reset register.
pub const RESET: u16 = 0x602;
/// What resets there.
pub const RESET_VALUE: u8 = 1;
/// The keyboard controller's command register.
pub const I8042: u16 = 0x64;
/// Casita's own port: the command's exit status.
pub const EXIT_STATUS: u16 = 0x6c4;
/// Registers of the first virtio device; the others follow at [`VIRTIO_STRIDE`].
pub const VIRTIO: u32 = 0xd000_0000;
/// Distance between two virtio devices.
pub const VIRTIO_STRIDE: u32 = 0x1000;

/// Instructions, in the order in which they are added.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    code: Vec<u8>,
}

impl Payload {
    /// Where it is loaded and entered.
    pub const ENTRY: u32 = 0x10_0000;
    const NOTES: u64 = 0x200;
    const TEXT: u64 = 0x1000;

    /// One that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds machine code.
    #[must_use]
    pub fn code(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    fn port(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code(&[0x66, 0xba, low, high]) // mov dx, port
    }

    /// Writes a byte to a port.
    #[must_use]
    pub fn out8(self, port: u16, value: u8) -> Self {
        self.port(port).code(&[0xb0, value, 0xee]) // mov al, value; out dx, al
    }

    /// Writes 32 bits to a port.
    #[must_use]
    pub fn out32(self, port: u16, value: u32) -> Self {
        let [a, b, c, d] = value.to_le_bytes();
        self.port(port).code(&[0xb8, a, b, c, d, 0xef]) // mov eax, value; out dx, eax
    }

    /// Reads a byte from a port, into al.
    #[must_use]
    pub fn in8(self, port: u16) -> Self {
        self.port(port).code(&[0xec]) // in al, dx
    }

    /// Reads 32 bits of memory, or of a device's registers, into eax.
    #[must_use]
    pub fn load32(self, address: u32) -> Self {
        let [a, b, c, d] = address.to_le_bytes();
        self.code(&[0xa1, a, b, c, d]) // mov eax, [address]
    }

    /// Writes 32 bits to memory, or to a device's registers.
    #[must_use]
    pub fn store32(self, address: u32, value: u32) -> Self {
        let [a, b, c, d] = address.to_le_bytes();
        let value = value.to_le_bytes();
        self.code(&[0xc7, 0x05, a, b, c, d]).code(&value) // mov dword [address], value
    }

    /// Writes `value` to each of `count` 32-bit words from `address` on.
    #[must_use]
    pub fn fill32(self, address: u32, value: u32, count: u32) -> Self {
        self.code(&[0xbf]) // mov edi, address
            .code(&address.to_le_bytes())
            .code(&[0xb8]) // mov eax, value
            .code(&value.to_le_bytes())
            .code(&[0xb9]) // mov ecx, count
            .code(&count.to_le_bytes())
            .code(&[0xfc, 0xf3, 0xab]) // cld; rep stosd
    }

    /// Writes al to the serial port.
    #[must_use]
    pub fn print_al(self) -> Self {
        self.port(SERIAL).code(&[0xee]) // out dx, al
    }

    /// Writes eax to the serial port, its lowest byte first.
    #[must_use]
    pub fn print_eax(self) -> Self {
        let byte = |payload: Self| payload.print_al().code(&[0xc1, 0xe8, 8]); // shr eax, 8
        byte(byte(byte(byte(self))))
    }

    /// Writes text to the serial port.
    #[must_use]
    pub fn print(self, text: &str) -> Self {
        text.bytes()
            .fold(self, |payload, byte| payload.out8(SERIAL, byte))
    }

    /// Powers off.
    #[must_use]
    pub fn power_off(self) -> Self {
        self.out8(SLEEP, POWER_OFF).halt()
    }

    /// Waits for ever, without interrupts.
    #[must_use]
    pub fn halt(self) -> Self {
        self.code(&[0xfa, 0xf4, 0xeb, 0xfd]) // cli; 1: hlt; jmp 1b
    }

    /// Runs for ever.
    #[must_use]
    pub fn spin(self) -> Self {
        self.code(&[0xeb, 0xfe]) // 1: jmp 1b
    }

    /// Raises a fault that nobody handles.
    #[must_use]
    pub fn fault(self) -> Self {
        self.code(&[0x0f, 0x0b]) // ud2
    }

    /// As an ELF file with a PVH note.
    pub fn elf(&self) -> Vec<u8> {
        let len = self.code.len() as u64;
        let mut note = Vec::new();
        // Sizes of name and descriptor; XEN_ELFNOTE_PHYS32_ENTRY.
        for word in [4, 4, 18] {
            note.extend(u32::to_le_bytes(word));
        }
        note.extend(b"Xen\0");
        note.extend(Self::ENTRY.to_le_bytes());

        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
        file.extend(u64::from(Self::ENTRY).to_le_bytes());
        file.extend(64_u64.to_le_bytes()); // program headers
        file.extend(0_u64.to_le_bytes()); // no sections
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]); // flags, sizes, counts
        program_header(&mut file, 1, Self::TEXT, Self::ENTRY.into(), len);
        program_header(&mut file, 4, Self::NOTES, 0, note.len() as u64);
        file.resize(Self::NOTES as usize, 0);
        file.extend(note);
        file.resize(Self::TEXT as usize, 0);
        file.extend(&self.code);
        file
    }
}

/// Offsets in a payload's file of fields that tests make lie (System V ABI, "ELF Header").
pub mod field {
    /// `e_machine`, 16 bits.
    pub const MACHINE: usize = 18;
    /// `e_phoff`, 64 bits.
    pub const SEGMENTS_OFFSET: usize = 32;
    /// `e_phnum`, 16 bits.
    pub const SEGMENT_COUNT: usize = 56;
    /// The loaded segment's `p_offset`, 64 bits.
    pub const OFFSET: usize = 64 + 8;
    /// The loaded segment's `p_paddr`, 64 bits.
    pub const ADDRESS: usize = 64 + 24;
    /// The loaded segment's `p_filesz`, 64 bits.
    pub const FILE_SIZE: usize = 64 + 32;
    /// The loaded segment's `p_memsz`, 64 bits.
    pub const MEMORY_SIZE: usize = 64 + 40;
    /// `p_type` of the second segment, 32 bits.
    pub const SECOND_KIND: usize = 64 + 56;
    /// The PVH note's descriptor, 32 bits.
    pub const PVH_ENTRY: usize = 0x200 + 16;
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: u64, address: u64, len: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(7_u32.to_le_bytes()); // readable, writable, executable
    for word in [offset, address, address, len, len, 4] {
        file.extend(word.to_le_bytes());
    }
}

/// `file` with `bytes` at `at`, in place of what was there.
#[must_use]
pub fn patched(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    if let Some(place) = file.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
    file
}
