//! What host and agent say to each other once the guest runs: streams over virtio-vsock.
//!
//! The agent connects to [`PORT`] of the host. Each connection begins with a [`Hello`] of a fixed
//! length. The first connection is the control connection; the others are the standard streams of
//! processes, and carry plain bytes after their hello.
//!
//! On the control connection both sides send frames: a length (`u32`, little-endian, at most
//! [`MAX_FRAME`]) and so many bytes in postcard's format, one [`HostMessage`] or [`AgentMessage`].
//! Neither side trusts the other: a frame that is too long or that does not decode ends the
//! connection.

use alloc::string::String;
use alloc::vec::Vec;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::WindowSize;

/// The port of the host that the agent connects to.
pub const PORT: u32 = 0x6361_7369;
/// The first bytes of every connection.
pub const MAGIC: [u8; 6] = *b"CASITA";
/// The version of all that follows.
pub const VERSION: u8 = 2;
/// The longest frame, in bytes without its length.
pub const MAX_FRAME: usize = 1 << 20;
/// The most processes that the host starts at a time.
pub const MAX_PROCESSES: usize = 300;
/// The most processes that a [`AgentMessage::Processes`] tells of.
pub const MAX_LISTED: usize = 4096;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The control connection; the key is [`crate::spec::GuestSpec::key`].
    Control = 0,
    /// A standard stream of a process; the key is the one that [`Start`] has for it.
    Stream = 1,
}

/// 16 random bytes of the host's that nobody in the guest but the agent knows: whoever shows them
/// is the agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; 16]);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The beginning of a connection: [`MAGIC`], [`VERSION`], the purpose, the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Who opens it.
    pub key: Key,
}

/// The length of a [`Hello`], in bytes.
pub const HELLO_LEN: usize = MAGIC.len() + 2 + 16;

/// Why bytes are not what the other side should have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A connection does not begin with a [`Hello`].
    #[error("not a connection of the agent's: it does not begin with the magic bytes")]
    Magic,
    /// A hello of another version.
    #[error("agent's protocol version {0}; this side speaks {VERSION}")]
    Version(u8),
    /// A connection for something unknown.
    #[error("connection for the unknown purpose {0}")]
    Purpose(u8),
    /// A frame that is too long.
    #[error("frame of {0} bytes; the limit is {MAX_FRAME}")]
    FrameLength(usize),
    /// A frame that is no message.
    #[error("frame that is no message")]
    Message,
}

impl Hello {
    /// As it is sent.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let parts = MAGIC
            .into_iter()
            .chain([VERSION, self.purpose as u8])
            .chain(self.key.0);
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = part;
        }
        bytes
    }

    /// What [`Hello::encode`] wrote.
    ///
    /// # Errors
    /// They are any other bytes.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Result<Self, WireError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(WireError::Magic)?;
        let ([version, purpose], key) = rest.split_first_chunk().ok_or(WireError::Magic)?;
        if *version != VERSION {
            return Err(WireError::Version(*version));
        }
        let purpose = match *purpose {
            0 => Purpose::Control,
            1 => Purpose::Stream,
            other => return Err(WireError::Purpose(other)),
        };
        let key = key.try_into().map_err(|_| WireError::Magic)?;
        Ok(Hello {
            purpose,
            key: Key(key),
        })
    }
}

/// Bytes of a frame's length.
const LENGTH_LEN: usize = 4;

/// The frame with `message`, as it is sent.
///
/// # Errors
/// It would be longer than [`MAX_FRAME`].
pub fn encode_frame<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = Vec::from([0; LENGTH_LEN]);
    frame = postcard::to_extend(message, frame).map_err(|_| WireError::Message)?;
    let body = frame.len() - LENGTH_LEN;
    let length = u32::try_from(body)
        .ok()
        .filter(|_| body <= MAX_FRAME)
        .ok_or(WireError::FrameLength(body))?;
    for (byte, part) in frame.iter_mut().zip(length.to_le_bytes()) {
        *byte = part;
    }
    Ok(frame)
}

/// The message in a frame's body.
///
/// # Errors
/// There is none, or something follows it.
pub fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<M, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Message),
    }
}

/// Puts frames together from bytes as they come. It never holds more than one frame.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The beginning of a frame, with its length.
    frame: Vec<u8>,
}

