//! The ways in which a guest ends its machine: ACPI's sleep control and reset registers, and the
//! keyboard controller's reset pulse.
//!
//! The vmm puts each on its port bus at the addresses that the ACPI tables name. All of them call
//! one sink, which must not block: it runs on the vCPU's thread.

use std::sync::Arc;

use crate::bus::BusDevice;

/// Offset of the sleep control register in [`SleepRegisters`].
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register in [`SleepRegisters`].
pub const SLEEP_STATUS: u64 = 1;
/// Bit of the sleep control register that starts the transition (ACPI 6.5, table 4.13).
pub const SLP_EN: u8 = 1 << 5;
/// Sleep type of S5, soft off, as the DSDT's `_S5_` object has to name it.
pub const SLP_TYP_S5: u8 = 5;
/// Port of the keyboard controller's command register.
pub const I8042_COMMAND_PORT: u64 = 0x64;

const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;
/// Keyboard controller command: pulse output line 0, which a PC wires to the CPU's reset.
const I8042_PULSE_RESET: u8 = 0xfe;

/// What the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Soft off: the VM ends.
    Off,
    /// Reset: the VM starts anew, or ends if its owner does not restart it.
    Reset,
}

/// Takes power events. Called on the vCPU's thread, so it must only pass the event on.
pub type PowerEvents = Arc<dyn Fn(PowerEvent) + Send + Sync>;

/// ACPI's sleep control and sleep status registers of a hardware-reduced platform (ACPI 6.5,
/// section 4.8.3.7): two ports of one byte.
pub struct SleepRegisters {
    events: PowerEvents,
}

impl SleepRegisters {
    /// Number of ports.
    pub const LEN: u64 = 2;

    /// Registers that report to `events`.
    pub fn new(events: PowerEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status: no wake event is ever pending, as a machine that sleeps in S5 is gone.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (SLEEP_CONTROL, &[value, ..]) = (offset, data)
            && value & SLP_EN != 0
            && (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK == SLP_TYP_S5
        {
            (self.events)(PowerEvent::Off);
        }
    }
}

/// The reset register that the FADT names (ACPI 6.5, section 4.8.3.6): one byte.
pub struct ResetRegister {
    value: u8,
    events: PowerEvents,
}

impl ResetRegister {
    /// Number of ports.
    pub const LEN: u64 = 1;

    /// A register that resets when `value` (the FADT's `RESET_VALUE`) is written.
    pub fn new(value: u8, events: PowerEvents) -> Self {
        Self { value, events }
    }
}

impl BusDevice for ResetRegister {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&self.value) {
            (self.events)(PowerEvent::Reset);
        }
    }
}

/// As much of an i8042 as a foreign kernel needs to reset: its command port. Status reads as zero
/// (both buffers empty), so that no driver waits for a keyboard that is not there.
pub struct I8042Command {
    events: PowerEvents,
}

impl I8042Command {
    /// Number of ports.
    pub const LEN: u64 = 1;

    /// A command port that reports to `events`.
    pub fn new(events: PowerEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042Command {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&I8042_PULSE_RESET) {
            (self.events)(PowerEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn sink() -> (PowerEvents, Arc<Mutex<Vec<PowerEvent>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let clone = Arc::clone(&seen);
        (
            Arc::new(move |event| clone.lock().unwrap().push(event)),
            seen,
        )
    }

    #[test]
    fn only_s5_with_slp_en_powers_off() {
        for value in 0..=255u8 {
            let (events, seen) = sink();
            SleepRegisters::new(events).write(SLEEP_CONTROL, &[value]);
            let expected = value & 0b0010_0000 != 0 && value & 0b0001_1100 == 0b0001_0100;
            assert_eq!(!seen.lock().unwrap().is_empty(), expected, "{value:#x}");
        }
    }

    #[test]
    fn the_sleep_status_register_takes_writes_and_does_nothing() {
        let (events, seen) = sink();
        let registers = SleepRegisters::new(events);
        registers.write(SLEEP_STATUS, &[SLP_EN | (SLP_TYP_S5 << 2)]);
        registers.write(SLEEP_CONTROL, &[]);
        assert!(seen.lock().unwrap().is_empty());
        let mut data = [0xff; 1];
        registers.read(SLEEP_STATUS, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn the_reset_register_takes_its_value_only() {
        let (events, seen) = sink();
        let register = ResetRegister::new(0x42, events);
        register.write(0, &[0x41]);
        assert!(seen.lock().unwrap().is_empty());
        register.write(0, &[0x42]);
        assert_eq!(*seen.lock().unwrap(), [PowerEvent::Reset]);
    }

    #[test]
    fn the_keyboard_controller_resets_on_its_pulse_and_reads_as_idle() {
        let (events, seen) = sink();
        let command = I8042Command::new(events);
        command.write(0, &[0xd1]);
        assert!(seen.lock().unwrap().is_empty());
        command.write(0, &[0xfe]);
        assert_eq!(*seen.lock().unwrap(), [PowerEvent::Reset]);
        let mut data = [0xff; 1];
        command.read(0, &mut data);
        assert_eq!(data, [0]);
    }
}
