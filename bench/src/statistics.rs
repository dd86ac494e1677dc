//! What samples say, and how sure that is.

/// Resamplings of a bootstrap: enough that its ends move by less than a pixel.
const RESAMPLINGS: usize = 2000;
/// How sure the intervals are.
const CONFIDENCE: f64 = 0.95;
/// The same for each report of the same samples.
const SEED: u64 = 0x00ca_517a;

/// Quantile `q`, from 0 to 1, between the two nearest samples in proportion (Hyndman and Fan's
/// type 7, as most programs have it); NaN without samples.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, q)
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a place among samples"
)]
fn quantile_of_sorted(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = last as f64 * q.clamp(0.0, 1.0);
    let below = place as usize;
    let above = (below + 1).min(last);
    let part = place - below as f64;
    sorted[below] + (sorted[above] - sorted[below]) * part
}

/// The middle.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Where quantile `q` lies with 95 % confidence: the percentile bootstrap. The extremes of few
/// samples can't be told, so then an interval is too narrow: read p99 of 20 runs as their maximum.
pub fn interval(samples: &[f64], q: f64) -> [f64; 2] {
    if samples.is_empty() {
        return [f64::NAN; 2];
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut drawn = vec![0.0; samples.len()];
    let estimates: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| {
            for value in &mut drawn {
                *value = samples[random.usize(..samples.len())];
            }
            drawn.sort_by(f64::total_cmp);
            quantile_of_sorted(&drawn, q)
        })
        .collect();
    let tail = f64::midpoint(0.0, 1.0 - CONFIDENCE);
    [quantile(&estimates, tail), quantile(&estimates, 1.0 - tail)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "the same is to come out")]

    use super::*;
    use proptest::prelude::*;

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn quantiles_of_known_samples() {
        let samples = [40.0, 10.0, 30.0, 20.0];
        assert!(near(quantile(&samples, 0.0), 10.0));
        assert!(near(quantile(&samples, 0.25), 17.5));
        assert!(near(quantile(&samples, 0.5), 25.0));
        assert!(near(quantile(&samples, 0.9), 37.0));
        assert!(near(quantile(&samples, 1.0), 40.0));
        assert!(near(quantile(&[7.0], 0.99), 7.0));
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn samples_without_spread_leave_no_doubt() {
        assert_eq!(interval(&[3.0; 9], 0.5), [3.0, 3.0]);
        assert!(interval(&[], 0.5)[0].is_nan());
    }

    #[test]
    fn an_interval_of_a_known_distribution_is_as_wide_as_theory_has_it() {
        // The median of n even samples of [0, 1] has a standard deviation of 1 / (2 sqrt n): 0.05.
        let samples: Vec<f64> = (0..100).map(|i| f64::from(i) / 99.0).collect();
        let [low, high] = interval(&samples, 0.5);
        assert!(
            (0.37..0.44).contains(&low) && (0.56..0.63).contains(&high),
            "{low} {high}"
        );
        assert_eq!(
            interval(&samples, 0.5),
            [low, high],
            "the same samples, the same report"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn quantiles_rise_and_stay_within_the_samples(
            samples in prop::collection::vec(-1e9..1e9, 1..60),
            a in 0.0..1.0,
            b in 0.0..1.0,
        ) {
            let (low, high) = (quantile(&samples, f64::min(a, b)), quantile(&samples, f64::max(a, b)));
            let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(min - 1e-6 <= low && low <= high + 1e-6 && high <= max + 1e-6);
        }

        #[test]
        fn intervals_lie_within_the_samples_and_do_not_depend_on_their_order(
            mut samples in prop::collection::vec(0.0..1e6, 1..30),
        ) {
            let [low, high] = interval(&samples, 0.5);
            let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(min <= low && low <= high && high <= max);
            let before = quantile(&samples, 0.9);
            samples.reverse();
            prop_assert_eq!(before, quantile(&samples, 0.9));
        }

        #[test]
        fn a_shift_of_all_samples_shifts_the_interval(
            samples in prop::collection::vec(0.0..1e3_f64, 1..30),
            shift in 0.0..1e3_f64,
        ) {
            let moved: Vec<f64> = samples.iter().map(|value| value + shift).collect();
            let (before, after) = (interval(&samples, 0.5), interval(&moved, 0.5));
            prop_assert!((before[0] + shift - after[0]).abs() < 1e-6);
            prop_assert!((before[1] + shift - after[1]).abs() < 1e-6);
        }
    }
}
