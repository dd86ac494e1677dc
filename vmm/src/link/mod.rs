//! Placeholder until the real one is merged.
use serde::{Deserialize, Serialize};
/// Which streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// a
    pub stdin: bool,
    /// b
    pub stdout: bool,
    /// c
    pub stderr: bool,
}
