//! What VMs have of the host's memory: the root image together, and what they freed not any more.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::patience;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use casita_tests::{image, machine};

/// Between two looks at what a process has; how long it all takes is nobody's claim.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const PMEM: [&str; 2] = ["--rootfs-mode", "pmem"];
const BLOCK: [&str; 2] = ["--rootfs-mode", "block"];

pub fn tests(suite: &mut Suite) {
    let busybox = || machine::lacks(image::BUSYBOX.0, image::BUSYBOX.1);
    let erofs = || machine::lacks(image::EROFS.0, image::EROFS.1).or_else(busybox);
    suite.test(
        "an_image_that_is_memory_is_read_only_for_root",
        read_only_image,
    );
    suite.test_if(
        erofs(),
        "vms_share_the_pages_of_an_image_that_is_memory",
        shared_pages,
    );
    suite.test_if(
        erofs(),
        "an_image_that_cant_be_memory_is_a_disk",
        falls_back,
    );
    suite.test("memory_that_a_guest_frees_comes_back", comes_back);
    suite.test("a_machine_file_turns_the_balloon_off", no_balloon);
}

/// Private and shared memory in KiB of a process's mappings whose lines end with `end`.
fn mapped(pid: i32, end: &str) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut inside, mut private, mut shared) = (false, 0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = line.ends_with(end);
        } else if inside {
            let kib: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match first {
                "Private_Clean:" | "Private_Dirty:" => private += kib,
                "Shared_Clean:" | "Shared_Dirty:" => shared += kib,
                _ => {}
            }
        }
    }
    Ok((private, shared))
}

/// Private memory in KiB of a whole process.
fn private(pid: i32) -> Result<u64> {
    Ok(mapped(pid, "")?.0)
}

/// The root image that a monitor has mapped, and the rights of each of its mappings.
fn mapped_image(pid: i32) -> Result<(PathBuf, Vec<String>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let lines = maps.lines().filter(|line| line.contains(".erofs"));
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (mut path, mut rights) = (None, Vec::new());
    for words in words {
        path = words.last().map(PathBuf::from);
        rights.extend(words.get(1).map(|rights| (*rights).to_owned()));
    }
    Ok((path.context("no image is mapped")?, rights))
}

/// Root does all that it can: the device as it is, the device made writable, the mount, and memory
/// itself.
fn read_only_image() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &PMEM, "echo up; sleep 1000")?;
    vm.says("up")?;
    let (path, rights) = mapped_image(vm.pid()?)?;
    ensure!(rights.iter().all(|rights| rights == "r--s"), "{rights:?}");
    let before = fs::read(&path)?;
    let said = vm.asks(
        r#"
        cat /sys/block/pmem0/ro
        sum=$(md5sum < /bin/busybox)
        dd if=/dev/zero of=/dev/pmem0 bs=4096 count=4 conv=fsync 2>&1 && echo WRITTEN
        blockdev --setrw /dev/pmem0 && cat /sys/block/pmem0/ro
        for at in 0 1 100; do
            dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 seek=$at conv=fsync 2>/dev/null
        done
        mknod /tmp/mem c 1 1
        dd if=/dev/zero of=/tmp/mem bs=4096 seek=1048576 count=1 2>/dev/null && echo MEMORY
        sync; echo 3 > /proc/sys/vm/drop_caches
        test "$sum" = "$(md5sum < /bin/busybox)" && echo same
        "#,
    )?;
    ensure!(said.starts_with("1\n"), "{said}");
    ensure!(
        said.contains("not permitted") && said.ends_with("0\nsame\n"),
        "{said}"
    );
    ensure!(
        !said.contains("WRITTEN") && !said.contains("MEMORY"),
        "{said}"
    );
    ensure!(fs::read(&path)? == before, "the image has changed");
    // And nobody is the worse for it.
    ensure!(vm.asks("echo well")? == "well\n");
    Ok(())
}

/// A tree with a large file that no two pages of are alike, and how many KiB it has.
fn tree_with_a_large_file(place: &Place) -> Result<u64> {
    const KIB: u64 = 12 << 10;
    image::tree(&place.path("tree"), "exec sh\n")?;
    let mut state = 1_u64;
    let numbers = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_le_bytes()
    });
    let bytes: Vec<u8> = numbers.take(KIB as usize * 128).flatten().collect();
    fs::write(place.path("tree/large"), bytes)?;
    Ok(KIB)
}

