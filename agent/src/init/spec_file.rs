//! The spec that the host put into the initial RAM file system.

use alloc::vec::Vec;

use casita_agent::spec::{self, GuestSpec};
use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::{Errno, read};

use crate::failure::{Doing, Failure};

/// Reads the spec, and removes it and the agent's own file from the initial RAM file system: what
/// they take there would be lost to the guest.
pub(crate) fn take(initramfs: &OwnedFd) -> Result<GuestSpec, Failure> {
    let bytes = read_file(initramfs).doing(|| "cannot read the guest spec /casita.spec")?;
    for name in [c"casita.spec", c"init"] {
        // A file that stays costs memory and nothing else.
        let _ = unlinkat(initramfs, name, AtFlags::empty());
    }
    spec::decode(&bytes).map_err(Failure::new)
}

fn read_file(initramfs: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(initramfs, c"casita.spec", flags, Mode::empty())?;
    let len = usize::try_from(fstat(&file)?.st_size).unwrap_or(usize::MAX);
    if len > 2 * spec::MAX_BODY_LEN {
        return Err(Errno::FBIG);
    }
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len && read(&file, spare_capacity(&mut bytes))? > 0 {}
    Ok(bytes)
}
