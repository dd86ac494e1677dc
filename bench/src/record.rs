//! What was measured, as `--format json` has it: everything else is made of it.

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::place::LAB_SENTENCE;
use crate::statistics::{interval, median, quantile};

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Where it was made.
    pub host: Fingerprint,
    /// What ran in everything that was measured.
    pub settings: Settings,
    /// How it was measured, and what it does not tell.
    pub notes: Vec<String>,
    /// Who was asked for and could not be measured.
    pub missing: Vec<Missing>,
    /// The figures.
    #[serde(flatten)]
    pub results: Results,
}

/// What was the same for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The root image, by name.
    pub image: String,
    /// What ran.
    pub command: String,
    /// MiB of each VM.
    pub memory_mib: usize,
    /// How often, or how many.
    pub runs: usize,
}

/// Somebody who could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Who.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The figures of each kind of measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "bench", content = "results", rename_all = "lowercase")]
pub enum Results {
    /// Start to exit.
    Boot(Vec<Timed>),
    /// Memory.
    Density(Vec<Crowd>),
    /// Disk.
    Io(Vec<Load>),
    /// Network.
    Net(Vec<Load>),
}

/// The times of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Who.
    pub name: String,
    /// The middle, in milliseconds.
    pub p50_ms: f64,
    /// What nine of ten runs kept within.
    pub p90_ms: f64,
    /// What 99 of 100 runs kept within.
    pub p99_ms: f64,
    /// Where these lie with 95 % confidence (percentile bootstrap).
    pub p50_interval_ms: [f64; 2],
    /// The same of `p90_ms`.
    pub p90_interval_ms: [f64; 2],
    /// The same of `p99_ms`.
    pub p99_interval_ms: [f64; 2],
    /// All runs, in their order.
    pub samples_ms: Vec<f64>,
    /// Where the time goes; empty for who does not tell.
    pub stages: Vec<Stage>,
}

/// A stage on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What is done in it.
    pub name: String,
    /// How long it takes: the median of all runs.
    pub ms: f64,
    /// Who does it.
    pub by: By,
}

/// Who has the time of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// casita, before its guest runs.
    Monitor,
    /// The guest's kernel.
    Kernel,
    /// The agent and the command.
    Guest,
    /// casita, after its guest has ended.
    End,
}

impl Timed {
    /// What `samples_ms` come to.
    pub fn new(name: &str, samples_ms: Vec<f64>, stages: Vec<Stage>) -> Self {
        Self {
            name: name.to_owned(),
            p50_ms: quantile(&samples_ms, 0.5),
            p90_ms: quantile(&samples_ms, 0.9),
            p99_ms: quantile(&samples_ms, 0.99),
            p50_interval_ms: interval(&samples_ms, 0.5),
            p90_interval_ms: interval(&samples_ms, 0.9),
            p99_interval_ms: interval(&samples_ms, 0.99),
            samples_ms,
            stages,
        }
    }
}

/// The memory of many instances at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crowd {
    /// Who, and what they do: `casita, idle`.
    pub name: String,
    /// After each instance that was added.
    pub points: Vec<Point>,
    /// What is shared, and why.
    pub shared: String,
}

/// All instances together, in KiB. Pages that are nowhere twice are counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// How many instances.
    pub instances: usize,
    /// Used by one of the processes alone.
    pub private_kib: u64,
    /// The sum over processes of what each shares with others: one page counts for each of them.
    pub mapped_shared_kib: u64,
    /// Proportional set size: shared pages divided among those that share them.
    pub proportional_kib: u64,
    /// Of the files that they all use, what is in the page cache.
    pub page_cache_kib: u64,
    /// What the kernel keeps for them: slab, page tables and stacks, less what it had before.
    pub kernel_kib: u64,
    /// The slab's part of it.
    pub slab_kib: u64,
    /// The page tables' part of it.
    pub page_tables_kib: u64,
    /// The part of page tables that maps guests' memory ("SecPageTables").
    pub guest_page_tables_kib: u64,
    /// Files that they keep in memory (tmpfs), where no process has them mapped.
    #[serde(default)]
    pub tmpfs_kib: u64,
    /// What the machine has less of for other uses ("MemAvailable").
    pub machine_kib: u64,
}

impl Point {
    /// What these instances cost the host: their own pages, what they share once, their files in
    /// memory, and the kernel's.
    pub fn total_kib(&self) -> u64 {
        self.proportional_kib + self.tmpfs_kib + self.kernel_kib
    }
}

