//! The wires between a network's members: frames over Unix sockets, from monitor to monitor.
//!
//! Each monitor connects to those that its guest sends to, and takes connections of those that send
//! to its guest; a socket carries frames in one direction. They are of the kind that keeps packets
//! apart: a frame is a packet, behind the header that says what is left to its receiver. The first
//! packet says who it is that sends, which the system vouches for by the process's number.
//!
//! Nobody waits for anybody. What a peer does not take stays in a queue of bounded size, and what
//! does not fit into that is lost, as on any wire. What comes in is taken in turns, a frame from
//! each peer.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use casita_devices::virtio::net::backend::{Frame, MAX_FRAME_LEN, Offloads};
use casita_devices::virtio::net::header::{HEADER_LEN, VnetHeader, WireHeader};
use casita_net::Mac;
use casita_net::subnet::MAX_MEMBERS;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{self as sockets, RecvFlags, SendFlags, SocketFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::members::{Member, Membership};
use super::roster::Roster;

/// What members leave to each other.
pub(super) const OFFLOADS: Offloads = Offloads::CHECKSUM;

/// The first packet, before the ID of the sender's VM.
const HELLO: &[u8] = b"casita network 1 ";
/// The longest packet.
const MAX_PACKET: usize = HEADER_LEN as usize + MAX_FRAME_LEN as usize;
/// The bytes that wait for one peer at most, beside those that its socket holds.
const MAX_QUEUE: usize = 2 << 20;
/// How long a peer that could not be reached is left alone.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections that have not said whose they are; the oldest goes.
const MAX_STRANGERS: usize = 32;
/// As many events are looked at before others get their turn.
const MAX_TURNS: usize = 64;

const LISTENER: u64 = 0;
const WATCH: u64 = 1;
/// Set in the tokens of sockets that wait to be written to.
const OUT: u64 = 1 << 63;
const FIRST_SOCKET: u64 = 2;

/// One guest's port.
#[derive(Debug)]
pub(super) struct Mesh {
    membership: Membership,
    roster: Roster,
    events: OwnedFd,
    inbound: HashMap<u64, Inbound>,
    outbound: HashMap<Mac, Outbound>,
    next_token: u64,
    /// Tokens of what can be read, in turns.
    ready: VecDeque<u64>,
    /// A packet that has come.
    packet: Box<[u8]>,
    /// Its length.
    received: usize,
    /// A packet that goes.
    sending: Vec<u8>,
}

#[derive(Debug)]
struct Inbound {
    socket: OwnedFd,
    /// Whose it is, once it has said so and it was true.
    peer: Option<Arc<Member>>,
}

#[derive(Debug)]
struct Outbound {
    /// The peer's VM; another one may get its MAC address later.
    id: String,
    link: Link,
}

#[derive(Debug)]
enum Link {
    Open {
        socket: OwnedFd,
        token: u64,
        queue: VecDeque<Vec<u8>>,
        queued: usize,
    },
    /// Not to be tried before this.
    Broken(Instant),
}

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A frame from this peer; [`Mesh::frame`] has it.
    Frame {
        /// What is left to the receiver.
        header: VnetHeader,
        /// Whose it is.
        peer: Arc<Member>,
    },
    /// Something else was done, and there may be more.
    Other,
    /// Nothing waits.
    Nothing,
}

impl Mesh {
    pub(super) fn new(membership: Membership) -> io::Result<Self> {
        let runtime = membership.network().runtime().to_owned();
        let roster = Roster::open(&runtime, &membership)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64;
        epoll::add(
            &events,
            membership.listener(),
            data(LISTENER),
            epoll::EventFlags::IN,
        )?;
        epoll::add(&events, roster.watch(), data(WATCH), epoll::EventFlags::IN)?;
        Ok(Self {
            membership,
            roster,
            events,
            inbound: HashMap::new(),
            outbound: HashMap::new(),
            next_token: FIRST_SOCKET,
            ready: VecDeque::new(),
            packet: vec![0; MAX_PACKET].into(),
            received: 0,
            sending: Vec::new(),
        })
    }

