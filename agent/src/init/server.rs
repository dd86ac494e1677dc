//! The agent once the guest is ready: one loop, which waits for the host, for processes that end,
//! and for bytes of their streams.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use casita_agent::ports::{EXIT_NOT_EXECUTABLE, Stage};
use casita_agent::wire::{AgentMessage, HostMessage, MAX_PROCESSES, Start};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit, wait};

use crate::child::Child;
use crate::control::Control;
use crate::ending::{Ending, Left};
use crate::failure::{Doing, Failure};
use crate::group::{self, Group};
use crate::list::{self, List};
use crate::process::{Process, exit_of};
use crate::report::{Outcome, Report};
use crate::slots::{Side, Slots, Token};
use crate::stdio::Stdio;
use crate::stream::{Direction, Stream, Turn};
use crate::sys::{self, SignalSet};
use crate::{stamp, vsock};

/// Signals that are the first process's, whoever sends them to PID 1.
const FORWARDED: [Signal; 6] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
];

/// Events that are taken at once.
const EVENTS: usize = 64;
/// Names of what is in no table.
const CONTROL: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;

enum Slot {
    Stream(Stream),
    Report(Report),
    List(List),
}

pub(crate) struct Server<'a> {
    hostname: &'a str,
    control: Control,
    /// The host may have said something.
    hears: bool,
    epoll: OwnedFd,
    signals: OwnedFd,
    slots: Slots<Slot>,
    processes: Vec<Process>,
    /// Streams that can go on.
    runnable: VecDeque<Token>,
    lists: usize,
    /// How many files a process may have, as the kernel would have it.
    files: Rlimit,
    /// The host's number of the first process.
    first: Option<u32>,
    /// There are processes, of whatever kind.
    has_children: bool,
    ending: Option<Ending>,
    /// When the groups are looked at next.
    next_look: u64,
}

impl<'a> Server<'a> {
    pub(crate) fn new(hostname: &'a str, control: Control) -> Result<Self, Failure> {
        hold_standard_streams().doing(|| "cannot open /dev/null")?;
        let mut set = [Signal::CHILD; FORWARDED.len() + 1];
        for (slot, signal) in set.iter_mut().zip(FORWARDED) {
            *slot = signal;
        }
        let set = SignalSet::of(&set);
        // Held back from now on, none is lost.
        sys::block_signals(set);
        let doing = || "cannot wait for events: the guest's kernel needs CONFIG_EPOLL=y and CONFIG_SIGNALFD=y";
        let epoll = epoll::create(CreateFlags::CLOEXEC).doing(doing)?;
        let signals = sys::signalfd(set).doing(doing)?;
        let server = Server {
            hostname,
            control,
            hears: true,
            epoll,
            signals,
            slots: Slots::new(),
            processes: Vec::new(),
            runnable: VecDeque::new(),
            lists: 0,
            files: raise_file_limit(),
            first: None,
            has_children: false,
            ending: None,
            next_look: 0,
        };
        server
            .watch(server.control.socket(), EventData::new_u64(CONTROL))
            .doing(doing)?;
        server
            .watch(&server.signals, EventData::new_u64(SIGNALS))
            .doing(doing)?;
        Ok(server)
    }

