//! Networks of VMs, and what may be reached from one.

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;

use super::{check_refusal, each, place, refused};

#[allow(clippy::too_many_lines, reason = "a table")]
pub fn tests(suite: &mut Suite) {
    let cases: &[(&str, (&str, &str))] = &[
        ("egress_of_nothing", ("", "empty item")),
        ("egress_with_an_empty_item", ("10.0.0.0/8,,x", "empty item")),
        (
            "egress_of_all_among_others",
            ("10.0.0.0/8,all", "\"all\" stands alone"),
        ),
        (
            "egress_to_a_port_that_is_none",
            ("example.org:http", "\"http\" is not a port"),
        ),
        ("egress_to_port_0", ("1.1.1.1:0", "\"0\" is not a port")),
        (
            "egress_to_a_range_that_is_none",
            ("10.0.0.0/40", "not a range"),
        ),
        (
            "egress_to_a_range_with_host_bits",
            ("10.1.2.3/8", "10.0.0.0/8 is meant"),
        ),
        ("egress_to_half_an_address", ("10.0.0", "four numbers")),
        ("egress_to_a_wildcard", ("*.example.org", "name each host")),
        ("egress_to_a_url", ("https://example.org/", "leave out")),
        ("egress_with_an_open_bracket", ("[::1:80", "bracket")),
    ];
    each(suite, cases, |place, (egress, says)| {
        let option = format!("--egress={egress}");
        usage(
            &place.casita(["run", &option, "--", "true"]).finish()?,
            says,
        )
    });
    let cases: &[(&str, (&str, &str))] = &[
        ("network_of_an_impossible_name", ("a b", "\"a b\"")),
        ("network_of_a_path", ("../x", "\"../x\"")),
        ("network_of_an_empty_name", ("", "\"\"")),
    ];
    each(suite, cases, |place, (name, says)| {
        let finished = place.casita(["network", "create", name]).finish()?;
        check_refusal(&finished, &["network's name", says])
    });
    let cases: &[(&str, (&str, &str))] = &[
        (
            "network_of_one_address",
            ("--subnet=10.0.0.1/32", "8 to 29"),
        ),
        (
            "network_of_all_addresses",
            ("--subnet=0.0.0.0/0", "8 to 29"),
        ),
        (
            "network_of_groups",
            ("--subnet=224.0.0.0/8", "not addresses of stations"),
        ),
        (
            "network_on_the_loopback",
            ("--subnet=127.0.0.0/8", "not addresses of stations"),
        ),
        (
            "network_of_the_wrong_protocol",
            ("--subnet=fd00::/64", "not a range of IPv4"),
        ),
        (
            "network_of_ipv6_that_is_too_small",
            ("--ipv6=fd00::/120", "48 to 64"),
        ),
        (
            "network_of_ipv6_of_ipv4",
            ("--ipv6=10.0.0.0/24", "not a range of IPv6"),
        ),
    ];
    each(suite, cases, |place, (option, says)| {
        let finished = place.casita(["network", "create", option, "n"]).finish()?;
        check_refusal(&finished, &[says])?;
        no_networks(place)
    });
    suite.test("network_of_what_is_no_range", || {
        let place = place()?;
        let finished = place
            .casita(["network", "create", "--subnet=x", "n"])
            .finish()?;
        usage(&finished, "not a range")?;
        no_networks(&place)
    });
    suite.test("a_network_that_exists_already", || {
        let place = place()?;
        let create = ["network", "create", "n"];
        place.casita(create).finish()?.expect(0)?.says(&["n\n"])?;
        check_refusal(&place.casita(create).finish()?, &["n", "exists already"])
    });
    suite.test("a_network_that_does_not_exist", || {
        let place = place()?;
        for command in ["rm", "inspect"] {
            let finished = place.casita(["network", command, "none"]).finish()?;
            check_refusal(&finished, &["no network none"])?;
        }
        place
            .casita(["network", "rm", "-f", "none"])
            .finish()?
            .expect(0)?;
        Ok(())
    });
    suite.test("networks_are_listed_inspected_and_removed", verbs);
    suite.test("a_vm_on_a_network_that_does_not_exist", || {
        refused(&place()?, &["--network=none"], &["no network none"])
    });
    let cases: &[(&str, (&[&str], &str))] = &[
        (
            "a_network_without_a_device",
            (&["--network=n", "--net=none"], "--network"),
        ),
        (
            "a_network_beside_a_tap",
            (&["--network=n", "--net=tap"], "--network"),
        ),
        (
            "an_alias_without_a_network",
            (&["--network-alias=x"], "--network"),
        ),
        (
            "an_alias_that_is_no_name",
            (&["--network=n", "--network-alias=a b"], "\"a b\""),
        ),
        (
            "a_policy_without_a_device",
            (&["--egress=none", "--net=none"], "--egress"),
        ),
        (
            "a_policy_with_a_name_that_is_no_guests_to_reach",
            (&["--egress=localhost:80"], "localhost"),
        ),
    ];
    each(suite, cases, |place, (options, says)| {
        place
            .casita(["network", "create", "n"])
            .finish()?
            .expect(0)?;
        refused(place, options, &[says])
    });
}

/// Refused by the parser of the command line.
fn usage(finished: &casita_tests::run::Finished, says: &str) -> Result<()> {
    let complaint = finished.complaint();
    ensure!(finished.status.code() == Some(125), "{finished}");
    ensure!(finished.stdout.is_empty(), "{finished}");
    ensure!(
        complaint.contains(says),
        "{says:?} was expected\n{finished}"
    );
    Ok(())
}

fn no_networks(place: &Place) -> Result<()> {
    let listed = place.casita(["network", "ls", "-q"]).finish()?.expect(0)?;
    ensure!(listed.text().is_empty(), "{listed}");
    Ok(())
}

fn verbs() -> Result<()> {
    let place = place()?;
    let create = [
        "network",
        "create",
        "--subnet=10.71.0.0/16",
        "--ipv6=fd71::/64",
        "n",
    ];
    place.casita(create).finish()?.expect(0)?;
    place
        .casita(["network", "create", "m"])
        .finish()?
        .expect(0)?;
    let listed = place.casita(["network", "ls"]).finish()?.expect(0)?;
    listed.says(&["NAME", "10.71.0.0/16", "fd71::/64"])?;
    let inspected = place
        .casita(["network", "inspect", "n", "--format=json"])
        .finish()?;
    inspected
        .expect(0)?
        .says(&["\"gateway\": \"10.71.0.1\"", "\"gateway6\": \"fd71::1\""])?;
    place
        .casita(["network", "rm", "n"])
        .finish()?
        .expect(0)?
        .says(&["n\n"])?;
    place
        .casita(["network", "prune", "-f"])
        .finish()?
        .expect(0)?
        .says(&["m\n"])?;
    no_networks(&place)
}
