//! An axis that begins at zero.

use super::palette::{GRID, MUTED};
use super::scene::{Anchor, Scene, Style};

/// From zero to a little more than the largest value, on a row of pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// Pixel of zero.
    pub from: f64,
    /// Pixel of the end.
    pub to: f64,
    /// Value of the end.
    pub end: f64,
    step: f64,
}

impl Axis {
    /// For values up to `most`, with some eight marks.
    pub fn new(from: f64, to: f64, most: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 {
            most
        } else {
            1.0
        };
        let step = nice(most / 8.0);
        Self {
            from,
            to,
            end: (most / step * 0.999_999).ceil() * step,
            step,
        }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.end)
    }

    /// The values of its marks.
    pub fn marks(&self) -> Vec<f64> {
        #[allow(
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "some eight"
        )]
        let marks = (0..=(self.end / self.step).round() as usize).map(|i| i as f64 * self.step);
        marks.collect()
    }

    /// As the marks are labelled: none has more digits than it needs.
    pub fn label(&self, value: f64) -> String {
        let decimals = match self.step {
            step if step >= 0.999 => 0,
            step if step >= 0.0999 => 1,
            _ => 2,
        };
        format!("{value:.decimals$}")
    }

    /// Draws it from left to right below a plot that goes from `top` to `bottom`.
    pub fn draw_across(&self, scene: &mut Scene, top: f64, bottom: f64, unit: &str) {
        let style = Style::of(12.0).colour(MUTED).anchor(Anchor::Middle);
        for mark in self.marks() {
            let x = self.at(mark);
            scene.path(vec![(x, top), (x, bottom)], GRID, 1.0);
            scene.text(x, bottom + 14.0, self.label(mark), style);
        }
        let end = style.anchor(Anchor::Start);
        scene.text(self.to + 22.0, bottom + 14.0, unit, end);
    }

    /// Draws it upwards at the left of a plot that goes from `left` to `right`.
    pub fn draw_up(&self, scene: &mut Scene, left: f64, right: f64, unit: &str) {
        let style = Style::of(12.0).colour(MUTED).anchor(Anchor::End);
        for mark in self.marks() {
            let y = self.at(mark);
            scene.path(vec![(left, y), (right, y)], GRID, 1.0);
            scene.text(left - 10.0, y, self.label(mark), style);
        }
        let above = style.anchor(Anchor::Start);
        scene.text(left - 34.0, self.to - 20.0, unit, above);
    }
}

/// The next of 1, 2, 5, 10, 20...
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let digit = value / power;
    let nice = match digit {
        _ if digit <= 1.000_001 => 1.0,
        _ if digit <= 2.000_001 => 2.0,
        _ if digit <= 5.000_001 => 5.0,
        _ => 10.0,
    };
    nice * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_are_round_and_begin_at_zero() {
        let axis = Axis::new(100.0, 200.0, 212.0);
        assert_eq!(axis.marks(), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0]);
        assert!((axis.at(0.0) - 100.0).abs() < 1e-9 && (axis.at(250.0) - 200.0).abs() < 1e-9);
        assert_eq!(axis.label(50.0), "50");
        assert_eq!(Axis::new(0.0, 1.0, 0.9).label(0.2), "0.2");
    }

    proptest! {
        #[test]
        fn any_value_fits(most in 1e-6..1e12) {
            let axis = Axis::new(0.0, 1000.0, most);
            let marks = axis.marks();
            prop_assert!(axis.end >= most * 0.999_99 && axis.end <= most * 2.1);
            prop_assert!((2..=12).contains(&marks.len()), "{marks:?}");
            prop_assert!(marks[0] == 0.0);
        }
    }

    #[test]
    fn nothing_to_show_is_no_reason_to_fail() {
        for most in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Axis::new(0.0, 1.0, most).end > 0.0);
        }
    }
}
