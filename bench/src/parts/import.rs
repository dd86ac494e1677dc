//! From an image as registries have it to a root image that guests can boot from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::parts::result::{Goal, PartResult};
use crate::peers::CASITA;
use crate::process::time_to_end;
use crate::subjects::Subjects;

const TIME: &str = "OCI layout to EROFS image";
const SIZE: &str = "size of the EROFS image";
const UMOCI: &str = "umoci and mkfs.erofs";

/// Imports one image with casita and with the tools that people have for it, in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    let layout = subjects
        .layout
        .as_deref()
        .context("--layout is needed for this part")?;
    result.note(
        "Debian's image of the tests, two layers packed with gzip, in the page cache. Casita: `casita \
         image import` into an empty store. Beside it: `umoci unpack`, which leaves a tree of files, \
         and `mkfs.erofs`, which makes an image of it. Both write to the same file system, and \
         each is measured to its exit.",
    );
    for run in 0..=subjects.runs {
        warm(layout)?;
        let (ours, our_size) = casita(subjects, layout)?;
        warm(layout)?;
        let (unpacked, packed, their_size) = umoci(subjects, layout)?;
        if run > 0 {
            result.add(TIME, CASITA, "ms", ours);
            result.add(TIME, UMOCI, "ms", unpacked + packed);
            result.add("  umoci unpack", UMOCI, "ms", unpacked);
            result.add("  mkfs.erofs", UMOCI, "ms", packed);
            result.add(SIZE, CASITA, "MiB", our_size);
            result.add(SIZE, UMOCI, "MiB", their_size);
        }
        eprintln!("import: round {run} of {}", subjects.runs);
    }
    result.add_ratio(TIME, CASITA, UMOCI, Some(Goal::AtMost(1.0)));
    Ok(())
}

/// Reads all files below `folder`, so that both find them in memory.
fn warm(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            warm(&path)?;
        } else {
            fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        }
    }
    Ok(())
}

/// A new folder below the one for the measurement's files.
fn fresh(subjects: &Subjects, name: &str) -> Result<PathBuf> {
    let folder = subjects.work.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[allow(clippy::cast_precision_loss, reason = "not so many")]
fn mib(path: &Path) -> Result<f64> {
    Ok(fs::metadata(path)?.len() as f64 / f64::from(1 << 20))
}

fn casita(subjects: &Subjects, layout: &Path) -> Result<(f64, f64)> {
    let data = fresh(subjects, "import-data")?;
    let mut command = Command::new(&subjects.casita);
    command
        .args(["image", "import"])
        .arg(layout)
        .arg("bench-import")
        .env("XDG_DATA_HOME", &data);
    let time = time_to_end(&mut command)?;
    let images = data.join("casita/images");
    let image = fs::read_dir(&images)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "erofs"))
        .with_context(|| format!("no image is in {}", images.display()))?;
    let size = mib(&image)?;
    fs::remove_dir_all(&data)?;
    Ok((time, size))
}

fn umoci(subjects: &Subjects, layout: &Path) -> Result<(f64, f64, f64)> {
    let folder = fresh(subjects, "import-umoci")?;
    let (bundle, image) = (folder.join("bundle"), folder.join("image.erofs"));
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image"]).arg(layout).arg(&bundle);
    if !rustix::process::geteuid().is_root() {
        unpack.arg("--rootless");
    }
    let unpacked = time_to_end(&mut unpack)?;
    let mut pack = Command::new("mkfs.erofs");
    pack.arg(&image)
        .arg(bundle.join("rootfs"))
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let packed = time_to_end(&mut pack)?;
    let size = mib(&image)?;
    fs::remove_dir_all(&folder)?;
    Ok((unpacked, packed, size))
}
