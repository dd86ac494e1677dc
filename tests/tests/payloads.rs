//! The monitor under guests of a few instructions: its ports, its registers, its ends. They run
//! wherever there is a KVM, one that can't run Linux too.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use casita_tests::kernel::{
    EXIT_STATUS, I8042, Payload, RESET, RESET_VALUE, VIRTIO, VIRTIO_STRIDE,
};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, Program, Running};
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;
use rustix::process::Signal;
use serde_json::Value;

type Body = fn() -> Result<()>;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_kvm());
    let tests: &[(&str, Body)] = &[
        ("output_arrives_and_power_off_ends_it", output_and_power_off),
        ("a_megabyte_of_output_arrives_whole", much_output),
        ("string_instructions_write_byte_by_byte", string_output),
        ("the_reset_register_ends_it", reset),
        (
            "the_keyboard_controllers_pulse_ends_it",
            keyboard_controller,
        ),
        ("a_triple_fault_ends_it_with_registers", triple_fault),
        (
            "ports_and_memory_without_a_device_read_as_ones",
            nobody_answers,
        ),
        ("devices_sit_where_the_tables_say", virtio_devices),
        ("a_kick_reaches_the_device_and_its_answer_the_guest", kick),
        ("a_plain_guest_may_tell_an_exit_status", exit_status),
        ("a_status_that_is_no_status_is_capped", exit_status_capped),
        ("sigterm_ends_a_halted_guest", sigterm_halted),
        ("sigint_ends_a_spinning_guest", sigint_spinning),
        ("registers_full_of_garbage_harm_nobody", garbage),
        ("the_kernel_file_is_never_written_to", kernel_file),
        ("the_initrd_and_all_memory_are_there", memory),
        ("a_plain_boot_takes_any_disk_and_leaves_it", foreign_disk),
        ("stats_count_exits", stats),
    ];
    for (name, body) in tests {
        suite.test(name, *body);
    }
    suite.run(&Arguments::from_args())
}

/// A plain boot of `payload`, which needs some initrd.
fn program(place: &Place, payload: &Payload, more: &[&str]) -> Result<Program> {
    place.write("payload", payload.elf())?;
    place.write("initrd", "INITRD")?;
    let arguments = [
        "run",
        "--skip-kvm-check",
        "--boot",
        "plain",
        "--memory",
        "16M",
    ];
    let files = ["--kernel", "payload", "--initrd", "initrd"];
    Ok(place.casita([&arguments[..], &files, more].concat()))
}

fn start(place: &Place, payload: &Payload) -> Result<Running> {
    program(place, payload, &[])?.start()
}

fn run(payload: &Payload) -> Result<Finished> {
    let place = Place::new()?;
    program(&place, payload, &[])?.finish()
}

/// Checks the output to the byte, and that nothing was complained about.
fn said(finished: &Finished, expected: &[u8]) -> Result<()> {
    ensure!(
        finished.stdout == expected,
        "{expected:?} was expected\n{finished}"
    );
    ensure!(
        finished.stderr.is_empty(),
        "no complaint was expected\n{finished}"
    );
    Ok(())
}

fn output_and_power_off() -> Result<()> {
    let finished = run(&Payload::new().print("hi\n").power_off())?.expect(0)?;
    said(&finished, b"hi\n")
}

/// Counts its bytes in cl and writes each, a mebibyte's worth.
fn much_output() -> Result<()> {
    let payload = Payload::new()
        .code(&[0xb9, 0, 0, 0x10, 0]) // mov ecx, 1 << 20
        .code(&[0x66, 0xba, 0xf8, 0x03]) // mov dx, 0x3f8
        .code(&[0x88, 0xc8, 0xee]) // 1: mov al, cl; out dx, al
        .code(&[0x49, 0x75, 0xfa]) // dec ecx; jnz 1b
        .power_off();
    let finished = run(&payload)?.expect(0)?;
    let expected: Vec<u8> = (1..=1_u32 << 20).rev().map(|count| count as u8).collect();
    ensure!(
        finished.stdout.len() == 1 << 20,
        "{} bytes arrived",
        finished.stdout.len()
    );
    ensure!(finished.stdout == expected, "they are not in order");
    Ok(())
}

