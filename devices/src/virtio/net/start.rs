//! From an activation to running workers, and back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::Backend;
use super::control::ControlQueue;
use super::features;
use super::layout::F_MQ;
use super::link::Listeners;
use super::pair::Pair;
use super::rx::Receiver;
use super::shared::{Filter, FilterState, Shared};
use super::tx::Transmitter;
use super::vhost::{Lender, LentQueue, VhostPair};
use super::{DEFAULT_MTU, Net, Told};
use crate::event_loop::{EventLoop, EventLoopError, EventLoopHandle, Registration};
use crate::rate_limit::RateLimit;
use crate::token_bucket::{Throttle, TokenBucket};
use crate::virtio::device::{ActivateError, Activation, DeviceNotifier, StartedQueue};
use crate::virtio::panic_relay;
use crate::virtio::queue::QueueState;

/// What the queue pairs have behind them. One that its worker has is absent.
pub(super) enum Ends {
    /// Back ends that are served here.
    Here(Vec<Option<Box<dyn Backend>>>),
    /// Tap devices that the kernel serves.
    Kernel(Vec<Option<VhostPair>>),
}

/// What there is from activation to the next stop.
pub(super) struct Running {
    pub shared: Arc<Shared>,
    pairs: Vec<Registration<Pair>>,
    lenders: Vec<Registration<Lender>>,
    control: Option<Registration<ControlQueue>>,
    /// Queues of which nothing has become: pairs that have no worker.
    idle: Vec<(u16, QueueState)>,
    /// The pairs' own threads, if they have some; they end after the registrations.
    threads: Vec<EventLoop>,
}

/// All that starts a pair.
struct Parts {
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    notifier: DeviceNotifier,
    events: EventLoopHandle,
    /// One for each pair.
    pokes: Vec<EventFd>,
}

