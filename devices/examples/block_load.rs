//! Drives a disk through its transport without a guest, and prints what the device's side costs.
//! The file is written to.
//!
//! `block_load FILE [read|write|randread|randwrite] [SIZE] [DEPTH] [sync|uring] [SECONDS]
//! [shared|own]`
#![allow(
    clippy::cast_precision_loss,
    reason = "figures for people, not for computing on"
)]

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casita_devices::event_loop::EventLoop;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::block::{Block, BlockConfig, Engine};
use casita_devices::virtio::transport::mmio::MmioTransport;
use rustix::time::{ClockId, clock_gettime};

struct Load {
    write: bool,
    random: bool,
    size: u32,
    depth: u64,
    blocks: u64,
    time: Duration,
}

impl Load {
    /// The place of request `number`, as a count of blocks.
    fn block(&self, number: u64) -> u64 {
        if self.random {
            // Multiplying by an odd number visits blocks in no order that a read-ahead knows.
            number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.blocks
        } else {
            number % self.blocks
        }
    }

    fn send(&self, driver: &mut FakeDriver, number: u64, data: &[u8]) {
        let sector = self.block(number) * u64::from(self.size) / 512;
        let mut header = [0; 16];
        header[0] = u8::from(self.write);
        header[8..].copy_from_slice(&sector.to_le_bytes());
        if self.write {
            driver.send(0, &[&header, data], &[1]);
        } else {
            driver.send(0, &[&header], &[self.size, 1]);
        }
    }

    /// Keeps `depth` requests outstanding; returns how many were served, and kicks.
    fn run(&self, driver: &mut FakeDriver) -> (u64, u64) {
        // The driver has little memory, and takes it anew only when nothing is outstanding.
        let batch = if self.size < 1 << 16 { 1 } else { self.depth };
        let data = vec![0x5a; self.size as usize];
        let (mut sent, mut done, mut kicks) = (0, 0, 0);
        let start = Instant::now();
        while start.elapsed() < self.time {
            while sent < done + self.depth {
                self.send(driver, sent, &data);
                sent += 1;
            }
            kicks += u64::from(driver.kick_if_asked(0));
            for used in driver.wait_used(0, batch as usize) {
                assert_eq!(used.data.last(), Some(&0), "a request failed");
                done += 1;
            }
        }
        (done, kicks)
    }
}

/// CPU seconds of all threads but the caller's, which plays the guest.
fn device_cpu() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    seconds(ClockId::ProcessCPUTime) - seconds(ClockId::ThreadCPUTime)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize, default: &str| args.get(at).map_or(default.to_owned(), Clone::clone);
    let (path, mode) = (arg(0, ""), arg(1, "randread"));
    let config = BlockConfig {
        engine: match &*arg(4, "uring") {
            "sync" => Engine::Sync,
            _ => Engine::Uring,
        },
        dedicated_thread: arg(6, "shared") == "own",
        ..BlockConfig::default()
    };
    let file = File::options().read(true).write(true).open(&path)?;
    let block = Block::new(file, Path::new(&path), &config)?;
    let size: u32 = arg(2, "4096").parse()?;
    let load = Load {
        write: mode.ends_with("write"),
        random: mode.starts_with("rand"),
        size,
        depth: arg(3, "32").parse()?,
        blocks: block.capacity() * 512 / u64::from(size),
        time: Duration::from_secs(arg(5, "2").parse()?),
    };

    let events = EventLoop::spawn("io", |message| eprintln!("{message}"))?;
    let memory = FakeDriver::memory();
    let interrupt = Arc::new(CountingInterrupt::default());
    let transport = MmioTransport::new(
        Box::new(block),
        memory.clone(),
        interrupt.clone(),
        events.handle(),
    )?;
    let mut driver = FakeDriver::new(Arc::new(transport), memory, interrupt.clone());
    driver.start(u64::MAX);
    let (start, cpu, edges) = (Instant::now(), device_cpu(), interrupt.count());
    let (done, kicks) = load.run(&mut driver);
    let per_second = done as f64 / start.elapsed().as_secs_f64();
    let each = |count: f64| count / done as f64;
    println!(
        "{mode} {size} depth {}: {per_second:.0}/s, {:.0} MiB/s; for each request {:.2} us of the \
         device's CPU, {:.2} kicks, {:.2} interrupts",
        load.depth,
        per_second * f64::from(size) / f64::from(1 << 20),
        each((device_cpu() - cpu) * 1e6),
        each(kicks as f64),
        each((interrupt.count() - edges) as f64),
    );
    Ok(())
}
