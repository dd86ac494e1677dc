//! What a running VM is to those who want something of it: signals, the control socket, the clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use casita_agent::spec::WindowSize;
use casita_agent::wire::{Exit, ProcessInfo, ProcessSpec};

use crate::config::MachineConfig;
use crate::console::RawTerminal;
use crate::control::protocol::{ProcessRequest, Streams, VmStats};
use crate::control::{ControlTarget, ExecProcess, Refusal, StartedProcess};
use crate::link::{AgentLink, ExitWaiter, StartError};
use crate::machine::{Answer, Command, Ended, Event, EventSender};
use crate::process_config::{Signal, overlay_env};
use crate::session::{ProcessStreams, Target};
use crate::vms::{News, Teller};

/// How long a guest may take to be prepared before a client's process is refused.
const PATIENCE_READY: Duration = Duration::from_secs(30);
/// How long a guest may take to tell of its processes.
const PATIENCE_LIST: Duration = Duration::from_secs(5);
/// How long a process that was killed may take to be gone, with its guest.
const PATIENCE_KILLED: Duration = Duration::from_secs(3);

const NOT_ENDED: &str = "the VM did not end";

/// How far the main process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has not been started.
    Starting,
    /// It runs, and this is the agent's number for it.
    Running(u32),
    /// It has ended, and the guest is about to.
    Ending,
    /// The guest has ended.
    Ended,
}

/// One VM, shared by all threads that have to do with it.
pub(super) struct Hub {
    events: EventSender,
    /// None for a plain boot.
    link: Option<AgentLink>,
    config: MachineConfig,
    teller: Option<Teller>,
    state: Mutex<State>,
    changed: Condvar,
    /// The end of the agent's connection is what is expected next.
    ending: Arc<AtomicBool>,
    paused: AtomicBool,
    /// Held while that changes.
    turning: Mutex<()>,
    timed_out: AtomicBool,
    /// The user's terminal while it is raw.
    terminal: Mutex<Option<RawTerminal>>,
}

struct State {
    phase: Phase,
    /// The output need not be written to its end.
    abandoned: bool,
    /// The main process's thread has done its work.
    finished: bool,
}

impl Hub {
    pub(super) fn new(
        events: EventSender,
        link: Option<AgentLink>,
        config: &MachineConfig,
        ending: Arc<AtomicBool>,
        teller: Option<Teller>,
    ) -> Arc<Self> {
        Arc::new(Self {
            events,
            link,
            config: config.clone(),
            teller,
            ending,
            state: Mutex::new(State {
                phase: Phase::Starting,
                abandoned: false,
                finished: false,
            }),
            changed: Condvar::new(),
            paused: AtomicBool::new(false),
            turning: Mutex::new(()),
            timed_out: AtomicBool::new(false),
            terminal: Mutex::new(None),
        })
    }

    pub(super) fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn enter(&self, phase: Phase) {
        self.change(|state| {
            if state.phase != Phase::Ended {
                state.phase = phase;
            }
        });
    }

    pub(super) fn main_process_runs(&self, id: u32) {
        self.enter(Phase::Running(id));
    }

    pub(super) fn main_process_ended(&self) {
        self.ending.store(true, Ordering::Release);
        self.enter(Phase::Ending);
    }

    pub(super) fn machine_ended(&self) {
        self.ending.store(true, Ordering::Release);
        self.enter(Phase::Ended);
    }

    fn is_ending(&self) -> bool {
        matches!(self.state().phase, Phase::Ending | Phase::Ended)
    }

    pub(super) fn is_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    /// The main process's thread is done.
    pub(super) fn finished(&self) {
        self.change(|state| state.finished = true);
    }

    /// Waits until the main process's output is written, for at most `patience`, or until somebody
    /// says that it is enough.
    pub(super) fn wait_finished(&self, patience: Option<Duration>) -> bool {
        let state = self.state();
        let goes_on = |state: &mut State| !state.finished && !state.abandoned;
        let state = match patience {
            None => self.changed.wait_while(state, goes_on).map_err(drop),
            Some(patience) => self
                .changed
                .wait_timeout_while(state, patience, goes_on)
                .map(|(state, _)| state)
                .map_err(drop),
        };
        state.is_ok_and(|state| state.finished)
    }

    fn wait_ended(&self, patience: Duration) -> bool {
        let goes_on = |state: &mut State| state.phase != Phase::Ended;
        let waited = self
            .changed
            .wait_timeout_while(self.state(), patience, goes_on);
        waited.is_ok_and(|(state, _)| state.phase == Phase::Ended)
    }

    pub(super) fn keep_terminal(&self, terminal: RawTerminal) {
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = Some(terminal);
    }

