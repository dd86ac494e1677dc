//! Volumes, tmpfs, and files copied into VMs and out of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::{Finished, Running};
use casita_tests::suite::Suite;
use rustix::process::Signal;

use super::shell;

pub fn tests(suite: &mut Suite) {
    suite.test("a_volume_keeps_its_data_from_vm_to_vm", kept);
    suite.test("an_empty_volume_takes_over_what_the_image_has", filled);
    suite.test("what_does_not_fit_into_a_volume_is_told", full);
    suite.test("a_volume_is_whole_after_a_kill_of_its_monitor", killed);
    suite.test("many_read_a_volume_and_nobody_writes_to_it_then", readers);
    suite.test("a_volume_that_is_written_to_is_in_use", writer);
    suite.test("several_write_to_a_shared_volume", shared);
    suite.test("a_tmpfs_has_its_size_and_mode", tmpfs);
    suite.test("a_mount_point_that_is_a_file_is_told", mount_point);
    suite.test("files_are_copied_in_and_out", copied);
    suite.test("trees_are_copied_with_all_that_is_in_them", trees);
    suite.test("archives_are_copied_in_and_out", streams);
    suite.test("what_can_not_be_copied_is_told", not_copied);
    suite.test("a_volume_goes_out_and_comes_in_whole", exported);
}

const SMALL: [&str; 4] = ["volume", "create", "--size", "64M"];

/// A place with a small volume `v`.
fn place() -> Result<Place> {
    let place = Place::new()?;
    casita(&place, &[&SMALL[..], &["v"]].concat())?.says(&["v"])?;
    Ok(place)
}

fn casita(place: &Place, arguments: &[&str]) -> Result<Finished> {
    place.casita(arguments.iter().copied()).finish()?.expect(0)
}

fn refused(place: &Place, arguments: &[&str], parts: &[&str]) -> Result<()> {
    let finished = place.casita(arguments.iter().copied()).finish()?;
    let finished = finished.expect(125)?;
    let complaint = finished.complaint();
    let all = parts.iter().all(|part| complaint.contains(part));
    ensure!(
        all && complaint.lines().count() == 1,
        "{parts:?} were expected\n{finished}"
    );
    Ok(())
}

/// A VM named `vm` that runs until it is ended by a line.
fn running(place: &Place, options: &[&str], script: &str) -> Result<Running> {
    let script = format!("{script}\necho ready; read -r line");
    let options = [&["--name", "vm"], options].concat();
    let running = shell(place, &options, &script).start_piped()?;
    running.wait_for("ready")?;
    Ok(running)
}

fn end(mut running: Running) -> Result<Finished> {
    running.send("end\n")?;
    running.finish()?.expect(0)
}

fn kept() -> Result<()> {
    let place = place()?;
    let write = "echo kept > /a/deep/path/file; mkdir /a/deep/path/d; stat -f -c %T /a/deep/path";
    shell(&place, &["-v", "v:/a/deep/path"], write)
        .finish()?
        .expect(0)?;
    // At another place, in a VM whose own disk is gone each time.
    let read = "cat /data/file; test -d /data/d && echo more >> /data/file";
    shell(&place, &["-v", "v:/data"], read)
        .finish()?
        .expect(0)?
        .says(&["kept"])?;
    // It was unmounted, or it could not be read without its journal.
    let read = "cat /data/file; touch /data/x || echo refused";
    let finished = shell(&place, &["-v", "v:/data:ro"], read)
        .finish()?
        .expect(0)?;
    finished.says(&["kept", "more", "refused"])?;
    // Unmounted by the guest itself, it is still written back.
    let script = "echo last > /data/last; umount /data; test ! -e /data/last";
    shell(&place, &["-v", "v:/data"], script)
        .finish()?
        .expect(0)?;
    shell(&place, &["-v", "v:/data:ro"], "cat /data/last")
        .finish()?
        .expect(0)?
        .says(&["last"])?;
    Ok(())
}

