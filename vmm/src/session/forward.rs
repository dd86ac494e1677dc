//! What our signals mean to a process in a guest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::console;
use casita_agent::spec::WindowSize;

/// What a session needs of a process beside its streams. None of these wait for the process.
pub trait Target: Send + Sync {
    /// Sends it a signal.
    fn signal(&self, signal: u8);
    /// Tells it the size of its terminal.
    fn resize(&self, size: WindowSize);
    /// Ends it whether it likes it or not, because `signal` said so twice.
    fn kill(&self, signal: u8);
}

/// Forwards signals to a process: those that come before it has started end it before it has
/// begun; of those that ask for the end, the second kills.
pub struct Forwarder {
    target: Arc<dyn Target>,
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    asked: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Forward,
    Kill,
    Resize,
    Ignore,
}

impl State {
    fn action(&mut self, signal: i32, terminal: bool) -> Action {
        match signal {
            libc::SIGWINCH if terminal && self.started => Action::Resize,
            libc::SIGWINCH => Action::Ignore,
            libc::SIGINT | libc::SIGTERM if self.asked || !self.started => Action::Kill,
            libc::SIGHUP | libc::SIGQUIT if !self.started => Action::Kill,
            _ if !self.started => Action::Ignore,
            libc::SIGINT | libc::SIGTERM => {
                self.asked = true;
                Action::Forward
            }
            _ => Action::Forward,
        }
    }
}

impl Forwarder {
    /// For a process that has a terminal, if `terminal` is true, and has not started yet.
    pub fn new(target: Arc<dyn Target>, terminal: bool) -> Self {
        Self {
            target,
            terminal,
            state: Mutex::default(),
        }
    }

    /// The process runs from here on.
    pub fn started(&self) {
        self.state().started = true;
        // It may have changed since the process was asked for.
        if self.terminal {
            self.resize();
        }
    }

    /// To be called with each signal.
    pub fn on_signal(&self, signal: i32) {
        let action = self.state().action(signal, self.terminal);
        let number = u8::try_from(signal).unwrap_or_default();
        match action {
            Action::Forward => self.target.signal(number),
            Action::Kill => self.target.kill(number),
            Action::Resize => self.resize(),
            Action::Ignore => {}
        }
    }

    fn resize(&self) {
        if let Some(size) = console::window_size() {
            self.target.resize(size);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake(Mutex<Vec<String>>);

    impl Target for Fake {
        fn signal(&self, signal: u8) {
            self.0.lock().unwrap().push(format!("signal {signal}"));
        }
        fn resize(&self, _: WindowSize) {
            self.0.lock().unwrap().push("resize".to_owned());
        }
        fn kill(&self, signal: u8) {
            self.0.lock().unwrap().push(format!("kill {signal}"));
        }
    }

    fn told(started: bool, signals: &[i32]) -> Vec<String> {
        let fake = Arc::new(Fake::default());
        let forwarder = Forwarder::new(fake.clone(), false);
        if started {
            forwarder.started();
        }
        for signal in signals {
            forwarder.on_signal(*signal);
        }
        fake.0.lock().unwrap().clone()
    }

    #[test]
    fn the_second_request_to_end_kills() {
        assert_eq!(
            told(true, &[libc::SIGTERM, libc::SIGTERM]),
            ["signal 15", "kill 15"]
        );
        assert_eq!(
            told(true, &[libc::SIGINT, libc::SIGTERM]),
            ["signal 2", "kill 15"]
        );
    }

    #[test]
    fn other_signals_reach_the_process_however_often_they_come() {
        let signals = [libc::SIGUSR1, libc::SIGHUP, libc::SIGHUP, libc::SIGQUIT];
        assert_eq!(
            told(true, &signals),
            ["signal 10", "signal 1", "signal 1", "signal 3"]
        );
    }

    #[test]
    fn before_the_start_only_the_end_can_be_asked_for() {
        assert_eq!(told(false, &[libc::SIGUSR1, libc::SIGWINCH]), [""; 0]);
        assert_eq!(told(false, &[libc::SIGTERM]), ["kill 15"]);
        assert_eq!(told(false, &[libc::SIGHUP]), ["kill 1"]);
    }

    #[test]
    fn without_a_terminal_its_size_does_not_matter() {
        assert_eq!(told(true, &[libc::SIGWINCH]), [""; 0]);
    }
}
