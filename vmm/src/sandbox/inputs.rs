//! What a caller sends to a run: files as tar archives, and standard input.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use casita_agent::copy::{CopyError, Pack, pack};
use casita_agent::tar::{self, Entry, Time, padding};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::channel::{self, Kind, Order, PART, PROTOCOL};
use super::error::SandboxError;
use super::request::{Content, PutFile, SandboxRequest};

/// The permissions of a file that has none of its own.
const MODE: u32 = 0o644;

/// Everything that is sent, each file opened before the VM is started.
#[derive(Debug)]
pub(super) struct Inputs {
    archives: Vec<Archive>,
    stdin: Option<Source>,
}

/// An archive, and the directory of the guest that it is unpacked in.
#[derive(Debug)]
struct Archive {
    directory: String,
    entries: Vec<(String, Source, Option<u32>)>,
}

/// Where bytes come from.
#[derive(Debug)]
enum Source {
    Bytes(Vec<u8>),
    File { path: PathBuf, file: File },
    Directory(PathBuf),
}

fn input(path: &Path) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.to_owned();
    move |source| SandboxError::Input { path, source }
}

impl Source {
    fn open(content: &Content, directories: bool) -> Result<Self, SandboxError> {
        let path = match content {
            Content::Bytes(bytes) => return Ok(Self::Bytes(bytes.clone())),
            Content::File(path) => path,
        };
        if !directories && path == Path::new("/dev/stdin") {
            // Ours may be a socket, or opened for somebody else.
            let own = io::stdin().as_fd().try_clone_to_owned();
            return Ok(Self::File {
                path: path.clone(),
                file: own.map_err(input(path))?.into(),
            });
        }
        let kind = fs::metadata(path).map_err(input(path))?.file_type();
        if kind.is_dir() && directories {
            return Ok(Self::Directory(path.clone()));
        }
        // Standard input may be anything that can be read; files have a length.
        if directories && !kind.is_file() {
            let error = io::Error::other("it is neither a file nor a directory");
            return Err(input(path)(error));
        }
        let mut options = fs::OpenOptions::new();
        let flags = if kind.is_file() { libc::O_NONBLOCK } else { 0 };
        let file = options
            .read(true)
            .custom_flags(flags | libc::O_NOCTTY)
            .open(path);
        Ok(Self::File {
            path: path.clone(),
            file: file.map_err(input(path))?,
        })
    }
}

impl Inputs {
    /// Opens what `request` names.
    pub(super) fn open(request: &SandboxRequest) -> Result<Self, SandboxError> {
        let mut archives: Vec<Archive> = Vec::new();
        for put in &request.put {
            let (directory, name) = split(&put.path);
            let PutFile { content, mode, .. } = put;
            let source = Source::open(content, true)?;
            let whole = |source: &Source| matches!(source, Source::Directory(_));
            match archives.last_mut() {
                Some(last)
                    if last.directory == directory
                        && !whole(&source)
                        && !last.entries.iter().any(|(_, source, _)| whole(source)) =>
                {
                    last.entries.push((name, source, *mode));
                }
                _ => archives.push(Archive {
                    directory,
                    entries: vec![(name, source, *mode)],
                }),
            }
        }
        let stdin = request.stdin.as_ref();
        let stdin = stdin
            .map(|content| Source::open(content, false))
            .transpose()?;
        Ok(Self { archives, stdin })
    }

    /// The order that announces them.
    pub(super) fn order(&self, request: &SandboxRequest, check_kvm: bool) -> Order {
        let directories = self
            .archives
            .iter()
            .map(|archive| archive.directory.clone());
        Order {
            protocol: PROTOCOL,
            image: request.image.clone(),
            pull: request.pull,
            command: request.command.clone(),
            env: request.env.clone(),
            workdir: request.workdir.clone(),
            user: request.user.clone(),
            stdin: self.stdin.is_some(),
            archives: directories.collect(),
            take: request.take.clone(),
            limits: request.limits,
            egress: request.egress.clone(),
            cpus: request.cpus,
            kernel: request.kernel.clone(),
            check_kvm,
        }
    }

    /// Sends all of it. A monitor that has ended takes no more, which is no error.
    pub(super) fn send(self, to: &UnixStream) -> Result<(), SandboxError> {
        for archive in self.archives {
            match archive.send(to) {
                Err(SandboxError::Host(..)) => return Ok(()),
                result => result?,
            }
        }
        let Some(source) = self.stdin else {
            return Ok(());
        };
        match source.send(to).and_then(|()| end(to)) {
            Err(SandboxError::Host(..)) => Ok(()),
            result => result,
        }
    }
}

