//! `casita sandbox`: what goes in, what comes out, which limit ended it, and that nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, patience};
use casita_tests::suite::Suite;
use rustix::process::Signal;
use serde_json::{Value, json};

pub fn tests(suite: &mut Suite) {
    suite.test("sandbox_tells_the_end_the_output_and_the_use", all_of_it);
    suite.test("sandbox_tells_ends_apart", ends);
    suite.test("sandbox_ends_a_run_at_each_limit_and_names_it", limits);
    suite.test("sandbox_holds_limits_against_root", against_root);
    suite.test("sandbox_lets_a_run_use_what_it_may", within_limits);
    suite.test("sandbox_files_go_in_and_come_out_byte_by_byte", bytes);
    suite.test("sandbox_takes_directories_and_patterns", patterns);
    suite.test(
        "sandbox_writes_nowhere_but_where_it_was_told",
        hostile_paths,
    );
    suite.test(
        "sandbox_puts_files_where_links_in_the_guest_lead",
        guest_links,
    );
    suite.test("sandbox_commands_read_their_input", input);
    suite.test("sandbox_commands_have_their_surroundings", surroundings);
    suite.test("sandbox_has_no_network", network);
    let passt = || machine::lacks("passt", "passt");
    suite.test_if(passt(), "sandbox_reaches_what_it_may", egress);
    suite.test("sandbox_runs_share_nothing", share_nothing);
    suite.test("sandbox_runs_eight_at_once", at_once);
    suite.test("sandbox_passes_streams_and_the_status_through", text);
    suite.test("sandbox_ends_with_its_caller", callers_end);
    suite.test("sandbox_confines_its_monitor", is_confined);
    suite.test("sandbox_refuses_what_is_the_callers_fault", refusals);
    let missing = machine::lacks_file(&example("sandbox-soak"));
    suite.test_if(missing, "sandbox_leaves_nothing_behind", soak);
    let judge = example("judge");
    let missing = machine::lacks_file(&judge);
    suite.test_if(missing, "sandbox_example_judges_programs", examples::judge);
    let missing = machine::lacks_file(&example("snippet"));
    let missing = missing.or_else(|| casita_tests::oci::lacks("python"));
    suite.test_if(missing, "sandbox_example_runs_a_snippet", examples::snippet);
    let missing = machine::lacks_file(&example("serve"));
    suite.test_if(missing, "sandbox_example_serves_runs", examples::serve);
}

#[path = "sandbox_examples.rs"]
mod examples;

/// A program of `examples/`.
fn example(name: &str) -> PathBuf {
    machine::casita().with_file_name(name)
}

/// What becomes of `request`, whose command is a shell with `script`.
fn run(request: &Value, script: &str) -> Result<Value> {
    run_in(&Place::new()?, request, script)
}

fn run_in(place: &Place, request: &Value, script: &str) -> Result<Value> {
    let mut request = request.clone();
    request["command"] = json!(["sh", "-c", script]);
    result(place, &request)
}

/// A run has time, where its request does not say otherwise: it may be a busy machine's.
fn result(place: &Place, request: &Value) -> Result<Value> {
    let mut request = request.clone();
    for limit in ["time_ms", "cpu_time_ms"] {
        let limit = &mut request["limits"][limit];
        if limit.is_null() {
            *limit = json!(600_000);
        }
    }
    let sandbox = place.casita(["sandbox", "--format", "json", "--request", "-"]);
    let finished = sandbox
        .finish_with(request.to_string().as_bytes())?
        .expect(0)?;
    ensure!(finished.stderr.is_empty(), "{finished}");
    serde_json::from_slice(&finished.stdout).with_context(|| finished.to_string())
}

/// The bytes of an output or a file.
fn data(value: &Value) -> Result<Vec<u8>> {
    match (&value["text"], &value["base64"]) {
        (Value::String(text), Value::Null) => Ok(text.clone().into_bytes()),
        (Value::Null, Value::String(text)) => Ok(BASE64_STANDARD.decode(text)?),
        _ => bail!("no data: {value}"),
    }
}

