//! virtio 1.2: queues, the MMIO transport and the devices behind it.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod device;
pub mod fs;
mod memory;
pub mod net;
mod panic_relay;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod transport;
pub mod vsock;
pub mod walk;
