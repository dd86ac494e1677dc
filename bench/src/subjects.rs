//! What is measured and with what: programs, kernel, root image, and a folder to work in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use casita::cli::bench::Setup;
use casita::config::default_kernel;
use casita::dirs::Dirs;
use casita::images::{self, PullPolicy};
use casita::rootfs;
use tempfile::TempDir;

use crate::place;

/// PID 1 of the peers' guests, from guest-init.c.
const GUEST_INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-init"));
/// The library that stamps events, from shim.c.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.so"));

/// What is measured, and with what.
pub struct Subjects {
    /// The program.
    pub casita: PathBuf,
    /// The guest kernel of all VMs.
    pub kernel: PathBuf,
    /// The same as it was given, by which people know it.
    pub given_kernel: PathBuf,
    /// The root image of all VMs and containers.
    pub image: PathBuf,
    /// The initrd of the peers' guests, with guest-init.c.
    pub initrd: PathBuf,
    /// The library that stamps events.
    pub shim: PathBuf,
    /// For files that are written while measuring.
    pub work: PathBuf,
    /// The image that is imported, an OCI layout.
    pub layout: Option<PathBuf>,
    /// Runs of each peer.
    pub runs: usize,
    /// Removed with this.
    #[allow(dead_code, reason = "kept for its drop")]
    own_folder: Option<TempDir>,
}

impl Subjects {
    /// Puts together what all measurements need; `work` is made.
    ///
    /// # Errors
    /// If a file can't be written or copied.
    pub fn new(casita: &Path, kernel: &Path, image: &Path, work: &Path) -> Result<Self> {
        fs::create_dir_all(work).with_context(|| format!("making {}", work.display()))?;
        let (initrd, shim) = (work.join("initrd"), work.join("shim.so"));
        let archive = casita_agent::initrd::with_init(GUEST_INIT).context("the initrd's size")?;
        fs::write(&initrd, archive).with_context(|| format!("writing {}", initrd.display()))?;
        fs::write(&shim, SHIM).with_context(|| format!("writing {}", shim.display()))?;
        let subjects = Self {
            casita: casita.to_owned(),
            kernel: kernel.to_owned(),
            given_kernel: kernel.to_owned(),
            image: image.to_owned(),
            initrd,
            shim,
            work: work.to_owned(),
            layout: None,
            runs: 1,
            own_folder: None,
        };
        subjects.brought_near()
    }

    /// What a user's command line names, in a folder below `below` that goes with this.
    ///
    /// # Errors
    /// If there is no such image or kernel, or a file can't be written.
    pub fn of(setup: &Setup, casita: &Path, below: &Path) -> Result<Self> {
        let dirs = Dirs::from_env()?;
        let image = match &setup.image {
            Some(name) => images::resolve(name, PullPolicy::Missing, &dirs)?.path,
            None => rootfs::builtin(&dirs)?.path,
        };
        Self::with_image(&image, setup.kernel.as_deref(), casita, below)
    }

    /// The same with a root image.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn with_image(
        image: &Path,
        kernel: Option<&Path>,
        casita: &Path,
        below: &Path,
    ) -> Result<Self> {
        let kernel = match kernel {
            Some(path) => path.to_owned(),
            None => default_kernel(&Dirs::from_env()?)?,
        };
        let kernel = fs::canonicalize(&kernel)
            .with_context(|| format!("there is no kernel {}", kernel.display()))?;
        let place = work_folder(below)?;
        let mut subjects = Self::new(casita, &kernel, image, place.path())?;
        subjects.own_folder = Some(place);
        Ok(subjects)
    }

    /// In the lab the machine's files come from a file server outside, whose answers take a time
    /// that is not the lab's: everything that is measured is copied first.
    fn brought_near(mut self) -> Result<Self> {
        if place::lab().is_none() {
            return Ok(self);
        }
        let folder = self.work.join("near");
        fs::create_dir_all(&folder)?;
        for path in [&mut self.casita, &mut self.kernel, &mut self.image] {
            let copy = folder.join(path.file_name().unwrap_or_default());
            fs::copy(&*path, &copy).with_context(|| format!("copying {}", path.display()))?;
            *path = copy;
        }
        Ok(self)
    }
}

/// A new folder that goes when it is dropped.
///
/// # Errors
/// If it can't be made.
pub fn work_folder(below: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("casita-bench.")
        .tempdir_in(below)
        .with_context(|| format!("no folder can be made in {}", below.display()))
}

/// Where measurements write what is no measurement of a disk: near the programs' memory in the lab.
pub fn default_place() -> PathBuf {
    if place::lab().is_some() {
        "/dev/shm".into()
    } else {
        std::env::temp_dir()
    }
}
