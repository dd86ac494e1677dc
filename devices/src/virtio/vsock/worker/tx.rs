//! Packets from the guest.

use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use super::{MAX_RESETS, Worker, WorkerError};
use crate::event_loop::Control;
use crate::virtio::chain::Chain;
use crate::virtio::vsock::HOST_CID;
use crate::virtio::vsock::connection::{End, Key, State};
use crate::virtio::vsock::host::ConnectError;
use crate::virtio::vsock::packet::{HEADER_LEN, Header, Op, Shutdown, TYPE_STREAM};

/// Packets that are taken before other handlers have their turn.
const BUDGET: usize = 64;

impl Worker {
    /// Takes packets until there are none, within the budget, and as long as there is room for
    /// what they make us answer.
    pub(super) fn take_packets(&mut self, control: &mut Control<'_>) -> Result<(), WorkerError> {
        // An error means that there was no kick, and no harm in looking all the same.
        let _ = self.tx.kick.read();
        self.tx.queue.disable_notification()?;
        let mut budget = BUDGET;
        loop {
            if self.resets.len() >= MAX_RESETS {
                self.tx_paused = true;
                break;
            }
            if budget == 0 {
                let _ = self.tx.kick.write(1);
                break;
            }
            budget -= 1;
            if let Some(chain) = self.tx.queue.pop()? {
                self.take_packet(&chain, control)?;
                self.tx.queue.complete(chain, 0)?;
            } else if !self.tx.queue.enable_notification()? {
                break;
            }
        }
        Ok(self.tx.queue.notify()?)
    }

    /// Goes on with the guest's packets once enough of ours have gone.
    pub(super) fn resume_packets(&mut self) {
        if self.tx_paused && self.resets.len() <= MAX_RESETS / 2 {
            self.tx_paused = false;
            // A full counter is a kick too.
            let _ = self.tx.kick.write(1);
        }
    }

    fn take_packet(&mut self, chain: &Chain, control: &mut Control<'_>) -> Result<(), WorkerError> {
        if chain.readable_len() < HEADER_LEN {
            self.notifier.warn(&"a packet without a whole header");
            return Ok(());
        }
        let mut header = Header::new_zeroed();
        chain.read_exact(&self.memory, 0, header.as_mut_bytes())?;
        if header.src_cid.get() != self.host.guest_cid {
            let warning = format_args!("a packet from context ID {}", header.src_cid).to_string();
            self.notifier.warn(&warning);
            return Ok(());
        }
        let op = Op::new(header.op.get());
        let known = header.kind.get() == TYPE_STREAM && header.dst_cid.get() == HOST_CID;
        let key = Key {
            host_port: header.dst_port.get(),
            guest_port: header.src_port.get(),
        };
        let slot = self.connections.find(key).filter(|_| known);
        match (op, slot) {
            (Some(Op::Rst), Some(slot)) => self.take_rst(slot, control),
            (Some(Op::Rst), None) => {}
            (Some(Op::Request), None) if known => self.take_request(&header, control),
            (Some(op), Some(slot)) => self.take_for(slot, op, &header, chain, control),
            // What is not understood ends the connection that it is about.
            (None, Some(slot)) => self.close(slot, End::Reset, ConnectError::Closed, control),
            (_, None) => self.refuse(&header),
        }
        Ok(())
    }

    /// A packet for a connection that there is.
    fn take_for(
        &mut self,
        slot: u32,
        op: Op,
        header: &Header,
        chain: &Chain,
        control: &mut Control<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let (alloc, forwarded) = (header.buf_alloc.get(), header.fwd_cnt.get());
        connection.send.update(alloc, forwarded);
        match op {
            Op::Response => {
                connection.accepted();
                self.clear_deadline(slot);
            }
            Op::Shutdown => {
                connection.guest_closes(Shutdown::from_flags(header.flags.get()));
            }
            Op::Rw if header.len.get() <= chain.readable_len() - HEADER_LEN => {
                let len = header.len.get();
                connection.data(&mut self.pieces, &self.memory, chain, len);
            }
            Op::CreditUpdate => {}
            Op::CreditRequest if matches!(connection.state, State::Open) => {
                connection.pending.add(Op::CreditUpdate);
            }
            // Data that is not there, a second request, or words before the answer to ours.
            Op::Rw | Op::Request | Op::CreditRequest | Op::Rst => {
                connection.end = Some(End::Reset);
            }
        }
        self.settle(slot, control);
    }

    fn take_rst(&mut self, slot: u32, control: &mut Control<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        connection.guest_resets();
        if connection.end.is_some() {
            return self.close(slot, End::Silent, ConnectError::Refused, control);
        }
        // Its last bytes are still on their way. The guest may use its ports again.
        self.connections.forget(slot);
        self.settle(slot, control);
    }

    /// Refuses a packet that is for nobody.
    pub(super) fn refuse(&mut self, header: &Header) {
        self.resets.push_back(header.refusal(self.host.guest_cid));
    }
}
