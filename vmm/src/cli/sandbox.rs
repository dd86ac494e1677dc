//! `casita sandbox`: the library's [`sandbox`](crate::sandbox) on the command line.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use casita_agent::find;
use casita_net::EgressPolicy;
use clap::Args;

use super::{CliError, Format, json, process_args::complete_env, report_line};
use crate::config::{DEFAULT_CPUS, parse_cpus};
use crate::disk;
use crate::images::PullPolicy;
use crate::process_config::{EnvError, Period, read_env_file};
use crate::sandbox::{
    Content, End, ImageSource, Limits, MAX_REQUEST, NotTaken, PutFile, Sandbox, SandboxRequest,
    SandboxResult, Stream, TakenFile,
};

const COMMAND: &str = "Command";
const FILES: &str = "Files";
const LIMITS: &str = "Limits";
const MACHINE: &str = "Machine";

/// Options of `casita sandbox`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each run has a VM and a disk of its own, no network unless --egress says otherwise, and leaves nothing \
behind. A run that meets a limit is ended, and is told which it was.

The exit status is the command's; 128+n if signal n ended it, 126 if it could not be run, 127 if it \
was not found, 124 if it met a limit, 137 if it broke its guest, 125 if there was no run. With \
--format json it is 0 if there was a run, whatever became of it.

Examples:
  casita sandbox -- echo hello                 a command in the built-in image
  casita sandbox --put a.py:/a.py --time 2 --memory 64M python:3 -- python3 /a.py
  casita sandbox --put ./src:/src --take '/src/*.o:./out' gcc -- make -C /src
  casita sandbox --format json --request - < request.json")]
pub struct SandboxArgs {
    /// Image, then command and arguments; after -- a command in the built-in image or --rootfs
    #[arg(trailing_var_arg = true, value_name = "IMAGE] [COMMAND")]
    words: Vec<String>,
    /// Take the whole request from FILE in JSON, or from standard input with -
    #[arg(long, value_name = "FILE|-", conflicts_with_all = REQUEST_OPTIONS)]
    request: Option<PathBuf>,
    /// How to tell of the run: its output as it comes, or all of it as one JSON object
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// When to ask a registry for the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    /// Set an environment variable; without a value, to casita's own
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = COMMAND)]
    env: Vec<String>,
    /// Set the variables that FILE has, one in a line
    #[arg(long, value_name = "FILE", help_heading = COMMAND)]
    env_file: Vec<PathBuf>,
    /// Working directory of the command, made if it is missing
    #[arg(short, long, value_name = "DIR", help_heading = COMMAND)]
    workdir: Option<String>,
    /// Who runs the command, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = COMMAND)]
    user: Option<String>,
    /// What the command reads; - for casita's own standard input [default: nothing]
    #[arg(long, value_name = "FILE|-", help_heading = COMMAND)]
    stdin: Option<PathBuf>,
    /// Put a file or directory into the guest; can be given many times
    #[arg(long, value_name = "HOST:GUEST", help_heading = FILES)]
    put: Vec<Put>,
    /// Take files out when the command has ended, to HOST, or into the JSON; the path may have *, ?
    /// and [...]; can be given many times
    #[arg(long, value_name = "GUEST[:HOST]", help_heading = FILES)]
    take: Vec<Take>,
    /// Most content of files that are taken out [default: 16M]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = LIMITS)]
    take_size: Option<u64>,
    /// Time, such as 500ms, 10 or 1m [default: 10]
    #[arg(long, value_name = "TIME", help_heading = LIMITS)]
    time: Option<Period>,
    /// CPU time of all vCPUs together [default: 10]
    #[arg(long, value_name = "TIME", help_heading = LIMITS)]
    cpu_time: Option<Period>,
    /// Memory of the command and what it starts [default: 256M]
    #[arg(short, long, value_name = "SIZE", value_parser = size, help_heading = LIMITS)]
    memory: Option<u64>,
    /// Disk that takes what is written [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = LIMITS)]
    disk: Option<u64>,
    /// Standard output and standard error, each [default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = LIMITS)]
    output: Option<u64>,
    /// Processes and threads at a time [default: 128]
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    processes: Option<u32>,
    #[arg(short, long, value_name = "N", value_parser = parse_cpus, help = format!("Number of vCPUs [default: {DEFAULT_CPUS}]"), help_heading = MACHINE)]
    cpus: Option<u8>,
    /// What the run may reach: none, all, or a list of CIDR, CIDR:PORT, HOST and HOST:PORT, each with
    /// /tcp or /udp behind it if need be [default: none]
    #[arg(long, value_name = "none|all|ITEM,ITEM...", help_heading = MACHINE)]
    egress: Option<EgressPolicy>,
    /// Root image or directory in place of an image; never written to
    #[arg(long, value_name = "FILE|DIR", help_heading = MACHINE)]
    rootfs: Option<PathBuf>,
    /// Guest kernel [default: the one that `make kernel` built]
    #[arg(long, value_name = "FILE", help_heading = MACHINE)]
    kernel: Option<PathBuf>,
    /// Try to start even if this machine's KVM can't run Linux guests
    #[arg(long, help_heading = MACHINE)]
    skip_kvm_check: bool,
}

