//! Where a copy goes: Docker's rules for `cp`.

use thiserror::Error;

/// A path of `casita cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `-`: an archive at our standard input or output.
    Stream,
    /// A path of the host's.
    Host(String),
    /// `VM:PATH`.
    Guest {
        /// The VM's name, its ID or the beginning of that.
        vm: String,
        /// The path in it; a relative one is one below its root.
        path: String,
    },
}

/// Why a path or a pair of paths was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// An empty path.
    #[error("a path is empty; write VM:/path for a VM's file and ./path for one of the host's")]
    Empty,
    /// No VM at all, or two.
    #[error("one of the two paths has to be in a VM, as in casita cp file db:/tmp, the other not")]
    OneVm,
    /// A file where a directory is needed.
    #[error("'{0}' does not exist, and ends like a directory; make that first")]
    NoDirectory(String),
    /// The directory that the copy goes into is missing.
    #[error("'{0}' does not exist; the directory that a copy goes into has to be there")]
    NoParent(String),
    /// A directory can't become a file.
    #[error("'{0}' is a file, and a directory can't be copied over it")]
    DirectoryOverFile(String),
    /// A path that ends like a directory but is none.
    #[error("'{0}' is not a directory")]
    NotADirectory(String),
}

impl std::str::FromStr for Place {
    type Err = RuleError;

    /// What begins with `/` or `.` is the host's, whatever follows.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let host = text.starts_with(['/', '.']);
        match text.split_once(':') {
            Some((vm, path)) if !host && !vm.contains('/') => {
                if vm.is_empty() || path.is_empty() {
                    return Err(RuleError::Empty);
                }
                let vm = vm.to_owned();
                let root = if path.starts_with('/') { "" } else { "/" };
                let path = format!("{root}{path}");
                Ok(Self::Guest { vm, path })
            }
            _ if text.is_empty() => Err(RuleError::Empty),
            _ => Ok(Self::Host(text.to_owned())),
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// Anything else: a file, a link, a device.
    File,
}

/// Where the copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The directory that it is put into. It has to exist.
    pub directory: String,
    /// Its name there; without one the content of a directory is put there.
    pub name: Option<String>,
}

/// Decides where `source`, which is a directory or not, goes when it is copied to `target`, at
/// which `found` was found.
///
/// # Errors
/// [`RuleError`], when it can't go there.
pub fn target(
    source: &str,
    is_directory: bool,
    target: &str,
    found: Found,
) -> Result<Target, RuleError> {
    let refused = |why: fn(String) -> RuleError| Err(why(target.to_owned()));
    let over = || {
        let (directory, name) = split(target);
        Ok(Target {
            directory,
            name: Some(name.to_owned()),
        })
    };
    match (is_directory, found) {
        (false, Found::Nothing) if ends_like_directory(target) => refused(RuleError::NoDirectory),
        (_, Found::File) if ends_like_directory(target) => refused(RuleError::NotADirectory),
        (true, Found::File) => refused(RuleError::DirectoryOverFile),
        (_, Found::Nothing) | (false, Found::File) => over(),
        (_, Found::Directory) => Ok(Target {
            directory: target.to_owned(),
            name: name(source).map(ToOwned::to_owned),
        }),
    }
}

/// Whether a path says itself that it is a directory's.
fn ends_like_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.")
}

/// The name of what is at `path`; none for `/`, and for what ends with `.` or `..`, which mean a
/// directory's content.
pub fn name(path: &str) -> Option<&str> {
    let mut names = path.rsplit('/').filter(|name| !name.is_empty());
    names.next().filter(|name| !matches!(*name, "." | ".."))
}

/// The directory that a path lies in, and its last name.
fn split(path: &str) -> (String, &str) {
    let trimmed = path.trim_end_matches("/.").trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some(("", name)) => ("/".to_owned(), name),
        Some((directory, name)) => (directory.to_owned(), name),
        None => (".".to_owned(), trimmed),
    }
}

