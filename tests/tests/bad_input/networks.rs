//! Networks that can't be had.

use std::net::{TcpListener, UdpSocket};

use anyhow::Result;
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;

use super::{each, place, refused};

/// Options, and what is said of them.
type Case = (&'static [&'static str], &'static [&'static str]);

const CASES: &[(&str, Case)] = &[
    (
        "a_network_of_no_kind",
        (&["--net", "wifi"], &["wifi", "user, tap"]),
    ),
    (
        "a_mac_address_of_a_group",
        (&["--mac", "01:00:5e:00:00:01"], &["group"]),
    ),
    (
        "a_mac_address_of_zeroes",
        (&["--mac", "00:00:00:00:00:00"], &["zeroes"]),
    ),
    (
        "a_mac_address_that_is_none",
        (&["--mac", "52:54:00:12:34"], &["six bytes"]),
    ),
    (
        "an_mtu_that_is_too_small",
        (&["--mtu", "67"], &["67", "68 to 65520"]),
    ),
    (
        "an_mtu_that_is_too_large",
        (&["--mtu", "65521"], &["65521", "68 to 65520"]),
    ),
    (
        "an_mtu_that_is_no_number",
        (&["--mtu", "big"], &["big", "68 to 65520"]),
    ),
    ("an_address_of_nobody", (&["--ip", "0.0.0.0"], &["0.0.0.0"])),
    (
        "a_prefix_that_is_too_long",
        (&["--ip", "10.0.0.1/33"], &["33", "1 to 32"]),
    ),
    (
        "a_network_without_room",
        (&["--ip", "10.0.0.1/31"], &["--ip 10.0.0.1/31"]),
    ),
    (
        "a_name_server_that_is_none",
        (&["--dns", "ns"], &["ns", "--dns"]),
    ),
    ("a_port_that_is_none", (&["-p", "0:80"], &["port"])),
    (
        "ports_that_do_not_pair",
        (&["-p", "8000-8002:80-81"], &["3 ports", "2 ports"]),
    ),
    (
        "ports_of_no_protocol",
        (&["-p", "80/sctp"], &["sctp", "tcp or udp"]),
    ),
    (
        "a_port_without_a_network",
        (&["--net", "none", "-p", "80"], &["--net none", "--publish"]),
    ),
    (
        "a_port_with_a_tap_device",
        (&["--net", "tap", "-p", "80"], &["--net user", "--publish"]),
    ),
    ("a_rate_of_nothing", (&["--net-rate", "0"], &["--net-rate"])),
];

pub fn tests(suite: &mut Suite) {
    each(suite, CASES, |place, (options, parts)| {
        refused(place, options, parts)
    });
    let passt = || machine::lacks("passt", "passt");
    suite.test_if(passt(), "a_port_in_use", in_use);
    suite.test_if(passt(), "a_port_that_is_published_twice", twice);
    let user = || passt().or_else(machine::lacks_permissions);
    suite.test_if(user(), "a_port_without_a_right", low_port);
    suite.test("without_passt_a_port_is_refused", missing);
    let tap = || {
        let user = (!machine::is_root()).then(|| "needs root, for tap devices".to_owned());
        user.or_else(|| machine::lacks_file("/dev/net/tun".as_ref()))
    };
    suite.test_if(tap(), "a_bridge_that_is_missing", || {
        let parts = ["no bridge cst-none", "ip link add cst-none type bridge"];
        refused(&place()?, &["--net", "bridge:cst-none"], &parts)
    });
    suite.test_if(tap(), "a_bridge_that_is_none", || {
        refused(&place()?, &["--net", "bridge:lo"], &["lo is not a bridge"])
    });
    suite.test_if(tap(), "a_tap_device_that_is_none", || {
        refused(&place()?, &["--net", "tap:lo"], &["lo", "no tap device"])
    });
    suite.test_if(tap(), "a_namespace_that_is_missing", || {
        refused(
            &place()?,
            &["--net", "tap,netns=cst-none"],
            &["/run/netns/cst-none", "ip netns"],
        )
    });
}

fn in_use() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let spec = format!("127.0.0.1:{port}:80");
    refused(
        &place()?,
        &["-p", &spec],
        &[&format!("{port}/tcp"), "in use"],
    )?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let port = socket.local_addr()?.port();
    let spec = format!("127.0.0.1:{port}:80/udp");
    refused(
        &place()?,
        &["-p", &spec],
        &[&format!("{port}/udp"), "in use"],
    )
}

fn twice() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    drop(listener);
    let (one, two) = (
        format!("127.0.0.1:{port}:80"),
        format!("127.0.0.2:{port}:81"),
    );
    refused(
        &place()?,
        &["-p", &one, "-p", &two],
        &[&port.to_string(), "twice"],
    )
}

/// In a network namespace of its own, whose owner's right a user does not have.
fn low_port() -> Result<()> {
    let place = place()?;
    let words = [
        "run",
        "--skip-kvm-check",
        "--kernel",
        "kernel",
        "--boot",
        "plain",
    ];
    let words = [&words[..], &["--initrd", "initrd", "-p", "127.0.0.1:81:80"]].concat();
    let setting = "echo 1024 > /proc/sys/net/ipv4/ip_unprivileged_port_start; exec \"$@\"";
    let bound = [
        "setpriv",
        "--inh-caps=-all",
        "--bounding-set=-net_bind_service",
        "--",
    ];
    let lo = format!("ip link set lo up; {setting}");
    let under = [&["unshare", "--net", "sh", "-c", &lo, "sh"], &bound[..]].concat();
    let finished = place.casita(words).under(&under).finish()?;
    super::check_refusal(
        &finished,
        &["81/tcp", "takes a right", "ip_unprivileged_port_start=81"],
    )
}

/// With the programs of a folder in which passt is not.
fn missing() -> Result<()> {
    let place: Place = place()?;
    std::fs::create_dir(place.path("bin"))?;
    let words = [
        "run",
        "--skip-kvm-check",
        "--kernel",
        "kernel",
        "--boot",
        "plain",
    ];
    let words = [&words[..], &["--initrd", "initrd"]].concat();
    for options in [&["-p", "80"][..], &["--net", "user"], &["--mtu", "1400"]] {
        let program = place.casita([&words[..], options].concat());
        let finished = program.env("PATH", place.path("bin")).finish()?;
        super::check_refusal(&finished, &["passt", "apt install passt"])?;
    }
    // Of which nothing was said is done without, and it is told.
    let finished = place
        .casita(words)
        .env("PATH", place.path("bin"))
        .finish()?
        .expect(0)?;
    anyhow::ensure!(finished.complaint().contains("no network"), "{finished}");
    Ok(())
}
