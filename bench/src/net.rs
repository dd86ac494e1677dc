//! `casita bench net`: iperf3 between the host and a VM, a container, and itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use casita::cli::bench::LoadArgs;
use rustix::process::geteuid;
use serde_json::Value;

use crate::boot::{container, name_of};
use crate::containers::{Containers, Extras, Kind, Standing, is_installed};
use crate::fingerprint::Fingerprint;
use crate::interrupt::{self, Child, output_of};
use crate::peers::{self, CASITA};
use crate::process::Running;
use crate::progress::Progress;
use crate::record::{Load, Missing, Record, Results, Settings};
use crate::subjects::{self, Subjects};
use crate::toolimage;

/// Where iperf3 listens: nobody else does there.
const PORT: &str = "35201";
/// Where a VM's published port is.
const LOOPBACK: &str = "127.0.0.1";
/// The ends of the container's link, of the addresses for documentation (RFC 5737).
const HOST_END: &str = "192.0.2.1";
const CONTAINER_END: &str = "192.0.2.2";

/// Which way bytes go.
struct Way {
    name: &'static str,
    /// iperf3's, if it takes one.
    option: Option<&'static str>,
    /// The part of iperf3's account that is by the host's clock.
    figure: &'static str,
}

const WAYS: [Way; 2] = [
    Way {
        name: "TCP to the host",
        option: Some("--reverse"),
        figure: "sum_received",
    },
    Way {
        name: "TCP from the host",
        option: None,
        figure: "sum_sent",
    },
];

/// Measures casita, containers and loopback.
///
/// # Errors
/// If iperf3 is missing, or none of them can be measured.
pub fn measure(args: &LoadArgs, casita: &Path) -> Result<Record> {
    let below = args.folder.clone().unwrap_or_else(subjects::default_place);
    let work = subjects::work_folder(&below)?;
    let image = work.path().join("image.erofs");
    toolimage::make(&image, &["iperf3"], work.path())?;
    let subjects = Subjects::with_image(&image, args.kernel.as_deref(), casita, &below)?;
    let host = Fingerprint::take(&subjects)?;
    let containers = Containers::new(&subjects)?;
    let mut missing = Vec::new();
    let link = Link::new();
    let mut who: Vec<(&str, Who<'_>)> = Vec::new();
    match vm_network(&subjects) {
        Ok(()) => who.push((CASITA, Who::Casita)),
        Err(reason) => missing.push(absent(CASITA, reason)),
    }
    for rival in &args.against {
        let name = name_of(*rival);
        match (container(*rival), &link) {
            (Some(kind @ (Kind::Crun | Kind::Runc)), Ok(link)) if containers.can_run(kind) => {
                who.push((name, Who::Container(kind, link)));
            }
            (Some(Kind::Crun | Kind::Runc), Ok(_)) => missing.push(absent(name, "not installed")),
            (Some(Kind::Crun | Kind::Runc), Err(error)) => {
                missing.push(absent(name, format!("no link for it: {error:#}")));
            }
            _ => missing.push(absent(name, "it can't be given a link: crun and runc can")),
        }
    }
    interrupt::check()?;
    who.push(("loopback", Who::Loopback));
    let bench = Bench {
        subjects: &subjects,
        containers: &containers,
        seconds: args.seconds,
    };
    let results = bench.run(args.runs, &who, &mut missing)?;
    Ok(Record {
        host,
        settings: Settings {
            image: "busybox and iperf3".to_owned(),
            command: "iperf3".to_owned(),
            memory_mib: 256,
            runs: args.runs,
        },
        notes: vec![format!(
            "iperf3, one TCP connection, {} s each, in turns. Its server is inside, its client on this \
             host, whose clock counts. The VM has its default network and a published port; the \
             container a network namespace and a veth pair, without bridge or NAT; loopback has nothing \
             around it.",
            args.seconds
        )],
        missing,
        results: Results::Net(results),
    })
}

fn absent(name: &str, reason: impl Into<String>) -> Missing {
    Missing {
        name: name.to_owned(),
        reason: reason.into(),
    }
}

/// Whether this casita's guests have a network, and find the host in it.
fn vm_network(subjects: &Subjects) -> Result<(), String> {
    let help = Command::new(&subjects.casita)
        .args(["run", "--help"])
        .output();
    let help = help.map_err(|error| error.to_string())?;
    if String::from_utf8_lossy(&help.stdout).contains("--publish ") {
        Ok(())
    } else {
        Err("not available: this casita has no network for its guests".to_owned())
    }
}

enum Who<'a> {
    Casita,
    Container(Kind, &'a Link),
    Loopback,
}

struct Bench<'a> {
    subjects: &'a Subjects,
    containers: &'a Containers,
    seconds: usize,
}

