//! Manifests and indexes, OCI's and Docker's: from bytes to the descriptors of what to fetch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Media types, as registries and layouts write them.
pub mod media {
    /// OCI's manifest of one image.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI's list of images, one for each platform.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI's image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's manifest of one image.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's list of images.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// All that can be asked of a registry under an image's name.
    pub const MANIFESTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
}

/// Registries refuse larger ones.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Engines stop far earlier.
pub const MAX_LAYERS: usize = 1024;

/// What a manifest's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Images of several platforms.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// Images of several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Index {
    /// One for each platform; there may be others that are no images.
    pub manifests: Vec<Descriptor>,
}

/// One image: its configuration, and its layers from the bottom up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The configuration blob.
    pub config: Descriptor,
    /// The layers' blobs.
    pub layers: Vec<Descriptor>,
}

/// What a blob is, how long, and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it runs on, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Anything else; a layout's index has the tag here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A system and a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// In Go's words: `amd64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v7`, `v8`; for amd64 a level that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any real one.
    #[error("the manifest has {0} bytes; at most 4 MiB are accepted")]
    TooLarge(usize),
    /// No JSON, or fields are missing.
    #[error("the manifest is not valid: {0}")]
    Json(serde_json::Error),
    /// Docker's format of before 2016.
    #[error("the manifest has Docker's old schema 1: push the image again with a current tool")]
    Schema1,
    /// Something else than an image.
    #[error("the manifest is of type {0:?}, which is no image")]
    Type(String),
    /// Something else than an image in an image's form: a chart, a signature, a model.
    #[error("this is no image that can run: its configuration is of type {0:?}")]
    Artifact(String),
    /// A layer that is none.
    #[error("layer {index} is of type {media_type:?}, which can't be unpacked")]
    Layer {
        /// Its place, from 1.
        index: usize,
        /// Its media type.
        media_type: String,
    },
    /// More layers than engines allow.
    #[error("the image has {0} layers; at most 1024 are accepted")]
    TooManyLayers(usize),
    /// None for this machine.
    #[error("there is no image for linux/amd64 here, only for {0}")]
    NoPlatform(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index. `media_type` is what the registry or the descriptor says; the
/// document's own word and its form decide where they say nothing.
///
/// # Errors
/// If it is no manifest of an image, or no index.
pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Document, ManifestError> {
    if bytes.len() > MAX_MANIFEST {
        return Err(ManifestError::TooLarge(bytes.len()));
    }
    let probe: Probe = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    if probe.schema_version == Some(1) {
        return Err(ManifestError::Schema1);
    }
    // A header may carry parameters, and a proxy may say no more than that it is JSON.
    let told = media_type
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .filter(|text| !text.is_empty() && *text != "application/json");
    let index = match probe.media_type.as_deref().or(told) {
        Some(media::OCI_INDEX | media::DOCKER_LIST) => true,
        Some(media::OCI_MANIFEST | media::DOCKER_MANIFEST) => false,
        Some(other) => return Err(ManifestError::Type(other.to_owned())),
        None => probe.manifests.is_some(),
    };
    if index {
        return serde_json::from_slice(bytes)
            .map(Document::Index)
            .map_err(ManifestError::Json);
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    manifest.check()?;
    Ok(Document::Manifest(manifest))
}

impl Manifest {
    fn check(&self) -> Result<(), ManifestError> {
        let config = self.config.media_type.as_str();
        if !matches!(config, "" | media::OCI_CONFIG | media::DOCKER_CONFIG) {
            return Err(ManifestError::Artifact(config.to_owned()));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(self.layers.len()));
        }
        match self
            .layers
            .iter()
            .position(|layer| !is_tar(&layer.media_type))
        {
            Some(index) => Err(ManifestError::Layer {
                index: index + 1,
                media_type: self.layers[index].media_type.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// A layer's compression is found by its first bytes; here it only has to be a tar.
fn is_tar(media_type: &str) -> bool {
    let (base, suffix) = match media_type.split_once('+') {
        Some((base, suffix)) => (base, Some(suffix)),
        None => (media_type, None),
    };
    let known = matches!(
        base,
        "" | "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    );
    known && matches!(suffix, None | Some("gzip" | "zstd"))
}

impl Index {
    /// The image for linux/amd64. One that asks for no later processor is preferred; a list of one
    /// image that names no platform is taken at its word (its configuration is checked later).
    ///
    /// # Errors
    /// If there is none; the message names what there is.
    pub fn select(&self) -> Result<&Descriptor, ManifestError> {
        let fits = |descriptor: &&Descriptor| {
            descriptor
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "linux" && platform.architecture == "amd64")
        };
        let any_processor = |descriptor: &&Descriptor| {
            let variant = descriptor
                .platform
                .as_ref()
                .and_then(|it| it.variant.as_deref());
            matches!(variant, None | Some("" | "v1"))
        };
        let image = |descriptor: &&Descriptor| {
            media::MANIFESTS.contains(&descriptor.media_type.as_str())
                || descriptor.media_type.is_empty()
        };
        let found = self
            .manifests
            .iter()
            .filter(image)
            .filter(fits)
            .find(any_processor);
        if let Some(found) = found.or_else(|| self.manifests.iter().filter(image).find(fits)) {
            return Ok(found);
        }
        let mut images = self.manifests.iter().filter(image);
        match (images.next(), images.next()) {
            (Some(only), None) if only.platform.is_none() => Ok(only),
            _ => Err(ManifestError::NoPlatform(self.platforms())),
        }
    }

    fn platforms(&self) -> String {
        let mut names: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref())
            // Attestations stand in indexes under this name.
            .filter(|platform| platform.os != "unknown")
            .map(
                |Platform {
                     os,
                     architecture,
                     variant,
                 }| match variant {
                    Some(variant) => format!("{os}/{architecture}/{variant}"),
                    None => format!("{os}/{architecture}"),
                },
            )
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            "platforms that it does not name".to_owned()
        } else {
            names.join(", ")
        }
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
