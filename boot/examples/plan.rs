//! Prints the plan for booting a kernel, or why it is refused.
//!
//! `cargo run -p casita-boot --example plan -- KERNEL [INITRD]`

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use casita_boot::{
    AcpiDevices, BootPlan, BootSpec, Cmdline, InitrdPart, MemoryLayout, PowerPorts, SerialPort,
    VirtioMmio, layout, plan,
};

fn main() -> ExitCode {
    match run() {
        Ok(plan) => {
            println!("{plan:#x?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<BootPlan, Box<dyn Error>> {
    let mut files = std::env::args_os().skip(1).map(File::open);
    let kernel = files.next().ok_or("usage: plan KERNEL [INITRD...]")??;
    let initrds = files.collect::<Result<Vec<_>, _>>()?;
    let parts: Vec<_> = initrds.iter().map(|file| InitrdPart::File(file)).collect();
    let devices = AcpiDevices {
        virtio_mmio: vec![VirtioMmio {
            base: layout::VIRTIO_MMIO_START,
            len: 0x1000,
            gsi: layout::VIRTIO_GSI_START,
        }],
        serial: Some(SerialPort {
            port: layout::SERIAL_PORT,
            gsi: layout::SERIAL_GSI,
        }),
        power: PowerPorts {
            sleep_control: 0x600,
            sleep_status: 0x601,
            reset: 0x602,
            reset_value: 1,
        },
    };
    let spec = BootSpec {
        kernel: &kernel,
        initrd: &parts,
        cmdline: &Cmdline::new("console=ttyS0")?,
        memory: &MemoryLayout::new(256 * layout::MIB)?,
        vcpus: 1,
        devices: &devices,
    };
    Ok(plan(&spec)?)
}
