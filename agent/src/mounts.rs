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

/// The longest tag of a share, in bytes (virtio 1.2, 5.11.4).
pub const MAX_TAG_LEN: usize = 36;

/// Why a list of mounts was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// More than [`MAX_MOUNTS`].
    #[error("{0} mounts are too many for one guest; at most {MAX_MOUNTS} are possible")]
    TooMany(usize),
    /// A target is relative.
    #[error("mount point {0:?} is not an absolute path")]
    Relative(String),
    /// A target has a NUL inside or is longer than [`MAX_TARGET_LEN`], or one of its names is
    /// longer than Linux's file systems have them.
    #[error("mount point {0:?} is not a path that Linux knows: it is too long or has a NUL byte")]
    Unusable(String),
    /// A target goes up.
    #[error("mount point {0:?} has a '..'; write the path that is meant")]
    Parent(String),
    /// A target is the guest's root.
    #[error(
        "mount point {0:?} is the guest's root, which is there already; choose a path below it"
    )]
    Root(String),
    /// Two have the same target.
    #[error("two file systems are to be mounted on {0:?}; choose another path for one of them")]
    Twice(String),
    /// A device's node is not an absolute path or has a NUL inside.
    #[error("device {0:?} of a volume is not an absolute path")]
    Device(String),
    /// A tag is empty, longer than [`MAX_TAG_LEN`] or has a NUL inside.
    #[error("tag {0:?} of a share is not usable: it takes 1-{MAX_TAG_LEN} bytes without NUL")]
    Tag(String),
    /// A mode has more than permission bits.
    #[error("mode {0:o} of a tmpfs is not one: the largest is 7777")]
    Mode(u32),
}

impl GuestMount {
    /// Where it is mounted.
    pub fn target(&self) -> &[u8] {
        match self {
            GuestMount::Volume { target, .. }
            | GuestMount::Tmpfs { target, .. }
            | GuestMount::Share { target, .. } => target,
        }
    }
}

/// Checks what both host and agent insist on.
///
/// # Errors
/// [`MountError`], about the first mount that is wrong.
pub fn validate(mounts: &[GuestMount]) -> Result<(), MountError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(MountError::TooMany(mounts.len()));
    }
    for (index, mount) in mounts.iter().enumerate() {
        check_target(mount.target())?;
        let same = |other: &GuestMount| components(other.target()).eq(components(mount.target()));
        if mounts.iter().take(index).any(same) {
            return Err(MountError::Twice(lossy(mount.target())));
        }
        match mount {
            GuestMount::Volume { device, .. } => {
                if !device.starts_with('/') || device.contains('\0') {
                    return Err(MountError::Device(device.clone()));
                }
            }
            GuestMount::Tmpfs { mode, .. } => {
                if *mode > 0o7777 {
                    return Err(MountError::Mode(*mode));
                }
            }
            GuestMount::Share { tag, .. } => {
                if !(1..=MAX_TAG_LEN).contains(&tag.len()) || tag.contains('\0') {
                    return Err(MountError::Tag(tag.clone()));
                }
            }
        }
    }
    Ok(())
}

/// Checks one target.
///
/// # Errors
/// [`MountError`], when it is not the path of something below the guest's root.
pub fn check_target(target: &[u8]) -> Result<(), MountError> {
    if target.first() != Some(&b'/') {
        return Err(MountError::Relative(lossy(target)));
    }
    let too_long = |name: &[u8]| name.len() > 255;
    if target.len() > MAX_TARGET_LEN || target.contains(&0) || components(target).any(too_long) {
        return Err(MountError::Unusable(lossy(target)));
    }
    if components(target).any(|name| name == b"..") {
        return Err(MountError::Parent(lossy(target)));
    }
    if components(target).next().is_none() {
        return Err(MountError::Root(lossy(target)));
    }
    Ok(())
}

/// The names in a path, without those that say nothing.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
}

