//! Traffic of a guest: Casita's network device beside QEMU's, over a tap device without and with the host's
//! vhost-net, and, as a part of its own, over passt.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::interrupt::{Child, output_of};
use crate::parts::result::{Goal, PartResult, Row};
use crate::peers::{self, CASITA, QEMU, Qemu};
use crate::process::{CpuTime, Running};
use crate::subjects::Subjects;

/// The host's end of a connection, and the guest's, from net-peer.c.
const NET_PEER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/net-peer"));
const VHOST_NET: &str = "/dev/vhost-net";
const TAP: &str = "casitabench";
const HOST: &str = "10.9.0.1";
const GUEST: &str = "10.9.0.2";
/// Ports of the guest, and with passt also of the host.
const IPERF_PORT: &str = "5201";
const PEER_PORT: &str = "7000";
const PASST_MTU: &str = "65520";
/// The loopback device, by which passt is started, has no address that it could have.
const GATEWAY_MAC: &str = "52:54:00:c0:ff:01";
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet loglevel=3 pci=off tsc=reliable no_timer_check \
                       random.trust_cpu=on root=/dev/vda ro init=/bench-net";
/// Bytes of each transfer.
const MIB: f64 = 128.0;
const QUESTIONS: &str = "1000";
const CONNECTIONS: &str = "10000";

const TO_GUEST: &str = "TCP to the guest";
const FROM_GUEST: &str = "TCP from the guest";

/// What is behind the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tap,
    Vhost,
    Passt,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Tap => "tap",
            Way::Vhost => "tap with vhost-net",
            Way::Passt => "passt",
        }
    }

    /// Of QEMU's throughput.
    fn goal(self) -> f64 {
        match self {
            Way::Tap => 1.2,
            Way::Vhost | Way::Passt => 1.0,
        }
    }

    fn address(self) -> &'static str {
        match self {
            Way::Passt => "127.0.0.1",
            _ => GUEST,
        }
    }
}

/// Measures what takes a tap device.
pub fn over_tap(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    measure(subjects, &[Way::Tap, Way::Vhost], result)
}

/// Measures what takes passt. It is a part of its own because ten thousand connections take the lab a quarter
/// of an hour by its instruction counter.
pub fn over_passt(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(format!(
        "{CONNECTIONS} connections are made one after another through a published port, used and closed. passt \
         is Debian's for both; its MTU is {PASST_MTU}."
    ));
    measure(subjects, &[Way::Passt], result)
}

/// Measures these ways for both monitors, in turns.
fn measure(subjects: &Subjects, ways: &[Way], result: &mut PartResult) -> Result<()> {
    result.note(format!(
        "One vCPU, 256 MiB, the same kernel and image, /bench-net of the image as init. iperf3 with one \
         connection, {MIB} MiB each way, its server in the guest; net-peer (bench/guest/net-peer.c) asks with \
         one byte and is answered with one, {QUESTIONS} times."
    ));
    result.note(
        "CPU is that of the monitor, its passt and the kernel's vhost thread by /proc/PID/stat, for a \
         gibibyte; the guest's own is in it, iperf3's on the host is not.",
    );
    let peer = subjects.work.join("net-peer");
    write_program(&peer)?;
    let ip = |words: &str| output_of(Command::new("ip").args(words.split(' ')));
    ip("link set lo up")?;
    for run in 0..subjects.runs {
        for &way in ways {
            if way == Way::Vhost && !std::path::Path::new(VHOST_NET).exists() {
                result.note("The host has no vhost-net: those rows are left out.");
                continue;
            }
            for who in [CASITA, QEMU] {
                if way != Way::Passt {
                    ip(&format!("tuntap add {TAP} mode tap vnet_hdr"))?;
                    ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
                    ip(&format!("link set {TAP} up"))?;
                }
                let measured = one(subjects, (who, way), &peer, result);
                if way != Way::Passt {
                    ip(&format!("link del {TAP}"))?;
                }
                measured.with_context(|| format!("{who} over {}", way.name()))?;
                eprintln!(
                    "net: round {} of {}, {who} over {}",
                    run + 1,
                    subjects.runs,
                    way.name()
                );
            }
        }
    }
    set_goals(ways, result);
    Ok(())
}

fn write_program(path: &PathBuf) -> Result<()> {
    std::fs::write(path, NET_PEER)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(())
}

