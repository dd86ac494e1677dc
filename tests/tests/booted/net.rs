//! The network: what a guest reaches, how it is reached, and what becomes of it when its host's side
//! goes.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::patience;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use casita_tests::{image, machine, oci};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{sh, vm};

pub fn tests(suite: &mut Suite) {
    let passt = || machine::lacks("passt", "passt");
    let links = || {
        let missing = "needs root, to make network interfaces";
        let user = (!machine::is_root()).then(|| missing.to_owned());
        user.or_else(|| machine::lacks("ip", "iproute2"))
    };
    let tap = || links().or_else(|| machine::lacks_file("/dev/net/tun".as_ref()));
    let both = || passt().or_else(links);
    suite.test_if(both(), "a_guest_has_addresses_and_routes", has_addresses);
    suite.test_if(both(), "a_guest_without_ipv6_on_the_host", static_address);
    suite.test("without_a_network_there_is_no_device", none);
    suite.test_if(passt(), "a_published_port_answers", published);
    suite.test_if(passt(), "no_request_of_a_thousand_is_lost", || {
        // More at once than this the server itself turns away: so many may wait to be accepted.
        no_request_is_lost(8, &["--", "sh", "-c", SERVE], "hello\n")
    });
    let nginx = passt().or_else(|| oci::lacks("nginx"));
    suite.test_if(nginx, "nginx_loses_no_request_of_a_thousand", || {
        no_request_is_lost(50, &["nginx"], "nginx of the test images\n")
    });
    let perl = passt().or_else(|| machine::lacks("perl", "perl-base"));
    suite.test_if(perl, "a_published_udp_port_answers", udp);
    suite.test_if(passt(), "a_published_port_answers_after_a_restart", restart);
    let mounts = both().or_else(machine::lacks_mounts);
    suite.test_if(mounts, "names_are_asked_of_the_hosts_resolver", dns);
    suite.test_if(passt(), "passt_killed_takes_the_link_down", passt_killed);
    suite.test_if(passt(), "passt_ends_with_its_monitor", passt_ends);
    suite.test_if(
        passt(),
        "passt_starts_with_the_guests_first_packet",
        passt_sleeps,
    );
    suite.test_if(tap(), "a_tap_device_works_both_ways", tap_works);
    let vhost = tap().or_else(|| machine::lacks_file("/dev/vhost-net".as_ref()));
    suite.test_if(vhost, "a_tap_device_works_by_vhost_net", vhost_works);
    suite.test_if(
        tap(),
        "a_tap_device_that_goes_takes_the_link_down",
        tap_gone,
    );
    suite.test_if(tap(), "a_guest_on_a_bridge_asks_by_dhcp", bridge);
    suite.test_if(tap(), "a_tap_device_in_a_namespace", namespace);
    let plain = passt().or_else(|| machine::lacks(image::EROFS.0, image::EROFS.1));
    suite.test_if(plain.clone(), "a_plain_boot_asks_by_dhcp", plain_dhcp);
    suite.test_if(plain, "a_plain_boot_with_an_address", plain_static);
}

/// Answers `hello` to whoever asks by HTTP.
pub(super) const SERVE: &str =
    "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";

/// Runs `ip` with these words.
pub(super) fn ip(words: &str) -> Result<()> {
    let path = machine::program("ip").context("no ip")?;
    let output = Command::new(path).args(words.split_whitespace()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "ip {words}: {said}");
    Ok(())
}

