//! A list of tests, some of which can't run on this machine. Those are reported as ignored, by
//! name and with the reason, and never as passed.

use std::process::ExitCode;

use anyhow::{Error, Result};
use libtest_mimic::{Arguments, Failed, Trial};

/// The tests of one program.
#[derive(Default)]
pub struct Suite {
    trials: Vec<Trial>,
    missing: Option<String>,
}

impl Suite {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a test.
    pub fn test(&mut self, name: &str, body: fn() -> Result<()>) {
        self.test_if(None, name, body);
    }

    /// Adds a test that can't run if something is `missing`.
    pub fn test_if(
        &mut self,
        missing: Option<String>,
        name: &str,
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        let trial = Trial::test(name, move || body().map_err(|error| failed(&error)));
        self.trials.push(match self.missing.clone().or(missing) {
            None => trial,
            Some(why) => trial.with_ignored_flag(true).with_kind(why),
        });
    }

    /// From here on, everything that is added lacks something.
    pub fn all_miss(&mut self, missing: Option<String>) {
        self.missing = missing;
    }

    /// Runs those that the command line chooses.
    pub fn run(self, arguments: &Arguments) -> ExitCode {
        libtest_mimic::run(arguments, self.trials).exit_code()
    }
}

/// The whole chain of causes, without a backtrace: the tests' messages say where they are.
fn failed(error: &Error) -> Failed {
    let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    causes.join("\nbecause: ").into()
}
