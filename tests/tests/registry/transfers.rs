//! Transfers that work in the end: over again, from where they broke off, after a refusal.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::patience;
use casita_tests::suite::Suite;
use rustix::process::Signal;

use crate::fake::{Answer, Fake, serve};
use crate::made::{Image, index, noise};
use crate::{image as image_command, made, refused, stored};

const LARGE: usize = 3_000_000;

pub fn tests(suite: &mut Suite) {
    suite.test("pull_gives_the_manifests_digest", digest);
    suite.test("pull_again_asks_for_the_manifest_alone", again);
    suite.test("pull_by_a_known_digest_asks_nobody", known_digest);
    suite.test("pull_chooses_linux_amd64_from_an_index", platform);
    suite.test("pull_fetches_a_layer_once_that_is_there_twice", twice);
    suite.test("pull_fetches_layers_side_by_side", parallel);
    suite.test("pull_goes_on_where_a_killed_one_was", killed);
    suite.test("pull_mends_a_download_that_is_bad", bad_beginning);
    suite.test("pull_goes_on_after_a_broken_connection", broken);
    suite.test("pull_works_without_ranges", no_ranges);
    suite.test("pull_waits_as_long_as_429_says", too_many_once);
    suite.test("pull_tries_again_after_500", server_error_once);
    suite.test("pull_logs_in_with_a_token", token);
    suite.test("pull_logs_in_again_when_its_token_is_old", old_token);
    suite.test("two_pulls_of_one_image_at_once", two_at_once);
}

fn one() -> Image {
    Image::new(&[("etc/a", b"a"), ("large", &noise(LARGE))])
}

fn digest() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let fake = Fake::of(&image)?;
    let name = fake.name("app:v1");
    let told = made(&place, &["pull", &name])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    ensure!(told["references"][0] == name.as_str(), "{told}");
    ensure!(told["fetched"] == true, "{told}");
    let downloads: Vec<_> = stored(&place)?
        .into_iter()
        .filter(|name| name.starts_with("blobs"))
        .collect();
    ensure!(downloads.is_empty(), "left behind: {downloads:?}");
    Ok(())
}

fn again() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let fake = Fake::of(&image)?;
    made(&place, &["pull", &fake.name("app:v1")])?;
    let before = fake.asked("/blobs/").len();
    let told = made(&place, &["pull", &fake.name("app:v2")])?;
    ensure!(told["fetched"] == false, "{told}");
    ensure!(fake.asked("/blobs/").len() == before, "blobs came again");
    let names = told["references"].as_array().context("no names")?;
    ensure!(names.len() == 2, "{told}");
    Ok(())
}

fn known_digest() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let fake = Fake::of(&image)?;
    let name = fake.name(&format!("app@{}", image.digest()));
    made(&place, &["pull", &name])?;
    let before = fake.asked("").len();
    let told = made(&place, &["pull", &name])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    ensure!(fake.asked("").len() == before, "the registry was asked");
    Ok(())
}

fn platform() -> Result<()> {
    let place = Place::new()?;
    let (mine, other) = (one(), Image::of("arm64", &[("etc/b", b"b")]));
    let list = index(&[("linux/arm64", &other), ("linux/amd64", &mine)]);
    let expected = mine.digest();
    let fake = Fake::start(move |request| {
        if request.path.ends_with("/manifests/v1") {
            Answer::ok(&list).with("Content-Type", "application/vnd.oci.image.index.v1+json")
        } else {
            serve(&mine, request)
        }
    })?;
    let told = made(&place, &["pull", &fake.name("app:v1")])?;
    ensure!(told["digest"] == expected.as_str(), "{told}");
    Ok(())
}

fn twice() -> Result<()> {
    let place = Place::new()?;
    let image = Image::new(&[("a", b"a"), ("b", b"b"), ("a", b"a")]);
    ensure!(image.layers[0] == image.layers[2], "two layers are equal");
    let fake = Fake::of(&image)?;
    made(&place, &["pull", &fake.name("app")])?;
    ensure!(fake.asked(&image.layers[0]).len() == 1, "it came twice");
    Ok(())
}

