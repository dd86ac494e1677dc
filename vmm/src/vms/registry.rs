//! All VMs of a user.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use super::names::is_prefix;
use super::vm::Home;
use super::{Id, NewVm, OwnedVm, Record, Vm, VmsError, names};
use crate::dirs::Dirs;
use crate::disk::check_name;
use crate::staging::{self, Moment};
use crate::time::now;

/// Half-made records.
const NEW: &str = ".new.";
/// Half-removed ones.
const OLD: &str = ".old.";

/// The user's VMs: where their records are.
#[derive(Debug, Clone)]
pub struct Registry {
    vms: PathBuf,
    runtime: PathBuf,
}

impl Registry {
    /// Finds the records; their folder is made if it is missing.
    ///
    /// # Errors
    /// If it can't be used.
    pub fn open(dirs: &Dirs) -> Result<Self, VmsError> {
        let vms = dirs.data().join("vms");
        Dirs::ensure(&vms.join("names"))?;
        Ok(Self {
            vms,
            runtime: dirs.runtime(),
        })
    }

    /// Records a VM. It belongs to the caller, so nobody else starts or removes it. The name may
    /// be that of a VM that has ended and has nothing to lose, which then goes.
    ///
    /// # Errors
    /// If the name is taken, or the record can't be written; then nothing is left.
    pub fn create(&self, new: NewVm) -> Result<OwnedVm, VmsError> {
        let moment = self.moment()?;
        self.sweep();
        let (name, before) = match new.name {
            Some(name) => {
                let before = self.vacant(&name)?;
                (name, before)
            }
            None => (self.fresh_name()?, None),
        };
        let id = self.fresh_id()?;
        let made = HalfMade(self.vms.join(format!("{NEW}{id}")));
        let record = Record {
            id: id.clone(),
            name,
            created: now(),
            config: new.config,
            image: new.image,
            rm: new.rm,
            restart: new.restart,
            skip_kvm_check: new.skip_kvm_check,
        };
        let lock = write_record(&made.0, &record)?;
        let retired = before.map(|vm| vm.retire(&moment)).transpose()?;
        // The name first: should we be killed in between, it leads nowhere, and is free.
        self.link_name(&record.name, &id)?;
        let dir = self.dir(&id);
        fs::rename(&made.0, &dir).map_err(VmsError::io("make", &dir))?;
        drop(moment);
        // Last, as it may take a while.
        drop(retired);
        Ok(OwnedVm::new(self.home(&id), record, lock))
    }

    /// The VM that `text` means: its ID, its name, or the beginning of its ID.
    ///
    /// # Errors
    /// If it means none, or several.
    pub fn find(&self, text: &str) -> Result<Vm, VmsError> {
        let unknown = || VmsError::Unknown(text.to_owned());
        let exact = match text.parse() {
            Ok(id) => self.load(&id)?,
            Err(_) => None,
        };
        let vm = match exact {
            Some(vm) => vm,
            None => self.find_shortened(text)?.ok_or_else(unknown)?,
        };
        match vm.state() {
            Err(VmsError::Removed(_)) => Err(unknown()),
            Err(error) => Err(error),
            Ok(_) => Ok(vm),
        }
    }

    /// By name, which goes first, or by the beginning of the ID.
    fn find_shortened(&self, text: &str) -> Result<Option<Vm>, VmsError> {
        if let Some(id) = self.named(text)
            && let Some(vm) = self.load(&id)?
        {
            return Ok(Some(vm));
        }
        if !is_prefix(text) {
            return Ok(None);
        }
        let mut ids = self.ids()?;
        ids.retain(|id| id.as_str().starts_with(text));
        match &ids[..] {
            [] => Ok(None),
            [id] => self.load(id),
            several => Err(VmsError::Ambiguous {
                text: text.to_owned(),
                count: several.len(),
            }),
        }
    }

    /// All VMs, the latest first. Of those whose monitor was killed, what was to be temporary is
    /// removed by the way. Damaged records are left out, with a warning.
    ///
    /// # Errors
    /// If the records can't be listed.
    pub fn list(&self) -> Result<Vec<Vm>, VmsError> {
        let mut vms = Vec::new();
        for id in self.ids()? {
            let loaded = self.load(&id).and_then(|vm| match vm {
                Some(vm) => vm.state().map(|_| Some(vm)),
                None => Ok(None),
            });
            match loaded {
                Ok(vm) => vms.extend(vm),
                Err(VmsError::Removed(_)) => {}
                Err(error) => log::warn!("{error}"),
            }
        }
        vms.sort_by(|a, b| {
            let key = |vm: &Vm| (vm.record().created, vm.record().id.clone());
            key(b).cmp(&key(a))
        });
        Ok(vms)
    }

    /// Takes a VM over from the process that started this one and gave it the locked `file`.
    ///
    /// # Errors
    /// If there is no such VM, or `file` is not its lock.
    pub fn adopt(&self, id: &Id, file: fs::File) -> Result<OwnedVm, VmsError> {
        let vm = self
            .load(id)?
            .ok_or_else(|| VmsError::Unknown(id.to_string()))?;
        vm.own_with(file)
    }

    pub(super) fn dir(&self, id: &Id) -> PathBuf {
        self.vms.join(id.as_str())
    }

    pub(super) fn runtime(&self, id: &Id) -> PathBuf {
        self.runtime.join(id.as_str())
    }

