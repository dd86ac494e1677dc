//! What a monitor and its keeper say to each other: one message each, JSON, with at most one
//! descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::confine::Confined;
use crate::net::passt::Order;
use crate::networks::Member;
use crate::vms::News;

/// More than any message has.
const MAX: usize = 64 << 10;

/// What a monitor says. Its keeper answers all but the first four; it takes a monitor for taken over
/// once that is confined.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Word {
    /// This passt is to be started when the guest needs it. Its end of the socket is with it.
    Keep(Order),
    /// The guest needs it.
    Start,
    /// It is confined so.
    Confined(Confined),
    /// The guest has ended, and the monitor is about to.
    Ending,
    /// What there is to tell of the VM.
    News(News),
    /// The log's segment is full: the answer has the next one.
    NextLog,
    /// The guest wants to reach the Unix socket of this vsock port: the answer has a connection.
    Connect(u32),
    /// Who has a place on the VM's network: the answer is their IDs.
    Members,
    /// Who has this ID there: the answer is what it tells of itself, with its lock.
    Member(String),
    /// The guest wants to reach the member with this ID: the answer has a connection.
    Reach(String),
    /// The VM has ended. The lock is with it.
    Ended(Ending),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::life) struct Ending {
    /// Whether its main process had started.
    pub started: bool,
    /// The exit code.
    pub code: u8,
    /// Why it could not start or go on.
    pub error: Option<String>,
}

/// What a keeper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// It is not: one line for people.
    Failed(String),
    /// It is not: an error number.
    Refused(i32),
    /// The IDs of members.
    Members(Vec<String>),
    /// A member.
    Member(Member),
    /// The run's end is told, and the keeper goes on without the monitor.
    GoesOn,
}

/// Sends a message.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        rights.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut rights,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives a message; None at the end.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let count = loop {
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, parts, &mut rights, RecvFlags::CMSG_CLOEXEC) {
            // RESET: the other end is gone, and has left something unread. What it has said before is
            // still there to be heard.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            other => break other?.bytes,
        }
    };
    let fd = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if count == 0 {
        return Ok(None);
    }
    bytes.truncate(count);
    Ok(Some((bytes, fd)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn the_last_words_of_one_who_leaves_something_unread_are_heard() {
        let flags = SocketFlags::CLOEXEC;
        let (keeper, monitor) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        send(keeper.as_fd(), &"unread", None).unwrap();
        send(monitor.as_fd(), &"last", None).unwrap();
        drop(monitor);
        let heard = receive(keeper.as_fd()).unwrap();
        assert_eq!(heard.unwrap().0, br#""last""#);
        assert!(receive(keeper.as_fd()).unwrap().is_none());
    }
}
