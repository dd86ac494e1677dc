use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::super::result::{End, Usage};
use super::super::{Content, PutFile, RequestError};
use super::*;

/// A monitor that is a shell script: its standard input is the socket, which it writes `frames` to.
fn monitor(place: &Path, script: &str) -> Way {
    let program = place.join("monitor");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Way {
        program,
        shares_stderr: false,
        check_kvm: false,
    }
}

/// One that sends these frames and then waits for its end.
fn telling(place: &Path, frames: &[(Kind, &[u8])]) -> Way {
    let mut bytes = Vec::new();
    for (kind, content) in frames {
        channel::send(&mut bytes, *kind, content).unwrap();
    }
    let file = place.join("frames");
    fs::write(&file, bytes).unwrap();
    monitor(
        place,
        &format!("cat {} >&0; cat >/dev/null", file.display()),
    )
}

fn report() -> Vec<u8> {
    let report = Report {
        end: End::Exited { code: 3 },
        truncated: [false, true],
        not_taken: Vec::new(),
        usage: Usage::default(),
    };
    serde_json::to_vec(&report).unwrap()
}

fn ran(way: &Way, request: &SandboxRequest) -> Result<(SandboxResult, String), SandboxError> {
    let mut output = String::new();
    let mut sink = |stream: Stream, bytes: &[u8]| {
        output.extend([
            &format!("{stream:?}:"),
            &*String::from_utf8_lossy(bytes),
            ";",
        ]);
    };
    let result = run(way, request, &mut sink)?;
    Ok((result, output))
}

fn small() -> SandboxRequest {
    let mut request = SandboxRequest::default();
    request.limits.output = 4;
    request
}

#[test]
fn a_run_is_what_its_monitor_tells() {
    let place = tempfile::tempdir().unwrap();
    let report = report();
    let frames: [(Kind, &[u8]); 5] = [
        (Kind::Started, b""),
        (Kind::Stdout, b"ab"),
        (Kind::Stderr, b"x"),
        (Kind::Stdout, b"cd"),
        (Kind::Report, &report),
    ];
    let (result, output) = ran(&telling(place.path(), &frames), &small()).unwrap();
    assert_eq!(output, "Stdout:ab;Stderr:x;Stdout:cd;");
    assert_eq!(result.end, End::Exited { code: 3 });
    assert!(!result.stdout.truncated && result.stderr.truncated);
}

#[test]
fn a_monitor_that_breaks_its_word_is_not_heard() {
    let place = tempfile::tempdir().unwrap();
    let cases: [&[(Kind, &[u8])]; 6] = [
        // More than the limit, in one or in two.
        &[(Kind::Started, b""), (Kind::Stdout, b"abcde")],
        &[(Kind::Stderr, b"abc"), (Kind::Stderr, b"de")],
        &[(Kind::Order, b"")],
        &[(Kind::Data, b"x")],
        &[(Kind::Report, b"{}")],
        &[(Kind::Started, b""), (Kind::Started, b"")],
    ];
    for frames in cases {
        let error = ran(&telling(place.path(), frames), &small()).unwrap_err();
        assert!(matches!(error, SandboxError::Broken), "{frames:?}: {error}");
    }
    let way = monitor(place.path(), "printf 'AAAAAAAAAAAA' >&0; cat >/dev/null");
    let error = ran(&way, &small()).unwrap_err();
    assert!(matches!(error, SandboxError::Broken), "{error}");
}

#[test]
fn what_a_monitor_refuses_and_says_is_told_in_one_line() {
    let place = tempfile::tempdir().unwrap();
    let way = telling(place.path(), &[(Kind::Refused, b"no such image")]);
    let error = ran(&way, &small()).unwrap_err();
    assert_eq!(error.to_string(), "no such image");

    let frame = [Kind::Refused as u8, 0, 0, 0, 0];
    fs::write(place.path().join("frames"), frame).unwrap();
    let frames = place.path().join("frames");
    let script = format!("echo no registry >&2; cat {} >&0", frames.display());
    let mut way = monitor(place.path(), &script);
    let error = ran(&way, &small()).unwrap_err();
    assert_eq!(error.to_string(), "no registry");
    way.shares_stderr = true;
    let error = ran(&way, &small()).unwrap_err();
    assert!(matches!(error, SandboxError::Told), "{error}");

    let way = monitor(place.path(), "echo first >&2; echo last words >&2; exit 1");
    let error = ran(&way, &small()).unwrap_err().to_string();
    assert!(error.ends_with("without a result: last words"), "{error}");

    let way = Way {
        program: place.path().join("none"),
        ..way
    };
    let error = ran(&way, &small()).unwrap_err();
    assert!(matches!(error, SandboxError::Start { .. }), "{error}");
}

#[test]
fn inputs_are_looked_at_before_anything_is_started() {
    let place = tempfile::tempdir().unwrap();
    let way = monitor(
        place.path(),
        &format!("touch {}", place.path().join("ran").display()),
    );
    let put = |path: &Path| SandboxRequest {
        put: vec![PutFile::new("/a", Content::File(path.to_owned()))],
        ..SandboxRequest::default()
    };
    for path in [Path::new("/none/such"), Path::new("/dev/null")] {
        let error = ran(&way, &put(path)).unwrap_err();
        assert!(matches!(error, SandboxError::Input { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
    let mut request = SandboxRequest::default();
    request.limits.time = Duration::ZERO;
    let error = ran(&way, &request).unwrap_err();
    assert!(matches!(
        error,
        SandboxError::Request(RequestError::Limit(_))
    ));
    assert!(!place.path().join("ran").exists());
}
