//! One VM of KVM's: memory slots, interrupt lines and doorbells.
//!
//! The order in which these are asked for matters. A memory slot that is set after the irqchip
//! exists waits for an SRCU grace period (milliseconds), so slots come first. There is no PIT:
//! creating one starts a kernel thread, and guests have kvm-clock and the TSC-deadline timer.
//! KVM's full irqchip is used, not the split one: both cost 0.02 ms to make here, and with the full
//! one an I/O APIC access of the guest never leaves the kernel.

use casita_boot::layout;
use casita_devices::interrupt::EventInterrupt;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::GuestRam;

/// A request that KVM refused, and for what.
#[derive(Debug, Error)]
#[error("KVM refused to {what}")]
pub struct KvmError {
    /// What was asked for.
    pub what: String,
    /// Its answer.
    #[source]
    pub source: kvm_ioctls::Error,
}

impl KvmError {
    /// For `map_err`: names what was asked for.
    pub fn of(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self {
            what: what.into(),
            source,
        }
    }
}

/// A VM of KVM's, with the guest memory that its slots point into.
pub struct Vm {
    fd: VmFd,
    // Dropped after `fd`: KVM's slots point into it.
    ram: GuestRam,
}

impl Vm {
    /// Makes a VM whose RAM is `ram`, with an irqchip and no PIT.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn new(kvm: &Kvm, ram: GuestRam) -> Result<Self, KvmError> {
        let fd = create(kvm)?;
        fd.set_tss_address(layout::KVM_TSS as usize)
            .map_err(KvmError::of("place the task state segment"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(KvmError::of("place the identity map"))?;
        let vm = Self { fd, ram };
        vm.set_memory_slots()?;
        vm.fd
            .create_irq_chip()
            .map_err(KvmError::of("create an irqchip"))?;
        Ok(vm)
    }

    #[allow(
        unsafe_code,
        reason = "KVM_SET_USER_MEMORY_REGION hands host memory to the guest"
    )]
    fn set_memory_slots(&self) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.ram.memory().iter()) {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .expect("a region of guest RAM is mapped");
            let area = kvm_userspace_memory_region {
                slot,
                // A write is an exit to whoever is at that address on the bus.
                flags: match region.prot() & libc::PROT_WRITE {
                    0 => KVM_MEM_READONLY,
                    _ => 0,
                },
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is mapped for as long as `self.ram` lives, and `self.fd`, the last
            // user of the slot, is dropped before it; regions do not overlap.
            unsafe { self.fd.set_user_memory_region(area) }
                .map_err(KvmError::of(format!("use memory slot {slot}")))?;
        }
        Ok(())
    }

    /// KVM's handle.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// An edge-triggered interrupt on global system interrupt `gsi`, raised by an irqfd.
    ///
    /// # Errors
    /// If KVM refuses, or no file descriptor is left.
    pub fn interrupt(&self, gsi: u32) -> Result<EventInterrupt, KvmError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|error| kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO)))
            .map_err(KvmError::of("make an eventfd"))?;
        self.fd
            .register_irqfd(&event, gsi)
            .map_err(KvmError::of(format!("wire interrupt {gsi}")))?;
        Ok(EventInterrupt::new(event))
    }

    /// Lets a 32-bit guest write of `value` to guest-physical `addr` signal `event`, in the kernel.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn doorbell(&self, event: &EventFd, addr: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(addr), value)
            .map_err(KvmError::of(format!("wire the doorbell at {addr:#x}")))
    }
}

/// `KVM_CREATE_VM`, again when a signal interrupts it, as it may.
fn create(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(KvmError::of("create a VM")),
        }
    }
}
