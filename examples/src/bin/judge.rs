//! Judges a submitted program: compiles it, runs it against each test, and says how it did.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use casita::sandbox::{Content, ImageSource, Limits, PutFile, Sandbox, SandboxRequest};
use casita_examples::verdict::{Verdict, verdict};
use clap::Parser;

/// Where a submission is in its guest.
const BOX: &str = "/box";
const PROGRAM: &str = "/box/program";

/// Judge a program against tests.
#[derive(Debug, Parser)]
struct Arguments {
    /// Image to compile and run in [default: casita's own, with busybox]
    #[arg(long)]
    image: Option<String>,
    /// The submission; it is put into /box under its name
    #[arg(long)]
    source: PathBuf,
    /// Shell command that makes /box/program of it
    #[arg(long)]
    compile: Option<String>,
    /// Shell command that runs it [default: /box/program]
    #[arg(long, default_value = PROGRAM)]
    run: String,
    /// Seconds of CPU time for each test; three times as long by the clock
    #[arg(long, default_value_t = 2.0)]
    time: f64,
    /// MiB for each test
    #[arg(long, default_value_t = 64)]
    memory: u64,
    /// Directory with NAME.in and NAME.out
    tests: PathBuf,
}

/// A test: its name, what is read and what is to be written.
struct Test {
    name: String,
    input: PathBuf,
    expected: Vec<u8>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new()?;
    let tests = tests(&arguments.tests)?;
    let program = match compile(&sandbox, &arguments)? {
        Ok(program) => program,
        Err(complaint) => {
            println!("{}\n{}", Verdict::CompileError, complaint.trim_end());
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut right = 0;
    for test in &tests {
        let result = sandbox.run(&test_request(&arguments, &program, test))?;
        let verdict = verdict(&result, &test.expected);
        let guest = result.usage.guest.unwrap_or_default();
        let mib = guest.memory_peak_bytes.div_ceil(1 << 20);
        let cpu = result.usage.cpu_ms;
        println!("{}: {verdict} {cpu} ms {mib} MiB", test.name);
        right += usize::from(verdict == Verdict::Accepted);
    }
    println!("{right} of {}", tests.len());
    Ok(ExitCode::from(u8::from(right < tests.len())))
}

fn tests(directory: &Path) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let input = entry?.path();
        if input.extension().is_none_or(|end| end != "in") {
            continue;
        }
        let output = input.with_extension("out");
        let expected = fs::read(&output).with_context(|| output.display().to_string())?;
        let name = input.file_stem().unwrap_or_default().to_string_lossy();
        tests.push(Test {
            name: name.into_owned(),
            input,
            expected,
        });
    }
    if tests.is_empty() {
        bail!("there is no NAME.in in {}", directory.display());
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

fn shell(command: &str) -> Vec<String> {
    ["/bin/sh", "-c", command].map(str::to_owned).to_vec()
}

fn base(arguments: &Arguments) -> SandboxRequest {
    let image = arguments.image.clone();
    SandboxRequest {
        image: image.map_or(ImageSource::BuiltIn, ImageSource::Reference),
        workdir: Some(BOX.to_owned()),
        ..SandboxRequest::default()
    }
}

/// The submission as it was put in.
fn source(arguments: &Arguments) -> Result<PutFile> {
    let name = arguments
        .source
        .file_name()
        .context("--source has no name")?;
    let path = format!("{BOX}/{}", name.to_string_lossy());
    Ok(PutFile::new(path, Content::File(arguments.source.clone())))
}

/// What is to be run; or what the compiler has to say.
fn compile(sandbox: &Sandbox, arguments: &Arguments) -> Result<Result<PutFile, String>> {
    let source = source(arguments)?;
    let Some(command) = &arguments.compile else {
        return Ok(Ok(source));
    };
    let result = sandbox.run(&SandboxRequest {
        command: shell(command),
        put: vec![source],
        take: vec![PROGRAM.to_owned()],
        limits: Limits {
            time: Duration::from_mins(1),
            cpu_time: Duration::from_secs(30),
            memory: 512 << 20,
            ..Limits::default()
        },
        ..base(arguments)
    })?;
    let said = [&result.stdout, &result.stderr].map(|output| output.data.to_text());
    if !result.is_success() {
        return Ok(Err(format!("{:?}\n{}", result.end, said.concat())));
    }
    match result.files.into_iter().next() {
        None => Ok(Err(format!("{PROGRAM} was not made\n{}", said.concat()))),
        Some(file) => Ok(Ok(PutFile {
            path: PROGRAM.to_owned(),
            content: Content::Bytes(file.data.0),
            mode: Some(0o755),
        })),
    }
}

fn test_request(arguments: &Arguments, program: &PutFile, test: &Test) -> SandboxRequest {
    let cpu_time = Duration::try_from_secs_f64(arguments.time).unwrap_or(Limits::MAX_TIME);
    SandboxRequest {
        command: shell(&arguments.run),
        put: vec![program.clone()],
        stdin: Some(Content::File(test.input.clone())),
        user: Some("65534:65534".to_owned()),
        limits: Limits {
            time: cpu_time * 3,
            cpu_time,
            memory: arguments.memory << 20,
            processes: 32,
            ..Limits::default()
        },
        ..base(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(directory: &Path) -> Arguments {
        let directory = directory.display().to_string();
        let words = [
            "judge",
            "--source",
            "a.py",
            "--run",
            "python3 a.py",
            &directory,
        ];
        Arguments::parse_from(words)
    }

    #[test]
    fn tests_are_pairs_of_files_in_order() {
        let place = tempfile::tempdir().unwrap();
        assert!(tests(place.path()).is_err());
        for name in ["2.in", "2.out", "1.in", "1.out", "notes"] {
            fs::write(place.path().join(name), name).unwrap();
        }
        let all = tests(place.path()).unwrap();
        let names: Vec<_> = all.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names, ["1", "2"]);
        assert_eq!(all[0].expected, b"1.out");
        let arguments = arguments(place.path());
        let program = source(&arguments).unwrap();
        assert_eq!(program.path, "/box/a.py");
        test_request(&arguments, &program, &all[0]).check().unwrap();
        fs::write(place.path().join("3.in"), "").unwrap();
        assert!(tests(place.path()).is_err());
    }
}
