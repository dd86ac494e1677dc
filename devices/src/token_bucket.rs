//! Limits to how much goes through a device: token buckets for bytes and for operations.
//!
//! An operation may start while there is a token, whatever it costs, and then takes all that it costs:
//! the balance may become negative, and the next operation waits for longer. So an operation larger than
//! the burst passes, too, and the mean rate is exact.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

/// Limits, written `10M,burst=1M,ops=1000,ops-burst=50`: bytes a second, bytes that may pass at once,
/// operations a second, operations at once. Each part may be absent but one of both rates; a burst that is
/// absent is a tenth of a second's worth. K, M and G are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// Limit of bytes.
    bytes: Option<Limit>,
    /// Limit of operations: frames, or requests to a disk.
    operations: Option<Limit>,
}

/// One bucket's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    /// Tokens a second, at least 1.
    rate: u64,
    /// Tokens in a full bucket, at least 1.
    burst: u64,
}

/// A burst that is not given is so much of a second.
const DEFAULT_BURST_DIVISOR: u64 = 10;

/// What is wrong with a rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RateError {
    /// A part is not a number, or one that is not possible.
    #[error("{0:?} is not a number from 1, with K, M or G for powers of 1024")]
    Number(String),
    /// There is no such part.
    #[error("{0:?} is not part of a rate; there are BYTES, burst=BYTES, ops=N and ops-burst=N")]
    Part(String),
    /// A part is there twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// Neither bytes nor operations are limited.
    #[error("a rate is bytes a second (10M), operations a second (ops=1000), or both")]
    Nothing,
    /// A burst without the rate that it belongs to.
    #[error("{0} is given without its rate")]
    BurstAlone(&'static str),
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (mut bytes, mut burst, mut ops, mut ops_burst) = (None, None, None, None);
        for part in text.split(',') {
            let (name, place, value) = match part.split_once('=') {
                None => ("the rate", &mut bytes, part),
                Some(("burst", value)) => ("burst", &mut burst, value),
                Some(("ops", value)) => ("ops", &mut ops, value),
                Some(("ops-burst", value)) => ("ops-burst", &mut ops_burst, value),
                Some(_) => return Err(RateError::Part(part.to_owned())),
            };
            if place.replace(number(value)?).is_some() {
                return Err(RateError::Twice(name));
            }
        }
        if bytes.is_none() && ops.is_none() && burst.is_none() && ops_burst.is_none() {
            return Err(RateError::Nothing);
        }
        Ok(Self {
            bytes: limit(bytes, burst, "burst")?,
            operations: limit(ops, ops_burst, "ops-burst")?,
        })
    }
}

fn limit(
    rate: Option<u64>,
    burst: Option<u64>,
    name: &'static str,
) -> Result<Option<Limit>, RateError> {
    match (rate, burst) {
        (Some(rate), burst) => Ok(Some(Limit {
            rate,
            burst: burst.unwrap_or((rate / DEFAULT_BURST_DIVISOR).max(1)),
        })),
        (None, Some(_)) => Err(RateError::BurstAlone(name)),
        (None, None) => Ok(None),
    }
}

fn number(text: &str) -> Result<u64, RateError> {
    let wrong = || RateError::Number(text.to_owned());
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (text.get(..text.len() - 1), 1 << 10),
        Some(b'M' | b'm') => (text.get(..text.len() - 1), 1 << 20),
        Some(b'G' | b'g') => (text.get(..text.len() - 1), 1 << 30),
        _ => (Some(text), 1_u64),
    };
    let digits = digits.unwrap_or_default();
    // A number's parser takes a sign, too.
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let value = count.checked_mul(unit).ok_or_else(wrong)?;
    if value == 0 || value > MAX_TOKENS {
        return Err(wrong());
    }
    Ok(value)
}