fn expect_end(result: &Value, end: &Value) -> Result<()> {
    ensure!(result["end"] == *end, "{end} was expected\n{result:#}");
    Ok(())
}

fn expect_out(result: &Value, text: &str) -> Result<()> {
    expect_end(result, &json!({"kind": "exited", "code": 0}))?;
    ensure!(
        result["stdout"]["text"] == text,
        "{text:?} was expected\n{result:#}"
    );
    Ok(())
}

fn keys(value: &Value) -> BTreeSet<&str> {
    let keys = value
        .as_object()
        .into_iter()
        .flat_map(|object| object.keys());
    keys.map(String::as_str).collect()
}

fn all_of_it() -> Result<()> {
    let script = "echo out; printf '\\377\\0' >&2; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
        dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; sync; exit 3";
    let result = run(&json!({}), script)?;
    expect_end(&result, &json!({"kind": "exited", "code": 3}))?;
    ensure!(
        result["stdout"] == json!({"text": "out\n", "truncated": false}),
        "{result:#}"
    );
    ensure!(
        result["stderr"] == json!({"base64": "/wA=", "truncated": false}),
        "{result:#}"
    );
    for (part, expected) in [
        (&result, "end files not_taken stderr stdout usage version"),
        (
            &result["usage"],
            "cpu_ms disk_written_bytes exits guest monitor start_ms wall_ms",
        ),
        (
            &result["usage"]["guest"],
            "disk_bytes memory_peak_bytes processes_peak system_ms user_ms",
        ),
        (
            &result["usage"]["monitor"],
            "memory_peak_bytes system_ms user_ms",
        ),
    ] {
        ensure!(keys(part) == expected.split(' ').collect(), "{result:#}");
    }
    let usage = &result["usage"];
    for (path, least) in [
        ("/wall_ms", 1),
        ("/cpu_ms", 1),
        ("/disk_written_bytes", 3 << 20),
        ("/exits", 1),
        ("/start_ms", 1),
        ("/guest/user_ms", 1),
        ("/guest/memory_peak_bytes", 1 << 20),
        ("/guest/processes_peak", 2),
        ("/guest/disk_bytes", 3 << 20),
        ("/monitor/user_ms", 1),
        ("/monitor/memory_peak_bytes", 8 << 20),
    ] {
        let figure = usage.pointer(path).and_then(Value::as_u64);
        ensure!(
            figure.is_some_and(|figure| figure >= least),
            "{path}\n{usage:#}"
        );
    }
    Ok(())
}

fn ends() -> Result<()> {
    let end = |script: &str| Ok::<_, anyhow::Error>(run(&json!({}), script)?["end"].clone());
    let ended = end("exit 255")?;
    ensure!(ended == json!({"kind": "exited", "code": 255}), "{ended}");
    let ended = end("kill -SEGV $$")?;
    ensure!(
        ended == json!({"kind": "signaled", "signal": 11}),
        "{ended}"
    );
    let place = Place::new()?;
    for (word, code) in [("nosuch", 127), ("/etc", 126)] {
        let result = result(&place, &json!({"command": [word]}))?;
        let end = &result["end"];
        ensure!(
            end["kind"] == "not-started" && end["code"] == code,
            "{result:#}"
        );
        ensure!(
            end["message"]
                .as_str()
                .is_some_and(|why| why.contains(word)),
            "{end}"
        );
    }
    // Whoever is root in the guest may end it, and nothing else.
    for script in [
        "echo o >/proc/sysrq-trigger; sleep 60",
        "echo b >/proc/sysrq-trigger; sleep 60",
        "reboot -f -n; sleep 60",
        "poweroff -f; sleep 60",
    ] {
        let result = run(&json!({}), script)?;
        ensure!(
            result["end"]["kind"] == "broken" || result["end"]["kind"] == "exited",
            "{script}\n{result:#}"
        );
    }
    Ok(())
}

