use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends each token that it sees; on token 9 it panics, on 2 it stops to listen to itself.
struct Reporter {
    events: Vec<(EventFd, u32)>,
    seen: Sender<u32>,
    count: u32,
}

impl Reporter {
    fn new(tokens: &[u32]) -> (Self, Vec<EventFd>, Receiver<u32>) {
        let (seen, receiver) = channel();
        let new_event = |token: &u32| (EventFd::new(EFD_NONBLOCK).unwrap(), *token);
        let events: Vec<_> = tokens.iter().map(new_event).collect();
        let kicks = events.iter().map(|(event, _)| event.try_clone().unwrap());
        let kicks = kicks.collect();
        let reporter = Reporter {
            events,
            seen,
            count: 0,
        };
        (reporter, kicks, receiver)
    }

    fn source(&self, token: u32) -> Source {
        let (event, token) = self.events.iter().find(|(_, t)| *t == token).unwrap();
        Source {
            fd: event.as_raw_fd(),
            token: *token,
            interest: Interest::READ,
        }
    }
}

impl Handler for Reporter {
    fn sources(&self) -> Vec<Source> {
        self.events.iter().map(|(_, t)| self.source(*t)).collect()
    }

    fn ready(&mut self, token: u32, control: &mut Control<'_>) {
        assert_ne!(token, 9, "handler of token {token} was told to panic");
        if token == 2 {
            control.disable(self.source(2)).unwrap();
        } else {
            let (event, _) = self.events.iter().find(|(_, t)| *t == token).unwrap();
            event.read().unwrap();
        }
        self.count += 1;
        self.seen.send(token).unwrap();
    }
}

fn quiet_loop() -> EventLoop {
    EventLoop::spawn("test-loop", |message| panic!("{message}")).unwrap()
}

#[test]
fn handler_sees_its_tokens_and_comes_back_with_its_state() {
    let event_loop = quiet_loop();
    let (reporter, kicks, seen) = Reporter::new(&[0, 1]);
    let registration = event_loop.handle().add(reporter).unwrap();
    kicks[1].write(1).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(1));
    kicks[0].write(1).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(0));
    let reporter = registration.remove().unwrap();
    assert_eq!(reporter.count, 2);
    kicks[0].write(1).unwrap();
    // A second handler that answers shows that the loop has passed the kick by.
    let (other, other_kicks, other_seen) = Reporter::new(&[5]);
    let _registration = event_loop.handle().add(other).unwrap();
    other_kicks[0].write(1).unwrap();
    assert_eq!(other_seen.recv_timeout(PATIENCE), Ok(5));
    assert_eq!(reporter.count, 2);
}

#[test]
fn disabled_source_is_not_watched_any_more() {
    let event_loop = quiet_loop();
    let (reporter, kicks, seen) = Reporter::new(&[2, 3]);
    let registration = event_loop.handle().add(reporter).unwrap();
    // The handler of token 2 does not read its event, so only disabling keeps it quiet.
    kicks[0].write(1).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(2));
    kicks[1].write(1).unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(3));
    assert_eq!(registration.remove().unwrap().count, 2);
}

#[test]
fn dropped_registration_drops_the_handler() {
    let event_loop = quiet_loop();
    let (reporter, _kicks, seen) = Reporter::new(&[0]);
    drop(event_loop.handle().add(reporter).unwrap());
    assert!(seen.recv().is_err(), "the sender went with the handler");
}

#[test]
fn panic_is_reported_and_later_calls_fail() {
    let (report, reported) = channel();
    let event_loop = EventLoop::spawn("test-loop", move |message| {
        report.send(message).unwrap();
    })
    .unwrap();
    let (reporter, kicks, _seen) = Reporter::new(&[9]);
    let registration = event_loop.handle().add(reporter).unwrap();
    kicks[0].write(1).unwrap();
    let message = reported.recv_timeout(PATIENCE).unwrap();
    assert!(message.contains("token 9 was told to panic"), "{message}");
    assert!(matches!(registration.remove(), Err(EventLoopError::Gone)));
    let (reporter, _, _) = Reporter::new(&[0]);
    let added = event_loop.handle().add(reporter);
    assert!(matches!(added, Err(EventLoopError::Gone)));
}

/// Names its one descriptor twice.
struct Twice(EventFd);
impl Handler for Twice {
    fn sources(&self) -> Vec<Source> {
        let source = Source {
            fd: self.0.as_raw_fd(),
            token: 0,
            interest: Interest::READ | Interest::WRITE,
        };
        vec![source, source]
    }
    fn ready(&mut self, _: u32, _: &mut Control<'_>) {}
}

#[test]
fn descriptor_that_is_watched_already_is_refused() {
    let event_loop = quiet_loop();
    let (mut reporter, _kicks, _seen) = Reporter::new(&[0]);
    let event = reporter.events[0].0.try_clone().unwrap();
    let handle = event_loop.handle();
    let twice = handle.add(Twice(event));
    assert!(matches!(twice, Err(EventLoopError::Source { .. })));
    // The failed one has left nothing behind.
    let registration = handle.add(reporter).unwrap();
    reporter = registration.remove().unwrap();
    assert_eq!(reporter.count, 0);
}

#[test]
fn call_from_the_loops_own_thread_is_refused_rather_than_stuck() {
    struct Nested(EventFd, EventLoopHandle, Sender<bool>);
    impl Handler for Nested {
        fn sources(&self) -> Vec<Source> {
            vec![Source {
                fd: self.0.as_raw_fd(),
                token: 0,
                interest: Interest::READ,
            }]
        }
        fn ready(&mut self, _: u32, _: &mut Control<'_>) {
            self.0.read().unwrap();
            let (reporter, _, _) = Reporter::new(&[0]);
            let added = self.1.add(reporter);
            let refused = matches!(added, Err(EventLoopError::OnLoopThread));
            self.2.send(refused).unwrap();
        }
    }
    let event_loop = quiet_loop();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let kick = event.try_clone().unwrap();
    let (sender, refused) = channel();
    let handle = event_loop.handle();
    let _registration = handle.add(Nested(event, handle.clone(), sender)).unwrap();
    kick.write(1).unwrap();
    assert_eq!(refused.recv_timeout(PATIENCE), Ok(true));
}
