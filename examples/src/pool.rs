//! A bounded pool with a bounded queue before it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many may work at a time, and so many may wait.
#[derive(Debug, Clone)]
pub struct Pool {
    /// One permit for each that works or waits.
    places: Arc<Semaphore>,
    /// One permit for each that works.
    workers: Arc<Semaphore>,
    all: (usize, usize),
}

/// There is no place left in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The deadline was over before there was a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late;

/// A place in the queue.
#[derive(Debug)]
pub struct Place {
    pool: Pool,
    place: OwnedSemaphorePermit,
}

/// A worker, until it is dropped.
#[derive(Debug)]
pub struct Worker {
    _permits: [OwnedSemaphorePermit; 2],
}

impl Pool {
    /// A pool for `workers` at a time, before which `queue` may wait.
    pub fn new(workers: usize, queue: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(workers + queue)),
            workers: Arc::new(Semaphore::new(workers)),
            all: (workers, queue),
        }
    }

    /// A place in the queue; it never waits.
    ///
    /// # Errors
    /// If there is none left.
    pub fn enter(&self) -> Result<Place, Full> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Full)?;
        Ok(Place {
            pool: self.clone(),
            place,
        })
    }

    /// How many work, and how many wait.
    pub fn load(&self) -> (usize, usize) {
        let (workers, queue) = self.all;
        let working = workers - self.workers.available_permits();
        let inside = workers + queue - self.places.available_permits();
        (working, inside.saturating_sub(working))
    }
}

impl Place {
    /// Waits for a worker, in the order in which places were taken.
    ///
    /// # Errors
    /// If there is none until `deadline`.
    pub async fn worker(self, deadline: Instant) -> Result<Worker, Late> {
        let wait = self.pool.workers.clone().acquire_owned();
        match tokio::time::timeout_at(deadline.into(), wait).await {
            Ok(Ok(worker)) => Ok(Worker {
                _permits: [self.place, worker],
            }),
            _ => Err(Late),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::runtime::Builder;

    #[test]
    fn no_more_work_and_wait_than_may() {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let pool = Pool::new(1, 2);
            let later = Instant::now() + Duration::from_mins(1);
            let first = pool.enter().unwrap().worker(later).await.unwrap();
            let (second, third) = (pool.enter().unwrap(), pool.enter().unwrap());
            assert_eq!(pool.enter().unwrap_err(), Full);
            assert_eq!(pool.load(), (1, 2));
            assert_eq!(second.worker(Instant::now()).await.unwrap_err(), Late);
            assert_eq!(pool.load(), (1, 1));
            drop(first);
            let third = third.worker(later).await.unwrap();
            assert_eq!(pool.load(), (1, 0));
            drop(third);
            assert_eq!(pool.load(), (0, 0));
        });
    }
}
