//! To come.
/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub struct LayerError;
