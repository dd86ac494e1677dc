//! The guest's side: the agent as a writer and a reader of archives, reached through the control
//! socket.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use casita_agent::copy::CopyError;
use casita_agent::tar::{BLOCK, EXIT_MISSING, Kind, Reader, Step};
use casita_agent::wire::Exit;

use super::CpError;
use super::rules::{Found, behind_link};
use crate::control::protocol::{ProcessRequest, ProgramRequest, Streams};
use crate::control::{Client, ExecControl};

/// As many links in a row as Linux follows.
const MAX_LINKS: u32 = 40;
/// The most that is kept of what the guest complains.
const MAX_COMPLAINT: u64 = 64 << 10;
/// The most blocks that come before the first entry: extended headers.
const MAX_HEADERS: usize = (2 << 20) / BLOCK;

/// The files of a running VM.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    runtime_dir: PathBuf,
}

impl GuestFiles {
    /// Those of the VM whose control socket is in `runtime_dir`.
    pub fn of(runtime_dir: &Path) -> Self {
        Self {
            runtime_dir: runtime_dir.to_owned(),
        }
    }

    /// What is at `path`, behind symbolic links if `follow` is true; and the path then.
    ///
    /// # Errors
    /// If the guest can't tell.
    pub fn look(&self, path: &str, follow: bool) -> Result<(Found, String), CpError> {
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.kind(&at)? {
                None => return Ok((Found::Nothing, at)),
                Some(Kind::Directory) => return Ok((Found::Directory, at)),
                Some(Kind::Symlink(link)) if follow => {
                    at = behind_link(&at, &String::from_utf8_lossy(&link));
                }
                Some(_) => return Ok((Found::File, at)),
            }
        }
        Err(CpError::Links(path.to_owned()))
    }

    /// The kind of the first entry that the guest packs for `path`; `None` if there is nothing.
    fn kind(&self, path: &str) -> Result<Option<Kind>, CpError> {
        let mut copy = self.copy_out(path)?;
        let mut reader = Reader::default();
        for _ in 0..MAX_HEADERS {
            let mut block = [0; BLOCK];
            match copy.stream.read_exact(&mut block) {
                Ok(()) => {}
                // It has ended before it wrote anything.
                Err(_) => {
                    return match copy.finish() {
                        Err(CpError::Missing(_)) => Ok(None),
                        Err(error) => Err(error),
                        Ok(()) => Err(truncated(path)),
                    };
                }
            }
            match reader.block(&block).map_err(CopyError::from)? {
                Step::More => {}
                Step::Entry(entry) => return Ok(Some(entry.kind)),
                Step::End => break,
            }
        }
        Err(truncated(path))
    }

    /// Begins to pack what is at `path`: the archive comes from the result's stream.
    ///
    /// # Errors
    /// If the VM can't be reached or can't start it.
    pub fn copy_out(&self, path: &str) -> Result<Copy, CpError> {
        let streams = Streams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        self.start(ProgramRequest::CopyOut(path.to_owned()), path, streams)
    }

    /// Begins to unpack below the directory `path` what is written to the result's stream.
    ///
    /// # Errors
    /// If the VM can't be reached or can't start it.
    pub fn copy_in(&self, path: &str) -> Result<Copy, CpError> {
        let streams = Streams {
            stdin: true,
            stdout: false,
            stderr: true,
        };
        self.start(ProgramRequest::CopyIn(path.to_owned()), path, streams)
    }

    fn start(
        &self,
        program: ProgramRequest,
        path: &str,
        streams: Streams,
    ) -> Result<Copy, CpError> {
        let request = ProcessRequest {
            program,
            workdir: Some("/".to_owned()),
            user: Some("0:0".to_owned()),
            ..ProcessRequest::default()
        };
        let exec = Client::connect(&self.runtime_dir)?.exec(request, streams)?;
        let stream = exec.streams.stdin.or(exec.streams.stdout);
        let complaint = exec.streams.stderr.map(|stderr| {
            thread::spawn(move || {
                let mut said = Vec::new();
                let _ = (&stderr).take(MAX_COMPLAINT).read_to_end(&mut said);
                // Whatever more there is, the guest need not wait for it.
                let _ = io::copy(&mut &stderr, &mut io::sink());
                String::from_utf8_lossy(&said).into_owned()
            })
        });
        Ok(Copy {
            path: path.to_owned(),
            stream: stream.ok_or_else(|| truncated(path))?,
            complaint,
            control: exec.control,
        })
    }
}

fn truncated(path: &str) -> CpError {
    CpError::Guest {
        path: path.to_owned(),
        why: "it sent no archive".to_owned(),
    }
}

/// A copy that the guest is at.
#[derive(Debug)]
pub struct Copy {
    path: String,
    stream: UnixStream,
    complaint: Option<JoinHandle<String>>,
    control: ExecControl,
}

impl Copy {
    /// The archive.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Tells a reader that this was all, waits for the guest's part to end, and tells how it went.
    ///
    /// # Errors
    /// If it failed, or left something out.
    pub fn finish(self) -> Result<(), CpError> {
        // A process that has ended has closed its side already.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let exit = self.control.wait()?;
        drop(self.stream);
        let said = self.complaint.and_then(|thread| thread.join().ok());
        let said = said.unwrap_or_default();
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(EXIT_MISSING) => Err(CpError::Missing(self.path)),
            exit => {
                let mut lines = said.lines().filter(|line| !line.trim().is_empty());
                let last = lines.next_back();
                for line in lines {
                    log::warn!("the VM: {line}");
                }
                Err(CpError::Guest {
                    path: self.path,
                    why: last.map_or_else(|| how(exit), ToOwned::to_owned),
                })
            }
        }
    }
}

fn how(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("its copying ended with status {code}"),
        Exit::Signal(signal) => format!("its copying was ended by signal {signal}"),
    }
}
