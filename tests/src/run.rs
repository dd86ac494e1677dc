//! A running program: what it writes is collected while it runs, and no wait for it is without end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::machine;

/// How long a test waits for anything: `$CASITA_TEST_PATIENCE` seconds, or two minutes. Nothing
/// takes so long unless it hangs.
pub fn patience() -> Duration {
    let seconds = std::env::var("CASITA_TEST_PATIENCE").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(120))
}

/// A program that has not been started yet.
pub struct Program {
    words: Vec<String>,
    env: BTreeMap<String, OsString>,
    folder: Option<PathBuf>,
}

impl Program {
    /// Any program.
    pub fn new<I: IntoIterator<Item: Into<String>>>(words: I) -> Self {
        Self {
            words: words.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            folder: None,
        }
    }

    /// The `casita` under test.
    pub(crate) fn casita(arguments: Vec<String>) -> Self {
        let mut words = vec![machine::casita().display().to_string()];
        words.extend(arguments);
        Self::new(words)
            .env("XDG_CACHE_HOME", machine::cache_home())
            .env("CASITA_KERNEL", machine::default_kernel())
            .env("LC_ALL", "C")
    }

    /// The same with another program.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        if let Some(word) = self.words.first_mut() {
            *word = path.display().to_string();
        }
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// The same started by another program, such as `setpriv`, whose arguments end with it.
    #[must_use]
    pub fn under(mut self, words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_owned());
        self.words.splice(0..0, words);
        self
    }

    /// As the standard library has it, with nothing said about its standard streams.
    ///
    /// # Errors
    /// If it has no name.
    pub fn command(&self) -> Result<Command> {
        let (name, arguments) = self
            .words
            .split_first()
            .context("a program without a name")?;
        let mut command = Command::new(name);
        command.args(arguments).envs(&self.env);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        Ok(command)
    }

    /// Starts it with nothing to read.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(&self) -> Result<Running> {
        self.start_with(Stdio::null())
    }

    /// Starts it with a pipe to read from.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_piped(&self) -> Result<Running> {
        self.start_with(Stdio::piped())
    }

    fn start_with(&self, stdin: Stdio) -> Result<Running> {
        let mut command = self.command()?;
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {:?}", self.words))?;
        let said = Arc::new(Said::default());
        if let Some(stdout) = child.stdout.take() {
            said.collect(Stream::Stdout, stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            said.collect(Stream::Stderr, stderr);
        }
        Ok(Running {
            what: self.words.join(" "),
            stdin: child.stdin.take(),
            child,
            said,
        })
    }

    /// Runs it to its end with nothing to read.
    ///
    /// # Errors
    /// If it can't be started or does not end.
    pub fn finish(&self) -> Result<Finished> {
        self.start()?.finish()
    }

    /// Runs it to its end with `input` to read.
    ///
    /// # Errors
    /// If it can't be started or does not end.
    pub fn finish_with(&self, input: &[u8]) -> Result<Finished> {
        let mut running = self.start_piped()?;
        let stdin = running.stdin.take();
        thread::scope(|scope| {
            // A program that does not read all of it is for its test to judge.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            running.finish()
        })
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// What a program has written so far.
#[derive(Default)]
pub(crate) struct Said {
    state: Mutex<SaidState>,
    more: Condvar,
}

#[derive(Default)]
struct SaidState {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    open: usize,
}

impl Said {
    fn state(&self) -> MutexGuard<'_, SaidState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from `source` on a thread until its end.
    fn collect(self: &Arc<Self>, stream: Stream, mut source: impl Read + Send + 'static) {
        self.state().open += 1;
        let said = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                // The master of a terminal that nobody holds any more answers EIO.
                let count = match source.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    result => result.unwrap_or(0),
                };
                let mut state = said.state();
                match stream {
                    Stream::Stdout => state.stdout.extend_from_slice(&buffer[..count]),
                    Stream::Stderr => state.stderr.extend_from_slice(&buffer[..count]),
                }
                state.open -= usize::from(count == 0);
                said.more.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
    }

    /// Collects from the master of a terminal, whose two streams are one.
    pub(crate) fn of_terminal(source: impl Read + Send + 'static) -> Arc<Self> {
        let said = Arc::new(Self::default());
        said.collect(Stream::Stdout, source);
        said
    }

    /// Waits until standard output, from the byte `from` on, has `text`; returns where it ends. Patience
    /// begins again with each byte that comes.
    pub(crate) fn wait_for(&self, text: &str, from: usize) -> Result<usize> {
        let mut state = self.state();
        let (mut start, mut len) = (Instant::now(), state.stdout.len());
        loop {
            if state.stdout.len() > len {
                (start, len) = (Instant::now(), state.stdout.len());
            }
            let new = state.stdout.get(from..).unwrap_or_default();
            if let Some(at) = find(new, text.as_bytes()) {
                return Ok(from + at + text.len());
            }
            let left = patience().saturating_sub(start.elapsed());
            if left.is_zero() || state.open == 0 {
                let why = if left.is_zero() {
                    "in time"
                } else {
                    "before its end"
                };
                bail!(
                    "{text:?} was not written {why}\n{}",
                    transcript(&state.stdout, &state.stderr)
                );
            }
            state = self
                .more
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until all streams have ended; returns what they brought.
    fn wait_for_end(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let (mut state, timeout) = self
            .more
            .wait_timeout_while(self.state(), patience(), |state| state.open > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            bail!(
                "its output has no end\n{}",
                transcript(&state.stdout, &state.stderr)
            );
        }
        Ok((
            std::mem::take(&mut state.stdout),
            std::mem::take(&mut state.stderr),
        ))
    }

    pub(crate) fn transcript(&self) -> String {
        let state = self.state();
        transcript(&state.stdout, &state.stderr)
    }
}

/// Where `wanted` first is in `bytes`.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

/// The ends of both streams, for a message.
fn transcript(stdout: &[u8], stderr: &[u8]) -> String {
    const MOST: usize = 4000;
    let end = |bytes: &[u8]| {
        let from = bytes.len().saturating_sub(MOST);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    };
    format!(
        "--- stdout:\n{}\n--- stderr:\n{}\n---",
        end(stdout),
        end(stderr)
    )
}

/// A program that runs. It is killed if it is dropped before its end.
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    said: Arc<Said>,
}

impl Running {
    /// Waits until it has written `text` to its standard output.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.said
            .wait_for(text, 0)
            .with_context(|| self.what.clone())?;
        Ok(())
    }

    /// Waits until it has written `text` so many times.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for_times(&self, text: &str, times: usize) -> Result<()> {
        let mut from = 0;
        for _ in 0..times {
            from = self
                .said
                .wait_for(text, from)
                .with_context(|| self.what.clone())?;
        }
        Ok(())
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// If it has none, or does not take it.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("its standard input is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends its standard input and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn finish(mut self) -> Result<Finished> {
        drop(self.stdin.take());
        let status = wait(&mut self.child)
            .with_context(|| format!("{}\n{}", self.what, self.said.transcript()))?;
        let (stdout, stderr) = self.said.wait_for_end()?;
        Ok(Finished {
            what: std::mem::take(&mut self.what),
            status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process, not for ever.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let fd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: patience().as_secs().try_into()?,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => bail!("it did not end within {} s", patience().as_secs()),
            Ok(_) => return Ok(child.wait()?),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A program that has ended.
pub struct Finished {
    what: String,
    /// How.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote for people.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Checks how it ended.
    ///
    /// # Errors
    /// If it was otherwise, with what it wrote.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.status.code() == Some(code),
            "exit status {code} was expected\n{self}"
        );
        Ok(self)
    }

    /// Checks that a signal ended it.
    ///
    /// # Errors
    /// If none did.
    pub fn expect_killed(self) -> Result<Self> {
        ensure!(
            self.status.signal().is_some(),
            "an end by a signal was expected\n{self}"
        );
        Ok(self)
    }

    /// Checks that its standard output has each of `texts`.
    ///
    /// # Errors
    /// If one is missing.
    pub fn says(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(
                find(&self.stdout, text.as_bytes()).is_some(),
                "{text:?} was expected in its output\n{self}"
            );
        }
        Ok(self)
    }

    /// Its standard output; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error, likewise.
    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = transcript(&self.stdout, &self.stderr);
        write!(f, "{}: {}\n{said}", self.what, self.status)
    }
}