/// What a request says itself.
const REQUEST_OPTIONS: [&str; 20] = [
    "words",
    "pull",
    "env",
    "env_file",
    "workdir",
    "user",
    "stdin",
    "put",
    "take",
    "take_size",
    "time",
    "cpu_time",
    "memory",
    "disk",
    "output",
    "processes",
    "cpus",
    "egress",
    "rootfs",
    "kernel",
];

fn size(text: &str) -> Result<u64, String> {
    disk::parse_size(text).map_err(|error| error.to_string())
}

/// `HOST:GUEST`.
#[derive(Debug, Clone)]
struct Put {
    host: PathBuf,
    guest: String,
}

impl FromStr for Put {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A guest's path is absolute, so it is plain where it begins.
        match text.rsplit_once(":/") {
            Some((host, guest)) if !host.is_empty() => Ok(Self {
                host: host.into(),
                guest: format!("/{guest}"),
            }),
            _ => Err("write HOST:GUEST, where GUEST is an absolute path".to_owned()),
        }
    }
}

/// `GUEST[:HOST]`.
#[derive(Debug, Clone)]
struct Take {
    guest: String,
    host: Option<PathBuf>,
}

impl FromStr for Take {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (guest, host) = match text.split_once(':') {
            Some((guest, host)) => (guest, Some(host)),
            None => (text, None),
        };
        if !guest.starts_with('/') || host == Some("") {
            return Err("write GUEST[:HOST], where GUEST is an absolute path".to_owned());
        }
        Ok(Self {
            guest: guest.to_owned(),
            host: host.map(PathBuf::from),
        })
    }
}

/// Runs a request to its end.
///
/// # Errors
/// If there was no run, or its files can't be written.
pub fn sandbox(args: &SandboxArgs) -> Result<ExitCode, CliError> {
    let request = match &args.request {
        Some(path) => read_request(path)?,
        None => args.request()?,
    };
    if args.format == Format::Text && args.request.is_none() {
        let nowhere = args.take.iter().find(|take| take.host.is_none());
        if let Some(take) = nowhere {
            let guest = &take.guest;
            return Err(format!(
                "say where {guest} goes, as in --take {guest}:./out; without it takes --format json"
            )
            .into());
        }
    }
    let mut sandbox = Sandbox::with_program(std::env::current_exe()?).sharing_stderr();
    if args.skip_kvm_check {
        sandbox = sandbox.without_kvm_check();
    }
    match args.format {
        Format::Json => {
            let mut result = sandbox.run(&request)?;
            let failed = save(&args.take, &mut result);
            result.not_taken.extend(failed);
            json::write(&mut io::stdout(), &result)?;
            Ok(ExitCode::SUCCESS)
        }
        Format::Text => {
            let mut result = sandbox.run_with(&request, &mut pass_on)?;
            let failed = save(&args.take, &mut result);
            result.not_taken.extend(failed);
            tell(&result);
            Ok(result.end.status().into())
        }
    }
}

/// Hands output on as it comes. Whoever does not listen does not want to.
fn pass_on(stream: Stream, bytes: &[u8]) {
    let _ = match stream {
        Stream::Stdout => write_out(&mut io::stdout(), bytes),
        Stream::Stderr => write_out(&mut io::stderr(), bytes),
    };
}

