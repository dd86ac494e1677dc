//! What is to be run.

use std::path::{Path, PathBuf};

use casita_net::EgressPolicy;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Limits;
use super::bytes::{Bytes, decode};
use super::limits::LimitError;
use crate::config::{MAX_CPUS, MachineConfig};
use crate::control::protocol::RequestError as ProcessError;
use crate::images::PullPolicy;

/// The longest request in JSON, in bytes. Larger files are named by their paths.
pub const MAX_REQUEST: u64 = 256 << 20;
/// The most files to put in, and the most paths to take out.
const MAX_FILES: usize = 4096;
const MAX_TAKES: usize = 256;
/// The longest path in the guest, in bytes.
const MAX_PATH: usize = 4000;
/// The longest command with its environment, in bytes.
const MAX_COMMAND: usize = 512 << 10;

/// One run: an image, files to put in, a command, limits, and files to take out.
///
/// ```
/// use casita::sandbox::{Content, ImageSource, PutFile, SandboxRequest};
///
/// let request = SandboxRequest {
///     image: ImageSource::Reference("python:3".to_owned()),
///     put: vec![PutFile::new("/work/a.py", "print(6 * 7)\n")],
///     command: vec!["python3".to_owned(), "/work/a.py".to_owned()],
///     stdin: Some(Content::from("for the command")),
///     ..SandboxRequest::default()
/// };
/// request.check()?;
///
/// // The same as JSON, as `casita sandbox --request` takes it.
/// let same = r#"{
///     "image": {"reference": "python:3"},
///     "put": [{"path": "/work/a.py", "text": "print(6 * 7)\n"}],
///     "command": ["python3", "/work/a.py"],
///     "stdin": {"text": "for the command"}
/// }"#;
/// assert_eq!(SandboxRequest::from_json(same.as_bytes())?, request);
/// # Ok::<(), casita::sandbox::RequestError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxRequest {
    /// What the guest's root is made of.
    pub image: ImageSource,
    /// When a registry is asked for the image: `missing`, `always` or `never`.
    pub pull: PullPolicy,
    /// The command and its arguments, behind the image's entry point if that has one; empty for the
    /// image's own.
    pub command: Vec<String>,
    /// Variables, as `NAME=value`, over the image's.
    pub env: Vec<String>,
    /// The working directory, an absolute path, made if it is missing; else the image's.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`, each a name or a number; else the image's.
    pub user: Option<String>,
    /// The command's standard input; without one it is empty.
    pub stdin: Option<Content>,
    /// Files that are in the guest before the command starts.
    pub put: Vec<PutFile>,
    /// Files and directories to take out when the command has ended by itself: absolute paths, with
    /// `*`, `?` and `[...]` as in a shell.
    pub take: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// What it may reach: `none` if nothing is said, which leaves it without a network device; else
    /// `all`, or a list as `--egress` has it, through passt. Nothing reaches the run.
    pub egress: EgressPolicy,
    /// Processors: 1 if nothing is said.
    pub cpus: u8,
    /// Another guest kernel.
    pub kernel: Option<PathBuf>,
}

impl Default for SandboxRequest {
    fn default() -> Self {
        Self {
            image: ImageSource::BuiltIn,
            pull: PullPolicy::default(),
            command: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            stdin: None,
            put: Vec::new(),
            take: Vec::new(),
            limits: Limits::default(),
            egress: EgressPolicy::None,
            cpus: 1,
            kernel: None,
        }
    }
}

/// What a guest's root is made of. It is only read, and shared between all guests that have it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// The small image that casita has in it, with busybox.
    #[default]
    BuiltIn,
    /// An image of the store, by name or digest; pulled if it is missing and that is allowed.
    Reference(String),
    /// An image file, or a directory that is packed into one.
    Rootfs(PathBuf),
}

