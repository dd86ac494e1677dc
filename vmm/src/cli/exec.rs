//! `casita exec`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use casita_agent::spec::WindowSize;
use casita_agent::wire::Exit;
use clap::Args;

use super::process_args::ProcessArgs;
use super::{CliError, report_line};
use crate::console::RawTerminal;
use crate::control::protocol::{ProcessRequest, ProgramRequest, Streams};
use crate::control::{Client, ClientError, Exec, ExecControl, ExecError};
use crate::dirs::Dirs;
use crate::process_config::{Attach, Ends, Signal};
use crate::session::{Forwarder, OnHangUp, OwnStreams, Session, Target};
use crate::signals::Signals;
use crate::vms::Registry;

/// Options of `casita exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is not said is as for the VM's own command: variables, working directory, user. The exit status \
is the command's; 128+n if signal n ended it, 126 if it could not be run, 127 if it was not found, \
125 if casita itself failed. SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 reach the command; \
a second SIGTERM or SIGINT kills it. Ctrl-] at its terminal leaves it, and hangs that terminal up.

Examples:
  casita exec db psql -c 'select 1'
  casita exec db sh                            a shell, at a terminal
  casita exec db tar -c /data > data.tar")]
pub struct ExecArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// Start the command and leave it, without its streams
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Name of the VM, or the beginning of its ID
    #[arg(value_name = "VM")]
    vm: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The folder of the control socket of the VM that `text` means.
fn control_dir(text: &str, dirs: &Dirs) -> Result<PathBuf, CliError> {
    Ok(Registry::open(dirs)?.find(text)?.runtime_dir())
}

fn connect(args: &ExecArgs) -> Result<Client, CliError> {
    let dir = control_dir(&args.vm, &Dirs::from_env()?)?;
    Client::connect(&dir).map_err(|error| match error {
        ClientError::NotRunning => {
            format!("VM {} is not running: casita start {0}", args.vm).into()
        }
        other => other.into(),
    })
}

impl ExecArgs {
    fn request(&self, size: Option<WindowSize>) -> Result<ProcessRequest, CliError> {
        // `exec VM -- COMMAND` as in `run`.
        let command = match self.command.split_first() {
            Some((first, rest)) if first == "--" => rest,
            _ => &self.command,
        };
        let mut env = self.process.variables()?;
        let says = env.iter().any(|variable| variable.starts_with("TERM="));
        if let (Some(_), false, Ok(term)) = (size, says, std::env::var("TERM")) {
            env.push(format!("TERM={term}"));
        }
        let request = ProcessRequest {
            program: ProgramRequest::Command(command.to_vec()),
            env,
            workdir: self.process.workdir.clone(),
            user: self.process.user.clone(),
            terminal: size,
            limits: Vec::new(),
        };
        request.check()?;
        Ok(request)
    }
}

/// Runs a command in a VM that runs, and waits for its end.
///
/// # Errors
/// If the VM can't be reached.
pub fn exec(args: &ExecArgs) -> Result<ExitCode, CliError> {
    let signals = Signals::take_all()?;
    if args.detach {
        return exec_detached(args);
    }
    let ends = Ends::of_this_process();
    let attach = Attach::new(args.process.interactive, args.process.tty, ends)?;
    let request = args.request(attach.size())?;
    let client = connect(args)?;
    let streams = Streams {
        stdin: attach.stdin,
        stdout: true,
        stderr: true,
    };
    let started = {
        // Until the command runs, a signal ends this client as it would any program.
        let _early = signals.watch(|signal| {
            if crate::signals::ENDING.contains(&signal) {
                std::process::exit(128 + signal);
            }
        })?;
        match client.exec(request, streams) {
            Ok(started) => started,
            Err(error) => return refused(error),
        }
    };
    attached(started, attach, &signals)
}

fn exec_detached(args: &ExecArgs) -> Result<ExitCode, CliError> {
    let request = args.request(None)?;
    let none = Streams {
        stdin: false,
        stdout: false,
        stderr: false,
    };
    match connect(args)?.exec(request, none) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) => refused(error),
    }
}

fn refused(error: ExecError) -> Result<ExitCode, CliError> {
    match error {
        ExecError::Failed { status, message } => {
            report_line(&message);
            Ok(status.into())
        }
        ExecError::Client(error) => Err(error.into()),
    }
}

/// How it ends for this client.
enum End {
    Exited(Exit),
    VmGone(ClientError),
    /// The user left by the hang-up key.
    Left,
    /// By this signal, which came twice.
    Killed(u8),
}

/// The process, for our signals.
struct Remote {
    control: Arc<ExecControl>,
    ends: Sender<End>,
}

impl Target for Remote {
    fn signal(&self, signal: u8) {
        // A VM that is gone is told of by `wait`.
        let _ = self.control.signal(signal);
    }

    fn resize(&self, size: WindowSize) {
        let _ = self.control.resize(size);
    }

    fn kill(&self, signal: u8) {
        self.signal(Signal::KILL.number());
        let _ = self.ends.send(End::Killed(signal));
    }
}

fn attached(started: Exec, attach: Attach, signals: &Signals) -> Result<ExitCode, CliError> {
    let (sender, ends) = channel();
    let control = Arc::new(started.control);
    let remote = Remote {
        control: control.clone(),
        ends: sender.clone(),
    };
    let forwarder = Arc::new(Forwarder::new(Arc::new(remote), attach.terminal));
    let raw = attach.is_raw().then(RawTerminal::enter).transpose()?;
    forwarder.started();
    let watched = signals.watch(move |signal| forwarder.on_signal(signal))?;
    let left = sender.clone();
    let on_hang_up: OnHangUp = Box::new(move || drop(left.send(End::Left)));
    let on_hang_up = attach.is_raw().then_some(on_hang_up);
    let own = OwnStreams::of_this_process()?;
    let session = Session::start(started.streams, own, on_hang_up)?;
    spawn_waiter(control, session, sender)?;
    let end = ends.recv();
    drop((raw, watched));
    match end.map_err(|_| "the command's end was not told")? {
        End::Exited(exit) => Ok(exit.status().into()),
        End::Killed(signal) => Ok((128 | signal).into()),
        End::Left => Ok(ExitCode::SUCCESS),
        End::VmGone(error) => Err(error.into()),
    }
}

/// Waits for the command's end, and then until its output is written. The input is read until then.
fn spawn_waiter(
    control: Arc<ExecControl>,
    mut session: Session,
    ends: Sender<End>,
) -> std::io::Result<()> {
    let waiter = thread::Builder::new().name("exit".into());
    waiter.spawn(move || {
        let end = control.wait().map_or_else(End::VmGone, End::Exited);
        session.drain();
        drop(session);
        // Nobody listens any more if the user has left.
        let _ = ends.send(end);
    })?;
    Ok(())
}