/// `rep outsb` may reach the monitor as one exit with many bytes for one port.
fn string_output() -> Result<()> {
    let payload = Payload::new()
        .fill32(0x20_0000, u32::from_le_bytes(*b"abcd"), 500)
        .code(&[0xbe, 0, 0, 0x20, 0]) // mov esi, 0x200000
        .code(&[0xb9, 0xd0, 0x07, 0, 0]) // mov ecx, 2000
        .code(&[0x66, 0xba, 0xf8, 0x03]) // mov dx, 0x3f8
        .code(&[0xf3, 0x6e]) // rep outsb
        .power_off();
    said(&run(&payload)?.expect(0)?, &b"abcd".repeat(500))
}

fn reset() -> Result<()> {
    let payload = Payload::new().print("r").out8(RESET, RESET_VALUE).halt();
    said(&run(&payload)?.expect(0)?, b"r")
}

fn keyboard_controller() -> Result<()> {
    let payload = Payload::new().print("k").out8(I8042, 0xfe).halt();
    said(&run(&payload)?.expect(0)?, b"k")
}

fn triple_fault() -> Result<()> {
    let payload = Payload::new().print("before").fault();
    let finished = run(&payload)?.expect(125)?.says(&["before"])?;
    let complaint = finished.complaint();
    // Behind the six letters, which take seven bytes of instructions each.
    let at = u64::from(Payload::ENTRY) + 6 * 7;
    // AMD's processors lose the state, and KVM puts that of a reset in its place.
    let amd = Path::new("/sys/module/kvm_amd").exists();
    let (rip, cr0) = if amd {
        (0xfff0, "cr0=")
    } else {
        (at, "cr0=0x11")
    };
    for part in [
        "casita: vCPU 0: ",
        "triple-faulted",
        &format!("rip={rip:#x}"),
        cr0,
    ] {
        ensure!(
            complaint.contains(part),
            "{part:?} was expected\n{finished}"
        );
    }
    ensure!(
        complaint.lines().count() == 1,
        "one line was expected\n{finished}"
    );
    Ok(())
}

fn nobody_answers() -> Result<()> {
    let behind_devices = VIRTIO + 64 * VIRTIO_STRIDE;
    let payload = Payload::new()
        .in8(0x99)
        .print_al()
        .load32(behind_devices)
        .print_eax()
        // Writes there go nowhere.
        .out32(0x99, 7)
        .store32(behind_devices, 7)
        .print("on")
        .power_off();
    said(&run(&payload)?.expect(0)?, b"\xff\xff\xff\xff\xffon")
}

/// Virtio 1.2, 4.2.2: magic value, version 2, device id. A plain boot without images has only a
/// source of random numbers, id 4.
fn virtio_devices() -> Result<()> {
    let payload = Payload::new()
        .load32(VIRTIO)
        .print_eax()
        .load32(VIRTIO + 4)
        .print_eax()
        .load32(VIRTIO + 8)
        .print_eax()
        .power_off();
    said(&run(&payload)?.expect(0)?, b"virt\x02\0\0\0\x04\0\0\0")
}

