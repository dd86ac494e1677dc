//! virtio 1.2: queues, the MMIO transport and the devices behind it.

pub mod block;
pub mod chain;
pub mod device;
pub mod fs;
pub mod net;
mod panic_relay;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod transport;
pub mod vsock;
pub mod walk;
