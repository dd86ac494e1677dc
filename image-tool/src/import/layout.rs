//! OCI's image layout: `index.json` and blobs by digest, in a folder or in a tar.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use casita_images::manifest::{self, Descriptor, Document, Index, MAX_MANIFEST, Manifest};
use casita_images::{ConfigFile, Digest, LayerInput, Reference};
use sha2::{Digest as _, Sha256};

use super::error::ImportError;
use super::members::Members;
use super::{Found, choose};
use crate::section::Section;

/// Docker's annotation with a whole name, and OCI's with a name or only a tag.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Where an archive's parts are.
pub enum Files {
    /// In a folder.
    Folder(PathBuf),
    /// In a tar.
    Tar(Members),
}

impl Files {
    /// Opens a part by name; names are fixed or made of digests, or looked up in a tar.
    ///
    /// # Errors
    /// If it is not there, or no file.
    pub fn open(&self, name: &str) -> Result<Section, ImportError> {
        let found = match self {
            Self::Tar(members) => members.open(name),
            Self::Folder(folder) => {
                let opened = OpenOptions::new()
                    .read(true)
                    // A FIFO would wait for its writer.
                    .custom_flags(libc::O_NONBLOCK)
                    .open(folder.join(name))
                    .and_then(|file| Ok((file.metadata()?, file)));
                match opened {
                    Ok((found, file)) if found.is_file() => {
                        Some(Section::new(Arc::new(file), 0, found.len()))
                    }
                    Ok(_) => None,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(source) => {
                        return Err(ImportError::Part {
                            name: name.into(),
                            source,
                        });
                    }
                }
            }
        };
        found.ok_or_else(|| ImportError::Missing(name.into()))
    }

    /// Reads a part of at most `limit` bytes.
    ///
    /// # Errors
    /// If it is not there, or larger.
    pub fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, ImportError> {
        let mut section = self.open(name)?;
        if section.len() > limit as u64 {
            return Err(ImportError::TooLarge {
                name: name.into(),
                limit,
            });
        }
        let mut content = Vec::new();
        section
            .read_to_end(&mut content)
            .map_err(|source| ImportError::Part {
                name: name.into(),
                source,
            })?;
        Ok(content)
    }

    /// Whether there is such a part.
    pub fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    fn blob(&self, digest: &Digest, limit: usize) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(digest);
        let content = self.read(&name, limit)?;
        let got = Digest::of(&content);
        if got == *digest {
            Ok(content)
        } else {
            Err(ImportError::WrongDigest { name, got })
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Finds the image that is meant by `wanted`, or the only one.
///
/// # Errors
/// If there is none, or no telling which, or a part of it is missing or wrong.
pub fn find(files: &Files, wanted: Option<&Reference>) -> Result<Found, ImportError> {
    let index = files.read("index.json", MAX_MANIFEST)?;
    let Document::Index(index) = manifest::parse(&index, Some(manifest::media::OCI_INDEX))? else {
        return Err(ImportError::NoIndex);
    };
    let images: Vec<_> = index.manifests.iter().filter(|it| is_image(it)).collect();
    let names: Vec<Vec<String>> = images.iter().map(|it| names(it)).collect();
    let named = names.iter().any(|names| !names.is_empty());
    let (descriptor, names) = if images.len() > 1 && !named {
        // One image for several platforms.
        (index.select()?, Vec::new())
    } else {
        let chosen = choose(&names, wanted)?;
        (images[chosen], names[chosen].clone())
    };
    let (digest, manifest) = resolve(files, descriptor)?;
    let config = files.blob(&manifest.config.digest, casita_images::config::MAX_CONFIG)?;
    let diff_ids = ConfigFile::parse(&config)?.diff_ids;
    let mut layers = Vec::new();
    for (place, layer) in manifest.layers.iter().enumerate() {
        let section = files.open(&blob_name(&layer.digest))?;
        if section.len() != layer.size {
            return Err(ImportError::Size {
                name: blob_name(&layer.digest),
                got: section.len(),
                size: layer.size,
            });
        }
        if diff_ids.is_empty() {
            check(section.clone(), &layer.digest)?;
        }
        layers.push(LayerInput {
            name: layer.digest.to_string(),
            len: Some(section.len()),
            reader: Box::new(section),
            // The configuration, whose own digest was checked, says what is in the layer.
            diff_id: diff_ids.get(place).copied(),
        });
    }
    let references = names.iter().filter_map(|name| whole_name(name)).collect();
    Ok(Found {
        references,
        digest,
        config,
        layers,
    })
}

fn check(mut section: Section, digest: &Digest) -> Result<(), ImportError> {
    let name = blob_name(digest);
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = match section.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(ImportError::Part { name, source }),
            Ok(0) => break,
            Ok(got) => got,
        };
        sha256.update(&buffer[..got]);
    }
    let got = Digest::from_bytes(sha256.finalize().into());
    if got == *digest {
        Ok(())
    } else {
        Err(ImportError::WrongDigest { name, got })
    }
}

fn is_image(descriptor: &Descriptor) -> bool {
    let kind = descriptor.media_type.as_str();
    let attestation = descriptor
        .platform
        .as_ref()
        .is_some_and(|platform| platform.os == "unknown");
    !attestation && (kind.is_empty() || manifest::media::MANIFESTS.contains(&kind))
}

fn names(descriptor: &Descriptor) -> Vec<String> {
    let annotations = descriptor.annotations.as_ref();
    NAMES
        .iter()
        .filter_map(|key| annotations?.get(*key).cloned())
        .collect()
}

/// A name that is more than a tag.
fn whole_name(name: &str) -> Option<Reference> {
    name.contains(['/', ':']).then(|| name.parse().ok())?
}

/// From what the layout's index names to a manifest; there may be an index of platforms between.
fn resolve(files: &Files, descriptor: &Descriptor) -> Result<(Digest, Manifest), ImportError> {
    let read = |descriptor: &Descriptor| -> Result<Document, ImportError> {
        let bytes = files.blob(&descriptor.digest, MAX_MANIFEST)?;
        Ok(manifest::parse(&bytes, Some(&descriptor.media_type))?)
    };
    let chosen: Descriptor = match read(descriptor)? {
        Document::Manifest(manifest) => return Ok((descriptor.digest, manifest)),
        Document::Index(index) => select(&index)?,
    };
    match read(&chosen)? {
        Document::Manifest(manifest) => Ok((chosen.digest, manifest)),
        Document::Index(_) => Err(ImportError::NestedIndex),
    }
}

fn select(index: &Index) -> Result<Descriptor, ImportError> {
    Ok(index.select()?.clone())
}
