//! The archive that carries the agent and its spec into the guest.

use alloc::vec::Vec;

use crate::cpio::{Archive, Entry};
use crate::hosts;
use crate::spec::{self, GuestSpec, SpecError};

/// The agent's program, which the kernel starts.
pub const AGENT_PATH: &str = "/init";
/// The encoded [`GuestSpec`].
pub const SPEC_PATH: &str = "/casita.spec";
/// Laid over the guest's `/etc/hosts`.
pub const HOSTS_PATH: &str = "/hosts";
/// Laid over the guest's `/etc/hostname`.
pub const HOSTNAME_PATH: &str = "/hostname";
/// Laid over the guest's `/etc/resolv.conf`, if it has a network.
pub const RESOLV_PATH: &str = "/resolv.conf";
/// Where the root image is mounted.
pub const IMAGE_DIR: &str = "/image";
/// Where the writable disk, or the memory in its place, is mounted.
pub const DISK_DIR: &str = "/disk";
/// Where both are joined, before this becomes the guest's root.
pub const ROOT_DIR: &str = "/root";
/// Where the kernel's device nodes are mounted, with `console` below it for the kernel itself.
pub const DEV_DIR: &str = "/dev";

/// Builds the initial RAM file system: an uncompressed cpio archive in the "newc" format with
/// `agent` as `/init`, the encoded `spec`, and the few files and directories that the agent needs.
///
/// # Errors
/// As [`spec::encode`].
pub fn build(agent: &[u8], spec: &GuestSpec) -> Result<Vec<u8>, SpecError> {
    let spec_bytes = spec::encode(spec)?;
    let too_long = || SpecError::TooLong(agent.len());
    let mut archive = Archive::with_capacity(agent.len() + spec_bytes.len() + 4096);
    let hosts = hosts::hosts(&spec.hostname, spec.network.as_ref());
    let hostname = hosts::hostname(&spec.hostname);
    let resolv = spec.network.as_ref().map(hosts::resolv_conf);
    let file = |mode, data| Entry::File { mode, data };
    // The kernel opens the console for its first program.
    let console = Entry::CharDevice { major: 5, minor: 1 };
    let entries = [
        (DEV_DIR, Entry::Directory),
        ("/dev/console", console),
        (IMAGE_DIR, Entry::Directory),
        (DISK_DIR, Entry::Directory),
        (ROOT_DIR, Entry::Directory),
        (HOSTS_PATH, file(0o644, hosts.as_bytes())),
        (HOSTNAME_PATH, file(0o644, hostname.as_bytes())),
        (SPEC_PATH, file(0o400, &spec_bytes)),
        (AGENT_PATH, file(0o755, agent)),
    ];
    let resolv = resolv
        .iter()
        .map(|text| (RESOLV_PATH, file(0o644, text.as_bytes())));
    for (path, entry) in entries.into_iter().chain(resolv) {
        let name = path.strip_prefix('/').unwrap_or(path);
        archive.add(name, &entry).ok_or_else(too_long)?;
    }
    archive.finish().ok_or_else(too_long)
}

/// An initial RAM file system with nothing but `init` as its first program, for guests without an
/// agent; `None` when that is longer than the format allows.
pub fn with_init(init: &[u8]) -> Option<Vec<u8>> {
    let mut archive = Archive::with_capacity(init.len() + 4096);
    archive.add(
        "init",
        &Entry::File {
            mode: 0o755,
            data: init,
        },
    )?;
    archive.finish()
}

#[cfg(test)]
mod tests;