impl Archive {
    fn send(self, to: &UnixStream) -> Result<(), SandboxError> {
        let mut is_ended = false;
        for (name, source, mode) in self.entries {
            match source {
                Source::Directory(path) => {
                    send_directory(&path, &name, to)?;
                    is_ended = true;
                }
                source => send_file(&name, source, mode, to)?,
            }
        }
        if !is_ended {
            let mut bytes = Vec::new();
            tar::end(&mut bytes);
            data(to, &bytes)?;
        }
        end(to)
    }
}

/// A path's directory and its last name.
fn split(path: &str) -> (String, String) {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = if directory.is_empty() { "/" } else { directory };
    (directory.to_owned(), name.to_owned())
}

fn data(mut to: &UnixStream, bytes: &[u8]) -> Result<(), SandboxError> {
    let mut parts = bytes.chunks(PART);
    parts
        .try_for_each(|part| channel::send(&mut to, Kind::Data, part))
        .map_err(gone)
}

fn end(mut to: &UnixStream) -> Result<(), SandboxError> {
    channel::send(&mut to, Kind::End, &[]).map_err(gone)
}

fn gone(error: io::Error) -> SandboxError {
    SandboxError::Host("send files to the VM", error)
}

/// Sends a file's header, its content and what pads it.
fn send_file(
    name: &str,
    source: Source,
    mode: Option<u32>,
    to: &UnixStream,
) -> Result<(), SandboxError> {
    let (size, own_mode, seconds) = match &source {
        Source::Bytes(bytes) => (bytes.len() as u64, MODE, 0),
        Source::Directory(path) => return Err(input(path)(ErrorKind::IsADirectory.into())),
        Source::File { path, file } => {
            let found = file.metadata().map_err(input(path))?;
            (found.len(), found.mode() & 0o777, found.mtime())
        }
    };
    let entry = Entry {
        path: name.as_bytes().to_vec(),
        kind: tar::Kind::File,
        mode: mode.unwrap_or(own_mode),
        uid: 0,
        gid: 0,
        mtime: Time {
            seconds,
            nanoseconds: 0,
        },
        size,
        xattrs: Vec::new(),
    };
    let mut header = Vec::new();
    tar::header(&entry, &mut header).map_err(|why| SandboxError::Pack {
        path: name.into(),
        why: why.into(),
    })?;
    data(to, &header)?;
    match source {
        Source::File { path, file } => {
            let sent = copy(&mut file.take(size), to, &path)?;
            if sent < size {
                let error = io::Error::other("it became shorter while it was read");
                return Err(input(&path)(error));
            }
        }
        source => source.send(to)?,
    }
    data(to, &vec![0; padding(size)])
}

/// Sends all that can be read; returns how much that was.
fn copy(from: &mut impl Read, to: &UnixStream, path: &Path) -> Result<u64, SandboxError> {
    let mut buffer = vec![0; PART];
    let mut sent = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(sent),
            Ok(count) => {
                data(to, &buffer[..count])?;
                sent += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(input(path)(error)),
        }
    }
}

impl Source {
    fn send(self, to: &UnixStream) -> Result<(), SandboxError> {
        match self {
            Self::Bytes(bytes) => data(to, &bytes),
            Self::Directory(path) => Err(input(&path)(ErrorKind::IsADirectory.into())),
            Self::File { path, file } => {
                let mut waiting = Waiting { file, until: to };
                copy(&mut waiting, to, &path).map(drop)
            }
        }
    }
}

/// A file that is read as long as there is somebody at the other end of a socket.
struct Waiting<'a> {
    file: File,
    until: &'a UnixStream,
}