/// Virtio 1.2, 3.1.1 and 4.2.3: a driver sets up the source of random numbers and asks for 16 bytes.
fn kick() -> Result<()> {
    const DESCRIPTORS: u32 = 0x20_0000;
    const AVAILABLE: u32 = 0x20_1000;
    const USED: u32 = 0x20_2000;
    const BUFFER: u32 = 0x20_3000;
    let setup = [
        (0x70, 1),  // status: acknowledge
        (0x70, 3),  // driver
        (0x24, 1),  // driver features, upper half:
        (0x20, 1),  // version 1
        (0x70, 11), // features ok
        (0x30, 0),  // queue
        (0x38, 8),  // its size
        (0x80, DESCRIPTORS),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),  // ready
        (0x70, 15), // driver ok
    ];
    let memory = [
        (DESCRIPTORS, BUFFER),
        (DESCRIPTORS + 8, 16),
        (DESCRIPTORS + 12, 2), // the device writes
        (AVAILABLE, 1 << 16),  // index 1, and the ring's first is descriptor 0
    ];
    let mut payload = Payload::new();
    for (register, value) in setup {
        payload = payload.store32(VIRTIO + register, value);
    }
    for (address, value) in memory {
        payload = payload.store32(address, value);
    }
    let payload = payload
        .store32(VIRTIO + 0x50, 0) // the kick
        .load32(USED)
        .code(&[0x3d, 0, 0, 1, 0]) // cmp eax, 1 << 16: index 1
        .code(&[0x75, 0xf4]) // jne, back to the load
        .load32(USED + 8) // length
        .print_eax()
        .load32(VIRTIO + 0x60) // interrupt status
        .print_eax()
        .store32(VIRTIO + 0x64, 1) // acknowledged
        .load32(VIRTIO + 0x60)
        .print_eax()
        .load32(BUFFER)
        .print_eax()
        .load32(BUFFER + 12)
        .print_eax()
        .power_off();
    let finished = run(&payload)?.expect(0)?;
    let (told, random) = finished.stdout.split_at_checked(12).unwrap_or_default();
    ensure!(told == [16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "{told:?}");
    ensure!(random.len() == 8 && random != [0; 8], "{random:?}");
    Ok(())
}

fn exit_status() -> Result<()> {
    let payload = Payload::new().out32(EXIT_STATUS, 77).power_off();
    said(&run(&payload)?.expect(77)?, b"")
}

fn exit_status_capped() -> Result<()> {
    let payload = Payload::new().out32(EXIT_STATUS, 0x1234_5600).power_off();
    said(&run(&payload)?.expect(255)?, b"")
}

fn sigterm_halted() -> Result<()> {
    let payload = Payload::new().print("halted").halt();
    ends_by(&payload, "halted", Signal::TERM, 143)
}

fn sigint_spinning() -> Result<()> {
    let payload = Payload::new().print("spinning").spin();
    ends_by(&payload, "spinning", Signal::INT, 130)
}

/// Once the payload has printed `text`, `signal` ends the monitor with `code`.
fn ends_by(payload: &Payload, text: &str, signal: Signal, code: i32) -> Result<()> {
    let place = Place::new()?;
    let running = start(&place, payload)?;
    running.wait_for(text)?;
    running.signal(signal)?;
    said(&running.finish()?.expect(code)?, text.as_bytes())
}

/// Every register of every device, and the serial port's, with all bits set and with none.
fn garbage() -> Result<()> {
    let place = Place::new()?;
    let words = 3 * VIRTIO_STRIDE / 4;
    let mut payload = Payload::new();
    for value in [u32::MAX, 0, 0x8000_0001] {
        payload = payload.fill32(VIRTIO, value, words);
    }
    // Not the reset and sleep registers: those end it, as they should.
    for port in (0x3f8..0x400)
        .chain(0x6c0..0x6c8)
        .chain([0x20, 0x21, 0x43, 0x61, 0x70, 0x71])
    {
        payload = payload.out32(port, u32::MAX).out8(port, 0xff).in8(port);
    }
    // Back to a line without loop and divisor, and a status that a test can tell.
    payload = payload
        .out8(0x3fb, 3)
        .out8(0x3fc, 0)
        .out32(EXIT_STATUS, 42)
        .print("alive")
        .power_off();
    let disk = place.write("disk.raw", vec![0; 16 << 20])?;
    let arguments = ["--disk", disk.as_str()];
    let finished = program(&place, &payload, &arguments)?
        .finish()?
        .expect(42)?;
    ensure!(finished.text().ends_with("alive"), "{finished}");
    Ok(())
}

