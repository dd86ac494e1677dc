//! What a part measured.

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::statistics;

/// One quantity of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Whose it is.
    pub who: String,
    /// The unit of the values.
    pub unit: String,
    /// One value for each run, in the order of the runs.
    pub values: Vec<f64>,
    /// What the project wants of the median.
    pub goal: Option<Goal>,
}

/// What the project wants of a median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Goal {
    /// Whether `median` is as wanted.
    pub fn met(self, median: f64) -> bool {
        match self {
            Self::AtMost(limit) => median <= limit,
            Self::AtLeast(limit) => median >= limit,
        }
    }
}

impl Row {
    /// The middle value; NaN without any.
    pub fn median(&self) -> f64 {
        statistics::median(&self.values)
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
    }
}

/// All that one part measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartResult {
    /// Its name.
    pub part: String,
    /// Where it ran.
    pub fingerprint: Fingerprint,
    /// How it was measured, and what it does not tell.
    pub notes: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

impl PartResult {
    /// A part without figures yet.
    pub fn new(part: &str, fingerprint: Fingerprint) -> Self {
        Self {
            part: part.to_owned(),
            fingerprint,
            notes: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Says how something was measured.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds `value` to the row of `what` and `who`.
    pub fn add(&mut self, what: &str, who: &str, unit: &str, value: f64) {
        let row = self
            .rows
            .iter_mut()
            .find(|row| row.what == what && row.who == who);
        match row {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row {
                what: what.to_owned(),
                who: who.to_owned(),
                unit: unit.to_owned(),
                values: vec![value],
                goal: None,
            }),
        }
    }

    /// Sets what is wanted of the row of `what` and `who`.
    pub fn set_goal(&mut self, what: &str, who: &str, goal: Goal) {
        for row in &mut self.rows {
            if row.what == what && row.who == who {
                row.goal = Some(goal);
            }
        }
    }

    /// Adds a row with the values of `who` divided by those of `peer`, run by run, if the peer was
    /// there.
    pub fn add_ratio(&mut self, what: &str, who: &str, peer: &str, goal: Option<Goal>) {
        let (Some(ours), Some(theirs)) = (self.row(what, who), self.row(what, peer)) else {
            return;
        };
        let values = ours.values.iter().zip(&theirs.values);
        let row = Row {
            what: format!("{what}: of {peer}'s"),
            who: who.to_owned(),
            unit: "times".to_owned(),
            values: values.map(|(ours, theirs)| ours / theirs).collect(),
            goal,
        };
        self.rows.push(row);
    }

    /// The row of `what` and `who`.
    pub fn row(&self, what: &str, who: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.what == what && row.who == who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f64]) -> Row {
        Row {
            what: String::new(),
            who: String::new(),
            unit: String::new(),
            values: values.to_vec(),
            goal: None,
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert!((row(&[9.0, 1.0, 3.0, 2.0]).median() - 2.5).abs() < 1e-9);
        assert!((row(&[9.0, 1.0, 3.0]).median() - 3.0).abs() < 1e-9);
        assert!(row(&[]).median().is_nan());
    }

    #[test]
    fn a_ratio_is_that_of_each_run() {
        let mut result = PartResult::new("", Fingerprint::default());
        for (ours, theirs) in [(6.0, 3.0), (9.0, 1.0), (8.0, 2.0)] {
            result.add("time", "us", "ms", ours);
            result.add("time", "them", "ms", theirs);
        }
        result.add_ratio("time", "us", "nobody", None);
        result.add_ratio("time", "us", "them", Some(Goal::AtMost(4.0)));
        let row = result.rows.last().unwrap();
        assert_eq!(row.values, [2.0, 9.0, 4.0]);
        assert_eq!(
            (row.what.as_str(), result.rows.len()),
            ("time: of them's", 3)
        );
    }

    #[test]
    fn a_goal_holds_at_its_limit() {
        assert!(Goal::AtMost(3.0).met(3.0) && !Goal::AtMost(3.0).met(3.1));
        assert!(Goal::AtLeast(3.0).met(3.0) && !Goal::AtLeast(3.0).met(2.9));
        assert!(!Goal::AtMost(3.0).met(f64::NAN));
    }
}
