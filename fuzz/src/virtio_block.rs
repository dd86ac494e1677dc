//! Whatever a driver puts into a request: the disk stays within its bounds, a read-only one stays
//! as it is, each chain comes back, and the device goes on.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::block::request::{Limits, parse_bytes};
use casita_devices::virtio::block::{Block, BlockConfig, Engine};
use casita_devices::virtio::transport::mmio::MmioTransport;

/// Bytes of the disk: short, so that requests reach its end.
const DISK: usize = 64 * 512;

struct Rig {
    driver: FakeDriver,
    file: File,
    _events: EventLoop,
}

impl Rig {
    fn new(engine: Engine, read_only: bool) -> Self {
        let path = std::env::temp_dir().join(format!("casita-fuzz-{}", std::process::id()));
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("a file");
        std::fs::remove_file(&path).expect("the file is ours");
        file.write_all_at(&[0x5a; DISK], 0).expect("room for it");
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = File::options().read(true).write(!read_only).open(again);
        let config = BlockConfig {
            engine,
            read_only,
            ..BlockConfig::default()
        };
        let block = Block::new(opened.expect("our file"), Path::new("fuzz"), &config);
        let events = EventLoop::spawn("fuzz-io", |message| {
            eprintln!("{message}");
            std::process::abort();
        })
        .expect("an event loop");
        let memory = FakeDriver::memory();
        let interrupt = Arc::new(CountingInterrupt::default());
        let transport = MmioTransport::new(
            Box::new(block.expect("a disk")),
            memory.clone(),
            interrupt.clone(),
            events.handle(),
        );
        let transport = Arc::new(transport.expect("a transport"));
        let mut driver = FakeDriver::new(transport, memory, interrupt);
        driver.start(u64::MAX);
        Self {
            driver,
            file,
            _events: events,
        }
    }
}

thread_local! {
    static RIGS: RefCell<[Rig; 3]> = RefCell::new([
        Rig::new(Engine::Auto, false),
        Rig::new(Engine::Sync, false),
        Rig::new(Engine::Auto, true),
    ]);
}

/// One input.
pub fn run(data: &[u8]) {
    let Some((&[which, cut, status, extra], request)) = data.split_first_chunk::<4>() else {
        return;
    };
    let limits = Limits {
        capacity: (DISK / 512) as u64,
        read_only: which & 4 != 0,
        features: u64::MAX,
    };
    let _ = parse_bytes(request, u32::from(status) * 16, &limits);

    RIGS.with_borrow_mut(|rigs| {
        let index = usize::from(which % 3);
        let rig = &mut rigs[index];
        let (first, second) = request.split_at(usize::from(cut).min(request.len()));
        let mut readable = vec![first, second];
        readable.retain(|part| !part.is_empty());
        let mut writable = vec![u32::from(status) * 16, u32::from(extra)];
        writable.retain(|&len| len > 0);
        if readable.is_empty() && writable.is_empty() {
            return;
        }
        if which & 8 == 0 {
            rig.driver.send(0, &readable, &writable);
        } else {
            rig.driver.send_indirect(0, &readable, &writable);
        }
        rig.driver.kick(0);
        let used = rig.driver.wait_used(0, 1);
        assert!(used[0].len as usize <= used[0].data.len());
        assert_eq!(rig.file.metadata().expect("metadata").len(), DISK as u64);
        if index == 2 {
            let mut content = [0; DISK];
            rig.file.read_exact_at(&mut content, 0).expect("a read");
            assert!(
                content.iter().all(|&byte| byte == 0x5a),
                "it was written to"
            );
        }
    });
}
