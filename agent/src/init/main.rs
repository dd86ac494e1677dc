//! PID 1 of a Casita guest: it prepares the guest's root, runs one command in it, and ends the
//! machine with the command's exit status.
//!
//! It is a static program without libc and without the standard library. Everything that can be
//! decided without a system call is in the library, which is tested on the host.

#![no_std]
#![no_main]
#![deny(clippy::indexing_slicing)]

extern crate alloc;

mod child;
mod copy;
mod end;
mod failure;
mod heap;
mod mounts;
mod network;
mod root;
mod spec_file;
mod stamp;
mod start;
mod string;
mod supervise;
mod sys;
mod terminal;

use casita_agent::ports::{EXIT_AGENT_FAILED, Stage};
use rustix::fd::OwnedFd;

use crate::failure::Failure;

/// The whole of the guest's user space, from its first instruction to its last.
fn run() -> ! {
    stamp::claim();
    stamp::stage(Stage::Init);
    let initramfs = root::open_initramfs();
    let mut keep_disk = true;
    let status = match &initramfs {
        Ok(initramfs) => guest(initramfs, &mut keep_disk),
        Err(failure) => Err(failure.clone()),
    };
    let status = status.unwrap_or_else(|failure| {
        failure.print();
        EXIT_AGENT_FAILED
    });
    end::end(status, initramfs.as_ref().ok(), keep_disk)
}

/// Runs the guest's command and returns its exit status. `keep_disk` becomes what the spec says.
fn guest(initramfs: &OwnedFd, keep_disk: &mut bool) -> Result<u8, Failure> {
    let spec = spec_file::take(initramfs)?;
    *keep_disk = spec.keep_disk;
    terminal::prepare(spec.terminal)?;
    root::prepare(initramfs, &spec)?;
    network::prepare(&spec.hostname)?;
    stamp::stage(Stage::AgentReady);
    let status = supervise::run(&spec)?;
    stamp::stage(Stage::CommandExited);
    Ok(status)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    Failure::new(format_args!("the agent has a bug: {info}")).print();
    if rustix::process::getpid().is_init() {
        end::end(EXIT_AGENT_FAILED, None, false)
    }
    sys::exit(EXIT_AGENT_FAILED)
}