/// A limit, and a script that meets it.
const MEETS: [(&str, &str, &str); 9] = [
    (
        "time",
        r#"{"time_ms": 700}"#,
        "trap '' TERM INT; echo begin; sleep 1000",
    ),
    (
        "cpu-time",
        r#"{"cpu_time_ms": 500}"#,
        "echo begin; while :; do :; done",
    ),
    // What runs behind it counts, too.
    (
        "cpu-time",
        r#"{"cpu_time_ms": 500}"#,
        "echo begin; (while :; do :; done) & sleep 1000",
    ),
    (
        "memory",
        r#"{"memory_bytes": 20971520}"#,
        "echo begin; x=aaaaaaaa; while :; do x=$x$x; done",
    ),
    // Files in memory are memory.
    (
        "memory",
        r#"{"memory_bytes": 20971520}"#,
        "echo begin; dd if=/dev/zero of=/dev/shm/x bs=64k; sleep 1000",
    ),
    (
        "output",
        r#"{"output_bytes": 6}"#,
        "echo begin; echo x; sleep 1000",
    ),
    ("output", r#"{"output_bytes": 6}"#, "printf begin; yes >&2"),
    (
        "disk",
        r#"{"disk_bytes": 16777216}"#,
        "echo begin; dd if=/dev/zero of=/x bs=64k; sleep 1000",
    ),
    (
        "processes",
        r#"{"processes": 10}"#,
        "echo begin; f() { f & f & }; f; sleep 1000",
    ),
];

fn limits() -> Result<()> {
    for (limit, limits, script) in MEETS {
        let limits: Value = serde_json::from_str(limits)?;
        let request = json!({"limits": limits, "take": ["/etc/passwd"]});
        let result = run(&request, script).with_context(|| script.to_owned())?;
        expect_end(&result, &json!({"kind": "limit", "limit": limit}))?;
        let out = data(&result["stdout"])?;
        ensure!(out.starts_with(b"begin"), "{result:#}");
        let many = data(&result["stderr"])?.len() + out.len();
        ensure!(limit != "output" || many <= 12, "{result:#}");
        let truncated = [&result["stdout"], &result["stderr"]].map(|it| it["truncated"] == true);
        ensure!(
            truncated.contains(&true) == (limit == "output"),
            "{result:#}"
        );
        ensure!(result["files"] == json!([]), "{result:#}");
    }
    // To the byte.
    let request = json!({"limits": {"output_bytes": 6}});
    expect_out(&run(&request, "echo right")?, "right\n")?;
    Ok(())
}

fn against_root() -> Result<()> {
    let out_of_group = "for g in /sys/fs/cgroup/casita-*; do \
        echo max >$g/memory.max; echo max >$g/pids.max; done; \
        echo $$ >/sys/fs/cgroup/cgroup.procs; ";
    let limits = json!({"memory_bytes": 20 << 20, "processes": 10, "time_ms": 30_000,
        "cpu_time_ms": 3000, "output_bytes": 1000});
    let request = json!({"limits": limits});
    // It has what the VM has then, and not a byte more.
    let script = format!("{out_of_group} dd if=/dev/zero of=/dev/shm/x bs=1M; sleep 1; free");
    let result = run(&request, &script)?;
    let peak = result["usage"]["monitor"]["memory_peak_bytes"].as_u64();
    ensure!(peak.is_some_and(|peak| peak < 120 << 20), "{result:#}");
    for (script, limit) in [
        ("while :; do :; done", "cpu-time"),
        ("yes", "output"),
        ("f() { f | f & }; f; while :; do :; done", "cpu-time"),
    ] {
        let result = run(&request, &format!("{out_of_group} {script}"))?;
        let end = &result["end"];
        let broken = end["kind"] == "broken";
        ensure!(
            end["limit"] == limit || broken || end["kind"] == "limit",
            "{result:#}"
        );
    }
    Ok(())
}

fn within_limits() -> Result<()> {
    let limits = json!({"memory_bytes": 64 << 20, "processes": 12, "disk_bytes": 64 << 20,
        "output_bytes": 100_000});
    let script = "dd if=/dev/zero of=/x bs=1M count=40 2>/dev/null && rm /x && \
        dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null && rm /dev/shm/x && \
        for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done; wait; \
        head -c 99990 /dev/zero | tr '\\0' x; echo done";
    let result = run(&json!({"limits": limits}), script)?;
    expect_end(&result, &json!({"kind": "exited", "code": 0}))?;
    let out = data(&result["stdout"])?;
    ensure!(
        out.len() == 99_995 && out.ends_with(b"xdone\n"),
        "{}",
        out.len()
    );
    let peak = result["usage"]["guest"]["memory_peak_bytes"].as_u64();
    ensure!(
        peak.is_some_and(|peak| peak > 40 << 20),
        "{:#}",
        result["usage"]
    );
    Ok(())
}

fn bytes() -> Result<()> {
    let place = Place::new()?;
    let all: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let host = place.write("big", &all)?;
    let odd = "/w/o d/\u{e9}\n'\"";
    let request = json!({
        "put": [
            {"path": "/w/big", "file": host, "mode": 0o600},
            {"path": "/w/small", "base64": BASE64_STANDARD.encode(&all[..256]), "mode": 0o4755},
            {"path": "/w/empty", "text": ""},
            {"path": odd, "text": "odd"},
            {"path": "/new/deep/er/x", "text": "x"},
            {"path": "/etc/passwd", "text": "replaced"},
        ],
        "take": ["/w/big", "/w/small", "/w/empty", odd, "/etc/passwd"],
    });
    let script =
        "stat -c '%a %s %u' /w/big /w/small /w/empty /new/deep/er/x; sha256sum </w/big | cut -c1-8";
    let result = run_in(&place, &request, script)?;
    let digest = casita_tests_digest(&all);
    let expected = format!(
        "600 3000001 0\n4755 256 0\n644 0 0\n644 1 0\n{}\n",
        &digest[..8]
    );
    expect_out(&result, &expected)?;
    let files = result["files"].as_array().context("no files")?;
    let expected: [(&str, u64, &[u8]); 5] = [
        ("/w/big", 0o600, &all),
        ("/w/small", 0o755, &all[..256]),
        ("/w/empty", 0o644, b""),
        (odd, 0o644, b"odd"),
        ("/etc/passwd", 0o644, b"replaced"),
    ];
    ensure!(files.len() == expected.len(), "{}", files.len());
    for (file, (path, mode, content)) in files.iter().zip(expected) {
        ensure!(file["path"] == path && file["mode"] == mode, "{path}");
        ensure!(data(file)? == content, "{path}");
    }
    Ok(())
}

fn casita_tests_digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn patterns() -> Result<()> {
    let place = Place::new()?;
    fs::create_dir_all(place.path("src/sub"))?;
    fs::write(place.path("src/a"), "a")?;
    fs::write(place.path("src/sub/b"), "b")?;
    let request = json!({
        "put": [{"path": "/src", "file": place.text("src")}],
        "take": ["/src", "/o/*.txt", "/o/[ab]/?", "/none/*", "/none"],
        "limits": {"take_bytes": 1000},
    });
    let script = "mkdir -p /o/a /o/b; echo 1 >/o/1.txt; echo 2 >/o/2.txt; echo 3 >/o/3.c; \
        echo h >/o/.h.txt; echo x >/o/a/x; echo y >/o/b/y; echo z >/o/b/zz; \
        head -c 2000 /dev/zero >/o/big.txt; mkfifo /o/f.txt; ln -s /etc/passwd /o/l.txt";
    let result = run_in(&place, &request, script)?;
    let paths = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|one| one["path"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let mut files = paths(&result["files"]);
    files[..2].sort();
    let expected = [
        "/src/a",
        "/src/sub/b",
        "/o/1.txt",
        "/o/2.txt",
        "/o/a/x",
        "/o/b/y",
    ];
    ensure!(files == expected, "{result:#}");
    let not: BTreeSet<String> = paths(&result["not_taken"]).into_iter().collect();
    let expected = ["/none", "/none/*", "/o/big.txt", "/o/f.txt", "/o/l.txt"];
    ensure!(not.iter().eq(expected), "{result:#}");
    Ok(())
}

/// A guest that makes links of what is taken, in every direction, and a host with links in the way.
fn hostile_paths() -> Result<()> {
    let place = Place::new()?;
    for name in ["target", "outside"] {
        fs::create_dir(place.path(name))?;
    }
    place.write("outside/secret", "before")?;
    symlink(place.path("outside"), place.path("target/way"))?;
    symlink(place.path("outside/secret"), place.path("target/file"))?;
    let script = format!(
        "mkdir -p /o/way /o/d; echo evil >/o/way/secret; echo evil >/o/file; \
         ln -s {outside} /o/abs; ln -s ../../outside /o/d/up; echo good >/o/d/good; \
         ln -s /proc/self/root /o/root; ln /o/file /o/hard; mknod /o/dev c 1 3; \
         chmod 4777 /o/d/good",
        outside = place.text("outside"),
    );
    let take = format!("/o:{}", place.text("target"));
    let options = ["sandbox", "--take", &take, "--", "sh", "-c", &script];
    let finished = place.casita(options).finish()?.expect(0)?;
    let complaint = finished.complaint();
    for name in ["/o/abs", "/o/d/up", "/o/root", "/o/way/secret", "/o/dev"] {
        ensure!(
            complaint.contains(&format!("{name} is not taken")),
            "{finished}"
        );
    }
    ensure!(fs::read_to_string(place.path("outside/secret"))? == "before");
    ensure!(fs::read_dir(place.path("outside"))?.count() == 1);
    let good = place.path("target/d/good");
    ensure!(fs::read_to_string(&good)? == "good\n");
    ensure!(fs::metadata(&good)?.mode() & 0o7777 == 0o777);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(place.path("target"))? {
        names.insert(entry?.file_name().into_string().ok().context("a name")?);
    }
    ensure!(
        !names.contains("abs") && !names.contains("root"),
        "{names:?}"
    );
    // The link that was there has given way to a file; each of a file's two names is one.
    for name in ["target/file", "target/hard"] {
        ensure!(fs::symlink_metadata(place.path(name))?.is_file(), "{name}");
        ensure!(fs::read_to_string(place.path(name))? == "evil\n", "{name}");
    }
    Ok(())
}

fn guest_links() -> Result<()> {
    // A path that leads out of the guest's root leads to that root, as everywhere in it.
    let request = json!({
        "put": [
            {"path": "/proc/self/root/tmp/a", "text": "a"},
            {"path": "/usr/local/../x", "text": "a"},
        ],
    });
    let place = Place::new()?;
    let sandbox = place.casita(["sandbox", "--request", "-"]);
    let finished = sandbox.finish_with(request.to_string().as_bytes())?;
    refused(&finished, "/usr/local/../x")?;
    let request = json!({"put": [{"path": "/proc/self/root/tmp/a", "text": "a"}]});
    expect_out(&run(&request, "cat /tmp/a")?, "a")
}

fn input() -> Result<()> {
    let place = Place::new()?;
    let many: Vec<u8> = (0..=255).cycle().take(2_500_000).collect();
    let file = place.write("input", &many)?;
    let digest = casita_tests_digest(&many);
    let request = json!({"stdin": {"file": file}});
    let result = run_in(&place, &request, "sha256sum | cut -c1-64")?;
    expect_out(&result, &format!("{digest}\n"))?;
    // Not all of it is read.
    expect_out(
        &run_in(&place, &request, "head -c 1 >/dev/null; echo ok")?,
        "ok\n",
    )?;
    expect_out(
        &run(&json!({"stdin": {"text": "a b"}}), "cat; echo; cat")?,
        "a b\n",
    )?;
    expect_out(&run(&json!({}), "cat; echo end")?, "end\n")?;
    let options = ["sandbox", "--stdin", "-", "--", "sort"];
    let finished = place.casita(options).finish_with(b"2\n1\n")?.expect(0)?;
    ensure!(finished.text() == "1\n2\n", "{finished}");
    // Nobody writes to it: the run ends without it.
    let options = ["sandbox", "--stdin", "-", "--time", "2", "--", "cat"];
    let running = place.casita(options).start_piped()?;
    let start = Instant::now();
    while fs::metadata(format!("/proc/{}/task", running.id())).is_ok() && !has_ended(running.id()) {
        ensure!(start.elapsed() < patience(), "it waits for its input");
        thread::sleep(Duration::from_millis(20));
    }
    running.finish()?.expect(124)?;
    Ok(())
}

fn has_ended(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_none_or(|rest| rest.starts_with('Z'))
}

fn surroundings() -> Result<()> {
    let request = json!({
        "env": ["A=b c", "EMPTY="],
        "workdir": "/made/here",
        "user": "1000:1001",
        "cpus": 2,
    });
    let script =
        "pwd; id -u; id -g; echo \"$A|$EMPTY|${NONE-none}\"; grep -c processor /proc/cpuinfo";
    let result = run(&request, script)?;
    expect_out(&result, "/made/here\n1000\n1001\nb c||none\n2\n")
}

fn network() -> Result<()> {
    let script = "ls /sys/class/net; ip route; nslookup example.org 2>&1 | grep -c Address; \
        wget -T 2 -q http://10.0.2.2/ 2>/dev/null || echo none";
    let result = run(&json!({}), script)?;
    let out = data(&result["stdout"])?;
    ensure!(
        out.starts_with(b"lo\n") && out.ends_with(b"none\n"),
        "{result:#}"
    );
    Ok(())
}

fn egress() -> Result<()> {
    let script = "ls /sys/class/net | grep -vc '^lo$'";
    expect_out(&run(&json!({"egress": "10.9.8.7:80/tcp"}), script)?, "1\n")
}

fn share_nothing() -> Result<()> {
    let place = Place::new()?;
    // A disk that is soon read from end to end.
    let request = json!({"limits": {"disk_bytes": 64 << 20}});
    run_in(&place, &request, "true")?;
    let before = place.listing()?;
    let mark = "9d1c2f60-mark";
    let places = "/ /root /tmp /etc /dev/shm /var /usr /bin";
    let script = format!(
        "for p in {places}; do mkdir -p $p; echo {mark} >$p/{mark}; done; sync; hostname {mark}; ls /tmp"
    );
    expect_out(&run_in(&place, &request, &script)?, &format!("{mark}\n"))?;
    let script = format!(
        "find / -xdev -name '*{mark}*'; find /dev/shm /tmp -name '*{mark}*'; \
         grep -l {mark} /dev/vd?; hostname; dmesg | grep -c {mark}; true"
    );
    expect_out(&run_in(&place, &request, &script)?, "casita\n0\n")?;
    let after = place.listing()?;
    ensure!(before == after, "{after:?}");
    let vms = place
        .casita(["ps", "-a", "--format", "json"])
        .finish()?
        .expect(0)?;
    ensure!(vms.text().trim() == "[]", "{vms}");
    Ok(())
}

fn at_once() -> Result<()> {
    let place = Place::new()?;
    let request = json!({
        "limits": {"memory_bytes": 32 << 20, "time_ms": 100_000, "cpu_time_ms": 100_000},
        "take": ["/out"],
    });
    thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|number| {
                let (place, mut request) = (&place, request.clone());
                request["stdin"] = json!({"text": number.to_string()});
                scope.spawn(move || run_in(place, &request, "cat >/out; cat /out"))
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            let result = run.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            expect_out(&result, &number.to_string())?;
            ensure!(
                result["files"][0]["text"] == json!(number.to_string()),
                "{result:#}"
            );
        }
        Ok(())
    })
}

