//! Files that were taken out, written to the host. Their paths are a guest's: no step of one follows
//! a symbolic link, and none leads out of the directory that was given.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::error::SandboxError;
use super::result::TakenFile;

impl TakenFile {
    /// Writes it below `directory`, as `name`, whose parts are the names of directories, which are
    /// made if they are missing, and its own. What is there is replaced, unless it is a directory.
    ///
    /// # Errors
    /// If `name` has a part that is no name, a part of it is a symbolic link, or the system says
    /// so.
    pub fn save_below(&self, directory: &Path, name: &str) -> Result<(), SandboxError> {
        let path = directory.join(name.trim_start_matches('/'));
        self.write_below(directory, name)
            .map_err(|source| SandboxError::Save { path, source })
    }

    fn write_below(&self, directory: &Path, name: &str) -> io::Result<()> {
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        let sane = |part: &&str| !matches!(*part, "." | "..") && !part.contains('\0');
        let Some((last, parents)) = parts.split_last().filter(|_| parts.iter().all(sane)) else {
            return Err(io::Error::other("its path leads out of the directory"));
        };
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        let top = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(directory)?;
        let mut parent = OwnedFd::from(top);
        for part in parents {
            parent = enter(&parent, part)?;
        }
        match unlinkat(&parent, *last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(self.mode & 0o777);
        let file = openat(
            &parent,
            *last,
            flags | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        File::from(file.as_fd().try_clone_to_owned()?).write_all(&self.data.0)?;
        Ok(fchmod(&file, mode)?)
    }
}

fn enter(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(openat(parent, name, flags, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Bytes;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn file(mode: u32) -> TakenFile {
        TakenFile {
            path: "/x".to_owned(),
            mode,
            data: Bytes::from("content"),
        }
    }

    #[test]
    fn files_are_written_with_their_modes_and_replace_what_is_there() {
        let place = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o755, 0o4755] {
            file(mode).save_below(place.path(), "/a/b/c").unwrap();
            let path = place.path().join("a/b/c");
            assert_eq!(fs::read(&path).unwrap(), b"content");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode & 0o777);
        }
        file(0o600).save_below(place.path(), "a").unwrap_err();
    }

    #[test]
    fn no_link_and_no_way_up_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let (inside, outside) = (place.path().join("in"), place.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "before").unwrap();
        symlink(&outside, inside.join("d")).unwrap();
        symlink(outside.join("secret"), inside.join("f")).unwrap();
        for name in [
            "d/new",
            "../out/new",
            "x/../../out/new",
            "..",
            "",
            "/",
            "a/..",
        ] {
            file(0o600).save_below(&inside, name).unwrap_err();
        }
        file(0o600).save_below(&inside, "f").unwrap();
        assert_eq!(fs::read(inside.join("f")).unwrap(), b"content");
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"before");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_written_outside(name in "[a./]{0,12}") {
            let place = tempfile::tempdir().unwrap();
            let inside = place.path().join("in");
            fs::create_dir(&inside).unwrap();
            let _ = file(0o600).save_below(&inside, &name);
            prop_assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        }
    }
}