    /// The user gets the terminal back.
    pub(super) fn restore_terminal(&self) {
        drop(
            self.terminal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Asks the main process to end and ends the VM if it does not; returns whether it has ended.
    fn end(&self, timeout: Duration) -> bool {
        self.resume_if_paused();
        let deadline = Instant::now().checked_add(timeout);
        if let Ok(()) = self.to_main_process(self.config.stop_signal()) {
            let left =
                deadline.map_or(timeout, |end| end.saturating_duration_since(Instant::now()));
            if self.wait_ended(left) {
                return true;
            }
        }
        self.end_unasked()
    }

    /// Ends the VM without a word to its main process, which is killed in the guest: what has been
    /// written is still brought to the disks, as it is when a container is killed. A guest that
    /// does not end of that is ended from outside. Returns whether it has ended.
    fn end_unasked(&self) -> bool {
        let killed = self.to_main_process(Signal::KILL);
        // Only now: what is paused does nothing more before it dies.
        self.resume_if_paused();
        if (killed.is_ok() || self.is_ending()) && self.wait_ended(PATIENCE_KILLED) {
            return true;
        }
        // An error says that it has ended already.
        let _ = self.events.command(Command::Kill);
        self.wait_ended(PATIENCE_KILLED)
    }

    /// Ends the VM at `deadline`, if it still runs then.
    pub(super) fn watch_clock(&self, timeout: Duration) {
        if !self.wait_ended(timeout) {
            self.timed_out.store(true, Ordering::Release);
            self.end(self.config.stop_timeout().duration());
        }
    }

    fn resume_if_paused(&self) {
        // An error says that it has ended.
        if let Some(Ok(answer)) = self.turn(false, Command::Resume) {
            let _ = answer.recv();
            self.tell_paused();
        }
    }

    /// Begins to pause or to resume; None if it is so already. The machine hears what two clients
    /// want in the order in which it is noted here, whoever is answered first.
    fn turn(&self, paused: bool, command: Command) -> Option<Result<Receiver<Answer>, Ended>> {
        let _turn = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        if self.paused.swap(paused, Ordering::AcqRel) == paused {
            return None;
        }
        Some(self.events.begin(command))
    }

    /// Tells whether it is paused now, whoever has changed that last.
    fn tell_paused(&self) {
        let told = self.teller.as_ref().map(|teller| {
            teller.tell(if self.paused.load(Ordering::Acquire) {
                News::Paused
            } else {
                News::Resumed
            })
        });
        if let Some(Err(error)) = told {
            log::warn!("{error}");
        }
    }

    fn to_main_process(&self, signal: Signal) -> Result<(), Refusal> {
        let link = self.agent()?;
        let phase = self.state().phase;
        match phase {
            Phase::Running(id) => link
                .signal(id, signal.number())
                .map_err(|error| Refusal::new(error.to_string())),
            Phase::Starting => Err(Refusal::new("the VM's command has not started yet")),
            Phase::Ending | Phase::Ended => Err(Refusal::new("the VM is ending")),
        }
    }

    fn agent(&self) -> Result<&AgentLink, Refusal> {
        self.link.as_ref().ok_or_else(|| {
            Refusal::new("the VM was booted with --boot plain: there is no agent in it")
        })
    }

    /// What `request` means in this VM.
    fn process(&self, request: ProcessRequest) -> ProcessSpec {
        let config = &self.config;
        let env = overlay_env(&config.env, &request.env);
        let limits = match request.limits {
            limits if limits.is_empty() => config.limits(),
            limits => limits,
        };
        let workdir = request.workdir.or_else(|| config.workdir.clone());
        let user = request.user.or_else(|| config.user.clone());
        ProcessSpec {
            program: request.program.into(),
            env: env.into_iter().map(String::into_bytes).collect(),
            workdir: workdir.unwrap_or_default().into_bytes(),
            user: user.unwrap_or_default(),
            terminal: request.terminal,
            limits,
            group: None,
        }
    }
}

/// The main process, for our own signals.
impl Target for Hub {
    fn signal(&self, signal: u8) {
        if let (Some(link), Phase::Running(id)) = (&self.link, self.state().phase)
            && let Err(error) = link.signal(id, signal)
        {
            log::warn!("signal {signal} did not reach the command: {error}");
        }
    }

    fn resize(&self, size: WindowSize) {
        if let (Some(link), Phase::Running(id)) = (&self.link, self.state().phase) {
            // A guest that is gone has no terminal.
            let _ = link.resize(id, size);
        }
    }

    fn kill(&self, signal: u8) {
        self.events.send(Event::Signal(i32::from(signal)));
        self.change(|state| state.abandoned = true);
    }
}

impl ControlTarget for Hub {
    fn exec(&self, request: ProcessRequest, streams: Streams) -> Result<StartedProcess, Refusal> {
        let link = self.agent()?;
        if self.paused.load(Ordering::Acquire) {
            return Err(Refusal::new("the VM is paused: casita resume it first"));
        }
        if self.is_ending() {
            return Err(Refusal::new("the VM is ending"));
        }
        link.wait_ready(Some(PATIENCE_READY))
            .map_err(|error| Refusal::new(error.to_string()))?;
        let process = link
            .start(self.process(request), streams)
            .map_err(refusal)?;
        Ok(StartedProcess {
            pid: process.pid,
            streams: ProcessStreams {
                stdin: process.stdin,
                stdout: process.stdout,
                stderr: process.stderr,
            },
            process: Arc::new(Exec {
                link: link.clone(),
                id: process.id,
                exit: Mutex::new(Some(process.exit)),
            }),
        })
    }

    fn signal(&self, signal: u8) -> Result<(), Refusal> {
        let signal: Signal = signal.to_string().parse().map_err(Refusal::new)?;
        match signal {
            Signal::KILL if self.end_unasked() => Ok(()),
            Signal::KILL => Err(Refusal::new(NOT_ENDED)),
            signal => self.to_main_process(signal),
        }
    }

    fn stop(&self, timeout: Duration) -> Result<(), Refusal> {
        if self.end(timeout) {
            return Ok(());
        }
        Err(Refusal::new(NOT_ENDED))
    }

    fn pause(&self) -> Result<(), Refusal> {
        let Some(answer) = self.turn(true, Command::Pause) else {
            return Err(Refusal::new("the VM is paused already"));
        };
        let answer = answer.map_err(|ended| Refusal::new(ended.to_string()))?;
        if answer.recv().is_err() {
            return Err(Refusal::new(
                "the VM was resumed before it stood, or has ended",
            ));
        }
        self.tell_paused();
        Ok(())
    }

    fn resume(&self) -> Result<(), Refusal> {
        let Some(answer) = self.turn(false, Command::Resume) else {
            return Err(Refusal::new("the VM is not paused"));
        };
        let resumed = answer.and_then(|answer| answer.recv().map_err(|_| Ended));
        self.tell_paused();
        resumed
            .map(drop)
            .map_err(|ended| Refusal::new(ended.to_string()))
    }

    fn stats(&self) -> Result<VmStats, Refusal> {
        match self.events.command(Command::Stats) {
            Ok(Answer::Stats(stats)) => Ok(*stats),
            Ok(_) => Err(Refusal::new("the VM did not tell")),
            Err(ended) => Err(Refusal::new(ended.to_string())),
        }
    }

    fn processes(&self) -> Result<Vec<ProcessInfo>, Refusal> {
        if self.paused.load(Ordering::Acquire) {
            return Err(Refusal::new("the VM is paused: casita resume it first"));
        }
        let listed = self.agent()?.processes(PATIENCE_LIST);
        listed.map_err(|error| Refusal::new(error.to_string()))
    }
}

fn refusal(error: StartError) -> Refusal {
    match error {
        StartError::Refused { status, message } => Refusal { status, message },
        other => Refusal::new(other.to_string()),
    }
}

/// A process that a client has started.
struct Exec {
    link: AgentLink,
    id: u32,
    exit: Mutex<Option<ExitWaiter>>,
}

impl Target for Exec {
    fn signal(&self, signal: u8) {
        // A process that has ended needs no signal; nor has one that is gone with its guest.
        let _ = self.link.signal(self.id, signal);
    }

    fn resize(&self, size: WindowSize) {
        let _ = self.link.resize(self.id, size);
    }

    fn kill(&self, _: u8) {
        self.signal(Signal::KILL.number());
    }
}

impl ExecProcess for Exec {
    fn wait(&self) -> Option<Exit> {
        let exit = self
            .exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        exit.and_then(|exit| exit.wait().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::events;

    #[test]
    fn a_machine_hears_of_pauses_in_the_order_in_which_they_are_noted() {
        let (sender, receiver) = events();
        let hub = Hub::new(
            sender,
            None,
            &MachineConfig::default(),
            Arc::default(),
            None,
        );
        let machine = std::thread::spawn(move || {
            let (mut paused, mut waiting) = (false, None);
            while let Ok(Event::Command(command, reply)) = receiver.recv() {
                match command {
                    Command::Kill => return paused,
                    // Answered late, as vCPUs stop when they come to it, or never.
                    Command::Pause => (paused, waiting) = (true, Some(reply)),
                    _ => {
                        (paused, waiting) = (false, None);
                        reply.answer(Answer::Done);
                    }
                }
            }
            drop(waiting);
            paused
        });
        for _ in 0..200 {
            std::thread::scope(|scope| {
                // It is answered when somebody resumes, whoever comes first.
                scope.spawn(|| assert!(hub.pause().is_err()));
                while hub.resume().is_err() {
                    std::thread::yield_now();
                }
            });
            assert!(!hub.paused.load(Ordering::Acquire));
        }
        let _ = hub.events.command(Command::Kill);
        assert!(
            !machine.join().unwrap(),
            "the machine stands, and is noted to run"
        );
    }
}