    pub(super) fn moment(&self) -> Result<Moment, VmsError> {
        Moment::lock(&self.vms).map_err(VmsError::io("lock", &self.vms))
    }

    /// Takes the record of a VM, whose owner the caller is, and its name out of sight. What is
    /// returned is still there.
    pub(super) fn retire(&self, record: &Record, _: &Moment) -> Result<PathBuf, VmsError> {
        let (dir, old) = (
            self.dir(&record.id),
            self.vms.join(format!("{OLD}{}", record.id)),
        );
        fs::rename(&dir, &old).map_err(VmsError::io("remove", &dir))?;
        if self.named(&record.name).as_ref() == Some(&record.id) {
            // A name that leads nowhere is free anyway.
            let _ = fs::remove_file(self.name_path(&record.name));
        }
        Ok(old)
    }

    fn home(&self, id: &Id) -> Home {
        Home {
            registry: self.clone(),
            id: id.clone(),
        }
    }

    fn load(&self, id: &Id) -> Result<Option<Vm>, VmsError> {
        let path = self.dir(id).join("config.json");
        let bytes = match staging::read_record(&path) {
            Ok(bytes) => bytes,
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(VmsError::io("read", &path)(error)),
        };
        let damaged = |why| VmsError::Damaged {
            path: path.clone(),
            why,
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.id != *id {
            return Err(damaged(format!("it is that of VM {}", record.id)));
        }
        Ok(Some(Vm::new(self.home(id), record)))
    }

    fn ids(&self) -> Result<Vec<Id>, VmsError> {
        let entries = fs::read_dir(&self.vms).map_err(VmsError::io("list", &self.vms))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// Removes what killed processes left half made or half removed. The caller has the
    /// [`Moment`], so nobody is making any of it now.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.vms) else {
            return;
        };
        let is_left = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(NEW) || name.starts_with(OLD)
        };
        let left: Vec<_> = entries.flatten().filter(is_left).collect();
        if left.is_empty() {
            return;
        }
        // Names that lead nowhere: of VMs that never were, or that went half-way. Where there are
        // any, there is something half made or removed beside them, which goes last.
        for name in fs::read_dir(self.vms.join("names"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = name.path();
            if exists(&path) && !path.exists() {
                let _ = fs::remove_file(&path);
            }
        }
        for entry in left {
            // What can't be removed is for the next one.
            let _ = staging::remove_tree(&entry.path());
        }
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.vms.join("names").join(name)
    }

    /// Whose name it is. The VM may be gone.
    fn named(&self, name: &str) -> Option<Id> {
        check_name(name).ok()?;
        let to = fs::read_link(self.name_path(name)).ok()?;
        to.file_name()?.to_str()?.parse().ok()
    }

    /// Checks that `name` can be taken; returns the VM that it is to be taken from.
    fn vacant(&self, name: &str) -> Result<Option<OwnedVm>, VmsError> {
        let Some(vm) = self.named(name).map(|id| self.load(&id)).transpose()? else {
            return Ok(None);
        };
        let Some(vm) = vm else { return Ok(None) };
        let (name, id) = (name.to_owned(), vm.record().id.clone());
        match vm.try_own() {
            Ok(owned) if owned.record().rm || !owned.disk_path().exists() => Ok(Some(owned)),
            Ok(_) => Err(VmsError::NameKept { name, id }),
            Err(VmsError::InUse(_)) => Err(VmsError::NameRuns { name, id }),
            Err(VmsError::Removed(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fresh_name(&self) -> Result<String, VmsError> {
        for attempt in 0.. {
            let name = names::generate(attempt).map_err(no_random)?;
            if !exists(&self.name_path(&name)) {
                return Ok(name);
            }
        }
        unreachable!("there are more names than VMs")
    }

    fn fresh_id(&self) -> Result<Id, VmsError> {
        loop {
            let id = Id::random().map_err(no_random)?;
            if !exists(&self.dir(&id)) {
                return Ok(id);
            }
        }
    }

    fn link_name(&self, name: &str, id: &Id) -> Result<(), VmsError> {
        let path = self.name_path(name);
        // It is free, but may still lead to where a VM was.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(VmsError::io("remove", &path)(error));
        }
        symlink(Path::new("..").join(id.as_str()), &path).map_err(VmsError::io("make", &path))
    }
}

/// A record's folder that is removed on drop, unless it has got its real name.
struct HalfMade(PathBuf);

impl Drop for HalfMade {
    fn drop(&mut self) {
        let _ = staging::remove_tree(&self.0);
    }
}

fn write_record(dir: &Path, record: &Record) -> Result<fs::File, VmsError> {
    let json = serde_json::to_vec_pretty(record)
        .map_err(|error| VmsError::Unwritable(error.to_string()))?;
    DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(VmsError::io("make", dir))?;
    let path = dir.join("config.json");
    staging::replace(&path, &json, !record.rm).map_err(VmsError::io("write", &path))?;
    let path = dir.join("lock");
    let lock = super::lock::open(&path, true).map_err(VmsError::io("make", &path))?;
    // Nobody else can know it yet.
    super::lock::try_own(&lock).map_err(VmsError::io("lock", &path))?;
    Ok(lock)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn no_random(error: io::Error) -> VmsError {
    VmsError::io("name a VM with", Path::new("/dev/urandom"))(error)
}
