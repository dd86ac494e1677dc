//! What a run cost: stages of the boot by the host's clock, exits by kind.

use std::fs::File;
use std::io::{self, Write};

use casita_devices::stamp::Stamp;
use serde::Serialize;

/// Exits from the guest to the monitor, by kind. What KVM serves alone is not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExitCounts {
    /// Reads of I/O ports.
    pub port_in: u64,
    /// Writes to I/O ports.
    pub port_out: u64,
    /// Reads of device memory.
    pub mmio_read: u64,
    /// Writes to device memory.
    pub mmio_write: u64,
    /// Returns because of a signal.
    pub interrupted: u64,
    /// All others.
    pub other: u64,
}

impl ExitCounts {
    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        self.port_in += other.port_in;
        self.port_out += other.port_out;
        self.mmio_read += other.mmio_read;
        self.mmio_write += other.mmio_write;
        self.interrupted += other.interrupted;
        self.other += other.other;
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.port_in
            + self.port_out
            + self.mmio_read
            + self.mmio_write
            + self.interrupted
            + self.other
    }
}

/// A point in a VM's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Its name, such as `first-kvm-run` or `init`.
    pub name: String,
    /// The host's `CLOCK_MONOTONIC` then, in nanoseconds.
    pub at_ns: u64,
}

/// The agent's name for a stage; a guest may write any number.
fn stage_name(number: u8) -> String {
    use casita_agent::ports::Stage as Known;
    let known = [
        (Known::Init, "init"),
        (Known::AgentReady, "agent-ready"),
        (Known::CommandStarted, "command-started"),
        (Known::CommandExited, "command-exited"),
    ];
    let name = known.into_iter().find(|(stage, _)| *stage as u8 == number);
    name.map_or_else(
        || format!("guest-{number:#04x}"),
        |(_, name)| name.to_owned(),
    )
}

/// What one run of a VM cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RunStats {
    /// In the order in which they were reached, once [`Self::in_order`] was called.
    pub stages: Vec<Stage>,
    /// Exits of all vCPUs.
    pub exits: ExitCounts,
}

impl RunStats {
    /// Notes that a stage is reached at `at_ns`.
    pub fn stage(&mut self, name: impl Into<String>, at_ns: u64) {
        self.stages.push(Stage {
            name: name.into(),
            at_ns,
        });
    }

    /// Adds the guest's own stamps.
    pub fn guest_stamps(&mut self, stamps: &[Stamp]) {
        for stamp in stamps {
            self.stage(stage_name(stamp.stage), stamp.at_ns);
        }
    }

    /// Puts the stages into the order in which they were reached.
    pub fn in_order(&mut self) {
        self.stages.sort_by_key(|stage| stage.at_ns);
    }

    /// Writes the stats to `file` as one JSON object.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, mut file: File) -> io::Result<()> {
        serde_json::to_writer(&mut file, self)?;
        file.write_all(b"\n")
    }

    /// Milliseconds from the first stage to `name`.
    pub fn ms_to(&self, name: &str) -> Option<f64> {
        let start = self.stages.first()?.at_ns;
        let stage = self.stages.iter().find(|stage| stage.name == name)?;
        #[allow(
            clippy::cast_precision_loss,
            reason = "nanoseconds of one run fit a double"
        )]
        Some(stage.at_ns.saturating_sub(start) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_were_told_late_come_where_they_belong() {
        let mut stats = RunStats::default();
        for (name, at) in [("main", 5), ("init", 30), ("driver-root", 20), ("end", 40)] {
            stats.stage(name, at);
        }
        stats.in_order();
        let names: Vec<_> = stats.stages.iter().map(|stage| &stage.name[..]).collect();
        assert_eq!(names, ["main", "driver-root", "init", "end"]);
    }
}
