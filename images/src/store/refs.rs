//! `refs.json`: which name leads to which image.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files;
use crate::digest::Digest;
use crate::reference::Reference;

const FILE: &str = "refs.json";

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Refs {
    references: BTreeMap<String, Digest>,
}

/// What a name is kept as. One with a digest means that image whatever its tag says.
fn key(reference: &Reference) -> String {
    let (registry, repository) = (reference.registry(), reference.repository());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{registry}/{repository}@{digest}"),
        (None, Some(tag)) => format!("{registry}/{repository}:{tag}"),
        (None, None) => format!("{registry}/{repository}"),
    }
}

impl Refs {
    pub(super) fn read(dir: &Path) -> Result<Self, StoreError> {
        Ok(files::read_json(&dir.join(FILE))?.unwrap_or_default())
    }

    /// The store's lock is held since before these were read.
    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        files::write_json(&dir.join(FILE), self)
    }

    pub(super) fn get(&self, reference: &Reference) -> Option<Digest> {
        self.references.get(&key(reference)).copied()
    }

    pub(super) fn set(&mut self, reference: &Reference, digest: Digest) {
        self.references.insert(key(reference), digest);
    }

    /// Takes a name away; returns it as it was kept.
    pub(super) fn take(&mut self, reference: &Reference) -> Vec<String> {
        let key = key(reference);
        self.references
            .remove(&key)
            .map(|_| key)
            .into_iter()
            .collect()
    }

    /// Takes all names of an image away.
    pub(super) fn take_all(&mut self, digest: &Digest) -> Vec<String> {
        let names = self.names(digest);
        self.references.retain(|_, named| named != digest);
        names
    }

    pub(super) fn names(&self, digest: &Digest) -> Vec<String> {
        let named = self.references.iter().filter(|(_, named)| *named == digest);
        named.map(|(name, _)| name.clone()).collect()
    }
}
