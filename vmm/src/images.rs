//! Images as this program sees them: what is in the store, and the helper program that brings more.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use casita_images::{Digest, Image, Reference, ReferenceError, Store, StoreError};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::helpers::{self, HelperError};
use crate::vms::{Registry, VmsError};

/// When to ask a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// When the image is not in the store.
    #[default]
    Missing,
    /// Not at all.
    Never,
}

/// Why there is no image to run.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not a name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It may not be pulled, or can't be by this name.
    #[error("there is no image {0:?} in the store; `casita image ls` lists what there is")]
    Missing(String),
    /// The helper does not run.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The helper has already said what is wrong.
    #[error("the image could not be pulled")]
    Told,
}

impl ImagesError {
    /// Whether people know already, so that it needs no other line.
    pub fn is_told(&self) -> bool {
        matches!(self, Self::Told)
    }
}

/// The store's folder.
pub fn folder(dirs: &Dirs) -> PathBuf {
    dirs.data().join("images")
}

/// Opens the store.
///
/// # Errors
/// If its folder can't be made.
pub fn store(dirs: &Dirs) -> Result<Store, ImagesError> {
    Ok(Store::open(&folder(dirs))?)
}

/// The image that a person names, pulled first where `policy` says so.
///
/// # Errors
/// If it is not there and can't be pulled.
pub fn resolve(name: &str, policy: PullPolicy, dirs: &Dirs) -> Result<Image, ImagesError> {
    let store = store(dirs)?;
    let missing = || ImagesError::Missing(name.to_owned());
    let known = store.get(name)?;
    // A digest is no name that a registry could be asked for.
    let by_digest = name.parse::<Digest>().is_ok();
    match (known, policy) {
        (Some(image), PullPolicy::Missing | PullPolicy::Never) => return Ok(image),
        (Some(image), PullPolicy::Always) if by_digest => return Ok(image),
        (None, PullPolicy::Never) => return Err(missing()),
        (None, _) if by_digest => return Err(missing()),
        (_, PullPolicy::Always | PullPolicy::Missing) => (),
    }
    let reference: Reference = name.parse()?;
    let path = helpers::find(helpers::IMAGE)?;
    let status = Command::new(&path)
        .arg("--store")
        .arg(folder(dirs))
        .args(["pull", &reference.to_string()])
        // What is written there is the command's.
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .status()
        .map_err(|source| HelperError::Start { path, source })?;
    if !status.success() {
        return Err(ImagesError::Told);
    }
    store.get(&reference.to_string())?.ok_or_else(missing)
}

/// The digests of the images that VMs use, whether those run or not.
///
/// # Errors
/// If the VMs can't be listed.
pub fn in_use(dirs: &Dirs) -> Result<Vec<Digest>, VmsError> {
    let vms = Registry::open(dirs)?.list()?;
    Ok(vms
        .iter()
        .filter_map(|vm| vm.record().image.as_ref()?.digest.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::{ImageUse, NewVm};

    #[test]
    fn an_image_that_may_not_be_pulled_is_missing() {
        let place = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(place.path());
        let refused = resolve("none", PullPolicy::Never, &dirs).unwrap_err();
        assert!(matches!(refused, ImagesError::Missing(name) if name == "none"));
        let digest = Digest::of(b"").to_string();
        for policy in [PullPolicy::Always, PullPolicy::Missing, PullPolicy::Never] {
            let refused = resolve(&digest, policy, &dirs).unwrap_err();
            assert!(matches!(refused, ImagesError::Missing(_)), "{policy:?}");
        }
    }

    #[test]
    fn images_of_vms_are_in_use() {
        let place = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(place.path());
        assert!(in_use(&dirs).unwrap().is_empty());
        let used = Digest::of(b"used");
        let registry = Registry::open(&dirs).unwrap();
        let image = ImageUse {
            reference: "r".to_owned(),
            digest: used.to_string(),
        };
        for image in [None, Some(image)] {
            let new = NewVm {
                image,
                ..NewVm::default()
            };
            registry.create(new).unwrap();
        }
        assert_eq!(in_use(&dirs).unwrap(), [used]);
    }
}
