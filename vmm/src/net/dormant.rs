//! A passt that is not there yet: the guest's first packet has it started, by whoever stays outside of
//! the monitor's sandbox. What is sent until it serves waits in its socket.
//!
//! A guest that only runs never needs one. Linux itself says something as soon as its interface is
//! up, though nobody has to hear it: which groups of IPv6 it is in, and whether somebody has its
//! address. That starts nothing.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use casita_devices::virtio::net::backend::{Backend, Frame, Landing, Received, Sent, Wrapper};

use super::NetError;
use super::attach::HostEnd;
use super::passt::{Order, pair};
use super::wall::Packet;

/// All routers that listen to which groups somebody is in (RFC 3810, 5.2.14).
const LISTENERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Whoever starts a passt for a monitor that can't.
pub trait Starter: Debug + Send + Sync {
    /// Has `order` and passt's end of the socket kept. Before the monitor is confined, as nothing that
    /// it says of programs is believed afterwards.
    ///
    /// # Errors
    /// If nobody is there.
    fn keep(&self, order: &Order, socket: OwnedFd) -> io::Result<()>;

    /// Has it started, without waiting for that. If it can't be, its end of the socket closes.
    ///
    /// # Errors
    /// If nobody is there.
    fn start(&self) -> io::Result<()>;
}

/// The host's end of a network whose passt is started later.
///
/// # Errors
/// If the host has no descriptor left, or `starter` is gone.
pub(super) fn end(order: &Order, starter: &Arc<dyn Starter>) -> Result<HostEnd, NetError> {
    let (ours, theirs) = pair()?;
    starter
        .keep(order, theirs)
        .map_err(|error| NetError::Host("tell the VM's keeper of passt", error))?;
    Ok(HostEnd::Dormant(ours, starter.clone()))
}

/// A back end whose other side starts with the first packet.
pub(super) struct Dormant<B> {
    inner: B,
    /// None once it has been asked.
    starter: Option<Arc<dyn Starter>>,
}

impl<B> Dormant<B> {
    pub(super) fn new(inner: B, starter: Arc<dyn Starter>) -> Self {
        Self {
            inner,
            starter: Some(starter),
        }
    }
}

impl<B: Backend> Wrapper for Dormant<B> {
    type Inner = B;

    fn inner(&self) -> &B {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    fn pass_out(&mut self, frame: &Frame<'_>) -> Sent {
        if let Some(starter) = &self.starter {
            if wants_no_answer(frame.head) {
                return Sent::Dropped;
            }
            if let Err(error) = starter.start() {
                return Sent::Closed(ended(&error));
            }
            self.starter = None;
        }
        match self.inner.send(frame) {
            Sent::Closed(error) => Sent::Closed(ended(&error)),
            sent => sent,
        }
    }

    fn pass_in(&mut self, landing: &mut Landing<'_>) -> Received {
        match self.inner.receive(landing) {
            Received::Closed(error) => Received::Closed(ended(&error)),
            received => received,
        }
    }
}

/// What the end of the socket means.
fn ended(error: &io::Error) -> io::Error {
    io::Error::other(format!("passt has ended: {error}"))
}

/// What Linux sends when an interface comes up: a report of its groups, or a question for an address
/// of which it does not say that it has it (RFC 4862, 5.4.2).
fn wants_no_answer(frame: &[u8]) -> bool {
    Packet::of(frame).is_some_and(|packet| {
        packet.destination == IpAddr::V6(LISTENERS)
            || packet.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use casita_devices::virtio::net::header::VnetHeader;
    use casita_devices::virtio::net::pieces::Pieces;
    use casita_devices::virtio::net::stream::Stream;

    use super::*;

    /// Counts how often it is asked.
    #[derive(Debug, Default)]
    struct Counts {
        started: AtomicUsize,
        gone: bool,
    }

    impl Starter for Counts {
        fn keep(&self, _: &Order, _: OwnedFd) -> io::Result<()> {
            Ok(())
        }

        fn start(&self) -> io::Result<()> {
            self.started.fetch_add(1, Ordering::Relaxed);
            if self.gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        }
    }

    fn send(to: &mut impl Backend, bytes: &[u8]) -> Sent {
        to.send(&Frame {
            header: VnetHeader::default(),
            head: bytes,
            rest: Pieces::of_bytes(&[]),
        })
    }

    /// A frame of IPv6 with no more than its header.
    fn of_ipv6(source: &str, destination: &str) -> Vec<u8> {
        let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let ethernet = [[0; 12].as_slice(), &[0x86, 0xdd]].concat();
        let head = [0x60, 0, 0, 0, 0, 0, 58, 255];
        [&ethernet, &head[..], &octets(source), &octets(destination)].concat()
    }

    fn dormant(counts: &Arc<Counts>) -> (Dormant<Stream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours).unwrap();
        (Dormant::new(stream, counts.clone()), theirs)
    }

    #[test]
    fn the_first_packet_starts_it_once_and_arrives() {
        let counts = Arc::new(Counts::default());
        let (mut end, mut passt) = dormant(&counts);
        for chatter in [
            of_ipv6("fe80::1", "ff02::16"),
            of_ipv6("::", "ff02::1:ff00:1"),
        ] {
            assert!(matches!(send(&mut end, &chatter), Sent::Dropped));
        }
        assert_eq!(counts.started.load(Ordering::Relaxed), 0);
        let first = of_ipv6("fd00::1", "fd00::2");
        for _ in 0..2 {
            assert!(matches!(send(&mut end, &first), Sent::Done));
        }
        assert_eq!(counts.started.load(Ordering::Relaxed), 1);
        let mut got = vec![0; 4 + first.len()];
        passt.read_exact(&mut got).unwrap();
        assert_eq!(got[4..], first);
        // It is nobody's business any more what is sent.
        let report = of_ipv6("fe80::1", "ff02::16");
        assert!(matches!(send(&mut end, &report), Sent::Done));
    }

    #[test]
    fn an_answer_to_a_question_for_any_router_starts_it() {
        for frame in [
            of_ipv6("fe80::1", "ff02::2"),
            of_ipv6("fe80::1", "ff02::1:2"),
            // Of whatever is no IP, ARP among it.
            vec![0xff; 60],
            Vec::new(),
        ] {
            assert!(!wants_no_answer(&frame), "{frame:x?}");
        }
    }

    #[test]
    fn nobody_who_starts_it_is_the_end_of_the_link() {
        let counts = Arc::new(Counts {
            gone: true,
            ..Counts::default()
        });
        let (mut end, _passt) = dormant(&counts);
        let sent = send(&mut end, &of_ipv6("fd00::1", "fd00::2"));
        assert!(matches!(sent, Sent::Closed(error) if error.to_string().contains("passt")));
    }
}
