//! One thread that waits for file descriptors and calls the handlers that own them.

use std::any::Any;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, ThreadId};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
};

/// What a handler waits for on a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(EventSet);

impl Interest {
    /// The descriptor can be read.
    pub const READ: Interest = Interest(EventSet::IN);
    /// The descriptor can be written.
    pub const WRITE: Interest = Interest(EventSet::OUT);
    /// Both directions of a connection have ended. Every other interest implies this one.
    pub const HANG_UP: Interest = Interest(EventSet::HANG_UP);
}

impl std::ops::BitOr for Interest {
    type Output = Interest;
    fn bitor(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }
}

/// A file descriptor that a handler waits for. The handler owns it, and keeps it open for as long
/// as it waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The descriptor; a loop waits for each number once.
    pub fd: RawFd,
    /// Given to [`Handler::ready`], so that a handler can tell its sources apart.
    pub token: u32,
    /// What to wait for; level-triggered.
    pub interest: Interest,
}

impl Source {
    fn events(self) -> Events {
        Events::with_data_raw(self.fd, self.token, self.interest.0)
    }
}

/// Work that is done on the loop's thread. All handlers of a loop share that thread, so each does
/// a bounded piece of work and returns.
pub trait Handler: Send + 'static {
    /// What to wait for, asked once when the handler is added.
    fn sources(&self) -> Vec<Source>;
    /// The source with this token is ready, has failed, or was closed at its other end.
    fn ready(&mut self, token: u32, control: &mut Control<'_>);
}

/// Lets a handler change what it waits for while it runs.
pub struct Control<'a> {
    watch: &'a mut (dyn Watch + 'a),
}

impl Control<'_> {
    /// Starts to wait for `source`.
    ///
    /// # Errors
    /// The loop waits for this descriptor already, or the kernel refused it.
    pub fn enable(&mut self, source: Source) -> Result<(), EventLoopError> {
        let done = self.watch.add(source.events());
        done.map_err(|error| EventLoopError::source(source.fd, error))
    }

    /// Stops to wait for `source`. This has to happen before the descriptor is closed.
    ///
    /// # Errors
    /// The loop does not wait for this descriptor.
    pub fn disable(&mut self, source: Source) -> Result<(), EventLoopError> {
        let done = self.watch.remove(source.events());
        done.map_err(|error| EventLoopError::source(source.fd, error))
    }

    /// Changes the interest or the token of a descriptor that is waited for.
    ///
    /// # Errors
    /// The loop does not wait for this descriptor.
    pub fn modify(&mut self, source: Source) -> Result<(), EventLoopError> {
        let done = self.watch.modify(source.events());
        done.map_err(|error| EventLoopError::source(source.fd, error))
    }
}

/// What [`Control`] needs of `EventOps`, whose own lifetime would otherwise show in it.
trait Watch {
    fn add(&mut self, events: Events) -> event_manager::Result<()>;
    fn remove(&mut self, events: Events) -> event_manager::Result<()>;
    fn modify(&mut self, events: Events) -> event_manager::Result<()>;
}

impl Watch for EventOps<'_> {
    fn add(&mut self, events: Events) -> event_manager::Result<()> {
        EventOps::add(self, events)
    }
    fn remove(&mut self, events: Events) -> event_manager::Result<()> {
        EventOps::remove(self, events)
    }
    fn modify(&mut self, events: Events) -> event_manager::Result<()> {
        EventOps::modify(self, events)
    }
}

