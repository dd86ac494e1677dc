//! The monitor in its cgroup, and out of it again before it ends: none that has a process in it can be
//! removed.
//!
//! To move a process the kernel waits until all of RCU's readers are done, some 10 ms. A monitor that
//! says that its guest has ended is let go then, while it takes the machine apart. One that says so and
//! goes on is put back, and not believed a second time.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Monitor;
use crate::confine::Cgroup;

/// How long a monitor without a guest may be outside. Most end within some hundredths of a second; one
/// that still writes a disk back does that as well inside.
const GRACE: Duration = Duration::from_secs(5);

/// A monitor's cgroup, if it has one.
pub(super) struct Group<'m> {
    cgroup: Option<Cgroup>,
    monitor: &'m Monitor,
    state: State,
}

enum State {
    Inside,
    /// Outside until then, if it has not ended before.
    LetGo(Instant),
    /// Inside, for having said that it ends, and not done so.
    PutBack,
}

impl<'m> Group<'m> {
    /// With `monitor` in `cgroup`.
    pub(super) fn new(cgroup: Option<Cgroup>, monitor: &'m Monitor) -> Self {
        Self {
            cgroup,
            monitor,
            state: State::Inside,
        }
    }

    /// Where it is.
    pub(super) fn dir(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(Cgroup::dir)
    }

    /// The monitor is about to end, as it says.
    pub(super) fn let_go(&mut self) {
        if let (State::Inside, Some(cgroup)) = (&self.state, &self.cgroup)
            && self.monitor.lives()
        {
            cgroup.let_go(self.monitor.number());
            self.state = State::LetGo(Instant::now() + GRACE);
        }
    }

    /// Waits until `socket` has something to read, with an eye on a monitor that is outside.
    pub(super) fn watch_until_heard(&mut self, socket: BorrowedFd<'_>) {
        let State::LetGo(until) = self.state else {
            return;
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => break,
                _ => return,
            }
        }
        if let Some(cgroup) = &self.cgroup
            && self.monitor.lives()
        {
            cgroup.hold(self.monitor.number());
        }
        self.state = State::PutBack;
    }

    /// Removes it. The monitor may live a little longer.
    pub(super) fn remove(self) {
        let Some(cgroup) = self.cgroup else { return };
        let is_outside = matches!(self.state, State::LetGo(_));
        if !is_outside && self.monitor.lives() {
            cgroup.let_go(self.monitor.number());
        }
        cgroup.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_monitor_that_goes_on_is_put_back_and_not_believed_again() {
        let monitor = Monitor::this();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut group = Group::new(None, &monitor);
        // One that is where it belongs is not watched.
        group.watch_until_heard(ours.as_fd());
        assert!(matches!(group.state, State::Inside));
        group.state = State::LetGo(Instant::now());
        group.watch_until_heard(ours.as_fd());
        assert!(matches!(group.state, State::PutBack));
        group.let_go();
        assert!(matches!(group.state, State::PutBack));
        // One that speaks is heard, and stays outside.
        theirs.write_all(b"x").unwrap();
        group.state = State::LetGo(Instant::now() + GRACE);
        group.watch_until_heard(ours.as_fd());
        assert!(matches!(group.state, State::LetGo(_)));
    }
}