impl FrameReader {
    /// Takes bytes from the front of `bytes` until they are used up, or a frame is complete, whose
    /// message is returned. To be called again until it returns `None`.
    ///
    /// # Errors
    /// A frame is too long, or is no message. Nothing that follows means anything.
    pub fn next<M: DeserializeOwned>(&mut self, bytes: &mut &[u8]) -> Result<Option<M>, WireError> {
        let Some(length) = self.fill(bytes, LENGTH_LEN) else {
            return Ok(None);
        };
        let length = length.first_chunk().ok_or(WireError::Message)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(WireError::FrameLength(length));
        }
        let Some(frame) = self.fill(bytes, LENGTH_LEN + length) else {
            return Ok(None);
        };
        let message = decode_body(frame.get(LENGTH_LEN..).unwrap_or_default());
        self.frame = Vec::new();
        message.map(Some)
    }

    /// The first `len` bytes of the frame, if they have come.
    fn fill(&mut self, bytes: &mut &[u8], len: usize) -> Option<&[u8]> {
        let missing = len.saturating_sub(self.frame.len()).min(bytes.len());
        if let Some((taken, rest)) = bytes.split_at_checked(missing) {
            self.frame.extend_from_slice(taken);
            *bytes = rest;
        }
        self.frame.get(..len)
    }
}

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum HostMessage {
    /// Start a process. Answered by `Started` or `Failed`.
    Start(Start),
    /// Send signal `signal` (1-64) to the process, and to its foreground group if it has a
    /// terminal. Nothing happens if it has ended.
    Signal {
        /// Which process.
        id: u32,
        /// The signal's number on x86-64.
        signal: u8,
    },
    /// Change the size of the process's terminal.
    Resize {
        /// Which process.
        id: u32,
        /// The new size.
        size: WindowSize,
    },
    /// Tell of all processes of the guest. Answered by `Processes`.
    List {
        /// Comes back in the answer.
        request: u32,
    },
    /// End what still runs, write the disks back, tell `status` through the exit status port and
    /// power off.
    Shutdown {
        /// The machine's exit status.
        status: u8,
    },
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The host's number for it, used once.
    pub id: u32,
    /// What it is.
    pub process: ProcessSpec,
    /// The key of the stream for its standard input; without one that is `/dev/null`.
    pub stdin: Option<Key>,
    /// The same for standard output. With a terminal, all that it shows.
    pub stdout: Option<Key>,
    /// The same for standard error. With a terminal there is none.
    pub stderr: Option<Key>,
}

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A command and its arguments; empty for a shell.
    Command(Vec<Vec<u8>>),
    /// The agent itself, as a tar archive's writer: the file or directory at this path goes to
    /// standard output, under its last name.
    CopyOut(Vec<u8>),
    /// The agent itself, as a tar archive's reader: standard input is unpacked below this
    /// directory.
    CopyIn(Vec<u8>),
    /// The agent itself, as a shell that expands a pattern: the paths that match this absolute one
    /// go to standard output, each with a NUL behind it.
    Find(Vec<u8>),
}

/// A process as container runtimes describe one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// What is to run.
    pub program: Program,
    /// Variables, as `NAME=value`. They go before the agent's own defaults; of two with the same
    /// name the later one counts.
    pub env: Vec<Vec<u8>>,
    /// The working directory, an absolute path, made if it is missing; empty for `/`.
    pub workdir: Vec<u8>,
    /// `USER[:GROUP]`, each a name that the guest's `/etc/passwd` and `/etc/group` know or a
    /// number; empty for root.
    pub user: String,
    /// The size of its terminal; without one it has pipes.
    pub terminal: Option<WindowSize>,
    /// Resource limits, setrlimit(2).
    pub limits: Vec<Limit>,
    /// Puts it, and all that it starts, into a control group of its own: the host is told what the
    /// group uses and when it meets a limit, and what is left of it ends with the process.
    pub group: Option<GroupLimits>,
}

/// What a control group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLimits {
    /// Memory, in bytes.
    pub memory: u64,
    /// Processes and threads at a time.
    pub processes: u32,
}

/// A limit of a control group's, or of the machine that it has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupLimit {
    /// [`GroupLimits::memory`]: the kernel has ended a process for want of it.
    Memory,
    /// [`GroupLimits::processes`]: a process could not be made.
    Processes,
    /// The disk is full.
    Disk,
}

/// What a control group has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupUsage {
    /// CPU time of its programs, in microseconds.
    pub user_us: u64,
    /// CPU time of the kernel for them.
    pub system_us: u64,
    /// The most memory at a time, in bytes.
    pub memory_peak: u64,
    /// The most processes and threads at a time.
    pub processes_peak: u64,
    /// What it has added to the disk and not removed, in bytes.
    pub disk: u64,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Linux's number of the resource, such as 7 for `RLIMIT_NOFILE`.
    pub resource: u8,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// What the agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The guest is prepared and takes processes. The first message.
    Ready,
    /// The process runs: its program has been executed, as far as the kernel says.
    Started {
        /// Which.
        id: u32,
        /// Its number in the guest.
        pid: u32,
    },
    /// The process could not be started.
    Failed {
        /// Which.
        id: u32,
        /// The exit status that shells give for it: 126 or 127.
        status: u8,
        /// One line for people.
        message: String,
    },
    /// The process's group has met a limit. Told once for each limit, before the process's end.
    Exceeded {
        /// Which process.
        id: u32,
        /// Which limit.
        limit: GroupLimit,
    },
    /// What the process's group has used. Told before the process's end.
    Used {
        /// Which process.
        id: u32,
        /// What.
        usage: GroupUsage,
    },
    /// The process has ended, and what it wrote has been handed to its streams, whose ends follow.
    Exited {
        /// Which.
        id: u32,
        /// How.
        exit: Exit,
    },
    /// The guest's processes.
    Processes {
        /// The request that this answers.
        request: u32,
        /// At most [`MAX_LISTED`] of them.
        processes: Vec<ProcessInfo>,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// The status as shells report it: the process's own, or 128 and the signal.
    pub const fn status(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 | (signal & 0x7f),
        }
    }
}

/// A process of the guest's, from `/proc/PID/stat` and `/proc/PID/cmdline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its number.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its state's letter, such as `S`.
    pub state: u8,
    /// CPU time that it used, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in KiB.
    pub rss_kib: u64,
    /// Its command line, or its name in brackets; at most 256 bytes, without control characters.
    pub command: String,
}

#[cfg(test)]
mod tests;
