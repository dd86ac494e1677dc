//! The state of the link as the guest sees it, and the owner's hold on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::device::DeviceNotifier;

/// Whether the cable is in, so to say (`VIRTIO_NET_S_LINK_UP`). Clones are handles on the same link.
///
/// While the link is down nothing is sent and nothing is received; frames that the guest sends are
/// lost. A link that went down because its back end has closed stays down.
#[derive(Clone, Debug)]
pub struct LinkState {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    up: AtomicBool,
    reason: Mutex<Reason>,
}

#[derive(Debug, Default)]
struct Reason {
    /// Why a back end has closed, which cannot be mended.
    closed: Option<String>,
    /// Who is to be told, while the device runs.
    listeners: Option<Listeners>,
}

/// Who is to be told of a change.
#[derive(Debug)]
pub(super) struct Listeners {
    /// The driver.
    pub notifier: DeviceNotifier,
    /// The workers of the queue pairs.
    pub pokes: Vec<EventFd>,
}

impl Default for LinkState {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                up: AtomicBool::new(true),
                reason: Mutex::default(),
            }),
        }
    }
}

impl LinkState {
    /// The link is up.
    pub fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Acquire)
    }

    /// Why the link is down for good: its other end has closed. None if it has not.
    pub fn closed(&self) -> Option<String> {
        self.reason().closed.clone()
    }

    /// Takes the link up or down, and tells the driver. False if it is to be up and its other end is
    /// gone.
    pub fn set(&self, up: bool) -> bool {
        let reason = self.reason();
        if up && reason.closed.is_some() {
            return false;
        }
        self.change(up, &reason);
        true
    }

    /// Takes the link down for good. True if it was not so before.
    pub fn close(&self, why: &str) -> bool {
        let mut reason = self.reason();
        if reason.closed.is_some() {
            return false;
        }
        reason.closed = Some(why.to_owned());
        self.change(false, &reason);
        true
    }

    /// Who is to be told of changes from now on.
    pub(super) fn attach(&self, listeners: Option<Listeners>) {
        self.reason().listeners = listeners;
    }

    fn change(&self, up: bool, reason: &Reason) {
        if self.shared.up.swap(up, Ordering::AcqRel) != up
            && let Some(listeners) = &reason.listeners
        {
            listeners.notifier.config_changed();
            for poke in &listeners.pokes {
                // A full counter is a signal, too.
                let _ = poke.write(1);
            }
        }
    }

    /// Nobody panics while holding it, and what is in it is valid at any time.
    fn reason(&self) -> std::sync::MutexGuard<'_, Reason> {
        let reason = self.shared.reason.lock();
        reason.unwrap_or_else(PoisonError::into_inner)
    }
}
