//! Pulls that can't work: one line that says why, and nothing left behind.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::Program;
use casita_tests::suite::Suite;

use crate::fake::{Answer, Fake, Request, serve};
use crate::made::{Image, digest, index, noise, tar};
use crate::refused;

pub fn tests(suite: &mut Suite) {
    suite.test("a_registry_that_is_not_there", unreachable);
    suite.test("a_name_that_is_none", bad_names);
    suite.test("an_answer_of_401", || {
        status(401, &["(401)", "app", "login"])
    });
    suite.test("an_answer_of_403", || {
        status(403, &["(403)", "app", "anybody"])
    });
    suite.test("an_answer_of_404", || status(404, &["(404)", "app:v1"]));
    suite.test("an_answer_of_418", || status(418, &["418", "app:v1"]));
    suite.test("answers_of_429_for_ever", too_many);
    suite.test("an_answer_of_429_that_asks_for_an_hour", an_hour);
    suite.test("answers_of_500_for_ever", || {
        status(500, &["500", "app:v1"])
    });
    suite.test("a_blob_that_is_not_there", lost_blob);
    suite.test("a_blob_with_another_content", wrong_blob);
    suite.test("a_blob_that_ends_too_early", truncated);
    suite.test("a_blob_that_is_longer_than_announced", too_long);
    suite.test("a_layer_that_is_no_tar", no_tar);
    suite.test("a_manifest_with_another_digest", wrong_manifest);
    suite.test("a_manifest_without_an_end", endless_manifest);
    suite.test("a_manifest_that_is_none", no_manifest);
    suite.test("an_image_for_another_processor", other_processor);
    suite.test("an_index_without_this_processor", no_platform);
    suite.test("a_token_that_breaks_headers", bad_token);
    suite.test("a_token_server_that_is_not_there", no_token_server);
    suite.test("a_login_that_a_helper_keeps", helper);
    suite.test("logins_that_are_none", bad_logins);
}

/// Without progress, which may take a line when the registry is asked again and again.
fn image_command(place: &Place, arguments: &[&str]) -> Program {
    place.casita([&["-q", "image"], arguments].concat())
}

fn fails(
    rule: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    parts: &[&str],
) -> Result<Fake> {
    let place = Place::new()?;
    let fake = Fake::start(rule)?;
    let finished = image_command(&place, &["pull", &fake.name("app:v1")]).finish()?;
    refused(&place, &finished, parts)?;
    Ok(fake)
}

fn one() -> Image {
    Image::new(&[("etc/a", b"a"), ("large", &noise(300_000))])
}

fn status(status: u16, parts: &[&str]) -> Result<()> {
    let rule = move |_: &Request| Answer::status(status).with("Retry-After", "0");
    fails(rule, parts).map(drop)
}

fn unreachable() -> Result<()> {
    let place = Place::new()?;
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let name = format!("{free}/app");
    let finished = image_command(&place, &["pull", &name]).finish()?;
    let host = free.to_string();
    refused(&place, &finished, &["can't be reached", &host, "refused"])?;
    let finished = image_command(&place, &["pull", "no-such-host.invalid/app"]).finish()?;
    refused(
        &place,
        &finished,
        &["can't be reached", "no-such-host.invalid"],
    )
}

fn bad_names() -> Result<()> {
    let place = Place::new()?;
    for name in ["App", "a//b", "app:", "app@sha256:1", "", "../app"] {
        let finished = image_command(&place, &["pull", name]).finish()?;
        refused(&place, &finished, &["no image name"])?;
    }
    Ok(())
}

fn too_many() -> Result<()> {
    let rule = |_: &Request| Answer::status(429).with("Retry-After", "0");
    let fake = fails(rule, &["(429)", "later"])?;
    let tries = fake.asked("/manifests/").len();
    ensure!((2..=10).contains(&tries), "{tries} tries");
    Ok(())
}

fn an_hour() -> Result<()> {
    let rule = |_: &Request| Answer::status(429).with("Retry-After", "3600");
    let fake = fails(rule, &["(429)", "in 3600 s"])?;
    ensure!(fake.asked("/manifests/").len() == 1, "it asked again");
    Ok(())
}

fn lost_blob() -> Result<()> {
    let mut image = one();
    let lost = image.layers[1].clone();
    image.blobs.remove(&lost);
    let rule = move |request: &Request| serve(&image, request);
    fails(rule, &["(404)", &lost]).map(drop)
}

fn wrong_blob() -> Result<()> {
    let mut image = one();
    let place = image.layers[1].clone();
    let blob = image.blobs.entry(place.clone()).or_default();
    blob[2000] ^= 1;
    let got = digest(blob);
    let rule = move |request: &Request| serve(&image, request);
    fails(rule, &["something else", &place, &got]).map(drop)
}

fn truncated() -> Result<()> {
    let image = one();
    let (layer, served) = (image.layers[1].clone(), image.clone());
    // All connections break at the same place.
    let rule = move |request: &Request| {
        let answer = serve(&served, request);
        if request.path.contains("/blobs/") {
            answer.cut(100_000_usize.saturating_sub(request.from()))
        } else {
            answer
        }
    };
    fails(rule, &["only 100000 of the", &layer]).map(drop)
}

