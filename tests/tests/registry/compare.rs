//! Two directories that should have the same files: the one from `umoci`, the other from casita.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use serde_json::Value;

use crate::made::digest;
use crate::run;

/// Extracts the image that a pull or an import has made, and compares it with a bundle that umoci
/// has unpacked from the same layout.
pub fn with_umoci(place: &Place, made: &Value, image: &str) -> Result<()> {
    let bundle = place.text("compared");
    run(&["umoci", "unpack", "--image", image, &bundle])?;
    let result = same(place, made, &place.path("compared/rootfs"));
    fs::remove_dir_all(bundle)?;
    result
}

/// Extracts an image and compares it with a directory.
pub fn same(place: &Place, made: &Value, folder: &Path) -> Result<()> {
    let digest = made["digest"].as_str().context("no digest")?;
    let hex = digest.trim_start_matches("sha256:");
    let erofs = place.text(&format!("data/casita/images/{hex}.erofs"));
    let extracted = place.path("extracted");
    let option = format!("--extract={}", extracted.display());
    run(&["fsck.erofs", "--preserve", &option, &erofs])?;
    let (expected, found) = (look(folder)?, look(&extracted)?);
    fs::remove_dir_all(&extracted)?;
    for (name, expected) in &expected {
        let found = found.get(name);
        ensure!(
            found == Some(expected),
            "{name}: {expected} was expected, and not {found:?}"
        );
    }
    for name in found.keys() {
        ensure!(expected.contains_key(name), "{name} should not be there");
    }
    ensure!(expected.len() > 1, "nothing was compared");
    Ok(())
}

/// Everything in a directory, and what it is.
fn look(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        let name = path.strip_prefix(folder)?.display().to_string();
        let about = fs::symlink_metadata(&path)?;
        let kind = about.file_type();
        let what = if kind.is_dir() {
            open.extend(
                fs::read_dir(&path)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<Vec<_>, _>>()?,
            );
            "directory".to_owned()
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            format!("link to {:?}", target.as_os_str().as_bytes())
        } else if kind.is_file() {
            let names: &mut Vec<_> = links.entry(about.ino()).or_default();
            names.push(name.clone());
            digest(&fs::read(&path)?)
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {:x}", about.rdev())
        } else {
            "FIFO or socket".to_owned()
        };
        // The root's time is that of the unpacking.
        let time = if name.is_empty() { 0 } else { about.mtime() };
        let links = if kind.is_dir() { 0 } else { about.nlink() };
        let (mode, owner, group) = (about.mode(), about.uid(), about.gid());
        found.insert(
            name,
            format!("{what} {mode:o} {owner}:{group}, {links} links, {time}"),
        );
    }
    Ok(found)
}
