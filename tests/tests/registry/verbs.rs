//! `casita image`'s other verbs.

use std::fs;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use serde_json::Value;

use crate::fake::Fake;
use crate::made::Image;
use crate::{image, made, refused, stored};

pub fn missing_helper(suite: &mut Suite) {
    suite.test("a_missing_helper_program_is_named", no_helper);
}

pub fn tests(suite: &mut Suite) {
    suite.test("images_are_listed", listed);
    suite.test("images_are_inspected", inspected);
    suite.test("the_last_name_takes_the_image_along", removed);
    suite.test("an_image_that_a_vm_uses_stays", used);
    suite.test("prune_asks_or_is_forced", pruned);
    suite.test("dockers_short_verbs_work", short_verbs);
}

fn no_helper() -> Result<()> {
    let place = Place::new()?;
    let missing = place.text("tmp");
    let finished = image(&place, &["pull", "x"])
        .env("CASITA_LIBEXEC", &missing)
        .finish()?;
    refused(&place, &finished, &["casita-image", &missing, "make build"])
}

/// A store with one image of two names and one of one.
fn filled() -> Result<(Place, Image, Image)> {
    let place = Place::new()?;
    let (one, two) = (Image::new(&[("a", b"a")]), Image::new(&[("b", b"b")]));
    Image::layout(&[("one", &one), ("two", &two)], &place.path("layout"))?;
    for name in ["app:one", "other:one", "app:two"] {
        made(&place, &["import", "layout", name])?;
    }
    Ok((place, one, two))
}

fn json(place: &Place, arguments: &[&str]) -> Result<Value> {
    let finished = image(place, arguments).finish()?.expect(0)?;
    serde_json::from_slice(&finished.stdout).with_context(|| format!("no JSON\n{finished}"))
}

fn listed() -> Result<()> {
    let empty = Place::new()?;
    let none = json(&empty, &["ls", "--format", "json"])?;
    ensure!(none == serde_json::json!([]), "{none}");
    let (place, one, two) = filled()?;
    let list = json(&place, &["ls", "--format", "json"])?;
    let digests: Vec<_> = list
        .as_array()
        .context("no list")?
        .iter()
        .map(|it| &it["digest"])
        .collect();
    ensure!(digests.len() == 2, "{list}");
    let finished = image(&place, &["ls"]).finish()?.expect(0)?;
    let finished = finished.says(&["REPOSITORY", "IMAGE ID", "app ", "other "])?;
    ensure!(finished.text().lines().count() == 4, "{finished}");
    let finished = image(&place, &["ls", "-q"]).finish()?.expect(0)?;
    finished.says(&[&one.digest(), &two.digest()]).map(drop)
}

fn inspected() -> Result<()> {
    let (place, one, two) = filled()?;
    let object = json(&place, &["inspect", "app:one"])?;
    ensure!(object["digest"] == one.digest().as_str(), "{object}");
    ensure!(object["config"]["cmd"][0] == "/bin/true", "{object}");
    ensure!(object["config"]["architecture"] == "amd64", "{object}");
    let list = json(&place, &["inspect", "app:one", &two.digest()[7..19]])?;
    ensure!(list[1]["digest"] == two.digest().as_str(), "{list}");
    let finished = image(&place, &["inspect", "app:one", "none"])
        .finish()?
        .expect(125)?;
    ensure!(
        finished.complaint().contains("\"none\"") && finished.stdout.is_empty(),
        "{finished}"
    );
    Ok(())
}

fn removed() -> Result<()> {
    let (place, one, _) = filled()?;
    let finished = image(&place, &["rm", "app:one"]).finish()?.expect(0)?;
    ensure!(finished.text() == "Untagged: app:one\n", "{finished}");
    let finished = image(&place, &["rm", "other:one"]).finish()?.expect(0)?;
    let expected = format!("Untagged: other:one\nDeleted: {}\n", one.digest());
    ensure!(finished.text() == expected, "{finished}");
    let finished = image(&place, &["rm", "app:one", "app:two"])
        .finish()?
        .expect(125)?;
    ensure!(finished.complaint().contains("\"app:one\""), "{finished}");
    image(&place, &["rm", "-f", "app:one"])
        .finish()?
        .expect(0)?;
    let left = stored(&place)?;
    ensure!(
        left == ["refs.json"],
        "the second was to be removed too: {left:?}"
    );
    Ok(())
}

fn used() -> Result<()> {
    let (place, one, _) = filled()?;
    let vm = place.path("data/casita/vms/0123456789ab");
    fs::create_dir_all(&vm)?;
    let record = serde_json::json!({
        "id": "0123456789ab", "name": "a", "created": 1, "config": {},
        "image": { "reference": "app:one", "digest": one.digest() },
        "rm": false, "restart": "no", "skip_kvm_check": false,
    });
    fs::write(vm.join("config.json"), record.to_string())?;
    fs::write(vm.join("lock"), "")?;
    image(&place, &["rm", "-f", &one.digest()])
        .finish()?
        .expect(0)?;
    image(&place, &["prune", "-af"]).finish()?.expect(0)?;
    let list = json(&place, &["ls", "--format", "json"])?;
    ensure!(
        list.as_array().is_some_and(|list| list.len() == 1),
        "{list}"
    );
    ensure!(list[0]["digest"] == one.digest().as_str(), "{list}");
    fs::remove_dir_all(vm)?;
    let finished = image(&place, &["prune", "-f"]).finish()?.expect(0)?;
    finished.says(&["Deleted: ", &one.digest(), "Reclaimed "])?;
    Ok(())
}

fn pruned() -> Result<()> {
    let (place, ..) = filled()?;
    let blobs = place.path("data/casita/images/blobs");
    fs::create_dir_all(&blobs)?;
    fs::write(blobs.join("0.partial"), "x")?;
    let finished = image(&place, &["prune"]).finish()?.expect(125)?;
    ensure!(finished.complaint().contains("--force"), "{finished}");
    ensure!(blobs.join("0.partial").exists(), "it went on all the same");
    image(&place, &["prune", "--force"]).finish()?.expect(0)?;
    ensure!(!blobs.join("0.partial").exists(), "a download was left");
    let list = json(&place, &["ls", "--format", "json"])?;
    ensure!(
        list.as_array().is_some_and(|list| list.len() == 2),
        "{list}"
    );
    image(&place, &["prune", "--all", "--force"])
        .finish()?
        .expect(0)?;
    let left = stored(&place)?;
    ensure!(left == ["refs.json"], "{left:?}");
    Ok(())
}

fn short_verbs() -> Result<()> {
    let (place, one) = (Place::new()?, Image::new(&[("a", b"a")]));
    let fake = Fake::of(&one)?;
    let name = fake.name("app:v1");
    let finished = place.casita(["pull", &name]).finish()?.expect(0)?;
    ensure!(finished.text().trim() == one.digest(), "{finished}");
    place
        .casita(["images"])
        .finish()?
        .expect(0)?
        .says(&["app"])?;
    place
        .casita(["rmi", &name])
        .finish()?
        .expect(0)?
        .says(&["Deleted"])?;
    Ok(())
}