/// Ratios of what two VMs hold that have both read all of a large file.
fn shared_pages() -> Result<()> {
    const READ: &str = "busybox cat /large > /dev/null; echo read; exec busybox sleep 1000";
    let place = Place::new()?;
    let kib = tree_with_a_large_file(&place)?;
    let run = |mode: [&str; 2]| -> Result<(u64, u64, u64)> {
        let options = [&["--rootfs", "tree", "-m", "128M"][..], &mode[..]].concat();
        let vms = [
            Vm::start(&place, &options, READ)?,
            Vm::start(&place, &options, READ)?,
        ];
        vms[0].says("read")?;
        vms[1].says("read")?;
        let (own, shared) = mapped(vms[1].pid()?, ".erofs")?;
        Ok((own, shared, private(vms[1].pid()?)?))
    };
    let (own, shared, private_pmem) = run(PMEM)?;
    ensure!(
        shared >= kib && own * 20 <= kib,
        "of the image {own} KiB are private and {shared} KiB shared"
    );
    let (_, shared, private_block) = run(BLOCK)?;
    ensure!(shared == 0, "a disk is not mapped");
    ensure!(
        private_pmem + kib * 3 / 4 <= private_block,
        "{private_pmem} KiB are private with memory, {private_block} KiB with a disk"
    );
    Ok(())
}

fn falls_back() -> Result<()> {
    const ASK: &str = "busybox ls -x /sys/block";
    let place = Place::new()?;
    image::tree(&place.path("tree"), "exec sh\n")?;
    image::erofs(&place.path("tree"), &place.path("image"))?;
    // As mkfs.erofs makes it, the ends of files lie beside their inodes, and its length is odd.
    let short = fs::File::options().write(true).open(place.path("image"))?;
    let len = short.metadata()?.len();
    if len.is_multiple_of(2 << 20) {
        short.set_len(len + 4096)?;
    }
    let command = ["--", "sh", "-c", ASK];
    let run = |mode: [&str; 2], rootfs: &str| {
        let options = ["-v", "run", "--rm", "--rootfs", rootfs];
        let words = [&options[..], &mode, &command].concat();
        place.casita(words).finish()?.expect(0)
    };
    let finished = run(PMEM, "image")?.says(&["vda", "vdb"])?;
    ensure!(!finished.text().contains("pmem"), "{finished}");
    ensure!(
        finished.complaint().contains("the root image is a disk: "),
        "{finished}"
    );
    let finished = run(PMEM, "tree")?.says(&["pmem0", "vda"])?;
    ensure!(!finished.complaint().contains("is a disk"), "{finished}");
    let finished = run(BLOCK, "tree")?.says(&["vda", "vdb"])?;
    ensure!(!finished.text().contains("pmem"), "{finished}");
    Ok(())
}

fn comes_back() -> Result<()> {
    const KIB: u64 = 96 << 10;
    for backing in ["private", "shared"] {
        let place = Place::new()?;
        fs::create_dir(place.path("dir"))?;
        // With a shared directory the guest's memory is a file.
        let mut options = vec!["-m", "256M"];
        let volume = format!("{}:/mnt", place.text("dir"));
        if backing == "shared" {
            if machine::lacks_mounts().is_some() {
                continue;
            }
            options.extend(["-v", &volume]);
        }
        let vm = Vm::start(&place, &options, "echo up; sleep 1000")?;
        vm.says("up")?;
        let pid = vm.pid()?;
        let held = || -> Result<u64> {
            let (own, shared) = mapped(pid, "")?;
            // A memory file's pages are shared with the program that serves the directory, where
            // that has touched them, too.
            Ok(if backing == "shared" {
                own + shared
            } else {
                own
            })
        };
        let before = held()?;
        vm.asks("mount -t tmpfs t /tmp -o size=200M; head -c 100663296 /dev/urandom > /tmp/x")?;
        let full = held()?;
        ensure!(
            full >= before + KIB * 9 / 10,
            "{backing}: {before} KiB before, {full} KiB with {KIB} KiB in use"
        );
        vm.asks("umount /tmp")?;
        let start = Instant::now();
        while held()? > before + KIB / 4 {
            ensure!(
                start.elapsed() < patience(),
                "{backing}: {before} KiB before, {full} KiB in use, and still {} KiB",
                held()?
            );
            thread::sleep(LOOK_AGAIN);
        }
        ensure!(vm.asks("echo well")? == "well\n", "{backing}");
    }
    Ok(())
}

fn no_balloon() -> Result<()> {
    const ASK: &str = "ls /sys/bus/virtio/drivers/virtio_balloon | grep -c ^virtio";
    let place = Place::new()?;
    let config = place.write("off.toml", "balloon = false\n")?;
    for (options, count) in [(&["--config", config.as_str()][..], "0"), (&[][..], "1")] {
        let words = [&["run", "--rm"][..], options, &["--", "sh", "-c", ASK]].concat();
        let finished = place.casita(words).finish()?;
        ensure!(finished.text().trim() == count, "{finished}");
    }
    Ok(())
}