fn filled() -> Result<()> {
    let place = place()?;
    // Owner, mode and content of a folder; where the image has none the volume is empty.
    let options = ["-v", "v:/etc", "-v", "t:/tmp", "-v", "n:/none"];
    let look = "stat -c '%a %u:%g' /etc /tmp /none; ls -A /tmp /none; grep -c root /etc/passwd
        ls -Ad /etc/lost+found /etc/.casita* 2>/dev/null; rm /etc/passwd; echo own > /none/file";
    let finished = shell(&place, &options, look).finish()?.expect(0)?;
    let expected = "755 0:0\n1777 0:0\n755 0:0\n/none:\n\n/tmp:\n1\n";
    ensure!(
        finished.text() == expected,
        "{expected}\nwas expected\n{finished}"
    );
    // Once only, and a folder elsewhere changes nothing.
    let options = ["-v", "v:/etc", "-v", "n:/bin/extra"];
    let look = "ls /etc/passwd; cat /bin/extra/file; ls -A /bin/extra";
    let finished = shell(&place, &options, look).finish()?.expect(0)?;
    ensure!(finished.text() == "own\nfile\n", "{finished}");
    // What was cut off begins anew: the mark tells.
    let cut =
        "cd /data; rm -rf ./*; mkdir -p half/deep; echo x > half/deep/file; touch .casita-filling";
    shell(&place, &["-v", "v:/data"], cut).finish()?.expect(0)?;
    let look = "ls -A /etc | grep -c -e half -e casita; ls /etc/passwd";
    let finished = shell(&place, &["-v", "v:/etc"], look).finish()?.expect(0)?;
    ensure!(finished.text() == "0\n/etc/passwd\n", "{finished}");
    Ok(())
}

fn full() -> Result<()> {
    let place = Place::new()?;
    casita(&place, &["volume", "create", "--size", "16M", "small"])?;
    fs::create_dir_all(place.path("tree/big"))?;
    place.write("tree/big/first", "x")?;
    place.write("tree/big/file", vec![1; 20 << 20])?;
    let words = ["run", "--rootfs", "tree", "-v", "small:/big", "--", "/x"];
    let finished = place.casita(words).finish()?.expect(125)?;
    let complaint = finished.complaint();
    for part in ["/big", "No space left", "larger volume"] {
        ensure!(complaint.contains(part), "{part} was expected\n{finished}");
    }
    // Nothing of half a copy is taken for data.
    let finished = shell(&place, &["-v", "small:/new"], "ls -A /new")
        .finish()?
        .expect(0)?;
    ensure!(finished.text().is_empty(), "{finished}");
    Ok(())
}

fn killed() -> Result<()> {
    let place = place()?;
    let script = "i=0; while true; do i=$((i+1)); echo $i >> /data/log; sync; echo synced $i; done";
    let running = shell(&place, &["-v", "v:/data"], script).start_piped()?;
    running.wait_for("synced 5")?;
    running.signal(Signal::KILL)?;
    let finished = running.finish()?.expect_killed()?;
    let text = finished.text();
    let told = text
        .lines()
        .filter_map(|line| line.strip_prefix("synced "))
        .count();
    // Only one that may write can replay the journal.
    refused(
        &place,
        &["run", "-v", "v:/data:ro", "--", "true"],
        &["may write to it"],
    )?;
    let after = shell(&place, &["-v", "v:/data"], "cat /data/log")
        .finish()?
        .expect(0)?;
    let there = after.text().lines().count();
    ensure!(there >= told, "{told} lines were synced\n{after}");
    shell(&place, &["-v", "v:/data:ro"], "true")
        .finish()?
        .expect(0)?;
    Ok(())
}

fn readers() -> Result<()> {
    let place = place()?;
    shell(&place, &["-v", "v:/data"], "echo shared > /data/file")
        .finish()?
        .expect(0)?;
    let first = running(&place, &["-v", "v:/data:ro"], "cat /data/file")?;
    let second = shell(
        &place,
        &["-v", "v:/data:ro"],
        "cat /data/file; dd if=/dev/zero of=/dev/vdb count=1 conv=fsync || echo refused",
    );
    second.finish()?.expect(0)?.says(&["shared", "refused"])?;
    refused(
        &place,
        &["run", "-v", "v:/data", "--", "true"],
        &["volume v is in use", ":ro"],
    )?;
    refused(&place, &["volume", "rm", "v"], &["v", "in use"])?;
    end(first)?.says(&["shared"])?;
    shell(&place, &["-v", "v:/data"], "echo x > /data/x")
        .finish()?
        .expect(0)?;
    Ok(())
}

fn writer() -> Result<()> {
    let place = place()?;
    let first = running(&place, &["-v", "v:/data"], "echo x > /data/x")?;
    for how in ["v:/data", "v:/data:ro"] {
        refused(
            &place,
            &["run", "-v", how, "--", "true"],
            &["volume v is in use"],
        )?;
    }
    refused(
        &place,
        &["volume", "rm", "-f", "v"],
        &["volume v is in use"],
    )?;
    end(first)?;
    // A VM that has ended keeps it from being removed, too.
    refused(&place, &["volume", "rm", "v"], &["vm", "casita rm"])?;
    casita(&place, &["rm", "vm"])?;
    casita(&place, &["volume", "rm", "v"])?;
    let listed = casita(&place, &["volume", "ls", "-q"])?;
    ensure!(listed.text().is_empty(), "{listed}");
    Ok(())
}

