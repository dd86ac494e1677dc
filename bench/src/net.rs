//! `casita bench net`: iperf3 from a VM and from a container to the host, on one machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use casita::cli::bench::LoadArgs;
use rustix::process::geteuid;
use serde_json::Value;

use crate::boot::{container, name_of};
use crate::containers::{Containers, Extras, Kind, Standing, is_installed};
use crate::fingerprint::Fingerprint;
use crate::hostclock;
use crate::interrupt::{self, Child, output_of};
use crate::peers::{self, CASITA};
use crate::process::Running;
use crate::progress::Progress;
use crate::record::{Load, Missing, Record, Results, Settings};
use crate::subjects::{self, Subjects};
use crate::toolimage;

/// Where the host listens, in a namespace of its own or on loopback: nobody else does there.
const PORT: &str = "35201";
/// The ends of the container's link, of the addresses for documentation (RFC 5737).
const HOST_END: &str = "192.0.2.1";
const CONTAINER_END: &str = "192.0.2.2";

/// Which way bytes go, and iperf3's option for it.
const WAYS: [(&str, Option<&str>); 2] = [
    ("TCP to the host", None),
    ("TCP from the host", Some("--reverse")),
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
            "iperf3, one TCP connection, {} s each, in turns; the server is on this host. The VM has its \
             default network; the container a network namespace and a veth pair, without bridge or NAT; \
             loopback has nothing around it.",
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
    if String::from_utf8_lossy(&help.stdout).contains("--net ") {
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
        for (way, option) in WAYS {
            let mut rates: Vec<Vec<f64>> = who.iter().map(|_| Vec::new()).collect();
            for _ in 0..runs {
                for ((name, one), rates) in who.iter().zip(&mut rates) {
                    match self.once(one, option) {
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
            results
                .extend(measured.map(|((name, _), rates)| Load::new(name, way, "Gbit/s", rates)));
        }
        Ok(results)
    }

    /// Gbit/s of one connection. The server serves one and ends.
    fn once(&self, who: &Who<'_>, option: Option<&str>) -> Result<f64> {
        let server_at = match who {
            Who::Container(..) => HOST_END,
            Who::Casita | Who::Loopback => "127.0.0.1",
        };
        let mut server = Command::new("iperf3");
        server.args(["--server", "--one-off", "--forceflush", "--port", PORT]);
        let mut server = Running::start(server.args(["--bind", server_at]))?;
        server.line_with("listening")?;
        let seconds = self.seconds.to_string();
        let words = |host: &str| {
            let words = ["iperf3", "--json", "--port", PORT, "--time", &seconds];
            let words = words.into_iter().chain(option).chain(["--client", host]);
            words.map(str::to_owned).collect::<Vec<String>>()
        };
        let output = match who {
            Who::Loopback => {
                let words = words(server_at);
                output_of(Command::new(&words[0]).args(&words[1..]))?
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
                let words = words(HOST_END);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let mut command = self.containers.run_with(*kind, &name, &words, &extras)?;
                let standing = Standing::new(*kind, &name);
                let output = output_of(&mut command)?;
                standing.forget();
                output
            }
            Who::Casita => {
                // The guest's gateway is the host.
                let gateway = "/bin/busybox ip route | /bin/busybox awk '/^default/ { print $3 }'";
                let script = format!("exec {}", words(&format!("$({gateway})")).join(" "));
                let words = ["/bin/sh".to_owned(), "-c".to_owned(), script];
                let mut command = peers::casita(self.subjects, "256M")?;
                let held = hostclock::held(command.arg("--"), &words)?;
                return Ok(parse(&held.output)? / held.host_per_guest);
            }
        };
        parse(&output)
    }
}

/// Reads what the receiver saw from iperf3's JSON.
fn parse(output: &[u8]) -> Result<f64> {
    let value: Value = serde_json::from_slice(output)
        .with_context(|| format!("iperf3 said: {}", interrupt::last_line(output)))?;
    if let Some(error) = value["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let rate = value["end"]["sum_received"]["bits_per_second"].as_f64();
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
    fn the_receivers_rate_counts_and_errors_are_told() {
        let said = br#"{"end": {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 2.5e9}}}"#;
        assert!((parse(said).unwrap() - 2.5).abs() < 1e-9);
        let error = parse(br#"{"error": "unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
        assert!(parse(b"nonsense").is_err() && parse(b"{}").is_err());
    }
}
