//! To come.
/// Why a directory can't be packed.
#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub struct DirectoryError;
