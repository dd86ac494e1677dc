//! Packets to the guest.

use std::io;

use zerocopy::{FromZeros, IntoBytes};

use super::{Worker, WorkerError};
use crate::event_loop::Control;
use crate::virtio::chain::Chain;
use crate::virtio::vsock::packet::{EVENT_TRANSPORT_RESET, HEADER_LEN, Header, Op};
use crate::virtio::vsock::socket::data_room;

/// Buffers of the driver's that are filled before other handlers have their turn.
const BUDGET: usize = 128;
/// Buffers that one connection fills in its turn, with one system call.
const MAX_BATCH: usize = 16;
/// Bytes that one connection receives in its turn, however large the driver's buffers are.
const MAX_BYTES: u32 = 64 << 10;

/// Why nothing more is sent for now.
#[derive(PartialEq, Eq)]
enum Pause {
    /// There is nothing to send.
    Idle,
    /// The driver has given no buffers.
    Starved,
    /// Others have their turn.
    Spent,
}

impl Worker {
    /// Sends what there is to send.
    pub(super) fn pump(&mut self, control: &mut Control<'_>) -> Result<(), WorkerError> {
        let mut budget = BUDGET;
        if self.rx_awaited {
            self.rx_awaited = false;
            self.rx.queue.disable_notification()?;
        }
        loop {
            match self.send_some(&mut budget, control)? {
                Pause::Idle => break,
                Pause::Spent => {
                    // Comes back after the others. A full counter is a kick too.
                    let _ = self.rx.kick.write(1);
                    break;
                }
                Pause::Starved => {
                    self.rx_awaited = true;
                    if !self.rx.queue.enable_notification()? {
                        break;
                    }
                }
            }
        }
        self.resume_packets();
        Ok(self.rx.queue.notify()?)
    }

    /// RSTs go first, then other words, then data. Words about a stream's end are queued when its
    /// data is with the driver, so they follow it.
    fn send_some(
        &mut self,
        budget: &mut usize,
        control: &mut Control<'_>,
    ) -> Result<Pause, WorkerError> {
        loop {
            if *budget == 0 {
                return Ok(Pause::Spent);
            }
            if let Some(header) = self.resets.front().copied() {
                if !self.send_header(&header, budget)? {
                    return Ok(Pause::Starved);
                }
                self.resets.pop_front();
            } else if let Some(&slot) = self.queued.front() {
                if !self.send_pending(slot, budget)? {
                    return Ok(Pause::Starved);
                }
            } else if let Some(slot) = self.runnable.pop_front() {
                if !self.receive_for(slot, budget)? {
                    self.runnable.push_front(slot);
                    return Ok(Pause::Starved);
                }
                self.settle(slot, control);
            } else {
                return Ok(Pause::Idle);
            }
        }
    }

