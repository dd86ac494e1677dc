//! Making an image: layers in, one EROFS file and its record out, or nothing at all.

use std::io::Read;
use std::path::Path;

use super::files::{self, Partial, io_error};
use super::{Image, Record, Store, StoreError};
use crate::config::{ConfigError, ConfigFile};
use crate::digest::Digest;
use crate::directory::{self, DirectoryError};
use crate::erofs::{self, DataWriter};
use crate::layer::{self, AbsoluteNames, LayerError};
use crate::reference::Reference;
use crate::stream::LayerStream;
use crate::time;
use crate::tree::Tree;

/// How many bytes are read between two reports of progress.
const PROGRESS_STEP: u64 = 1 << 20;

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
        let Import {
            reference,
            digest,
            config,
            mut layers,
        } = import;
        let config = ConfigFile::parse(config)?;
        config.check_platform()?;
        if self.by_digest(&digest)?.is_some() {
            return self.name(digest, reference);
        }
        if !config.diff_ids.is_empty() {
            let (layers, diff_ids) = (layers.len(), config.diff_ids.len());
            if layers != diff_ids {
                return Err(ImportError::LayerCount { layers, diff_ids });
            }
        }
        for (layer, diff_id) in layers.iter_mut().zip(&config.diff_ids) {
            layer.diff_id.get_or_insert(*diff_id);
        }
        let mut build = Build::start(self, limits)?;
        build.layers(layers, limits, AbsoluteNames::BelowRoot, progress)?;
        progress(Progress::Finishing);
        build.finish(digest, reference, config)
    }

    /// Makes an image of one tar that is a whole root file system. `config` is an OCI
    /// configuration, such as `{}`; the digest is made from it and from the tar.
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
        let file = ConfigFile::parse(config)?;
        file.check_platform()?;
        let mut build = Build::start(self, limits)?;
        let diff_ids = build.layers(vec![tar], limits, AbsoluteNames::Refused, progress)?;
        progress(Progress::Finishing);
        let content = diff_ids.iter().map(|id| &id.as_bytes()[..]);
        build.finish(
            made_digest("tar", content.collect(), config),
            reference,
            file,
        )
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
        let file = ConfigFile::parse(config)?;
        file.check_platform()?;
        let mut build = Build::start(self, limits)?;
        let mut done = |done| progress(Progress::Bytes { done, total: None });
        let content = directory::pack(&mut build.tree, &mut build.writer, directory, &mut done)?;
        progress(Progress::Finishing);
        let digest = made_digest("directory", vec![content.as_bytes()], config);
        build.finish(digest, reference, file)
    }

    fn name(&self, digest: Digest, reference: Option<&Reference>) -> Result<Image, ImportError> {
        if let Some(reference) = reference {
            self.tag(&digest, reference)?;
        }
        let image = self.by_digest(&digest)?;
        Ok(image.ok_or_else(|| StoreError::NotFound(digest.to_string()))?)
    }
}

/// A digest for what has no manifest.
fn made_digest(kind: &str, content: Vec<&[u8]>, config: &[u8]) -> Digest {
    let config = Digest::of(config);
    let mut parts = vec![kind.as_bytes()];
    parts.extend(content);
    parts.push(config.as_bytes());
    Digest::of(&parts.concat())
}

/// An image that is being made, in a file without a name.
struct Build<'a> {
    store: &'a Store,
    partial: Partial,
    tree: Tree,
    writer: DataWriter,
}

impl<'a> Build<'a> {
    fn start(store: &'a Store, limits: &Limits) -> Result<Self, ImportError> {
        let _lock = store.lock()?;
        files::sweep(&store.dir)?;
        let partial = Partial::create(&store.dir)?;
        let file = partial
            .file
            .try_clone()
            .map_err(io_error("open", &partial.path))?;
        Ok(Self {
            store,
            partial,
            tree: Tree::new(limits.max_entries),
            writer: DataWriter::new(file, limits.max_size),
        })
    }

    /// Applies layers; returns their tars' digests.
    fn layers(
        &mut self,
        layers: Vec<LayerInput>,
        limits: &Limits,
        absolute: AbsoluteNames,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Vec<Digest>, ImportError> {
        let count = layers.len();
        let total = layers.iter().map(|layer| layer.len).sum();
        let mut readers = Vec::with_capacity(count);
        let mut names = Vec::with_capacity(count);
        for layer in layers {
            readers.push(layer.reader);
            names.push((layer.name, layer.diff_id));
        }
        let mut stream = LayerStream::start(readers, limits.max_size);
        let mut diff_ids = Vec::with_capacity(count);
        for (index, (name, expected)) in (1..).zip(names) {
            progress(Progress::Layer {
                index,
                count,
                name: &name,
            });
            if index > 1 {
                self.tree.next_layer();
            }
            let mut tell = |done| progress(Progress::Bytes { done, total });
            match self.layer(&mut stream, absolute, expected, &mut tell) {
                Ok(diff_id) => diff_ids.push(diff_id),
                Err(error) => return Err(ImportError::Layer { layer: name, error }),
            }
        }
        Ok(diff_ids)
    }

    fn layer(
        &mut self,
        stream: &mut LayerStream,
        absolute: AbsoluteNames,
        expected: Option<Digest>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Digest, LayerError> {
        let (tree, writer) = (&mut self.tree, &mut self.writer);
        let mut told = 0;
        let applied = layer::apply(tree, writer, &mut *stream, absolute, &mut |stream| {
            let done = stream.done();
            // Not for every small file.
            if done - told >= PROGRESS_STEP {
                told = done;
                progress(done);
            }
        });
        if let Err(error) = applied {
            // What the reader met is the cause of what the archive complains of.
            return Err(stream.failed().map_or(error, LayerError::Stream));
        }
        let actual = stream.next_layer()?;
        progress(stream.done());
        match expected {
            Some(expected) if expected != actual => Err(LayerError::DiffId { expected, actual }),
            _ => Ok(actual),
        }
    }

    fn finish(
        self,
        digest: Digest,
        reference: Option<&Reference>,
        config: ConfigFile,
    ) -> Result<Image, ImportError> {
        let Self {
            store,
            partial,
            tree,
            writer,
        } = self;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest.as_bytes()[..16]);
        // Version 8 is for numbers that someone else's rule has made.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let (file, size) = erofs::finish(&tree, writer, uuid)?;
        file.sync_all().map_err(io_error("write", &partial.path))?;
        drop(file);
        let record = Record {
            created: config.created.unwrap_or_else(time::now),
            size,
            config: config.config,
        };
        let lock = store.lock()?;
        files::write_json(&store.record_path(&digest), &record)?;
        partial.persist(&store.image_path(&digest))?;
        if let Some(reference) = reference {
            store.tag_locked(&digest, reference)?;
        }
        drop(lock);
        store.name(digest, None)
    }
}
