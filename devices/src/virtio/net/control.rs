//! The control queue, section 5.1.6.5.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::MacAddress;
use super::layout::{
    F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_MQ, ctrl,
};
use super::shared::{Shared, hash_bit, mode};
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{StartedQueue, WithCauses};
use crate::virtio::queue::{Queue, QueueError};

/// Class and command.
const COMMAND_LEN: u32 = 2;
/// Bytes of an address.
const MAC_LEN: u32 = 6;
/// More addresses than this in a table are not looked at one by one: the driver gets every frame of that
/// kind then.
const MAX_TABLE: u32 = 256;

/// The queue's worker.
pub(super) struct ControlQueue {
    pub started: StartedQueue,
    pub shared: Arc<Shared>,
    /// What the device offers to every pair, as bits of features.
    pub pairs: u16,
    /// One for each pair.
    pub pokes: Vec<EventFd>,
}

#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error("its control queue cannot be served")]
    Queue(#[from] QueueError),
    #[error("an answer has no room")]
    Answer(#[source] ChainError),
}

/// The command cannot be carried out; the driver is told so.
struct Refused;

impl From<ChainError> for Refused {
    fn from(_: ChainError) -> Self {
        Self
    }
}

impl ControlQueue {
    fn serve(
        shared: &Shared,
        pairs: u16,
        queue: &mut Queue,
        chain: Chain,
    ) -> Result<(), ControlError> {
        let memory = Arc::clone(queue.memory());
        let done = Command::read(&chain, &memory).and_then(|command| command.run(shared, pairs));
        let answer = match done {
            Ok(()) => ctrl::OK,
            Err(Refused) => ctrl::ERR,
        };
        if chain.writable_len() == 0 {
            return Ok(queue.complete(chain, 0)?);
        }
        chain
            .write_all(&memory, 0, &[answer])
            .map_err(ControlError::Answer)?;
        Ok(queue.complete(chain, 1)?)
    }
}

impl Handler for ControlQueue {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.started.kick.as_raw_fd(),
            token: 0,
            interest: Interest::READ,
        }]
    }

    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        let (shared, pairs) = (&self.shared, self.pairs);
        let served = self
            .started
            .drain(|queue, chain| Self::serve(shared, pairs, queue, chain));
        for poke in &self.pokes {
            // A full counter is a signal, too.
            let _ = poke.write(1);
        }
        if let Err(error) = served {
            self.shared.notifier.needs_reset(&WithCauses(&error));
        }
    }
}

/// A command, copied once.
struct Command<'c> {
    class: u8,
    what: u8,
    chain: &'c Chain,
    memory: &'c GuestMemoryMmap,
}

impl<'c> Command<'c> {
    fn read(chain: &'c Chain, memory: &'c GuestMemoryMmap) -> Result<Self, Refused> {
        let mut start = [0; COMMAND_LEN as usize];
        chain.read_exact(memory, 0, &mut start)?;
        let [class, what] = start;
        Ok(Self {
            class,
            what,
            chain,
            memory,
        })
    }

    /// The command's data, which has to be of exactly this length.
    fn data<const N: usize>(&self) -> Result<[u8; N], Refused> {
        if self.chain.readable_len() as usize != COMMAND_LEN as usize + N {
            return Err(Refused);
        }
        self.bytes(COMMAND_LEN)
    }

    fn bytes<const N: usize>(&self, offset: u32) -> Result<[u8; N], Refused> {
        let mut bytes = [0; N];
        self.chain.read_exact(self.memory, offset, &mut bytes)?;
        Ok(bytes)
    }

    fn run(&self, shared: &Shared, pairs: u16) -> Result<(), Refused> {
        let has = |feature| shared.features & feature != 0;
        match (self.class, self.what) {
            (ctrl::RX, command @ (ctrl::RX_PROMISC | ctrl::RX_ALLMULTI)) if has(F_CTRL_RX) => {
                self.receive_mode(shared, command)
            }
            (ctrl::RX, command) if has(F_CTRL_RX_EXTRA) => self.receive_mode(shared, command),
            (ctrl::MAC, ctrl::MAC_TABLE_SET) if has(F_CTRL_RX) => self.tables(shared),
            (ctrl::MAC, ctrl::MAC_ADDR_SET) if has(F_CTRL_MAC_ADDR) => {
                let mac = MacAddress(self.data()?);
                if mac.is_group() {
                    return Err(Refused);
                }
                shared.filter.set_mac(mac);
                Ok(())
            }
            (ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET) if has(F_MQ) => {
                let count = u16::from_le_bytes(self.data()?);
                if !(1..=pairs).contains(&count) {
                    return Err(Refused);
                }
                shared.active_pairs.store(count, Relaxed);
                Ok(())
            }
            (ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET) if has(F_CTRL_GUEST_OFFLOADS) => {
                let wanted = u64::from_le_bytes(self.data()?);
                let offloads = super::features::to_guest(wanted & shared.features);
                // Only what was negotiated can be chosen.
                if wanted & !(shared.features & super::features::GUEST_OFFLOADS) != 0 {
                    return Err(Refused);
                }
                shared.to_guest.store(offloads.bits(), Relaxed);
                Ok(())
            }
            _ => Err(Refused),
        }
    }

    fn receive_mode(&self, shared: &Shared, command: u8) -> Result<(), Refused> {
        let bit = match command {
            ctrl::RX_PROMISC => mode::PROMISCUOUS,
            ctrl::RX_ALLMULTI => mode::ALL_MULTICAST,
            ctrl::RX_ALLUNI => mode::ALL_UNICAST,
            ctrl::RX_NOMULTI => mode::NO_MULTICAST,
            ctrl::RX_NOUNI => mode::NO_UNICAST,
            ctrl::RX_NOBCAST => mode::NO_BROADCAST,
            _ => return Err(Refused),
        };
        let [on] = self.data()?;
        shared.filter.set_mode(bit, on != 0);
        Ok(())
    }

    /// Two tables: unicast and multicast addresses, each behind its count in four bytes.
    fn tables(&self, shared: &Shared) -> Result<(), Refused> {
        let (unicast, next) = self.table(COMMAND_LEN)?;
        let (multicast, end) = self.table(next)?;
        if end != self.chain.readable_len() {
            return Err(Refused);
        }
        shared.filter.set_tables(unicast, multicast);
        Ok(())
    }

    /// The hashes of a table's addresses, and where it ends.
    fn table(&self, offset: u32) -> Result<(u64, u32), Refused> {
        let count = u32::from_le_bytes(self.bytes(offset)?);
        let start = offset.checked_add(4).ok_or(Refused)?;
        let len = count.checked_mul(MAC_LEN).ok_or(Refused)?;
        let end = start.checked_add(len).ok_or(Refused)?;
        if end > self.chain.readable_len() {
            return Err(Refused);
        }
        if count > MAX_TABLE {
            return Ok((u64::MAX, end));
        }
        let mut hashes = 0;
        for at in 0..count {
            hashes |= hash_bit(self.bytes(start + at * MAC_LEN)?);
        }
        Ok((hashes, end))
    }
}
