//! File systems that a guest gets beside its root.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The most mounts of one guest.
pub const MAX_MOUNTS: usize = 64;
/// The longest target, in bytes (`PATH_MAX` of Linux, with its NUL).
pub const MAX_TARGET_LEN: usize = 4095;

/// A file system to mount. Its target is an absolute path without `..`; what is missing of it is
/// made, with mode 755.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMount {
    /// An ext4 volume.
    Volume {
        /// The device's node, such as `/dev/vdc`.
        device: String,
        /// Where.
        target: Vec<u8>,
        /// Whether the host refuses writes to the device. Then its journal is not replayed.
        read_only: bool,
    },
    /// Memory.
    Tmpfs {
        /// Where.
        target: Vec<u8>,
        /// The most that it holds, in bytes; 0 for the kernel's default, half of the memory.
        size: u64,
        /// The mode of its root.
        mode: u32,
    },
    /// A directory of the host's, through virtio-fs.
    Share {
        /// The device's tag.
        tag: String,
        /// Where.
        target: Vec<u8>,
        /// Whether writes are refused. The host refuses them too.
        read_only: bool,
    },
}
