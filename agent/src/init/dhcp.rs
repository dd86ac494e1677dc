//! Asks the network for an IPv4 address, in a process of its own: nobody waits for it, and it prolongs
//! what it was given for as long as the guest runs.

use core::net::{Ipv4Addr, SocketAddrV4};

use casita_agent::dhcp::{Answer, CLIENT_PORT, Client, Lease, MAX_LEN, Offer, SERVER_PORT};
use casita_agent::hosts;
use casita_agent::spec::Network;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};
use rustix::net::sockopt::{set_socket_broadcast, set_socket_reuseaddr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use crate::failure::{Doing, Failure};
use crate::{network, stamp, sys};

/// Milliseconds that an answer has, at first and at last (RFC 2131, section 4.1).
const PATIENCE: u64 = 1000;
const MOST_PATIENCE: u64 = 64_000;
/// Seconds of the shortest and the longest lease that are believed.
const SHORTEST: u32 = 20;
const LONGEST: u32 = 1 << 22;

/// Starts to ask, for the interface `index` with the address `mac`. `said` is what the user has said of
/// the network, which goes before what the network says.
pub(crate) fn start(
    index: u32,
    mac: [u8; 6],
    hostname: &str,
    said: &Network,
) -> Result<(), Failure> {
    if sys::fork()
        .doing(|| "cannot ask the network for an address")?
        .is_some()
    {
        return Ok(());
    }
    stamp::drop_claim();
    // It has no use for any file that PID 1 has opened.
    sys::close_from(0);
    let [_, _, a, b, c, d] = mac;
    let client = Client {
        mac,
        // Nobody else on this network has this address.
        transaction: u32::from_be_bytes([a, b, c, d]) ^ sys::now() as u32,
        hostname,
    };
    ask(index, &client, said);
    sys::exit(1)
}

/// Returns only if the guest's kernel can't do it.
fn ask(index: u32, client: &Client<'_>, said: &Network) {
    let mut patience = PATIENCE;
    loop {
        let Ok(socket) = open() else { return };
        if let Some(lease) = acquire(&socket, client) {
            patience = PATIENCE;
            hold(index, client, said, lease, &socket);
        } else {
            sys::sleep(u32::try_from(patience).unwrap_or_default());
            patience = (patience * 2).min(MOST_PATIENCE);
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    set_socket_broadcast(&socket, true)?;
    set_socket_reuseaddr(&socket, true)?;
    // There is no route yet by which the kernel could choose.
    sys::bind_to_interface(socket.as_fd(), network::INTERFACE)?;
    bind(
        &socket,
        &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT),
    )?;
    Ok(socket)
}

fn acquire(socket: &OwnedFd, client: &Client<'_>) -> Option<Lease> {
    let Answer::Offer(offer) = exchange(socket, client, &client.discover())? else {
        return None;
    };
    request(socket, client, offer, None)
}

fn request(
    socket: &OwnedFd,
    client: &Client<'_>,
    offer: Offer,
    held: Option<Ipv4Addr>,
) -> Option<Lease> {
    match exchange(socket, client, &client.request(&offer, held))? {
        Answer::Lease(lease) => Some(lease),
        Answer::Offer(_) | Answer::No => None,
    }
}

/// Sends to all, and waits for the first answer to us.
fn exchange(socket: &OwnedFd, client: &Client<'_>, message: &[u8]) -> Option<Answer> {
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    sendto(socket, message, SendFlags::empty(), &to).ok()?;
    let deadline = sys::now() + PATIENCE;
    loop {
        let left = deadline.checked_sub(sys::now())?;
        let timeout = Timespec {
            tv_sec: i64::try_from(left / 1000).ok()?,
            tv_nsec: i64::try_from(left % 1000 * 1_000_000).ok()?,
        };
        let mut ready = [PollFd::new(socket, PollFlags::IN)];
        if poll(&mut ready, Some(&timeout)).ok()? == 0 {
            return None;
        }
        let mut bytes = [0; 2 * MAX_LEN];
        let Ok((len, _)) = recv(socket, &mut bytes[..], RecvFlags::empty()) else {
            continue;
        };
        if let Some(answer) = bytes.get(..len).and_then(|bytes| client.answer(bytes)) {
            return Some(answer);
        }
    }
}

/// Sets up what was given, and prolongs it until nobody does that any more.
fn hold(index: u32, client: &Client<'_>, said: &Network, mut lease: Lease, socket: &OwnedFd) {
    loop {
        set_up(index, said, &lease);
        let seconds = lease.seconds.clamp(SHORTEST, LONGEST);
        let expires = sys::now() + u64::from(seconds) * 1000;
        // At half of its time, and then every eighth.
        sys::sleep(seconds * 500);
        lease = loop {
            match request(socket, client, lease.offer, Some(lease.offer.address)) {
                Some(longer) => break longer,
                None if sys::now() >= expires => return,
                None => sys::sleep(seconds * 125),
            }
        };
    }
}

fn set_up(index: u32, said: &Network, lease: &Lease) {
    let mut given = lease.network.clone();
    given.mtu = said.mtu.or(given.mtu);
    if let Err(failure) = network::apply(index, &given) {
        failure.print();
    }
    if said.dns.is_empty() {
        let text = hosts::resolv_conf(&given);
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = openat(CWD, "/etc/resolv.conf", flags, Mode::empty());
        // An image may have made something else of it.
        let _ = file.and_then(|file| write(&file, text.as_bytes()));
    }
}
