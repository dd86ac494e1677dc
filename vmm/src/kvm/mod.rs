//! The host's KVM: opening it, and saying why it can't be opened.

pub mod cpuid;
pub mod entry;
pub mod msr;
pub mod vm;

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// Where the kernel offers KVM.
pub const DEVICE: &str = "/dev/kvm";

/// The API version that KVM has had since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What casita can't do without. Every x86 host since Linux 4.10 has all of it.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why KVM can't be used at all.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no such device.
    #[error(
        "{DEVICE} does not exist: load kvm_intel or kvm_amd (`modprobe kvm_amd`), switch on virtualization in the firmware, or give this machine nested virtualization"
    )]
    Missing,
    /// It is there, but not for this user.
    #[error(
        "{DEVICE} may not be opened by this user: join its group (`sudo usermod -aG kvm $USER`, then log in again)"
    )]
    Permission,
    /// It could not be opened for another reason.
    #[error("{DEVICE} could not be opened")]
    Open(#[source] io::Error),
    /// Something else answers there.
    #[error("{DEVICE} speaks version {0} of the KVM API, not {API_VERSION}")]
    Version(i32),
    /// A capability is missing.
    #[error("this host's KVM lacks {0}: a newer kernel is needed")]
    Capability(&'static str),
}

/// Opens the host's KVM and checks that it offers what casita needs.
///
/// # Errors
/// If the device is missing, forbidden, or not a KVM that can serve.
pub fn open() -> Result<Kvm, OpenError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => OpenError::Missing,
        libc::EACCES | libc::EPERM if Path::new(DEVICE).exists() => OpenError::Permission,
        errno => OpenError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(OpenError::Version(version));
    }
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(OpenError::Capability(name));
        }
    }
    Ok(kvm)
}
