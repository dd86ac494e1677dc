//! Networks of VMs: who reaches whom, by which name, and what becomes of it when one goes.

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use rustix::process::{Pid, Signal, kill_process};

use super::net::{SERVE, until};

pub fn tests(suite: &mut Suite) {
    let passt = || machine::lacks("passt", "passt");
    suite.test_if(
        passt(),
        "vms_of_a_network_reach_each_other_by_name_and_others_do_not",
        by_name,
    );
    suite.test_if(
        passt(),
        "a_killed_vm_is_gone_from_its_network_and_comes_back",
        killed,
    );
}

/// Asks for a page, and gives what comes to `then`: the wget of a static busybox ends by a signal where
/// there is a resolver.
fn request(host: &str, page: &str, then: &str) -> String {
    format!("printf 'GET {page} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} 80 | {then}")
}

fn create(place: &Place, name: &str) -> Result<()> {
    place
        .casita(["network", "create", "--ipv6", name])
        .finish()?
        .expect(0)?;
    Ok(())
}

fn by_name() -> Result<()> {
    let place = Place::new()?;
    create(&place, "yard")?;
    create(&place, "other")?;
    let small = ["--memory", "96M"];
    let start =
        |options: &[&str], script: &str| Vm::start(&place, &[&small, options].concat(), script);
    let web = start(
        &[
            "--network",
            "yard",
            "--name",
            "web",
            "--network-alias",
            "www",
        ],
        SERVE,
    )?;
    let near = start(&["--network", "yard", "--egress", "none"], "sleep 10000")?;
    let far = start(&["--network", "other"], "sleep 10000")?;
    let alone = start(&["--net", "user"], "sleep 10000")?;
    let network = &web.inspect()?["network"];
    ensure!(
        network["network"] == "yard" && network["names"][1] == "www",
        "{network}"
    );
    let own = |index: usize| -> Result<String> {
        let address = network["addresses"][index].as_str().context("no address")?;
        Ok(address.split('/').next().unwrap_or_default().to_owned())
    };
    let (address, address6) = (own(0)?, own(1)?);
    // A static busybox knows names by nslookup alone.
    for name in ["web", "www", "web.yard"] {
        for (kind, address) in [("a", &address), ("aaaa", &address6)] {
            let text = near.asks(&format!("nslookup -type={kind} {name}"))?;
            ensure!(text.contains(address.as_str()), "{name} {kind}: {text}");
        }
    }
    for host in [&address, &address6] {
        let get = || near.asks(&request(host, "/", "tail -n 1"));
        ensure!(until(get)? == "hello\n", "{host}");
    }
    // Much more than a socket's buffer, both ways.
    let sum = web.asks("head -c 20000000 /dev/urandom > /www/large; md5sum < /www/large")?;
    let came = near.asks(&request(&address, "/large", "tail -c 20000000 | md5sum"))?;
    ensure!(came == sum, "{came} instead of {sum}");
    for stranger in [&far, &alone] {
        let script = format!("nc -w 2 {address} 80 < /dev/null 2>/dev/null || echo unreachable");
        ensure!(stranger.asks(&script)? == "unreachable\n");
    }
    let text = far.asks("nslookup web.yard 2>&1; true")?;
    ensure!(!text.contains(&address), "{text}");
    let refused = place
        .casita(["network", "rm", "yard"])
        .finish()?
        .expect(125)?;
    ensure!(refused.complaint().contains("web"), "{refused}");
    let listed = place
        .casita(["network", "inspect", "yard"])
        .finish()?
        .expect(0)?;
    listed.says(&["web,www", &address])?;
    Ok(())
}

fn killed() -> Result<()> {
    let place = Place::new()?;
    create(&place, "yard")?;
    let small = ["--memory", "96M", "--network", "yard"];
    let script = SERVE.replace("mkdir", "mkdir -p");
    let web = Vm::start(&place, &[&small[..], &["--name", "web"]].concat(), &script)?;
    let near = Vm::start(&place, &small, "sleep 10000")?;
    let address = web.inspect()?["network"]["addresses"][0].clone();
    let address = address.as_str().and_then(|text| text.split('/').next());
    let address = address.context("no address")?.to_owned();
    let ask = || {
        let request = request(&address, "/", "tail -n 1");
        near.asks(&format!("nslookup web && {request}"))
    };
    ensure!(until(ask)?.ends_with("hello\n"));
    let before = web.inspect()?["network"]["addresses"].clone();
    kill_process(Pid::from_raw(web.pid()?).context("no pid")?, Signal::KILL)?;
    web.ends_with(137)?;
    let text = near.asks("nslookup web.yard 2>&1; true")?;
    ensure!(!text.contains(&address), "{text}");
    web.casita("start", &[]).finish()?.expect(0)?;
    ensure!(until(ask)?.ends_with("hello\n"));
    ensure!(
        web.inspect()?["network"]["addresses"] == before,
        "it has another address"
    );
    web.casita("stop", &["-t", "0"]).finish()?.expect(0)?;
    near.casita("stop", &["-t", "0"]).finish()?.expect(0)?;
    let refused = place
        .casita(["network", "rm", "yard"])
        .finish()?
        .expect(125)?;
    ensure!(refused.complaint().contains("casita rm"), "{refused}");
    place
        .casita(["network", "rm", "-f", "yard"])
        .finish()?
        .expect(0)?;
    Ok(())
}