    /// Serves the host; returns the machine's exit status.
    pub(crate) fn serve(mut self) -> Result<u8, Failure> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.listen()?;
            self.control.flush()?;
            if let Some(status) = self.go_on_ending() {
                return Ok(status);
            }
            self.wait(&mut events)?;
            for event in events.drain(..) {
                self.event(event);
            }
            if self.has_groups() && sys::now() >= self.next_look {
                self.look_at_groups();
                self.next_look = sys::now() + group::PAUSE;
            }
            for _ in 0..self.runnable.len() {
                if let Some(token) = self.runnable.pop_front() {
                    self.give_turn(token);
                }
            }
        }
    }

    /// Has the loop told of any change of `file`.
    fn watch(&self, file: &OwnedFd, data: EventData) -> Result<(), Errno> {
        let changes = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, file, data, changes)
    }

    fn wait(&self, events: &mut Vec<Event>) -> Result<(), Failure> {
        let milliseconds = match &self.ending {
            _ if !self.runnable.is_empty() => Some(0),
            Some(ending) => Some(ending.time_left()),
            None if self.has_groups() => Some(group::PAUSE),
            None => None,
        };
        let timeout = milliseconds.map(|milliseconds| Timespec {
            tv_sec: (milliseconds / 1000).cast_signed(),
            tv_nsec: (milliseconds % 1000 * 1_000_000).cast_signed(),
        });
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).doing(|| "cannot wait for events"),
        }
    }

    fn event(&mut self, event: Event) {
        let Event { flags, data } = event;
        match data.u64() {
            CONTROL => self.hears = true,
            SIGNALS => self.take_signals(),
            data => {
                let (token, side) = Token::from_data(data);
                self.slot_event(token, side, flags);
            }
        }
    }

    fn slot_event(&mut self, token: Token, side: Side, flags: EventFlags) {
        match self.slots.get_mut(token) {
            Some(Slot::Stream(stream)) => {
                stream.event(side, flags);
                self.queue(token);
            }
            Some(Slot::Report(report)) => {
                let process = report.process;
                self.take_report(process);
            }
            Some(Slot::List(list)) => {
                if let Some(frame) = list.read() {
                    self.control.send_frame(&frame);
                    self.slots.remove(token);
                    self.lists -= 1;
                }
            }
            None => {}
        }
    }

    /// Takes what the host says.
    fn listen(&mut self) -> Result<(), Failure> {
        while self.hears {
            if self.control.is_full() {
                self.control.flush()?;
                if self.control.is_full() {
                    return Ok(()); // The host will take some of it.
                }
            }
            match self.control.receive()? {
                Some(message) => self.obey(message),
                None => self.hears = false,
            }
        }
        Ok(())
    }

    fn obey(&mut self, message: HostMessage) {
        match message {
            HostMessage::Start(start) => self.start(&start),
            HostMessage::Signal { id, signal } => {
                if let Some(process) = self.process(id) {
                    process.signal(signal);
                }
            }
            HostMessage::Resize { id, size } => {
                if let Some(process) = self.process(id) {
                    process.resize(size);
                }
            }
            HostMessage::List { request } => self.list(request),
            HostMessage::Shutdown { status } => {
                if self.ending.is_none() {
                    self.ending = Some(Ending::begin(status));
                    self.reap();
                }
            }
        }
    }

    fn process(&mut self, id: u32) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.id == id)
    }

    fn start(&mut self, start: &Start) {
        let id = start.id;
        if self.process(id).is_some() {
            return; // The host uses a number once.
        }
        if let Err(failure) = self.try_start(start) {
            self.control.send(&AgentMessage::Failed {
                id,
                status: EXIT_NOT_EXECUTABLE,
                message: failure.text().into(),
            });
        }
    }

    fn try_start(&mut self, start: &Start) -> Result<(), Failure> {
        if self.ending.is_some() {
            return Err(Failure::new("the machine is about to end"));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(Failure::new(format_args!(
                "{MAX_PROCESSES} processes run, more are not possible"
            )));
        }
        let mut stdio = Stdio::new(start)?;
        let (pipe, report) = pipe_with(PipeFlags::CLOEXEC).doing(|| "cannot make a pipe")?;
        vsock::set_nonblocking(&pipe).doing(|| "cannot use a pipe")?;
        let streams = make_streams(start, &mut stdio)?;
        let is_first = self.first.is_none();
        let limits = start.process.group;
        let group = limits
            .map(|limits| Group::new(start.id, limits))
            .transpose()?;
        let child = Child {
            process: &start.process,
            hostname: self.hostname,
            stdio: &stdio,
            report: &report,
            group: group.as_ref(),
            files: self.files,
            is_first,
        };
        let Some(pid) = sys::fork().doing(|| "cannot start a process")? else {
            child.become_it()
        };
        self.first.get_or_insert(start.id);
        self.has_children = true;
        let report = self.insert(Slot::Report(Report::new(start.id, pipe)));
        let pid = pid.as_raw_nonzero().get();
        let mut process = Process::new(start.id, pid, stdio.terminal, report);
        process.group = group;
        for stream in streams {
            process.outputs += usize::from(stream.direction == Direction::Out);
            process.streams.push(self.insert(Slot::Stream(stream)));
        }
        self.processes.push(process);
        Ok(())
    }

    fn has_groups(&self) -> bool {
        self.processes.iter().any(|process| process.group.is_some())
    }

    /// Tells the host which limits groups have met.
    fn look_at_groups(&mut self) {
        for process in &mut self.processes {
            let id = process.id;
            let Some(group) = &mut process.group else {
                continue;
            };
            for limit in group.exceeded() {
                // The host may end the machine for it.
                let usage = group.usage();
                self.control.send(&AgentMessage::Used { id, usage });
                self.control.send(&AgentMessage::Exceeded { id, limit });
            }
        }
    }

    /// Puts something into the table and has it watched.
    fn insert(&mut self, slot: Slot) -> Token {
        let token = self.slots.insert(slot);
        let epoll = &self.epoll;
        let changes = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watch = |file: &OwnedFd, side| {
            // It fails for want of memory alone. What is never told of is looked at once, below,
            // and when its process ends.
            let _ = epoll::add(epoll, file, token.data(side), changes);
        };
        match self.slots.get_mut(token) {
            Some(Slot::Stream(stream)) => {
                for (side, file) in stream.files() {
                    if let Some(file) = file {
                        watch(file, side);
                    }
                }
                self.queue(token);
            }
            Some(Slot::Report(report)) => watch(&report.pipe, Side::Local),
            Some(Slot::List(list)) => watch(&list.pipe, Side::Local),
            None => {}
        }
        token
    }

    fn queue(&mut self, token: Token) {
        if let Some(Slot::Stream(stream)) = self.slots.get_mut(token)
            && !stream.is_queued
        {
            stream.is_queued = true;
            self.runnable.push_back(token);
        }
    }

    fn give_turn(&mut self, token: Token) {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else {
            return;
        };
        stream.is_queued = false;
        let turn = stream.turn();
        let news = stream.is_carried() && !stream.is_counted;
        stream.is_counted |= news;
        let (id, direction, is_over) = (stream.process, stream.direction, stream.is_over());
        if is_over {
            self.slots.remove(token);
        } else if turn == Turn::Again {
            self.queue(token);
        }
        if news && direction == Direction::Out {
            if let Some(process) = self.process(id) {
                process.outputs -= 1;
            }
            self.settle(id);
        }
    }

    fn take_signals(&mut self) {
        /// `struct signalfd_siginfo`, whose first field is the signal's number.
        const INFO: usize = 128;
        let mut info = [0_u8; INFO];
        let mut ended = false;
        while let Ok(INFO) = read(&self.signals, &mut info) {
            let number = info.first().copied().unwrap_or_default();
            if i32::from(number) == Signal::CHILD.as_raw() {
                ended = true;
            } else if let Some(process) = self.first.and_then(|id| self.process(id)) {
                process.signal(number);
            }
        }
        if ended {
            self.reap();
        }
    }

    /// Collects all processes that have ended.
    fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    let ended = |it: &&mut Process| it.pid == pid && it.exit.is_none();
                    if let Some(process) = self.processes.iter_mut().find(ended) {
                        process.exit = Some(exit_of(status));
                        let id = process.id;
                        self.ended(id);
                    }
                }
                Err(Errno::INTR) => {}
                // Those without a parent are PID 1's children, so if it has none, there is none.
                result => {
                    self.has_children = result.is_ok();
                    return;
                }
            }
        }
    }

    /// The process `id` has just ended.
    fn ended(&mut self, id: u32) {
        if self.first == Some(id) {
            stamp::stage(Stage::CommandExited);
        }
        self.look_at_groups();
        if let Some(group) = self.process(id).and_then(|process| process.group.as_ref()) {
            group.end();
        }
        self.take_report(id);
        let streams = self.process(id).map(|process| process.streams.clone());
        for token in streams.unwrap_or_default() {
            if let Some(Slot::Stream(stream)) = self.slots.get_mut(token) {
                stream.process_ended();
                self.queue(token);
            }
        }
        self.settle(id);
    }

    /// Looks whether the process `id` has become its program.
    fn take_report(&mut self, id: u32) {
        let token = self.process(id).and_then(|process| process.report);
        let Some((token, Some(Slot::Report(report)))) =
            token.map(|token| (token, self.slots.get_mut(token)))
        else {
            return;
        };
        let Some(outcome) = report.read() else {
            return;
        };
        self.slots.remove(token);
        let Some(process) = self.process(id) else {
            return;
        };
        process.report = None;
        match outcome {
            Outcome::Started => {
                let pid = process.pid.unsigned_abs();
                self.control.send(&AgentMessage::Started { id, pid });
            }
            Outcome::Failed(status, message) => {
                process.failed = true;
                for token in core::mem::take(&mut process.streams) {
                    self.slots.remove(token);
                }
                self.control.send(&AgentMessage::Failed {
                    id,
                    status,
                    message,
                });
            }
        }
        self.settle(id);
    }

    /// Forgets the process `id` if nothing more is to be told of it but its end.
    fn settle(&mut self, id: u32) {
        let over = |process: &Process| process.id == id && process.is_over();
        let Some(index) = self.processes.iter().position(over) else {
            return;
        };
        let process = self.processes.swap_remove(index);
        if let Some(group) = &process.group {
            let usage = group.usage();
            self.control.send(&AgentMessage::Used { id, usage });
        }
        if let (Some(exit), false) = (process.exit, process.failed) {
            self.control.send(&AgentMessage::Exited { id, exit });
        }
    }

    fn list(&mut self, request: u32) {
        let list = if self.lists < list::MOST {
            List::begin(request).ok()
        } else {
            None
        };
        match list {
            Some(list) => {
                self.lists += 1;
                self.has_children = true;
                self.insert(Slot::List(list));
            }
            None => self.control.send_frame(&list::nothing(request)),
        }
    }

    fn go_on_ending(&mut self) -> Option<u8> {
        let read = |slot: &Slot| matches!(slot, Slot::Stream(stream) if stream.is_read());
        let ending = self.ending.as_mut()?;
        ending.go_on(&Left {
            processes: self.has_children,
            unread: !self.control.is_flushed() || self.slots.iter().any(read),
        })
    }
}

