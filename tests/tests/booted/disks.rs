//! The one writable root of image and disk: what is kept, what is not, and what never changes.

use std::fs;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};
use rustix::process::Signal;

use super::shell;

pub fn tests(suite: &mut Suite) {
    let erofs = || machine::lacks(image::EROFS.0, image::EROFS.1);
    suite.test_if(
        erofs(),
        "the_root_is_writable_and_the_image_never_changes",
        overlay,
    );
    suite.test("a_named_disk_is_kept", named);
    suite.test("a_temporary_disk_is_not_kept", temporary);
    suite.test("a_disk_file_is_kept_and_one_vm_has_it_at_a_time", file);
    suite.test("what_was_synced_survives_a_kill", killed);
    suite.test("two_guests_of_one_image_do_not_see_each_other", two_guests);
    suite.test_if(
        machine::lacks_mounts(),
        "a_full_host_disk_is_the_guests_error_alone",
        host_full,
    );
    suite.test("what_the_guest_deletes_is_given_back", discard);
}

/// Files of the image are changed, renamed and removed in the guest's root; root in the guest then
/// tries to write to the image itself, by its device, and to have it made writable.
fn overlay() -> Result<()> {
    let place = Place::new()?;
    image::tree(&place.path("tree"), "")?;
    image::erofs(&place.path("tree"), &place.path("image"))?;
    let before = fs::read(place.path("image"))?;
    let script = r#"
        set -e
        echo new > /new; test "$(cat /new)" = new
        echo more >> /etc/marker; test "$(cat /etc/marker)" = "from the image
more"
        mkdir /folder; mv /etc/large /folder/moved; test ! -e /etc/large
        test "$(wc -c < /folder/moved)" = 3000000
        rm /etc/secret /etc/link; test ! -e /etc/secret
        chmod 700 /root; ln /new /hard; ln -s new /soft; test "$(cat /soft)" = new
        mv /folder /renamed; test -e /renamed/moved
        rm -r /renamed
        echo root done
        set +e
        dd if=/dev/zero of=/dev/vda bs=4096 count=16 conv=fsync && echo "IMAGE WRITTEN"
        blockdev --setrw /dev/vda
        dd if=/dev/zero of=/dev/vda bs=4096 count=16 conv=fsync && echo "IMAGE WRITTEN"
        mount -o remount,rw /dev/vda / 2>/dev/null
        echo device done
    "#;
    let busybox = machine::program("busybox").unwrap_or_default();
    for applet in ["mv", "rm", "ln", "chmod", "dd", "blockdev"] {
        ensure!(busybox.exists(), "no busybox for {applet}");
    }
    let script = format!("/bin/busybox --install -s /bin 2>/dev/null\n{script}");
    let options = ["--rootfs", "image", "--rootfs-mode", "block"];
    let finished = shell(&place, &options, &script).finish()?.expect(0)?;
    let finished = finished.says(&["root done", "device done"])?;
    ensure!(!finished.text().contains("IMAGE WRITTEN"), "{finished}");
    ensure!(
        before == fs::read(place.path("image"))?,
        "the image has changed\n{finished}"
    );
    Ok(())
}

fn named() -> Result<()> {
    let place = Place::new()?;
    let options = ["--name", "kept", "--disk", "1G"];
    let first = shell(
        &place,
        &options,
        "echo kept > /file; rm /etc/os-release; df -k / | tail -n 1",
    );
    let finished = first.finish()?.expect(0)?;
    let text = finished.text();
    let kib = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    let near_a_gib = kib.is_some_and(|kib| (900 << 10..=1 << 20).contains(&kib));
    ensure!(near_a_gib, "a root of 1 GiB was expected\n{finished}");
    let disk = place.path("data/casita/disks/kept.raw");
    ensure!(
        fs::metadata(&disk)?.len() == 1 << 30,
        "{} is not 1 GiB",
        disk.display()
    );
    shell(&place, &options, "cat /file && test ! -e /etc/os-release")
        .finish()?
        .expect(0)?
        .says(&["kept"])?;
    // Another VM's is another.
    let other = ["--name", "other", "--disk", "64M"];
    shell(&place, &other, "test ! -e /file")
        .finish()?
        .expect(0)?;
    Ok(())
}

fn temporary() -> Result<()> {
    let place = Place::new()?;
    let script = "test ! -e /file && echo x > /file && sync";
    for _ in 0..2 {
        shell(&place, &[], script).finish()?.expect(0)?;
        let left = place.listing()?;
        ensure!(
            !left.iter().any(|name| name.contains("disks")),
            "left behind: {left:?}"
        );
    }
    Ok(())
}

