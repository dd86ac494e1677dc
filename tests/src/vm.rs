//! A VM in the background, and the verbs that people have for it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::place::Place;
use crate::run::{Program, Running};

/// A VM that runs in the background. It is ended and removed when this is dropped.
pub struct Vm<'a> {
    place: &'a Place,
    /// What `casita run -d` printed.
    pub id: String,
}

impl<'a> Vm<'a> {
    /// `casita run -d` with `options` and a shell that runs `script`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(place: &'a Place, options: &[&str], script: &str) -> Result<Self> {
        Self::run(place, &[options, &["--", "sh", "-c", script]].concat())
    }

    /// `casita run -d` with `words`.
    ///
    /// # Errors
    /// If it does not start, or does not tell its ID and nothing else.
    pub fn run(place: &'a Place, words: &[&str]) -> Result<Self> {
        let finished = place
            .casita([&["run", "-d"], words].concat())
            .finish()?
            .expect(0)?;
        let text = finished.text();
        let id = text.strip_suffix('\n').unwrap_or_default();
        let is_id = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_id, "an ID was expected\n{finished}");
        Ok(Self {
            place,
            id: id.to_owned(),
        })
    }

    /// `casita VERB OPTIONS` for it.
    pub fn casita(&self, verb: &str, options: &[&str]) -> Program {
        self.place
            .casita([&[verb], options, &[self.id.as_str()]].concat())
    }

    /// `casita exec OPTIONS` of `words` in it.
    pub fn exec(&self, options: &[&str], words: &[&str]) -> Program {
        let before = [&["exec"], options, &[self.id.as_str(), "--"]].concat();
        self.place.casita([&before[..], words].concat())
    }

    /// What a shell in it writes that runs `script`, which has to end with status 0.
    ///
    /// # Errors
    /// If it does not.
    pub fn asks(&self, script: &str) -> Result<String> {
        let finished = self.exec(&[], &["sh", "-c", script]).finish()?.expect(0)?;
        Ok(finished.text())
    }

    /// All that `casita inspect` tells.
    ///
    /// # Errors
    /// If it tells nothing, or something that is not one object.
    pub fn inspect(&self) -> Result<Value> {
        let program = self.casita("inspect", &["--format", "json"]);
        let finished = program.finish()?.expect(0)?;
        let value: Value =
            serde_json::from_slice(&finished.stdout).with_context(|| finished.to_string())?;
        ensure!(value.is_object(), "one object was expected: {value}");
        Ok(value)
    }

    /// Its state, as `casita inspect` tells it.
    ///
    /// # Errors
    /// If it is not told.
    pub fn state(&self) -> Result<String> {
        let value = self.inspect()?;
        let state = value["state"].as_str().context("no state")?;
        Ok(state.to_owned())
    }

    /// Its monitor's process.
    ///
    /// # Errors
    /// If it has none.
    pub fn pid(&self) -> Result<i32> {
        let value = self.inspect()?;
        let pid = value["pid"].as_i64().context("no pid")?;
        Ok(pid.try_into()?)
    }

    /// Follows its log; ends with the VM.
    ///
    /// # Errors
    /// If the program can't be started.
    pub fn follow(&self) -> Result<Running> {
        self.casita("logs", &["-f"]).start()
    }

    /// Waits until it has written `text`.
    ///
    /// # Errors
    /// If it does not.
    pub fn says(&self, text: &str) -> Result<()> {
        self.follow()?.wait_for(text)
    }

    /// Waits for its end and checks the exit code.
    ///
    /// # Errors
    /// If it is another.
    pub fn ends_with(&self, code: u8) -> Result<()> {
        let finished = self.casita("wait", &[]).finish()?.expect(0)?;
        ensure!(
            finished.text() == format!("{code}\n"),
            "exit code {code} was expected\n{finished}"
        );
        Ok(())
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // It may be gone already; what else is wrong shows in the test.
        let _ = self.casita("rm", &["-f"]).finish();
    }
}