/// An interface, which goes with this.
struct Link(&'static str);

impl Link {
    fn add(name: &'static str, kind: &str) -> Result<Self> {
        ip(&format!("link add {name} type {kind}"))?;
        let link = Self(name);
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may have gone.
        let _ = ip(&format!("link del {}", self.0));
    }
}

/// Tries until it works.
pub(super) fn until<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// What a server answers by HTTP, without its head.
pub(super) fn get(server: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(body.to_owned())
}

/// Where a port of the guest's is reached on the loopback device.
pub(super) fn local(vm: &Vm<'_>, guest_port: u16) -> Result<SocketAddr> {
    let inspected = vm.inspect()?;
    let ports = inspected["network"]["ports"]
        .as_array()
        .context("no ports")?;
    let port = ports.iter().find(|port| port["guest_port"] == guest_port);
    let port = port.and_then(|port| port["host_port"].as_u64());
    let port = port.with_context(|| format!("port {guest_port} is not published: {inspected}"))?;
    Ok((Ipv4Addr::LOCALHOST, u16::try_from(port)?).into())
}

fn has_addresses() -> Result<()> {
    // It brings the link-local address without which passt has no IPv6.
    let _link = Link::add("cst-v6", "dummy")?;
    let place = Place::new()?;
    let script =
        "ip addr show eth0; ip route; ip -6 route; cat /etc/hosts /etc/resolv.conf; hostname";
    let options = ["--net", "user", "--hostname", "yard", "--dns", "192.0.2.53"];
    let finished = vm(&place, &options, script).finish()?.expect(0)?;
    finished.says(&[
        "inet 10.0.2.15/24",
        "inet6 fdca:517a:2ca5::15/64",
        "mtu 65520",
        "default via 10.0.2.2 dev eth0",
        "default via fdca:517a:2ca5::2 dev eth0",
        "10.0.2.15\tyard\n",
        "nameserver 192.0.2.53\n",
        "yard\n",
    ])?;
    let options = [
        "--ip",
        "192.168.9.7/16",
        "--ip",
        "fd00:9::7",
        "--mtu",
        "1400",
    ];
    let finished = vm(&place, &options, script).finish()?.expect(0)?;
    finished.says(&[
        "inet 192.168.9.7/16",
        "inet6 fd00:9::7/64",
        "mtu 1400",
        "default via 192.168.0.2 dev eth0",
        "default via fd00:9::2 dev eth0",
    ])?;
    Ok(())
}

fn static_address() -> Result<()> {
    let place = Place::new()?;
    // A namespace in which there is nothing but a loopback device.
    let alone = [
        "unshare",
        "--net",
        "sh",
        "-c",
        "ip link set lo up; exec \"$@\"",
        "sh",
    ];
    let script = "ip addr show eth0; ip -6 route";
    let program = vm(&place, &["--net", "user"], script).under(&alone);
    let finished = program.finish()?.expect(0)?.says(&["inet 10.0.2.15/24"])?;
    ensure!(!finished.text().contains("fdca:"), "{finished}");
    let program = vm(&place, &["--ip", "fd00:9::7"], script).under(&alone);
    let finished = program.finish()?.expect(125)?;
    ensure!(finished.complaint().contains("IPv6"), "{finished}");
    Ok(())
}

fn none() -> Result<()> {
    let finished = sh(&["--net", "none"], "ls /sys/class/net; cat /etc/hosts")?;
    ensure!(!finished.text().contains("eth0"), "{finished}");
    finished.says(&["lo", "127.0.1.1\t"])?;
    Ok(())
}

fn published() -> Result<()> {
    let place = Place::new()?;
    let options = ["--name", "web", "-p", "127.0.0.1::80", "--memory", "128M"];
    let vm = Vm::start(&place, &options, SERVE)?;
    let server = local(&vm, 80)?;
    ensure!(until(|| get(server))? == "hello\n");
    let ask = |words: &[&str]| {
        Ok::<_, anyhow::Error>(
            place
                .casita(words.iter().copied())
                .finish()?
                .expect(0)?
                .text(),
        )
    };
    let port = server.port();
    ensure!(ask(&["port", "web"])? == format!("80/tcp -> 127.0.0.1:{port}\n"));
    ensure!(ask(&["port", "web", "80"])? == format!("127.0.0.1:{port}\n"));
    ensure!(ask(&["ps"])?.contains(&format!("127.0.0.1:{port}->80/tcp")));
    let finished = place.casita(["port", "web", "81"]).finish()?.expect(125)?;
    ensure!(finished.complaint().contains("81/tcp"), "{finished}");
    let network = &vm.inspect()?["network"];
    ensure!(
        network["mode"] == "user"
            && network["link"]["up"] == true
            && network["addresses"][0] == "10.0.2.15/24"
            && network["gateways"][0] == "10.0.2.2"
            && network["mtu"] == 65520
            && network["mac"].is_string(),
        "{network}"
    );
    let stats = ask(&["stats", "--format", "json", "web"])?;
    let stats: Value = serde_json::from_str(&stats)?;
    let net = &stats[0]["net"][0];
    let counted = |name: &str| net[name].as_u64().unwrap_or_default();
    ensure!(
        counted("rx_bytes") > 0 && counted("tx_bytes") > 0,
        "{stats}"
    );
    stays_alone(&vm, "10.0.2.2")
}

/// The host's own services are not the guest's to reach, whatever root does there with routes.
fn stays_alone(vm: &Vm<'_>, gateway: &str) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    // Without its own loopback the guest sends packets for that out.
    let routes = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local 2>/dev/null
ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0 src 10.0.2.15; true";
    vm.asks(routes)?;
    for address in [gateway, "127.0.0.1", "0.0.0.0"] {
        let script = format!("nc -w 2 {address} {port} < /dev/null 2>&1");
        let finished = vm.exec(&[], &["sh", "-c", &script]).finish()?;
        ensure!(!finished.status.success(), "{address}\n{finished}");
    }
    listener.set_nonblocking(true)?;
    ensure!(listener.accept().is_err(), "somebody came");
    Ok(())
}

fn no_request_is_lost(clients: usize, words: &[&str], body: &str) -> Result<()> {
    const REQUESTS: usize = 1000;
    let place = Place::new()?;
    if words.first() != Some(&"--") {
        oci::share(&place)?;
    }
    let vm = Vm::run(
        &place,
        &[&["--memory", "256M", "-p", "127.0.0.1::80"], words].concat(),
    )?;
    let server = local(&vm, 80)?;
    until(|| get(server))?;
    let lost = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                let one = || match get(server) {
                    Ok(text) if text == body => None,
                    Ok(text) => Some(format!("{text:?}")),
                    Err(error) => Some(format!("{error:#}")),
                };
                scope.spawn(move || {
                    (0..REQUESTS / clients)
                        .filter_map(|_| one())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let lost = clients.into_iter().map(thread::ScopedJoinHandle::join);
        lost.flat_map(Result::unwrap_or_default).collect::<Vec<_>>()
    });
    ensure!(
        lost.is_empty(),
        "{} of {} are lost: {:?}",
        lost.len(),
        REQUESTS,
        lost.first()
    );
    Ok(())
}

fn udp() -> Result<()> {
    let place = Place::new()?;
    // The host's perl, as the built-in image has nothing that listens to UDP.
    let echo = "$s = IO::Socket::INET->new(LocalPort => 5353, Proto => 'udp') or die; \
                while (1) { $s->recv($m, 99); $s->send('echo ' . $m) }";
    let script = format!(
        "exec chroot /host /usr/bin/perl -MIO::Socket::INET -e \"{}\"",
        echo.replace('$', "\\$")
    );
    let options = ["-p", "127.0.0.1::5353/udp", "-v", "/:/host:ro"];
    let vm = Vm::start(&place, &options, &script)?;
    let server = local(&vm, 5353)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let answer = until(|| {
        socket.send_to(b"who", server)?;
        let mut bytes = [0; 99];
        let len = socket.recv(&mut bytes)?;
        Ok(bytes[..len].to_vec())
    })?;
    ensure!(answer == b"echo who", "{answer:?}");
    let program = vm.casita("port", &[]).finish()?.expect(0)?;
    program.says(&["5353/udp -> 127.0.0.1:"])?;
    stays_alone(&vm, "10.0.2.2")
}

fn restart() -> Result<()> {
    let place = Place::new()?;
    let options = ["-p", "127.0.0.1::80", "--memory", "128M"];
    let script = SERVE.replace("mkdir", "mkdir -p");
    let vm = Vm::start(&place, &options, &script)?;
    let before = vm.inspect()?["network"].clone();
    let server = local(&vm, 80)?;
    until(|| get(server))?;
    vm.casita("restart", &["-t", "1"]).finish()?.expect(0)?;
    let after = vm.inspect()?["network"].clone();
    ensure!(before == after, "{before} became {after}");
    ensure!(until(|| get(server))? == "hello\n");
    // While it does not run, nobody has the port.
    vm.casita("stop", &["-t", "1"]).finish()?.expect(0)?;
    drop(TcpListener::bind(server)?);
    let finished = vm.casita("port", &[]).finish()?.expect(125)?;
    ensure!(finished.complaint().contains("not running"), "{finished}");
    Ok(())
}

/// Answers each question of DNS with the address 192.0.2.99.
fn resolve(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        let mut answer = question[..len].to_vec();
        // An answer, without a mistake, with as many answers as questions; AAAA has none.
        answer[2..4].copy_from_slice(&[0x85, 0x80]);
        let wants_v4 = answer.windows(4).any(|word| word == [0, 1, 0, 1]);
        answer[6..12].copy_from_slice(&[0, u8::from(wants_v4), 0, 0, 0, 0]);
        if wants_v4 {
            let name_and_type = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4];
            answer.extend_from_slice(&name_and_type);
            answer.extend_from_slice(&[192, 0, 2, 99]);
        }
        let _ = socket.send_to(&answer, from);
    }
}

