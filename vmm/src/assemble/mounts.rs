//! What the guest mounts beside its root, on the host's side: disks and shared directories.

use std::fs::File;

use casita_devices::token_bucket::Rate;

use super::AssembleError;
use super::board::{self, VirtioBoard};
use crate::disk::Disk;
use crate::memory::Backing;
use crate::share::{Share, ShareError};
use crate::volume::{Attach, PlannedMount};

/// The sources of all mounts.
pub(super) struct Mounts {
    /// Volumes' names, disks, and whether they are read-only.
    disks: Vec<(String, Disk, bool)>,
    /// The programs that serve directories.
    pub(super) shares: Vec<Share>,
    /// What keeps the volumes among these directories from being removed.
    pub(super) holds: Vec<File>,
}

impl Mounts {
    /// Starts the programs that serve directories; they are ready by the time that the machine is.
    pub(super) fn start(planned: Vec<PlannedMount>) -> Result<Self, ShareError> {
        let mut mounts = Self {
            disks: Vec::new(),
            shares: Vec::new(),
            holds: Vec::new(),
        };
        for mount in planned {
            match mount.attach {
                Attach::VolumeDisk {
                    name,
                    disk,
                    read_only,
                } => mounts.disks.push((name, disk, read_only)),
                Attach::Share {
                    dir,
                    tag,
                    read_only,
                    hold,
                } => {
                    mounts.shares.push(Share::start(&dir, &tag, read_only)?);
                    mounts.holds.extend(hold);
                }
                // The guest's own memory.
                Attach::Tmpfs { .. } => {}
            }
        }
        Ok(mounts)
    }

    /// The memory that the guest needs. That of one process alone is the cheaper kind: guests have
    /// the kernel's pages in common.
    pub(super) fn backing(&self) -> Backing {
        if self.shares.is_empty() {
            Backing::Private
        } else {
            Backing::Shared
        }
    }

    /// Plugs the devices in; the disks are those that the guest counts on from its own.
    pub(super) fn plug_in(
        &mut self,
        virtio: &mut VirtioBoard<'_>,
        rate: Option<Rate>,
    ) -> Result<(), AssembleError> {
        for (name, disk, read_only) in self.disks.drain(..) {
            let device = board::volume_device(disk, &name, read_only, rate)?;
            virtio.plug_in_disk(&name, device)?;
        }
        for share in &self.shares {
            virtio.plug_in(board::fs_device(share)?)?;
        }
        Ok(())
    }
}