impl Bench<'_> {
    fn run(
        &self,
        runs: usize,
        who: &[(&str, Who<'_>)],
        missing: &mut Vec<Missing>,
    ) -> Result<Vec<Load>> {
        let mut progress = Progress::new("net", WAYS.len() * runs * who.len());
        let mut results = Vec::new();
        for way in &WAYS {
            let mut rates: Vec<Vec<f64>> = who.iter().map(|_| Vec::new()).collect();
            for _ in 0..runs {
                for ((name, one), rates) in who.iter().zip(&mut rates) {
                    match self.once(one, way) {
                        Ok(rate) => rates.push(rate),
                        Err(error) => {
                            interrupt::check()?;
                            let told = missing.iter().any(|missing| missing.name == *name);
                            if !told {
                                missing
                                    .push(absent(name, format!("does not work here: {error:#}")));
                            }
                        }
                    }
                    progress.step(name);
                }
            }
            let measured = who.iter().zip(rates).filter(|(_, rates)| !rates.is_empty());
            results.extend(
                measured.map(|((name, _), rates)| Load::new(name, way.name, "Gbit/s", rates)),
            );
        }
        Ok(results)
    }

    /// Gbit/s of one connection. The server is inside, serves one and ends; the client is here, so
    /// that the host's clock counts.
    fn once(&self, who: &Who<'_>, way: &Way) -> Result<f64> {
        let words = [
            "iperf3",
            "--server",
            "--one-off",
            "--forceflush",
            "--port",
            PORT,
        ];
        let mut _standing = None;
        let (mut server, address) = match who {
            Who::Loopback => {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]).args(["--bind", LOOPBACK]);
                (command, LOOPBACK)
            }
            Who::Container(kind, link) => {
                let name = format!("casita-bench-{}-net", std::process::id());
                // iperf3 sends from a file that it makes there.
                let tmp = self.subjects.work.join("tmp");
                std::fs::create_dir_all(&tmp)?;
                let extras = Extras {
                    folder: Some((tmp, "/tmp")),
                    network: Some(link.path()),
                };
                let command = self.containers.run_with(*kind, &name, &words, &extras)?;
                _standing = Some(Standing::new(*kind, &name));
                (command, CONTAINER_END)
            }
            Who::Casita => {
                let mut command = peers::casita_with_network(self.subjects, "256M")?;
                command
                    .arg("--publish")
                    .arg(format!("{LOOPBACK}:{PORT}:{PORT}"));
                command.arg("--").args(words);
                (command, LOOPBACK)
            }
        };
        let mut server = Running::start(&mut server)?;
        server.line_with("listening")?;
        let seconds = self.seconds.to_string();
        let mut client = Command::new("iperf3");
        client.args([
            "--json", "--port", PORT, "--time", &seconds, "--client", address,
        ]);
        parse(&output_of(client.args(way.option))?, way.figure)
    }
}

/// Reads a rate from iperf3's JSON: that of the side which is here.
fn parse(output: &[u8], figure: &str) -> Result<f64> {
    let value: Value = serde_json::from_slice(output)
        .with_context(|| format!("iperf3 said: {}", interrupt::last_line(output)))?;
    if let Some(error) = value["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let rate = value["end"][figure]["bits_per_second"].as_f64();
    Ok(rate.context("iperf3 tells no rate")? / 1e9)
}

/// A network namespace for containers, and its link to the host's.
struct Link {
    namespace: String,
}

impl Link {
    fn new() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("a network namespace takes root");
        }
        if !is_installed("ip") {
            bail!("ip (iproute2) is not installed");
        }
        let namespace = format!("casita-bench-{}", std::process::id());
        let (ours, theirs) = (format!("cbh{}", std::process::id()), "eth0");
        ip(&["netns", "add", &namespace])?;
        // From here on it is taken away again, and its link with it.
        let link = Self { namespace };
        let name = link.namespace.as_str();
        ip(&[
            "link", "add", &ours, "type", "veth", "peer", "name", theirs, "netns", name,
        ])?;
        ip(&["address", "add", &format!("{HOST_END}/30"), "dev", &ours])?;
        ip(&["link", "set", &ours, "up"])?;
        ip(&[
            "-n",
            name,
            "address",
            "add",
            &format!("{CONTAINER_END}/30"),
            "dev",
            theirs,
        ])?;
        ip(&["-n", name, "link", "set", theirs, "up"])?;
        Ok(link)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // What can't be removed is named after this process.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.namespace])
            .stderr(Stdio::null())
            .status();
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = Child::start(command.stderr(Stdio::piped()))?.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            words.join(" "),
            interrupt::last_line(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_the_side_that_is_here_counts_and_errors_are_told() {
        let said = br#"{"end": {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 2.5e9}}}"#;
        let rates = WAYS.map(|way| parse(said, way.figure).unwrap());
        assert!((rates[0] - 2.5).abs() < 1e-9 && (rates[1] - 9.0).abs() < 1e-9);
        let error = parse(br#"{"error": "unable to connect"}"#, "sum_sent").unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
        assert!(parse(b"nonsense", "sum_sent").is_err() && parse(b"{}", "sum_sent").is_err());
    }
}
