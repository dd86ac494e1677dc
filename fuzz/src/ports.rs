//! Whatever a guest reads from and writes to the I/O ports: serial port, power registers, the
//! guest's own account of its boot. The serial port works afterwards.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casita_devices::bus::{Bus, BusDevice};
use casita_devices::event_loop::EventLoop;
use casita_devices::power::{I8042Command, PowerEvents, ResetRegister, SleepRegisters};
use casita_devices::serial::{self, Output, Serial, SerialOutput};
use casita_devices::stamp::{self, StampDevice};
use casita_devices::testing::CountingInterrupt;

const SERIAL: u64 = 0x3f8;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    bus: Bus,
    serial: Serial,
    sink: Sink,
    _output: SerialOutput,
    _events: EventLoop,
}

impl Rig {
    fn new() -> Self {
        let events = crate::events();
        let sink = Sink::default();
        let interrupt = Arc::new(CountingInterrupt::default());
        let serial = Serial::new(interrupt, Output::writer(sink.clone())).expect("a port");
        let output = serial.start_output(&events.handle()).expect("an output");
        let power: PowerEvents = Arc::new(|_| ());
        let devices: [(u64, u64, Arc<dyn BusDevice>); 5] = [
            (SERIAL, serial::LEN, Arc::new(serial.clone())),
            (0x600, SleepRegisters::LEN, Arc::new(SleepRegisters::new(power.clone()))),
            (0x602, ResetRegister::LEN, Arc::new(ResetRegister::new(1, power.clone()))),
            (0x64, I8042Command::LEN, Arc::new(I8042Command::new(power))),
            (stamp::PORT, stamp::LEN, Arc::new(StampDevice::new())),
        ];
        let mut bus = Bus::default();
        for (base, len, device) in devices {
            bus.insert(base, len, "fuzz", device).expect("a free place");
        }
        Self {
            bus,
            serial,
            sink,
            _output: output,
            _events: events,
        }
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// One access: a byte that says which way and how wide, one of where, four of value.
pub fn run(data: &[u8]) {
    RIG.with_borrow(|rig| {
        for access in data.chunks_exact(6).take(500) {
            let &[how, at, ref value @ ..] = access else {
                continue;
            };
            let base = [SERIAL, SERIAL, 0x600, 0x64, stamp::PORT, 0][usize::from(how >> 4) % 6];
            let port = base.wrapping_add(u64::from(at % 16)).wrapping_sub(4);
            let width = [1, 2, 4, 3][usize::from(how >> 1) % 4];
            if how & 1 == 0 {
                rig.bus.write(port, &value[..width]);
            } else {
                rig.bus.read(port, &mut [0; 4][..width]);
            }
        }
        // Out of loop mode and off the divisor, as a driver sets it up.
        for (register, value) in [(3, 3), (1, 0), (4, 0), (2, 7)] {
            rig.bus.write(SERIAL + register, &[value]);
        }
        assert_eq!(rig.serial.drain(Duration::from_secs(10)), 0);
        rig.sink.0.lock().expect("no panic").clear();
        rig.bus.write(SERIAL, b"!");
        assert_eq!(rig.serial.drain(Duration::from_secs(10)), 0);
        assert_eq!(*rig.sink.0.lock().expect("no panic"), b"!");
    });
}
