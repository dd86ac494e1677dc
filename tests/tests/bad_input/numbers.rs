//! Sizes, counts and names.

use casita_tests::suite::Suite;

use super::{each, refused};

pub fn tests(suite: &mut Suite) {
    let cases: &[(&str, (&str, &str))] = &[
        ("memory_zero", ("--memory=0", "at least 16M")),
        ("memory_tiny", ("--memory=1M", "at least 16M")),
        ("memory_odd", ("--memory=100000001", "whole MiB")),
        ("memory_fraction", ("--memory=1.5G", "'1.5G'")),
        ("memory_negative", ("--memory=-1", "-1")),
        ("memory_words", ("--memory=lots", "'lots'")),
        ("memory_empty", ("--memory=", "''")),
        (
            "memory_larger_than_the_host",
            ("--memory=900G", "more than this host's"),
        ),
        (
            "memory_larger_than_possible",
            ("--memory=2000000G", "1024 GiB"),
        ),
        (
            "memory_beyond_64_bits",
            ("--memory=99999999999T", "too large"),
        ),
        ("cpus_zero", ("--cpus=0", "1 to 32")),
        ("cpus_33", ("--cpus=33", "1 to 32")),
        ("cpus_negative", ("--cpus=-1", "1 to 32")),
        ("cpus_words", ("--cpus=x", "1 to 32")),
        ("cpus_beyond_8_bits", ("--cpus=257", "1 to 32")),
        ("name_with_slash", ("--name=../escape", "'../escape'")),
        ("name_empty", ("--name=", "''")),
        ("name_like_an_option", ("--name=-v", "'-v'")),
        ("boot_unknown", ("--boot=uefi", "uefi")),
        ("option_unknown", ("--frobnicate", "--frobnicate")),
        (
            "option_with_a_control_character",
            ("--memory=\x1b[2J", "\\u{1b}"),
        ),
    ];
    each(suite, cases, |place, (option, says)| {
        refused(place, &[option], &[says])
    });
}