/// Where the symbolic link at `path` leads: what to look at next.
pub fn behind_link(path: &str, link: &str) -> String {
    if link.starts_with('/') {
        return link.to_owned();
    }
    let (directory, _) = split(path);
    format!("{directory}/{link}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(text: &str) -> Result<Place, RuleError> {
        text.parse()
    }

    #[test]
    fn guests_and_hosts_paths_are_told_apart() {
        let guest = |vm: &str, path: &str| {
            Ok(Place::Guest {
                vm: vm.to_owned(),
                path: path.to_owned(),
            })
        };
        let host = |path: &str| Ok(Place::Host(path.to_owned()));
        assert_eq!(place("-"), Ok(Place::Stream));
        assert_eq!(place("db:/a:b"), guest("db", "/a:b"));
        assert_eq!(place("db:a"), guest("db", "/a"));
        for path in ["a", "/a:b", "./a:b", "d/e:f", "../x:y"] {
            assert_eq!(place(path), host(path));
        }
        for bad in ["", "db:", ":/a"] {
            assert_eq!(place(bad), Err(RuleError::Empty), "{bad}");
        }
    }

    /// The table of `docker cp`'s documentation.
    #[test]
    fn a_copy_goes_where_docker_puts_it() {
        use Found::{Directory, File, Nothing};
        let to = |directory: &str, name: Option<&str>| {
            Ok(Target {
                directory: directory.to_owned(),
                name: name.map(ToOwned::to_owned),
            })
        };
        let error = |why: fn(String) -> RuleError, path: &str| Err(why(path.to_owned()));
        for (source, is_directory, path, found, expected) in [
            ("/s/f", false, "/d/new", Nothing, to("/d", Some("new"))),
            ("/s/f", false, "new", Nothing, to(".", Some("new"))),
            ("/s/f", false, "/new", Nothing, to("/", Some("new"))),
            (
                "/s/f",
                false,
                "/d/new/",
                Nothing,
                error(RuleError::NoDirectory, "/d/new/"),
            ),
            ("/s/f", false, "/d/old", File, to("/d", Some("old"))),
            (
                "/s/f",
                false,
                "/d/old/",
                File,
                error(RuleError::NotADirectory, "/d/old/"),
            ),
            ("/s/f", false, "/d", Directory, to("/d", Some("f"))),
            ("/s/d", true, "/d/new", Nothing, to("/d", Some("new"))),
            ("/s/d", true, "/d/new/", Nothing, to("/d", Some("new"))),
            ("/s/d/.", true, "/d/new", Nothing, to("/d", Some("new"))),
            (
                "/s/d",
                true,
                "/d/old",
                File,
                error(RuleError::DirectoryOverFile, "/d/old"),
            ),
            ("/s/d", true, "/d", Directory, to("/d", Some("d"))),
            ("/s/d/", true, "/d/", Directory, to("/d/", Some("d"))),
            ("/s/d/.", true, "/d", Directory, to("/d", None)),
            (".", true, "/d", Directory, to("/d", None)),
            ("/", true, "/d", Directory, to("/d", None)),
        ] {
            let put = target(source, is_directory, path, found);
            assert_eq!(put, expected, "{source} to {path}, which is {found:?}");
        }
    }

    #[test]
    fn links_are_followed_from_where_they_are() {
        for (path, link, expected) in [
            ("/a/l", "/t", "/t"),
            ("/a/l", "t", "/a/t"),
            ("/l", "t", "//t"),
            ("/a/l/", "../t", "/a/../t"),
        ] {
            assert_eq!(behind_link(path, link), expected);
        }
    }

    proptest! {
        #[test]
        fn a_name_is_one_name(path in "[a./]{0,12}", directory: bool, kind in 0..3_usize) {
            let found = [Found::Nothing, Found::Directory, Found::File][kind];
            let sane = |name: &str| !name.contains('/') && name != "." && name != "..";
            prop_assert!(name(&path).is_none_or(sane));
            if let Ok(Target { name: Some(name), .. }) = target("/s/x", directory, &path, found)
                && found == Found::Directory
            {
                prop_assert!(sane(&name));
            }
        }
    }
}
