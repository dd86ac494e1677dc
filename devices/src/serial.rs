//! The serial port: a 16550 whose output goes to a file descriptor or a writer of the host, and
//! whose input comes from a descriptor.
//!
//! Neither direction lets the host's side hold up a vCPU for long or lose bytes:
//! - Output is collected and written on the event loop, so that a burst costs one system call in a
//!   millisecond. What cannot be written waits; when 64 KiB wait, the vCPU does too. An output that
//!   fails (its reader is gone) ends there, and the VM goes on without it.
//! - Input is read only as far as the receive FIFO has room, and only while the guest's driver has
//!   its receive interrupt enabled: a driver that starts throws away what the FIFO holds.

mod input;
mod output;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::event_loop::{EventLoopError, EventLoopHandle, Registration};
use crate::interrupt::Interrupt;

use self::input::InputHandler;
pub use self::input::{Input, InputSource};
pub use self::output::Output;
use self::output::{OutputHandler, OutputQueue, QueueWriter, Sink};

/// Number of ports (or bytes of address space) of the device.
pub const LEN: u64 = 8;

/// Offset of the data register.
const DATA: u64 = 0;
/// Offset of the interrupt enable register.
const IER: u8 = 1;
/// Offset of the line control register.
const LCR: u8 = 3;
/// Offset of the modem control register.
const MCR: u8 = 4;
/// Interrupt enable: received data.
const IER_RECEIVE: u8 = 1;
/// Line control: the first two registers are the baud rate's.
const LCR_DIVISOR: u8 = 1 << 7;
/// Modem control: what is sent comes back.
const MCR_LOOP: u8 = 1 << 4;