impl Read for Waiting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut fds = [
                PollFd::new(&self.file, PollFlags::IN),
                PollFd::new(&self.until, PollFlags::empty()),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            if !fds[1].revents().is_empty() {
                return Ok(0);
            }
            match self.file.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

/// Packs a directory on a thread of its own, and sends what comes of it.
fn send_directory(path: &Path, name: &str, to: &UnixStream) -> Result<(), SandboxError> {
    let host = |error: rustix::io::Errno| SandboxError::Host("make a pipe", error.into());
    let (from, pipe) = pipe_with(PipeFlags::CLOEXEC).map_err(host)?;
    let packed = thread::scope(|scope| {
        let packer = scope.spawn(move || {
            let rules = Pack {
                name: name.as_bytes(),
                content: false,
                owners: false,
            };
            let mut left_out = None;
            let source = path.as_os_str().as_encoded_bytes();
            let mut complain = |error: CopyError| left_out = Some(error);
            let result = pack(source, &rules, pipe.as_fd(), &mut complain);
            result.and(left_out.map_or(Ok(()), Err))
        });
        let sent = copy(&mut File::from(from), to, path);
        (sent, packer.join())
    });
    match packed {
        (Err(error), _) => Err(error),
        (Ok(_), Ok(Ok(()))) => Ok(()),
        (Ok(_), Ok(Err(why))) => Err(SandboxError::Pack {
            path: path.to_owned(),
            why,
        }),
        (Ok(_), Err(_)) => Err(SandboxError::Host(
            "pack a directory",
            io::Error::other("the packer panicked"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casita_agent::copy::{Top, Unpack, unpack};
    use std::os::unix::fs::symlink;

    /// What is sent for `request`: the streams, each whole.
    fn sent(request: &SandboxRequest) -> Result<Vec<Vec<u8>>, SandboxError> {
        let inputs = Inputs::open(request)?;
        let (to, mut from) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let sender = scope.spawn(move || inputs.send(&to));
            let (mut streams, mut content) = (vec![Vec::new()], Vec::new());
            while let Some(kind) = channel::receive(&mut from, &mut content).unwrap() {
                match kind {
                    Kind::Data => streams.last_mut().unwrap().extend_from_slice(&content),
                    Kind::End => streams.push(Vec::new()),
                    other => panic!("{other:?}"),
                }
            }
            sender.join().unwrap()?;
            assert!(streams.pop().unwrap().is_empty());
            Ok(streams)
        })
    }

    fn unpacked(archive: &[u8]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("archive");
        fs::write(&file, archive).unwrap();
        fs::create_dir(place.path().join("d")).unwrap();
        let rules = Unpack {
            top: Top::Keep,
            owners: false,
            special: false,
            limit: u64::MAX,
        };
        let directory = File::open(place.path().join("d")).unwrap();
        let archive = File::open(file).unwrap();
        let mut complain = |error| panic!("{error}");
        unpack(directory.as_fd(), archive.as_fd(), &rules, &mut complain).unwrap();
        place
    }

    #[test]
    fn files_of_one_directory_are_one_archive_and_input_comes_last() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let big: Vec<u8> = (0..=255).cycle().take(300_001).collect();
        fs::write(at("big"), &big).unwrap();
        fs::create_dir(at("tree")).unwrap();
        fs::write(at("tree/leaf"), "leaf").unwrap();
        symlink("leaf", at("tree/link")).unwrap();
        let file = |name: &str| Content::File(at(name));
        let request = SandboxRequest {
            put: vec![
                PutFile::new("/w/a", "a"),
                PutFile {
                    mode: Some(0o700),
                    ..PutFile::new("/w/big", file("big"))
                },
                PutFile::new("/w/tree", file("tree")),
                PutFile::new("/x", ""),
                PutFile::new("/w/b", "b"),
            ],
            stdin: Some(file("big")),
            ..SandboxRequest::default()
        };
        let order = Inputs::open(&request).unwrap().order(&request, true);
        assert_eq!(order.archives, ["/w", "/w", "/", "/w"]);
        assert!(order.stdin);
        let streams = sent(&request).unwrap();
        assert_eq!(streams.len(), 5);
        assert_eq!(streams[4], big);
        let first = unpacked(&streams[0]);
        assert_eq!(fs::read(first.path().join("d/a")).unwrap(), b"a");
        assert_eq!(fs::read(first.path().join("d/big")).unwrap(), big);
        let mode = fs::metadata(first.path().join("d/big")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700);
        let tree = unpacked(&streams[1]);
        assert_eq!(fs::read(tree.path().join("d/tree/leaf")).unwrap(), b"leaf");
        assert!(tree.path().join("d/tree/link").is_symlink());
        let empty = unpacked(&streams[2]);
        assert_eq!(fs::read(empty.path().join("d/x")).unwrap(), b"");
    }

    #[test]
    fn an_input_that_nobody_takes_is_not_waited_for() {
        let (to, from) = UnixStream::pair().unwrap();
        let (pipe, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let source = Source::File {
            path: "pipe".into(),
            file: pipe.into(),
        };
        let inputs = Inputs {
            archives: Vec::new(),
            stdin: Some(source),
        };
        thread::scope(|scope| {
            let sender = scope.spawn(|| inputs.send(&to));
            drop(from);
            sender.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_directory_that_can_not_be_packed_whole_is_told() {
        let place = tempfile::tempdir().unwrap();
        let deep = place.path().join("x/".repeat(450));
        fs::create_dir_all(&deep).unwrap();
        let put = PutFile::new("/d", Content::File(place.path().to_owned()));
        let request = SandboxRequest {
            put: vec![put],
            ..SandboxRequest::default()
        };
        let error = sent(&request).unwrap_err();
        assert!(matches!(error, SandboxError::Pack { .. }), "{error}");
    }
}
