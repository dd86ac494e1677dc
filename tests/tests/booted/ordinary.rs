//! All of it as an ordinary user, who has no right of root's but to open `/dev/kvm`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::{NOBODY, Place};
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;

use super::net::{get, local, until};

const KVM: &str = "/dev/kvm";

pub fn tests(suite: &mut Suite) {
    let lacks = || {
        Place::lacks_ordinary()
            .or_else(|| machine::lacks("passt", "passt"))
            .or_else(lacks_kvm)
    };
    suite.test_if(lacks(), "an_ordinary_user_runs_and_publishes", life);
    suite.test_if(lacks(), "an_ordinary_users_monitor_is_confined", confined);
    suite.test_if(lacks(), "an_ordinary_user_runs_untrusted_code", sandbox);
}

/// Why an ordinary user has no KVM, if they have none. In the lab it is given to all.
fn lacks_kvm() -> Option<String> {
    if machine::is_lab() {
        let _ = fs::set_permissions(KVM, PermissionsExt::from_mode(0o666));
    }
    let open = fs::metadata(KVM).is_ok_and(|meta| meta.mode() & 0o6 == 0o6);
    (!open).then(|| format!("needs {KVM} to be everybody's"))
}

/// Whose a file is, and what is in it.
fn owned(path: &Path) -> Result<(u32, String)> {
    let owner = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok((owner.uid(), fs::read_to_string(path)?))
}

fn life() -> Result<()> {
    let place = Place::of_an_ordinary_user()?;
    fs::create_dir_all(place.path("share"))?;
    fs::create_dir_all(place.path("image/etc"))?;
    place.write("share/in", "from the host\n")?;
    place.write("image/etc/motd", "of an image\n")?;
    place.give()?;
    let say = |words: &[&str]| -> Result<String> {
        let program = place.casita(words.iter().copied());
        Ok(program.finish()?.expect(0)?.text())
    };
    say(&["image", "import", "image", "mine"])?;
    ensure!(say(&["image", "ls"])?.contains("mine"));
    let share = format!("{}:/s", place.text("share"));
    let options = ["--name", "web", "-p", "127.0.0.1::80", "-v", &share];
    let options = [&options[..], &["-v", "store:/www"]].concat();
    let script = "cat /s/in; echo from the guest > /s/out; echo hello > /www/index.html; \
                  exec httpd -f -p 80 -h /www";
    let vm = Vm::start(&place, &options, script)?;
    let server = local(&vm, 80)?;
    ensure!(until(|| get(server))? == "hello\n");
    ensure!(say(&["logs", "web"])? == "from the host\n");
    ensure!(owned(&place.path("share/out"))? == (NOBODY, "from the guest\n".to_owned()));
    ensure!(vm.asks("id -u")? == "0\n");
    for verb in ["pause", "resume", "restart"] {
        say(&[verb, "web"])?;
    }
    let server = local(&vm, 80)?;
    ensure!(until(|| get(server))? == "hello\n");
    say(&["cp", "web:/www/index.html", "copied"])?;
    ensure!(owned(&place.path("copied"))? == (NOBODY, "hello\n".to_owned()));
    say(&["stop", "web"])?;
    say(&["rm", "web"])?;
    let store = [
        "--rm",
        "-v",
        "store:/www:ro",
        "--",
        "cat",
        "/www/index.html",
    ];
    ensure!(say(&[&["run"], &store[..]].concat())? == "hello\n");
    ensure!(say(&["ps", "-a", "-q"])?.is_empty());
    Ok(())
}

/// Every layer but those that are root's to give.
fn confined() -> Result<()> {
    let place = Place::of_an_ordinary_user()?;
    let vm = Vm::start(&place, &[], "sleep 100000")?;
    let inspected = vm.inspect()?;
    let layers = inspected["sandbox"]["layers"].as_array();
    let layers = layers.with_context(|| inspected.to_string())?;
    ensure!(layers.len() > 10, "{layers:?}");
    for layer in layers {
        let name = layer["layer"].as_str().unwrap_or_default();
        let is = layer["is"].as_str().unwrap_or_default();
        let given = matches!(name, "cgroup-limits" | "descriptors");
        ensure!(given || is == "on", "{layer}");
    }
    Ok(())
}

fn sandbox() -> Result<()> {
    let place = Place::of_an_ordinary_user()?;
    place.write("code", "echo $((6 * 7)) >answer; cat answer; exit 5")?;
    let options = ["sandbox", "--put", "code:/work/code", "--workdir", "/work"];
    let words = ["--take", "/work/answer:answer", "--", "sh", "code"];
    let finished = place.casita([&options[..], &words].concat()).finish()?;
    ensure!(finished.expect(5)?.text() == "42\n");
    ensure!(owned(&place.path("answer"))? == (NOBODY, "42\n".to_owned()));
    Ok(())
}
