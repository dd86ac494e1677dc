//! Everything that other programs write, imported and compared.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;

use crate::made::{self, Image, tar};
use crate::{compare, image, refused, run};

pub fn tests(suite: &mut Suite) {
    suite.test("import_a_layout", layout);
    suite.test("import_an_oci_archive", || archive("oci-archive"));
    suite.test("import_a_docker_archive", || archive("docker-archive"));
    let missing = machine::lacks("zstd", "zstd");
    suite.test_if(missing, "import_a_zstd_archive", zstd);
    suite.test("import_a_root_file_system", root_tar);
    suite.test("import_a_directory", directory);
    suite.test("import_a_tar_that_ends_with_its_data", no_end);
    suite.test("import_one_of_several_images", several);
    suite.test("import_from_several_docker_images", several_docker);
    suite.test("import_an_image_for_another_processor", other_processor);
    suite.test("import_what_is_none", none);
    suite.test("import_a_broken_archive", broken);
    suite.test("import_a_layout_with_a_wrong_digest", wrong_digest);
    suite.test("import_of_too_much", too_much);
}

fn layout() -> Result<()> {
    let place = Place::new()?;
    made::umoci(&place)?;
    let told = crate::made(&place, &["import", "layout", "team/app:v7"])?;
    ensure!(told["references"][0] == "docker.io/team/app:v7", "{told}");
    let from = format!("{}:v1", place.text("layout"));
    compare::with_umoci(&place, &told, &from)
}

fn archive(format: &str) -> Result<()> {
    let place = Place::new()?;
    made::umoci(&place)?;
    let from = format!("{}:v1", place.text("layout"));
    let to = format!("{format}:{}:docker.io/team/app:v7", place.text("archive"));
    run(&["skopeo", "copy", "-q", &format!("oci:{from}"), &to])?;
    let told = crate::made(&place, &["import", "archive"])?;
    ensure!(told["references"][0] == "docker.io/team/app:v7", "{told}");
    compare::with_umoci(&place, &told, &from)?;
    // The same through a pipe, and compressed.
    run(&["gzip", "-k", &place.text("archive")])?;
    for file in ["archive", "archive.gz"] {
        let other = Place::new()?;
        let content = fs::read(place.path(file))?;
        let finished = image(&other, &["import", "-", "x"]).finish_with(&content)?;
        let finished = finished.expect(0)?;
        let digest = finished.text();
        ensure!(told["digest"] == digest.trim(), "{file}: {told} {digest}");
    }
    let other = Place::new()?;
    let same = crate::made(&other, &["import", &place.text("archive.gz"), "x"])?;
    ensure!(told["digest"] == same["digest"], "{told} {same}");
    Ok(())
}

fn zstd() -> Result<()> {
    let place = Place::new()?;
    Image::layout(
        &[("v1", &Image::new(&[("a", b"a")]))],
        &place.path("layout"),
    )?;
    let (archive, layout) = (place.text("archive"), place.text("layout"));
    run(&["tar", "-C", &layout, "-cf", &archive, "."])?;
    run(&["zstd", "-q", &archive])?;
    crate::made(&place, &["import", "archive.zst", "x"]).map(drop)
}

/// What umoci unpacks, as a directory.
fn root(place: &Place) -> Result<()> {
    made::umoci(place)?;
    let from = format!("{}:v1", place.text("layout"));
    run(&["umoci", "unpack", "--image", &from, &place.text("bundle")]).map(drop)
}

fn root_tar() -> Result<()> {
    let place = Place::new()?;
    root(&place)?;
    let folder = place.path("bundle/rootfs");
    let (from, to) = (folder.display().to_string(), place.text("root.tar"));
    let all = ["--numeric-owner", "--xattrs", "--xattrs-include=*"];
    run(&[&["tar", "-C", &from], &all[..], &["-cf", &to, "."]].concat())?;
    run(&["gzip", "-k", &to])?;
    for file in ["root.tar", "root.tar.gz"] {
        let told = crate::made(&place, &["import", file, "root:1"])?;
        compare::same(&place, &told, &folder).with_context(|| file.to_owned())?;
    }
    let other = Place::new()?;
    let content = fs::read(place.path("root.tar"))?;
    image(&other, &["import", "-", "x"])
        .finish_with(&content)?
        .expect(0)
        .map(drop)
}

fn directory() -> Result<()> {
    let place = Place::new()?;
    root(&place)?;
    let told = crate::made(&place, &["import", "bundle/rootfs", "root:1"])?;
    compare::same(&place, &told, &place.path("bundle/rootfs"))
}

/// As `umoci insert` writes it: no padding, no end marker. One byte less is cut off.
fn no_end() -> Result<()> {
    let place = Place::new()?;
    let whole = tar("file", b"abc");
    place.write("whole", &whole[..515])?;
    place.write("cut", &whole[..514])?;
    let finished = image(&place, &["import", "cut", "x"]).finish()?;
    refused(&place, &finished, &["cut"])?;
    crate::made(&place, &["import", "whole", "x"]).map(drop)
}

fn several() -> Result<()> {
    let place = Place::new()?;
    let (one, two) = (Image::new(&[("a", b"a")]), Image::new(&[("b", b"b")]));
    Image::layout(&[("one", &one), ("two", &two)], &place.path("layout"))?;
    let finished = image(&place, &["import", "layout"]).finish()?;
    refused(&place, &finished, &["several", "one, two"])?;
    let told = crate::made(&place, &["import", "layout", "app:two"])?;
    ensure!(told["digest"] == two.digest().as_str(), "{told}");
    Ok(())
}

