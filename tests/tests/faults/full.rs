//! File systems without room, of which the last byte or the last file is missing at each step.

use std::fs;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::suite::Suite;

use super::{Host, MACHINE, TALK};

pub fn tests(suite: &mut Suite) {
    let mounts = machine::lacks_mounts;
    suite.test_if(mounts(), "a_start_with_room_for_so_many_files", || {
        sweep("nr_inodes=", 9, 40, 1)
    });
    suite.test_if(mounts(), "a_start_with_room_for_so_many_bytes", || {
        sweep("size=", 4096, 30 * 4096, 4096)
    });
    suite.test_if(mounts(), "a_log_without_room_keeps_its_beginning", log);
    suite.test_if(mounts(), "an_import_without_room_leaves_nothing", import);
}

/// Runs `script` where `data` is a file system in memory with these options. In it `$0` is casita,
/// and `$1` and what follows a plain boot's options.
fn with_data(host: &Host, options: &str, script: &str) -> Result<String> {
    let folder = host.0.text("data");
    // The first command makes the folders, while there is room for them.
    let whole = format!(
        "mount -t tmpfs none {folder} || exit 99
        \"$0\" ps >/dev/null && \"$0\" image ls >/dev/null || exit 98
        mount -o remount,{options} {folder} || exit 97
        {script}"
    );
    let mut under = machine::own_mounts().to_vec();
    under.extend(["sh", "-c", &whole]);
    let program = host.0.casita(MACHINE).under(&under);
    Ok(program.finish()?.expect(0)?.text())
}

/// For each size: a start says honestly that there is no room, or succeeds; in both cases the lists
/// can be read. With more room all of it works, and nothing is left of the failure.
fn sweep(option: &str, from: u32, to: u32, step: usize) -> Result<()> {
    let host = Host::new()?;
    let script = r#"
        code=0
        "$0" run -d --name v "$@" --kernel halts >out 2>err || code=$?
        echo "start $code $(wc -l <err) $(head -c 400 err)"
        "$0" ps -a >/dev/null 2>err || echo "bad: ps says $(cat err)"
        if [ $code = 0 ]; then
            "$0" rm -f v >out 2>err || echo "bad: rm says $(cat err)"
        fi
        mount -o remount,size=64m,nr_inodes=4096 "$DATA" || echo "bad: no more room"
        code=0
        "$0" run --rm --name v "$@" --kernel ends >out 2>err || code=$?
        [ $code = 3 ] || echo "bad: with room $code $(cat err)"
        find "$DATA/casita/vms" -type f ! -name .lock | sed 's/^/bad: left /'
    "#
    .replace("$DATA", &host.0.text("data"));
    let (mut failed, mut started) = (0, 0);
    for number in (from..=to).step_by(step) {
        let text = with_data(&host, &format!("{option}{number}"), &script)?;
        ensure!(!text.contains("bad: "), "{option}{number}: {text}");
        let line = text.lines().next().context("nothing was said")?;
        if line.starts_with("start 0 ") {
            started += 1;
            continue;
        }
        ensure!(
            line.starts_with("start 125 1 casita: ") && line.contains("No space left"),
            "{option}{number}: {text}"
        );
        failed += 1;
    }
    ensure!(
        failed > 0 && started > 0,
        "{failed} failed, {started} started"
    );
    Ok(())
}

/// The VM goes on when its log can't, and ends as it would have.
fn log() -> Result<()> {
    let host = Host::new()?;
    let script = r#"
        "$0" run -d --name v "$@" --kernel talks >/dev/null
        echo "wait $("$0" wait v)"
        "$0" logs v >log 2>err; echo "logs $? $(wc -l <err)"
        "$0" ps -a >/dev/null || echo "bad: ps"
        "$0" rm v >/dev/null || echo "bad: rm"
    "#;
    let text = with_data(&host, "size=256k", script)?;
    ensure!(
        text.contains("wait 7\n") && text.contains("logs 0 ") && !text.contains("bad: "),
        "{text}"
    );
    let log = fs::read(host.0.path("log"))?;
    let said: Vec<u8> = (1..=TALK).rev().map(|count| count as u8).collect();
    ensure!(
        log.len() > 64 << 10 && log.len() < said.len() && said.starts_with(&log),
        "{} bytes of the log are not the beginning of what was said",
        log.len()
    );
    host.is_consistent()
}

fn import() -> Result<()> {
    let host = Host::new()?;
    let script = r#"
        "$0" image import tree x:1 >out 2>err; echo "import $? $(wc -l <err) $(head -c 400 err)"
        "$0" image ls >out 2>err || echo "bad: ls says $(cat err)"
        grep -q x out && echo "bad: it is there"
        mount -o remount,size=64m "$DATA"
        "$0" image import tree x:1 >out 2>err || echo "bad: with room $(cat err)"
        "$0" image rm x:1 >out; "$0" image prune --force >out
        find "$DATA/casita/images" -type f -size +0 ! -name refs.json | sed 's/^/bad: left /'
    "#
    .replace("$DATA", &host.0.text("data"));
    for size in ["4k", "8k", "32k", "128k", "200k"] {
        let text = with_data(&host, &format!("size={size}"), &script)?;
        let line = text.lines().next().unwrap_or_default();
        ensure!(
            line.starts_with("import 125 1 casita: ") && line.contains("No space left"),
            "{size}: {text}"
        );
        ensure!(!text.contains("bad: "), "{size}: {text}");
    }
    Ok(())
}
