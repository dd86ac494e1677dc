//! A place of its own for each test: a folder with everything that the program keeps, so that what
//! it leaves behind can be seen. Only the cache is shared, as it is between a user's VMs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::machine;
use crate::run::Program;

/// A folder that is removed with what is in it.
pub struct Place {
    folder: TempDir,
    /// Whether the program is started as `nobody`.
    ordinary: bool,
}

/// The number of the user and of the group that own nothing.
pub const NOBODY: u32 = 65534;

/// The start of a command that runs as a user without any right of root's, in no group.
const ORDINARY: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--",
];

impl Place {
    /// A new one.
    ///
    /// # Errors
    /// If the folder can't be made.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("casita-test.")
            .tempdir()
            .context("no folder for a test")?;
        let place = Self {
            folder,
            ordinary: false,
        };
        for name in ["data", "run", "tmp", "home"] {
            let path = place.path(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
        }
        Ok(place)
    }

    /// Why there is none of an ordinary user's, if there is none.
    pub fn lacks_ordinary() -> Option<String> {
        let not_root =
            || (!machine::is_root()).then(|| "needs root, to be another user".to_owned());
        not_root().or_else(|| machine::lacks("setpriv", "util-linux"))
    }

    /// A new one in which the program is started as an ordinary user, `nobody`, to whom all that is
    /// in it belongs: the programs, the kernel and the cache too.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn of_an_ordinary_user() -> Result<Self> {
        let mut place = Self::new()?;
        place.ordinary = true;
        fs::create_dir(place.path("bin"))?;
        fs::create_dir(place.path("cache"))?;
        for name in ["casita", "casita-image", "casita-fs"] {
            let program = machine::casita().with_file_name(name);
            let copied = fs::copy(&program, place.path("bin").join(name));
            copied.with_context(|| format!("copying {}", program.display()))?;
        }
        let kernel = machine::default_kernel();
        if kernel.exists() {
            fs::copy(kernel, place.path("vmlinux"))?;
        }
        place.give()?;
        Ok(place)
    }

    /// Gives all that is in it to its ordinary user.
    ///
    /// # Errors
    /// If it can't be given.
    pub fn give(&self) -> Result<()> {
        give(self.folder.path())
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text, for a command line.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file into it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(self.text(name))
    }

    /// The program, started with the folder as its home; files are named relative to it.
    pub fn casita<I: IntoIterator<Item: Into<String>>>(&self, arguments: I) -> Program {
        let program = Program::casita(arguments.into_iter().map(Into::into).collect())
            .folder(self.folder.path())
            .env("HOME", self.path("home"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("TMPDIR", self.path("tmp"));
        if !self.ordinary {
            return program;
        }
        program
            .binary(&self.path("bin/casita"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("CASITA_KERNEL", self.path("vmlinux"))
            .under(&ORDINARY)
    }

    /// Every file and non-empty folder in it.
    ///
    /// # Errors
    /// If it can't be listed.
    pub fn listing(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        list(self.folder.path(), self.folder.path(), &mut found)?;
        Ok(found)
    }
}

fn give(path: &Path) -> Result<()> {
    lchown(path, Some(NOBODY), Some(NOBODY))?;
    if !path.symlink_metadata()?.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        give(&entry?.path())?;
    }
    Ok(())
}

/// Adds what is in `folder`; empty folders that the program keeps its files in do not count.
fn list(folder: &Path, base: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list(&path, base, found)?;
        } else {
            let name = path.strip_prefix(base).unwrap_or(&path);
            found.insert(name.display().to_string());
        }
    }
    Ok(())
}
