//! A VM as its owner has it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::log::LogWriter;
use super::vm::{Home, write_last_words};
use super::{News, Record, State, VmsError, lock};
use crate::dirs::Dirs;
use crate::net::NetworkState;
use crate::staging::{self, Moment};

/// Where the reason of an end by the sandbox is noted.
const VIOLATION: &str = "violation";
/// The exit code of a monitor that made a system call which is not allowed.
const BY_SIGSYS: u8 = 128 + 31;

/// Why a line about an error is not longer.
const MAX_ERROR: usize = 4000;

/// A VM that this process owns until this is dropped: nobody else starts, changes or removes it.
#[derive(Debug)]
pub struct OwnedVm {
    record: Record,
    teller: Teller,
    lock: Lock,
}

/// Tells everybody what becomes of a VM, on behalf of its owner and from any thread of its. What is
/// told after the owner has given the VM up goes nowhere.
#[derive(Debug, Clone)]
pub struct Teller {
    home: Home,
    told: Arc<Mutex<Told>>,
    /// Who writes it down, if this process can't.
    through: Option<Arc<dyn Hears>>,
}

/// Another process that keeps a VM's record.
pub trait Hears: std::fmt::Debug + Send + Sync {
    /// Hears of the VM, and returns when it has told everybody.
    ///
    /// # Errors
    /// If it can't be told.
    fn hear(&self, news: News) -> Result<(), VmsError>;
}

#[derive(Debug)]
struct Told {
    state: State,
    owned: bool,
}

impl Teller {
    /// The same, through another process.
    #[must_use]
    pub fn through(self, through: Arc<dyn Hears>) -> Self {
        Self {
            through: Some(through),
            ..self
        }
    }

    /// Tells of it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn tell(&self, news: News) -> Result<(), VmsError> {
        match &self.through {
            Some(other) => other.hear(news),
            None => self.update(|state| state.hear(news)),
        }
    }

    /// Tells of the VM's network, while this process can write it down; who keeps its record reads it
    /// later, by [`Self::read_network`].
    ///
    /// # Errors
    /// If it can't be written.
    pub fn tell_network(&self, network: NetworkState) -> Result<(), VmsError> {
        self.update(|state| state.network = Some(Box::new(network)))
    }

    /// Takes notice of the network that another process has written down: a list of ports may be
    /// longer than what is said at a time.
    pub fn read_network(&self) {
        let mut told = self.told();
        told.state.network = self.home.read_state().network;
    }

    /// Changes the state as `change` says.
    ///
    /// # Errors
    /// If it can't be written; then it is as it was.
    pub fn update(&self, change: impl FnOnce(&mut State)) -> Result<(), VmsError> {
        let mut told = self.told();
        if told.owned {
            let mut state = told.state.clone();
            change(&mut state);
            self.write(&mut told, state)?;
        }
        Ok(())
    }

    /// What was told last.
    pub fn state(&self) -> State {
        self.told().state.clone()
    }

    fn write(&self, told: &mut Told, mut state: State) -> Result<Vec<u8>, VmsError> {
        state.boot_id = boot_id();
        if let Some(error) = &mut state.error {
            error.truncate(error.floor_char_boundary(MAX_ERROR));
        }
        let path = self.home.file("state.json");
        let json = serde_json::to_vec_pretty(&state)
            .map_err(|error| VmsError::Unwritable(error.to_string()))?;
        staging::replace(&path, &json, false)
            .or_else(|error| staging::overwrite(&path, &json, error))
            .map_err(VmsError::io("write", &path))?;
        told.state = state;
        Ok(json)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The locked file. Dropping it gives the lock up.
#[derive(Debug)]
struct Lock(Option<File>);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            lock::release(file);
        }
    }
}

impl OwnedVm {
    /// `file` is the VM's lock, which the caller has.
    pub(super) fn new(home: Home, record: Record, file: File) -> Self {
        let told = Told {
            state: home.read_state(),
            owned: true,
        };
        Self {
            record,
            teller: Teller {
                home,
                told: Arc::new(Mutex::new(told)),
                through: None,
            },
            lock: Lock(Some(file)),
        }
    }

    /// Takes notice that the former owner did not live to see its end, if it did not. Where that
    /// can't be written down, the next one who looks takes notice again: a VM on a full disk can be
    /// looked at and removed.
    pub(super) fn settle(&mut self) {
        let state = self.state();
        if state.status.has_ended() {
            return;
        }
        self.clean();
        if let Some(cgroup) = state.sandbox.as_ref().and_then(|told| told.cgroup.as_ref()) {
            // Its keeper removes it, unless that was killed as well.
            let _ = std::fs::remove_dir(cgroup);
        }
        let mut dead = state.dead();
        if let Ok(why) = std::fs::read_to_string(self.home().file(VIOLATION)) {
            dead.exit_code = Some(BY_SIGSYS);
            dead.error = Some(why);
        }
        let _ = std::fs::remove_file(self.home().file(VIOLATION));
        if let Err(error) = self.set_state(dead.clone()) {
            log::debug!("{error}");
            self.teller.told().state = dead;
        }
    }

