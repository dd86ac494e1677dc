//! Real images, as registries have them: `tests/images/build` makes them, and casita imports them
//! into a store that the tests share.
//!
//! Both happen once, on the machine itself, before the tests go on in the lab, where there is no
//! network and nothing that is written stays.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};

use crate::machine;
use crate::place::Place;

/// All that there are.
pub const NAMES: [&str; 5] = ["layers", "debian", "nginx", "postgres", "python"];

/// For each image a file with the path of its layout, or with the reason why it is missing; and
/// `data`, whose store has them all.
fn folder() -> PathBuf {
    machine::checkout().join("target/test-images")
}

/// Makes and imports what is missing.
///
/// # Errors
/// If nothing can be kept in the checkout's `target`. An image that can't be made is no error: see
/// [`lacks`].
pub fn prepare() -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder)?;
    // What another importer made says nothing about this one.
    let importer = importer_stamp();
    if fs::read_to_string(folder.join("importer")).ok() != Some(importer.clone()) {
        let _ = fs::remove_dir_all(folder.join("data"));
        for name in NAMES {
            let _ = fs::remove_file(folder.join(name));
        }
        fs::write(folder.join("importer"), importer)?;
    }
    for name in NAMES {
        let said = prepare_one(name).unwrap_or_else(|error| format!("missing {error:#}"));
        fs::write(folder.join(name), said)?;
    }
    Ok(())
}

fn prepare_one(name: &str) -> Result<String> {
    let output = Command::new(machine::checkout().join("tests/images/build"))
        .arg(name)
        .output()?;
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().last().unwrap_or_default().to_owned()
    };
    ensure!(output.status.success(), "{}", last(&output.stderr));
    let line = last(&output.stdout);
    let layout = line.split_once(' ').context("no path was printed")?.1;
    let known = fs::read_to_string(folder().join(name)).unwrap_or_default();
    if known != layout {
        let output = Command::new(machine::casita())
            .args(["image", "import", layout, name])
            .env("XDG_DATA_HOME", folder().join("data"))
            .output()?;
        ensure!(output.status.success(), "{}", last(&output.stderr));
    }
    Ok(layout.to_owned())
}

/// Changes with the programs that import.
fn importer_stamp() -> String {
    let casita = machine::casita();
    let stamp = |path: PathBuf| {
        let meta = fs::metadata(path).ok()?;
        let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(format!("{} {}\n", meta.len(), time.as_nanos()))
    };
    let helper = casita.with_file_name("casita-image");
    [casita, helper].into_iter().filter_map(stamp).collect()
}

/// Why a test that needs this image can't run, if it can't.
pub fn lacks(name: &str) -> Option<String> {
    match fs::read_to_string(folder().join(name)) {
        Err(_) => Some(format!("needs the image {name}, which was not prepared")),
        Ok(said) => said
            .strip_prefix("missing ")
            .map(|why| format!("needs the image {name}: {why}")),
    }
}

/// The OCI layout of an image.
///
/// # Errors
/// If it was not made.
pub fn layout(name: &str) -> Result<String> {
    ensure!(lacks(name).is_none(), "there is no image {name}");
    Ok(fs::read_to_string(folder().join(name))?)
}

/// Lets `place` have the shared store. Nothing may be added to it or removed from it there.
///
/// # Errors
/// If the place has a store already.
pub fn share(place: &Place) -> Result<()> {
    let data = place.path("data/casita");
    fs::create_dir_all(&data)?;
    symlink(folder().join("data/casita/images"), data.join("images"))
        .context("the images can't be shared")
}
