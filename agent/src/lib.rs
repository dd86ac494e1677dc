//! What the host and the guest's PID 1 say to each other, and how PID 1 gets into the guest.
//!
//! The host writes a [`spec::GuestSpec`] into the [`initrd`] that it builds around the agent's
//! program; the agent reads it, prepares the guest's root, and connects to the host. From then on
//! it does what the host says ([`wire`]): starts processes, carries their streams, ends the
//! machine. How far it has come, and the machine's exit status, it tells through [`ports`]. The
//! pure part of its work ([`command`], [`dhcp`], [`errno`], [`hosts`], [`proc`], [`rtnetlink`],
//! [`users`]) is here too, where it can be tested without a guest.
//!
//! The library needs no standard library: the agent is a static program without libc.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

extern crate alloc;

pub mod command;
#[cfg(feature = "files")]
pub mod copy;
mod cpio;
pub mod dhcp;
pub mod errno;
#[cfg(feature = "files")]
pub mod find;
pub mod group;
pub mod hosts;
pub mod initrd;
pub mod mounts;
pub mod ports;
pub mod proc;
pub mod rtnetlink;
pub mod spec;
pub mod tar;
pub mod users;
pub mod wire;