fn text() -> Result<()> {
    let place = Place::new()?;
    let sandbox = |options: &[&str], script: &str| {
        let command = ["--", "sh", "-c", script];
        place
            .casita([&["sandbox"], options, &command].concat())
            .finish()
    };
    let finished = sandbox(&[], "printf 'a\\0b'; printf '\\377' >&2; exit 9")?.expect(9)?;
    ensure!(
        finished.stdout == b"a\0b" && finished.stderr == b"\xff",
        "{finished}"
    );
    sandbox(&[], "kill -KILL $$")?.expect(137)?;
    let finished = sandbox(&["--time", "300ms"], "sleep 100")?.expect(124)?;
    ensure!(
        finished.complaint() == "casita: the run met its limit of time\n",
        "{finished}"
    );
    let finished = place
        .casita(["sandbox", "--", "nosuch"])
        .finish()?
        .expect(127)?;
    ensure!(finished.complaint().contains("nosuch"), "{finished}");
    // It is there before the run is over.
    let options = [
        "sandbox",
        "--time",
        "100",
        "--",
        "sh",
        "-c",
        "echo first; sleep 100",
    ];
    let running = place.casita(options).start()?;
    running.wait_for("first")?;
    running.signal(Signal::TERM)?;
    running.finish()?;
    Ok(())
}

