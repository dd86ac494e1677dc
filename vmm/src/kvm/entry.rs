//! From the boot plan's plain registers to KVM's.

use casita_boot::registers::{DescriptorTable, EntryState, Segment};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::vm::KvmError;

/// Gives the boot vCPU the registers that the kernel's entry expects.
///
/// # Errors
/// If KVM refuses.
pub fn set_registers(vcpu: &VcpuFd, entry: &EntryState) -> Result<(), KvmError> {
    let regs = kvm_regs {
        rip: entry.registers.rip,
        rbx: entry.registers.rbx,
        rsi: entry.registers.rsi,
        rflags: entry.registers.rflags,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::of("set the entry registers"))?;

    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmError::of("read the special registers"))?;
    sregs.cs = segment(&entry.cs);
    let data = segment(&entry.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&entry.tr);
    sregs.gdt = table(&entry.gdt);
    sregs.idt = table(&entry.idt);
    sregs.cr0 = entry.control.cr0;
    sregs.cr3 = entry.control.cr3;
    sregs.cr4 = entry.control.cr4;
    sregs.efer = entry.control.efer;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::of("set the special registers"))
}

/// A segment register as KVM takes it.
pub fn segment(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.type_,
        present: from.present,
        dpl: from.dpl,
        db: from.db,
        s: from.s,
        l: from.l,
        g: from.g,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

fn table(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: from.base,
        limit: from.limit,
        padding: [0; 3],
    }
}