/// No layer is served before all three have been asked for.
fn parallel() -> Result<()> {
    let place = Place::new()?;
    let image = Image::new(&[("a", b"a"), ("b", b"b"), ("c", b"c")]);
    let (served, barrier) = (image.clone(), std::sync::Barrier::new(3));
    let fake = Fake::start(move |request| {
        if served.layers.iter().any(|it| request.path.ends_with(it)) {
            barrier.wait();
        }
        serve(&served, request)
    })?;
    made(&place, &["pull", &fake.name("app")])?;
    Ok(())
}

fn killed() -> Result<()> {
    const SENT: usize = 2_000_000;
    let (place, image) = (Place::new()?, one());
    let large = image.layers[1].clone();
    let (served, tries) = (image.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |request| {
        let answer = serve(&served, request);
        if request.path.contains(&served.layers[1]) && tries.fetch_add(1, Ordering::Relaxed) == 0 {
            return Answer {
                hold: true,
                ..answer.cut(SENT)
            };
        }
        answer
    })?;
    let name = fake.name("app:v1");
    let running = image_command(&place, &["pull", &name]).start()?;
    let partial = place.path(&format!(
        "data/casita/images/blobs/{}.partial",
        large.trim_start_matches("sha256:")
    ));
    // What was sent is written before more can come.
    until(|| fs::metadata(&partial).is_ok_and(|found| found.len() == SENT as u64))?;
    running.signal(Signal::KILL)?;
    running.finish()?.expect_killed()?;
    let told = made(&place, &["pull", &name])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    let asked = fake.asked(&large);
    ensure!(asked.len() == 2, "{asked:?}");
    ensure!(asked[1].from() == SENT, "it began anew: {asked:?}");
    ensure!(!partial.exists(), "the download is still there");
    Ok(())
}

/// Waits for something that no event tells.
fn until(done: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < patience(), "it did not happen in time");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn bad_beginning() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let fake = Fake::of(&image)?;
    let blobs = place.path("data/casita/images/blobs");
    fs::create_dir_all(&blobs)?;
    let name = image.layers[1].trim_start_matches("sha256:");
    fs::write(blobs.join(format!("{name}.partial")), vec![b'?'; 1000])?;
    let told = made(&place, &["pull", &fake.name("app:v1")])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    let asked: Vec<_> = fake
        .asked(name)
        .iter()
        .map(crate::fake::Request::from)
        .collect();
    ensure!(asked == [1000, 0], "{asked:?}");
    Ok(())
}

fn broken() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let served = image.clone();
    // Each connection brings a million bytes at most.
    let fake = Fake::start(move |request| serve(&served, request).cut(1_000_000))?;
    let told = made(&place, &["pull", &fake.name("app:v1")])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    let asked = fake.asked(&image.layers[1]);
    ensure!(
        asked.len() == 4 && asked[3].from() == 3_000_000,
        "{asked:?}"
    );
    Ok(())
}

fn no_ranges() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let (served, tries) = (image.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |request| {
        let mut plain = request.clone();
        plain.headers.remove("range");
        let answer = serve(&served, &plain);
        if request.path.contains(&served.layers[1]) && tries.fetch_add(1, Ordering::Relaxed) == 0 {
            return answer.cut(1_000_000);
        }
        answer
    })?;
    let told = made(&place, &["pull", &fake.name("app:v1")])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    Ok(())
}

fn too_many_once() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let (served, tries) = (image.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |request| {
        if request.path.contains("/manifests/") && tries.fetch_add(1, Ordering::Relaxed) == 0 {
            return Answer::status(429).with("Retry-After", "1");
        }
        serve(&served, request)
    })?;
    let start = Instant::now();
    made(&place, &["pull", &fake.name("app:v1")])?;
    ensure!(start.elapsed() >= Duration::from_secs(1), "it did not wait");
    ensure!(fake.asked("/manifests/").len() == 2);
    Ok(())
}

