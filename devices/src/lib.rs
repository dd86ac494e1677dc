//! Casita's devices. Nothing in this crate knows KVM: a device sees guest memory, an eventfd that
//! tells of a kick, and an [`interrupt::Interrupt`] to raise.

pub mod bus;
pub mod event_loop;
pub mod first_time;
pub mod interrupt;
pub mod power;
pub mod rate_limit;
pub mod serial;
pub mod stamp;
#[doc(hidden)]
pub mod testing;
pub mod token_bucket;
pub mod virtio;
