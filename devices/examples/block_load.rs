//! Drives a disk through its transport without a guest, and prints what the device's side costs:
//! `block_load FILE [read|write|randread|randwrite] [SIZE] [DEPTH] [sync|uring] [SECONDS] [shared|own]`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casita_devices::bus::BusDevice;
use casita_devices::event_loop::EventLoop;
use casita_devices::interrupt::Interrupt;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::block::{Block, BlockConfig, Engine};
use casita_devices::virtio::transport::mmio::MmioTransport;
use usage::Usage;

/// CPU time of the whole process and of this thread.
mod usage {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    pub struct Usage;

    impl Usage {
        fn read(clock: ClockId) -> Duration {
            let time = clock_gettime(clock);
            Duration::new(
                time.tv_sec.try_into().unwrap_or(0),
                time.tv_nsec.try_into().unwrap_or(0),
            )
        }

        /// All threads but the caller's, which plays the guest.
        pub fn of_the_device() -> Duration {
            Self::read(ClockId::ProcessCPUTime) - Self::read(ClockId::ThreadCPUTime)
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, default: &str| args.get(at).map_or(default.to_owned(), Clone::clone);
    let path = arg(0, "");
    let (mode, size) = (arg(1, "randread"), arg(2, "4096").parse::<u32>()?);
    let (depth, engine) = (arg(3, "32").parse::<usize>()?, arg(4, "uring"));
    let seconds = Duration::from_secs(arg(5, "2").parse()?);

    let file = File::options().read(true).write(true).open(&path)?;
    let config = BlockConfig {
        engine: if engine == "sync" {
            Engine::Sync
        } else {
            Engine::Uring
        },
        dedicated_thread: arg(6, "shared") == "own",
        ..BlockConfig::default()
    };
    let block = Block::new(file, Path::new(&path), &config)?;
    let blocks = block.capacity() * 512 / u64::from(size);
    let events = EventLoop::spawn("io", |message| eprintln!("{message}"))?;
    let memory = FakeDriver::memory();
    let interrupt = Arc::new(CountingInterrupt::default());
    let line = Arc::clone(&interrupt) as Arc<dyn Interrupt>;
    let transport =
        MmioTransport::new(Box::new(block), Arc::clone(&memory), line, events.handle())?;
    let device: Arc<dyn BusDevice> = Arc::new(transport);
    let mut driver = FakeDriver::new(device, memory, Arc::clone(&interrupt));
    driver.start(u64::MAX);

    let write = mode.ends_with("write");
    let data = vec![0x5a; size as usize];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let (mut sent, mut done, mut kicks) = (0u64, 0u64, 0u64);
    let (start, cpu, edges) = (Instant::now(), Usage::of_the_device(), interrupt.count());
    while start.elapsed() < seconds {
        while sent - done < depth as u64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let block = if mode.starts_with("rand") {
                random
            } else {
                sent
            } % blocks;
            let mut header = [0; 16];
            header[0] = u8::from(write);
            header[8..].copy_from_slice(&(block * u64::from(size) / 512).to_le_bytes());
            if write {
                driver.send(0, &[&header, &data], &[1]);
            } else {
                driver.send(0, &[&header], &[size, 1]);
            }
            sent += 1;
        }
        kicks += u64::from(driver.kick_if_asked(0));
        for used in driver.wait_used(0, 1) {
            assert_eq!(used.data.last(), Some(&0), "a request failed");
            done += 1;
        }
    }
    let (elapsed, cpu) = (start.elapsed(), Usage::of_the_device() - cpu);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / done as f64;
    println!(
        "{mode} {size} depth {depth} {engine}: {:.0} IOPS, {:.0} MiB/s, device CPU {:.2} us per request, {:.2} kicks and {:.2} interrupts per request",
        done as f64 / elapsed.as_secs_f64(),
        done as f64 * f64::from(size) / elapsed.as_secs_f64() / 1048576.0,
        each(cpu),
        kicks as f64 / done as f64,
        (interrupt.count() - edges) as f64 / done as f64,
    );
    Ok(())
}
