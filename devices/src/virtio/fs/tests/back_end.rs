//! A back end in this process, made of the library that real ones are made of.

use std::io;
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue_017::{DescriptorChain, QueueOwnedT};
use vm_memory_017::{
    Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::virtio::spec::feature;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// It writes what it reads, last byte first.
struct Reverse {
    memory: Memory,
    idle: AtomicBool,
}

impl VhostUserBackend for Reverse {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        1024
    }
    fn features(&self) -> u64 {
        let rings = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
        rings | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }
    fn set_event_idx(&self, _enabled: bool) {}
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }
    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let vring = &vrings[usize::from(queue)];
        while !self.idle.load(Ordering::SeqCst) {
            let mut state = vring.get_mut();
            let mut chains = state.get_queue_mut().iter(self.memory.memory()).unwrap();
            let Some(chain) = chains.next() else {
                drop(state);
                if vring.enable_notification().unwrap() {
                    continue;
                }
                break;
            };
            drop(state);
            let (head, len) = (chain.head_index(), reverse(chain));
            vring.add_used(head, len).unwrap();
            if vring.needs_notification().unwrap() {
                vring.signal_used_queue().unwrap();
            }
        }
        Ok(())
    }
}

fn reverse(chain: DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>) -> u32 {
    let memory = chain.memory().clone();
    let (mut bytes, mut written) = (Vec::new(), 0);
    for descriptor in chain {
        if descriptor.is_write_only() {
            bytes.reverse();
            memory.write_slice(&bytes, descriptor.addr()).unwrap();
            written = bytes.len() as u32;
        } else {
            let mut part = vec![0; descriptor.len() as usize];
            memory.read_slice(&mut part, descriptor.addr()).unwrap();
            bytes.extend(part);
        }
    }
    written
}

pub struct FakeBackEnd {
    backend: Arc<Reverse>,
    connection: UnixStream,
    daemon: VhostUserDaemon<Arc<Reverse>>,
}

impl FakeBackEnd {
    /// It runs; the connection is the front end's.
    pub fn start() -> (Self, UnixStream) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("casita-test-{}-{count}", std::process::id());
        let name = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let connection = UnixStream::connect_addr(&name).unwrap();

        let memory = Memory::new(GuestMemoryMmap::new());
        let backend = Arc::new(Reverse {
            memory: memory.clone(),
            idle: AtomicBool::new(false),
        });
        let daemon = VhostUserDaemon::new("test".to_owned(), backend.clone(), memory);
        let mut daemon = daemon.unwrap();
        daemon.start(&mut Listener::from(listener)).unwrap();
        let back_end = Self {
            backend,
            connection: connection.try_clone().unwrap(),
            daemon,
        };
        (back_end, connection)
    }

    /// Requests are left where they are from now on.
    pub fn stop_serving(&self) {
        self.backend.idle.store(true, Ordering::SeqCst);
    }

    /// What the front end sees when the process ends. Nobody waits for kicks any more then.
    pub fn end(mut self) {
        self.connection.shutdown(Shutdown::Both).unwrap();
        self.daemon.wait().unwrap_err();
    }
}
