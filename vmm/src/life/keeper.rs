//! The keeper of a confined monitor: a process that stays outside, and does for it what it can't do
//! itself any more. It writes the VM's state, puts logs away, opens the Unix sockets that the guest
//! asks for, connects it to other VMs on its network, starts the program that serves its own network
//! when the guest needs that, and at the end, after the monitor or instead of it, tells the end, removes
//! the VM or starts it again.
//!
//! It is forked before the machine is made, has nothing of it but the record, and knows that its
//! monitor may be somebody else's by the time that it speaks: it believes what concerns this VM,
//! and does nothing that a user of the VM could not ask for.
//!
//! The lock stays with the monitor, so that the VM is free the moment that it is killed, and comes
//! to the keeper with the word of the end.

mod group;
mod passt;
mod words;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair,
};
use rustix::process::{Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, waitpid};

use crate::cli::CliError;
use crate::config::{DEFAULT_CPUS, DEFAULT_MEMORY};
use crate::confine::{Cgroup, CgroupLimits, Confined, Room, Sandbox, THREADS, Violation};
use crate::dirs::Dirs;
use crate::net::Starter;
use crate::net::passt::Order;
use crate::networks::{Folder, Member, Outside};
use crate::vms::{Hears, News, OwnedVm, VmsError};
use group::Group;
use passt::Passt;
pub(super) use words::Ending;
use words::{Answer, Word, receive, send};

/// Done when the VM has ended, by its keeper or, where nobody is confined, by the monitor itself.
/// What it calls last, if it goes on for longer, lets the monitor go.
pub(super) type After = Box<dyn FnOnce(OwnedVm, Ending, &dyn Fn()) -> Result<(), CliError>>;

/// A VM and who keeps its record.
pub(super) struct Kept {
    /// The VM. In a confined process only what is known of it can be used.
    pub vm: OwnedVm,
    by: By,
}

enum By {
    Itself(After),
    Keeper(Arc<Keeper>),
}

/// The monitor's end of the way to its keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    socket: OwnedFd,
    pid: Pid,
    /// One question at a time.
    asking: Mutex<()>,
    /// Its first word: the cgroup, or why there is none.
    cgroup: OnceLock<Result<PathBuf, String>>,
    /// What came with it.
    room: Mutex<Option<OwnedFd>>,
}

/// The monitor, for its keeper.
struct Monitor {
    pid: Pid,
    /// Absent on a host without such descriptors.
    process: Option<OwnedFd>,
}

impl Monitor {
    /// This process.
    fn this() -> Self {
        let pid = getpid();
        Self {
            pid,
            process: pidfd_open(pid, PidfdFlags::empty()).ok(),
        }
    }

    fn number(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Whether it is still there, so that its number is its own.
    fn lives(&self) -> bool {
        self.process.as_ref().is_none_or(|process| {
            let now = rustix::event::Timespec::default();
            poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)) == Ok(0)
        })
    }

    fn wait_for_end(&self) {
        let Some(process) = &self.process else { return };
        while let Err(rustix::io::Errno::INTR) =
            poll(&mut [PollFd::new(process, PollFlags::IN)], None)
        {}
    }
}

impl Kept {
    /// A VM whose process does all of it itself.
    pub(super) fn by_itself(vm: OwnedVm, after: After) -> Self {
        Self {
            vm,
            by: By::Itself(after),
        }
    }

