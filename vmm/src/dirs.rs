//! Where Casita keeps its files: the XDG base directories, each with a `casita` folder in it.
//!
//! Rules from the XDG Base Directory Specification 0.8: an empty or relative value counts as unset,
//! and a directory that has to be created gets mode 0700.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const APP: &str = "casita";

/// Why a directory of Casita's can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// Neither the XDG variable, nor `HOME`, nor the user database says where files go.
    #[error("no home directory is known for user {uid}; set HOME or {variable}")]
    NoHome {
        /// The user's numeric id.
        uid: u32,
        /// The XDG variable that would settle it.
        variable: &'static str,
    },
    /// The directory could not be made or looked at.
    #[error("can't use the directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have planted or could read the runtime directory.
    #[error("{} {problem}; remove it or set XDG_RUNTIME_DIR", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The three directories, as paths; see [`Dirs::ensure`] for making one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    data: PathBuf,
    cache: PathBuf,
    runtime: PathBuf,
}

impl Dirs {
    /// Reads the environment. Of the three only a runtime directory that lies in a shared place
    /// such as `/tmp` is created here, because there its owner has to be checked before use.
    ///
    /// # Errors
    /// [`DirsError::NoHome`] when no home is known, [`DirsError::Unsafe`] when the shared runtime
    /// directory belongs to somebody else.
    pub fn from_env() -> Result<Self, DirsError> {
        Self::from_lookup(
            &|name| std::env::var_os(name),
            rustix::process::getuid().as_raw(),
            Path::new("/run/user"),
        )
    }

    /// All three below one folder: `data`, `cache` and `runtime`. For tests and one-off set-ups.
    pub fn below(base: &Path) -> Self {
        Self {
            data: base.join("data"),
            cache: base.join("cache"),
            runtime: base.join("runtime"),
        }
    }

    fn from_lookup(
        lookup: &dyn Fn(&str) -> Option<OsString>,
        uid: u32,
        run_user: &Path,
    ) -> Result<Self, DirsError> {
        let absolute = |name: &str| {
            lookup(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = |variable: &'static str, below_home: &str| {
            absolute(variable)
                .or_else(|| {
                    absolute("HOME")
                        .or_else(|| home_in_passwd(uid))
                        .map(|home| home.join(below_home))
                })
                .map(|base| base.join(APP))
                .ok_or(DirsError::NoHome { uid, variable })
        };
        Ok(Self {
            data: base("XDG_DATA_HOME", ".local/share")?,
            cache: base("XDG_CACHE_HOME", ".cache")?,
            runtime: match absolute("XDG_RUNTIME_DIR") {
                Some(base) => base.join(APP),
                None => runtime_fallback(absolute("TMPDIR"), uid, run_user)?,
            },
        })
    }

    /// `$XDG_DATA_HOME/casita`: images, volumes and kept disks.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// `$XDG_CACHE_HOME/casita`: what can be built again from something else.
    pub fn cache(&self) -> PathBuf {
        self.cache.clone()
    }

    /// `$XDG_RUNTIME_DIR/casita`: sockets, locks and logs of running machines.
    pub fn runtime(&self) -> PathBuf {
        self.runtime.clone()
    }

    /// Makes `path` and what is missing above it, mode 0700. One system call when it is there.
    ///
    /// # Errors
    /// [`DirsError::Io`] when it can't be made or is not a directory.
    pub fn ensure(path: &Path) -> Result<(), DirsError> {
        let error = |source| DirsError::Io {
            path: path.to_owned(),
            source,
        };
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => return Err(error(io::ErrorKind::NotADirectory.into())),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => (),
            Err(other) => return Err(error(other)),
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(error)
    }
}

/// The home directory that `/etc/passwd` names for `uid`, for programs started without `HOME`.
fn home_in_passwd(uid: u32) -> Option<PathBuf> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))?;
    (fields.len() > 5)
        .then(|| PathBuf::from(fields.swap_remove(5)))
        .filter(|home| home.is_absolute())
}

fn runtime_fallback(
    tmpdir: Option<PathBuf>,
    uid: u32,
    run_user: &Path,
) -> Result<PathBuf, DirsError> {
    let session = run_user.join(uid.to_string());
    if std::fs::symlink_metadata(&session).is_ok_and(|dir| dir.is_dir() && dir.uid() == uid) {
        return Ok(session.join(APP));
    }
    let path = tmpdir
        .unwrap_or_else(|| PathBuf::from("/tmp"))
        .join(format!("{APP}-{uid}"));
    private_in_shared(&path, uid)?;
    Ok(path)
}