    /// Readable when [`Mesh::receive`] has something to do.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    pub(super) fn roster(&mut self) -> &mut Roster {
        &mut self.roster
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Whether there is something to receive of which the descriptor does not tell.
    pub(super) fn has_waiting(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The member whose guest has `mac`.
    pub(super) fn peer(&mut self, mac: Mac) -> Option<Arc<Member>> {
        self.roster.by_mac(mac).cloned()
    }

    /// Sends a frame to a peer; whether it is on its way.
    pub(super) fn send(&mut self, peer: &Member, frame: &Frame<'_>, now: Instant) -> bool {
        let mac = Mac(peer.mac.0);
        let fits = self.outbound.get(&mac).is_some_and(|out| out.id == peer.id);
        if !fits {
            self.disconnect(mac);
        }
        let again = match self.outbound.get(&mac).map(|out| &out.link) {
            Some(Link::Open { .. }) => false,
            Some(Link::Broken(until)) if *until > now => return false,
            _ => true,
        };
        if again && !self.connect(peer, now) {
            return false;
        }
        let mut packet = std::mem::take(&mut self.sending);
        packet.clear();
        packet.extend(frame.header.to_wire().as_bytes());
        packet.extend(frame.head);
        let start = packet.len();
        packet.resize(start + frame.rest.len(), 0);
        frame
            .rest
            .copy_to(packet.get_mut(start..).unwrap_or_default());
        let sent = self.push(mac, &packet, now);
        self.sending = packet;
        sent
    }

    /// Opens a socket to `peer` and says who sends.
    fn connect(&mut self, peer: &Member, now: Instant) -> bool {
        let mac = Mac(peer.mac.0);
        let opened = self
            .membership
            .outside()
            .connect(&peer.id)
            .and_then(|socket| {
                let token = self.next_token;
                self.next_token += 1;
                let data = epoll::EventData::new_u64(token | OUT);
                epoll::add(&self.events, &socket, data, epoll::EventFlags::empty())?;
                Ok((socket, token))
            });
        let link = match opened {
            Ok((socket, token)) => Link::Open {
                socket,
                token,
                queue: VecDeque::new(),
                queued: 0,
            },
            Err(error) => {
                log::debug!("the VM {} can't be reached: {error}", peer.name());
                Link::Broken(now + PAUSE)
            }
        };
        let open = matches!(link, Link::Open { .. });
        if self.outbound.len() > 2 * MAX_MEMBERS as usize {
            // Those that are gone have not been sent to for long.
            self.outbound
                .retain(|_, out| matches!(out.link, Link::Open { .. }));
        }
        let id = peer.id.clone();
        self.outbound.insert(mac, Outbound { id, link });
        let hello = [HELLO, self.membership.member().id.as_bytes()].concat();
        open && self.push(mac, &hello, now)
    }

    /// Sends a packet, or puts it behind those that wait.
    fn push(&mut self, mac: Mac, packet: &[u8], now: Instant) -> bool {
        let Some(Outbound { link, .. }) = self.outbound.get_mut(&mac) else {
            return false;
        };
        let done = link.push(packet, &self.events);
        if done.is_err() {
            self.disconnect(mac);
            if let Some(out) = self.outbound.get_mut(&mac) {
                out.link = Link::Broken(now + PAUSE);
            }
        }
        done.unwrap_or(false)
    }

    fn disconnect(&mut self, mac: Mac) {
        if let Some(out) = self.outbound.get_mut(&mac) {
            if let Link::Open { socket, .. } = &out.link {
                let _ = epoll::delete(&self.events, socket);
            }
            out.link = Link::Broken(Instant::now());
        }
    }

    /// Does the next piece of work: takes a frame, a connection, news of members, or goes on
    /// sending.
    pub(super) fn receive(&mut self) -> Incoming {
        for _ in 0..MAX_TURNS {
            if self.ready.is_empty() {
                self.wait();
            }
            let Some(token) = self.ready.pop_front() else {
                return Incoming::Nothing;
            };
            match token {
                LISTENER => self.accept(),
                WATCH => self.roster.notice(),
                token if token & OUT != 0 => self.go_on(token & !OUT),
                token => {
                    if let Some(incoming) = self.read(token) {
                        return incoming;
                    }
                }
            }
        }
        Incoming::Other
    }

    fn wait(&mut self) {
        let mut events = Vec::with_capacity(MAX_TURNS);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.events, buffer, Some(&now)).is_ok() {
            self.ready
                .extend(events.iter().map(|event| event.data.u64()));
        }
    }

