//! Runs a piece of Python that nobody trusts: `echo 'print(6 * 7)' | snippet`.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use casita::sandbox::{
    Content, End, ImageSource, Limits, PutFile, Sandbox, SandboxRequest, Stream,
};
use clap::Parser;

/// Run a piece of Python in a VM of its own.
#[derive(Debug, Parser)]
struct Arguments {
    /// Image with python3 in it
    #[arg(long, default_value = "python:3-slim")]
    image: String,
    /// Seconds that it may take
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// What to run [default: standard input]
    file: Option<PathBuf>,
}

fn request(arguments: &Arguments, code: Vec<u8>) -> SandboxRequest {
    let time = Duration::from_secs(arguments.seconds);
    SandboxRequest {
        image: ImageSource::Reference(arguments.image.clone()),
        put: vec![PutFile::new("/snippet.py", Content::Bytes(code))],
        command: ["python3", "-I", "/snippet.py"].map(str::to_owned).to_vec(),
        // Neither root nor anybody who owns a file.
        user: Some("65534:65534".to_owned()),
        workdir: Some("/tmp".to_owned()),
        limits: Limits {
            time,
            cpu_time: time,
            memory: 128 << 20,
            processes: 16,
            ..Limits::default()
        },
        ..SandboxRequest::default()
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let code = if let Some(path) = &arguments.file {
        std::fs::read(path).with_context(|| path.display().to_string())?
    } else {
        let mut code = Vec::new();
        io::stdin().read_to_end(&mut code)?;
        code
    };
    let result = Sandbox::new()?.run_with(&request(&arguments, code), &mut |stream, bytes| {
        // Whoever does not listen does not want to.
        let _ = match stream {
            Stream::Stdout => io::stdout().write_all(bytes),
            Stream::Stderr => io::stderr().write_all(bytes),
        };
    })?;
    match &result.end {
        End::Limit { limit } => eprintln!("snippet: it met its limit of {limit}"),
        End::NotStarted { message, .. } | End::Broken { message } => {
            eprintln!("snippet: {message}");
        }
        End::Exited { .. } | End::Signaled { .. } => {}
    }
    Ok(result.end.status().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_is_a_request_that_can_be() {
        let arguments = Arguments::parse_from(["snippet", "--seconds", "2"]);
        let request = request(&arguments, b"print(1)".to_vec());
        request.check().unwrap();
        assert_eq!(request.limits.time, Duration::from_secs(2));
    }
}
