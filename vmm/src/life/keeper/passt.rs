//! The VM's passt, where the guest's first packet starts it: the monitor is confined by then.

use std::os::fd::OwnedFd;

use crate::net::NetError;
use crate::net::passt::{Order, Watch};

/// What there is of it.
#[derive(Debug, Default)]
pub(super) enum Passt {
    /// Nothing has been told.
    #[default]
    Untold,
    /// How it is started, and its end of the socket.
    Kept(Order, OwnedFd),
    /// It has been started, and ends when this is dropped.
    Runs(Watch),
    /// There is none, whoever tells of one.
    None,
}

impl Passt {
    /// Takes note of how it is started.
    pub(super) fn keep(&mut self, order: Order, socket: Option<OwnedFd>) {
        if let (Self::Untold, Some(socket)) = (&self, socket) {
            *self = Self::Kept(order, socket);
        }
    }

    /// A guest may speak from now on through whoever tells: what was not told is not believed.
    pub(super) fn believe_no_more(&mut self) {
        if let Self::Untold = self {
            *self = Self::None;
        }
    }

    /// Starts what is kept. If it can't be, its socket is closed, and with it the guest's link.
    pub(super) fn start(&mut self) {
        *self = match std::mem::replace(self, Self::None) {
            Self::Kept(order, socket) => run(order, socket).map_or_else(
                |error| {
                    log::warn!("{}", crate::cli::in_one_line(&error));
                    Self::None
                },
                Self::Runs,
            ),
            other => other,
        };
    }

    /// Ends with the monitor, which is gone or has taken the machine apart: what the guest has sent
    /// last goes out.
    pub(super) fn end(self) {
        if let Self::Runs(watch) = self {
            watch.expect_end();
            watch.wait_for_end();
        }
    }
}

fn run(order: Order, socket: OwnedFd) -> Result<Watch, NetError> {
    // One that ends well has lost its guest, which the monitor knows.
    let tell = Box::new(|failed, why: &str| {
        if failed {
            log::warn!("{why}");
        }
    });
    let mut watch = order.start(socket)?.watch(tell)?;
    watch
        .start()
        .map_err(|error| NetError::Host("watch passt", error))?;
    Ok(watch)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A shell in passt's place, with the socket's number as its first argument. dash knows no number of
    /// two digits.
    fn shell(script: &str) -> Order {
        let order = serde_json::json!({ "path": "/bin/bash", "words": ["-c", script] });
        serde_json::from_value(order).unwrap()
    }

    fn pair() -> (UnixStream, Option<OwnedFd>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Some(theirs.into()))
    }

    #[test]
    fn what_was_told_in_time_is_started_once() {
        let (mut ours, theirs) = pair();
        let mut passt = Passt::default();
        passt.start();
        passt.keep(shell("echo here >&$1"), theirs);
        passt.believe_no_more();
        passt.start();
        passt.start();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "here\n");
    }

    #[test]
    fn what_is_told_later_is_not_believed() {
        let (mut ours, theirs) = pair();
        let mut passt = Passt::default();
        passt.believe_no_more();
        passt.keep(shell("echo here >&$1"), theirs);
        passt.start();
        assert!(matches!(passt, Passt::None));
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        // Nor is another one in the place of the first.
        let (mut ours, theirs) = pair();
        let mut passt = Passt::default();
        passt.keep(shell("echo first >&$1"), theirs);
        passt.believe_no_more();
        passt.keep(shell("echo second >&$1"), pair().1);
        passt.start();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "first\n");
    }

    #[test]
    fn what_the_guest_has_sent_last_goes_out() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("sent");
        let (mut ours, theirs) = pair();
        let mut passt = Passt::default();
        passt.keep(shell(&format!("cat <&$1 >{}", file.display())), theirs);
        passt.start();
        ours.write_all(b"last words").unwrap();
        drop(ours);
        passt.end();
        assert_eq!(std::fs::read(file).unwrap(), b"last words");
    }

    #[test]
    fn one_that_can_not_be_started_closes_its_socket() {
        let (mut ours, theirs) = pair();
        let order = serde_json::json!({ "path": "/nonexistent", "words": [] });
        let mut passt = Passt::Kept(serde_json::from_value(order).unwrap(), theirs.unwrap());
        passt.start();
        assert!(matches!(passt, Passt::None));
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
    }
}
