//! PID 1 of a Casita guest: it prepares the guest's root, connects to the host, and does what that
//! says until the machine ends: starts processes, carries their streams, collects what has died.
//!
//! It is a static program without libc and without the standard library. Everything that can be
//! decided without a system call is in the library, which is tested on the host.

#![no_std]
#![no_main]
#![deny(clippy::indexing_slicing)]

extern crate alloc;

mod child;
mod console;
mod control;
mod copy;
mod dhcp;
mod end;
mod ending;
mod failure;
mod group;
mod heap;
mod list;
mod mounts;
mod network;
mod populate;
mod process;
mod report;
mod root;
mod server;
mod slots;
mod spec_file;
mod stamp;
mod start;
mod stdio;
mod stream;
mod string;
mod sys;
mod vsock;

use casita_agent::ports::{EXIT_AGENT_FAILED, Stage};
use casita_agent::spec::GuestSpec;
use rustix::fd::OwnedFd;

use crate::control::Control;
use crate::failure::Failure;
use crate::server::Server;

/// The whole of the guest's user space, from its first instruction to its last.
fn run() -> ! {
    stamp::claim();
    stamp::stage(Stage::Init);
    let initramfs = root::open_initramfs();
    let mut spec = None;
    let status = match &initramfs {
        Ok(initramfs) => {
            spec_file::take(initramfs).and_then(|read| guest(initramfs, spec.insert(read)))
        }
        Err(failure) => Err(failure.clone()),
    };
    let status = status.unwrap_or_else(|failure| {
        failure.print();
        EXIT_AGENT_FAILED
    });
    end::end(status, initramfs.as_ref().ok(), spec.as_ref())
}

/// Prepares the guest and serves the host; returns the machine's exit status.
fn guest(initramfs: &OwnedFd, spec: &GuestSpec) -> Result<u8, Failure> {
    root::prepare(initramfs, spec)?;
    mounts::mount_all(initramfs, &spec.mounts)?;
    network::prepare(&spec.hostname, spec.network.as_ref())?;
    let control = Control::connect(spec.key)?;
    let server = Server::new(&spec.hostname, control)?;
    stamp::stage(Stage::AgentReady);
    server.serve()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    Failure::new(format_args!("the agent has a bug: {info}")).print();
    if rustix::process::getpid().is_init() {
        end::end(EXIT_AGENT_FAILED, None, None)
    }
    sys::exit(EXIT_AGENT_FAILED)
}