fn dns() -> Result<()> {
    let _link = Link::add("cst-dns", "dummy")?;
    ip("addr add 192.0.2.53/24 dev cst-dns")?;
    let socket = UdpSocket::bind("192.0.2.53:53")?;
    thread::spawn(move || resolve(&socket));
    let place = Place::new()?;
    place.write(
        "resolv.conf",
        "nameserver 192.0.2.53\nsearch yard.example\n",
    )?;
    let bind = "mount --bind resolv.conf /etc/resolv.conf && exec \"$@\"";
    let under = [machine::own_mounts(), &["sh", "-c", bind, "sh"]].concat();
    let script = "cat /etc/resolv.conf; nslookup some.name";
    let program = vm(&place, &["--net", "user"], script).under(&under);
    let finished = program.finish()?.expect(0)?;
    finished.says(&["nameserver 192.0.2.53\nsearch yard.example\n", "192.0.2.99"])?;
    Ok(())
}

/// The processes that `parent` has started, with their names.
fn children(parent: i32) -> Result<Vec<(Pid, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // pid (name) state parent
        let parts = stat.split_once(" (").zip(stat.rsplit_once(") "));
        let Some(((pid, name), (_, rest))) = parts else {
            continue;
        };
        if rest.split(' ').nth(1) == Some(&parent.to_string()) {
            let pid = Pid::from_raw(pid.parse()?).context("no pid")?;
            let name = name.split(')').next().unwrap_or_default().to_owned();
            found.push((pid, name));
        }
    }
    Ok(found)
}

