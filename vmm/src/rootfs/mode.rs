//! How the guest gets at its root image: as memory, or as a disk.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RootImage;

/// How a root image is attached, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RootfsMode {
    /// As memory where that is cheaper, else as a disk.
    #[default]
    Auto,
    /// As memory (virtio-pmem with DAX) where that is possible: the guest uses the host's page cache.
    Pmem,
    /// As a disk (virtio-block): the guest reads what it needs into its own memory.
    Block,
}

/// The device that a root image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootDevice {
    /// virtio-pmem.
    Pmem,
    /// virtio-block.
    Block,
}

/// What decides, beside the image.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Guest memory in bytes.
    pub memory: u64,
    /// The image's own init starts from it.
    pub plain: bool,
    /// Other processes have the guest's memory mapped, from one file, which the image is not in.
    pub shared_memory: bool,
}

/// Why an image is a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Asked,
    Layout,
    Large,
    Plain,
    SharedMemory,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "as was asked for",
            Self::Layout => {
                "its files can't be mapped in place: it is not an EROFS image that casita made"
            }
            Self::Large => "the guest would need more memory to manage it than it saves",
            Self::Plain => "a kernel that boots from it by itself may not know another device",
            Self::SharedMemory => "the guest's memory is shared with the programs that serve it",
        })
    }
}

/// Linux keeps 64 bytes for each page of such memory, in its own: this many times less than the image
/// has. An image may cost the guest a [`SHARE_OF_MEMORY`]th of its memory.
const PAGE_TO_STRUCT_PAGE: u64 = 64;
const SHARE_OF_MEMORY: u64 = 32;

impl RootfsMode {
    /// The device for `image`; says why at `-v` if it is a disk.
    pub fn device(self, image: &RootImage, around: Circumstances) -> RootDevice {
        match self.reason_for_a_disk(image, around) {
            None => RootDevice::Pmem,
            Some(reason) => {
                log::info!("the root image is a disk: {reason}");
                RootDevice::Block
            }
        }
    }

    fn reason_for_a_disk(self, image: &RootImage, around: Circumstances) -> Option<Reason> {
        let too_large = image.len / PAGE_TO_STRUCT_PAGE > around.memory / SHARE_OF_MEMORY;
        let auto = self == Self::Auto;
        let reasons = [
            (self == Self::Block, Reason::Asked),
            (!image.in_place, Reason::Layout),
            (around.shared_memory, Reason::SharedMemory),
            (auto && around.plain, Reason::Plain),
            (auto && too_large, Reason::Large),
        ];
        let mut reasons = reasons.into_iter();
        reasons.find_map(|(holds, reason)| holds.then_some(reason))
    }
}

#[cfg(test)]
mod tests {
    use casita_agent::spec::FsType;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn image(len: u64, in_place: bool) -> RootImage {
        RootImage {
            file: tempfile::tempfile().unwrap(),
            path: "/i".into(),
            fs: FsType::Erofs,
            len,
            in_place,
        }
    }

    const ORDINARY: Circumstances = Circumstances {
        memory: 128 * MIB,
        plain: false,
        shared_memory: false,
    };

    #[test]
    fn an_image_is_memory_where_that_is_possible_and_cheap() {
        let reason = |mode: RootfsMode, len, in_place, around| {
            mode.reason_for_a_disk(&image(len, in_place), around)
        };
        let plain = Circumstances {
            plain: true,
            ..ORDINARY
        };
        let shared = Circumstances {
            shared_memory: true,
            ..ORDINARY
        };
        let (auto, pmem, block) = (RootfsMode::Auto, RootfsMode::Pmem, RootfsMode::Block);
        let (small, large) = (2 * MIB, 258 * MIB);
        assert_eq!(reason(auto, small, true, ORDINARY), None);
        assert_eq!(reason(auto, 256 * MIB, true, ORDINARY), None);
        assert_eq!(reason(auto, large, true, ORDINARY), Some(Reason::Large));
        assert_eq!(reason(pmem, large, true, ORDINARY), None);
        assert_eq!(reason(auto, small, true, plain), Some(Reason::Plain));
        assert_eq!(reason(pmem, small, true, plain), None);
        for mode in [auto, pmem] {
            assert_eq!(reason(mode, small, false, ORDINARY), Some(Reason::Layout));
            assert_eq!(
                reason(mode, small, true, shared),
                Some(Reason::SharedMemory)
            );
        }
        assert_eq!(reason(block, small, true, ORDINARY), Some(Reason::Asked));
    }
}
