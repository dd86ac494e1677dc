//! Making an image: layers in, one EROFS file and its record out, or nothing at all.

use std::io::Read;
use std::path::Path;

use super::{Image, Store, StoreError};
use crate::config::ConfigError;
use crate::digest::Digest;
use crate::directory::DirectoryError;
use crate::layer::LayerError;
use crate::reference::Reference;

/// What an image is made of.
pub struct Import<'a> {
    /// The name it gets.
    pub reference: Option<&'a Reference>,
    /// The digest of its manifest, by which it is kept. The caller has verified it.
    pub digest: Digest,
    /// Its configuration, as it came.
    pub config: &'a [u8],
    /// Its layers, from the bottom up.
    pub layers: Vec<LayerInput>,
}

/// One layer: a tar, plain or compressed by gzip or zstd; its first bytes tell which.
pub struct LayerInput {
    /// What messages call it.
    pub name: String,
    /// Its bytes. Read by another thread, to the end if all is well.
    pub reader: Box<dyn Read + Send>,
    /// The digest that its tar has to have.
    pub diff_id: Option<Digest>,
    /// How many bytes the reader has, if that is known; progress counts on it.
    pub len: Option<u64>,
}

/// What is too much. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All layers' tars together, and all their files'.
    pub max_size: u64,
    /// Entries of all layers together.
    pub max_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_size: 64 << 30,
            max_entries: 2_000_000,
        }
    }
}

/// How far an import is. Told by the thread that called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A layer, from 1, is being applied.
    Layer {
        /// Its place.
        index: usize,
        /// How many there are.
        count: usize,
        /// Its name.
        name: &'a str,
    },
    /// So many bytes of all layers' readers are done.
    Bytes {
        /// How many.
        done: u64,
        /// Of how many, if all lengths are known.
        total: Option<u64>,
    },
    /// All layers are applied; what remains is to write what belongs to no file, and to disk.
    Finishing,
}

/// Why there is no image. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration counts other layers.
    #[error("the manifest has {layers} layers and the image's configuration {diff_ids}")]
    LayerCount {
        /// How many came.
        layers: usize,
        /// How many the configuration names.
        diff_ids: usize,
    },
    /// A layer.
    #[error("layer {layer}: {error}")]
    Layer {
        /// Its name.
        layer: String,
        /// What is wrong with it.
        error: LayerError,
    },
    /// A directory on the host.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file system can't be written.
    #[error(transparent)]
    Erofs(#[from] crate::erofs::ErofsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Makes an image and gives it its name. One that is there already is only named; its layers
    /// are not read.
    ///
    /// # Errors
    /// If anything is wrong with configuration or layers, or the store can't be written. Nothing
    /// is left of the image then.
    pub fn import(
        &self,
        import: Import<'_>,
        limits: &Limits,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Image, ImportError> {
        let _ = (import, limits, progress);
        todo!()
    }

    /// Makes an image of one tar that is a whole root file system. `config` is an OCI
    /// configuration, or empty for the defaults; the digest is made from it and from the tar.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn import_rootfs(
        &self,
        reference: Option<&Reference>,
        config: &[u8],
        tar: LayerInput,
        limits: &Limits,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Image, ImportError> {
        let _ = (reference, config, tar, limits, progress);
        todo!()
    }

    /// Makes an image of a directory on the host, with owners as they are; the digest is made from
    /// its content.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn import_directory(
        &self,
        reference: Option<&Reference>,
        config: &[u8],
        directory: &Path,
        limits: &Limits,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Image, ImportError> {
        let _ = (reference, config, directory, limits, progress);
        todo!()
    }
}
