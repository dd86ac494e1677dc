//! `--sandbox`.

use serde::{Deserialize, Serialize};

/// How much of the sandbox there is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// None of it: for finding faults.
    Off,
    /// All that the host allows.
    #[default]
    Default,
    /// All of it, or no VM.
    Strict,
}