    /// Notes, for whoever finds it dead, why its monitor was ended by its sandbox.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn note_violation(&self, why: &str) -> Result<(), VmsError> {
        let path = self.home().file(VIOLATION);
        staging::replace(&path, why.as_bytes(), false).map_err(VmsError::io("write", &path))
    }

    /// What it is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What has become of it.
    pub fn state(&self) -> State {
        self.teller.state()
    }

    /// For threads that tell what becomes of it.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Tells everybody what has become of it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn set_state(&mut self, state: State) -> Result<(), VmsError> {
        let mut told = self.teller.told();
        let ended = state.status.has_ended();
        let json = self.teller.write(&mut told, state)?;
        let Some(lock) = &self.lock.0 else {
            return Ok(());
        };
        let words: &[u8] = if ended { &json } else { b"" };
        let written = write_last_words(lock, &self.home().file("lock"), words);
        // Its state is there for whoever does not find them; but room for them is kept from the
        // start on.
        if ended { Ok(()) } else { written }
    }

    fn home(&self) -> &Home {
        &self.teller.home
    }

    /// Where its files are.
    pub fn dir(&self) -> PathBuf {
        self.home().dir()
    }

    /// Where its own disk is, if it has one.
    pub fn disk_path(&self) -> PathBuf {
        self.home().file("disk.raw")
    }

    /// For what its kernel writes.
    pub fn console_log(&self) -> PathBuf {
        self.home().file("console.log")
    }

    /// A folder, of this user's alone, for the socket through which its monitor is reached. It is
    /// removed when the VM ends.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn runtime_dir(&self) -> Result<PathBuf, VmsError> {
        let path = self.home().runtime_dir();
        Dirs::ensure(&path)?;
        Ok(path)
    }

    /// For what its command writes; after what is there.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn log_writer(&self) -> Result<LogWriter, VmsError> {
        let dir = self.dir();
        LogWriter::open(&dir).map_err(VmsError::io("open the log in", &dir))
    }

    /// Puts the current segment of its log away, and gives an empty one.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn next_log_segment(&self) -> std::io::Result<File> {
        super::log::next_segment(&self.dir())
    }

    /// Whether the user has asked, since it was started, that it ends for good.
    pub fn is_stop_asked(&self) -> bool {
        self.home().file(super::vm::STOP).exists()
    }

    /// Forgets that, as it is being started.
    pub fn clear_stop(&self) {
        let _ = std::fs::remove_file(self.home().file(super::vm::STOP));
    }

    /// The lock, if it is this process's.
    pub fn lock(&self) -> Option<&File> {
        self.lock.0.as_ref()
    }

    /// Another descriptor of the lock, for a process that is to be the owner; see [`Self::hand_over`].
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn lock_fd(&self) -> Result<OwnedFd, VmsError> {
        let path = self.home().file("lock");
        let file = self.lock().map(File::try_clone);
        file.transpose()
            .and_then(|file| file.ok_or_else(|| std::io::Error::other("it was handed over")))
            .map(OwnedFd::from)
            .map_err(VmsError::io("share", &path))
    }

    /// Closes this process's descriptor of the lock, which another process has, too.
    pub fn lend_lock(&mut self) {
        // Closed, but not unlocked.
        drop(self.lock.0.take());
    }

    /// Takes the lock back; `file` was [`Self::lock_fd`] of the process that had it.
    ///
    /// # Errors
    /// If it is another file, or somebody else owns it.
    pub fn take_lock(&mut self, file: File) -> Result<(), VmsError> {
        let path = self.home().file("lock");
        let io = VmsError::io("take over", &path);
        let own = staging::is_at(&file, &path).and_then(|at| Ok(at && lock::try_own(&file)?));
        match own {
            Ok(true) => {
                self.lock.0 = Some(file);
                Ok(())
            }
            Ok(false) => Err(io(std::io::Error::other("it is not that of this VM"))),
            Err(error) => Err(io(error)),
        }
    }

    /// Leaves it to the process that was given [`Self::lock_fd`].
    pub fn hand_over(mut self) {
        self.teller.told().owned = false;
        // Closed, but not unlocked.
        drop(self.lock.0.take());
    }

    /// Removes it with all its files.
    ///
    /// # Errors
    /// If it can't be; then it is as it was.
    pub fn remove(self) -> Result<(), VmsError> {
        let retired = {
            let moment = self.home().registry.moment()?;
            self.retire(&moment)?
        };
        drop(retired);
        Ok(())
    }

    /// What removes it on a thread that is about to end this process, whatever the owner is doing.
    pub fn remover(&self) -> impl FnOnce() + Send + 'static {
        let (home, record) = (self.home().clone(), self.record.clone());
        move || {
            let moment = home.registry.moment();
            let retired = moment.and_then(|moment| home.registry.retire(&record, &moment));
            // What is left, the next command sweeps.
            let _ = staging::remove_tree(&home.runtime_dir());
            if let Ok(old) = retired {
                let _ = staging::remove_tree(&old);
            }
        }
    }

    /// Takes it out of sight; its files go when what is returned is dropped.
    pub(super) fn retire(self, moment: &Moment) -> Result<Retired, VmsError> {
        let old = self.home().registry.retire(&self.record, moment)?;
        Ok(Retired { old, vm: self })
    }

    /// Removes what only a running VM needs. Called by its owner when it has ended.
    pub fn clean(&self) {
        // Nothing that is left there harms.
        let _ = staging::remove_tree(&self.home().runtime_dir());
    }
}

impl Drop for OwnedVm {
    fn drop(&mut self) {
        self.teller.told().owned = false;
    }
}

/// A record that nobody can find any more, on its way out.
pub(super) struct Retired {
    old: PathBuf,
    /// Its lock is given up after that.
    vm: OwnedVm,
}

impl Drop for Retired {
    fn drop(&mut self) {
        self.vm.clean();
        // What is left, another one sweeps.
        let _ = staging::remove_tree(&self.old);
    }
}

fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
