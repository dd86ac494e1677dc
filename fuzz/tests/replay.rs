//! Every target on its seeds and on some thousand inputs made of them, without a fuzzer. The inputs
//! are the same each time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use casita_fuzz::TARGETS;

/// Inputs for each target beside its seeds.
const INPUTS: usize = 600;
/// Those that start threads, or write files, for each input.
const SLOW: [&str; 5] = [
    "copy_unpack",
    "image_stream",
    "image_store",
    "virtio_fs",
    "vm_record",
];
const MAX_LEN: usize = 4096;

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len());
        match random.below(7) {
            0 => input.truncate(at),
            1 => input.insert(at, random.next() as u8),
            2 => {
                let from = &seeds[random.below(seeds.len())];
                let piece = &from[random.below(from.len()).min(from.len())..];
                let piece = &piece[..piece.len().min(64)];
                input.splice(at..at, piece.iter().copied());
            }
            3 => {
                let edge = [0_u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0xffff];
                let word = edge[random.below(edge.len())].to_le_bytes();
                for (byte, value) in input[at..].iter_mut().zip(word) {
                    *byte = value;
                }
            }
            4 => input.extend((0..random.below(64)).map(|_| random.next() as u8)),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    input.truncate(MAX_LEN);
    input
}

fn replay(name: &str) {
    let (_, run) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no seeds");
    let seeds: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let count = if SLOW.contains(&name) {
        INPUTS / 4
    } else {
        INPUTS
    };
    let mutations = (0..count).map(|_| mutated(&seeds, &mut random));
    for input in seeds.iter().cloned().chain(mutations) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&input))) {
            let path = std::env::temp_dir().join(format!("casita-fuzz.{name}"));
            fs::write(&path, &input).unwrap();
            eprintln!("{name} fails on {}", path.display());
            resume_unwind(panic);
        }
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), replayed);
        }
    };
}

replays! {
    agent_dhcp agent_spec agent_tar agent_wire
    boot_bzimage boot_cmdline boot_elf
    control_request copy_unpack
    image_config image_layer image_store image_stream
    machine_file
    net_frame net_specs
    ports
    sandbox_request
    virtio_balloon virtio_block virtio_fs virtio_mmio virtio_net virtio_pmem
    virtio_queue virtio_state virtio_vsock
    vm_record volume_record
}