/// One VM: both transfers, the questions, and the connections.
fn one(
    subjects: &Subjects,
    (who, way): (&str, Way),
    peer: &PathBuf,
    result: &mut PartResult,
) -> Result<()> {
    let passt = (who == QEMU && way == Way::Passt)
        .then(|| start_passt(subjects))
        .transpose()?;
    let mut command = if who == CASITA {
        casita(subjects, way)?
    } else {
        qemu(subjects, way)
    };
    let mut running = Running::start(&mut command)?;
    running.line_with("bench-ready")?;
    let processes = helpers(running.id())?;
    let name = |what: &str| format!("{}: {what}", way.name());
    for (what, reverse) in [(TO_GUEST, false), (FROM_GUEST, true)] {
        let before = (cpu(&processes)?, frames(reverse));
        let rate = transfer(way, reverse)?;
        let spent = (cpu(&processes)? - before.0) / MIB * 1024.0 / 1000.0;
        result.add(&name(what), who, "MiB/s", rate);
        result.add(&name(&format!("{what}, CPU for a GiB")), who, "s", spent);
        if let (Some(before), Some(after)) = (before.1, frames(reverse)) {
            let each = MIB * 1024.0 / (after - before).max(1.0);
            result.add(&name(&format!("{what}, a frame")), who, "KiB", each);
        }
    }
    let ask = ["ask", way.address(), PEER_PORT, QUESTIONS];
    let [mean, _, late] = numbers(&output_of(Command::new(peer).args(ask))?)?;
    result.add(&name("an answer"), who, "us", mean / 1000.0);
    result.add(
        &name("an answer, 99th percentile"),
        who,
        "us",
        late / 1000.0,
    );
    if way == Way::Passt {
        let connect = ["connect", way.address(), PEER_PORT, CONNECTIONS];
        let [all, failed] = numbers(&output_of(Command::new(peer).args(connect))?)?;
        let count: f64 = CONNECTIONS.parse()?;
        result.add(&name("a connection"), who, "us", all / count / 1000.0);
        result.add(&name("connections that failed"), who, "", failed);
    }
    drop(passt);
    Ok(())
}

/// Exactly so many numbers in a line.
fn numbers<const N: usize>(line: &[u8]) -> Result<[f64; N]> {
    let text = String::from_utf8_lossy(line).into_owned();
    let numbers: Result<Vec<f64>, _> = text.split_whitespace().map(str::parse).collect();
    let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
    numbers.with_context(|| format!("net-peer said {text:?}"))
}

fn casita(subjects: &Subjects, way: Way) -> Result<Command> {
    let mut command = peers::casita_with_network(subjects, "256M")?;
    command.args(["--boot", "plain", "--cmdline", CMDLINE]);
    if way == Way::Passt {
        command.args(["--net", "user"]);
        for port in [IPERF_PORT, PEER_PORT] {
            command.args(["--publish", &format!("{port}:{port}")]);
        }
        command.args(["--ip", &format!("{GUEST}/24,gw={HOST}")]);
        return Ok(command);
    }
    command.args(["--net", &format!("tap:{TAP}")]);
    if way == Way::Vhost {
        return Ok(command);
    }
    // casita takes vhost-net where there is one; here there is none.
    let script = format!("mount --bind /dev/null {VHOST_NET} && exec \"$@\"");
    let mut alone = Command::new("unshare");
    alone.args(["--mount", "--", "sh", "-c", &script, "sh"]);
    alone.arg(command.get_program()).args(command.get_args());
    for (variable, value) in command.get_envs() {
        if let Some(value) = value {
            alone.env(variable, value);
        }
    }
    if std::path::Path::new(VHOST_NET).exists() {
        command = alone;
    }
    Ok(command)
}

fn socket(subjects: &Subjects) -> PathBuf {
    subjects.work.join("passt/socket")
}

fn qemu(subjects: &Subjects, way: Way) -> Command {
    let disk = PathBuf::from("/dev/null");
    let qemu = Qemu {
        memory: "256M",
        cmdline: CMDLINE,
        words: &[],
        root: &subjects.image,
        disk: &disk,
        disk_options: ",file.locking=off",
        io_thread: false,
        exit_at_stage: false,
    };
    let mut command = qemu.command(subjects);
    let (end, mtu) = match way {
        Way::Passt => (
            format!(
                "stream,id=net,server=off,addr.type=unix,addr.path={}",
                socket(subjects).display()
            ),
            format!(",host_mtu={PASST_MTU}"),
        ),
        _ => (
            format!(
                "tap,id=net,ifname={TAP},script=no,downscript=no,vhost={}",
                if way == Way::Vhost { "on" } else { "off" }
            ),
            String::new(),
        ),
    };
    command
        // Without this its devices are those of virtio 0.9, without half of the features.
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(["-netdev", &end, "-device"])
        .arg(format!(
            "virtio-net-device,netdev=net,bus=virtio-mmio-bus.20{mtu}"
        ));
    command
}

