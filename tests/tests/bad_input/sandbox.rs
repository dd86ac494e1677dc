//! What no sandbox can run: the caller's faults.

use anyhow::Result;
use casita_tests::place::Place;
use casita_tests::suite::Suite;

use super::{check_refusal, each};

/// A test's name, options, and what is said about them.
type Case = (&'static str, (&'static [&'static str], &'static str));

const LIMITS: &[Case] = &[
    ("sandbox_time_zero", (&["--time=0"], "limit of time")),
    ("sandbox_time_negative", (&["--time=-1"], "-1")),
    ("sandbox_time_of_a_year", (&["--time=365d"], "7 days")),
    ("sandbox_time_words", (&["--time=soon"], "'soon'")),
    ("sandbox_cpu_time_zero", (&["--cpu-time=0"], "CPU time")),
    ("sandbox_memory_zero", (&["--memory=0"], "4M to 512G")),
    ("sandbox_memory_huge", (&["--memory=1000G"], "4M to 512G")),
    (
        "sandbox_memory_more_than_the_host",
        (&["--memory=500G"], "more than this host's"),
    ),
    ("sandbox_memory_words", (&["--memory=much"], "'much'")),
    ("sandbox_disk_tiny", (&["--disk=1M"], "16M to 64T")),
    ("sandbox_disk_odd", (&["--disk=16777217"], "steps of 4K")),
    ("sandbox_disk_path", (&["--disk=./disk"], "./disk")),
    ("sandbox_output_huge", (&["--output=2G"], "0 to 1G")),
    ("sandbox_output_negative", (&["--output=-5"], "-5")),
    ("sandbox_processes_zero", (&["--processes=0"], "1 to 32768")),
    (
        "sandbox_processes_many",
        (&["--processes=99999"], "1 to 32768"),
    ),
    ("sandbox_processes_words", (&["--processes=all"], "'all'")),
    ("sandbox_take_size_huge", (&["--take-size=9G"], "0 to 1G")),
    ("sandbox_cpus_zero", (&["--cpus=0"], "1 to 32")),
];

const OPTIONS: &[Case] = &[
    (
        "sandbox_put_missing",
        (&["--put=none:/a"], "none: No such file"),
    ),
    (
        "sandbox_put_device",
        (&["--put=/dev/zero:/a"], "neither a file nor"),
    ),
    ("sandbox_put_nowhere", (&["--put=root"], "HOST:GUEST")),
    ("sandbox_put_relative", (&["--put=root:a"], "absolute")),
    (
        "sandbox_put_at_the_root",
        (&["--put=root:/"], "put a file at"),
    ),
    ("sandbox_put_up", (&["--put=root:/a/../b"], "no '..'")),
    ("sandbox_take_relative", (&["--take=a:b"], "absolute")),
    ("sandbox_take_up", (&["--take=/a/../b:c"], "no '..'")),
    (
        "sandbox_take_to_nowhere",
        (&["--take=/a"], "--take /a:./out"),
    ),
    (
        "sandbox_stdin_missing",
        (&["--stdin=none"], "none: No such file"),
    ),
    ("sandbox_stdin_directory", (&["--stdin=home"], "home")),
    ("sandbox_env_file_missing", (&["--env-file=none"], "none")),
    ("sandbox_env_without_a_name", (&["--env==x"], "=x")),
    ("sandbox_workdir_relative", (&["--workdir=here"], "here")),
    (
        "sandbox_rootfs_missing",
        (&["--rootfs=none"], "none does not exist"),
    ),
    (
        "sandbox_kernel_missing",
        (&["--kernel=none"], "none could not be opened"),
    ),
    ("sandbox_format_unknown", (&["--format=xml"], "xml")),
    (
        "sandbox_request_and_options",
        (&["--request=r", "--time=1"], "cannot be used with"),
    ),
];

/// A test's name, a request, and what is said about it.
const REQUESTS: &[(&str, (&str, &str))] = &[
    ("sandbox_request_empty", ("", "not a JSON object")),
    ("sandbox_request_no_object", ("[]", "not a JSON object")),
    ("sandbox_request_half", ("{\"command\":", "EOF")),
    (
        "sandbox_request_unknown_field",
        ("{\"comand\":[]}", "comand"),
    ),
    (
        "sandbox_request_wrong_type",
        ("{\"command\":7}", "invalid type"),
    ),
    (
        "sandbox_request_negative",
        ("{\"limits\":{\"time_ms\":-1}}", "-1"),
    ),
    (
        "sandbox_request_float",
        ("{\"limits\":{\"memory_bytes\":1e99}}", "invalid type"),
    ),
    (
        "sandbox_request_image_unknown",
        ("{\"image\":\"debian\"}", "debian"),
    ),
    (
        "sandbox_request_two_contents",
        ("{\"stdin\":{\"text\":\"\",\"file\":\"x\"}}", "one of"),
    ),
    (
        "sandbox_request_bad_base64",
        ("{\"stdin\":{\"base64\":\"?\"}}", "base64"),
    ),
    (
        "sandbox_request_bad_mode",
        (
            "{\"put\":[{\"path\":\"/a\",\"text\":\"\",\"mode\":65535}]}",
            "mode",
        ),
    ),
    (
        "sandbox_request_nul",
        ("{\"command\":[\"a\\u0000\"]}", "NUL"),
    ),
];

pub fn tests(suite: &mut Suite) {
    for cases in [LIMITS, OPTIONS] {
        each(suite, cases, |place, (options, says)| {
            refused(place, options, &["--", "true"], &[says])
        });
    }
    each(suite, REQUESTS, |place, (request, says)| {
        place.write("request", request)?;
        refused(place, &["--request=request"], &[], &[says])
    });
    suite.test("sandbox_request_that_can_not_be_read", || {
        let place = super::place()?;
        refused(&place, &["--request=none"], &[], &["none: No such file"])?;
        refused(&place, &["--request=home"], &[], &["home: Is a directory"])
    });
    suite.test("sandbox_image_that_may_not_be_pulled", || {
        let place = super::place()?;
        refused(
            &place,
            &["--pull=never"],
            &["nosuch", "--", "true"],
            &["\"nosuch\""],
        )
    });
    suite.test("sandbox_image_and_rootfs", || {
        let place = super::place()?;
        refused(
            &place,
            &["--rootfs=root"],
            &["image", "true"],
            &["--rootfs"],
        )
    });
    suite.test("sandbox_guest_that_ends_at_once", || {
        let place = super::place()?;
        let says = "the guest could not be prepared";
        refused(&place, &["--kernel=kernel"], &["--", "true"], &[says])
    });
    suite.test("sandbox_vm_is_not_for_people", || {
        let place = super::place()?;
        let finished = place.casita(["sandbox-vm"]).finish()?;
        check_refusal(&finished, &["use casita sandbox"])
    });
}

fn refused(place: &Place, options: &[&str], command: &[&str], says: &[&str]) -> Result<()> {
    let before = place.listing()?;
    let kernel = ["--kernel=kernel", "--skip-kvm-check"];
    let own = options
        .iter()
        .any(|option| option.starts_with("--kernel") || option.starts_with("--request"));
    let defaults: &[&str] = if own { &["--skip-kvm-check"] } else { &kernel };
    let options = [&["sandbox"], defaults, options, command].concat();
    let finished = place.casita(options).finish()?;
    check_refusal(&finished, says)?;
    let after = place.listing()?;
    anyhow::ensure!(before == after, "{after:?} was left\n{finished}");
    Ok(())
}
