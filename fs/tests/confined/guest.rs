//! The guest's end: a driver for the device, and a few requests of FUSE.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use casita_devices::event_loop::{Control, EventLoop, Handler, Interest, Registration, Source};
use casita_devices::interrupt::Interrupt;
use casita_devices::testing::{CountingInterrupt, FakeDriver};
use casita_devices::virtio::fs::Fs;
use casita_devices::virtio::transport::mmio::MmioTransport;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use vm_memory_018::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_casita-fs");

/// The node of the directory itself.
pub const ROOT: u64 = 1;

/// Operations, of the kernel's include/uapi/linux/fuse.h.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const SETATTR: u32 = 4;
    pub const SYMLINK: u32 = 6;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const INIT: u32 = 26;
    pub const CREATE: u32 = 35;
}

/// A running casita-fs.
pub struct Served {
    outer: Child,
    connection: UnixStream,
}

impl Served {
    pub fn start(dir: &Path, read_only: bool) -> Self {
        Self::start_as(dir, read_only, None)
    }

    pub fn start_as(dir: &Path, read_only: bool, user: Option<u32>) -> Self {
        let mut command = Command::new(PROGRAM);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let served = Self::start_by(command, dir, read_only);
        served.unwrap_or_else(|reason| panic!("casita-fs: {reason}"))
    }

    /// By a command that ends with the program. An error is the program's reason not to serve.
    pub fn start_by(mut command: Command, dir: &Path, read_only: bool) -> Result<Self, String> {
        let flags = SocketFlags::CLOEXEC;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.unwrap();
        let dir = std::fs::File::open(dir).unwrap();
        command.args(["--fd", "0", "--dir-fd", "1"]);
        command
            .stdin(theirs)
            .stdout(OwnedFd::from(dir))
            .stderr(Stdio::null());
        if read_only {
            command.arg("--read-only");
        }
        let mut outer = command.spawn().unwrap();
        drop(command);
        match receive(&ours) {
            Ok(connection) => Ok(Self { outer, connection }),
            Err(reason) => {
                outer.wait().unwrap();
                Err(reason)
            }
        }
    }

    /// The process that serves; the one that was started waits for it.
    pub fn server(&self) -> u32 {
        let outer = self.outer.id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
        children.unwrap().trim().parse().unwrap()
    }

    pub fn kill_outer(mut self) -> (u32, UnixStream) {
        let server = self.server();
        self.outer.kill().unwrap();
        self.outer.wait().unwrap();
        (server, self.connection)
    }
}

fn receive(channel: &OwnedFd) -> Result<UnixStream, String> {
    let mut text = [0; 1000];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        channel.as_fd(),
        &mut [IoSliceMut::new(&mut text)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    );
    let len = message.unwrap().bytes;
    let sent = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let reason = String::from_utf8_lossy(&text[..len]).into_owned();
    sent.map(UnixStream::from).ok_or(reason)
}

/// Whether the other end closes within ten seconds.
pub fn has_ended(connection: &UnixStream) -> bool {
    connection
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut connection = connection;
    !matches!(connection.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// KVM's part: what is signalled becomes an edge.
struct Line {
    event: EventFd,
    count: Arc<CountingInterrupt>,
}

impl Interrupt for Line {
    fn raise(&self) {
        self.event.write(1).unwrap();
    }
    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

impl Handler for Line {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.event),
            token: 0,
            interest: Interest::READ,
        }]
    }
    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        self.event.read().unwrap();
        self.count.raise();
    }
}

