//! What `--disk` says: which writable disk a machine gets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::size::{SizeError, format_size, parse_size};

/// The size of a disk that nobody gave one: 2 GiB, of which the host pays for what is written.
pub const DEFAULT_SIZE: u64 = 2 << 30;
/// The smallest disk that is worth a file system: 16 MiB.
pub const MIN_SIZE: u64 = 16 << 20;
/// The largest disk: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;
/// Sizes are whole file system blocks of 4 KiB.
pub const SIZE_STEP: u64 = 4096;

/// Which disk; all sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum DiskSpec {
    /// Gone when the machine ends, however it ends.
    Temporary {
        /// The size.
        size: u64,
    },
    /// Kept under the data directory and found again by name.
    Named {
        /// The machine's name, see [`check_name`].
        name: String,
        /// The size to make it with, and to expect of one that is there.
        size: Option<u64>,
    },
    /// A file of the user's.
    File {
        /// The file.
        path: PathBuf,
        /// The size to make it with, and to expect of one that is there.
        size: Option<u64>,
    },
}

/// Why a `--disk` value or a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The size part can't be read.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Neither a path nor a size.
    #[error(
        "'{0}' is neither a size such as 2G nor a file that exists; write ./{0} for a new file"
    )]
    Neither(String),
    /// Nothing before the comma, or nothing at all.
    #[error("the disk is empty; give a size such as 2G, or a path")]
    Empty,
    /// An option other than `size=`.
    #[error("unknown disk option '{0}'; only size= is known")]
    Option(String),
    /// Outside of 16 MiB to 64 TiB.
    #[error("a disk of {} is outside of 16M to 64T", format_size(*.0))]
    Range(u64),
    /// Not whole blocks.
    #[error("a disk of {0} bytes is not a whole number of 4096-byte blocks")]
    Step(u64),
    /// A name with other characters or too long.
    #[error(
        "'{0}' is not a name: use 1 to 64 letters, digits, '_', '.' and '-', \
         beginning with a letter or digit"
    )]
    Name(String),
}

/// Checks a machine's name: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}`, so that it can be a file's name
/// anywhere and never an option or a hidden file.
///
/// # Errors
/// [`SpecError::Name`].
pub fn check_name(name: &str) -> Result<(), SpecError> {
    let good = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    good.then_some(())
        .ok_or_else(|| SpecError::Name(name.to_owned()))
}

/// Checks a disk's size against [`MIN_SIZE`], [`MAX_SIZE`] and [`SIZE_STEP`].
///
/// # Errors
/// [`SpecError::Range`] or [`SpecError::Step`].
pub fn check_size(size: u64) -> Result<u64, SpecError> {
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(SpecError::Range(size));
    }
    if !size.is_multiple_of(SIZE_STEP) {
        return Err(SpecError::Step(size));
    }
    Ok(size)
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self::Temporary { size: DEFAULT_SIZE }
    }
}

impl FromStr for DiskSpec {
    type Err = SpecError;

    /// `2G`, `PATH` or `PATH,size=2G`. A text is a path when it contains `/`, begins with `.`,
    /// names something that exists, or has `,size=` behind it.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (head, option) = match text.rsplit_once(',') {
            // A comma may be part of a path; only `word=` behind it is an option.
            Some((head, tail)) => match tail.split_once('=') {
                Some((key, value)) if !key.contains(['/', '.']) => (head, Some((key, value))),
                _ => (text, None),
            },
            None => (text, None),
        };
        if head.is_empty() {
            return Err(SpecError::Empty);
        }
        let size = match option {
            Some(("size", value)) => Some(check_size(parse_size(value)?)?),
            Some((key, _)) => return Err(SpecError::Option(key.to_owned())),
            None => None,
        };
        let path = Path::new(head);
        if size.is_some()
            || head.contains('/')
            || head.starts_with('.')
            || path.symlink_metadata().is_ok()
        {
            return Ok(Self::File {
                path: path.to_owned(),
                size,
            });
        }
        match parse_size(head) {
            Ok(size) => Ok(Self::Temporary {
                size: check_size(size)?,
            }),
            Err(SizeError::Syntax(_)) if !head.starts_with(|c: char| c.is_ascii_digit()) => {
                Err(SpecError::Neither(head.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl TryFrom<String> for DiskSpec {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self {
            Self::Temporary { size } => return out.write_str(&format_size(*size)),
            Self::Named { name, size } => {
                write!(out, "{name}")?;
                size
            }
            Self::File { path, size } => {
                write!(out, "{}", path.display())?;
                size
            }
        };
        match size {
            Some(size) => write!(out, ",size={}", format_size(*size)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, size: Option<u64>) -> DiskSpec {
        DiskSpec::File {
            path: path.into(),
            size,
        }
    }

    #[test]
    fn sizes_and_paths_are_told_apart() {
        let parse = |text: &str| text.parse::<DiskSpec>();
        assert_eq!(parse("2G"), Ok(DiskSpec::Temporary { size: 2 << 30 }));
        assert_eq!(parse("/d/2G"), Ok(file("/d/2G", None)));
        assert_eq!(parse("./2G"), Ok(file("./2G", None)));
        assert_eq!(parse("a.raw,size=16M"), Ok(file("a.raw", Some(16 << 20))));
        assert_eq!(parse("/a,b"), Ok(file("/a,b", None)));
        assert_eq!(parse("/a,b/c=d"), Ok(file("/a,b/c=d", None)));
        // Tests run in the crate's folder, where this file exists.
        assert_eq!(parse("Cargo.toml"), Ok(file("Cargo.toml", None)));
    }

    #[test]
    fn wrong_values_are_named() {
        let parse = |text: &str| text.parse::<DiskSpec>().unwrap_err();
        assert_eq!(parse(""), SpecError::Empty);
        assert_eq!(parse(",size=2G"), SpecError::Empty);
        assert_eq!(parse("disk"), SpecError::Neither("disk".into()));
        assert_eq!(parse("/a,bus=scsi"), SpecError::Option("bus".into()));
        assert_eq!(parse("15M"), SpecError::Range(15 << 20));
        assert_eq!(parse("65T"), SpecError::Range(65 << 40));
        assert_eq!(parse("16777217"), SpecError::Step(16_777_217));
        assert!(matches!(parse("2X"), SpecError::Size(SizeError::Syntax(_))));
        assert!(matches!(parse("/a,size="), SpecError::Size(_)));
    }

    #[test]
    fn names_are_safe_file_names() {
        for good in ["a", "A-1_b.c", "0", &"x".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "_a",
            "a/b",
            "a b",
            "a\n",
            "é",
            "a\0",
            &"x".repeat(65),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            let _ = text.parse::<DiskSpec>();
        }

        #[test]
        fn a_temporary_disk_reads_back(blocks in MIN_SIZE / SIZE_STEP..=MAX_SIZE / SIZE_STEP) {
            let spec = DiskSpec::Temporary { size: blocks * SIZE_STEP };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }
    }
}
