//! What a vCPU says of itself: the host's supported CPUID, changed only where a guest would be
//! misled by it. Leaf numbers follow Intel's SDM 2A (CPUID) and AMD's APM 3, appendix E.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::vm::KvmError;

const FEATURES: u32 = 0x1;
const CACHE_TOPOLOGY: u32 = 0x4;
const PERF_MONITORING: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_CORE_COUNT: u32 = 0x8000_0008;
const AMD_CACHE_TOPOLOGY: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_PERF_MONITORING_V2: u32 = 0x8000_0022;

const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// CPUID as the host's KVM supports it, before the changes for one vCPU.
pub struct CpuidTemplate {
    entries: CpuId,
    vcpus: u8,
    tsc_deadline: bool,
}

impl CpuidTemplate {
    /// Asks KVM what it supports, for a guest with `vcpus` vCPUs.
    ///
    /// # Errors
    /// If KVM does not answer.
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, KvmError> {
        let entries = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("list the CPUID it supports"))?;
        Ok(Self {
            entries,
            vcpus,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// CPUID of the vCPU with local APIC ID `apic_id`.
    pub fn for_vcpu(&self, apic_id: u8) -> CpuId {
        let mut cpuid = self.entries.clone();
        for entry in cpuid.as_mut_slice() {
            self.adapt(entry, apic_id);
        }
        cpuid
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2, apic_id: u8) {
        let id = u32::from(apic_id);
        let vcpus = u32::from(self.vcpus);
        match entry.function {
            FEATURES => {
                // The host's own APIC ID and thread count stand here.
                entry.ebx = (entry.ebx & 0x0000_ffff) | (vcpus << 16) | (id << 24);
                // KVM emulates x2APIC whatever the host has; without the bit a guest pays an exit
                // with MMIO decoding for every interrupt.
                entry.ecx |= ECX_X2APIC | ECX_HYPERVISOR;
                // With it a guest needs neither PIT nor a calibration of the APIC timer.
                if self.tsc_deadline {
                    entry.ecx |= ECX_TSC_DEADLINE;
                }
                if vcpus > 1 {
                    entry.edx |= EDX_HTT;
                } else {
                    entry.edx &= !EDX_HTT;
                }
            }
            // How many threads share a cache: the host's numbers would make Linux see vCPUs as
            // siblings of cores that are not there. Each vCPU is a core of its own, in one package.
            CACHE_TOPOLOGY | AMD_CACHE_TOPOLOGY => {
                let kind = entry.eax & 0x1f;
                let level = (entry.eax >> 5) & 0x7;
                if kind != 0 {
                    let sharing = if level >= 3 { vcpus - 1 } else { 0 };
                    entry.eax &= !(0xfff << 14);
                    entry.eax |= sharing << 14;
                    if entry.function == CACHE_TOPOLOGY {
                        entry.eax &= !(0x3f << 26);
                        entry.eax |= (vcpus - 1).min(0x3f) << 26;
                    }
                }
            }
            // No performance counters: they are the host's, and a guest that finds some spends
            // time to set them up.
            PERF_MONITORING | AMD_PERF_MONITORING_V2 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            TOPOLOGY | TOPOLOGY_V2 => self.extended_topology(entry, id),
            AMD_CORE_COUNT => {
                // Bits 0-7: cores less one; bits 12-15: how many bits of the APIC ID number them.
                entry.ecx = (entry.ecx & !0xf0ff) | (vcpus - 1) | (self.core_id_bits() << 12);
            }
            AMD_TOPOLOGY => {
                entry.eax = id;
                // One thread a core, core number as the APIC ID; one node.
                entry.ebx = id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    fn core_id_bits(&self) -> u32 {
        u8::BITS - (self.vcpus - 1).leading_zeros()
    }

    /// Two levels: threads (one a core), then all cores of the one package.
    fn extended_topology(&self, entry: &mut kvm_cpuid_entry2, id: u32) {
        const LEVEL_SMT: u32 = 1;
        const LEVEL_CORE: u32 = 2;
        let (shift, count, kind) = match entry.index {
            0 => (0, 1, LEVEL_SMT),
            1 => (self.core_id_bits(), u32::from(self.vcpus), LEVEL_CORE),
            _ => (0, 0, 0),
        };
        entry.eax = shift;
        entry.ebx = count;
        entry.ecx = (entry.index & 0xff) | (kind << 8);
        entry.edx = id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(vcpus: u8, entries: &[kvm_cpuid_entry2]) -> CpuidTemplate {
        CpuidTemplate {
            entries: CpuId::from_entries(entries).unwrap(),
            vcpus,
            tsc_deadline: true,
        }
    }

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let template = template(
            4,
            &[leaf(FEATURES, 0), leaf(TOPOLOGY, 1), leaf(AMD_TOPOLOGY, 0)],
        );
        for id in 0..4 {
            let cpuid = template.for_vcpu(id);
            let [features, topology, amd] = cpuid.as_slice() else {
                panic!("three leaves")
            };
            assert_eq!(features.ebx >> 24, u32::from(id));
            assert_eq!(topology.edx, u32::from(id));
            assert_eq!(amd.eax, u32::from(id));
        }
    }

    #[test]
    fn all_vcpus_are_cores_of_one_package() {
        for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5)] {
            let template = template(
                vcpus,
                &[leaf(TOPOLOGY, 0), leaf(TOPOLOGY, 1), leaf(TOPOLOGY, 2)],
            );
            let cpuid = template.for_vcpu(0);
            let [smt, core, end] = cpuid.as_slice() else {
                panic!("three leaves")
            };
            assert_eq!((smt.eax, smt.ebx, smt.ecx >> 8), (0, 1, 1));
            assert_eq!(
                (core.eax, core.ebx, core.ecx >> 8),
                (bits, u32::from(vcpus), 2)
            );
            assert_eq!((end.ebx, end.ecx >> 8), (0, 0));
        }
    }

    #[test]
    fn the_guest_sees_no_performance_counters() {
        let mut counters = leaf(PERF_MONITORING, 0);
        counters.eax = 0x0730_0403;
        assert_eq!(template(1, &[counters]).for_vcpu(0).as_slice()[0].eax, 0);
    }

    #[test]
    fn a_single_vcpu_is_not_hyperthreaded() {
        let mut features = leaf(FEATURES, 0);
        features.edx = EDX_HTT;
        assert_eq!(
            template(1, &[features]).for_vcpu(0).as_slice()[0].edx & EDX_HTT,
            0
        );
        assert_ne!(
            template(2, &[leaf(FEATURES, 0)]).for_vcpu(0).as_slice()[0].edx & EDX_HTT,
            0
        );
    }
}