/// What a lookup tells.
#[derive(Debug)]
pub struct Found {
    pub node: u64,
    pub ino: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Found {
    /// From fuse_entry_out.
    fn of(bytes: &[u8]) -> Self {
        let attr = &bytes[40..];
        Self {
            node: u64_at(bytes, 0),
            ino: u64_at(attr, 0),
            mode: u32_at(attr, 60),
            uid: u32_at(attr, 68),
            gid: u32_at(attr, 72),
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// An open file.
#[derive(Clone, Copy)]
pub struct Open {
    pub node: u64,
    pub handle: u64,
}

pub struct Guest {
    driver: FakeDriver,
    unique: u64,
    uid: u32,
    outer: Child,
    _line: Registration<Line>,
    _events: EventLoop,
}

impl Guest {
    /// A guest that has mounted what is served.
    pub fn of(served: Served) -> Self {
        const LEN: usize = 16 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let range = (GuestAddress(0), LEN, Some(FileOffset::new(file, 0)));
        let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
        let events = EventLoop::spawn("test-io", |message| panic!("{message}")).unwrap();
        let count = Arc::new(CountingInterrupt::default());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = |event: EventFd| Line {
            event,
            count: count.clone(),
        };
        let watched = events
            .handle()
            .add(line(event.try_clone().unwrap()))
            .unwrap();
        let device = Box::new(Fs::new("share", "data", served.connection).unwrap());
        let transport = MmioTransport::new(
            device,
            memory.clone(),
            Arc::new(line(event)),
            events.handle(),
        );
        let mut guest = Self {
            driver: FakeDriver::new(Arc::new(transport.unwrap()), memory, count),
            unique: 1,
            uid: 0,
            outer: served.outer,
            _line: watched,
            _events: events,
        };
        guest.driver.start(u64::MAX);
        let mut init = [0; 64];
        init[..4].copy_from_slice(&7_u32.to_le_bytes());
        init[4..8].copy_from_slice(&38_u32.to_le_bytes());
        guest.call(op::INIT, 0, &init).unwrap();
        guest
    }

    /// What follows the header of the answer, or its error.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 2;
        let mut request = Vec::new();
        request.extend((40 + body.len() as u32).to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        for id in [self.uid, self.uid, 1, 0] {
            request.extend(id.to_le_bytes());
        }
        request.extend(body);
        self.send_raw(&request)
    }

    /// As [`Guest::call`], with the bytes of a request.
    pub fn send_raw(&mut self, request: &[u8]) -> Result<Vec<u8>, i32> {
        self.driver.send(1, &[request], &[16 + 8192]);
        self.driver.kick(1);
        let used = self.driver.wait_used(1, 1).remove(0);
        let answer = &used.data[..used.len as usize];
        if answer.len() < 16 {
            return Err(0);
        }
        match u32_at(answer, 4).cast_signed() {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<Found, i32> {
        let name = [name.as_bytes(), b"\0"].concat();
        self.call(op::LOOKUP, parent, &name)
            .map(|bytes| Found::of(&bytes))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = [flags.to_le_bytes(), [0; 4]].concat();
        self.call(op::OPEN, node, &body)
            .map(|bytes| u64_at(&bytes, 0))
    }

    pub fn read_all(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let mut body = [0; 40];
        body[..8].copy_from_slice(&self.open(node, libc::O_RDONLY)?.to_le_bytes());
        body[16..20].copy_from_slice(&4096_u32.to_le_bytes());
        self.call(op::READ, node, &body)
    }

    pub fn create(&mut self, parent: u64, name: &str, uid: u32) -> Result<Open, i32> {
        let mut body = Vec::new();
        for field in [(libc::O_RDWR | libc::O_CREAT).cast_unsigned(), 0o644, 0, 0] {
            body.extend(field.to_le_bytes());
        }
        body.extend([name.as_bytes(), b"\0"].concat());
        self.uid = uid;
        let answer = self.call(op::CREATE, parent, &body);
        self.uid = 0;
        answer.map(|bytes| Open {
            node: u64_at(&bytes, 0),
            handle: u64_at(&bytes, 128),
        })
    }

    pub fn write(&mut self, file: Open, data: &[u8]) -> Result<(), i32> {
        let mut body = vec![0; 40];
        body[..8].copy_from_slice(&file.handle.to_le_bytes());
        body[16..20].copy_from_slice(&(data.len() as u32).to_le_bytes());
        body.extend(data);
        self.call(op::WRITE, file.node, &body).map(|_| ())
    }

    pub fn truncate(&mut self, node: u64) -> Result<(), i32> {
        const SIZE: u32 = 1 << 3;
        let mut body = [0; 88];
        body[..4].copy_from_slice(&SIZE.to_le_bytes());
        self.call(op::SETATTR, node, &body).map(|_| ())
    }

    /// Ends the device, and waits for the end of the process.
    pub fn disconnect(self) -> ExitStatus {
        let mut outer = self.outer;
        drop(self.driver);
        outer.wait().unwrap()
    }
}