/// The passt of a VM, which its monitor has started or its keeper.
fn passt_of(vm: &Vm<'_>) -> Result<Option<Pid>> {
    let mut all = children(vm.pid()?)?;
    for (pid, name) in all.clone() {
        if name == "casita-keeper" {
            all.extend(children(pid.as_raw_nonzero().get())?);
        }
    }
    let passt = all.into_iter().find(|(_, name)| name.starts_with("passt"));
    Ok(passt.map(|(pid, _)| pid))
}

/// Once the guest has asked for its gateway, and has been answered.
fn passt_answers(vm: &Vm<'_>) -> Result<Pid> {
    until(|| {
        let known = vm.asks("ping -c 1 -W 1 10.0.2.2 >/dev/null; ip neigh")?;
        ensure!(known.contains("lladdr 02:ca:51:7a:00:02"), "{known}");
        passt_of(vm)?.context("who has answered is not there")
    })
}

fn is_gone(pid: Pid) -> Result<()> {
    until(|| {
        let there = fs::exists(format!("/proc/{}", pid.as_raw_nonzero()))?;
        ensure!(!there, "passt still runs");
        Ok(())
    })
}

fn link_is_down(vm: &Vm<'_>, why: &str) -> Result<()> {
    until(|| {
        let link = &vm.inspect()?["network"]["link"];
        ensure!(link["up"] == false && link["closed"].is_string(), "{link}");
        Ok(())
    })?;
    until(|| {
        let carrier = vm.asks("cat /sys/class/net/eth0/carrier")?;
        ensure!(carrier == "0\n", "{carrier}");
        Ok(())
    })?;
    let dir = vm.inspect()?["dir"].as_str().context("no dir")?.to_owned();
    let log = fs::read_to_string(format!("{dir}/monitor.log"))?;
    ensure!(log.contains(why) && log.contains("link is down"), "{log}");
    Ok(())
}

