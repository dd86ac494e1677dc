//! Docker's archive: `manifest.json` names configurations and layers, in a tar.

use std::io;

use casita_images::{ConfigFile, Digest, LayerInput, Reference};
use serde::Deserialize;

use super::error::ImportError;
use super::layout::Files;
use super::{Found, choose};

const MAX_MANIFEST: usize = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Finds the image that is meant by `wanted`, or the only one.
///
/// # Errors
/// If there is none, or no telling which, or a part of it is missing or wrong.
pub fn find(files: &Files, wanted: Option<&Reference>) -> Result<Found, ImportError> {
    let name = "manifest.json";
    let part = |source| ImportError::Part {
        name: name.into(),
        source,
    };
    let text = files.read(name, MAX_MANIFEST)?;
    let entries: Vec<Entry> =
        serde_json::from_slice(&text).map_err(|error| part(io::Error::other(error)))?;
    let tags = |entry: &Entry| entry.repo_tags.clone().unwrap_or_default();
    let names: Vec<_> = entries.iter().map(tags).collect();
    let chosen = choose(&names, wanted)?;
    let entry = &entries[chosen];
    let config = files.read(&entry.config, casita_images::config::MAX_CONFIG)?;
    // The configuration's digest is what Docker knows the image by; its name says so, too.
    let digest = Digest::of(&config);
    let named = entry
        .config
        .rsplit('/')
        .next()
        .and_then(|file| Digest::from_hex(file.strip_suffix(".json").unwrap_or(file)));
    if named.is_some_and(|named| named != digest) {
        return Err(ImportError::WrongDigest {
            name: entry.config.clone(),
            got: digest,
        });
    }
    let diff_ids = ConfigFile::parse(&config)?.diff_ids;
    // The digest has to stand for the layers, too: with a configuration that names none, such as
    // the bytes of another image's manifest, this would pass for that image.
    if diff_ids.is_empty() || diff_ids.len() != entry.layers.len() {
        return Err(ImportError::Layers {
            name: entry.config.clone(),
            named: diff_ids.len(),
            layers: entry.layers.len(),
        });
    }
    let mut layers = Vec::new();
    for (place, layer) in entry.layers.iter().enumerate() {
        let section = files.open(layer)?;
        layers.push(LayerInput {
            name: layer.clone(),
            len: Some(section.len()),
            reader: Box::new(section),
            diff_id: diff_ids.get(place).copied(),
        });
    }
    Ok(Found {
        references: names[chosen]
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        digest,
        config,
        layers,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::members::Members;
    use super::*;

    fn archive(config: &str, layers: &[&str]) -> Files {
        let manifest = serde_json::json!([{"Config": "c.json", "Layers": layers}]).to_string();
        let mut builder = tar::Builder::new(Vec::new());
        let mut parts = vec![("manifest.json", manifest.as_str()), ("c.json", config)];
        parts.extend(layers.iter().map(|name| (*name, "layer")));
        for (name, content) in parts {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            builder
                .append_data(&mut header, name, content.as_bytes())
                .unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.into_inner().unwrap()).unwrap();
        Files::Tar(Members::index(file).unwrap())
    }

    #[test]
    fn an_image_whose_digest_does_not_stand_for_its_layers_is_refused() {
        let id = Digest::of(b"layer");
        let one = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#);
        assert!(find(&archive(&one, &["a"]), None).is_ok());
        // Another image's manifest, which is a configuration as far as that goes.
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{{"digest":"{id}","size":2}},"layers":[]}}"#);
        for (config, layers) in [
            (manifest.as_str(), &["a"][..]),
            (&manifest, &[]),
            ("{}", &["a"]),
            (&one, &[]),
            (&one, &["a", "b"]),
        ] {
            let found = find(&archive(config, layers), None);
            assert!(
                matches!(found, Err(ImportError::Layers { .. })),
                "{config} {layers:?}"
            );
        }
    }
}