/// For messages; no longer than people read.
fn lossy(bytes: &[u8]) -> String {
    let shown = bytes.get(..200).unwrap_or(bytes);
    String::from_utf8_lossy(shown).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tmpfs(target: &[u8]) -> GuestMount {
        GuestMount::Tmpfs {
            target: target.to_vec(),
            size: 0,
            mode: 0o1777,
        }
    }

    #[test]
    fn targets_are_below_the_root() {
        for good in [
            &b"/a"[..],
            b"/a/b",
            b"//a",
            b"/a/",
            b"/a/./b",
            b"/..a",
            b"/a b",
        ] {
            assert_eq!(check_target(good), Ok(()), "{}", lossy(good));
        }
        let refused = |target: &[u8]| check_target(target).unwrap_err();
        for relative in [&b""[..], b"a", b"./a", b"../a"] {
            assert!(matches!(refused(relative), MountError::Relative(_)));
        }
        for parent in [&b"/.."[..], b"/a/../b", b"/a/.."] {
            assert!(matches!(refused(parent), MountError::Parent(_)));
        }
        for root in [&b"/"[..], b"//", b"/.", b"/./."] {
            assert!(matches!(refused(root), MountError::Root(_)));
        }
        let long_name = [&b"/"[..], &[b'x'; 256]].concat();
        let long_path = b"/x".repeat(2048);
        for unusable in [&b"/a\0b"[..], &long_name, &long_path] {
            assert!(matches!(refused(unusable), MountError::Unusable(_)));
        }
    }

    #[test]
    fn one_target_takes_one_mount_however_it_is_written() {
        for other in [&b"/data"[..], b"/data/", b"//data", b"/./data"] {
            assert!(matches!(
                validate(&[tmpfs(b"/data"), tmpfs(other)]),
                Err(MountError::Twice(_))
            ));
        }
        assert_eq!(validate(&[tmpfs(b"/data"), tmpfs(b"/data/sub")]), Ok(()));
    }

    #[test]
    fn as_many_as_the_limit_are_taken() {
        let mounts: Vec<_> = (0..=MAX_MOUNTS)
            .map(|index| tmpfs(alloc::format!("/{index}").as_bytes()))
            .collect();
        assert_eq!(validate(&mounts[1..]), Ok(()));
        assert_eq!(validate(&mounts), Err(MountError::TooMany(MAX_MOUNTS + 1)));
    }

    #[test]
    fn devices_tags_and_modes_are_checked() {
        let volume = |device: &str| {
            validate(&[GuestMount::Volume {
                device: device.into(),
                target: b"/v".to_vec(),
                read_only: false,
            }])
        };
        assert_eq!(volume("/dev/vdc"), Ok(()));
        assert!(volume("vdc").is_err() && volume("/dev/\0").is_err());
        let share = |tag: &str| {
            validate(&[GuestMount::Share {
                tag: tag.into(),
                target: b"/s".to_vec(),
                read_only: true,
            }])
        };
        assert_eq!(share(&"t".repeat(MAX_TAG_LEN)), Ok(()));
        assert!(share("").is_err() && share("a\0").is_err());
        assert!(share(&"t".repeat(MAX_TAG_LEN + 1)).is_err());
        let mode = |mode| {
            validate(&[GuestMount::Tmpfs {
                target: b"/t".to_vec(),
                size: 1,
                mode,
            }])
        };
        assert_eq!(mode(0o7777), Ok(()));
        assert_eq!(mode(0o10000), Err(MountError::Mode(0o10000)));
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_below_the_root(
            target in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40)
        ) {
            if check_target(&target).is_ok() {
                let mut depth = 0;
                for name in target.split(|byte| *byte == b'/') {
                    prop_assert!(name != b"..");
                    depth += usize::from(!matches!(name, b"" | b"."));
                }
                prop_assert!(depth > 0 && target[0] == b'/' && !target.contains(&0));
            }
            let _ = validate(&[tmpfs(&target)]);
        }
    }
}
