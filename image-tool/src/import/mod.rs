//! `casita-image import`: images from files. What a source is, its content says.

mod docker;
mod error;
mod layout;
mod members;
mod stream;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use casita::progress::{Bytes, Progress};
use casita_images::{
    Digest, Image, Import, LayerInput, Limits, Progress as Told, Reference, Store,
};

use crate::section::Section;
use error::ImportError;
use layout::Files;
use members::{Kind, Members};
use stream::{Compression, Peeked, decompress};

/// Of a plain file system nothing is known but its files.
const NO_CONFIG: &[u8] = b"{}";

/// An image in an archive.
pub struct Found {
    references: Vec<Reference>,
    digest: Digest,
    config: Vec<u8>,
    layers: Vec<LayerInput>,
}

/// Imports an image. `name` is the name it gets, and chooses among several.
///
/// # Errors
/// If the source has no image that can be used.
pub fn import(
    store: &Store,
    source: &str,
    name: Option<&Reference>,
    limits: &Limits,
) -> Result<Image, ImportError> {
    let job = Job {
        store,
        what: if source == "-" {
            "standard input"
        } else {
            source
        },
        name,
        limits,
        done: Arc::default(),
        total: Arc::default(),
    };
    let (done, total) = (job.done.clone(), job.total.clone());
    let _progress = Progress::with_bytes(format!("importing {}", job.what), move || Bytes {
        done: done.load(Ordering::Relaxed),
        total: Some(total.load(Ordering::Relaxed)).filter(|total| *total > 0),
    });
    if source == "-" {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        return job.stream(File::from(stdin.map_err(|error| job.unreadable(error))?));
    }
    let path = Path::new(source);
    let found = path.metadata().map_err(|error| job.unreadable(error))?;
    if found.is_dir() {
        return job.directory(path);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .map_err(|error| job.unreadable(error))?;
    if found.is_file() {
        job.file(file)
    } else {
        job.stream(file)
    }
}

struct Job<'a> {
    store: &'a Store,
    what: &'a str,
    name: Option<&'a Reference>,
    limits: &'a Limits,
    done: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
}

impl Job<'_> {
    fn unreadable(&self, source: io::Error) -> ImportError {
        ImportError::Source(self.what.to_owned(), source)
    }

    fn directory(&self, path: &Path) -> Result<Image, ImportError> {
        let has = |name: &str| path.join(name).is_file();
        if has("oci-layout") && has("index.json") {
            let found = layout::find(&Files::Folder(path.to_owned()), self.name)?;
            return self.found(found);
        }
        let told = |progress: Told<'_>| self.count(progress);
        let (name, limits) = (self.name, self.limits);
        Ok(self
            .store
            .import_directory(name, NO_CONFIG, path, limits, &told)?)
    }

    /// A file can be read again and anywhere.
    fn file(&self, file: File) -> Result<Image, ImportError> {
        let len = file
            .metadata()
            .map_err(|error| self.unreadable(error))?
            .len();
        let peeked = Peeked::new(&file).map_err(|error| self.unreadable(error))?;
        match self.kind(&peeked)? {
            Kind::Images if peeked.compression() == Compression::None => self.images(file),
            kind => {
                let peeked = Peeked::new(Section::new(Arc::new(file), 0, len))
                    .map_err(|error| self.unreadable(error))?;
                self.once(peeked, kind, Some(len))
            }
        }
    }

    /// A stream can be read once.
    fn stream(&self, file: File) -> Result<Image, ImportError> {
        let peeked = Peeked::new(file).map_err(|error| self.unreadable(error))?;
        let kind = self.kind(&peeked)?;
        self.once(peeked, kind, None)
    }

    fn kind<R: Read>(&self, peeked: &Peeked<R>) -> Result<Kind, ImportError> {
        if let Compression::Other(program) = peeked.compression() {
            return Err(ImportError::Compression {
                what: self.what.to_owned(),
                program,
            });
        }
        match members::kind(&peeked.plain_head()) {
            Kind::NoTar => Err(ImportError::NoTar(self.what.to_owned())),
            kind => Ok(kind),
        }
    }

    fn once<R: Read + Send + 'static>(
        &self,
        peeked: Peeked<R>,
        kind: Kind,
        len: Option<u64>,
    ) -> Result<Image, ImportError> {
        if kind == Kind::Images {
            // Its table of contents may be at the end.
            let compression = peeked.compression();
            let spooled = self.spool(peeked.whole(), compression)?;
            return self.images(spooled);
        }
        let tar = LayerInput {
            name: self.what.to_owned(),
            reader: Box::new(peeked.whole()),
            diff_id: None,
            len,
        };
        let told = |progress: Told<'_>| self.count(progress);
        let (name, limits) = (self.name, self.limits);
        Ok(self
            .store
            .import_rootfs(name, NO_CONFIG, tar, limits, &told)?)
    }

    /// Copies a stream into a file without a name.
    fn spool(
        &self,
        stream: impl Read + Send,
        compression: Compression,
    ) -> Result<File, ImportError> {
        let folder = self.store.blobs()?;
        let spool = |source| ImportError::Spool {
            what: self.what.to_owned(),
            folder: folder.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(&folder)
            .map_err(spool)?;
        let plain = decompress(stream, compression).map_err(|error| self.unreadable(error))?;
        let mut plain = plain.take(self.limits.max_size.saturating_add(1));
        let mut buffer = vec![0; 1 << 20];
        let mut copied = 0;
        loop {
            let got = match plain.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got.map_err(|error| self.unreadable(error))?,
            };
            if got == 0 {
                return Ok(file);
            }
            file.write_all(&buffer[..got]).map_err(spool)?;
            copied += got as u64;
            self.done.store(copied, Ordering::Relaxed);
            if copied > self.limits.max_size {
                return Err(ImportError::Bomb(
                    self.what.to_owned(),
                    self.limits.max_size,
                ));
            }
        }
    }

    /// A tar with images, in one of two formats.
    fn images(&self, file: File) -> Result<Image, ImportError> {
        let members = Members::index(file)
            .map_err(|error| ImportError::Members(self.what.to_owned(), error))?;
        let files = Files::Tar(members);
        // Docker writes both; OCI's says more.
        let found = if files.has("index.json") && files.has("oci-layout") {
            layout::find(&files, self.name)?
        } else if files.has("manifest.json") {
            docker::find(&files, self.name)?
        } else {
            return Err(ImportError::NoImages(self.what.to_owned()));
        };
        self.found(found)
    }

    fn found(&self, found: Found) -> Result<Image, ImportError> {
        let names: Vec<&Reference> = match self.name {
            Some(name) => vec![name],
            None => found.references.iter().collect(),
        };
        let import = Import {
            reference: names.first().copied(),
            digest: found.digest,
            config: &found.config,
            layers: found.layers,
        };
        let told = |progress: Told<'_>| self.count(progress);
        let image = self.store.import(import, self.limits, &told)?;
        for name in names.iter().skip(1) {
            self.store.tag(&image.digest, name)?;
        }
        Ok(self.store.by_digest(&image.digest)?.unwrap_or(image))
    }

    fn count(&self, progress: Told<'_>) {
        if let Told::Bytes { done, total } = progress {
            self.done.store(done, Ordering::Relaxed);
            self.total.store(total.unwrap_or(0), Ordering::Relaxed);
        }
    }
}

