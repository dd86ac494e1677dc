//! Casita's images.
//!
//! An image comes as layers, which are tar archives, and a configuration. The layers are applied,
//! in order, to a tree in memory ([`tree`]), while the files' data go straight into the file system
//! that is being made ([`erofs`]); nothing is ever unpacked to the host's own file system, so no
//! path in an archive means anything there. The result is one EROFS file for each image, kept by
//! the manifest's digest in the [`Store`], which all guests share.
//!
//! There is no network in here: who pulls an image hands its bytes to [`Store::import`].

pub mod archive;
pub mod config;
pub mod digest;
pub mod directory;
pub mod erofs;
pub mod layer;
pub mod manifest;
pub mod reference;
pub mod store;
pub mod stream;
mod time;
pub mod tree;

pub use config::{ConfigError, ConfigFile, ImageConfig};
pub use digest::{Digest, DigestError};
pub use reference::{Reference, ReferenceError};
pub use store::import::{Import, ImportError, LayerInput, Limits, Progress};
pub use store::{Image, Removed, Store, StoreError};
