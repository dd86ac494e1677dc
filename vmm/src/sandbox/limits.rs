//! What a run may use.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::disk::{self, format_size};

const MIB: u64 = 1 << 20;
const DAY: Duration = Duration::from_hours(24);

/// What a run may use. A run that meets a limit is ended with its VM, and its result says which it
/// was. In JSON the fields have their units in their names, such as `time_ms` and `memory_bytes`.
///
/// ```
/// use std::time::Duration;
/// use casita::sandbox::Limits;
///
/// let limits = Limits {
///     time: Duration::from_secs(2),
///     memory: 64 << 20,
///     ..Limits::default()
/// };
/// limits.check()?;
/// # Ok::<(), casita::sandbox::LimitError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From the command's start to its end: 1 ms to 7 days. 10 s if nothing is said.
    #[serde(rename = "time_ms", with = "millis")]
    pub time: Duration,
    /// CPU time of all processors together from the command's start on, the guest kernel's part
    /// included, as the host counts it: 1 ms to 7 days. 10 s if nothing is said.
    #[serde(rename = "cpu_time_ms", with = "millis")]
    pub cpu_time: Duration,
    /// Memory of the command and of all that it starts, files in memory included: 4 MiB to 512 GiB,
    /// in bytes. 256 MiB if nothing is said. The VM is a little larger, for its kernel.
    #[serde(rename = "memory_bytes")]
    pub memory: u64,
    /// The disk that takes what is written over the image: 16 MiB to 64 TiB in blocks of 4 KiB, in
    /// bytes. 256 MiB if nothing is said.
    #[serde(rename = "disk_bytes")]
    pub disk: u64,
    /// Standard output and standard error, each: up to 1 GiB, in bytes. 1 MiB if nothing is said.
    #[serde(rename = "output_bytes")]
    pub output: u64,
    /// Processes and threads at a time: 1 to 32768. 128 if nothing is said.
    pub processes: u32,
    /// The content of all files that are taken out, together: up to 1 GiB, in bytes. 16 MiB if
    /// nothing is said. What is beyond is not taken, which is no reason to end a run.
    #[serde(rename = "take_bytes")]
    pub take: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(10),
            cpu_time: Duration::from_secs(10),
            memory: 256 * MIB,
            disk: 256 * MIB,
            output: MIB,
            processes: 128,
            take: 16 * MIB,
        }
    }
}

/// A limit that no run can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the limit of {what} is {given}: give {possible}")]
pub struct LimitError {
    what: &'static str,
    given: String,
    possible: &'static str,
}

impl Limits {
    /// The longest time.
    pub const MAX_TIME: Duration = DAY.saturating_mul(7);
    /// The least memory.
    pub const MIN_MEMORY: u64 = 4 * MIB;
    /// The most memory.
    pub const MAX_MEMORY: u64 = 512 << 30;
    /// The most output, and the most content of files that are taken out.
    pub const MAX_DATA: u64 = 1 << 30;
    /// The most processes.
    pub const MAX_PROCESSES: u32 = 32768;

    /// Checks that a run can have them.
    ///
    /// # Errors
    /// If one is out of its range.
    pub fn check(&self) -> Result<(), LimitError> {
        let moment = Duration::from_millis(1);
        for (what, time) in [("time", self.time), ("CPU time", self.cpu_time)] {
            let given = || format!("{time:?}");
            within(
                what,
                given,
                "1 ms to 7 days",
                (moment..=Self::MAX_TIME).contains(&time),
            )?;
        }
        let size = |size| move || format_size(size);
        let memory = (Self::MIN_MEMORY..=Self::MAX_MEMORY).contains(&self.memory);
        within("memory", size(self.memory), "4M to 512G", memory)?;
        let disk = disk::check_size(self.disk).is_ok();
        within("disk", size(self.disk), "16M to 64T, in steps of 4K", disk)?;
        for (what, data) in [("output", self.output), ("files to take", self.take)] {
            within(what, size(data), "0 to 1G", data <= Self::MAX_DATA)?;
        }
        let processes = (1..=Self::MAX_PROCESSES).contains(&self.processes);
        let given = || self.processes.to_string();
        within("processes", given, "1 to 32768", processes)
    }
}

fn within(
    what: &'static str,
    given: impl FnOnce() -> String,
    possible: &'static str,
    is_within: bool,
) -> Result<(), LimitError> {
    if is_within {
        return Ok(());
    }
    let given = given();
    Err(LimitError {
        what,
        given,
        possible,
    })
}

mod millis {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_named_with_what_is_possible() {
        let all = Limits::default();
        let second = Duration::from_secs(1);
        all.check().unwrap();
        for (wrong, what) in [
            (
                Limits {
                    time: Duration::ZERO,
                    ..all
                },
                "time",
            ),
            (
                Limits {
                    time: Limits::MAX_TIME + second,
                    ..all
                },
                "time",
            ),
            (
                Limits {
                    cpu_time: Duration::ZERO,
                    ..all
                },
                "CPU time",
            ),
            (Limits { memory: 0, ..all }, "memory"),
            (
                Limits {
                    memory: u64::MAX,
                    ..all
                },
                "memory",
            ),
            (Limits { disk: 0, ..all }, "disk"),
            (
                Limits {
                    disk: (16 << 20) + 1,
                    ..all
                },
                "disk",
            ),
            (
                Limits {
                    disk: u64::MAX,
                    ..all
                },
                "disk",
            ),
            (
                Limits {
                    output: u64::MAX,
                    ..all
                },
                "output",
            ),
            (
                Limits {
                    take: u64::MAX,
                    ..all
                },
                "files to take",
            ),
            (
                Limits {
                    processes: 0,
                    ..all
                },
                "processes",
            ),
            (
                Limits {
                    processes: u32::MAX,
                    ..all
                },
                "processes",
            ),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(&format!("limit of {what} is")), "{error}");
            assert!(error.contains("give ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn units_are_in_the_names() {
        let json = r#"{"time_ms":1500,"memory_bytes":4194304}"#;
        let limits: Limits = serde_json::from_str(json).unwrap();
        assert_eq!(limits.time, Duration::from_millis(1500));
        assert_eq!((limits.memory, limits.disk), (4 << 20, 256 << 20));
        for wrong in [r#"{"time":1}"#, r#"{"time_ms":-1}"#, r#"{"time_ms":"1s"}"#] {
            assert!(serde_json::from_str::<Limits>(wrong).is_err(), "{wrong}");
        }
    }
}
