//! Whatever a guest writes into its rings: chains lie in RAM and are whole, taking them ends.

use casita_devices::testing::FakeDriver;
use casita_devices::virtio::device::DeviceNotifier;
use casita_devices::virtio::queue::Queue;
use casita_devices::virtio::spec::feature;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const SIZE: u16 = 16;
/// The descriptor table, and behind it what an indirect descriptor may take for one.
const TABLES: usize = 1024;

/// One input.
pub fn run(data: &[u8]) {
    let Some((&[flags, ref avail @ ..], tables)) = data.split_first_chunk::<40>() else {
        return;
    };
    let mut features = feature::VERSION_1;
    if flags & 1 != 0 {
        features |= feature::INDIRECT_DESC;
    }
    if flags & 2 != 0 {
        features |= feature::EVENT_IDX;
    }
    let driver = FakeDriver::without_device(SIZE, flags & 2 != 0);
    let memory = driver.guest_memory().clone();
    let layout = driver.layout(0);
    let tables = &tables[..tables.len().min(TABLES)];
    memory
        .write_slice(tables, GuestAddress(layout.desc))
        .unwrap();
    memory
        .write_slice(avail, GuestAddress(layout.avail))
        .unwrap();

    let notifier = DeviceNotifier::new("fuzz", driver.interrupt().clone());
    let mut queue = Queue::new(memory.clone(), &driver.queue_state(0), features, notifier).unwrap();
    let mut held = Vec::new();
    let mut taken = 0;
    while let Ok(Some(chain)) = queue.pop() {
        taken += 1;
        assert!(taken <= SIZE, "more chains than the index allows");
        let segments = chain.readable().iter().chain(chain.writable());
        let total: u64 = segments
            .map(|segment| {
                assert!(memory.check_range(segment.addr, segment.len as usize));
                u64::from(segment.len)
            })
            .sum();
        assert_eq!(
            total,
            u64::from(chain.readable_len()) + u64::from(chain.writable_len())
        );
        let len = chain.readable_len().min(64);
        let mut bytes = [0; 64];
        chain
            .read_exact(
                &memory,
                chain.readable_len() - len,
                &mut bytes[..len as usize],
            )
            .unwrap();
        // Written bytes may hit the rings themselves: a guest can do that to itself.
        let len = chain.writable_len().min(64);
        chain.write_all(&memory, 0, &bytes[..len as usize]).unwrap();
        if flags & 4 != 0 {
            let _ = queue.complete(chain, u32::MAX);
            let _ = queue.notify();
            let _ = queue.enable_notification();
        } else {
            held.push(chain);
        }
    }
    for chain in held.into_iter().rev() {
        let _ = queue.complete(chain, 1);
    }
    let _ = queue.notify();
    let state = queue.into_state();
    assert_eq!(state.desc_table, layout.desc);
}
