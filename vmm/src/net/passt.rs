//! passt(1), Debian's user-mode network: it takes the guest's frames from a socket and makes ordinary
//! connections of them, with nobody's rights but the user's.
//!
//! There is one for each VM that uses its network: it takes some 35 MiB of memory, so the first frame
//! starts it where nobody counts on it before (`dormant`). It confines itself (namespaces of its own with
//! an empty root, no capability, a filter of system calls), and ends when the other end of its socket is
//! closed, so also when the monitor is killed. As root it goes on as `nobody`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use casita_devices::virtio::net::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::NetError;
use super::ports::Reserved;
use super::spec::{Mtu, Protocol};
use super::user::{Addresses, GATEWAY_MAC};
use crate::confine::{self, Role};

/// The program.
const PROGRAM: &str = "passt";
/// It needs some hundredths of a second, on a host that is not busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to notice that its guest is gone.
const PATIENCE_AT_END: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};
/// More than it says before it gives up.
const MOST_SAID: u64 = 16 << 10;

/// Where passt is, if it is installed.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(|path| path.is_file())
}

/// How it is started.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The addresses.
    pub addresses: &'a Addresses,
    /// Domains that it tells by DHCP.
    pub search: &'a [String],
    /// The MTU that it tells by DHCP.
    pub mtu: Mtu,
    /// The interface of the host's from which it takes an IPv6 address of its own; none for no IPv6.
    pub ipv6_interface: Option<&'a str>,
}

impl Setup<'_> {
    /// Whether the gateway stands for the host's loopback. Answers of UDP to the host's own programs
    /// go by that; those of TCP do not need it.
    pub fn maps_gateway(&self, ports: &[Reserved]) -> bool {
        ports.iter().any(|port| port.protocol == Protocol::Udp)
    }

    /// All but its socket.
    fn arguments(&self, ports: &[Reserved]) -> Vec<String> {
        let mut words = Words::default();
        words.add(&["--foreground", "--quiet", "--stderr"]);
        if !self.maps_gateway(ports) {
            words.add(&["--no-map-gw"]);
        }
        words.pair("--mtu", &self.mtu);
        words.pair("--mac-addr", &GATEWAY_MAC);
        // Nothing is taken over from it but, with IPv6, a link-local address. Without a name it would
        // look for a default route, which a host need not have.
        words.pair("--interface", &self.ipv6_interface.unwrap_or("lo"));
        if self.ipv6_interface.is_none() {
            words.add(&["--ipv4-only"]);
        }
        for side in &self.addresses.sides {
            words.pair("--address", &side.address.ip);
            words.pair("--gateway", &side.gateway);
            if side.address.ip.is_ipv4() {
                words.pair("--netmask", &side.address.prefix);
            }
        }
        let forwarded = &self.addresses.forwarded;
        let forwards = |server: &IpAddr| forwarded.iter().find(|(ours, _)| ours == server);
        for server in &self.addresses.dns {
            let behind = forwards(server).map_or(server, |(_, behind)| behind);
            words.pair("--dns", &behind);
        }
        if self.addresses.dns.is_empty() {
            words.pair("--dns", &"none");
        }
        for (ours, _) in forwarded {
            words.pair("--dns-forward", &ours);
        }
        match self.search {
            [] => words.pair("--search", &"none"),
            search => words.pair("--search", &search.join(" ")),
        }
        for (option, protocol) in [
            ("--tcp-ports", Protocol::Tcp),
            ("--udp-ports", Protocol::Udp),
        ] {
            let mut ports = ports
                .iter()
                .filter(|port| port.protocol == protocol)
                .peekable();
            if ports.peek().is_none() {
                words.pair(option, &"none");
            }
            ports.for_each(|port| words.pair(option, &port_spec(port)));
        }
        words.0
    }
}

/// `[ADDRESS/]HOST:GUEST`
fn port_spec(port: &Reserved) -> String {
    let at = port
        .address
        .map_or_else(String::new, |address| format!("{address}/"));
    format!("{at}{}:{}", port.host, port.guest)
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|word| (*word).to_owned()));
    }

    fn pair(&mut self, option: &str, value: &dyn std::fmt::Display) {
        self.0.extend([option.to_owned(), value.to_string()]);
    }
}

/// How a passt is started, whenever that is and by whomever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    path: PathBuf,
    words: Vec<String>,
}

impl Order {
    /// The program at `path`, for a guest that is set up so, with these ports.
    pub fn new(path: PathBuf, setup: &Setup<'_>, ports: &[Reserved]) -> Self {
        Self {
            path,
            words: setup.arguments(ports),
        }
    }