/// Its pages are the guest's memory, and what the guest writes there is the guest's alone.
fn kernel_file() -> Result<()> {
    let place = Place::new()?;
    let mut code = Payload::new()
        .fill32(Payload::ENTRY + 0x2000, 0x4141_4141, 0x400)
        .load32(Payload::ENTRY + 0x2000)
        .print_eax()
        .power_off()
        .elf();
    code.resize(0x5000, b'o');
    // The segment has all of it.
    let len = (0x4000_u64).to_le_bytes();
    for at in [
        casita_tests::kernel::field::FILE_SIZE,
        casita_tests::kernel::field::MEMORY_SIZE,
    ] {
        code = casita_tests::kernel::patched(code, at, &len);
    }
    let arguments = [
        "run",
        "--skip-kvm-check",
        "--boot",
        "plain",
        "--memory",
        "16M",
    ];
    let files = ["--kernel", "payload", "--initrd", "payload"];
    place.write("payload", &code)?;
    let finished = place
        .casita([&arguments[..], &files].concat())
        .finish()?
        .expect(0)?;
    said(&finished, b"AAAA")?;
    ensure!(
        fs::read(place.path("payload"))? == code,
        "the kernel file has changed"
    );
    Ok(())
}

/// PVH: ebx points to the start info, which points to the modules; the last word of memory can be
/// written and read.
fn memory() -> Result<()> {
    let last = (16 << 20) - 8;
    let payload = Payload::new()
        .code(&[0x8b, 0x43, 16]) // mov eax, [ebx + 16]: modlist_paddr
        .code(&[0x8b, 0x00]) // mov eax, [eax]: the first module's address
        .code(&[0x89, 0xc6]) // mov esi, eax
        .code(&[0x8b, 0x06]) // mov eax, [esi]
        .print_eax()
        .code(&[0x66, 0x8b, 0x46, 4]) // mov ax, [esi + 4]
        .print_al()
        .code(&[0x88, 0xe0]) // mov al, ah
        .print_al()
        .store32(last, u32::from_le_bytes(*b"last"))
        .load32(last)
        .print_eax()
        .power_off();
    said(&run(&payload)?.expect(0)?, b"INITRDlast")
}

fn foreign_disk() -> Result<()> {
    let place = Place::new()?;
    let content = b"somebody's data ".repeat(1000);
    place.write("disk.raw", content.repeat(32))?;
    let payload = Payload::new().load32(VIRTIO + 8).print_eax().power_off();
    let program = program(&place, &payload, &["--disk", "./disk.raw"])?;
    // Device id 2: a block device.
    said(&program.finish()?.expect(0)?, &[2, 0, 0, 0])?;
    let after = fs::read(place.path("disk.raw"))?;
    ensure!(after == content.repeat(32), "the disk has changed");
    Ok(())
}

fn stats() -> Result<()> {
    let place = Place::new()?;
    let payload = Payload::new().print("12345").in8(0x99).power_off();
    let arguments = ["--stats", "stats.json"];
    program(&place, &payload, &arguments)?.finish()?.expect(0)?;
    let stats: Value = serde_json::from_slice(&fs::read(place.path("stats.json"))?)?;
    ensure!(
        stats["exits"]["port_out"] == 6,
        "5 letters and the power register: {stats}"
    );
    ensure!(stats["exits"]["port_in"] == 1, "{stats}");
    let stages = stats["stages"].as_array().cloned().unwrap_or_default();
    let names: Vec<_> = stages
        .iter()
        .filter_map(|stage| stage["name"].as_str())
        .collect();
    for name in ["main", "kvm-opened", "first-kvm-run", "end"] {
        ensure!(names.contains(&name), "no stage {name}: {stats}");
    }
    let times: Vec<_> = stages
        .iter()
        .filter_map(|stage| stage["at_ns"].as_u64())
        .collect();
    ensure!(times.is_sorted(), "the stages are out of order: {stats}");
    Ok(())
}