fn passt_killed() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &["--net", "user"], "sleep 1000")?;
    ensure!(vm.asks("cat /sys/class/net/eth0/carrier")? == "1\n");
    let passt = passt_of(&vm)?.context("it has no passt from its start on")?;
    kill_process(passt, Signal::KILL)?;
    link_is_down(&vm, "passt has ended")?;
    ensure!(vm.state()? == "running");
    // The next start has another one.
    vm.casita("restart", &["-t", "0"]).finish()?.expect(0)?;
    ensure!(vm.inspect()?["network"]["link"]["up"] == true);
    Ok(())
}

fn passt_ends() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &["--net", "user"], "sleep 1000")?;
    let passt = passt_of(&vm)?.context("no passt")?;
    kill_process(Pid::from_raw(vm.pid()?).context("no pid")?, Signal::KILL)?;
    is_gone(passt)?;
    vm.ends_with(137)?;
    vm.casita("start", &[]).finish()?.expect(0)?;
    let passt = passt_of(&vm)?.context("no passt")?;
    vm.casita("stop", &["-t", "0"]).finish()?.expect(0)?;
    is_gone(passt)
}

/// One that nobody counts on is started by its guest, and shares its fate.
fn passt_sleeps() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &[], "sleep 1000")?;
    ensure!(vm.asks("cat /sys/class/net/eth0/carrier")? == "1\n");
    ensure!(passt_of(&vm)?.is_none(), "nobody has needed it");
    kill_process(passt_answers(&vm)?, Signal::KILL)?;
    link_is_down(&vm, "passt has ended")?;
    vm.casita("restart", &["-t", "0"]).finish()?.expect(0)?;
    ensure!(vm.inspect()?["network"]["link"]["up"] == true);
    ensure!(passt_of(&vm)?.is_none(), "nobody has needed it again");
    let passt = passt_answers(&vm)?;
    vm.casita("stop", &["-t", "0"]).finish()?.expect(0)?;
    is_gone(passt)?;
    vm.casita("start", &[]).finish()?.expect(0)?;
    let passt = passt_answers(&vm)?;
    kill_process(Pid::from_raw(vm.pid()?).context("no pid")?, Signal::KILL)?;
    is_gone(passt)
}

/// With a rate, which the kernel would not keep to, the monitor moves the frames itself.
fn tap_works() -> Result<()> {
    works_both_ways(&["--net-rate", "10G"], false)
}

fn vhost_works() -> Result<()> {
    works_both_ways(&[], true)
}

