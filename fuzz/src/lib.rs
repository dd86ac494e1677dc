//! The bodies of the fuzz targets. Each takes any bytes and panics when something does not hold; the
//! programs in `fuzz_targets` give them to libFuzzer, and `tests/replay.rs` runs them on the seeds
//! without it.

use casita_devices::event_loop::EventLoop;

pub mod boot;

/// The targets, by name.
macro_rules! targets {
    ($($name:ident)*) => {
        $(pub mod $name;)*
        /// Each target's name and body.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::run)),*];
    };
}

targets! {
    agent_dhcp agent_spec agent_tar agent_wire
    boot_bzimage boot_cmdline boot_elf
    control_request copy_unpack
    image_config image_layer image_store image_stream
    machine_file
    net_frame net_specs
    ports
    sandbox_request
    virtio_balloon virtio_block virtio_fs virtio_mmio virtio_net virtio_pmem
    virtio_queue virtio_state virtio_vsock
    vm_record volume_record
}

/// A loop whose panics are findings.
fn events() -> EventLoop {
    EventLoop::spawn("fuzz-io", |message| {
        eprintln!("{message}");
        std::process::abort();
    })
    .expect("an event loop")
}

/// Gives each block of a tar archive that could be a header its checksum, for a fuzzer is long in
/// finding one.
fn mend_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
