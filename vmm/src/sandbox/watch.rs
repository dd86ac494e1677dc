//! Limits of a run, watched by the host's clocks: a thread sleeps until the next moment at which one
//! could be met, and ends the VM when one is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use casita_agent::wire::{GroupLimit, GroupUsage};

use super::result::{GuestUsage, Limit, Usage};
use super::{Limits, vm};
use crate::link::LinkEvent;
use crate::machine::{Answer, Command, EventSender};

/// Looks at the CPU's clocks are not closer together than this.
const PAUSE: Duration = Duration::from_millis(1);

/// What a run is at.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The guest boots and gets its files.
    Preparing,
    /// The command runs.
    Running,
    /// Files are taken out.
    Taking,
    /// Nothing more is to come.
    Over,
}

/// The limits and what is known of their use; shared by all threads of a run.
pub(super) struct Watch {
    limits: Limits,
    cpus: u32,
    events: EventSender,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// When it has to be over.
    until: Instant,
    /// When the command started, and what CPU time there had been.
    since: Option<(Instant, Duration)>,
    /// The limit that has ended the run.
    limit: Option<Limit>,
    /// Something else took too long.
    is_late: bool,
    wall: Duration,
    cpu: Duration,
    guest: Option<GroupUsage>,
}

impl Watch {
    /// Begins, with the preparation of a machine that is told of through `events`.
    pub(super) fn new(limits: Limits, cpus: u8, events: EventSender) -> Arc<Self> {
        Arc::new(Self {
            limits,
            cpus: u32::from(cpus),
            events,
            state: Mutex::new(State {
                phase: Phase::Preparing,
                until: Instant::now() + vm::PATIENCE_PREPARE,
                since: None,
                limit: None,
                is_late: false,
                wall: Duration::ZERO,
                cpu: Duration::ZERO,
                guest: None,
            }),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// The command is about to start: its time begins.
    pub(super) fn command_starts(&self) {
        let cpu = self.cpu_time().unwrap_or_default();
        let now = Instant::now();
        self.change(|state| {
            state.phase = Phase::Running;
            state.since = Some((now, cpu));
            state.until = now + self.limits.time;
        });
    }

    /// The command has ended: its time is over, and files may be taken. Whether they may: not if a
    /// limit was met before.
    pub(super) fn command_ended(&self) -> bool {
        let cpu = self.cpu_time();
        let mut goes_on = false;
        self.change(|state| {
            state.count(cpu);
            if state.limit.is_none() && state.cpu >= self.limits.cpu_time {
                state.limit = Some(Limit::CpuTime);
            }
            state.phase = Phase::Taking;
            state.until = Instant::now() + vm::PATIENCE_TAKE;
            goes_on = state.limit.is_none();
        });
        goes_on
    }

    /// Nothing more is to be watched.
    pub(super) fn over(&self) {
        self.change(|state| state.phase = Phase::Over);
    }

    /// A limit is met. Only the first counts, and only while the command runs.
    pub(super) fn exceed(&self, limit: Limit) {
        self.change(|state| {
            if let Phase::Running = state.phase {
                state.limit.get_or_insert(limit);
            }
        });
    }

    /// The guest's agent tells of the command.
    pub(super) fn on_link(&self, event: LinkEvent) {
        match event {
            LinkEvent::Exceeded(GroupLimit::Memory) => self.exceed(Limit::Memory),
            LinkEvent::Exceeded(GroupLimit::Processes) => self.exceed(Limit::Processes),
            LinkEvent::Exceeded(GroupLimit::Disk) => self.exceed(Limit::Disk),
            LinkEvent::Used(usage) => self.change(|state| state.guest = Some(usage)),
            LinkEvent::Ready | LinkEvent::Gone => {}
        }
    }

    /// The limit that ended the run.
    pub(super) fn limit(&self) -> Option<Limit> {
        self.state().limit
    }

    /// Whether the VM was ended because something else than the command took too long.
    pub(super) fn is_late(&self) -> bool {
        self.state().is_late
    }

    /// Whether the command was started.
    pub(super) fn is_started(&self) -> bool {
        self.state().since.is_some()
    }

    /// How long after `began` the command was started.
    pub(super) fn start_ms(&self, began: Instant) -> Option<u64> {
        let (since, _) = self.state().since?;
        Some(ms(since.saturating_duration_since(began)))
    }

    /// What the command used.
    pub(super) fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            wall_ms: ms(state.wall),
            cpu_ms: ms(state.cpu),
            guest: state.guest.map(|usage| GuestUsage {
                user_ms: usage.user_us / 1000,
                system_ms: usage.system_us / 1000,
                memory_peak_bytes: usage.memory_peak,
                processes_peak: usage.processes_peak,
                disk_bytes: usage.disk,
            }),
            ..Usage::default()
        }
    }

    /// Watches until all is over or the VM has been ended.
    pub(super) fn run(&self) {
        loop {
            let cpu = self.cpu_time();
            let mut state = self.state();
            if let Phase::Over = state.phase {
                return;
            }
            let pause = self.look(&mut state, cpu);
            if state.limit.is_some() || state.is_late {
                break;
            }
            // A new phase or a limit that somebody has met ends it early.
            drop(self.changed.wait_timeout(state, pause));
        }
        // An error says that it has ended.
        let _ = self.events.command(Command::Kill);
    }

    /// Sees whether a limit is met; how long none will be.
    fn look(&self, state: &mut State, cpu: Option<Duration>) -> Duration {
        let left = state.until.saturating_duration_since(Instant::now());
        let Phase::Running = state.phase else {
            state.is_late |= left.is_zero();
            return left;
        };
        state.count(cpu);
        if state.limit.is_some() {
            return Duration::ZERO;
        }
        let cpu_left = self.limits.cpu_time.saturating_sub(state.cpu);
        if cpu_left.is_zero() {
            state.limit = Some(Limit::CpuTime);
        } else if left.is_zero() {
            state.limit = Some(Limit::Time);
        }
        left.min((cpu_left / self.cpus).max(PAUSE))
    }

    /// CPU time of the VM's processors; `None` if it has ended.
    fn cpu_time(&self) -> Option<Duration> {
        match self.events.command(Command::CpuTime) {
            Ok(Answer::CpuTime(time)) => Some(time),
            _ => None,
        }
    }
}

impl State {
    /// Notes what the command has used until now.
    fn count(&mut self, cpu: Option<Duration>) {
        if let (Phase::Running, Some((since, before))) = (self.phase, self.since) {
            self.wall = since.elapsed();
            self.cpu = cpu.map_or(self.cpu, |cpu| cpu.saturating_sub(before));
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Event, events};
    use std::sync::mpsc::Receiver;
    use std::thread;

    /// A machine whose CPU time goes on by `step` with each look, until it is ended; how often it
    /// was looked at.
    fn machine(receiver: Receiver<Event>, step: Duration) -> thread::JoinHandle<u32> {
        thread::spawn(move || {
            let mut looks = 0;
            while let Ok(Event::Command(command, reply)) = receiver.recv() {
                match command {
                    Command::Kill => {
                        reply.answer(Answer::Done);
                        break;
                    }
                    Command::CpuTime => {
                        reply.answer(Answer::CpuTime(step * looks));
                        looks += 1;
                    }
                    _ => panic!("{command:?}"),
                }
            }
            looks
        })
    }

    fn watched(limits: Limits, step: Duration, then: impl FnOnce(&Watch)) -> Arc<Watch> {
        let (sender, receiver) = events();
        let machine = machine(receiver, step);
        let watch = Watch::new(limits, 1, sender);
        watch.command_starts();
        let watcher = watch.clone();
        let watcher = thread::spawn(move || watcher.run());
        then(&watch);
        watcher.join().unwrap();
        drop(machine);
        watch
    }

    const LONG: Duration = Duration::from_hours(1);

    #[test]
    fn the_time_is_over_when_it_is() {
        let limits = Limits {
            time: Duration::from_millis(20),
            cpu_time: LONG,
            ..Limits::default()
        };
        let watch = watched(limits, Duration::ZERO, |_| {});
        assert_eq!(watch.limit(), Some(Limit::Time));
        assert!(watch.usage().wall_ms >= 20);
    }

    #[test]
    fn cpu_time_counts_from_the_commands_start() {
        let limits = Limits {
            time: LONG,
            cpu_time: Duration::from_millis(10),
            ..Limits::default()
        };
        let watch = watched(limits, Duration::from_millis(5), |_| {});
        assert_eq!(watch.limit(), Some(Limit::CpuTime));
        assert_eq!(watch.usage().cpu_ms, 10);
    }

    #[test]
    fn the_first_limit_counts_and_the_guest_can_name_it() {
        let limits = Limits {
            time: LONG,
            cpu_time: LONG,
            ..Limits::default()
        };
        let usage = GroupUsage {
            memory_peak: 7,
            ..GroupUsage::default()
        };
        let watch = watched(limits, Duration::ZERO, |watch| {
            watch.on_link(LinkEvent::Used(usage));
            watch.on_link(LinkEvent::Exceeded(GroupLimit::Memory));
            watch.exceed(Limit::Output);
        });
        assert_eq!(watch.limit(), Some(Limit::Memory));
        assert_eq!(watch.usage().guest.unwrap().memory_peak_bytes, 7);
    }

    #[test]
    fn a_command_that_has_ended_meets_no_limit() {
        let limits = Limits {
            time: LONG,
            cpu_time: LONG,
            ..Limits::default()
        };
        let watch = watched(limits, Duration::ZERO, |watch| {
            assert!(watch.command_ended());
            watch.exceed(Limit::Output);
            watch.over();
        });
        assert_eq!(watch.limit(), None);
        assert!(!watch.is_late());
    }
}