fn works_both_ways(rate: &[&str], vhost: bool) -> Result<()> {
    let place = Place::new()?;
    let ip_option = "10.99.1.2/24,gw=10.99.1.1";
    let mut options = vec!["--net", "tap:cst0", "--ip", ip_option, "--memory", "128M"];
    options.extend(rate);
    let vm = Vm::start(&place, &options, SERVE)?;
    ip("addr add 10.99.1.1/24 dev cst0")?;
    let server = SocketAddr::new(IpAddr::from([10, 99, 1, 2]), 80);
    ensure!(until(|| get(server))? == "hello\n");
    let listener = TcpListener::bind("10.99.1.1:0")?;
    let url = format!("http://{}/", listener.local_addr()?);
    let answer = thread::spawn(move || -> Result<()> {
        let (mut stream, from) = listener.accept()?;
        ensure!(from.ip() == IpAddr::from([10, 99, 1, 2]), "{from}");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request)?;
        Ok(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host\n")?)
    });
    let text = vm.asks(&format!("wget -q -O - {url}"))?;
    ensure!(text == "from the host\n", "{text:?}");
    answer.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    // Somebody else who wants it hears why not.
    let other = ["run", "--rm", "--net", "tap:cst0", "--", "true"];
    let finished = place.casita(other).finish()?.expect(125)?;
    ensure!(
        finished.complaint().contains("another program has it"),
        "{finished}"
    );
    let network = &vm.inspect()?["network"];
    ensure!(
        network["interface"] == "cst0" && network["mode"] == "tap",
        "{network}"
    );
    ensure!(network["vhost"] == vhost, "{network}");
    // What is too much for the rings arrives whole.
    let zeros = format!("head -c {BULK} /dev/zero");
    let sum = vm.asks(&format!("{zeros} | md5sum"))?;
    for take in [false, true] {
        let listener = TcpListener::bind("10.99.1.1:0")?;
        let port = listener.local_addr()?.port();
        let other = thread::spawn(move || bulk(&listener, take));
        let script = if take {
            format!("{zeros} | nc 10.99.1.1 {port}")
        } else {
            format!("nc 10.99.1.1 {port} </dev/null | md5sum")
        };
        let text = vm.asks(&script)?;
        let got = other.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(
            if take { got == BULK } else { text == sum },
            "taken from the guest: {take}; {got} bytes, {text:?}"
        );
    }
    let stats = vm
        .casita("stats", &["--format", "json"])
        .finish()?
        .expect(0)?;
    let stats: Value = serde_json::from_slice(&stats.stdout)?;
    let net = &stats[0]["net"][0];
    ensure!(
        net["rx_bytes"].as_u64() > Some(0) && net["tx_bytes"].as_u64() > Some(0),
        "{stats}"
    );
    vm.casita("stop", &["-t", "0"]).finish()?.expect(0)?;
    // One that was made for a VM goes with it.
    until(|| {
        ensure!(!fs::exists("/sys/class/net/cst0")?, "cst0 is still there");
        Ok(())
    })
}

/// More than the rings have room for.
const BULK: usize = 8_000_000;

/// Takes a connection, and all that comes by it, or sends [`BULK`] bytes; returns how many bytes that were.
fn bulk(listener: &TcpListener, take: bool) -> Result<usize> {
    let (mut stream, _) = listener.accept()?;
    if take {
        let mut zeros = Vec::new();
        stream.read_to_end(&mut zeros)?;
        ensure!(zeros.iter().all(|&byte| byte == 0), "not what was sent");
        return Ok(zeros.len());
    }
    stream.write_all(&vec![0; BULK])?;
    Ok(BULK)
}

fn tap_gone() -> Result<()> {
    let place = Place::new()?;
    ip("tuntap add cst1 mode tap")?;
    let _link = Link("cst1");
    let options = ["--net", "tap:cst1", "--ip", "10.99.2.2"];
    let vm = Vm::start(&place, &options, "sleep 1000")?;
    ensure!(vm.asks("cat /sys/class/net/eth0/carrier")? == "1\n");
    ip("link del cst1")?;
    link_is_down(&vm, "net")?;
    ensure!(vm.state()? == "running");
    Ok(())
}

