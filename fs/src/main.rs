//! `casita-fs`: serves one directory of the host to one guest, by virtio-fs. The file system and the
//! vhost-user device are those of virtiofsd's library; what is here is the confined process around
//! them.
//!
//! `casita` starts it with one end of a socket pair (SOCK_SEQPACKET) and the directory, and gets one
//! message back: a byte 0 with the file descriptor of the vhost-user connection once all is in place,
//! or a byte 1 and the reason why it is not. The program ends when that connection does.

mod confine;
mod ids;
mod serve;

use std::error::Error;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::ExitCode;

use clap::Parser;
use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Resource, Rlimit, Signal};

#[derive(Parser)]
#[command(about = "Serves a directory to a guest; `casita` starts it", version)]
struct Args {
    /// One end of a socket pair; the other is told how the start went
    #[arg(long, value_name = "FD")]
    fd: RawFd,
    /// The directory
    #[arg(long, value_name = "FD")]
    dir_fd: RawFd,
    /// Nothing in the directory can be changed
    #[arg(long)]
    read_only: bool,
}

/// The first byte of the message: all is in place, and the connection is with it.
const READY: u8 = 0;
/// The first byte of the message: the rest is the reason.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let args = Args::parse();
    let channel = match take(args.fd) {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("casita-fs: --fd {}: {error}", args.fd);
            return ExitCode::FAILURE;
        }
    };
    match run(&args, &channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            // If nobody listens any more, nobody wants to know.
            let _ = tell(&channel, FAILED, text.as_bytes(), None);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, channel: &OwnedFd) -> Result<(), Box<dyn Error>> {
    let dir = take(args.dir_fd)?;
    close_others(&[channel.as_fd(), dir.as_fd()])?;
    // A thread that panics must not leave a process behind that serves nobody.
    std::panic::set_hook(Box::new(|_| std::process::exit(101)));
    // No signals of the terminal that casita was started from.
    let _ = rustix::process::setsid();
    let files = limits()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::fchdir(&dir)?;
    drop(dir);

    let root = confine::enter(args.read_only)?;
    let (listener, connection) = serve::connection()?;
    // The connection is casita's alone from then on, so that its end is noticed here.
    let ready = move || tell(channel, READY, &[], Some(connection.as_fd()));
    serve::serve(root, &listener, args.read_only, files, ready)?;
    Ok(())
}

/// Takes over a descriptor that was inherited, at a number above those of the standard streams.
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    #[allow(
        unsafe_code,
        reason = "a number from the command line becomes a descriptor"
    )]
    // SAFETY: nothing in this process owns the descriptors that it was started with; a number that
    // is not open fails in the call.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_dupfd_cloexec(inherited, 3)?)
}

/// Nothing but `kept` stays open; the standard streams become /dev/null.
fn close_others(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<_> = kept
        .iter()
        .map(|fd| fd.as_raw_fd().cast_unsigned())
        .collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        close_range(first, number - 1)?;
        first = number + 1;
    }
    close_range(first, u32::MAX)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    #[allow(unsafe_code, reason = "rustix has no close_range")]
    // SAFETY: the descriptors in the range are not owned by anything in this process.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As many open files as this user may have, of which the number is returned, and no core files: a
/// guest's memory would be in them.
fn limits() -> io::Result<u64> {
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(Resource::Nofile, files)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    Ok(files.maximum.unwrap_or(u64::MAX))
}

/// Sends the one message.
fn tell(channel: &OwnedFd, kind: u8, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        rights.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    let message = [
        IoSlice::new(std::slice::from_ref(&kind)),
        IoSlice::new(text),
    ];
    rustix::net::sendmsg(channel, &message, &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}