fn server_error_once() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let (served, tries) = (image.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |request| {
        if request.path.contains("/blobs/") && tries.fetch_add(1, Ordering::Relaxed) < 2 {
            return Answer::status(503);
        }
        serve(&served, request)
    })?;
    made(&place, &["pull", &fake.name("app:v1")])?;
    Ok(())
}

/// A registry that wants tokens, which it gives for `user` and `secret`. `good` says which are.
fn with_tokens(image: &Image, good: impl Fn(&str) -> bool + Send + Sync + 'static) -> Result<Fake> {
    let (image, given) = (image.clone(), AtomicUsize::new(0));
    Fake::start(move |request| {
        if request.path.starts_with("/token?") {
            // user:secret
            let known = request.header("authorization") == "Basic dXNlcjpzZWNyZXQ=";
            let scope = request
                .path
                .contains("scope=repository%3Ateam%2Fapp%3Apull");
            let service = request.path.contains("service=here");
            if !(known && scope && service) {
                return Answer::status(401);
            }
            let token = format!("t{}", given.fetch_add(1, Ordering::Relaxed));
            return Answer::ok(format!("{{\"token\":\"{token}\"}}").as_bytes());
        }
        match request.header("authorization").strip_prefix("Bearer ") {
            Some(token) if good(token) => serve(&image, request),
            _ => {
                let realm = format!(
                    "Bearer realm=\"http://{}/token\",service=\"here\"",
                    request.host
                );
                Answer::status(401).with("WWW-Authenticate", &realm)
            }
        }
    })
}

fn token() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let fake = with_tokens(&image, |token| token == "t0")?;
    let login = |auth: &str| {
        format!(
            "{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}",
            fake.address()
        )
    };
    // As docker has it, and where docker has it.
    fs::create_dir(place.path("home/.docker"))?;
    place.write("home/.docker/config.json", login("dXNlcjpzZWNyZXQ="))?;
    let name = fake.name("team/app:v1");
    let told = made(&place, &["pull", &name])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    let tokens = fake.asked("/token");
    ensure!(tokens.len() == 1, "one token is enough: {tokens:?}");

    let other = Place::new()?;
    let finished = image_command(&other, &["pull", &name]).finish()?;
    refused(
        &other,
        &finished,
        &["(401)", &fake.address(), "team/app", "docker login"],
    )?;
    other.write("wrong.json", login("dXNlcjp3cm9uZw=="))?;
    let finished = image_command(&other, &["pull", "--authfile", "wrong.json", &name]).finish()?;
    refused(&other, &finished, &["(401)", "\"user\"", "wrong.json"])
}

fn old_token() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let uses = AtomicUsize::new(0);
    // The first token is good for two requests.
    let good = move |token: &str| token != "t0" || uses.fetch_add(1, Ordering::Relaxed) < 2;
    let fake = with_tokens(&image, good)?;
    place.write(
        "logins.json",
        format!(
            "{{\"auths\":{{\"{}\":{{\"username\":\"user\",\"password\":\"secret\"}}}}}}",
            fake.address()
        ),
    )?;
    let name = fake.name("team/app:v1");
    let told = made(&place, &["pull", "--authfile", "logins.json", &name])?;
    ensure!(told["digest"] == image.digest().as_str(), "{told}");
    ensure!(fake.asked("/token").len() == 2, "two tokens were needed");
    Ok(())
}

fn two_at_once() -> Result<()> {
    let (place, image) = (Place::new()?, one());
    let fake = Fake::of(&image)?;
    let names = [fake.name("app:v1"), fake.name("app:v2")];
    let running: Vec<_> = names
        .iter()
        .map(|name| image_command(&place, &["pull", name]).start())
        .collect::<Result<_>>()?;
    for running in running {
        let finished = running.finish()?.expect(0)?;
        ensure!(finished.text().trim() == image.digest(), "{finished}");
    }
    let left: Vec<_> = stored(&place)?
        .into_iter()
        .filter(|name| name.starts_with("blobs"))
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
