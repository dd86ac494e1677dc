//! The few model-specific registers and local APIC settings that a vCPU needs before its first
//! instruction. Everything else is as KVM resets it, or the guest's own business.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::vm::KvmError;

/// `IA32_MISC_ENABLE`: firmware would have switched fast string operations on.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: memory is write-back. Without it Linux takes all RAM for uncached, says so
/// at length, and turns its page attribute table off.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Sets what firmware would have set.
///
/// # Errors
/// If KVM refuses.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        reserved: 0,
    };
    let msrs = [
        entry(IA32_MISC_ENABLE, FAST_STRING),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ];
    let list = Msrs::from_entries(&msrs).expect("two entries fit");
    let done = vcpu
        .set_msrs(&list)
        .map_err(KvmError::of("set the boot MSRs"))?;
    if let Some(refused) = msrs.get(done) {
        let source = kvm_ioctls::Error::new(libc::EINVAL);
        let what = format!("set MSR {:#x}", refused.index);
        return Err(KvmError { what, source });
    }
    Ok(())
}

/// Local vector table entries of the local APIC's page (Intel SDM 3A, 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 0x700;
const DELIVERY_EXTINT: u32 = 0x700;
const DELIVERY_NMI: u32 = 0x400;

/// Wires LINT0 to external interrupts and LINT1 to NMI, as the MADT says (ACPI 6.5, 5.2.12.7).
///
/// # Errors
/// If KVM refuses.
pub fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = vcpu
        .get_lapic()
        .map_err(KvmError::of("read a local APIC"))?;
    set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(KvmError::of("set a local APIC"))
}

#[allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the page is C's char"
)]
fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = &mut lapic.regs[register..register + 4];
    let old = u32::from_le_bytes([
        bytes[0] as u8,
        bytes[1] as u8,
        bytes[2] as u8,
        bytes[3] as u8,
    ]);
    let new = (old & !DELIVERY_MODE) | mode;
    for (byte, value) in bytes.iter_mut().zip(new.to_le_bytes()) {
        *byte = value as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state::default();
        for byte in &mut lapic.regs[LVT_LINT0..LVT_LINT0 + 4] {
            *byte = -1;
        }
        set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_NMI);
        let bytes: Vec<u8> = lapic.regs[LVT_LINT0..LVT_LINT0 + 4]
            .iter()
            .map(|b| b.cast_unsigned())
            .collect();
        assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()), 0xffff_fcff);
        assert!(lapic.regs[LVT_LINT1..LVT_LINT1 + 4].iter().all(|b| *b == 0));
    }
}
