//! Where vCPUs stop: for ever, or until the machine goes on.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Called once all vCPUs are at the gate.
pub type Parked = Box<dyn FnOnce() + Send>;

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// What all vCPUs of a machine are told. Each looks at it between two `KVM_RUN`s; whoever changes
/// it must also kick those that are within one.
pub struct Gate {
    order: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// vCPUs whose threads have not ended.
    alive: usize,
    /// Those of them that wait here.
    parked: usize,
    /// Who wants to know when that is all of them.
    waiting: Vec<Parked>,
}

impl Gate {
    /// An open one, for `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self {
            order: AtomicU8::new(RUN),
            state: Mutex::new(State {
                alive: vcpus,
                parked: 0,
                waiting: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// A closed one, for vCPUs that are made before they may run.
    pub fn closed(vcpus: usize) -> Self {
        let gate = Self::new(vcpus);
        gate.order.store(PAUSE, Ordering::Release);
        gate
    }

    /// Ends all vCPUs. There is no way back.
    pub fn stop(&self) {
        let mut state = self.state();
        state.waiting.clear();
        self.order.store(STOP, Ordering::Release);
        self.changed.notify_all();
    }

    /// Closes the gate; `parked` is called, on any thread, once no vCPU runs. It is dropped if the
    /// gate opens again before, or the machine ends.
    pub fn pause(&self, parked: Parked) {
        let mut state = self.state();
        if self.order.load(Ordering::Relaxed) == STOP {
            return;
        }
        self.order.store(PAUSE, Ordering::Release);
        state.waiting.push(parked);
        state.tell();
    }

    /// Opens it.
    pub fn resume(&self) {
        let mut state = self.state();
        if self.order.load(Ordering::Relaxed) == PAUSE {
            state.waiting.clear();
            self.order.store(RUN, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// For vCPUs: whether it is open. One atomic load.
    pub fn is_open(&self) -> bool {
        self.order.load(Ordering::Acquire) == RUN
    }

    /// For a vCPU that found it closed: waits; `false` if it is to end.
    pub fn wait(&self) -> bool {
        let mut state = self.state();
        state.parked += 1;
        state.tell();
        let mut state = self
            .changed
            .wait_while(state, |_| self.order.load(Ordering::Relaxed) == PAUSE)
            .unwrap_or_else(PoisonError::into_inner);
        state.parked -= 1;
        self.order.load(Ordering::Relaxed) != STOP
    }

    /// For a vCPU whose thread ends.
    pub fn leave(&self) {
        let mut state = self.state();
        state.alive -= 1;
        state.tell();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self) {
        if self.parked == self.alive {
            self.waiting.drain(..).for_each(|parked| parked());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{JoinHandle, spawn};

    /// Threads that count as long as the gate is open.
    fn counters(gate: &Arc<Gate>, vcpus: usize) -> Vec<(Arc<AtomicU64>, JoinHandle<()>)> {
        let counter = |_| {
            let (gate, count) = (gate.clone(), Arc::new(AtomicU64::new(0)));
            let counted = count.clone();
            let thread = spawn(move || {
                while gate.is_open() || gate.wait() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                gate.leave();
            });
            (count, thread)
        };
        (0..vcpus).map(counter).collect()
    }

    fn telling(sender: &Sender<()>) -> Parked {
        let sender = sender.clone();
        Box::new(move || {
            let _ = sender.send(());
        })
    }

    #[test]
    fn nothing_moves_between_pause_and_resume() {
        let gate = Arc::new(Gate::new(4));
        let threads = counters(&gate, 4);
        let all = || -> Vec<u64> {
            let read = |(count, _): &(Arc<AtomicU64>, _)| count.load(Ordering::Relaxed);
            threads.iter().map(read).collect()
        };
        for _ in 0..100 {
            let (sender, parked) = channel();
            gate.pause(telling(&sender));
            parked.recv().unwrap();
            let before = all();
            // Paused already: told at once.
            gate.pause(telling(&sender));
            parked.recv().unwrap();
            assert_eq!(before, all());
            gate.resume();
            while all().iter().zip(&before).any(|(now, then)| now == then) {
                std::thread::yield_now();
            }
        }
        gate.stop();
        for (_, thread) in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_stop_ends_those_that_wait_and_forgets_who_asked() {
        let gate = Arc::new(Gate::new(2));
        let threads = counters(&gate, 1);
        let (sender, parked) = channel();
        gate.pause(telling(&sender));
        drop(sender);
        gate.stop();
        // One of the two never came.
        assert!(parked.recv().is_err());
        for (_, thread) in threads {
            thread.join().unwrap();
        }
        // And after that nobody waits in vain.
        let (sender, parked) = channel();
        gate.pause(telling(&sender));
        drop(sender);
        assert!(parked.recv().is_err());
    }

    #[test]
    fn a_vcpu_that_ends_is_not_waited_for() {
        let gate = Arc::new(Gate::new(2));
        let threads = counters(&gate, 1);
        let (sender, parked) = channel();
        gate.pause(telling(&sender));
        gate.leave();
        parked.recv().unwrap();
        gate.stop();
        for (_, thread) in threads {
            thread.join().unwrap();
        }
    }
}