fn file() -> Result<()> {
    let place = Place::new()?;
    let script = "echo mine > /file; sync; echo ready; read -r line; echo \"$line\"";
    let first = shell(&place, &["--disk", "./d.raw,size=64M"], script);
    let mut first = first.start_piped()?;
    first.wait_for("ready")?;
    let second = shell(&place, &["--disk", "./d.raw"], "echo second")
        .finish()?
        .expect(125)?;
    let complaint = second.complaint();
    ensure!(
        complaint.contains("d.raw") && complaint.contains("in use by another VM"),
        "{second}"
    );
    ensure!(second.stdout.is_empty(), "{second}");
    first.send("done\n")?;
    first.finish()?.expect(0)?.says(&["done"])?;
    shell(&place, &["--disk", "./d.raw"], "cat /file")
        .finish()?
        .expect(0)?
        .says(&["mine"])?;
    Ok(())
}

/// What fsync has answered for is on the host's disk, whatever becomes of the monitor.
fn killed() -> Result<()> {
    let place = Place::new()?;
    let options = ["--disk", "./d.raw,size=64M"];
    let script = "dd if=/dev/urandom of=/file bs=64k count=40 conv=fsync 2>/dev/null
        md5sum /file | cut -c 1-32 > /sum; sync; cat /sum; echo synced; echo lost > /later; read -r never";
    let running = shell(&place, &options, script).start_piped()?;
    running.wait_for("synced")?;
    running.signal(Signal::KILL)?;
    let finished = running.finish()?.expect_killed()?;
    let text = finished.text();
    let sum = text.lines().next().unwrap_or_default();
    let again = "md5sum /file | cut -c 1-32; cat /sum; wc -c < /file";
    let after = shell(&place, &options, again).finish()?.expect(0)?;
    ensure!(
        after.text() == format!("{sum}\n{sum}\n2621440\n"),
        "{sum} was expected\n{after}"
    );
    Ok(())
}

fn two_guests() -> Result<()> {
    let place = Place::new()?;
    let script = "echo $$ > /mine; sync; echo ready; read -r x; ls /mine /theirs 2>&1";
    let mut first = shell(&place, &["--name", "a", "--disk", "64M"], script).start_piped()?;
    first.wait_for("ready")?;
    let script = "test ! -e /mine && echo theirs > /theirs && sync";
    shell(&place, &["--name", "b", "--disk", "64M"], script)
        .finish()?
        .expect(0)?;
    first.send("go on\n")?;
    let finished = first.finish()?.expect(1)?;
    finished.says(&["/theirs: No such file", "/mine"])?;
    Ok(())
}

/// The disk's file lies on a small file system, much smaller than the disk says.
fn host_full() -> Result<()> {
    let place = Place::new()?;
    fs::create_dir(place.path("small"))?;
    let mount = format!(
        "mount -t tmpfs -o size=48M none {} && exec \"$@\"",
        place.text("small")
    );
    let mut under = machine::own_mounts().to_vec();
    under.extend(["sh", "-c", &mount, "sh"]);
    let script =
        "dd if=/dev/zero of=/big bs=1M count=200 conv=fsync; echo \"dd: $?\"; echo alive; exit 9";
    let options = ["--disk", "small/d.raw,size=1G"];
    let finished = shell(&place, &options, script)
        .under(&under)
        .finish()?
        .expect(9)?;
    let finished = finished.says(&["dd: 1", "alive"])?;
    let text = finished.complaint();
    // It is told of at the write, the fsync or the close.
    ensure!(
        ["Input/output error", "No space left on device", "I/O error"]
            .iter()
            .any(|why| text
                .lines()
                .any(|line| line.starts_with("dd: ") && line.ends_with(why))),
        "EIO or ENOSPC was expected in the guest\n{finished}"
    );
    Ok(())
}

fn discard() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new()?;
    let options = ["--disk", "./d.raw,size=1G"];
    let used = || fs::metadata(place.path("d.raw")).map(|found| found.blocks() * 512);
    let write = "dd if=/dev/urandom of=/file bs=1M count=48 conv=fsync 2>/dev/null";
    shell(&place, &options, write).finish()?.expect(0)?;
    let full = used()?;
    ensure!(full > 48 << 20, "{full} bytes are used");
    shell(&place, &options, "rm /file; sync")
        .finish()?
        .expect(0)?;
    let empty = used()?;
    ensure!(
        empty < full - (40 << 20),
        "of {full} bytes {empty} are still used"
    );
    Ok(())
}
