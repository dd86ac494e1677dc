//! What `-v` and `--tmpfs` say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use casita_agent::mounts::{MountError, check_target};
use serde::{Deserialize, Serialize};

use crate::disk::{SizeError, check_name, format_size, parse_size};

/// A volume or a directory of the host's, and where the guest gets it: `NAME:/path`,
/// `NAME:/path:ro`, `NAME:/path:shared` or `/host/dir:/path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeSpec {
    /// What is mounted.
    pub source: VolumeSource,
    /// Where, in the guest.
    pub target: String,
    /// Whether the guest can't write to it.
    pub read_only: bool,
}

/// What a [`VolumeSpec`] mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A volume of Casita's. What kind of volume is its own business, unless it is to be a
    /// `shared` one.
    Named {
        /// Its name.
        name: String,
        /// Whether several VMs write to it.
        shared: bool,
    },
    /// A directory of the host's.
    Directory(PathBuf),
}

/// A file system in memory: `/path`, `/path:size=64M` or `/path:size=64M,mode=1777`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TmpfsSpec {
    /// Where, in the guest.
    pub target: String,
    /// The most that it holds, in bytes; without one, half of the guest's memory.
    pub size: Option<u64>,
    /// The mode of its root.
    pub mode: u32,
}

/// Everyone may write to it, and remove what is theirs, as in Docker.
const TMPFS_MODE: u32 = 0o1777;

/// Why such a text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeSpecError {
    /// No two parts.
    #[error("'{0}' does not say what to mount where: write NAME:/path or /host/directory:/path")]
    Shape(String),
    /// Neither a volume's name nor a path.
    #[error("'{0}' can't be a volume's name: {hint}", hint = name_hint(.0))]
    Name(String),
    /// An option that volumes don't have.
    #[error("unknown volume option '{0}'; there are ro, rw and shared")]
    VolumeOption(String),
    /// A host's directory is there for everyone anyway.
    #[error(
        "'{0}' is a directory of the host's, which several VMs may use anyway: leave out 'shared'"
    )]
    SharedDirectory(String),
    /// An option that a tmpfs does not have.
    #[error("unknown tmpfs option '{0}'; there are size= and mode=")]
    TmpfsOption(String),
    /// A mode that is none.
    #[error("'{0}' is not a mode: write octal digits such as 1777")]
    Mode(String),
    /// A tmpfs of nothing.
    #[error("a tmpfs of size 0 holds nothing; leave the size out for half of the memory")]
    Empty,
    /// The size can't be read.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Nothing can be mounted there.
    #[error(transparent)]
    Target(#[from] MountError),
}

fn name_hint(name: &str) -> &'static str {
    if name.contains('/') {
        "write ./ before a directory"
    } else {
        "it takes 1-64 letters, digits, '_', '.' and '-', and begins with a letter or digit"
    }
}

impl FromStr for VolumeSpec {
    type Err = VolumeSpecError;

    fn from_str(text: &str) -> Result<Self, VolumeSpecError> {
        let shape = || VolumeSpecError::Shape(text.to_owned());
        let mut parts = text.split(':');
        let (source, target) = parts.next().zip(parts.next()).ok_or_else(shape)?;
        let options = parts.next();
        if source.is_empty() || target.is_empty() || parts.next().is_some() {
            return Err(shape());
        }
        check_target(target.as_bytes())?;
        let (mut read_only, mut shared) = (false, false);
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                "shared" => shared = true,
                other => return Err(VolumeSpecError::VolumeOption(other.to_owned())),
            }
        }
        let source = if is_path(source) {
            if shared {
                return Err(VolumeSpecError::SharedDirectory(source.to_owned()));
            }
            VolumeSource::Directory(source.into())
        } else {
            check_name(source).map_err(|_| VolumeSpecError::Name(source.to_owned()))?;
            let name = source.to_owned();
            VolumeSource::Named { name, shared }
        };
        Ok(Self {
            source,
            target: target.to_owned(),
            read_only,
        })
    }
}

/// Names never begin with these.
fn is_path(source: &str) -> bool {
    source.starts_with('/')
        || matches!(source, "." | "..")
        || source.starts_with("./")
        || source.starts_with("../")
}

impl VolumeSpec {
    /// Makes a relative directory one below `base`.
    pub fn resolve(&mut self, base: &Path) {
        if let VolumeSource::Directory(path) = &mut self.source {
            let joined = base.join(&path);
            // `base` may be relative or empty; what is written has to read back as a directory.
            *path = if joined.is_absolute() || is_path(&joined.to_string_lossy()) {
                joined
            } else {
                Path::new(".").join(joined)
            };
        }
    }
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = match &self.source {
            VolumeSource::Named { name, shared } => {
                out.write_str(name)?;
                *shared
            }
            VolumeSource::Directory(path) => {
                write!(out, "{}", path.display())?;
                false
            }
        };
        write!(out, ":{}", self.target)?;
        match (shared, self.read_only) {
            (false, false) => Ok(()),
            (true, false) => out.write_str(":shared"),
            (false, true) => out.write_str(":ro"),
            (true, true) => out.write_str(":shared,ro"),
        }
    }
}

impl FromStr for TmpfsSpec {
    type Err = VolumeSpecError;

