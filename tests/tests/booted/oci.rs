//! Images as registries have them: what an importer may get wrong, and real programs.

use anyhow::{Result, ensure};
use casita_tests::oci;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use serde_json::Value;

pub fn tests(suite: &mut Suite) {
    suite.test_if(
        oci::lacks("layers"),
        "an_images_configuration_counts",
        configuration,
    );
    suite.test_if(oci::lacks("layers"), "layers_are_applied_in_order", layers);
    suite.test_if(oci::lacks("debian"), "debian_runs", debian);
    suite.test_if(oci::lacks("nginx"), "nginx_answers_and_logs", nginx);
    suite.test_if(
        oci::lacks("python"),
        "python_runs_a_script_from_its_input",
        python,
    );
}

/// A place that has the images.
fn place() -> Result<Place> {
    let place = Place::new()?;
    oci::share(&place)?;
    Ok(place)
}

fn run(place: &Place, words: &[&str]) -> Result<String> {
    let finished = place
        .casita([&["run", "--rm"], words].concat())
        .finish()?
        .expect(0)?;
    ensure!(finished.stderr.is_empty(), "a complaint\n{finished}");
    Ok(finished.text())
}

/// Imported here and now, into a store of its own.
fn configuration() -> Result<()> {
    let place = Place::new()?;
    let import = ["image", "import", &oci::layout("layers")?, "layers"];
    place.casita(import).finish()?.expect(0)?;
    let text = run(&place, &["layers"])?;
    let expected = "argument: of the\nargument: image\nuser: 1234:50 ";
    ensure!(
        text.starts_with(expected),
        "{expected}\nwas expected\n{text}"
    );
    let expected = "in: /made/for/it\nvariables: two words, image, /home/app\n";
    ensure!(text.ends_with(expected), "{expected}\nwas expected\n{text}");
    // The command line goes over it; words of its own take the place of the image's, and they need
    // no dashes before them.
    let options = [
        "-e",
        "CHANGED=run",
        "-u",
        "0",
        "-w",
        "/tmp",
        "-e",
        "HOME=/here",
    ];
    let expected =
        "argument: x\nargument: -y\nuser: 0:0 0\nin: /tmp\nvariables: two words, run, /here\n";
    for words in [&["layers", "x", "-y"][..], &["layers", "--", "x", "-y"]] {
        let text = run(&place, &[&options, words].concat())?;
        ensure!(text == expected, "{expected}\nwas expected\n{text}");
    }
    let text = run(&place, &["--entrypoint", "/bin/echo", "layers"])?;
    ensure!(
        text == "\n",
        "an entrypoint takes no words of the image's: {text:?}"
    );
    let finished = place
        .casita(["image", "inspect", "layers"])
        .finish()?
        .expect(0)?;
    let inspected: Value = serde_json::from_slice(&finished.stdout)?;
    let text = inspected.to_string();
    for part in [
        "/made/for/it",
        "SIGUSR1",
        "8080/tcp",
        "app:staff",
        "two words",
    ] {
        ensure!(text.contains(part), "{part} was expected\n{finished}");
    }
    // Its signal is the one that a stop sends.
    let words = ["--entrypoint", "/bin/sh", "layers", "-c"];
    let script = "trap 'exit 8' USR1; echo ready; while :; do sleep 100000 & wait; done";
    let vm = Vm::run(&place, &[&words[..], &[script]].concat())?;
    vm.says("ready")?;
    vm.casita("stop", &[]).finish()?.expect(0)?;
    vm.ends_with(8)
}

const LOOK: &str = r"
    cd /plain
    ls /opaque /hard /type/file; ls | grep -v nnn
    cat changed back kept owned /type/folder /type/file/file /hard/one /hard/two
    stat -c '%n %a %u %g %h' /tmp owned /hard/one /hard/two /bin/setuid
    stat -c '%n %F %t %T' /nodes/null /nodes/disk /nodes/pipe /type/folder
    stat -c '%n %s %Y' kept; stat -c '%s' holes; tail -c 3 holes; echo
    readlink upwards; readlink absolute; ls | grep -c 'n\{255\}'
