//! To come.
/// Why a file system can't be written.
#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub struct ErofsError;
