//! Faults on the host, with guests of a few instructions: processes that are killed at any moment,
//! file systems without room, limits, terminals that go away. The commands say honestly what is
//! wrong, what is kept is consistent, and the next command works.

mod full;
mod kills;
mod limits;
mod streams;

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use casita_tests::kernel::{EXIT_STATUS, Payload};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, Program, patience};
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_kvm());
    kills::tests(&mut suite);
    full::tests(&mut suite);
    limits::tests(&mut suite);
    streams::tests(&mut suite);
    suite.run(&Arguments::from_args())
}

/// What `casita run` needs for a payload, behind its own options.
const MACHINE: [&str; 9] = [
    "--skip-kvm-check",
    "--net",
    "none",
    "--boot",
    "plain",
    "--memory",
    "16M",
    "--initrd",
    "initrd",
];

/// How much the payload `talks` writes, in bytes, before it ends with status 7.
const TALK: u32 = 1 << 20;

/// A place with payloads, which always has room for its programs.
struct Host(Place);

impl Host {
    fn new() -> Result<Self> {
        let place = Place::new()?;
        place.write("initrd", "INITRD")?;
        let count = TALK.to_le_bytes();
        let payloads = [
            ("halts", Payload::new().print("halted\n").halt()),
            (
                "ends",
                Payload::new()
                    .print("ends\n")
                    .out32(EXIT_STATUS, 3)
                    .power_off(),
            ),
            // mov ecx, TALK; mov dx, 0x3f8; 1: mov al, cl; out dx, al; dec ecx; jnz 1b
            (
                "talks",
                Payload::new()
                    .code(&[0xb9, count[0], count[1], count[2], count[3]])
                    .code(&[0x66, 0xba, 0xf8, 0x03, 0x88, 0xc8, 0xee, 0x49, 0x75, 0xfa])
                    .out32(EXIT_STATUS, 7)
                    .power_off(),
            ),
            // The same without an end.
            (
                "babbles",
                Payload::new().code(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'b', 0xee, 0xeb, 0xfd]),
            ),
        ];
        for (name, payload) in payloads {
            place.write(name, payload.elf())?;
        }
        fs::create_dir_all(place.path("tree/etc"))?;
        place.write("tree/etc/file", "content".repeat(30_000))?;
        Ok(Self(place))
    }

    fn casita(&self, words: &[&str]) -> Program {
        self.0.casita(words.iter().copied())
    }

    /// `casita run` of a payload.
    fn run(&self, options: &[&str], payload: &str) -> Program {
        let words = [&["run"], options, &MACHINE, &["--kernel", payload]].concat();
        self.casita(&words)
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        Ok(self.casita(words).finish()?.expect(0)?.text())
    }

    /// Each list can be read, without a complaint; all VMs can be removed, and another one lives and
    /// ends. Nothing of any VM is left then.
    fn is_consistent(&self) -> Result<()> {
        for list in [&["ps", "-aq"][..], &["image", "ls"], &["volume", "ls"]] {
            let finished = self.casita(list).finish()?.expect(0)?;
            ensure!(finished.stderr.is_empty(), "a complaint\n{finished}");
        }
        self.remove_all()?;
        let finished = self
            .run(&["--rm", "--name", "after"], "ends")
            .finish()?
            .expect(3)?;
        ensure!(finished.stdout == b"ends\n", "{finished}");
        self.remove_all()?;
        // The keeper of a VM that was killed may be about to remove it.
        let start = Instant::now();
        loop {
            let mut left = self.0.listing()?;
            left.retain(|name| {
                let of_vms = name.starts_with("data/casita/vms/") && !name.ends_with("/.lock");
                of_vms || name.contains("control.sock")
            });
            if left.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < patience(), "{left:?} were left");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A start that nobody waits for any more may still be on its way: until that has come to
    /// something, whoever removes it is told to try again.
    fn remove_all(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let ids = self.ok(&["ps", "-aq"])?;
            let ids: Vec<_> = ids.split_whitespace().collect();
            if ids.is_empty() {
                return Ok(());
            }
            let finished = self.casita(&[&["rm", "-f"], &ids[..]].concat()).finish()?;
            let passes = ["no VM is named", "has just been removed", "try again"];
            let complaint = finished.complaint();
            ensure!(
                complaint
                    .lines()
                    .all(|line| passes.iter().any(|text| line.contains(text))),
                "{finished}"
            );
            ensure!(start.elapsed() < patience(), "it stays\n{finished}");
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.remove_all();
    }
}

/// It failed, and says so to people in one line.
fn honest(finished: &Finished) -> Result<()> {
    let complaint = finished.complaint();
    ensure!(
        finished.status.code() == Some(125)
            && complaint.lines().count() == 1
            && complaint.starts_with("casita: "),
        "one line and exit status 125 were expected\n{finished}"
    );
    Ok(())
}

/// Numbers that are the same each time (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