/// passt for QEMU, with what casita gives its own.
fn start_passt(subjects: &Subjects) -> Result<Child> {
    let socket = socket(subjects);
    let folder = socket.parent().context("a folder")?;
    std::fs::create_dir_all(folder)?;
    // Where anybody may: as root it becomes somebody else before it makes its socket.
    std::fs::set_permissions(folder, Permissions::from_mode(0o777))?;
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("passt");
    command
        .args(["--foreground", "--quiet", "--socket"])
        .arg(&socket)
        .args(["--ipv4-only", "--interface", "lo", "--no-map-gw"])
        .args(["--mac-addr", GATEWAY_MAC])
        .args(["--address", GUEST, "--netmask", "24", "--gateway", HOST])
        .args(["--mtu", PASST_MTU, "--udp-ports", "none"])
        .args(["--tcp-ports", &format!("{IPERF_PORT},{PEER_PORT}")])
        .args(["--dns", "none", "--search", "none"])
        .stdin(Stdio::null());
    let mut child = Child::start(&mut command)?;
    while !socket.exists() {
        ensure!(!child.has_ended()?, "passt has ended; above is why");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(child)
}

/// The monitor and what works for it: passt, and the kernel's thread that has the monitor's number.
fn helpers(monitor: u32) -> Result<Vec<u32>> {
    let mut found = vec![monitor];
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("passt") || name.trim() == format!("vhost-{monitor}") {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Milliseconds of all of them.
fn cpu(processes: &[u32]) -> Result<f64> {
    let times = processes.iter().map(|&pid| CpuTime::of(pid));
    times.map(|time| Ok(time?.total_ms())).sum()
}

/// Frames that have gone over the tap device so far, if there is one.
fn frames(from_guest: bool) -> Option<f64> {
    let direction = if from_guest { "rx" } else { "tx" };
    let path = format!("/sys/class/net/{TAP}/statistics/{direction}_packets");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// MiB a second that arrived.
fn transfer(way: Way, reverse: bool) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command
        .args(["--client", way.address(), "--port", IPERF_PORT, "--json"])
        .args(["--bytes", &format!("{MIB}M")]);
    if reverse {
        command.arg("--reverse");
    }
    let said: serde_json::Value = serde_json::from_slice(&output_of(&mut command)?)?;
    let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
    let rate = rate.with_context(|| format!("iperf3 said {said}"))?;
    ensure!(rate > 0.0, "nothing arrived");
    Ok(rate / 8.0 / f64::from(1 << 20))
}

fn set_goals(ways: &[Way], result: &mut PartResult) {
    for way in ways {
        let name = |what: &str| format!("{}: {what}", way.name());
        for what in [TO_GUEST, FROM_GUEST] {
            let goal = Some(Goal::AtLeast(way.goal()));
            result.add_ratio(&name(what), CASITA, QEMU, goal);
        }
        let answer = name("an answer");
        if let Some(theirs) = result.row(&answer, QEMU).map(Row::median) {
            result.set_goal(&answer, CASITA, Goal::AtMost(theirs));
        }
    }
    if ways.contains(&Way::Passt) {
        let failed = format!("{}: connections that failed", Way::Passt.name());
        result.set_goal(&failed, CASITA, Goal::AtMost(0.0));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "nothing is rounded")]

    use super::*;

    #[test]
    fn answers_of_the_peer_are_numbers_and_as_many_as_expected() {
        assert_eq!(numbers::<2>(b"12 3\n").unwrap(), [12.0, 3.0]);
        assert!(numbers::<3>(b"12 3\n").is_err());
        assert!(numbers::<1>(b"an error\n").is_err());
    }

    #[test]
    fn each_way_has_its_goal() {
        let ways = [Way::Tap, Way::Vhost, Way::Passt];
        let names: Vec<&str> = ways.iter().map(|way| way.name()).collect();
        assert_eq!(names, ["tap", "tap with vhost-net", "passt"]);
        assert!(Way::Tap.goal() > Way::Vhost.goal());
    }
}