/// Writes an archive as Docker does: configurations, layers, and at last which belong together.
fn docker_archive(images: &[(&str, &Image)], folder: &Path) -> Result<()> {
    let mut entries = Vec::new();
    fs::create_dir(folder)?;
    for (tag, image) in images {
        let mut config = String::new();
        for (digest, content) in &image.blobs {
            let hex = digest.trim_start_matches("sha256:");
            let layer = image.layers.contains(digest);
            let name = format!("{hex}.{}", if layer { "tar" } else { "json" });
            fs::write(folder.join(&name), content)?;
            if !layer {
                config = name;
            }
        }
        let layers = image.layers.iter();
        let layers = layers.map(|layer| format!("{}.tar", layer.trim_start_matches("sha256:")));
        entries.push(serde_json::json!({
            "Config": config,
            "RepoTags": [tag],
            "Layers": layers.collect::<Vec<_>>(),
        }));
    }
    fs::write(
        folder.join("manifest.json"),
        serde_json::Value::from(entries).to_string(),
    )?;
    Ok(())
}

fn several_docker() -> Result<()> {
    let place = Place::new()?;
    let (one, two) = (Image::new(&[("a", b"a")]), Image::new(&[("b", b"b")]));
    docker_archive(
        &[("app:one", &one), ("app:two", &two)],
        &place.path("parts"),
    )?;
    let (parts, to) = (place.text("parts"), place.text("archive"));
    run(&["tar", "-C", &parts, "-cf", &to, "."])?;
    let finished = image(&place, &["import", "archive"]).finish()?;
    refused(&place, &finished, &["several", "app:one, app:two"])?;
    let told = crate::made(&place, &["import", "archive", "app:two"])?;
    ensure!(
        told["references"][0] == "docker.io/library/app:two",
        "{told}"
    );
    Ok(())
}

fn other_processor() -> Result<()> {
    let place = Place::new()?;
    let other = Image::of("arm64", &[("a", b"a")]);
    Image::layout(&[("v1", &other)], &place.path("layout"))?;
    let finished = image(&place, &["import", "layout", "x"]).finish()?;
    refused(&place, &finished, &["linux/arm64", "linux/amd64"])
}

fn none() -> Result<()> {
    let place = Place::new()?;
    place.write("text", "not a tar")?;
    place.write("empty", "")?;
    place.write("archive", tar("manifest.json.sig", b"x"))?;
    place.write("like-images", tar("repositories", b"{}"))?;
    place.write("xz", b"\xfd7zXZ\0 and so on")?;
    for (source, says) in [
        ("none", "No such file"),
        ("text", "no tar"),
        ("empty", "no tar"),
        ("/dev/null", "no tar"),
        ("like-images", "no image"),
        ("xz", "xz -dc"),
    ] {
        let finished = image(&place, &["import", source, "x"]).finish()?;
        refused(&place, &finished, &[source, says]).with_context(|| source.to_owned())?;
    }
    let finished = image(&place, &["import", "-", "x"]).finish_with(b"text")?;
    refused(&place, &finished, &["standard input", "no tar"])
}

fn broken() -> Result<()> {
    let place = Place::new()?;
    let one = Image::new(&[("a", &[7; 5000])]);
    Image::layout(&[("v1", &one)], &place.path("layout"))?;
    let (layout, to) = (place.text("layout"), place.text("archive"));
    run(&["tar", "-C", &layout, "-cf", &to, "."])?;
    let whole = fs::read(&to)?;
    place.write("cut", &whole[..whole.len() / 2])?;
    run(&["gzip", "-k", &to])?;
    let packed = fs::read(place.path("archive.gz"))?;
    place.write("cut.gz", &packed[..packed.len() - 100])?;
    for source in ["cut", "cut.gz"] {
        let finished = image(&place, &["import", source, "x"]).finish()?;
        refused(&place, &finished, &[source]).with_context(|| source.to_owned())?;
    }
    let layer = one.layers[0].trim_start_matches("sha256:");
    fs::remove_file(place.path("layout/blobs/sha256").join(layer))?;
    let finished = image(&place, &["import", "layout", "x"]).finish()?;
    refused(&place, &finished, &["has no", layer])
}

fn wrong_digest() -> Result<()> {
    let one = Image::new(&[("a", &[7; 5000])]);
    let manifest = one.digest();
    // The manifest, the configuration, a layer.
    for digest in one.blobs.keys().chain([&manifest]) {
        let place = Place::new()?;
        Image::layout(&[("v1", &one)], &place.path("layout"))?;
        let hex = digest.trim_start_matches("sha256:");
        let path = place.path("layout/blobs/sha256").join(hex);
        let mut content = fs::read(&path)?;
        // Within what is not a header of the tar.
        let at = content.len().min(600) - 1;
        content[at] = content[at].wrapping_add(1);
        fs::write(&path, content)?;
        let finished = image(&place, &["import", "layout", "x"]).finish()?;
        refused(&place, &finished, &[]).with_context(|| digest.clone())?;
    }
    Ok(())
}

fn too_much() -> Result<()> {
    let place = Place::new()?;
    let one = Image::new(&[("a", &vec![0; 3_000_000])]);
    Image::layout(&[("v1", &one)], &place.path("layout"))?;
    let (layout, to) = (place.text("layout"), place.text("archive"));
    run(&["tar", "-C", &layout, "-czf", &to, "."])?;
    for source in ["layout", "archive"] {
        let arguments = ["import", "--max-size", "1M", source, "x"];
        let finished = image(&place, &arguments).finish()?;
        refused(&place, &finished, &[]).with_context(|| source.to_owned())?;
    }
    Ok(())
}