/// Where bytes come from. In JSON `{"text": ...}`, `{"base64": ...}` or `{"file": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "RawContent", try_from = "RawContent")]
pub enum Content {
    /// These.
    Bytes(Vec<u8>),
    /// A file of the host's.
    File(PathBuf),
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawContent {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

impl From<Content> for RawContent {
    fn from(content: Content) -> Self {
        match content {
            Content::File(path) => Self {
                file: Some(path),
                ..Self::default()
            },
            Content::Bytes(bytes) => match Bytes(bytes).into_parts() {
                (text @ Some(_), _) => Self {
                    text,
                    ..Self::default()
                },
                (None, base64) => Self {
                    base64,
                    ..Self::default()
                },
            },
        }
    }
}

impl TryFrom<RawContent> for Content {
    type Error = String;

    fn try_from(raw: RawContent) -> Result<Self, String> {
        match (raw.text, raw.base64, raw.file) {
            (Some(text), None, None) => Ok(Self::Bytes(text.into_bytes())),
            (None, Some(text), None) => decode(&text).map(|bytes| Self::Bytes(bytes.0)),
            (None, None, Some(path)) => Ok(Self::File(path)),
            _ => Err("a content is one of text, base64 and file".to_owned()),
        }
    }
}

/// A file that is put into the guest, as root's. Directories that are missing are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "RawPut", try_from = "RawPut")]
pub struct PutFile {
    /// Its absolute path in the guest. What is there is replaced, unless it is a directory.
    pub path: String,
    /// Its content. A directory of the host's is put in with all that is in it.
    pub content: Content,
    /// Its permissions, such as `0o755`; else the host's file's, or `0o644`.
    pub mode: Option<u32>,
}

impl PutFile {
    /// A file with this content, and mode 0644.
    pub fn new(path: impl Into<String>, content: impl Into<Content>) -> Self {
        Self {
            path: path.into(),
            content: content.into(),
            mode: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPut {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

impl From<PutFile> for RawPut {
    fn from(put: PutFile) -> Self {
        let RawContent { text, base64, file } = put.content.into();
        Self {
            path: put.path,
            mode: put.mode,
            text,
            base64,
            file,
        }
    }
}

impl TryFrom<RawPut> for PutFile {
    type Error = String;

    fn try_from(raw: RawPut) -> Result<Self, String> {
        let content = RawContent {
            text: raw.text,
            base64: raw.base64,
            file: raw.file,
        };
        let content = content
            .try_into()
            .map_err(|why| format!("{}: {why}", raw.path))?;
        Ok(Self {
            path: raw.path,
            content,
            mode: raw.mode,
        })
    }
}

/// Why a request is none.
#[derive(Debug, Error)]
pub enum RequestError {
    /// It is not the JSON of one.
    #[error("the request is not one: {0}")]
    Json(String),
    /// It is too long.
    #[error("the request is longer than {MAX_REQUEST} bytes; name large files by their paths")]
    Long,
    /// A limit is out of range.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The command can't be given to a guest.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The command and its environment are too long.
    #[error("the command and its environment take more than {MAX_COMMAND} bytes")]
    Command,
    /// Too many processors, or none.
    #[error("{0} vCPUs are not possible: give 1 to {MAX_CPUS}")]
    Cpus(u8),
    /// A path in the guest that is none.
    #[error("{0:?} is no path to {1}: give an absolute one with a name at its end and no '..'")]
    Path(String, &'static str),
    /// Permissions that are none.
    #[error("the mode {1:o} of {0} is none: give 0 to 7777, in octal")]
    Mode(String, u32),
    /// Too many files.
    #[error("there are {0} files to {1}; at most {2} are possible")]
    Many(usize, &'static str, usize),
}

impl SandboxRequest {
    /// Reads a request that is in JSON, and checks it.
    ///
    /// # Errors
    /// If it is none, or asks for what is not possible.
    pub fn from_json(json: &[u8]) -> Result<Self, RequestError> {
        if json.len() as u64 > MAX_REQUEST {
            return Err(RequestError::Long);
        }
        // An array would be one without names.
        if json.trim_ascii_start().first() != Some(&b'{') {
            let why = "it is not a JSON object".to_owned();
            return Err(RequestError::Json(why));
        }
        let request: Self = serde_json::from_slice(json).map_err(|error| {
            // It may cite what stands there.
            RequestError::Json(crate::cli::one_line(&error.to_string()))
        })?;
        request.check()?;
        Ok(request)
    }

    /// Checks what can be checked without the image and the host's files.
    ///
    /// # Errors
    /// If it asks for what is not possible.
    pub fn check(&self) -> Result<(), RequestError> {
        self.limits.check()?;
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(RequestError::Cpus(self.cpus));
        }
        let process = MachineConfig {
            command: self.command.clone(),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            ..MachineConfig::default()
        };
        process.check_process()?;
        let words = self.command.iter().chain(&self.env).map(String::len);
        if words.sum::<usize>() > MAX_COMMAND {
            return Err(RequestError::Command);
        }
        many(self.put.len(), "put in", MAX_FILES)?;
        many(self.take.len(), "take out", MAX_TAKES)?;
        for put in &self.put {
            check_path(&put.path, "put a file at")?;
            if let Some(mode) = put.mode.filter(|mode| *mode > 0o7777) {
                return Err(RequestError::Mode(put.path.clone(), mode));
            }
        }
        let mut takes = self.take.iter();
        takes.try_for_each(|path| check_path(path, "take a file from"))
    }

    /// Names the host's files that are named relative to `base` by their whole paths.
    pub fn resolve_paths(&mut self, base: &Path) {
        let contents = self.put.iter_mut().map(|put| &mut put.content);
        for content in contents.chain(&mut self.stdin) {
            if let Content::File(path) = content {
                *path = base.join(&*path);
            }
        }
        if let ImageSource::Rootfs(path) = &mut self.image {
            *path = base.join(&*path);
        }
        if let Some(path) = &mut self.kernel {
            *path = base.join(&*path);
        }
    }
}

fn many(count: usize, doing: &'static str, most: usize) -> Result<(), RequestError> {
    if count > most {
        return Err(RequestError::Many(count, doing, most));
    }
    Ok(())
}

/// Absolute, with a name at its end, and without ways up: what it leads to is plain to see.
fn check_path(path: &str, doing: &'static str) -> Result<(), RequestError> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    let good = path.starts_with('/')
        && path.len() > 1
        && !path.ends_with('/')
        && path.len() <= MAX_PATH
        && !path.contains('\0')
        && names.all(|name| !matches!(name, "." | ".."));
    if good {
        return Ok(());
    }
    Err(RequestError::Path(path.to_owned(), doing))
}

#[cfg(test)]
mod tests;
