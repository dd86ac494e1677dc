//! Two directories that should have the same files: the one from `umoci`, the other from casita.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use rustix::fs::{lgetxattr, llistxattr};
use serde_json::Value;

use crate::made::digest;
use crate::run;

/// Mounts the image that a pull or an import has made, and compares it with a bundle that umoci
/// has unpacked from the same layout.
pub fn with_umoci(place: &Place, made: &Value, image: &str) -> Result<()> {
    let bundle = place.text("compared");
    run(&["umoci", "unpack", "--image", image, &bundle])?;
    let result = same(place, made, &place.path("compared/rootfs"));
    fs::remove_dir_all(bundle)?;
    result
}

/// Mounts an image and compares it with a directory.
pub fn same(place: &Place, made: &Value, folder: &Path) -> Result<()> {
    let digest = made["digest"].as_str().context("no digest")?;
    let hex = digest.trim_start_matches("sha256:");
    let erofs = place.text(&format!("data/casita/images/{hex}.erofs"));
    let mounted = Mounted::new(&erofs, &place.text("mounted"))?;
    let (expected, found) = (look(folder)?, look(Path::new(&mounted.0))?);
    run(&["fsck.erofs", &erofs])?;
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

/// Read by the kernel, which is what will read it in the end.
struct Mounted(String);

impl Mounted {
    fn new(erofs: &str, at: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        run(&["mount", "-t", "erofs", "-o", "loop,ro", erofs, at])?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // If it stays, removing the test's folder fails and says so.
        let _ = run(&["umount", &self.0]);
    }
}

/// Why images can't be mounted here, if they can't.
pub fn lacks_erofs() -> Option<String> {
    // A module is loaded by the first mount, and then listed.
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let loaded = known.contains("erofs") || run(&["modprobe", "erofs"]).is_ok();
    (!loaded).then(|| "needs a kernel with EROFS".to_owned())
}

/// Everything in a directory, and what it is.
fn look(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
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
            format!(
                "{what} {mode:o} {owner}:{group}, {links} links, {time}, {}",
                attributes(&path)?
            ),
        );
    }
    Ok(found)
}

/// All extended attributes of a file.
fn attributes(path: &Path) -> Result<String> {
    let mut names = vec![0; 4096];
    let len = llistxattr(path, names.as_mut_slice())?;
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0) {
        let name = std::str::from_utf8(name)?;
        if name.is_empty() {
            continue;
        }
        let mut value = vec![0; 4096];
        let len = lgetxattr(path, name, value.as_mut_slice())?;
        found.push(format!("{name}={:?}", &value[..len]));
    }
    found.sort();
    Ok(found.join(" "))
}
