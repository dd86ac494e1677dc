//! Made-up records of every kind, for tests.

use crate::fingerprint::Fingerprint;
use crate::record::{By, Crowd, Load, Missing, Point, Record, Results, Settings, Stage, Timed};

fn record(results: Results) -> Record {
    Record {
        host: Fingerprint {
            cpu: "2 x AMD EPYC <with> \"marks\" & more".to_owned(),
            host_kernel: "6.12.1".to_owned(),
            kvm: "kvm_amd".to_owned(),
            lab: "yes; a software CPU in real time".to_owned(),
            governor: "none".to_owned(),
            mitigations: vec!["spectre_v2: Mitigation: Retpolines".to_owned()],
            ..Fingerprint::default()
        },
        settings: Settings {
            image: "built-in".to_owned(),
            command: "/bin/true".to_owned(),
            memory_mib: 256,
            runs: 9,
        },
        notes: vec!["A note with </script> in it.".to_owned()],
        missing: vec![Missing {
            name: "podman".to_owned(),
            reason: "not installed".to_owned(),
        }],
        results,
    }
}

/// Times of three.
pub fn boot() -> Record {
    let spread = [0.0, 2.1, -1.3, 0.4, 6.2, -0.8, 1.1, 0.2, -2.0];
    let times = |name: &str, middle: f64, stages| {
        let samples = spread.map(|one| middle + one * middle / 50.0);
        Timed::new(name, samples.to_vec(), stages)
    };
    let stages = [
        ("program loaded", 1.4, By::Monitor),
        ("options and record", 0.9, By::Monitor),
        ("VM", 0.8, By::Monitor),
        ("devices", 0.7, By::Monitor),
        ("kernel to its first device", 31.0, By::Kernel),
        ("driver of root", 9.5, By::Kernel),
        ("to init", 4.2, By::Kernel),
        ("agent", 11.3, By::Guest),
        ("command", 3.1, By::Guest),
        ("power off", 6.0, By::End),
        ("clean up", 0.6, By::End),
    ];
    let stages = stages.map(|(name, ms, by)| Stage {
        name: name.to_owned(),
        ms,
        by,
    });
    record(Results::Boot(vec![
        times("casita", 70.1, stages.to_vec()),
        times("crun", 17.4, Vec::new()),
        times("runc", 47.0, Vec::new()),
        times("bwrap", 6.1, Vec::new()),
        times("QEMU microvm", 212.0, Vec::new()),
    ]))
}

/// Memory of two, idle and working.
pub fn density() -> Record {
    let crowd = |name: &str, first: u64, each: u64| Crowd {
        name: name.to_owned(),
        points: (1..=8)
            .map(|instances| Point {
                instances,
                private_kib: first + each * instances as u64,
                mapped_shared_kib: 4000 * instances as u64,
                proportional_kib: first + each * instances as u64 + 4000,
                page_cache_kib: 18_000,
                tmpfs_kib: 0,
                kernel_kib: 900 * instances as u64,
                slab_kib: 400 * instances as u64,
                page_tables_kib: 200 * instances as u64,
                guest_page_tables_kib: 100 * instances as u64,
                machine_kib: first + (each + 900) * instances as u64,
            })
            .collect(),
        shared: "The kernel's pages, mapped from one file.".to_owned(),
    };
    record(Results::Density(vec![
        crowd("casita, idle", 4000, 11_800),
        crowd("casita, working", 4000, 31_000),
        crowd("crun, idle", 100, 900),
        crowd("crun, working", 100, 17_400),
    ]))
}

fn loads(kind: &str, unit: &str) -> Vec<Load> {
    ["read, 1 at once", "write, 32 at once"]
        .into_iter()
        .flat_map(|load| {
            [("casita", 2300.0), ("crun", 5100.0), ("host", 5300.0)].map(|(name, middle)| {
                let samples = [0.97, 1.0, 1.04].map(|part| middle * part).to_vec();
                let mut load = Load::new(name, &format!("{kind} {load}"), unit, samples);
                load.latency_p50_us = Some(400.0);
                load
            })
        })
        .collect()
}

/// Disk.
pub fn io() -> Record {
    record(Results::Io(loads("4 KiB random", "IOPS")))
}

/// Network.
pub fn net() -> Record {
    record(Results::Net(loads("TCP", "Gbit/s")))
}

/// One of each kind.
pub fn all() -> Vec<Record> {
    vec![boot(), density(), io(), net()]
}
