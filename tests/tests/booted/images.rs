//! Root images of each type, and directories.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};

use super::shell;

type Make = fn(&Path, &Path) -> Result<()>;

pub fn tests(suite: &mut Suite) {
    let types: [(&str, (&str, &str), Make); 4] = [
        ("erofs", image::EROFS, image::erofs),
        ("squashfs", image::SQUASHFS, image::squashfs),
        ("ext4", image::EXT4, image::ext4),
        ("iso9660", image::ISO9660, image::iso9660),
    ];
    for (name, (program, package), make) in types {
        let missing = machine::lacks(program, package).or_else(lacks_busybox);
        suite.test_if(missing, &format!("root_image_{name}"), move || boots(make));
    }
    let missing = machine::lacks(image::EROFS.0, image::EROFS.1).or_else(lacks_busybox);
    suite.test_if(missing, "root_directory", directory);
}

fn lacks_busybox() -> Option<String> {
    machine::lacks(image::BUSYBOX.0, image::BUSYBOX.1)
}

const LOOK: &str = "cat /etc/marker; cat '/etc/a long name, with spaces, of an image'\"'\"'s file'
    readlink /etc/link; stat -c '%a %u %s' /etc/secret /etc/large; md5sum /etc/large
    echo changed > /etc/marker && cat /etc/marker; grep ' / ' /proc/mounts";

/// Checks the answers to [`LOOK`].
fn check(text: &str) -> Result<()> {
    let expected = "from the image\nlong\nmarker\n";
    ensure!(
        text.starts_with(expected),
        "{expected:?} was expected\n{text}"
    );
    for part in [
        "3000000\n",
        "8e32e22642bddc89698e25a4e9bf528b",
        "changed\n",
        "overlay / overlay rw",
    ] {
        ensure!(text.contains(part), "{part:?} was expected\n{text}");
    }
    Ok(())
}

fn boots(make: Make) -> Result<()> {
    let place = Place::new()?;
    image::tree(&place.path("tree"), "")?;
    make(&place.path("tree"), &place.path("image"))?;
    let before = fs::read(place.path("image"))?;
    let finished = shell(&place, &["--rootfs", "image"], LOOK)
        .finish()?
        .expect(0)?;
    check(&finished.text())?;
    ensure!(
        before == fs::read(place.path("image"))?,
        "the image has changed"
    );
    Ok(())
}

fn is_image(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|end| end == "erofs")
}

/// Packed the first time, and again only after a change.
fn directory() -> Result<()> {
    let place = Place::new()?;
    image::tree(&place.path("tree"), "")?;
    let own_cache = place.path("cache");
    let run = |script: &str| {
        shell(&place, &["--rootfs", "tree"], script)
            .env("XDG_CACHE_HOME", &own_cache)
            .finish()?
            .expect(0)
    };
    check(&run(LOOK)?.text())?;
    let images = || -> Result<usize> {
        let names = place.listing()?;
        Ok(names.iter().filter(|name| is_image(name)).count())
    };
    ensure!(images()? == 1, "{:?}", place.listing()?);
    ensure!(
        run("cat /etc/marker")?.text() == "from the image\n",
        "the tree has changed"
    );
    ensure!(
        images()? == 1,
        "it was packed twice: {:?}",
        place.listing()?
    );
    place.write("tree/etc/marker", "another text\n")?;
    ensure!(
        run("cat /etc/marker")?.text() == "another text\n",
        "an old image was used"
    );
    Ok(())
}
