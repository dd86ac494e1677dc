//! The guest's processes, for the host's `top`. A process of its own reads them: `/proc` may let a
//! reader wait, and PID 1 has other things to do.

use alloc::format;
use alloc::vec::Vec;

use casita_agent::proc;
use casita_agent::wire::{AgentMessage, MAX_LISTED, ProcessInfo, encode_frame};
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Dir, Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::failure::{Doing, Failure};
use crate::{stamp, sys, vsock};

/// The most lists that are made at a time.
pub(crate) const MOST: usize = 4;

/// The most that is read of a file in `/proc`.
const FILE: usize = 4 << 10;

/// A list on its way.
pub(crate) struct List {
    request: u32,
    pub(crate) pipe: OwnedFd,
    frame: Vec<u8>,
}

impl List {
    pub(crate) fn begin(request: u32) -> Result<Self, Failure> {
        let doing = || "cannot list the processes";
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
        vsock::set_nonblocking(&pipe).doing(doing)?;
        if sys::fork().doing(doing)?.is_none() {
            write_list(request, &theirs)
        }
        Ok(List {
            request,
            pipe,
            frame: Vec::new(),
        })
    }

    /// Reads what there is; the frame for the host when it is complete.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            self.frame.reserve(FILE);
            match read(&self.pipe, spare_capacity(&mut self.frame)) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Ok(0) | Err(_) => break,
            }
        }
        let complete = self
            .frame
            .split_first_chunk()
            .is_some_and(|(length, body)| u32::from_le_bytes(*length) as usize == body.len());
        if !complete {
            self.frame = nothing(self.request);
        }
        Some(core::mem::take(&mut self.frame))
    }
}

/// An answer without a process: there was no memory for a better one.
pub(crate) fn nothing(request: u32) -> Vec<u8> {
    let processes = Vec::new();
    encode_frame(&AgentMessage::Processes { request, processes }).unwrap_or_default()
}

fn write_list(request: u32, pipe: &OwnedFd) -> ! {
    const PIPE: u16 = 3;
    stamp::drop_claim();
    if sys::duplicate_to(pipe.as_fd(), PIPE).is_ok() {
        // Else the files of others stayed open as long as this takes.
        sys::close_from(PIPE + 1);
    }
    let mut processes = processes().unwrap_or_default();
    let frame = loop {
        let message = AgentMessage::Processes { request, processes };
        match (encode_frame(&message), message) {
            (Ok(frame), _) => break frame,
            (Err(_), AgentMessage::Processes { processes: all, .. }) => {
                processes = all;
                processes.truncate(processes.len() / 2);
            }
            (Err(_), _) => sys::exit(1),
        }
    };
    let mut rest = frame.as_slice();
    while let Ok(written @ 1..) = write_to(PIPE, rest) {
        rest = rest.get(written..).unwrap_or_default();
    }
    sys::exit(0)
}

#[allow(unsafe_code, reason = "the pipe has a number of its own here")]
fn write_to(number: u16, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: it was put there and is not closed.
    let pipe = unsafe { rustix::fd::BorrowedFd::borrow_raw(number.into()) };
    write(pipe, bytes)
}

fn processes() -> Result<Vec<ProcessInfo>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = Dir::new(open("/proc", flags, Mode::empty())?)?;
    let mut processes = Vec::new();
    for entry in dir {
        let entry = entry?;
        let name = entry.file_name().to_str().unwrap_or_default();
        if name.bytes().all(|byte| byte.is_ascii_digit())
            && let Some(info) = process(name)
        {
            processes.push(info);
            if processes.len() == MAX_LISTED {
                break;
            }
        }
    }
    Ok(processes)
}

fn process(pid: &str) -> Option<ProcessInfo> {
    let file = |name| read_start(&format!("/proc/{pid}/{name}")).ok();
    let uid = proc::effective_user(&file("status")?)?;
    proc::info(uid, &file("stat")?, &file("cmdline")?)
}

fn read_start(path: &str) -> Result<Vec<u8>, Errno> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::with_capacity(FILE);
    read(&file, spare_capacity(&mut bytes))?;
    Ok(bytes)
}
