//! A place of its own for each test: a folder with everything that the program keeps, so that what
//! it leaves behind can be seen. Only the cache is shared, as it is between a user's VMs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::run::Program;

/// A folder that is removed with what is in it.
pub struct Place {
    folder: TempDir,
}

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
        let place = Self { folder };
        for name in ["data", "run", "tmp", "home"] {
            let path = place.path(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
        }
        Ok(place)
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
        Program::casita(arguments.into_iter().map(Into::into).collect())
            .folder(self.folder.path())
            .env("HOME", self.path("home"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("TMPDIR", self.path("tmp"))
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
