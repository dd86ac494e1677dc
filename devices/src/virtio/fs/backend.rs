//! What is said to the back end, by the vhost-user protocol (QEMU's docs/interop/vhost-user.rst).
//!
//! Each message is acknowledged, so that a refusal is noticed where it belongs.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::LentQueue;
use crate::event_loop::EventLoopError;
use crate::virtio::queue::QueueState;
use crate::virtio::spec::feature;

/// Rings are served as the transport has offered them to the driver.
const RING_FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// Why a back end cannot serve the device, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It has ended, or was too slow once.
    #[error("the program that serves it has ended, or does not answer")]
    Gone,
    /// It does not answer, or refuses.
    #[error("the program that serves it could not {what}")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// The reason.
        source: vhost::Error,
    },
    /// It is not made for this.
    #[error("the program that serves it lacks {what}")]
    Lacks {
        /// What it lacks.
        what: &'static str,
    },
    /// Guest memory that is this process's own cannot be given to another.
    #[error("the guest's memory is not shared")]
    PrivateMemory,
    /// The interrupt is of a kind that only this process can raise.
    #[error("its interrupt cannot be given to another process")]
    NoEvent,
    /// No timer is to be had.
    #[error("no timer is to be had")]
    Timer(#[source] io::Error),
    /// The event loop did not take the timer.
    #[error("the event loop did not take its timer")]
    EventLoop(#[source] EventLoopError),
}

fn refused(what: &'static str) -> impl Fn(vhost::Error) -> BackendError {
    move |source| BackendError::Refused { what, source }
}

/// The connection.
pub(super) struct Backend {
    frontend: Frontend,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    New,
    Agreed,
    Gone,
}

impl Backend {
    pub(super) fn new(connection: UnixStream, queues: u64) -> Self {
        Self {
            frontend: Frontend::from_stream(connection, queues),
            state: State::New,
        }
    }

    /// Ends the connection for good.
    pub(super) fn disconnect(&mut self, connection: &UnixStream) {
        self.state = State::Gone;
        // It fails if there is no other end, which is what is wanted.
        let _ = connection.shutdown(Shutdown::Both);
    }

    /// Lets it serve `queues` in `memory`, and signal `interrupt` for what it has used.
    pub(super) fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        queues: &[LentQueue],
        interrupt: &EventFd,
    ) -> Result<(), BackendError> {
        match self.state {
            State::New => self.agree()?,
            State::Agreed => {}
            State::Gone => return Err(BackendError::Gone),
        }
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend
            .set_features(features | protocol)
            .map_err(refused("use the driver's features"))?;
        self.frontend
            .set_mem_table(&regions(memory)?)
            .map_err(refused("map the guest's memory"))?;
        for queue in queues {
            self.start_queue(queue, interrupt)
                .map_err(refused("start a queue"))?;
            // For what the driver has sent before anybody waited; a full counter is a kick, too.
            let _ = queue.kick.write(1);
        }
        Ok(())
    }

    /// Once in a connection.
    fn agree(&mut self) -> Result<(), BackendError> {
        let frontend = &mut self.frontend;
        frontend.set_owner().map_err(refused("be claimed"))?;
        let offered = frontend
            .get_features()
            .map_err(refused("say what it can"))?;
        if offered & RING_FEATURES != RING_FEATURES {
            let what = "features of its queues";
            return Err(BackendError::Lacks { what });
        }
        let protocol = frontend.get_protocol_features();
        let protocol = protocol.map_err(refused("say what it can"))?;
        if !protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            let what = "acknowledgements";
            return Err(BackendError::Lacks { what });
        }
        frontend
            .set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)
            .map_err(refused("acknowledge messages"))?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.state = State::Agreed;
        Ok(())
    }

    fn start_queue(&mut self, queue: &LentQueue, interrupt: &EventFd) -> vhost::Result<()> {
        let (index, state) = (usize::from(queue.index), &queue.state);
        let addresses = VringConfigData {
            queue_max_size: state.max_size,
            queue_size: state.size,
            flags: 0,
            desc_table_addr: state.desc_table,
            used_ring_addr: state.used_ring,
            avail_ring_addr: state.avail_ring,
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, state.size)?;
        frontend.set_vring_addr(index, &addresses)?;
        frontend.set_vring_base(index, state.next_avail)?;
        frontend.set_vring_call(index, interrupt)?;
        frontend.set_vring_kick(index, &queue.kick)?;
        frontend.set_vring_enable(index, true)
    }

    /// Takes `queues` back. What it was working on is done when this returns.
    pub(super) fn stop(
        &mut self,
        queues: &[LentQueue],
    ) -> Result<Vec<(u16, QueueState)>, BackendError> {
        let mut states = Vec::new();
        for LentQueue { index, state, .. } in queues {
            let base = self.frontend.get_vring_base(usize::from(*index));
            // Only the low half is an index; the rest is for another kind of queue.
            let next = base.map_err(refused("stop a queue"))? as u16;
            let mut state = state.clone();
            state.next_avail = next;
            state.next_used = next;
            states.push((*index, state));
        }
        Ok(states)
    }
}

/// Guest memory as the back end maps it. The "user addresses" in which the queues are named are the
/// guest's own: where memory lies in this process is nobody's business.
fn regions(memory: &GuestMemoryMmap) -> Result<Vec<VhostUserMemoryRegionInfo>, BackendError> {
    memory
        .iter()
        .map(|region| {
            let file = region.file_offset().ok_or(BackendError::PrivateMemory)?;
            let start = region.start_addr().0;
            Ok(VhostUserMemoryRegionInfo {
                guest_phys_addr: start,
                memory_size: region.len(),
                userspace_addr: start,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            })
        })
        .collect()
}