impl Crowd {
    /// What one more instance costs, in KiB: the slope from the second to the last, because the first
    /// brings what all share.
    #[allow(clippy::cast_precision_loss, reason = "KiB of one machine")]
    pub fn each(&self, figure: fn(&Point) -> u64) -> f64 {
        let steady = self.points.get(1).or_else(|| self.points.first());
        match (steady, self.points.last()) {
            (Some(first), Some(last)) if last.instances > first.instances => {
                let more = (last.instances - first.instances) as f64;
                (figure(last) as f64 - figure(first) as f64) / more
            }
            (_, Some(last)) => figure(last) as f64 / last.instances.max(1) as f64,
            _ => f64::NAN,
        }
    }
}

/// One load in one subject.
#[allow(clippy::struct_field_names, reason = "which load it was")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Who.
    pub name: String,
    /// Which load.
    pub load: String,
    /// The unit of the figures; more is better.
    pub unit: String,
    /// The middle of them.
    pub median: f64,
    /// Where it lies with 95 % confidence.
    pub interval: [f64; 2],
    /// All runs, in their order.
    pub samples: Vec<f64>,
    /// Half of the requests took no longer, in microseconds, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p50_us: Option<f64>,
    /// 99 of 100 took no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p99_us: Option<f64>,
}

impl Load {
    /// What `samples` come to.
    pub fn new(name: &str, load: &str, unit: &str, samples: Vec<f64>) -> Self {
        Self {
            name: name.to_owned(),
            load: load.to_owned(),
            unit: unit.to_owned(),
            median: median(&samples),
            interval: interval(&samples, 0.5),
            samples,
            latency_p50_us: None,
            latency_p99_us: None,
        }
    }
}

impl Record {
    /// What the pictures and tables are called.
    pub fn title(&self) -> &'static str {
        match self.results {
            Results::Boot(_) => "From start to exit",
            Results::Density(_) => "Memory of many at once",
            Results::Io(_) => "Disk",
            Results::Net(_) => "Network",
        }
    }

    /// What is shared and why, once for all of whom the same is true.
    pub fn shared(&self) -> Vec<String> {
        let Results::Density(results) = &self.results else {
            return Vec::new();
        };
        let mut told: Vec<(String, &str)> = Vec::new();
        for crowd in results {
            match told.iter_mut().find(|(_, why)| *why == crowd.shared) {
                Some((names, _)) => *names = format!("{names}; {}", crowd.name),
                None => told.push((crowd.name.clone(), &crowd.shared)),
            }
        }
        told.into_iter()
            .map(|(names, why)| format!("{names}: {why}"))
            .collect()
    }

    /// What every picture and table says of where it was measured.
    pub fn place(&self) -> String {
        let host = &self.host;
        if host.is_lab() {
            return LAB_SENTENCE.to_owned();
        }
        format!("{}, Linux {}, {}", host.cpu, host.host_kernel, host.kvm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use serde_json::{Value, json};

    #[test]
    fn json_has_the_fields_that_programs_rely_on() {
        let record = sample::boot();
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(value["bench"], "boot");
        assert!(value["host"]["cpu"].is_string());
        let first = &value["results"][0];
        assert_eq!(first["name"], "casita");
        for field in ["p50_ms", "p90_ms", "p99_ms"] {
            assert!(first[field].is_f64(), "{field}");
        }
        assert!(
            first["samples_ms"]
                .as_array()
                .unwrap()
                .iter()
                .all(Value::is_f64)
        );
        let stage = &first["stages"][0];
        assert!(stage["name"].is_string() && stage["ms"].is_f64());
        assert_eq!(value["missing"][0]["name"], "podman");
    }

    #[test]
    fn records_come_back_from_json_as_they_were() {
        for record in sample::all() {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        }
    }

    #[test]
    fn what_one_more_costs_leaves_out_what_the_first_brings() {
        let point = |instances, private_kib| Point {
            instances,
            private_kib,
            ..Point::default()
        };
        let crowd = |points| Crowd {
            name: String::new(),
            points,
            shared: String::new(),
        };
        let each = |points| crowd(points).each(|point| point.private_kib);
        let growing = vec![point(1, 90), point(2, 100), point(3, 110), point(4, 120)];
        assert!((each(growing) - 10.0).abs() < 1e-9);
        assert!((each(vec![point(1, 90)]) - 90.0).abs() < 1e-9);
        assert!(each(Vec::new()).is_nan());
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        let mut value = serde_json::to_value(sample::boot()).unwrap();
        value["bench"] = json!("other");
        assert!(serde_json::from_value::<Record>(value).is_err());
    }
}