/// Chooses among images, each of which has these names: the one that is called `wanted`, or the
/// only one, whatever it is called.
fn choose(images: &[Vec<String>], wanted: Option<&Reference>) -> Result<usize, ImportError> {
    let is_wanted = |name: &String, wanted: &Reference| {
        // A layout may have no more than the tag.
        let tag = wanted.tag().is_some_and(|tag| tag == name);
        tag || name.parse::<Reference>().is_ok_and(|name| name == *wanted)
    };
    let called = wanted.and_then(|wanted| {
        images
            .iter()
            .position(|names| names.iter().any(|name| is_wanted(name, wanted)))
    });
    match (called, images.len()) {
        (Some(place), _) => Ok(place),
        (None, 0) => Err(ImportError::Empty),
        (None, 1) => Ok(0),
        (None, _) => {
            let names = images.iter().flatten().take(20).cloned();
            Err(ImportError::Several(names.collect::<Vec<_>>().join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &[&[&str]]) -> Vec<Vec<String>> {
        let owned = |names: &&[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        text.iter().map(owned).collect()
    }

    #[test]
    fn one_image_needs_no_name_and_takes_any() {
        let one = names(&[&["a:1"]]);
        assert_eq!(choose(&one, None).unwrap(), 0);
        assert_eq!(choose(&one, Some(&"b:2".parse().unwrap())).unwrap(), 0);
        assert!(matches!(choose(&[], None), Err(ImportError::Empty)));
    }

    #[test]
    fn of_several_the_named_one_is_chosen() {
        let two = names(&[&["docker.io/library/a:1", "a:2"], &["b"], &["v3"]]);
        let chosen = |name: &str| choose(&two, Some(&name.parse().unwrap())).ok();
        assert_eq!(chosen("a:1"), Some(0));
        assert_eq!(chosen("a:2"), Some(0));
        assert_eq!(chosen("b:latest"), Some(1));
        assert_eq!(chosen("anything:v3"), Some(2));
        assert_eq!(chosen("c"), None);
        let told = choose(&two, None).unwrap_err().to_string();
        assert!(
            told.ends_with("docker.io/library/a:1, a:2, b, v3"),
            "{told}"
        );
    }
}