    /// Sends the next of what a connection has to tell. False if there was no buffer for it.
    fn send_pending(&mut self, slot: u32, budget: &mut usize) -> Result<bool, WorkerError> {
        let guest_cid = self.host.guest_cid;
        let connection = self.connections.get_mut(slot);
        let next = connection.and_then(|it| Some((it.key?, it.pending.first()?)));
        let Some((key, op)) = next else {
            self.queued.pop_front();
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.is_queued = false;
            }
            return Ok(true);
        };
        let Some(chain) = self.take_buffer(HEADER_LEN, budget)? else {
            return Ok(false);
        };
        // The credit is what it is now that it is told.
        let connection = self.connections.get_mut(slot);
        let header = connection.map(|connection| {
            connection.pending.remove(op);
            connection.header(key, op, guest_cid)
        });
        let header = header.unwrap_or_else(Header::new_zeroed);
        chain.write_all(&self.memory, 0, header.as_bytes())?;
        self.rx.queue.complete(chain, HEADER_LEN)?;
        Ok(true)
    }

    fn send_header(&mut self, header: &Header, budget: &mut usize) -> Result<bool, WorkerError> {
        let Some(chain) = self.take_buffer(HEADER_LEN, budget)? else {
            return Ok(false);
        };
        chain.write_all(&self.memory, 0, header.as_bytes())?;
        self.rx.queue.complete(chain, HEADER_LEN)?;
        Ok(true)
    }

    /// The driver's next buffer with room for `least` bytes. Smaller ones are of no use, and are
    /// given back empty.
    fn take_buffer(
        &mut self,
        least: u32,
        budget: &mut usize,
    ) -> Result<Option<Chain>, WorkerError> {
        // At most as many are looked at as the queue is long.
        for _ in 0..self.rx.queue.size() {
            let Some(chain) = self.rx.queue.pop()? else {
                return Ok(None);
            };
            *budget = budget.saturating_sub(1);
            if chain.writable_len() >= least {
                return Ok(Some(chain));
            }
            self.notifier
                .warn(&"a receive buffer without room for a packet");
            self.rx.queue.complete(chain, 0)?;
        }
        Ok(None)
    }

    /// Receives for one connection, into several of the driver's buffers at once. False if there
    /// was none.
    fn receive_for(&mut self, slot: u32, budget: &mut usize) -> Result<bool, WorkerError> {
        let Some((limit, most)) = self.receive_limits(slot) else {
            return Ok(true);
        };
        let mut batch = std::mem::take(&mut self.batch);
        let found = self.take_batch(&mut batch, limit, most.min(*budget), budget)?;
        if found {
            self.receive_into(slot, &mut batch, limit)?;
        }
        self.batch = batch;
        Ok(found)
    }

    /// How many bytes a connection may receive now, and into how many buffers; None if it does not
    /// want to receive.
    fn receive_limits(&mut self, slot: u32) -> Option<(u32, usize)> {
        let connection = self.connections.get_mut(slot)?;
        if connection.end.is_some() || !connection.wants_to_receive() {
            connection.is_runnable = false;
            return None;
        }
        let limit = connection.send.available().min(MAX_BYTES);
        Some((limit, connection.batch))
    }

    /// Takes up to `most` buffers for `limit` bytes of data. False if there was none.
    fn take_batch(
        &mut self,
        batch: &mut Vec<Chain>,
        limit: u32,
        most: usize,
        budget: &mut usize,
    ) -> Result<bool, WorkerError> {
        let Some(first) = self.take_buffer(HEADER_LEN + 1, budget)? else {
            return Ok(false);
        };
        let mut room = data_room(&first);
        batch.push(first);
        while batch.len() < most && room < limit {
            let Some(chain) = self.rx.queue.pop()? else {
                break;
            };
            if data_room(&chain) == 0 {
                // It is dealt with when it is the first; until then the order must stay.
                self.rx.queue.put_back(chain)?;
                break;
            }
            *budget = budget.saturating_sub(1);
            room = room.saturating_add(data_room(&chain));
            batch.push(chain);
        }
        Ok(true)
    }

    fn receive_into(
        &mut self,
        slot: u32,
        batch: &mut Vec<Chain>,
        limit: u32,
    ) -> Result<(), WorkerError> {
        let Some(connection) = self.connections.get_mut(slot) else {
            return self.put_back(batch, 0);
        };
        connection.is_runnable = false;
        let received = self
            .pieces
            .receive(&connection.stream, &self.memory, batch, limit);
        let received = match received {
            Ok(received) if received.len > 0 => received,
            Ok(_) => {
                connection.stream_ended();
                return self.put_back(batch, 0);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return self.put_back(batch, 0);
            }
            Err(_) => {
                connection.stream_failed();
                return self.put_back(batch, 0);
            }
        };
        let packets = self.make_packets(slot, batch, received.len)?;
        let Some(connection) = self.connections.get_mut(slot) else {
            return Ok(());
        };
        if connection.send.available() == 0 {
            // Linux tells of new credit by itself; other drivers may wait to be asked.
            connection.pending.add(Op::CreditRequest);
        }
        if received.len == received.asked {
            // There may be more of it.
            connection.batch = (connection.batch * 2).min(MAX_BATCH);
            connection.is_runnable = true;
            self.runnable.push_back(slot);
        } else {
            connection.batch = packets.max(1);
        }
        Ok(())
    }

    /// Makes packets of the `len` bytes that are in the buffers of `batch`, and puts back those
    /// that are empty. Returns how many it made.
    fn make_packets(
        &mut self,
        slot: u32,
        batch: &mut Vec<Chain>,
        len: u32,
    ) -> Result<usize, WorkerError> {
        let mut left = len;
        let mut packets = 0;
        for chain in batch.iter() {
            let part = left.min(data_room(chain));
            if part == 0 {
                break;
            }
            left -= part;
            packets += 1;
            let connection = self.connections.get_mut(slot);
            let Some((connection, key)) = connection.and_then(|it| it.key.map(|key| (it, key)))
            else {
                break;
            };
            connection.send.consume(part);
            let header = Header {
                len: part.into(),
                ..connection.header(key, Op::Rw, self.host.guest_cid)
            };
            chain.write_all(&self.memory, 0, header.as_bytes())?;
        }
        self.put_back(batch, packets)?;
        left = len;
        for chain in batch.drain(..) {
            let part = left.min(data_room(&chain));
            left -= part;
            self.rx.queue.complete(chain, HEADER_LEN + part)?;
        }
        Ok(packets)
    }

    /// Puts the buffers from number `from` on back, so that they are the next ones to be taken.
    fn put_back(&mut self, batch: &mut Vec<Chain>, from: usize) -> Result<(), WorkerError> {
        while batch.len() > from
            && let Some(chain) = batch.pop()
        {
            self.rx.queue.put_back(chain)?;
        }
        Ok(())
    }

    /// Tells a driver that goes on after a restore that its connections are gone.
    pub(super) fn tell_of_reset(&mut self) -> Result<(), WorkerError> {
        let Some(event) = &mut self.event else {
            return Ok(());
        };
        // An error means that there was no kick.
        let _ = event.kick.read();
        if !self.reset_untold {
            return Ok(());
        }
        if let Some(chain) = event.queue.pop()? {
            let bytes = EVENT_TRANSPORT_RESET.to_le_bytes();
            let len = bytes.len() as u32;
            if chain.writable_len() >= len {
                chain.write_all(&self.memory, 0, &bytes)?;
                self.reset_untold = false;
            }
            let len = len.min(chain.writable_len());
            event.queue.complete(chain, len)?;
        }
        Ok(event.queue.notify()?)
    }
}
