//! A VM as everybody sees it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::log::LogReader;
use super::{Id, OwnedVm, Record, Registry, RestartPolicy, State, VmsError, lock};
use crate::control::{Client, ClientError};
use crate::staging::{self, is_at};

/// The mark that `stop` and `kill` leave, so that a restart policy does not undo them.
pub(super) const STOP: &str = "stop-asked";

/// Where a VM's files are.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub registry: Registry,
    pub id: Id,
}

impl Home {
    pub fn dir(&self) -> PathBuf {
        self.registry.dir(&self.id)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.registry.runtime(&self.id)
    }

    /// The state as its owner last told, or that of a VM that never got so far.
    pub fn read_state(&self) -> State {
        staging::read_record(&self.file("state.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    fn open_lock(&self) -> Result<File, VmsError> {
        let path = self.file("lock");
        lock::open(&path, false).map_err(|error| match error.kind() {
            ErrorKind::NotFound => VmsError::Removed(self.id.clone()),
            _ => VmsError::io("open", &path)(error),
        })
    }
}

/// A VM that somebody else may own.
#[derive(Debug, Clone)]
pub struct Vm {
    home: Home,
    record: Record,
}

impl Vm {
    pub(super) fn new(home: Home, record: Record) -> Self {
        Self { home, record }
    }

    /// What it is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where its files are.
    pub fn dir(&self) -> PathBuf {
        self.home.dir()
    }

    /// Its own disk, if it has one.
    pub fn disk_path(&self) -> PathBuf {
        self.home.file("disk.raw")
    }

    /// Where its monitor can be reached while it runs.
    pub fn runtime_dir(&self) -> PathBuf {
        self.home.runtime_dir()
    }

    /// What is true of it now. If its monitor was killed, this takes notice of that for everybody,
    /// and removes the VM if it was to go when it ends.
    ///
    /// # Errors
    /// [`VmsError::Removed`], or if its files can't be read.
    pub fn state(&self) -> Result<State, VmsError> {
        loop {
            if self.is_owned()? {
                return Ok(self.home.read_state());
            }
            let state = self.home.read_state();
            if state.status.has_ended() && !self.record.rm {
                return Ok(state);
            }
            match self.try_own() {
                Ok(owned) if self.record.rm => {
                    owned.remove()?;
                    return Err(VmsError::Removed(self.record.id.clone()));
                }
                Ok(owned) => return Ok(owned.state()),
                // Just started, or somebody else takes notice.
                Err(VmsError::InUse(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether somebody owns it: it runs, or is about to, or is being removed.
    ///
    /// # Errors
    /// [`VmsError::Removed`], or if its lock can't be looked at.
    pub fn is_owned(&self) -> Result<bool, VmsError> {
        let file = self.home.open_lock()?;
        lock::is_owned(&file).map_err(VmsError::io("look at", &self.home.file("lock")))
    }

    /// Takes it, if nobody owns it.
    ///
    /// # Errors
    /// [`VmsError::InUse`], [`VmsError::Removed`], or if its files can't be used.
    pub fn try_own(&self) -> Result<OwnedVm, VmsError> {
        let mut owned = self.own_with(self.home.open_lock()?)?;
        owned.settle();
        Ok(owned)
    }

    /// As [`Self::try_own`], with a lock that the caller may have already.
    pub(super) fn own_with(&self, file: File) -> Result<OwnedVm, VmsError> {
        let path = self.home.file("lock");
        if !lock::try_own(&file).map_err(VmsError::io("lock", &path))? {
            return Err(VmsError::InUse(self.record.name.clone()));
        }
        // A former owner may have removed it.
        if !is_at(&file, &path).map_err(VmsError::io("look at", &path))? {
            return Err(VmsError::Removed(self.record.id.clone()));
        }
        Ok(OwnedVm::new(self.home.clone(), self.record.clone(), file))
    }

    /// Waits until nobody owns it, and tells how it ended, even if it is removed by then.
    ///
    /// # Errors
    /// [`VmsError::Removed`] if it is gone already, or if its lock can't be waited for.
    pub fn wait(&self) -> Result<State, VmsError> {
        let file = self.home.open_lock()?;
        lock::wait_free(&file).map_err(VmsError::io("wait for", &self.home.file("lock")))?;
        if let Some(state) = last_words(&file) {
            return Ok(state);
        }
        match self.state() {
            Err(VmsError::Removed(_)) => Ok(self.home.read_state().dead()),
            other => other,
        }
    }

    /// Says that its end, which the caller is about to bring, is for good.
    ///
    /// # Errors
    /// [`VmsError::Removed`], or if that can't be noted.
    pub fn ask_stop(&self) -> Result<(), VmsError> {
        let path = self.home.file(STOP);
        match File::create(&path) {
            Ok(_) => Ok(()),
            Err(gone) if gone.kind() == ErrorKind::NotFound => {
                Err(VmsError::Removed(self.record.id.clone()))
            }
            // Nothing would undo it; a full disk is no reason to let it run.
            Err(_) if self.record.restart == RestartPolicy::No => Ok(()),
            Err(error) => Err(VmsError::io("make", &path)(error)),
        }
    }

    /// A connection to its monitor.
    ///
    /// # Errors
    /// If it does not run, or does not answer yet.
    pub fn control(&self) -> Result<Client, ClientError> {
        Client::connect(&self.runtime_dir())
    }

    /// What its command wrote.
    pub fn log_reader(&self) -> LogReader {
        LogReader::new(self.dir())
    }
}

/// Room that is kept for last words, in bytes. All but a very long error fits.
const LAST_WORDS: usize = 1024;

/// How a VM ended, for those who waited with its lock open and may find its folder gone.
pub(super) fn last_words(lock: &File) -> Option<State> {
    let mut bytes = vec![0; 16 << 10];
    let count = lock.read_at(&mut bytes, 0).ok()?;
    serde_json::from_slice(bytes.get(..count)?).ok()
}

/// Writes them over what is there, with blanks behind: the file keeps its room, so that they can be
/// said on a disk that is full by then.
pub(super) fn write_last_words(lock: &File, path: &Path, state: &[u8]) -> Result<(), VmsError> {
    let mut words = state.to_vec();
    words.resize(state.len().max(LAST_WORDS), b' ');
    lock.write_all_at(&words, 0)
        .and_then(|()| lock.set_len(words.len() as u64))
        .map_err(VmsError::io("write", path))
}