fn shared() -> Result<()> {
    let place = Place::new()?;
    let first = running(&place, &["-v", "s:/data:shared"], "echo first > /data/a")?;
    // The kind is the volume's own, so nobody has to say it again.
    let second = shell(
        &place,
        &["-v", "s:/data"],
        "cat /data/a; echo second > /data/b",
    );
    second.finish()?.expect(0)?.says(&["first"])?;
    let there = place.casita(["exec", "vm", "cat", "/data/b"]);
    there.finish()?.expect(0)?.says(&["second"])?;
    refused(
        &place,
        &["volume", "rm", "-f", "s"],
        &["volume s is in use"],
    )?;
    end(first)?;
    casita(&place, &["volume", "rm", "-f", "s"])?;
    Ok(())
}

fn tmpfs() -> Result<()> {
    let place = Place::new()?;
    let options = ["--tmpfs", "/t:size=2M,mode=750", "--tmpfs", "/u"];
    let script = "stat -c %a /t /u; dd if=/dev/zero of=/t/big bs=1M count=3 2>&1; echo small > /u/x
        df -k /t | tail -n 1";
    let finished = shell(&place, &options, script).finish()?.expect(0)?;
    let finished = finished.says(&["750", "1777", "No space left", "2048"])?;
    ensure!(finished.text().contains("tmpfs"), "{finished}");
    Ok(())
}

fn mount_point() -> Result<()> {
    let place = place()?;
    for how in [["-v", "v:/etc/passwd"], ["--tmpfs", "/etc/passwd"]] {
        let finished = shell(&place, &how, "echo started").finish()?.expect(125)?;
        let complaint = finished.complaint();
        let told = complaint.contains("/etc/passwd") && complaint.contains("not a directory");
        ensure!(told && finished.stdout.is_empty(), "{finished}");
    }
    Ok(())
}