    /// Starts it, with its end of the socket, which is closed here then. Nobody else starts a program
    /// meanwhile.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(self, socket: OwnedFd) -> Result<Unwatched, NetError> {
        let Self { path, mut words } = self;
        let failed = |source| NetError::PasstStart {
            path: path.clone(),
            source,
        };
        words.extend(["--fd".to_owned(), socket.as_raw_fd().to_string()]);
        // It must not wait for us when it says more than anybody reads.
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (said, stderr) = pipe_with(flags).map_err(|errno| failed(errno.into()))?;
        log::debug!("{} {}", path.display(), words.join(" "));
        let mut command = Command::new(&path);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .current_dir("/")
            .env_clear();
        // None that is started later has it: it is closed here by then, whatever comes of this.
        rustix::io::fcntl_setfd(&socket, FdFlags::empty()).map_err(|errno| failed(errno.into()))?;
        let child = command.spawn();
        drop(socket);
        let child = child.map_err(failed)?;
        Ok(Unwatched {
            program: Program(child),
            said: said.into(),
        })
    }
}

/// A passt that runs, or is about to. It ends when this is dropped.
#[derive(Debug)]
pub struct Passt {
    running: Unwatched,
    socket: UnixStream,
}

impl Passt {
    /// Starts it. What keeps `ports` from others is given up for that.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(order: Order, ports: Vec<Reserved>) -> Result<Self, NetError> {
        let (socket, theirs) = pair()?;
        drop(ports);
        Ok(Self {
            running: order.start(theirs)?,
            socket,
        })
    }

    /// Waits until it serves the guest, whose addresses it is told by the way, so that connections
    /// find it before it has said anything itself.
    ///
    /// # Errors
    /// If it has ended, with its reason, or does not answer.
    pub fn wait_ready(&mut self, mac: MacAddress, addresses: &Addresses) -> Result<(), NetError> {
        let Some((ip, gateway)) =
            addresses
                .sides
                .iter()
                .find_map(|side| match (side.address.ip, side.gateway) {
                    (IpAddr::V4(ip), IpAddr::V4(gateway)) => Some((ip, gateway)),
                    _ => None,
                })
        else {
            return Ok(());
        };
        let request = arp_request(mac, ip.octets(), gateway.octets());
        self.exchange(&request).map_err(|error| self.blame(error))
    }

    /// Sends a frame, and takes what comes until it is the answer to an ARP request.
    fn exchange(&self, request: &[u8]) -> io::Result<()> {
        let (mut socket, deadline) = (&self.socket, Instant::now() + PATIENCE);
        // In one piece: a length that comes alone is lost on passt.
        let len = (request.len() as u32).to_be_bytes();
        socket.write_all(&[&len, request].concat())?;
        let mut frame = vec![0; 1 << 16];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut len = [0; 4];
            socket.read_exact(&mut len)?;
            let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
            let frame = frame.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
            socket.read_exact(frame)?;
            if is_arp_answer(frame) {
                return socket.set_read_timeout(None);
            }
        }
    }

    /// What is known of why it does not answer.
    fn blame(&mut self, error: io::Error) -> NetError {
        let ended = !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        );
        if ended {
            // So that it has said all.
            let _ = self.running.program.0.wait();
        }
        match last_words(&mut self.running.said) {
            Some(words) => NetError::Passt(words),
            None => NetError::PasstSilent(error),
        }
    }

    /// The socket, and what is to be watched.
    pub fn into_parts(self) -> (UnixStream, Unwatched) {
        (self.socket, self.running)
    }
}

/// The two ends of the way between a guest and its passt.
///
/// # Errors
/// If the host has no descriptor left.
pub fn pair() -> Result<(UnixStream, OwnedFd), NetError> {
    let pair = UnixStream::pair().map_err(|error| NetError::Host("make a socket", error));
    pair.map(|(ours, theirs)| (ours, theirs.into()))
}

/// A passt whose end nobody would hear of yet. It ends when this is dropped.
#[derive(Debug)]
pub struct Unwatched {
    program: Program,
    said: File,
}

impl Unwatched {
    /// Has the program watched from [`Watch::start`] on: if it ends before what is returned is
    /// dropped, `on_end` is told.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn watch(self, on_end: OnEnd) -> Result<Watch, NetError> {
        let failed = |error| NetError::Host("watch passt", error);
        let pid = Pid::from_child(&self.program.0);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Watch {
            pidfd,
            wanted: Arc::new(AtomicBool::new(false)),
            unstarted: Some((self, on_end)),
            thread: None,
        })
    }
}

/// Told when a passt has ended: whether it failed, and a few words of why.
pub type OnEnd = Box<dyn FnOnce(bool, &str) + Send>;

/// A passt that serves a guest. It ends when this is dropped.
pub struct Watch {
    pidfd: OwnedFd,
    wanted: Arc<AtomicBool>,
    unstarted: Option<(Unwatched, OnEnd)>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Starts the thread that watches.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub fn start(&mut self) -> io::Result<()> {
        let Some((unwatched, on_end)) = self.unstarted.take() else {
            return Ok(());
        };
        let (mut program, mut said) = (unwatched.program, unwatched.said);
        let is_wanted = self.wanted.clone();
        let work = move || {
            confine::enter_role(Role::Control);
            let status = program.0.wait();
            if is_wanted.load(Ordering::Acquire) {
                return;
            }
            let failed = !status.as_ref().is_ok_and(ExitStatus::success);
            let status = status.map_or_else(|_| String::new(), |status| format!(" ({status})"));
            let words =
                last_words(&mut said).map_or_else(String::new, |words| format!(": {words}"));
            on_end(failed, &format!("passt has ended{status}{words}"));
        };
        let thread = thread::Builder::new().name(PROGRAM.to_owned());
        self.thread = Some(thread.spawn(work)?);
        Ok(())
    }

