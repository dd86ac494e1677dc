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
    let ask = |name: &str| until(|| near.asks(&format!("wget -T 5 -q -O - http://{name}/")));
    for name in ["web", "www", "web.yard"] {
        ensure!(ask(name)? == "hello\n", "{name}");
    }
    near.asks("ping -4 -c 1 -W 5 web && ping -6 -c 1 -W 5 web")?;
    // Much more than a socket's buffer, both ways.
    web.asks("dd if=/dev/urandom of=/www/large bs=64k count=320 2>/dev/null; cd /www; md5sum large > sum")?;
    near.asks("wget -q -O large http://web/large && wget -q -O - http://web/sum | md5sum -c")?;
    let network = &web.inspect()?["network"];
    ensure!(
        network["network"] == "yard" && network["names"][1] == "www",
        "{network}"
    );
    let address = network["addresses"][0].as_str().context("no address")?;
    let address = address.split('/').next().unwrap_or_default().to_owned();
    for stranger in [&far, &alone] {
        for target in [address.as_str(), "web"] {
            let script =
                format!("wget -T 2 -q -O - http://{target}/ 2>/dev/null || echo unreachable");
            ensure!(stranger.asks(&script)? == "unreachable\n", "{target}");
        }
    }
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
    let ask = || near.asks("wget -T 5 -q -O - http://web/");
    ensure!(until(ask)? == "hello\n");
    let before = web.inspect()?["network"]["addresses"].clone();
    kill_process(Pid::from_raw(web.pid()?).context("no pid")?, Signal::KILL)?;
    web.ends_with(137)?;
    let text = near.asks("wget -T 2 -q -O - http://web/ 2>/dev/null || echo gone")?;
    ensure!(text == "gone\n", "{text}");
    web.casita("start", &[]).finish()?.expect(0)?;
    ensure!(until(ask)? == "hello\n");
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