";

const SEEN: &str = "\
/hard:
one
two

/opaque:
new

/type/file:
file
absolute
back
changed
holes
kept
owned
upwards
second version
back again
kept
owned
now a file
now in a folder
no longer linked
linked
/tmp 1777 0 0 2
owned 640 1234 4321 1
/hard/one 644 0 0 1
/hard/two 644 0 0 1
/bin/setuid 4755 0 0 1
/nodes/null character special file 1 3
/nodes/disk block special file 7 c8
/nodes/pipe fifo 0 0
/type/folder regular file 0 0
kept 5 1000000000
3145731
end
../hard/../hard/one
/etc/passwd
1
";

fn layers() -> Result<()> {
    let place = place()?;
    let shell = ["-u", "0", "--entrypoint", "/bin/sh", "layers", "-c", LOOK];
    let text = run(&place, &shell)?;
    // How many entries a folder has shows in its links with some file systems only.
    let text = text.replace("/tmp 1777 0 0 1\n", "/tmp 1777 0 0 2\n");
    ensure!(text == SEEN, "{SEEN}\nwas expected\n{text}");
    // A program's own capability, for a user who has none.
    // Busybox goes by the name that it is started with.
    let look = "ln -s /bin/capable /tmp/busybox && exec /tmp/busybox grep CapEff /proc/self/status";
    let words = ["--entrypoint", "/bin/sh", "layers", "-c", look];
    let text = run(&place, &words)?;
    ensure!(text.contains("0000000000002000"), "{text}");
    Ok(())
}

fn debian() -> Result<()> {
    let place = place()?;
    let finished = place
        .casita(["run", "--rm", "debian"])
        .finish_with(b"echo $((6 * 7)) $BASH_VERSION; . /etc/os-release; echo $ID; exit 6\n")?
        .expect(6)?;
    let text = finished.text();
    ensure!(
        text.starts_with("42 5.") && text.ends_with("\ndebian\n"),
        "{finished}"
    );
    // Its own tools find the system whole, and write to it.
    let script =
        "dpkg --audit && test -x /usr/bin/vim.tiny && ps -p 1 >/dev/null && perl -e 'print 6*7'
        test $(stat -c %a /usr/bin/passwd) = 4755 && useradd someone && su someone -c 'id -un'";
    let text = run(&place, &["debian", "sh", "-c", script])?;
    ensure!(text == "42someone\n", "{text:?}");
    Ok(())
}

fn nginx() -> Result<()> {
    let place = place()?;
    let vm = Vm::run(&place, &["nginx"])?;
    let fetch = "until curl --silent --fail http://127.0.0.1/; do sleep 0.2; done";
    let text = vm.asks(fetch)?;
    ensure!(text == "nginx of the test images\n", "{text:?}");
    vm.says("\"GET / HTTP/1.1\" 200")?;
    let code = "curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1/none";
    let text = vm.asks(code)?;
    ensure!(text == "404", "{text:?}");
    // The image's signal lets it finish its work.
    vm.casita("stop", &[]).finish()?.expect(0)?;
    vm.ends_with(0)?;
    let logs = vm.casita("logs", &[]).finish()?.expect(0)?;
    ensure!(logs.text().contains("/none HTTP/1.1\" 404"), "{logs}");
    Ok(())
}

fn python() -> Result<()> {
    let script =
        b"import os, sys\nprint(sum(range(1000)), os.getcwd(), sys.platform)\nsys.exit(4)\n";
    let finished = place()?
        .casita(["run", "--rm", "-i", "python"])
        .finish_with(script)?
        .expect(4)?;
    ensure!(
        finished.text() == "499500 /srv linux\n" && finished.stderr.is_empty(),
        "{finished}"
    );
    Ok(())
}