    fn from_str(text: &str) -> Result<Self, VolumeSpecError> {
        let (target, options) = match text.split_once(':') {
            Some((target, options)) => (target, Some(options)),
            None => (text, None),
        };
        check_target(target.as_bytes())?;
        let mut spec = Self {
            target: target.to_owned(),
            size: None,
            mode: TMPFS_MODE,
        };
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            match option.split_once('=') {
                Some(("size", size)) => {
                    spec.size = match parse_size(size)? {
                        0 => return Err(VolumeSpecError::Empty),
                        size => Some(size),
                    }
                }
                Some(("mode", mode)) => {
                    spec.mode = u32::from_str_radix(mode, 8)
                        .ok()
                        .filter(|number| *number <= 0o7777 && !mode.starts_with('+'))
                        .ok_or_else(|| VolumeSpecError::Mode(mode.to_owned()))?;
                }
                _ => return Err(VolumeSpecError::TmpfsOption(option.to_owned())),
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for TmpfsSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.target)?;
        if let Some(size) = self.size {
            write!(out, "size={},", format_size(size))?;
        }
        write!(out, "mode={:o}", self.mode)
    }
}

impl TryFrom<String> for VolumeSpec {
    type Error = VolumeSpecError;

    fn try_from(text: String) -> Result<Self, VolumeSpecError> {
        text.parse()
    }
}

impl From<VolumeSpec> for String {
    fn from(spec: VolumeSpec) -> Self {
        spec.to_string()
    }
}

impl TryFrom<String> for TmpfsSpec {
    type Error = VolumeSpecError;

    fn try_from(text: String) -> Result<Self, VolumeSpecError> {
        text.parse()
    }
}

impl From<TmpfsSpec> for String {
    fn from(spec: TmpfsSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(text: &str) -> Result<VolumeSpec, VolumeSpecError> {
        text.parse()
    }

    fn named(name: &str, shared: bool) -> VolumeSource {
        VolumeSource::Named {
            name: name.to_owned(),
            shared,
        }
    }

    #[test]
    fn names_and_directories_are_told_apart() {
        let source = |text: &str| volume(text).unwrap().source;
        assert_eq!(source("db:/data"), named("db", false));
        assert_eq!(source("db:/data:shared"), named("db", true));
        for path in ["/a", "./a", "../a", ".", ".."] {
            let expected = VolumeSource::Directory(path.into());
            assert_eq!(source(&format!("{path}:/data")), expected);
        }
    }

    #[test]
    fn options_say_who_may_write() {
        assert!(!volume("db:/data").unwrap().read_only);
        assert!(!volume("db:/data:rw").unwrap().read_only);
        assert!(volume("/a:/data:ro").unwrap().read_only);
        let both = volume("db:/data:shared,ro").unwrap();
        assert!(both.read_only && both.source == named("db", true));
    }

    #[test]
    fn wrong_volumes_are_named() {
        for text in ["", "db", "/data", ":", "db:", ":/data", "a:/b:ro:x"] {
            let refused = volume(text).unwrap_err();
            assert_eq!(refused, VolumeSpecError::Shape(text.to_owned()));
        }
        for name in ["a/b", "a b", "-a", "é", &"x".repeat(65)] {
            let refused = volume(&format!("{name}:/data")).unwrap_err();
            assert_eq!(refused, VolumeSpecError::Name(name.to_owned()));
        }
        let directory = volume("a/b:/data").unwrap_err().to_string();
        assert!(directory.contains("./"), "{directory}");
        for target in ["data", "/", "/..", "/a/../b"] {
            let refused = volume(&format!("db:{target}")).unwrap_err();
            assert!(matches!(refused, VolumeSpecError::Target(_)), "{target}");
        }
        for option in ["rx", "", "size=1G"] {
            let refused = volume(&format!("db:/d:{option}")).unwrap_err();
            assert_eq!(refused, VolumeSpecError::VolumeOption(option.to_owned()));
        }
        let refused = volume("/a:/data:shared").unwrap_err();
        assert_eq!(refused, VolumeSpecError::SharedDirectory("/a".to_owned()));
    }

    #[test]
    fn tmpfs_options_are_read() {
        let tmpfs = |text: &str| text.parse::<TmpfsSpec>();
        let spec = |size, mode| TmpfsSpec {
            target: "/t".to_owned(),
            size,
            mode,
        };
        assert_eq!(tmpfs("/t"), Ok(spec(None, 0o1777)));
        assert_eq!(tmpfs("/t:size=64M"), Ok(spec(Some(64 << 20), 0o1777)));
        assert_eq!(tmpfs("/t:mode=700,size=1g"), Ok(spec(Some(1 << 30), 0o700)));
        for text in [
            "t",
            "/",
            "/t:",
            "/t:size",
            "/t:nr=1",
            "/t:size=x",
            "/t:size=0",
        ] {
            assert!(tmpfs(text).is_err(), "{text}");
        }
        for mode in ["", "8", "10000", "-1", "+1", "rwx"] {
            let refused = tmpfs(&format!("/t:mode={mode}")).unwrap_err();
            assert_eq!(refused, VolumeSpecError::Mode(mode.to_owned()));
        }
    }

    #[test]
    fn relative_directories_are_below_the_files_folder() {
        for (base, expected) in [
            ("/base", "/base/./d:/t"),
            ("", "./d:/t"),
            ("b", "./b/./d:/t"),
        ] {
            let mut spec = volume("./d:/t").unwrap();
            spec.resolve(Path::new(base));
            assert_eq!(spec.to_string(), expected);
            assert_eq!(volume(&spec.to_string()), Ok(spec));
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back(
            source in "[a-z./]{1,6}", target in "/[a-z./]{1,6}", options in "(:(ro|rw|shared)(,ro)?)?",
            size in proptest::option::of(1_u64..1 << 40), mode in 0..=0o7777_u32,
        ) {
            if let Ok(spec) = volume(&format!("{source}:{target}{options}")) {
                prop_assert_eq!(volume(&spec.to_string()), Ok(spec));
            }
            let spec = TmpfsSpec { target: target.clone(), size, mode };
            if check_target(target.as_bytes()).is_ok() {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            let _ = volume(&text);
            let _ = text.parse::<TmpfsSpec>();
        }
    }
}