/// Why the loop could not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// The thread has ended, by a panic or because the loop was dropped.
    #[error("the event loop's thread has ended")]
    Gone,
    /// The loop was made and its thread has not been started.
    #[error("the event loop's thread has not been started yet")]
    NotStarted,
    /// A handler asked the loop to wait for the handler itself, which would never end.
    #[error("a handler cannot add or remove handlers on its own loop")]
    OnLoopThread,
    /// The loop could not be created.
    #[error("an event loop could not be created")]
    Create(#[source] event_manager::Error),
    /// Its thread could not be started.
    #[error("the event loop's thread {name} could not be started")]
    Thread {
        /// The thread's name.
        name: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A descriptor could not be waited for.
    #[error("the event loop cannot watch file descriptor {fd}")]
    Source {
        /// The descriptor.
        fd: RawFd,
        /// The reason.
        source: event_manager::Error,
    },
}

impl EventLoopError {
    fn source(fd: RawFd, source: event_manager::Error) -> Self {
        Self::Source { fd, source }
    }
}

/// Errors of the channel to the loop: they all mean that nobody is at its other end.
impl From<event_manager::Error> for EventLoopError {
    fn from(_: event_manager::Error) -> Self {
        Self::Gone
    }
}

/// A handler of any type, which can be turned back into its own type.
trait AnyHandler: Handler {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<H: Handler> AnyHandler for H {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

struct Subscriber {
    handler: Box<dyn AnyHandler>,
    /// The first source that could not be added; `init` has no other way to say so.
    failed: Option<EventLoopError>,
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut control = Control { watch: ops };
        for source in self.handler.sources() {
            if let Err(error) = control.enable(source) {
                self.failed = Some(error);
                return;
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.handler
            .ready(events.data(), &mut Control { watch: ops });
    }
}

/// Called on the threads of all loops before they do anything; see [`on_thread_start`].
static ON_START: OnceLock<fn()> = OnceLock::new();

/// Has `hook` called at the start of each loop's thread, before it touches anything that a guest
/// has a part in: there a process that is confined thread by thread does its part. Once per
/// process; later calls change nothing.
pub fn on_thread_start(hook: fn()) {
    let _ = ON_START.set(hook);
}

/// The loop's owner. Dropping it stops the thread, joins it, and drops the handlers that are
/// still there.
pub struct EventLoop {
    name: String,
    /// Until it is the thread's.
    manager: Option<EventManager<Subscriber>>,
    handle: EventLoopHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// A loop whose thread, called `name`, is started later. Until then no handler can be added.
    ///
    /// # Errors
    /// No file descriptor is to be had.
    pub fn new(name: &str) -> Result<EventLoop, EventLoopError> {
        let manager = EventManager::<Subscriber>::new().map_err(EventLoopError::Create)?;
        let endpoint = manager.remote_endpoint();
        Ok(EventLoop {
            name: name.to_owned(),
            manager: Some(manager),
            handle: EventLoopHandle {
                endpoint,
                thread: Arc::new(OnceLock::new()),
            },
            stop: Arc::new(AtomicBool::new(false)),
            thread: None,
        })
    }

    /// Starts the thread, if it has not been started. If a handler panics the loop ends, and
    /// `on_panic` is called on its thread with the panic's message; it is there to end the VM.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(
        &mut self,
        on_panic: impl FnOnce(String) + Send + 'static,
    ) -> Result<(), EventLoopError> {
        let Some(manager) = self.manager.take() else {
            return Ok(());
        };
        let stopped = Arc::clone(&self.stop);
        let thread = thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || {
                if let Some(hook) = ON_START.get() {
                    hook();
                }
                if let Err(message) = run(manager, &stopped) {
                    on_panic(message);
                }
            })
            .map_err(|source| EventLoopError::Thread {
                name: self.name.clone(),
                source,
            })?;
        let _ = self.handle.thread.set(thread.thread().id());
        self.thread = Some(thread);
        Ok(())
    }

    /// [`Self::new`] and [`Self::start`].
    ///
    /// # Errors
    /// No thread, or no file descriptor, is to be had.
    pub fn spawn(
        name: &str,
        on_panic: impl FnOnce(String) + Send + 'static,
    ) -> Result<EventLoop, EventLoopError> {
        let mut event_loop = Self::new(name)?;
        event_loop.start(on_panic)?;
        Ok(event_loop)
    }

    /// A handle to add handlers with, from any thread but the loop's own.
    pub fn handle(&self) -> EventLoopHandle {
        self.handle.clone()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Neither can fail in a way that matters: a loop that is gone needs no waking, and its
        // panic was reported when it happened.
        let _ = self.handle.endpoint.kick();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Runs until told to stop. The manager is gone when this returns, so that whoever waits for an
/// answer from it learns that there will be none.
fn run(mut manager: EventManager<Subscriber>, stop: &AtomicBool) -> Result<(), String> {
    let ended = catch_unwind(AssertUnwindSafe(move || {
        while !stop.load(Ordering::Acquire) {
            manager.run().map_err(|error| error.to_string())?;
        }
        Ok(())
    }));
    ended.unwrap_or_else(|panic| {
        Err(match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => panic
                .downcast_ref::<&str>()
                .map_or("a panic without a message", |message| *message)
                .to_owned(),
        })
    })
}

/// A way to add handlers to a loop.
#[derive(Clone)]
pub struct EventLoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
    thread: Arc<OnceLock<ThreadId>>,
}

impl EventLoopHandle {
    /// Hands `handler` to the loop and returns when the loop waits for its sources.
    ///
    /// # Errors
    /// The loop has ended, a source cannot be waited for, or this is the loop's own thread. The
    /// handler is dropped then.
    pub fn add<H: Handler>(&self, handler: H) -> Result<Registration<H>, EventLoopError> {
        self.check_thread()?;
        let id = self.endpoint.call_blocking(move |manager| {
            let id = manager.add_subscriber(Subscriber {
                handler: Box::new(handler),
                failed: None,
            });
            match manager.subscriber_mut(id)?.failed.take() {
                None => Ok(id),
                Some(error) => {
                    manager.remove_subscriber(id)?;
                    Err(error)
                }
            }
        })?;
        Ok(Registration {
            handle: self.clone(),
            id: Some(id),
            handler: std::marker::PhantomData,
        })
    }

    fn remove(&self, id: SubscriberId) -> Result<Subscriber, EventLoopError> {
        self.check_thread()?;
        self.endpoint
            .call_blocking(move |manager| Ok::<_, EventLoopError>(manager.remove_subscriber(id)?))
    }

    fn check_thread(&self) -> Result<(), EventLoopError> {
        match self.thread.get() {
            None => Err(EventLoopError::NotStarted),
            Some(thread) if *thread == thread::current().id() => Err(EventLoopError::OnLoopThread),
            Some(_) => Ok(()),
        }
    }
}

/// A handler that a loop runs. Dropping this takes the handler out of the loop and drops it.
#[must_use = "a handler is removed from the loop when its registration is dropped"]
pub struct Registration<H> {
    handle: EventLoopHandle,
    id: Option<SubscriberId>,
    handler: std::marker::PhantomData<fn() -> H>,
}

impl<H: Handler> Registration<H> {
    /// Takes the handler out of the loop and gives it back. It does not run any more when this
    /// returns.
    ///
    /// # Errors
    /// The loop has ended, and the handler with it, or this is the loop's own thread.
    pub fn remove(mut self) -> Result<H, EventLoopError> {
        let id = self.id.take().ok_or(EventLoopError::Gone)?;
        let handler = self.handle.remove(id)?.handler.into_any();
        let handler = handler.downcast().map_err(|_| EventLoopError::Gone)?;
        Ok(*handler)
    }
}

impl<H> Drop for Registration<H> {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        if let Err(EventLoopError::OnLoopThread) = self.handle.remove(id) {
            // The loop cannot wait for itself; it removes the handler when this one is done.
            let _ = self.handle.endpoint.fire(move |manager| {
                let _ = manager.remove_subscriber(id);
            });
        }
    }
}

#[cfg(test)]
mod tests;
