//! How long to wait before a VM is started again, and what ends the waiting.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::vms::OwnedVm;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_mins(1);
/// Whoever ran for so long has not failed at once.
const SOUND: Duration = Duration::from_secs(10);

/// The delay after a run that took `ran`; `last` is the one before that run.
pub fn next_delay(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < SOUND => (last * 2).clamp(FIRST, LONGEST),
        _ => FIRST,
    }
}

/// Waits for `delay`; returns `true` at once when somebody asks for the VM's end.
pub fn wait_unless_stopped(vm: &OwnedVm, delay: Duration) -> io::Result<bool> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, vm.dir(), inotify::WatchFlags::CREATE)?;
    let until = Instant::now() + delay;
    loop {
        if vm.is_stop_asked() {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What was told is in the folder; only that it was told is read here.
        while matches!(rustix::io::read(&watch, &mut [0; 4096]), Ok(1..)) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::Dirs;
    use crate::vms::{NewVm, Registry};

    #[test]
    fn delays_grow_to_a_minute_and_start_anew_after_a_sound_run() {
        let mut delays = vec![next_delay(None, Duration::ZERO)];
        for _ in 0..12 {
            delays.push(next_delay(delays.last().copied(), Duration::from_secs(1)));
        }
        assert_eq!(delays[0], FIRST);
        assert_eq!(delays[3], FIRST * 8);
        assert_eq!(delays.last(), Some(&LONGEST));
        assert_eq!(next_delay(Some(LONGEST), SOUND), FIRST);
        // Even one that somebody else made up.
        assert_eq!(next_delay(Some(Duration::ZERO), Duration::ZERO), FIRST);
    }

    #[test]
    fn a_stop_ends_the_waiting() {
        let base = tempfile::tempdir().unwrap();
        let registry = Registry::open(&Dirs::below(base.path())).unwrap();
        let owned = registry.create(NewVm::default()).unwrap();
        let vm = registry.find(&owned.record().name).unwrap();
        assert!(!wait_unless_stopped(&owned, Duration::from_millis(1)).unwrap());
        std::thread::scope(|scope| {
            // Far longer than any test is waited for.
            let waiter = scope.spawn(|| wait_unless_stopped(&owned, Duration::from_hours(1)));
            vm.ask_stop().unwrap();
            assert!(waiter.join().unwrap().unwrap());
        });
        owned.clear_stop();
        assert!(!owned.is_stop_asked());
    }
}
