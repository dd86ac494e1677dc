//! Why nothing could be imported.

use std::io;
use std::path::PathBuf;

use casita_images::manifest::ManifestError;
use casita_images::{ConfigError, Digest, StoreError};

use super::members::MembersError;

/// Why a source gives no image.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source can't be opened or read.
    #[error("{0} can't be read")]
    Source(String, #[source] io::Error),
    /// It is compressed in a way that other programs undo.
    #[error(
        "{what} is compressed with {program}; try `{program} -dc FILE | casita image import - NAME`"
    )]
    Compression {
        /// The source.
        what: String,
        /// What undoes it.
        program: &'static str,
    },
    /// Something else.
    #[error("{0} is no tar, and no directory either")]
    NoTar(String),
    /// A broken tar.
    #[error("{0} is a tar that can't be used")]
    Members(String, #[source] MembersError),
    /// It looks like an archive of images, and is none.
    #[error("{0} has neither an index.json nor a manifest.json, so there is no image in it")]
    NoImages(String),
    /// Decompressed it is too large.
    #[error("{0} has more than {1} bytes, which --max-size allows")]
    Bomb(String, u64),
    /// The copy of what can be read only once.
    #[error("{what} can't be put into a temporary file in {}", folder.display())]
    Spool {
        /// The source.
        what: String,
        /// Where the file has no name.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part that is named is not there.
    #[error("the archive has no {0:?}, which it should")]
    Missing(String),
    /// A part can't be read.
    #[error("{name:?} in the archive can't be read")]
    Part {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part that is small by its nature is not.
    #[error("{name:?} in the archive has more than {limit} bytes")]
    TooLarge {
        /// Its name.
        name: String,
        /// How large it may be.
        limit: usize,
    },
    /// A part is not what its name says.
    #[error("{name:?} in the archive is something else than its name says: its digest is {got}")]
    WrongDigest {
        /// Its name.
        name: String,
        /// Its digest.
        got: Digest,
    },
    /// The image's digest says nothing of its layers.
    #[error(
        "the configuration {name:?} in the archive names the digests of {named} layers, and the \
         archive has {layers}; an image has as many, and at least one"
    )]
    Layers {
        /// The configuration.
        name: String,
        /// How many it names.
        named: usize,
        /// How many there are.
        layers: usize,
    },
    /// A part is not as long as it should be.
    #[error("{name:?} in the archive has {got} bytes in place of {size}")]
    Size {
        /// Its name.
        name: String,
        /// Its length.
        got: u64,
        /// What its length should be.
        size: u64,
    },
    /// `index.json` is something else.
    #[error("index.json is no index")]
    NoIndex,
    /// Indexes may not nest deeper.
    #[error("the archive has an index of indexes of indexes")]
    NestedIndex,
    /// There is nothing.
    #[error("there is no image in the archive")]
    Empty,
    /// There are several.
    #[error("the archive has several images; give the name of one: {0}")]
    Several(String),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The image can't be made.
    #[error(transparent)]
    Stored(#[from] casita_images::ImportError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}