    /// Takes connections.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = sockets::accept_with(self.membership.listener(), flags) {
            let strangers = self.inbound.iter().filter(|(_, one)| one.peer.is_none());
            let oldest = strangers.clone().map(|(token, _)| *token).min();
            if strangers.count() >= MAX_STRANGERS
                && let Some(oldest) = oldest
            {
                self.close(oldest);
            }
            let token = self.next_token;
            self.next_token += 1;
            let data = epoll::EventData::new_u64(token);
            if epoll::add(&self.events, &socket, data, epoll::EventFlags::IN).is_ok() {
                self.inbound.insert(token, Inbound { socket, peer: None });
            }
        }
    }

    /// Goes on with what waits for a peer.
    fn go_on(&mut self, token: u64) {
        let is_it = |out: &&mut Outbound| matches!(&out.link, Link::Open { token: own, .. } if *own == token);
        let Some(out) = self.outbound.values_mut().find(is_it) else {
            return;
        };
        // With nothing to send, an event means that the other end is gone.
        let idle = matches!(&out.link, Link::Open { queue, .. } if queue.is_empty());
        if idle || out.link.flush(&self.events).is_err() {
            if let Link::Open { socket, .. } = &out.link {
                let _ = epoll::delete(&self.events, socket);
            }
            out.link = Link::Broken(Instant::now() + PAUSE);
        }
    }

    /// Reads a packet of a connection.
    fn read(&mut self, token: u64) -> Option<Incoming> {
        let one = self.inbound.get(&token)?;
        let received = sockets::recv(&one.socket, &mut self.packet[..], RecvFlags::TRUNC);
        let len = match received {
            Err(Errno::WOULDBLOCK | Errno::INTR) => return None,
            // An end, or a packet that is longer than any.
            Ok((_, 0)) | Err(_) => {
                self.close(token);
                return None;
            }
            Ok((_, len)) if len > MAX_PACKET => return None,
            Ok((_, len)) => len,
        };
        self.ready.push_back(token);
        let Some(peer) = one.peer.clone() else {
            self.greet(token, len);
            return None;
        };
        let (wire, frame) = WireHeader::read_from_prefix(self.packet.get(..len)?).ok()?;
        let header = VnetHeader::from_host(&wire, u32::try_from(frame.len()).ok()?).ok()?;
        let understood = OFFLOADS.contains(header.asks_for());
        self.received = len;
        Some(if understood {
            Incoming::Frame { header, peer }
        } else {
            Incoming::Other
        })
    }

    /// The frame that [`Mesh::receive`] has brought, for changes.
    pub(super) fn frame(&mut self) -> &mut [u8] {
        let frame = self.packet.get_mut(HEADER_LEN as usize..self.received);
        frame.unwrap_or_default()
    }

    /// A stranger says whose it is. It is true if the process that has connected is the one that
    /// runs that VM.
    fn greet(&mut self, token: u64, len: usize) {
        let hello = self.packet.get(..len).unwrap_or_default();
        let id = hello
            .strip_prefix(HELLO)
            .and_then(|id| std::str::from_utf8(id).ok());
        let peer = id.and_then(|id| self.roster.by_id(id)).cloned();
        let peer = peer.filter(|peer| {
            self.inbound
                .get(&token)
                .is_some_and(|one| is_process_of(&one.socket, peer))
        });
        let Some(peer) = peer else {
            self.close(token);
            return;
        };
        // It has one connection; a new one means that the other broke.
        let same = |one: &Inbound| one.peer.as_ref().is_some_and(|other| other.id == peer.id);
        let old = self.inbound.iter().find(|(_, one)| same(one));
        if let Some(old) = old.map(|(token, _)| *token) {
            self.close(old);
        }
        if let Some(one) = self.inbound.get_mut(&token) {
            one.peer = Some(peer);
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(one) = self.inbound.remove(&token) {
            let _ = epoll::delete(&self.events, &one.socket);
        }
        self.ready.retain(|other| *other != token);
    }
}

impl Link {
    /// Sends a packet, or puts it behind those that wait; false if there is no room.
    fn push(&mut self, packet: &[u8], events: &OwnedFd) -> io::Result<bool> {
        self.flush(events)?;
        let Self::Open {
            socket,
            token,
            queue,
            queued,
        } = self
        else {
            return Ok(false);
        };
        if queue.is_empty() {
            if send(socket, packet)? {
                return Ok(true);
            }
            let data = epoll::EventData::new_u64(*token | OUT);
            epoll::modify(events, &*socket, data, epoll::EventFlags::OUT)?;
        }
        if *queued + packet.len() > MAX_QUEUE {
            return Ok(false);
        }
        *queued += packet.len();
        queue.push_back(packet.to_vec());
        Ok(true)
    }

    /// Sends what waits, as far as it is taken.
    fn flush(&mut self, events: &OwnedFd) -> io::Result<()> {
        let Self::Open {
            socket,
            token,
            queue,
            queued,
        } = self
        else {
            return Ok(());
        };
        if queue.is_empty() {
            return Ok(());
        }
        while let Some(packet) = queue.front() {
            if !send(socket, packet)? {
                return Ok(());
            }
            *queued -= packet.len();
            queue.pop_front();
        }
        let data = epoll::EventData::new_u64(*token | OUT);
        epoll::modify(events, &*socket, data, epoll::EventFlags::empty())?;
        Ok(())
    }
}

/// Sends a packet; false if there is no room for it.
fn send(socket: &OwnedFd, packet: &[u8]) -> io::Result<bool> {
    match sockets::send(socket, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::NOBUFS | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the other end of a connection is whom `peer` named in its record, which only this user
/// can write. Which user it runs as tells nothing: each confined monitor sees its own user alone.
fn is_process_of(socket: &OwnedFd, peer: &Member) -> bool {
    sockets::sockopt::socket_peercred(socket).is_ok_and(|other| {
        u32::try_from(other.pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == peer.pid)
    })
}

#[cfg(test)]
impl Mesh {
    /// Loses the lock, as a process does that is killed.
    pub(super) fn forget_lock(&mut self) {
        self.membership.forget_lock();
    }

    /// Loses its sockets, and leaves its folder as it is.
    pub(super) fn break_off(self) -> Membership {
        let mut membership = self.membership;
        membership.forget_listener();
        membership
    }

    pub(super) fn connections(&self) -> usize {
        self.inbound.len()
    }
}