/// The processes that run VMs of `place`'s.
fn monitors(place: &Place) -> Result<Vec<String>> {
    let home = format!("XDG_DATA_HOME={}", place.text("data"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let read = |name: &str| fs::read(path.join(name)).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        if environment.split('\0').any(|variable| variable == home) {
            let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push(format!("{}: {words}", path.display()));
        }
    }
    Ok(found)
}

fn callers_end() -> Result<()> {
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        let place = Place::new()?;
        let script = "echo begin; sleep 1000";
        let options = ["sandbox", "--time", "1000", "--", "sh", "-c", script];
        let running = place.casita(options).start()?;
        running.wait_for("begin")?;
        ensure!(monitors(&place)?.len() == 2, "{:?}", monitors(&place)?);
        running.signal(signal)?;
        running.finish()?;
        let start = Instant::now();
        loop {
            let left = monitors(&place)?;
            if left.is_empty() {
                break;
            }
            ensure!(start.elapsed() < patience(), "{left:?}");
            thread::sleep(Duration::from_millis(10));
        }
        let left = place.listing()?;
        ensure!(!left.iter().any(|name| name.contains("vms/")), "{left:?}");
    }
    Ok(())
}

/// While a command runs, so with all of the threads.
fn is_confined() -> Result<()> {
    let place = Place::new()?;
    let script = "echo begin; cat";
    let options = ["sandbox", "--time", "1000", "--", "sh", "-c", script];
    let running = place.casita(options).start()?;
    running.wait_for("begin")?;
    let pids = monitors(&place)?;
    let pids = pids.iter().filter_map(|found| {
        let (path, _) = found.split_once(':')?;
        path.rsplit('/').next()?.parse::<u32>().ok()
    });
    let monitor = pids.into_iter().find(|pid| *pid != running.id());
    super::escape::confined(i32::try_from(monitor.context("no monitor")?)?)?;
    running.signal(Signal::KILL)?;
    running.finish()?;
    Ok(())
}

