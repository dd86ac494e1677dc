//! A panic on a queue's own thread ends the VM like one on the shared loop.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event_loop::{Control, EventLoopHandle, Handler, Interest, Source};

/// Makes the shared loop panic with `message`: it knows whom to tell.
pub(super) fn relay(message: String, shared: &EventLoopHandle) {
    log::error!("a queue's thread panicked: {message}");
    let relayed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(|event| {
        let _ = event.write(1);
        shared.add(PanicRelay { message, event })
    });
    match relayed {
        // The loop ends with the handler in it.
        Ok(Ok(registration)) => std::mem::forget(registration),
        Ok(Err(error)) => log::error!("the panic cannot be reported: {error}"),
        Err(error) => log::error!("the panic cannot be reported: {error}"),
    }
}

struct PanicRelay {
    message: String,
    event: EventFd,
}

impl Handler for PanicRelay {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.event.as_raw_fd(),
            token: 0,
            interest: Interest::READ,
        }]
    }

    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        std::panic::resume_unwind(Box::new(std::mem::take(&mut self.message)));
    }
}