impl Net {
    pub(super) fn start(&mut self, activation: Activation) -> Result<Running, ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            events,
            notifier,
        } = activation;
        let pairs = if features & F_MQ == 0 {
            1
        } else {
            self.pairs()
        };
        let mut pokes = Vec::new();
        for _ in 0..pairs {
            pokes.push(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(self.no_eventfd())?);
        }
        let parts = Parts {
            shared: self.share(features, notifier.clone()),
            memory,
            notifier,
            events,
            pokes,
        };
        let mut running = Running {
            shared: Arc::clone(&parts.shared),
            pairs: Vec::new(),
            lenders: Vec::new(),
            control: None,
            idle: Vec::new(),
            threads: Vec::new(),
        };
        let started = self.start_all(pairs, queues, &parts, &mut running);
        if let Err(error) = started {
            // The back ends come back, for the next try.
            self.stop(running);
            return Err(error);
        }
        let listeners = Listeners {
            notifier: parts.notifier,
            pokes: parts.pokes,
        };
        self.link.attach(Some(listeners));
        Ok(running)
    }

    fn share(&self, features: u64, notifier: DeviceNotifier) -> Arc<Shared> {
        let told = self.told.unwrap_or_else(|| Told {
            filter: FilterState::new(self.config.mac),
            to_guest: features::to_guest(features).bits(),
            active_pairs: 1,
        });
        Arc::new(Shared {
            name: self.name.clone(),
            notifier,
            link: self.link.clone(),
            traffic: Arc::clone(&self.traffic),
            filter: Filter::new(&told.filter),
            features,
            from_guest: features::from_guest(features),
            to_guest: AtomicU8::new(told.to_guest),
            active_pairs: AtomicU16::new(told.active_pairs),
            limit: RateLimit::new(),
        })
    }

    fn start_all(
        &mut self,
        pairs: u16,
        mut queues: Vec<StartedQueue>,
        parts: &Parts,
        running: &mut Running,
    ) -> Result<(), ActivateError> {
        let buckets = self.config.rate.as_ref();
        let buckets = buckets.map(|rate| [TokenBucket::new(rate), TokenBucket::new(rate)]);
        let mut take = |index| {
            let at = queues.iter().position(|queue| queue.index == index)?;
            Some(queues.swap_remove(at))
        };
        for (pair, poke) in (0..pairs).zip(&parts.pokes) {
            let (rx, tx) = (take(2 * pair), take(2 * pair + 1));
            let poke = poke.try_clone().map_err(self.no_eventfd())?;
            match &self.ends {
                Ends::Here(_) => {
                    self.start_pair(pair, (rx, tx), poke, buckets.as_ref(), parts, running)?;
                }
                Ends::Kernel(_) => self.lend_pair(pair, (rx, tx), poke, parts, running)?,
            }
        }
        // Its place is behind the pairs that were negotiated, not those that there are.
        if let Some(started) = take(2 * pairs) {
            let mut pokes = Vec::new();
            for poke in &parts.pokes {
                pokes.push(poke.try_clone().map_err(self.no_eventfd())?);
            }
            let control = ControlQueue {
                started,
                shared: Arc::clone(&parts.shared),
                pairs,
                pokes,
            };
            let added = parts.events.add(control).map_err(self.not_added())?;
            running.control = Some(added);
        }
        for poke in &parts.pokes {
            // Whatever waits already is looked at; a full counter is a signal, too.
            let _ = poke.write(1);
        }
        Ok(())
    }

    fn start_pair(
        &mut self,
        index: u16,
        (rx, tx): (Option<StartedQueue>, Option<StartedQueue>),
        poke: EventFd,
        buckets: Option<&[Arc<TokenBucket>; 2]>,
        parts: &Parts,
        running: &mut Running,
    ) -> Result<(), ActivateError> {
        let throttle = |direction: usize| {
            let bucket = buckets.and_then(|buckets| buckets.get(direction));
            bucket
                .map(|bucket| Throttle::new(Arc::clone(bucket)))
                .transpose()
        };
        let no_timer = self.refused("no timer is to be had");
        let (rx_throttle, tx_throttle) = (
            throttle(0).map_err(&no_timer)?,
            throttle(1).map_err(&no_timer)?,
        );
        let mtu = self.config.mtu.unwrap_or(DEFAULT_MTU);
        let rx = rx.map(|rx| Receiver::new(rx, rx_throttle, parts.shared.features, mtu));
        let tx = tx.map(|tx| Transmitter::new(tx, tx_throttle));
        let Ends::Here(backends) = &mut self.ends else {
            return Ok(());
        };
        let place = backends.get_mut(usize::from(index));
        let Some(backend) = place.and_then(Option::take) else {
            let gone = io::Error::other("its worker has ended");
            return Err(self.refused("its back end is lost")(gone));
        };
        let mut pair = Pair::new(index, (rx, tx), backend, Arc::clone(&parts.shared), poke);
        if let Err(error) = pair.prepare() {
            self.keep(pair.stop().backend, index);
            return Err(self.refused("its back end refuses its offloads")(error));
        }
        let events = self.events(index, parts, running)?;
        running
            .pairs
            .push(events.add(pair).map_err(self.not_added())?);
        Ok(())
    }

    /// The loop for a pair: one of its own, or that of all devices.
    fn events(
        &self,
        index: u16,
        parts: &Parts,
        running: &mut Running,
    ) -> Result<EventLoopHandle, ActivateError> {
        if !self.config.dedicated_thread {
            return Ok(parts.events.clone());
        }
        let shared = parts.events.clone();
        let name = format!("net-{index}");
        let thread = EventLoop::spawn(&name, move |message| panic_relay::relay(message, &shared));
        let thread = thread.map_err(self.not_added())?;
        let events = thread.handle();
        running.threads.push(thread);
        Ok(events)
    }

    fn lend_pair(
        &mut self,
        index: u16,
        (rx, tx): (Option<StartedQueue>, Option<StartedQueue>),
        poke: EventFd,
        parts: &Parts,
        running: &mut Running,
    ) -> Result<(), ActivateError> {
        let lent = |started: StartedQueue| LentQueue {
            index: started.index,
            state: started.queue.into_state(),
            kick: started.kick,
        };
        let (rx, tx) = match (rx, tx) {
            (Some(rx), Some(tx)) => (rx, tx),
            // The kernel serves both or none.
            (rx, tx) => {
                let idle = rx.into_iter().chain(tx).map(lent);
                running
                    .idle
                    .extend(idle.map(|lent| (lent.index, lent.state)));
                return Ok(());
            }
        };
        let Some(interrupt) = parts.notifier.lend_interrupt() else {
            let none = io::Error::other("its interrupt cannot be given to the kernel");
            return Err(self.refused("vhost-net cannot start")(none));
        };
        let Ends::Kernel(ends) = &mut self.ends else {
            return Ok(());
        };
        let place = ends.get_mut(usize::from(index));
        let Some(pair) = place.and_then(Option::take) else {
            let gone = io::Error::other("its worker has ended");
            return Err(self.refused("its tap device is lost")(gone));
        };
        let common = (&parts.shared, &parts.memory);
        let lender = Lender::start(
            index,
            pair,
            [lent(rx), lent(tx)],
            common,
            (&interrupt, poke),
        );
        let failed = self.refused("vhost-net cannot start");
        match lender {
            Ok(mut lender) => match lender.look() {
                Ok(()) => {
                    let added = parts.events.add(lender).map_err(self.not_added())?;
                    running.lenders.push(added);
                    Ok(())
                }
                Err(error) => {
                    self.keep_pair(lender.stop().pair, index);
                    Err(failed(io::Error::other(error)))
                }
            },
            Err((pair, error)) => {
                self.keep_pair(pair, index);
                Err(failed(io::Error::other(error)))
            }
        }
    }

    /// Stops the workers, and keeps their back ends for the next driver.
    pub(super) fn stop(&mut self, running: Running) -> Vec<(u16, QueueState)> {
        self.link.attach(None);
        let mut states = running.idle;
        let lost = |error: EventLoopError| {
            log::error!("{}: a worker cannot be stopped: {error}", self.name);
        };
        let control = running
            .control
            .map(|control| control.remove().map_err(lost));
        if let Some(Ok(control)) = control {
            states.push((control.started.index, control.started.queue.into_state()));
        }
        let pairs = running.pairs.into_iter();
        let pairs: Vec<_> = pairs
            .filter_map(|pair| pair.remove().map_err(lost).ok())
            .collect();
        let lenders = running.lenders.into_iter();
        let lenders: Vec<_> = lenders
            .filter_map(|one| one.remove().map_err(lost).ok())
            .collect();
        for pair in pairs {
            let stopped = pair.stop();
            states.extend(stopped.states);
            self.keep(stopped.backend, stopped.index);
        }
        drop(running.threads);
        for lender in lenders {
            let returned = lender.stop();
            states.extend(returned.states);
            self.keep_pair(returned.pair, returned.index);
        }
        states
    }

    fn keep(&mut self, backend: Box<dyn Backend>, index: u16) {
        if let Ends::Here(backends) = &mut self.ends
            && let Some(place) = backends.get_mut(usize::from(index))
        {
            *place = Some(backend);
        }
    }

    fn keep_pair(&mut self, pair: VhostPair, index: u16) {
        if let Ends::Kernel(pairs) = &mut self.ends
            && let Some(place) = pairs.get_mut(usize::from(index))
        {
            *place = Some(pair);
        }
    }

    fn refused(&self, what: &'static str) -> impl Fn(io::Error) -> ActivateError + use<> {
        let name = self.name.clone();
        move |source| ActivateError::Io {
            name: name.clone(),
            what,
            source,
        }
    }

    fn no_eventfd(&self) -> impl Fn(io::Error) -> ActivateError + use<> {
        self.refused("no eventfd is to be had")
    }

    fn not_added(&self) -> impl Fn(EventLoopError) -> ActivateError + use<> {
        let name = self.name.clone();
        move |source| ActivateError::EventLoop {
            name: name.clone(),
            source,
        }
    }
}
