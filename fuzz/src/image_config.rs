//! Configurations, manifests and names of any bytes are refused with one line, or mean something.

use casita_images::manifest::{self, Document};
use casita_images::{ConfigFile, Reference};

/// One input.
pub fn run(bytes: &[u8]) {
    match ConfigFile::parse(bytes) {
        Ok(file) => drop(file.check_platform()),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
    match manifest::parse(bytes, None) {
        Ok(Document::Index(index)) => drop(index.select().cloned()),
        Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= manifest::MAX_LAYERS),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
    if let Ok(reference) = std::str::from_utf8(bytes)
        .unwrap_or_default()
        .parse::<Reference>()
    {
        assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
        assert_eq!(reference.familiar().parse(), Ok(reference));
    }
}
