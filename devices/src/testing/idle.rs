//! What devices are connected to when it does not matter to what.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use vm_memory::GuestAddress;

use crate::virtio::balloon::Discard;
use crate::virtio::net::backend::{Abilities, Backend, Frame, Landing, Offloads, Received, Sent};
use crate::virtio::net::{MacAddress, Net, NetConfig};

/// A network device with one pair of queues that leads nowhere.
///
/// # Panics
/// The process has no descriptor left.
pub fn idle_net(name: &str) -> Net {
    let config = NetConfig::new(MacAddress([2, 0, 0, 0, 0, 1]));
    let nowhere = Nowhere::new().expect("a descriptor");
    Net::new(name, &config, vec![Box::new(nowhere)]).expect("a device")
}

/// Memory of which nothing is given back.
#[derive(Debug)]
pub struct Keeper;

impl Discard for Keeper {
    fn discard(&self, _addr: GuestAddress, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A back end that takes every frame and has none.
#[derive(Debug)]
struct Nowhere {
    never: OwnedFd,
}

impl Nowhere {
    fn new() -> io::Result<Self> {
        let never = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { never })
    }
}

impl Backend for Nowhere {
    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            from_guest: Offloads::CHECKSUM,
            to_guest: Offloads::CHECKSUM,
        }
    }

    fn set_offloads(&mut self, _to_guest: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _frame: &Frame<'_>) -> Sent {
        Sent::Done
    }

    fn receive(&mut self, _landing: &mut Landing<'_>) -> Received {
        Received::Nothing
    }
}