fn bridge() -> Result<()> {
    let place = Place::new()?;
    let _link = Link::add("cst-br", "bridge")?;
    ip("addr add 10.99.3.1/24 dev cst-br")?;
    let config = "start 10.99.3.50\nend 10.99.3.50\ninterface cst-br\noption subnet 255.255.255.0\n\
                  option router 10.99.3.1\noption dns 10.99.3.53\noption lease 40\n\
                  lease_file /dev/null\npidfile /dev/null\n";
    let config = place.write("udhcpd.conf", config)?;
    let busybox = machine::program("busybox").context("no busybox")?;
    let mut server = Command::new(busybox)
        .args(["udhcpd", "-f", &config])
        .spawn()?;
    let result = (|| {
        let vm = Vm::start(
            &place,
            &["--net", "bridge:cst-br", "--memory", "128M"],
            SERVE,
        )?;
        let address = SocketAddr::new(IpAddr::from([10, 99, 3, 50]), 80);
        ensure!(until(|| get(address))? == "hello\n");
        let text = vm.asks("ip route; cat /etc/resolv.conf")?;
        ensure!(text.contains("default via 10.99.3.1 dev eth0"), "{text}");
        ensure!(text.contains("nameserver 10.99.3.53\n"), "{text}");
        let network = &vm.inspect()?["network"];
        ensure!(network["bridge"] == "cst-br", "{network}");
        Ok(())
    })();
    server.kill()?;
    server.wait()?;
    result
}

fn namespace() -> Result<()> {
    ip("netns add cst-ns")?;
    let result = (|| {
        let place = Place::new()?;
        let options = [
            "--net",
            "tap:cst3,netns=cst-ns,queues=2,mtu=1400",
            "--ip",
            "10.99.4.2",
            "-c",
            "2",
        ];
        let vm = Vm::start(&place, &options, SERVE)?;
        ensure!(
            !fs::exists("/sys/class/net/cst3")?,
            "it is in the wrong namespace"
        );
        ip("-n cst-ns addr add 10.99.4.1/24 dev cst3")?;
        until(|| ip("netns exec cst-ns busybox wget -q -O /dev/null http://10.99.4.2/"))?;
        let mtu = vm.asks("cat /sys/class/net/eth0/mtu")?;
        ensure!(mtu == "1400\n", "{mtu}");
        let network = &vm.inspect()?["network"];
        ensure!(
            network["netns"] == "cst-ns" && network["mtu"] == 1400,
            "{network}"
        );
        Ok(())
    })();
    ip("netns del cst-ns")?;
    result
}

/// A plain boot of an image whose init is `script`.
fn plain(script: &str, options: &[&str]) -> Result<casita_tests::run::Finished> {
    let place = Place::new()?;
    image::tree(&place.path("tree"), script)?;
    image::erofs(&place.path("tree"), &place.path("image"))?;
    let words = [
        "run",
        "--boot",
        "plain",
        "--rootfs",
        "image",
        "--cmdline",
        "quiet",
    ];
    let finished = place.casita([&words[..], options].concat()).finish()?;
    finished.expect(0)
}

fn plain_dhcp() -> Result<()> {
    let script = "mount -t proc proc /proc; busybox ip link set eth0 up
busybox udhcpc -i eth0 -n -q -f -s /bin/true 2>&1; poweroff -f";
    plain(script, &["--net", "user"])?.says(&["lease of 10.0.2.15 obtained from 10.0.2.2"])?;
    Ok(())
}

fn plain_static() -> Result<()> {
    let script =
        "mount -t proc proc /proc; busybox ip addr show eth0; busybox ip route; poweroff -f";
    let options = ["--net", "user", "--ip", "10.77.0.9/16"];
    plain(script, &options)?.says(&["inet 10.77.0.9/16", "default via 10.77.0.2 dev eth0"])?;
    Ok(())
}
