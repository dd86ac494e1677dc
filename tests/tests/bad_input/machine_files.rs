//! Machine files.

use std::fs;

use casita_tests::suite::Suite;

use super::{each, place, refused, special_files};

/// A file's name, its content, and what is said about it.
type FileCase = (&'static str, &'static str, &'static str);

pub fn tests(suite: &mut Suite) {
    let cases: &[(&str, FileCase)] = &[
        (
            "config_toml_unknown_field",
            ("m.toml", "cpus = 1\nfoo = 1\n", "`foo`"),
        ),
        (
            "config_json_unknown_field",
            ("m.json", r#"{"foo": 1}"#, "`foo`"),
        ),
        (
            "config_toml_wrong_type",
            ("m.toml", "cpus = 'two'\n", "line 1"),
        ),
        (
            "config_json_wrong_type",
            ("m.json", r#"{"kernel": 3}"#, "invalid type"),
        ),
        ("config_cpus_zero", ("m.toml", "cpus = 0\n", "1 to 32")),
        (
            "config_cpus_huge",
            ("m.json", r#"{"cpus": 4294967297}"#, "1 to 32"),
        ),
        (
            "config_memory_odd",
            ("m.toml", "memory = 3\n", "at least 16M"),
        ),
        ("config_memory_negative", ("m.toml", "memory = -5\n", "")),
        ("config_bad_disk", ("m.toml", "disk = '5'\n", "16M to 64T")),
        ("config_bad_name", ("m.toml", "name = '../x'\n", "'../x'")),
        ("config_bad_boot", ("m.toml", "boot = 'uefi'\n", "uefi")),
        ("config_toml_broken", ("m.toml", "cpus = = 1\n", "line 1")),
        ("config_json_cut", ("m.json", r#"{"cpus": 1"#, "line 1")),
        ("config_json_deep", ("m.json", DEEP, "")),
        ("config_not_utf8", ("m.toml", "", "")),
    ];
    each(suite, cases, |place, (name, content, says)| {
        match content {
            "" => place.write(name, b"cpus = \xff\xfe")?,
            DEEP => place.write(name, "[".repeat(100_000))?,
            content => place.write(name, content)?,
        };
        // The name may come from the command line too, so its message does not tell where it stood.
        let file = if says == "'../x'" { "" } else { name };
        refused(place, &["--config", name], &[file, says])
    });
    suite.test("config_missing", || {
        refused(
            &place()?,
            &["--config", "no.toml"],
            &["no.toml", "No such file"],
        )
    });
    suite.test("config_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| refused(&place, &["--config", name], &[name]))
    });
    suite.test("config_huge", || {
        let place = place()?;
        fs::File::create(place.path("huge.toml"))?.set_len(1 << 40)?;
        refused(
            &place,
            &["--config", "huge.toml"],
            &["huge.toml", "larger than"],
        )
    });
}

const DEEP: &str = "(deeply nested)";