/// Why a serial port cannot be had or restored.
#[derive(Debug, Error)]
pub enum SerialError {
    /// An eventfd or timer could not be made.
    #[error("the serial port cannot get its events from the host")]
    Events(#[source] io::Error),
    /// The event loop refused a handler.
    #[error("the serial port cannot use the event loop")]
    EventLoop(#[from] EventLoopError),
    /// A saved receive FIFO is longer than the device's.
    #[error("the saved serial port has {0} bytes in its FIFO, more than fit")]
    LongFifo(usize),
}

/// The port's registers and what is in its receive FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Bytes that were received and that the guest has not read.
    pub in_buffer: Vec<u8>,
}

impl From<vm_superio::SerialState> for SerialState {
    fn from(state: vm_superio::SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl From<SerialState> for vm_superio::SerialState {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

type Registers = vm_superio::Serial<InterruptTrigger, NoEvents, QueueWriter>;

struct InterruptTrigger(Arc<dyn Interrupt>);

impl Trigger for InterruptTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

/// The device. Clones are the same port.
#[derive(Clone)]
pub struct Serial {
    interrupt: Arc<dyn Interrupt>,
    port: Arc<Port>,
    output: Arc<OutputQueue>,
    sink: Arc<Mutex<Sink>>,
}

/// What the vCPUs and the input share. The lock is held for a register access and never while
/// anyone waits: a vCPU waits for the output before it takes it.
struct Port {
    uart: Mutex<Uart>,
    /// Tells the input to go on.
    resume: EventFd,
}

struct Uart {
    registers: Registers,
    /// Room in an empty receive FIFO.
    fifo: usize,
    /// The input has found no room and waits for `resume`.
    input_waits: bool,
}

/// The port's output at work on an event loop. Dropping it ends the work.
#[must_use = "output ends when this is dropped"]
pub struct SerialOutput {
    _handler: Registration<OutputHandler>,
}

/// The port's input at work on an event loop. Dropping it ends the work.
#[must_use = "input ends when this is dropped"]
pub struct SerialInput {
    _handler: Registration<InputHandler>,
}

impl Serial {
    /// A port in its state after power-on, whose output goes to `output` once it was started.
    ///
    /// # Errors
    /// The host has no more file descriptors.
    pub fn new(interrupt: Arc<dyn Interrupt>, output: Output) -> Result<Self, SerialError> {
        let queue = Arc::new(OutputQueue::new().map_err(SerialError::Events)?);
        let registers = Registers::with_events(
            InterruptTrigger(Arc::clone(&interrupt)),
            NoEvents,
            QueueWriter(Arc::clone(&queue)),
        );
        let resume = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SerialError::Events)?;
        Ok(Self {
            interrupt,
            port: Arc::new(Port {
                uart: Mutex::new(Uart {
                    fifo: registers.fifo_capacity(),
                    registers,
                    input_waits: false,
                }),
                resume,
            }),
            output: queue,
            sink: Arc::new(Mutex::new(output.into())),
        })
    }

    /// Starts to write output.
    ///
    /// # Errors
    /// The loop cannot watch a descriptor.
    pub fn start_output(&self, events: &EventLoopHandle) -> Result<SerialOutput, SerialError> {
        let handler = OutputHandler::new(Arc::clone(&self.output), Arc::clone(&self.sink));
        let handler = events.add(handler)?;
        Ok(SerialOutput { _handler: handler })
    }

    /// Starts to read `input`. What is read before the guest has set its terminal up is echoed
    /// back by it, so this can come later than the output.
    ///
    /// # Errors
    /// The loop cannot watch a descriptor.
    pub fn start_input(
        &self,
        events: &EventLoopHandle,
        input: Input,
    ) -> Result<SerialInput, SerialError> {
        let handler = events.add(InputHandler::new(Arc::clone(&self.port), input))?;
        Ok(SerialInput { _handler: handler })
    }

    /// Writes out all that the guest has sent, for at most `timeout`, on the caller's thread. For
    /// the end of a VM, after its vCPUs have stopped. Returns the number of bytes that still wait
    /// for an output that takes no more; none wait for one that has failed.
    pub fn drain(&self, timeout: Duration) -> usize {
        output::drain(&self.output, &self.sink, timeout)
    }

    /// Bytes of the guest's output that were dropped, because the output failed or after
    /// [`Serial::release`].
    pub fn lost(&self) -> usize {
        self.output.lost()
    }

    /// Lets vCPUs that wait for the output go on, now and from now on: what has no room is lost.
    /// For a VM that has to end although nobody takes its output.
    pub fn release(&self) {
        self.output.release();
    }

    /// The registers and the receive FIFO. Output is not part of it: [`Serial::drain`] it before.
    pub fn save(&self) -> SerialState {
        self.port.lock().registers.state().into()
    }

    /// Takes over what [`Serial::save`] returned.
    ///
    /// # Errors
    /// The state has more in its FIFO than fits.
    pub fn restore(&self, state: &SerialState) -> Result<(), SerialError> {
        let registers = Registers::from_state(
            &state.clone().into(),
            InterruptTrigger(Arc::clone(&self.interrupt)),
            NoEvents,
            QueueWriter(Arc::clone(&self.output)),
        )
        .map_err(|_| SerialError::LongFifo(state.in_buffer.len()))?;
        self.port.access(|uart| uart.registers = registers);
        Ok(())
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..LEN).zip(data) {
            *byte = self.port.access(|uart| uart.registers.read(at as u8));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, &byte) in (offset..LEN).zip(data) {
            if at == DATA {
                self.output.wait_for_room();
            }
            self.port.access(|uart| {
                // Neither the interrupt nor the writer can fail.
                let _ = uart.registers.write(at as u8, byte);
            });
        }
    }
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Uart> {
        // A register access cannot panic half-way, so the state is good in any case.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the registers, and wakes the input if that made room for it.
    fn access<T>(&self, work: impl FnOnce(&mut Uart) -> T) -> T {
        let mut uart = self.lock();
        let value = work(&mut uart);
        // An empty FIFO, rather than one free place: fewer wake-ups, more bytes with each.
        if uart.input_waits && uart.room() == uart.fifo {
            uart.input_waits = false;
            // A full counter is a signal too.
            let _ = self.resume.write(1);
        }
        value
    }

    /// How many bytes the guest can take. With 0 the caller has to wait for `resume`.
    fn room(&self) -> usize {
        let mut uart = self.lock();
        let room = uart.room();
        uart.input_waits = room == 0;
        room
    }

    /// Puts bytes into the receive FIFO and returns how many fitted. With fewer than all the
    /// caller has to wait for `resume`.
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut uart = self.lock();
        let count = bytes.len().min(uart.room());
        let taken = match bytes.get(..count) {
            Some(bytes) if count > 0 => uart.registers.enqueue_raw_bytes(bytes).unwrap_or(0),
            _ => 0,
        };
        uart.input_waits = taken < bytes.len();
        taken
    }
}

impl Uart {
    fn room(&mut self) -> usize {
        // Reading these registers has no effects.
        if self.registers.read(LCR) & LCR_DIVISOR == 0
            && self.registers.read(IER) & IER_RECEIVE != 0
            && self.registers.read(MCR) & MCR_LOOP == 0
        {
            self.registers.fifo_capacity()
        } else {
            0
        }
    }
}