fn refused(finished: &Finished, says: &str) -> Result<()> {
    let complaint = finished.complaint();
    let good = finished.status.code() == Some(125)
        && finished.stdout.is_empty()
        && complaint.lines().count() == 1
        && complaint.starts_with("casita: ")
        && complaint.contains(says);
    ensure!(
        good,
        "{says:?} was expected in one line, and 125\n{finished}"
    );
    Ok(())
}

fn refusals() -> Result<()> {
    let place = Place::new()?;
    place.write("file", "x")?;
    for (options, says) in [
        (&["--put", "file:/etc/passwd/x"][..], "/etc/passwd"),
        (&["--put", "file:/proc/x"], "/proc"),
        (&["--put", "file:/etc"], "etc"),
        (&["--user", "nosuchuser"], "nosuchuser"),
    ] {
        let options = [&["sandbox"], options, &["--", "true"]].concat();
        let finished = place.casita(options).finish()?;
        if says == "nosuchuser" {
            // That is found out as the command starts.
            let finished = finished.expect(126)?;
            ensure!(finished.complaint().contains(says), "{finished}");
        } else {
            refused(&finished, says)?;
        }
    }
    Ok(())
}

fn soak() -> Result<()> {
    let program = example("sandbox-soak");
    let runs = if machine::is_long() { "10000" } else { "20" };
    let place = Place::new()?;
    let mut command = place.casita(["x"]).command()?;
    let envs: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = std::process::Command::new(program);
    command.args(["--runs", runs]).envs(envs);
    command.env("CASITA_BIN", machine::casita());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}\n{why}");
    Ok(())
}