/// More than any device moves in a second; sums of nanoseconds and tokens stay exact below it.
const MAX_TOKENS: u64 = 1 << 44;

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Limit { rate, burst }) = self.bytes {
            write!(f, "{rate},burst={burst}")?;
        }
        if let Some(Limit { rate, burst }) = self.operations {
            let comma = if self.bytes.is_some() { "," } else { "" };
            write!(f, "{comma}ops={rate},ops-burst={burst}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Rate {
    type Error = RateError;
    fn try_from(text: String) -> Result<Self, RateError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

/// The tokens of one [`Limit`]. Time is counted from whatever the owner likes.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    limit: Limit,
    /// In billionths of a token, so that a nanosecond adds exactly `rate`.
    balance: i128,
    updated: Duration,
}

const NANOS: i128 = 1_000_000_000;

impl Bucket {
    fn full(limit: Limit, now: Duration) -> Self {
        Self {
            limit,
            balance: i128::from(limit.burst) * NANOS,
            updated: now,
        }
    }

    fn refill(&mut self, now: Duration) {
        // A clock that steps back gives nothing.
        let passed = now.saturating_sub(self.updated).as_nanos();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        self.updated = self.updated.max(now);
        let most = i128::from(self.limit.burst) * NANOS;
        let gained = passed.saturating_mul(i128::from(self.limit.rate));
        self.balance = self.balance.saturating_add(gained).min(most);
    }

    /// How long until something may pass; None if it may now.
    fn wait(&self) -> Option<Duration> {
        let missing = NANOS.saturating_sub(self.balance);
        if missing <= 0 {
            return None;
        }
        let nanos = missing.unsigned_abs().div_ceil(u128::from(self.limit.rate));
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    fn take(&mut self, tokens: u64) {
        self.balance = self.balance.saturating_sub(i128::from(tokens) * NANOS);
    }
}

/// Buckets that several threads draw from: the queues of one device.
#[derive(Debug)]
pub struct TokenBucket {
    start: Instant,
    buckets: Mutex<[Option<Bucket>; 2]>,
}

impl TokenBucket {
    /// Full buckets.
    pub fn new(rate: &Rate) -> Arc<Self> {
        let full = |limit: Option<Limit>| limit.map(|limit| Bucket::full(limit, Duration::ZERO));
        Arc::new(Self {
            start: Instant::now(),
            buckets: Mutex::new([full(rate.bytes), full(rate.operations)]),
        })
    }

    /// How long until an operation may start; None if it may now.
    fn wait(&self) -> Option<Duration> {
        let now = self.start.elapsed();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = buckets.iter_mut().flatten().filter_map(|bucket| {
            bucket.refill(now);
            bucket.wait()
        });
        waits.max()
    }

    fn take(&self, bytes: u64) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (bucket, tokens) in buckets.iter_mut().zip([bytes, 1]) {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
    }
}

/// One queue's hold on a [`TokenBucket`], and the timer by which its thread waits.
#[derive(Debug)]
pub struct Throttle {
    bucket: Arc<TokenBucket>,
    timer: OwnedFd,
    waiting: bool,
}

impl Throttle {
    /// A hold on `bucket`.
    ///
    /// # Errors
    /// No timer is to be had.
    pub fn new(bucket: Arc<TokenBucket>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            bucket,
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            waiting: false,
        })
    }

    /// True if an operation may start now. Else the timer tells when to ask again.
    pub fn may_start(&mut self) -> bool {
        if self.waiting {
            return false;
        }
        let Some(wait) = self.bucket.wait() else {
            return true;
        };
        self.waiting = self.arm(wait).is_ok();
        // Without a timer nobody would come back: too much passes rather than nothing at all.
        !self.waiting
    }

    /// Takes what an operation that starts costs.
    pub fn charge(&self, bytes: u64) {
        self.bucket.take(bytes);
    }

    /// The timer has fired: the next [`Throttle::may_start`] looks again.
    pub fn expired(&mut self) {
        let mut count = [0; 8];
        // It may have fired for somebody else's tokens; looking again does no harm.
        let _ = rustix::io::read(&self.timer, &mut count);
        self.waiting = false;
    }

    /// It waits for its timer.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    fn arm(&self, wait: Duration) -> io::Result<()> {
        let time = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                // At least one: zero would stop the timer.
                tv_nsec: i64::from(wait.subsec_nanos()).max(1),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        Ok(())
    }
}

impl AsFd for Throttle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl AsRawFd for Throttle {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