fn write_out(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Says for people what the streams and the exit status do not.
fn tell(result: &SandboxResult) {
    for NotTaken { path, why } in &result.not_taken {
        report_line(&format!("{path} is not taken: {why}"));
    }
    match &result.end {
        End::Exited { .. } | End::Signaled { .. } => {}
        End::Limit { limit } => report_line(&format!("the run met its limit of {limit}")),
        End::NotStarted { message, .. } | End::Broken { message } => report_line(message),
    }
}

fn read_request(path: &Path) -> Result<SandboxRequest, CliError> {
    let mut json = Vec::new();
    let failed = |error: io::Error| format!("can't read the request {}: {error}", path.display());
    if path == Path::new("-") {
        io::stdin().take(MAX_REQUEST + 1).read_to_end(&mut json)?;
    } else {
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_REQUEST + 1)
            .read_to_end(&mut json)
            .map_err(failed)?;
    }
    let mut request = SandboxRequest::from_json(&json)?;
    request.resolve_paths(&std::env::current_dir()?);
    Ok(request)
}

impl SandboxArgs {
    fn request(&self) -> Result<SandboxRequest, CliError> {
        let program = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let program: Vec<String> = program.collect();
        let (image, command) = super::run::image_and_command(&self.words, &program);
        let image = match (image, &self.rootfs) {
            (Some(_), Some(_)) => {
                return Err(
                    "there is an image and --rootfs: leave out one, or write the command after --"
                        .into(),
                );
            }
            (Some(name), None) => ImageSource::Reference(name),
            (None, Some(path)) => ImageSource::Rootfs(path.clone()),
            (None, None) => ImageSource::BuiltIn,
        };
        let put = self.put.iter().map(|put| PutFile {
            path: put.guest.clone(),
            content: Content::File(put.host.clone()),
            mode: None,
        });
        let stdin = self.stdin.as_deref().map(|path| match path.to_str() {
            Some("-") => Content::File("/dev/stdin".into()),
            _ => Content::File(path.to_owned()),
        });
        let mut request = SandboxRequest {
            image,
            pull: self.pull,
            command,
            env: self.variables()?,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            stdin,
            put: put.collect(),
            take: self.take.iter().map(|take| take.guest.clone()).collect(),
            limits: self.limits(),
            egress: self.egress.clone().unwrap_or(EgressPolicy::None),
            cpus: self.cpus.unwrap_or(DEFAULT_CPUS),
            kernel: self.kernel.clone(),
        };
        request.check()?;
        if let Ok(base) = std::env::current_dir() {
            request.resolve_paths(&base);
        }
        Ok(request)
    }

    fn variables(&self) -> Result<Vec<String>, EnvError> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            variables.extend(read_env_file(file)?);
        }
        variables.extend(self.env.iter().cloned());
        complete_env(&variables)
    }

    fn limits(&self) -> Limits {
        let all = Limits::default();
        Limits {
            time: self.time.map_or(all.time, Period::duration),
            cpu_time: self.cpu_time.map_or(all.cpu_time, Period::duration),
            memory: self.memory.unwrap_or(all.memory),
            disk: self.disk.unwrap_or(all.disk),
            output: self.output.unwrap_or(all.output),
            processes: self.processes.unwrap_or(all.processes),
            take: self.take_size.unwrap_or(all.take),
        }
    }
}

/// Writes the files that are to go to the host, and keeps the others. Those that could not be
/// written because of what the guest made of them.
fn save(takes: &[Take], result: &mut SandboxResult) -> Vec<NotTaken> {
    let mut failed = Vec::new();
    for take in takes {
        let Some(host) = &take.host else { continue };
        let (wanted, others) = std::mem::take(&mut result.files)
            .into_iter()
            .partition(|file| is_of(&file.path, &take.guest));
        result.files = others;
        let wanted: Vec<TakenFile> = wanted;
        for file in &wanted {
            if let Err(error) = save_one(file, take, host) {
                failed.push(NotTaken {
                    path: file.path.clone(),
                    why: super::in_one_line(&*error),
                });
            }
        }
    }
    failed
}