    /// Makes a process that keeps the record of `vm` and does `after`. This process has to have one
    /// thread.
    ///
    /// # Errors
    /// If the host has no process left.
    #[allow(unsafe_code, reason = "fork")]
    pub(super) fn by_keeper(vm: OwnedVm, after: After) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Found here: the parent of a child is another one from the moment that this is killed.
        let monitor = Monitor::this();
        // SAFETY: the child has a copy of all memory, and this was the only thread that used it; it
        // ends without returning from here.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let kept = AssertUnwindSafe(|| keep_until_end(&theirs, &monitor, vm, after));
                let status = catch_unwind(kept).unwrap_or(101);
                // SAFETY: ends this process at once: what else is in its memory is the monitor's.
                unsafe { libc::_exit(status) }
            }
            child => {
                drop((theirs, monitor));
                let pid = Pid::from_raw(child).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Self {
                    vm,
                    by: By::Keeper(Arc::new(Keeper {
                        socket: ours,
                        pid,
                        asking: Mutex::new(()),
                        cgroup: OnceLock::new(),
                        room: Mutex::default(),
                    })),
                })
            }
        }
    }

    /// The keeper, if there is one.
    pub(super) fn keeper(&self) -> Option<&Arc<Keeper>> {
        match &self.by {
            By::Itself(_) => None,
            By::Keeper(keeper) => Some(keeper),
        }
    }

    /// Tells the end, and has done what follows.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn end(self, ending: Ending) -> Result<(), CliError> {
        match self.by {
            By::Itself(after) => after(self.vm, ending, &|| ()),
            By::Keeper(keeper) => {
                let lock = self.vm.lock_fd()?;
                let answer = keeper.ask(&Word::Ended(ending), Some(lock.as_fd()));
                drop(lock);
                // The keeper has it now, or has given it up.
                self.vm.hand_over();
                match answer.map_err(VmsError::Keeper)?.0 {
                    Answer::GoesOn => return Ok(()),
                    Answer::Failed(error) => return Err(error.into()),
                    _ => {}
                }
                // Nothing is left of it when this process ends.
                while let Err(rustix::io::Errno::INTR) =
                    waitpid(Some(keeper.pid), WaitOptions::empty())
                {}
                Ok(())
            }
        }
    }
}

impl Keeper {
    /// The socket, for who tells of violations.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn ask(
        &self,
        word: &Word,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Answer, Option<OwnedFd>)> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.cgroup();
        send(self.socket.as_fd(), word, fd)?;
        let (bytes, fd) =
            receive(self.socket.as_fd())?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok((serde_json::from_slice(&bytes)?, fd))
    }

    /// The cgroup that was made for this process, or why there is none. It is told once, before
    /// all answers.
    pub(super) fn cgroup(&self) -> Result<PathBuf, String> {
        let heard = self.cgroup.get_or_init(|| {
            let word = receive(self.socket()).ok().flatten();
            let (bytes, room) = word.unwrap_or_default();
            *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Err("the VM's keeper does not tell".to_owned()))
        });
        heard.clone()
    }

    /// The process whose namespaces were made for this one, if they were. To be asked once.
    pub(super) fn room(&self) -> Option<OwnedFd> {
        let _ = self.cgroup();
        self.room
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn ask_for(&self, word: &Word) -> io::Result<OwnedFd> {
        match self.ask(word, None)? {
            (Answer::Done, Some(fd)) => Ok(fd),
            (answer, _) => Err(refusal(answer)),
        }
    }

    /// Tells what has no answer to wait for, as a guest waits.
    fn tell(&self, word: &Word, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        send(self.socket(), word, fd)
    }

    /// Tells how this process is confined.
    pub(super) fn confined(&self, confined: &Confined) -> io::Result<()> {
        self.tell(&Word::Confined(confined.clone()), None)
    }

    /// Tells that the guest has ended.
    pub(super) fn ending(&self) -> io::Result<()> {
        self.tell(&Word::Ending, None)
    }

    /// The next segment of the log.
    pub(super) fn next_log(&self) -> io::Result<File> {
        self.ask_for(&Word::NextLog).map(File::from)
    }

    /// A connection to the Unix socket that stands for `port` of the host.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.ask_for(&Word::Connect(port)).map(UnixStream::from)
    }
}

impl Outside for Keeper {
    fn process(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    fn ids(&self) -> io::Result<Vec<String>> {
        match self.ask(&Word::Members, None)? {
            (Answer::Members(ids), _) => Ok(ids),
            (answer, _) => Err(refusal(answer)),
        }
    }

    fn member(&self, id: &str) -> io::Result<(Member, File)> {
        match self.ask(&Word::Member(id.to_owned()), None)? {
            (Answer::Member(member), Some(lock)) => Ok((member, lock.into())),
            (answer, _) => Err(refusal(answer)),
        }
    }

    fn connect(&self, id: &str) -> io::Result<OwnedFd> {
        self.ask_for(&Word::Reach(id.to_owned()))
    }
}

impl Starter for Keeper {
    fn keep(&self, order: &Order, socket: OwnedFd) -> io::Result<()> {
        self.tell(&Word::Keep(order.clone()), Some(socket.as_fd()))
    }

    fn start(&self) -> io::Result<()> {
        self.tell(&Word::Start, None)
    }
}

/// What an answer that has not what was asked for means.
fn refusal(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused(number) => io::Error::from_raw_os_error(number),
        Answer::Failed(error) => io::Error::other(error),
        _ => io::ErrorKind::InvalidData.into(),
    }
}