/// Makes `path` in a directory that others may write to, or accepts one that is already ours.
/// In a sticky directory such as `/tmp` nobody else can replace it after this check.
fn private_in_shared(path: &Path, uid: u32) -> Result<(), DirsError> {
    let error = |source| DirsError::Io {
        path: path.to_owned(),
        source,
    };
    let wrong = |problem| {
        Err(DirsError::Unsafe {
            path: path.to_owned(),
            problem,
        })
    };
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => (),
        Err(there) if there.kind() == io::ErrorKind::AlreadyExists => (),
        Err(other) => return Err(error(other)),
    }
    // Not `metadata`: a symbolic link in /tmp may lead anywhere.
    let found = std::fs::symlink_metadata(path).map_err(error)?;
    if !found.is_dir() {
        return wrong("is not a directory");
    }
    if found.uid() != uid {
        return wrong("belongs to another user");
    }
    if found.mode() & 0o077 != 0 {
        return wrong("is open to other users");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    fn resolve(vars: &[(&str, &str)], run_user: &Path) -> Result<Dirs, DirsError> {
        let lookup = |name: &str| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        };
        Dirs::from_lookup(&lookup, uid(), run_user)
    }

    #[test]
    fn xdg_values_win_over_home() {
        let vars = [
            ("HOME", "/h"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_CACHE_HOME", "/c"),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        let dirs = resolve(&vars, Path::new("/none")).unwrap();
        assert_eq!(dirs.data(), Path::new("/d/casita"));
        assert_eq!(dirs.cache(), Path::new("/c/casita"));
        assert_eq!(dirs.runtime(), Path::new("/r/casita"));
    }

    #[test]
    fn relative_and_empty_xdg_values_count_as_unset() {
        let vars = [
            ("HOME", "/h"),
            ("XDG_DATA_HOME", "here"),
            ("XDG_CACHE_HOME", ""),
            ("XDG_RUNTIME_DIR", "/r"),
        ];
        let dirs = resolve(&vars, Path::new("/none")).unwrap();
        assert_eq!(dirs.data(), Path::new("/h/.local/share/casita"));
        assert_eq!(dirs.cache(), Path::new("/h/.cache/casita"));
    }

    #[test]
    fn runtime_falls_back_to_the_session_then_to_a_private_folder_in_tmpdir() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().to_str().unwrap();
        let vars = [("HOME", "/h"), ("TMPDIR", base)];
        let dirs = resolve(&vars, Path::new("/none")).unwrap();
        let expected = tmp.path().join(format!("casita-{}", uid()));
        assert_eq!(dirs.runtime(), expected);
        assert_eq!(expected.metadata().unwrap().mode() & 0o777, 0o700);

        let session = tmp.path().join(uid().to_string());
        std::fs::create_dir(&session).unwrap();
        let dirs = resolve(&vars, tmp.path()).unwrap();
        assert_eq!(dirs.runtime(), session.join("casita"));
    }

    #[test]
    fn a_planted_symlink_or_an_open_folder_is_refused_as_runtime() {
        let tmp = tempfile::tempdir().unwrap();
        let vars = [("HOME", "/h"), ("TMPDIR", tmp.path().to_str().unwrap())];
        let path = tmp.path().join(format!("casita-{}", uid()));
        symlink("/tmp", &path).unwrap();
        let refused = resolve(&vars, Path::new("/none")).unwrap_err();
        assert!(
            refused.to_string().contains("is not a directory"),
            "{refused}"
        );

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let refused = resolve(&vars, Path::new("/none")).unwrap_err();
        assert!(
            refused.to_string().contains("open to other users"),
            "{refused}"
        );
        assert!(private_in_shared(&path, uid() + 1).is_err());
    }

    #[test]
    fn ensure_makes_private_folders_and_refuses_a_file() {
        let tmp = tempfile::tempdir().unwrap();
        let deep = tmp.path().join("a/b");
        Dirs::ensure(&deep).unwrap();
        Dirs::ensure(&deep).unwrap();
        assert_eq!(deep.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(
            tmp.path().join("a").metadata().unwrap().mode() & 0o777,
            0o700
        );
        let file = tmp.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Dirs::ensure(&file).is_err());
    }
}
