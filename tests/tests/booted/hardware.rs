//! What a guest finds in its machine.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use casita_tests::suite::Suite;

use super::sh;

pub fn tests(suite: &mut Suite) {
    suite.test("one_vcpu_and_64_mib", || size(1, "64M", 64));
    suite.test("two_vcpus_and_512_mib", || size(2, "512M", 512));
    suite.test("four_vcpus_and_memory_above_4_gib", || {
        size(4, "5G", 5 << 10)
    });
    suite.test("thirty_two_vcpus", || size(32, "256M", 256));
    suite.test("devices_are_what_they_should_be", devices);
    suite.test("random_numbers_come_from_the_host", random);
    suite.test("the_clock_is_the_hosts", clock);
}

/// The kernel keeps a part of the memory for itself, and all of it is tried by writing to it.
fn size(cpus: u32, memory: &str, mib: u64) -> Result<()> {
    let cpus_text = cpus.to_string();
    let options = ["--cpus", cpus_text.as_str(), "--memory", memory];
    let script =
        "nproc; grep -c ^processor /proc/cpuinfo; awk '/^MemTotal/ { print $2 }' /proc/meminfo
        grep 'System RAM' /proc/iomem | tail -n 1
        for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu true || exit 1; done";
    let finished = sh(&options, script)?;
    let text = finished.text();
    let mut lines = text.lines();
    for _ in 0..2 {
        ensure!(
            lines.next() == Some(&cpus_text),
            "{cpus} CPUs were expected\n{finished}"
        );
    }
    let kib: u64 = lines.next().context("no MemTotal")?.parse()?;
    // Page structures and hash tables are a fortieth; code, data and the initrd some 24 MiB.
    let least = (mib - mib / 40).saturating_sub(26) << 10;
    ensure!(
        (least..=mib << 10).contains(&kib),
        "{mib} MiB were expected\n{finished}"
    );
    if mib > 3 << 10 {
        let high = format!(
            "100000000-{:x}",
            (4_u64 << 30) + ((mib - (3 << 10)) << 20) - 1
        );
        ensure!(
            lines.next().is_some_and(|line| line.starts_with(&high)),
            "{high}\n{finished}"
        );
    }
    Ok(())
}

fn devices() -> Result<()> {
    let script =
        "cat /sys/block/pmem0/ro /sys/block/vda/ro; echo; cat /sys/block/vda/serial
        echo
        ls /sys/bus/pci/devices 2>/dev/null | wc -l; ls /dev/console /dev/pmem0 /dev/vda /dev/hwrng";
    let finished = sh(&[], script)?;
    let text = finished.text();
    ensure!(
        text.starts_with("1\n0\n\ndisk"),
        "a read-only image was expected\n{finished}"
    );
    ensure!(text.contains("disk\n0\n"), "{finished}");
    Ok(())
}

fn random() -> Result<()> {
    let script = "cat /sys/class/misc/hw_random/rng_current
        dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c
        for i in 1 2; do dd if=/dev/hwrng bs=32 count=1 2>/dev/null | md5sum; done
        dd if=/dev/random bs=16 count=1 2>/dev/null | wc -c";
    let finished = sh(&[], script)?;
    let text = finished.text();
    let lines: Vec<_> = text.lines().collect();
    ensure!(lines.len() == 5, "{finished}");
    ensure!(lines[0].starts_with("virtio_rng"), "{finished}");
    ensure!(lines[1] == "64" && lines[4] == "16", "{finished}");
    ensure!(lines[2] != lines[3], "the same numbers twice\n{finished}");
    Ok(())
}

fn clock() -> Result<()> {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|time| time.as_secs())
    };
    let before = now()?;
    let finished = sh(
        &[],
        "date +%s; cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
    )?;
    let after = now()?;
    let text = finished.text();
    let mut lines = text.lines();
    let guest: u64 = lines.next().context("no date")?.parse()?;
    // Whole seconds, rounded down on both sides.
    ensure!(
        (before - 1..=after + 1).contains(&guest),
        "{before} to {after} was expected\n{finished}"
    );
    let source = lines.next().unwrap_or_default();
    ensure!(
        ["kvm-clock", "tsc"].contains(&source),
        "a slow clock: {finished}"
    );
    Ok(())
}
