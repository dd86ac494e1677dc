use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

#[test]
fn text_gives_limits() {
    let limits = |text| {
        let rate = rate(text);
        let pair = |limit: Option<Limit>| limit.map(|limit| (limit.rate, limit.burst));
        (pair(rate.bytes), pair(rate.operations))
    };
    assert_eq!(limits("10M"), (Some((10 << 20, 1 << 20)), None));
    assert_eq!(
        limits("10M,burst=1M,ops=1000"),
        (Some((10 << 20, 1 << 20)), Some((1000, 100)))
    );
    assert_eq!(limits("ops=5,ops-burst=7"), (None, Some((5, 7))));
    assert_eq!(limits("1"), (Some((1, 1)), None));
}

#[test]
fn nonsense_is_refused_and_named() {
    let refused = |text: &str| text.parse::<Rate>().unwrap_err();
    for text in [
        "",
        "-1",
        "+1",
        "0",
        "10T",
        "M",
        "1.5M",
        "99999999999999999999",
        "99999999G",
    ] {
        assert_eq!(refused(text), RateError::Number(text.to_owned()), "{text}");
    }
    assert_eq!(refused("1M,speed=3"), RateError::Part("speed=3".to_owned()));
    assert_eq!(refused("1M,2M"), RateError::Twice("the rate"));
    assert_eq!(refused("burst=1M"), RateError::BurstAlone("burst"));
    assert_eq!(
        refused("1M,ops-burst=1"),
        RateError::BurstAlone("ops-burst")
    );
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(
        bytes in 1..=MAX_TOKENS, burst in 1..=MAX_TOKENS, ops in 1..=MAX_TOKENS, both: bool,
    ) {
        let text = if both { format!("{bytes},burst={burst},ops={ops}") } else { format!("ops={ops}") };
        let first = rate(&text);
        prop_assert_eq!(rate(&first.to_string()), first);
    }

    /// Whatever is asked for and whenever: what passes is never more than the burst, the rate, and the
    /// last operation, and no time is left unused while somebody waits.
    #[test]
    fn no_more_than_the_rate_passes_and_no_less(
        rate in 1..=1_u64 << 32,
        burst in 1..=1_u64 << 24,
        operations in prop::collection::vec((1..=1_u64 << 20, 0..2_000_000_000_u64), 1..200),
    ) {
        let mut now = Duration::ZERO;
        let mut bucket = Bucket::full(Limit { rate, burst }, now);
        let (mut passed, mut last) = (0_u128, 0);
        for (cost, pause) in operations {
            now += Duration::from_nanos(pause);
            bucket.refill(now);
            if let Some(wait) = bucket.wait() {
                now += wait.checked_sub(Duration::from_nanos(1)).unwrap();
                bucket.refill(now);
                prop_assert!(bucket.wait().is_some(), "it could have passed earlier");
                now += Duration::from_nanos(1);
                bucket.refill(now);
                prop_assert!(bucket.wait().is_none(), "it waits for longer than it said");
            }
            bucket.take(cost);
            passed += u128::from(cost);
            last = u128::from(cost);
        }
        let most = u128::from(burst) + last + now.as_nanos() * u128::from(rate) / 1_000_000_000 + 1;
        prop_assert!(passed <= most, "{passed} passed, {most} are allowed");
    }
}

#[test]
fn clock_that_steps_back_gives_nothing() {
    let limit = Limit {
        rate: 1000,
        burst: 10,
    };
    let mut bucket = Bucket::full(limit, Duration::from_secs(9));
    bucket.take(10);
    bucket.refill(Duration::from_secs(1));
    assert!(bucket.wait().is_some());
}

#[test]
fn both_kinds_of_tokens_are_needed() {
    let bucket = TokenBucket::new(&rate("1G,burst=1G,ops=1,ops-burst=2"));
    for _ in 0..2 {
        assert_eq!(bucket.wait(), None);
        bucket.take(1);
    }
    assert!(bucket.wait().is_some());
    let bucket = TokenBucket::new(&rate("1,burst=5,ops=1000,ops-burst=1000"));
    bucket.take(5);
    assert!(bucket.wait().is_some());
}

#[test]
fn timer_fires_when_there_are_tokens() {
    let mut throttle = Throttle::new(TokenBucket::new(&rate("ops=100,ops-burst=1"))).unwrap();
    for _ in 0..3 {
        assert!(throttle.may_start());
        throttle.charge(1);
        assert!(!throttle.may_start());
        assert!(throttle.is_waiting());
        poll(&mut [PollFd::new(&throttle, PollFlags::IN)], None).unwrap();
        throttle.expired();
    }
}