/// Whether `path` is what `wanted` leads to, or in it.
fn is_of(path: &str, wanted: &str) -> bool {
    let mut names = path.split('/');
    let mut patterns = wanted.split('/');
    patterns.all(|pattern| {
        let name = names.next();
        name.is_some_and(|name| find::matches(pattern.as_bytes(), name.as_bytes()))
    })
}

/// The part of `path`, which is of `wanted`, that it keeps below the directory that it goes to:
/// what is in a directory, or what a pattern stands for. `None` for a file that was named itself.
fn kept_name(path: &str, wanted: &str) -> Option<String> {
    let literal = |name: &&str| !find::is_pattern(name.as_bytes());
    let above = wanted.split('/').take_while(literal).count();
    let kept: Vec<&str> = path.split('/').skip(above).collect();
    (!kept.is_empty()).then(|| kept.join("/"))
}

/// Writes a file to `host`: a directory, or the file's new name.
fn save_one(file: &TakenFile, take: &Take, host: &Path) -> Result<(), CliError> {
    if let Some(name) = kept_name(&file.path, &take.guest) {
        fs::create_dir_all(host)
            .map_err(|error| format!("can't make {}: {error}", host.display()))?;
        return Ok(file.save_below(host, &name)?);
    }
    let ends_like_directory = host.as_os_str().as_encoded_bytes().ends_with(b"/");
    if host.is_dir() || ends_like_directory {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        return Ok(file.save_below(host, name)?);
    }
    let directory = host
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let name = host.file_name().ok_or("there is no name to write to")?;
    let directory = directory.unwrap_or(Path::new("."));
    Ok(file.save_below(directory, &name.to_string_lossy())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Bytes;

    #[test]
    fn puts_and_takes_are_read() {
        let put: Put = "C:/x:y:/guest/a:b".parse().unwrap();
        assert_eq!(
            (put.host, put.guest.as_str()),
            ("C:/x:y".into(), "/guest/a:b")
        );
        for bad in ["", "a", ":/a", "a:b", "a:"] {
            bad.parse::<Put>().unwrap_err();
        }
        let take: Take = "/a/*.o:./out:x".parse().unwrap();
        assert_eq!(
            (take.guest.as_str(), take.host),
            ("/a/*.o", Some("./out:x".into()))
        );
        assert_eq!("/a".parse::<Take>().unwrap().host, None);
        for bad in ["", "a", "a:b", "/a:"] {
            bad.parse::<Take>().unwrap_err();
        }
    }

    #[test]
    fn a_file_is_of_what_leads_to_it() {
        for (path, wanted, kept) in [
            ("/a/b", "/a/b", None),
            ("/a/b/c", "/a/b", Some("c")),
            ("/a/b.o", "/a/*.o", Some("b.o")),
            ("/a/x/y/z", "/a/*/y", Some("x/y/z")),
        ] {
            assert!(is_of(path, wanted), "{path} {wanted}");
            assert_eq!(kept_name(path, wanted).as_deref(), kept, "{path} {wanted}");
        }
        for (path, wanted) in [("/a", "/a/b"), ("/ab", "/a"), ("/a/b.c", "/a/*.o")] {
            assert!(!is_of(path, wanted), "{path} {wanted}");
        }
    }

    #[test]
    fn files_go_where_they_are_to_go() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let file = |path: &str| TakenFile {
            path: path.to_owned(),
            mode: 0o600,
            data: Bytes::from(path),
        };
        let saved = |path: &str, guest: &str, host: PathBuf| {
            let take = Take {
                guest: guest.to_owned(),
                host: Some(host.clone()),
            };
            save_one(&file(path), &take, &host).map_err(|error| error.to_string())
        };
        fs::create_dir(at("d")).unwrap();
        saved("/o/a", "/o/a", at("new")).unwrap();
        saved("/o/a", "/o/a", at("d")).unwrap();
        saved("/o/x/a", "/o", at("tree")).unwrap();
        saved("/o/b.c", "/o/*.c", at("c")).unwrap();
        saved("/o/a", "/o/a", at("none/new")).unwrap_err();
        for (name, content) in [
            ("new", "/o/a"),
            ("d/a", "/o/a"),
            ("tree/x/a", "/o/x/a"),
            ("c/b.c", "/o/b.c"),
        ] {
            assert_eq!(fs::read_to_string(at(name)).unwrap(), content);
        }
    }
}