impl Hears for Keeper {
    fn hear(&self, news: News) -> Result<(), VmsError> {
        match self.ask(&Word::News(news), None) {
            Ok((Answer::Failed(error), _)) => Err(VmsError::Kept(error)),
            Ok(_) => Ok(()),
            Err(error) => Err(VmsError::Keeper(error)),
        }
    }
}

/// The keeper's life; its exit status.
fn keep_until_end(socket: &OwnedFd, monitor: &Monitor, mut vm: OwnedVm, after: After) -> i32 {
    let _ = rustix::thread::set_name(c"casita-keeper");
    vm.lend_lock();
    if leave_files(socket, monitor).is_err() {
        return 1;
    }
    let room = Room::make()
        .inspect_err(|error| log::debug!("namespaces can't be made beforehand: {error}"))
        .ok();
    let cgroup = make_cgroup(socket, monitor, &vm, room.as_ref());
    let mut group = Group::new(cgroup, monitor);
    let mut passt = Passt::default();
    let ending = listen(socket, &mut vm, (&mut group, &mut passt), room);
    passt.end();
    if vm.state().sandbox.is_some() {
        // One that is not confined does so itself.
        remove_socket(vm.record().config.vsock.as_deref());
    }
    // Killed, or ended by its own sandbox: the next command takes notice.
    let Some(ending) = ending else {
        monitor.wait_for_end();
        leave_network(&vm);
        group.remove();
        return 0;
    };
    leave_network(&vm);
    group.remove();
    let let_go = || {
        let _ = send(socket.as_fd(), &Answer::GoesOn, None);
        monitor.wait_for_end();
    };
    let answer = match after(vm, ending, &let_go) {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(crate::cli::in_one_line(&*error)),
    };
    let _ = send(socket.as_fd(), &answer, None);
    0
}

/// Makes the cgroup, and tells the monitor of it and of its namespaces: it waits for this word before
/// its guest runs.
fn make_cgroup(
    socket: &OwnedFd,
    monitor: &Monitor,
    vm: &OwnedVm,
    room: Option<&Room>,
) -> Option<Cgroup> {
    let record = vm.record();
    let config = &record.config;
    let limits = CgroupLimits {
        memory: config.memory.unwrap_or(DEFAULT_MEMORY).bytes(),
        cpus: config.cpus.unwrap_or(DEFAULT_CPUS),
        pids: config.pids_limit.unwrap_or(THREADS),
        cpu_shares: config.cpu_shares,
        blkio_weight: config.blkio_weight,
    };
    if !monitor.lives() {
        return None;
    }
    let tell = |made: &Result<Cgroup, String>| {
        let told = made.as_ref().map(Cgroup::dir).map_err(Clone::clone);
        let _ = send(
            socket.as_fd(),
            &told,
            room.map(|room| room.process().as_fd()),
        );
    };
    let made = Cgroup::make(record.id.as_str(), &limits);
    if config.sandbox == Some(Sandbox::Strict) {
        let taken = made.and_then(|cgroup| cgroup.take(monitor.number()));
        tell(&taken);
        return taken.ok();
    }
    tell(&made);
    let taken = made.ok()?.take(monitor.number());
    taken.inspect_err(|why| log::warn!("{why}")).ok()
}

/// Closes all that belongs to the monitor, and goes where it keeps no file system busy.
fn leave_files(socket: &OwnedFd, monitor: &Monitor) -> io::Result<()> {
    // Without the one there is the other: what counts is that it is not the monitor's.
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.or_else(|_| File::open("/"))?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    drop(null);
    let mut kept = vec![socket.as_raw_fd()];
    kept.extend(monitor.process.as_ref().map(AsRawFd::as_raw_fd));
    crate::confine::close_all_but(&kept)?;
    std::env::set_current_dir("/")
}