fn copied() -> Result<()> {
    let place = Place::new()?;
    let content: Vec<u8> = (0..3_000_017_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    place.write("file", &content)?;
    let vm = running(
        &place,
        &["-v", "w:/w"],
        "mkdir /dir; ln -s /dir /link; echo old > /dir/old",
    )?;
    // To a new name, into a directory, over a file, through a link to a directory, into a volume.
    for to in ["/new", "/dir", "/dir/old", "/link/", "/w"] {
        casita(&place, &["cp", "file", &format!("vm:{to}")])?;
    }
    for (from, to) in [
        ("/new", "a"),
        ("/dir/old", "b"),
        ("/dir/file", "c"),
        ("/w/file", "d"),
    ] {
        casita(&place, &["cp", &format!("vm:{from}"), to])?;
        ensure!(fs::read(place.path(to))? == content, "{from} has changed");
    }
    let owner = casita(&place, &["exec", "vm", "stat", "-c", "%u:%g %a", "/new"])?;
    let mode = fs::metadata(place.path("file"))?.mode() & 0o777;
    owner.says(&[&format!("0:0 {mode:o}")])?;
    end(vm)?;
    Ok(())
}

fn trees() -> Result<()> {
    let place = Place::new()?;
    fs::create_dir_all(place.path("tree/sub/empty"))?;
    place.write("tree/sub/file", "content\n")?;
    fs::hard_link(place.path("tree/sub/file"), place.path("tree/hard"))?;
    symlink("sub/file", place.path("tree/soft"))?;
    let vm = running(&place, &[], "mkdir /there")?;
    casita(&place, &["cp", "tree", "vm:/new"])?;
    casita(&place, &["cp", "tree", "vm:/there"])?;
    casita(&place, &["cp", "tree/.", "vm:/there"])?;
    let script = "for d in /new /there/tree /there; do
        cat $d/sub/file $d/hard $d/soft; readlink $d/soft; stat -c %h $d/hard; ls -a $d/sub/empty
    done";
    let finished = casita(&place, &["exec", "vm", "sh", "-c", script])?;
    let text = finished.text();
    ensure!(text.matches("content").count() == 9, "{finished}");
    ensure!(
        text.matches("\n2\n").count() == 3,
        "two names of one file\n{finished}"
    );
    casita(&place, &["cp", "vm:/new", "back"])?;
    let back = |path: &str| place.path(&format!("back/{path}"));
    ensure!(
        fs::read_to_string(back("soft"))? == "content\n",
        "{:?}",
        place.listing()?
    );
    ensure!(fs::metadata(back("hard"))?.nlink() == 2);
    ensure!(back("sub/empty").is_dir());
    casita(&place, &["cp", "vm:/new/soft", "link"])?;
    ensure!(fs::symlink_metadata(place.path("link"))?.is_symlink());
    casita(&place, &["cp", "-L", "vm:/new/soft", "followed"])?;
    ensure!(fs::read_to_string(place.path("followed"))? == "content\n");
    // Into a directory it goes under the name that was given, not one that the guest chose.
    fs::create_dir(place.path("into"))?;
    casita(&place, &["cp", "-L", "vm:/new/soft", "into"])?;
    ensure!(fs::read_to_string(place.path("into/soft"))? == "content\n");
    ensure!(!place.path("into/file").exists());
    end(vm)?;
    Ok(())
}

fn streams() -> Result<()> {
    let place = Place::new()?;
    let vm = running(
        &place,
        &[],
        "mkdir -p /from/sub /to; echo content > /from/sub/file",
    )?;
    let script = "\"$0\" cp vm:/from - > t.tar && tar -tf t.tar && \"$0\" cp - vm:/to < t.tar";
    let piped = place.casita([""; 0]).under(&["sh", "-c", script]);
    let piped = piped.finish()?.expect(0)?;
    piped.says(&["from/", "from/sub/file"])?;
    let there = place.casita(["exec", "vm", "cat", "/to/from/sub/file"]);
    there.finish()?.expect(0)?.says(&["content"])?;
    end(vm)?;
    Ok(())
}

fn not_copied() -> Result<()> {
    let place = Place::new()?;
    place.write("file", "x")?;
    fs::create_dir(place.path("dir"))?;
    let vm = running(
        &place,
        &["--tmpfs", "/small:size=1M"],
        "mkdir /dir; echo > /f",
    )?;
    for (from, to, says) in [
        ("vm:/none", "x", "/none"),
        ("none", "vm:/", "none"),
        ("file", "vm:/none/", "/none/"),
        ("file", "vm:/none/x", "/none"),
        ("dir", "vm:/f", "/f"),
        ("vm:/dir", "file", "file"),
        ("file", "dir", "VM"),
        ("vm:/f", "vm:/g", "VM"),
        ("other:/f", "x", "other"),
    ] {
        refused(&place, &["cp", from, to], &[says])?;
    }
    place.write("large", vec![1; 3 << 20])?;
    refused(&place, &["cp", "large", "vm:/small"], &["No space left"])?;
    ensure!(!place.path("x").exists());
    end(vm)?;
    refused(&place, &["cp", "vm:/f", "x"], &["vm", "is not running"])
}

fn exported() -> Result<()> {
    let place = place()?;
    let script =
        "cd /data; mkdir -p a/b; dd if=/dev/urandom of=a/b/file bs=64k count=20 2>/dev/null
        ln a/b/file hard; ln -s a/b soft; chown 12:34 a; chmod 2750 a; mkfifo fifo
        mknod null c 1 3; chown 999:999 .; chmod 700 .";
    let sums = "cd /data; md5sum a/b/file hard | cut -c 1-32; readlink soft
        stat -c '%u:%g %a %F %h %n' . a a/b/file soft fifo null";
    shell(&place, &["-v", "v:/data"], script)
        .finish()?
        .expect(0)?;
    let before = shell(&place, &["-v", "v:/data:ro"], sums)
        .finish()?
        .expect(0)?;
    casita(&place, &["volume", "export", "v", "-o", "v.tar"])?;
    casita(&place, &["volume", "import", "copy", "v.tar"])?;
    let after = shell(&place, &["-v", "copy:/data:ro"], sums)
        .finish()?
        .expect(0)?;
    ensure!(before.text() == after.text(), "{before}\n{after}");
    ensure!(before.text().contains("999:999 700"), "{before}");
    // What is no archive leaves no volume.
    place.write("bad", vec![b'x'; 4096])?;
    refused(
        &place,
        &["volume", "import", "bad", "bad"],
        &["not a tar archive"],
    )?;
    let listed = casita(&place, &["volume", "ls", "-q"])?;
    ensure!(listed.text() == "copy\nv\n", "{listed}");
    refused(&place, &["volume", "export", "none"], &["no volume none"])
}