/// Lets the agent have as many files as all processes need; returns the limit that they get.
fn raise_file_limit() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    // With fewer files there are fewer processes.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: before.maximum,
            ..before
        },
    );
    before
}

/// Connects the streams that the host asked for.
fn make_streams(start: &Start, stdio: &mut Stdio) -> Result<Vec<Stream>, Failure> {
    let is_terminal = stdio.terminal.is_some();
    let keys = [start.stdin, start.stdout, start.stderr];
    let directions = [Direction::In, Direction::Out, Direction::Out];
    let mut streams = Vec::new();
    for ((key, direction), local) in keys.into_iter().zip(directions).zip(&mut stdio.local) {
        if let (Some(key), Some(local)) = (key, local.take()) {
            let socket = vsock::begin().doing(|| "cannot connect a stream to the host")?;
            streams.push(Stream::new(
                start.id,
                direction,
                key,
                socket,
                local,
                is_terminal,
            ));
        }
    }
    Ok(streams)
}

/// Has the numbers of the standard streams taken, should the kernel have had no console: else
/// other files would get them.
fn hold_standard_streams() -> Result<(), Errno> {
    loop {
        let file = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::fd::AsRawFd::as_raw_fd(&file) > 2 {
            return Ok(());
        }
        core::mem::forget(file);
    }
}
