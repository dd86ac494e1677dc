//! How a device reaches the guest's interrupt controller, without knowing which one there is.

use vmm_sys_util::eventfd::EventFd;

use crate::rate_limit::RateLimit;

/// One interrupt line of the guest.
pub trait Interrupt: Send + Sync {
    /// Raises one edge. Never blocks; edges that nobody took yet may merge into one.
    fn raise(&self);

    /// The eventfd that raises the line when it is signalled, for those who can't call
    /// [`Interrupt::raise`] because they are another process. None if the line has none.
    fn event(&self) -> Option<&EventFd> {
        None
    }
}

/// An interrupt that is an eventfd, which KVM watches as an irqfd (KVM_IRQFD in the kernel's
/// Documentation/virt/kvm/api.rst).
#[derive(Debug)]
pub struct EventInterrupt {
    event: EventFd,
    limit: RateLimit,
}

impl EventInterrupt {
    /// `event` has to be non-blocking and is registered as an irqfd by whoever owns the VM.
    pub fn new(event: EventFd) -> Self {
        Self {
            event,
            limit: RateLimit::new(),
        }
    }
}

impl Interrupt for EventInterrupt {
    fn raise(&self) {
        if let Err(error) = self.event.write(1) {
            // A full counter means that an edge is pending already: nothing is lost.
            if error.kind() != std::io::ErrorKind::WouldBlock {
                self.limit.log(
                    log::Level::Error,
                    format_args!("an interrupt could not be raised: {error}"),
                );
            }
        }
    }

    fn event(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn raise_signals_the_eventfd() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = EventInterrupt::new(event.try_clone().unwrap());
        interrupt.raise();
        interrupt.raise();
        assert_eq!(event.read().unwrap(), 2);
    }

    #[test]
    fn raise_returns_when_the_counter_is_full() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(u64::MAX - 1).unwrap();
        EventInterrupt::new(event.try_clone().unwrap()).raise();
        assert_eq!(event.read().unwrap(), u64::MAX - 1);
    }
}