    /// Waits until it has ended by itself, as the device is gone and its socket with that, and with what
    /// the guest has sent last. False if it does not.
    pub fn wait_for_end(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ended = matches!(poll(&mut fds, Some(&PATIENCE_AT_END)), Ok(1..));
        if !ended {
            log::warn!("{PROGRAM} does not end");
        }
        ended
    }

    /// Its end is no news from now on: the device is about to go, and with it the socket.
    pub fn expect_end(&self) {
        self.wanted.store(true, Ordering::Release);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.expect_end();
        if confine::is_confined() {
            // Nothing else can be done from here.
            if !self.wait_for_end() {
                return;
            }
        } else {
            // It may have ended by itself.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running program.
#[derive(Debug)]
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last line that says something.
fn last_words(said: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    // The end of what there is comes as an error if it still runs.
    let _ = said.take(MOST_SAID).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // It tells the system's log, too, and complains where there is none; and it always warns root.
    let noise = |line: &str| line.contains("to syslog") || line.starts_with("Don't run as root");
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !noise(line))
        .map(str::to_owned)
}

/// Who has `gateway`, asks the guest (RFC 826).
fn arp_request(mac: MacAddress, ip: [u8; 4], gateway: [u8; 4]) -> Vec<u8> {
    let head = [&[0xff; 6][..], &mac.0, &[0x08, 0x06]].concat();
    // Ethernet, IPv4, lengths of addresses, a request.
    let body = [0, 1, 8, 0, 6, 4, 0, 1];
    [&head[..], &body, &mac.0, &ip, &[0; 6], &gateway].concat()
}

fn is_arp_answer(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06]) && frame.get(20..22) == Some(&[0, 2])
}

#[cfg(test)]
mod tests {
    use super::super::host::Resolvers;
    use super::super::ports;
    use super::*;

    fn arguments(ips: &[&str], dns: &[&str], published: &[&str], ipv6: Option<&str>) -> String {
        let parse = |texts: &[&str]| {
            texts
                .iter()
                .map(|ip| ip.parse().unwrap())
                .collect::<Vec<_>>()
        };
        let ips: Vec<_> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let addresses =
            Addresses::new(&ips, &parse(dns), &Resolvers::default(), ipv6.is_some()).unwrap();
        let specs: Vec<_> = published.iter().map(|text| text.parse().unwrap()).collect();
        let reserved = ports::reserve(&specs, &[], false).unwrap();
        let setup = Setup {
            addresses: &addresses,
            search: &[],
            mtu: Mtu::MAX,
            ipv6_interface: ipv6,
        };
        setup.arguments(&reserved).join(" ")
    }

    #[test]
    fn what_it_is_told_is_all_that_it_knows() {
        assert_eq!(
            arguments(&[], &[], &[], None),
            "--foreground --quiet --stderr --no-map-gw --mtu 65520 --mac-addr \
             02:ca:51:7a:00:02 --interface lo --ipv4-only --address 10.0.2.15 --gateway 10.0.2.2 \
             --netmask 24 --dns none --search none --tcp-ports none --udp-ports none"
        );
        let both = arguments(&[], &["192.0.2.1"], &[], Some("eth0"));
        assert!(
            both.contains("--interface eth0 --address 10.0.2.15")
                && both.contains("--address fdca:517a:2ca5::15 --gateway fdca:517a:2ca5::2")
                && both.contains("--dns 192.0.2.1"),
            "{both}"
        );
        let stub = arguments(&[], &["127.0.0.53"], &[], None);
        assert!(
            stub.contains("--dns 127.0.0.53 --dns-forward 10.0.2.3"),
            "{stub}"
        );
    }

    #[test]
    fn ports_are_told_with_their_addresses() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let free = other.local_addr().unwrap().port();
        drop(other);
        let text = arguments(&[], &[], &[&format!("127.0.0.1:{free}:80")], None);
        assert!(
            text.contains(&format!("--tcp-ports 127.0.0.1/{free}:80 ")),
            "{text}"
        );
        assert!(text.ends_with("--udp-ports none"), "{text}");
    }

    #[test]
    fn its_last_words_are_those_that_say_why() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer
            .write_all(b"Don't run as root. x\nNo such thing\n\nFailed to send 9 bytes to syslog\n")
            .unwrap();
        drop(writer);
        let mut said = File::from(OwnedFd::from(reader));
        assert_eq!(last_words(&mut said), Some("No such thing".to_owned()));
        assert_eq!(last_words(&mut said), None);
    }

    #[test]
    fn an_answer_is_told_from_a_request() {
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let mut frame = arp_request(mac, [10, 0, 2, 15], [10, 0, 2, 2]);
        assert_eq!(frame.len(), 42);
        assert!(!is_arp_answer(&frame) && !is_arp_answer(&frame[..10]));
        frame[21] = 2;
        assert!(is_arp_answer(&frame));
    }
}
