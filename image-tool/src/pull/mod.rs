//! `casita-image pull`: from a registry's name for an image to the image in the store.
//!
//! The manifest names the configuration and the layers. Up to four layers are fetched at once, each
//! into a file, while the store already applies those that are there: it reads them through
//! [`Awaited`], which waits until a layer is complete and its digest has been checked.

mod backoff;
mod blob;
mod error;
mod login;
mod registry;

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use casita::cli::CliError;
use casita::progress::{Bytes, Progress};
use casita_images::manifest::{self, Document, MAX_MANIFEST, Manifest, ManifestError};
use casita_images::{ConfigFile, Digest, Image, Import, LayerInput, Limits, Reference, Store};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::section::Section;
use blob::{Blob, Folder, Wanted};
use error::PullError;
use registry::Registry;

const AT_ONCE: usize = 4;
/// The largest configuration that is fetched; the store has the same limit.
const MAX_CONFIG: usize = casita_images::config::MAX_CONFIG;

/// What to pull, and how.
pub struct Request<'a> {
    /// The image.
    pub image: &'a Reference,
    /// A file with logins, in place of the usual ones.
    pub authfile: Option<&'a Path>,
    /// Whether anybody may answer for the registry.
    pub insecure: bool,
}

/// Pulls an image. Also tells whether it had to be fetched, or was in the store already.
///
/// # Errors
/// If the registry does not give it, or it is not one that can be used.
pub fn pull(
    store: &Store,
    request: &Request<'_>,
    limits: &Limits,
) -> Result<(Image, bool), CliError> {
    // A digest says what is meant for ever, so the registry need not be asked.
    if let Some(digest) = request.image.digest() {
        let known = match store.get(&request.image.to_string())? {
            None => store.by_digest(digest)?,
            known => known,
        };
        if let Some(image) = known {
            return Ok((name(store, &image, request.image)?, false));
        }
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let login = login::find(request.image, request.authfile).map_err(PullError::from)?;
    let label = format!("pulling {}", request.image.familiar());
    let (registry, digest, manifest) = {
        let _progress = Progress::start(label.clone());
        runtime.block_on(async {
            let registry = Registry::open(request.image, login, request.insecure).await?;
            let (digest, manifest) = look_up(&registry, request.image).await?;
            Ok::<_, CliError>((Arc::new(registry), digest, manifest))
        })?
    };
    if let Some(image) = store.by_digest(&digest)? {
        return Ok((name(store, &image, request.image)?, false));
    }
    let config = runtime.block_on(config(&registry, &manifest))?;
    let job = Job {
        store,
        registry,
        reference: request.image,
        digest,
        manifest,
        config,
    };
    Ok((job.run(runtime, label, limits)?, true))
}

fn name(store: &Store, image: &Image, reference: &Reference) -> Result<Image, CliError> {
    store.tag(&image.digest, reference)?;
    let found = store.by_digest(&image.digest)?;
    Ok(found.ok_or("the image was removed by another process; try again")?)
}

/// Gets the manifest of the image for this machine, and its digest.
async fn look_up(registry: &Registry, image: &Reference) -> Result<(Digest, Manifest), CliError> {
    let tag = image.tag().unwrap_or("latest");
    let (path, expected) = match image.digest() {
        Some(digest) => (digest.to_string(), Some(*digest)),
        None => (tag.to_owned(), None),
    };
    let what = image.familiar();
    let (digest, document) = get_manifest(registry, &path, &what, expected).await?;
    let index = match document {
        Document::Manifest(manifest) => return Ok((digest, manifest)),
        Document::Index(index) => index,
    };
    let chosen = index.select().map_err(|error| about(&what, &error))?.digest;
    match get_manifest(registry, &chosen.to_string(), &what, Some(chosen)).await? {
        (digest, Document::Manifest(manifest)) => Ok((digest, manifest)),
        (_, Document::Index(_)) => Err(format!("{what} is an index of indexes").into()),
    }
}

fn about(what: &str, error: &ManifestError) -> CliError {
    format!("{what}: {error}").into()
}

async fn get_manifest(
    registry: &Registry,
    path: &str,
    what: &str,
    expected: Option<Digest>,
) -> Result<(Digest, Document), CliError> {
    const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
                          application/vnd.oci.image.manifest.v1+json, \
                          application/vnd.docker.distribution.manifest.list.v2+json, \
                          application/vnd.docker.distribution.manifest.v2+json";
    let response = registry
        .get(&format!("manifests/{path}"), what, Some(ACCEPT), 0)
        .await?;
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let told = header("docker-content-digest").and_then(|text| text.parse().ok());
    let media_type = header("content-type");
    let body = registry
        .body(response, &format!("the manifest of {what}"), MAX_MANIFEST)
        .await?;
    let digest = Digest::of(&body);
    if let Some(expected) = expected.or(told)
        && expected != digest
    {
        return Err(wrong_digest(registry, expected, digest).into());
    }
    let document =
        manifest::parse(&body, media_type.as_deref()).map_err(|error| about(what, &error))?;
    Ok((digest, document))
}

fn wrong_digest(registry: &Registry, expected: Digest, got: Digest) -> PullError {
    PullError::WrongDigest {
        host: registry.host().to_owned(),
        expected,
        got,
    }
}

/// Gets the configuration, and looks whether the image can run here before its layers are fetched.
async fn config(registry: &Registry, manifest: &Manifest) -> Result<Vec<u8>, CliError> {
    let digest = manifest.config.digest;
    let what = format!("configuration {digest}");
    let response = registry
        .get(&format!("blobs/{digest}"), &what, None, 0)
        .await?;
    let body = registry.body(response, &what, MAX_CONFIG).await?;
    let got = Digest::of(&body);
    if got != digest {
        return Err(wrong_digest(registry, digest, got).into());
    }
    ConfigFile::parse(&body)?.check_platform()?;
    Ok(body)
}

struct Job<'a> {
    store: &'a Store,
    registry: Arc<Registry>,
    reference: &'a Reference,
    digest: Digest,
    manifest: Manifest,
    config: Vec<u8>,
}