fn too_long() -> Result<()> {
    let image = one();
    let layer = image.layers[1].clone();
    let rule = {
        let layer = layer.clone();
        move |request: &Request| {
            let mut answer = serve(&image, request);
            if request.path.contains(&layer) {
                answer.endless = true;
            }
            answer
        }
    };
    fails(rule, &["more than the", &layer]).map(drop)
}

fn no_tar() -> Result<()> {
    let good = Image::new(&[("a", b"a")]);
    let text = String::from_utf8(good.manifest.clone())?;
    let layer = vec![b'?'; tar("a", b"a").len()];
    let mut image = good.clone();
    image.manifest = text.replace(&good.layers[0], &digest(&layer)).into_bytes();
    image.blobs.insert(digest(&layer), layer);
    let rule = move |request: &Request| serve(&image, request);
    fails(rule, &["layer"]).map(drop)
}

fn wrong_manifest() -> Result<()> {
    let (asked, other) = (one(), Image::new(&[("b", b"b")]));
    let expected = asked.digest();
    let fake = Fake::start(move |request| {
        if request.path.contains("/manifests/") {
            Answer::ok(&other.manifest)
        } else {
            serve(&asked, request)
        }
    })?;
    let place = Place::new()?;
    let name = fake.name(&format!("app@{expected}"));
    let finished = image_command(&place, &["pull", &name]).finish()?;
    refused(&place, &finished, &["something else", &expected])
}

fn endless_manifest() -> Result<()> {
    let rule = |request: &Request| Answer {
        endless: request.path.contains("/manifests/"),
        ..Answer::ok(&vec![b' '; 65536])
    };
    fails(rule, &["more than", "manifest"]).map(drop)
}

fn no_manifest() -> Result<()> {
    let html = |_: &Request| Answer::ok(b"<html></html>").with("Content-Type", "text/html");
    fails(html, &["app:v1", "manifest"])?;
    let old = |_: &Request| Answer::ok(b"{\"schemaVersion\":1}");
    fails(old, &["app:v1", "schema 1"])?;
    let chart = |_: &Request| {
        let digest = digest(b"");
        let config = "application/vnd.cncf.helm.config.v1+json";
        let manifest = format!(
            "{{\"schemaVersion\":2,\"layers\":[],\
             \"config\":{{\"mediaType\":\"{config}\",\"digest\":\"{digest}\",\"size\":0}}}}"
        );
        Answer::ok(manifest.as_bytes())
    };
    fails(chart, &["app:v1", "no image", "helm"]).map(drop)
}

fn other_processor() -> Result<()> {
    let image = Image::of("arm64", &[("a", b"a")]);
    let layer = image.layers[0].clone();
    let rule = move |request: &Request| serve(&image, request);
    let fake = fails(rule, &["linux/arm64", "linux/amd64"])?;
    ensure!(fake.asked(&layer).is_empty(), "its layer was fetched");
    Ok(())
}

fn no_platform() -> Result<()> {
    let image = one();
    let list = index(&[("linux/arm64", &image), ("windows/amd64", &image)]);
    let rule = move |_: &Request| Answer::ok(&list);
    fails(
        rule,
        &["app:v1", "linux/arm64, windows/amd64", "linux/amd64"],
    )
    .map(drop)
}

fn challenge(request: &Request, at: &str) -> Answer {
    let realm = format!("Bearer realm=\"{at}\",service=\"{}\"", request.host);
    Answer::status(401).with("WWW-Authenticate", &realm)
}

fn bad_token() -> Result<()> {
    let rule = |request: &Request| {
        if request.path.starts_with("/token") {
            return Answer::ok(b"{\"token\":\"a\\nb: c\"}");
        }
        challenge(request, &format!("http://{}/token", request.host))
    };
    fails(rule, &["token", "header"]).map(drop)
}

fn no_token_server() -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let rule = move |request: &Request| challenge(request, &format!("http://{free}/token"));
    fails(rule, &["token server", "refused"]).map(drop)
}

fn helper() -> Result<()> {
    let place = Place::new()?;
    let fake = Fake::start(|_| Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\""))?;
    place.write("logins.json", "{\"credsStore\":\"desktop\"}")?;
    let name = fake.name("app:v1");
    let arguments = ["pull", "--authfile", "logins.json", &name];
    let finished = image_command(&place, &arguments).finish()?;
    let parts = [
        "(401)",
        "docker-credential-desktop",
        "logins.json",
        "--authfile",
    ];
    refused(&place, &finished, &parts)
}

fn bad_logins() -> Result<()> {
    let place = Place::new()?;
    let fake = Fake::of(&one())?;
    place.write("text", "no logins")?;
    let name = fake.name("app:v1");
    for (file, says) in [
        ("none", "No such file"),
        ("text", "no logins"),
        ("home", "directory"),
    ] {
        let finished = image_command(&place, &["pull", "--authfile", file, &name]).finish()?;
        refused(&place, &finished, &[file, says])?;
    }
    Ok(())
}