/// Does what the monitor asks for, until it tells of the end. None if it ends without a word.
fn listen(
    socket: &OwnedFd,
    vm: &mut OwnedVm,
    (group, passt): (&mut Group<'_>, &mut Passt),
    mut room: Option<Room>,
) -> Option<Ending> {
    loop {
        group.watch_until_heard(socket.as_fd());
        let (bytes, fd) = receive(socket.as_fd()).ok()??;
        if let Some(violation) = Violation::parse(&bytes) {
            let why = violation.to_string();
            log::error!("{why}");
            let _ = vm.note_violation(&why);
            // From here on the VM can be found free.
            drop(fd);
            continue;
        }
        let (answer, fd) = match serde_json::from_slice(&bytes) {
            Ok(Word::Ended(ending)) => match take_lock(vm, fd) {
                Ok(()) => {
                    if vm.state().sandbox.is_none() {
                        // It ended before it was confined, and has written for itself until now.
                        vm.teller().read_network();
                    }
                    return Some(ending);
                }
                Err(error) => (Answer::Failed(error.to_string()), None),
            },
            Ok(Word::Confined(mut confined)) => {
                // It is in there, or has failed to.
                drop(room.take());
                passt.believe_no_more();
                vm.teller().read_network();
                // Others will look there, and remove it.
                confined.cgroup = group.dir().map(Path::to_owned);
                let told = vm.teller().update(|state| state.sandbox = Some(confined));
                if let Err(error) = told {
                    log::warn!("{error}");
                }
                continue;
            }
            Ok(Word::Keep(order)) => {
                passt.keep(order, fd);
                continue;
            }
            Ok(Word::Start) => {
                passt.start();
                continue;
            }
            Ok(Word::Ending) => {
                group.let_go();
                continue;
            }
            Ok(word) => obey(vm, &word),
            Err(error) => (Answer::Failed(error.to_string()), None),
        };
        // Nobody may be there to hear it any more, and have left a last word all the same.
        let _ = send(socket.as_fd(), &answer, fd.as_ref().map(AsFd::as_fd));
    }
}

fn take_lock(vm: &mut OwnedVm, fd: Option<OwnedFd>) -> Result<(), VmsError> {
    let none = || VmsError::Keeper(io::ErrorKind::InvalidData.into());
    vm.take_lock(fd.ok_or_else(none)?.into())
}

fn obey(vm: &OwnedVm, word: &Word) -> (Answer, Option<OwnedFd>) {
    let told = |result: Result<(), VmsError>| {
        let failed = |error| Answer::Failed(crate::cli::in_one_line(&error));
        (result.map_or_else(failed, |()| Answer::Done), None)
    };
    let refused = |error: io::Error| {
        let number = error.raw_os_error();
        number.map_or_else(|| Answer::Failed(error.to_string()), Answer::Refused)
    };
    let given = |result: io::Result<OwnedFd>| match result {
        Ok(fd) => (Answer::Done, Some(fd)),
        Err(error) => (refused(error), None),
    };
    match word {
        Word::News(news) => told(vm.teller().tell(*news)),
        Word::NextLog => given(vm.next_log_segment().map(OwnedFd::from)),
        Word::Connect(port) => given(match &vm.record().config.vsock {
            Some(base) => connect_to(base, *port),
            None => Err(io::Error::from_raw_os_error(libc::EACCES)),
        }),
        Word::Members => match members(vm).and_then(|members| members.ids()) {
            Ok(ids) => (Answer::Members(ids), None),
            Err(error) => (refused(error), None),
        },
        Word::Member(id) => match members(vm).and_then(|members| members.member(id)) {
            Ok((member, lock)) => (Answer::Member(member), Some(lock.into())),
            Err(error) => (refused(error), None),
        },
        Word::Reach(id) => given(members(vm).and_then(|members| members.connect(id))),
        // Told apart by the caller.
        Word::Confined(_) | Word::Ended(_) | Word::Ending | Word::Keep(_) | Word::Start => {
            (Answer::Done, None)
        }
    }
}

/// The members of the VM's network, if it is on one.
fn members(vm: &OwnedVm) -> io::Result<Folder> {
    let name = vm.record().config.network.as_deref();
    let name = name.ok_or(io::Error::from_raw_os_error(libc::EACCES))?;
    let dirs = Dirs::from_env().map_err(io::Error::other)?;
    Folder::of(&dirs, name)
}

/// Removes what the VM has in its network's folder, which its monitor can't.
fn leave_network(vm: &OwnedVm) {
    if vm.record().config.network.is_some()
        && let Err(error) = members(vm).and_then(|members| members.sweep())
    {
        log::debug!("the VM's place on its network is left: {error}");
    }
}

/// Connects to a Unix socket without waiting for whoever listens to it.
fn connect_to(base: &Path, port: u32) -> io::Result<OwnedFd> {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let address = SocketAddrUnix::new(PathBuf::from(path))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// The monitor made it, and can't remove it.
fn remove_socket(path: Option<&Path>) {
    use std::os::unix::fs::FileTypeExt;
    if let Some(path) = path
        && std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
    {
        let _ = std::fs::remove_file(path);
    }
}