impl Job<'_> {
    /// Fetches and applies the layers. The runtime ends in here, and with it each download.
    fn run(self, runtime: Runtime, label: String, limits: &Limits) -> Result<Image, CliError> {
        let mut sizes = HashMap::new();
        let mut order = Vec::new();
        for layer in &self.manifest.layers {
            if sizes.insert(layer.digest, layer.size).is_none() {
                order.push(layer.digest);
            }
        }
        let total = sizes
            .values()
            .fold(0, |sum: u64, size| sum.saturating_add(*size));
        if total > limits.max_size {
            return Err(format!(
                "{} has layers of {total} bytes; --max-size is {}",
                self.reference.familiar(),
                limits.max_size
            )
            .into());
        }
        let done = Arc::new(AtomicU64::new(0));
        let folder = Folder::new(self.store.blobs()?, done.clone());
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let arrivals: Arrivals = Arc::new(
            order
                .iter()
                .map(|digest| (*digest, Arrival::default()))
                .collect(),
        );
        for digest in order {
            let wanted = Wanted {
                digest,
                size: sizes[&digest],
            };
            let (registry, folder) = (self.registry.clone(), folder.clone());
            let (turns, arrivals) = (turns.clone(), arrivals.clone());
            runtime.spawn(async move {
                // Dropped however this task ends, and nobody waits for what can't come.
                let guard = Guard(&arrivals);
                // Turns come in order, bottom layers first.
                let Ok(_turn) = turns.acquire().await else {
                    return;
                };
                let state = match blob::fetch(&registry, &folder, wanted).await {
                    Ok(blob) => State::There(blob),
                    Err(error) => State::Failed(Some(error)),
                };
                let there = matches!(state, State::There(_));
                arrivals[&digest].set(state);
                if there {
                    std::mem::forget(guard);
                } else {
                    turns.close();
                }
            });
        }
        let progress = Progress::with_bytes(label, move || Bytes {
            done: done.load(Ordering::Relaxed),
            total: Some(total),
        });
        let result = self.apply(&arrivals, limits);
        drop(progress);
        // Ends what still runs, so that every blob is either arrived or dropped.
        drop(runtime);
        let failed = arrivals.values().find_map(Arrival::failure);
        // The store only knows that it could not read.
        match (result, failed) {
            (Err(_), Some(failed)) => Err(failed.into()),
            (result, _) => result,
        }
    }

    fn apply(&self, arrivals: &Arrivals, limits: &Limits) -> Result<Image, CliError> {
        let diff_ids = ConfigFile::parse(&self.config)?.diff_ids;
        let layers = self.manifest.layers.iter().enumerate();
        let layers = layers.map(|(index, layer)| LayerInput {
            name: layer.digest.to_string(),
            reader: Box::new(Awaited {
                arrivals: arrivals.clone(),
                digest: layer.digest,
                section: None,
            }),
            diff_id: diff_ids.get(index).copied(),
            len: Some(layer.size),
        });
        let import = Import {
            reference: Some(self.reference),
            digest: self.digest,
            config: &self.config,
            layers: layers.collect(),
        };
        Ok(self.store.import(import, limits, &|_| ())?)
    }
}

type Arrivals = Arc<HashMap<Digest, Arrival>>;

/// Gives up all that has not come, when dropped.
struct Guard<'a>(&'a Arrivals);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        for arrival in self.0.values() {
            let mut state = arrival.lock();
            if matches!(*state, State::Coming) {
                *state = State::Failed(None);
                arrival.changed.notify_all();
            }
        }
    }
}

/// A blob that is being fetched, for the thread that needs it.
#[derive(Default)]
struct Arrival {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Coming,
    There(Blob),
    /// With the reason, unless another blob's was first.
    Failed(Option<PullError>),
}

impl Arrival {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    fn failure(&self) -> Option<PullError> {
        match &mut *self.lock() {
            State::Failed(error) => error.take(),
            _ => None,
        }
    }

    fn wait(&self) -> io::Result<Section> {
        let mut state = self.lock();
        loop {
            match &*state {
                State::There(blob) => return blob.reader(),
                State::Failed(_) => return Err(io::Error::other("it could not be fetched")),
                State::Coming => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// Reads a blob once it is there.
struct Awaited {
    arrivals: Arrivals,
    digest: Digest,
    section: Option<Section>,
}

impl Read for Awaited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.section.is_none() {
            self.section = Some(self.arrivals[&self.digest].wait()?);
        }
        self.section
            .as_mut()
            .map_or(Ok(0), |section| section.read(buffer))
    }
}
