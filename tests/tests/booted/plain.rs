//! Plain boots: the image's own init, other kernels, and nothing of casita's in the guest.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};

pub fn tests(suite: &mut Suite) {
    let busybox = || machine::lacks(image::BUSYBOX.0, image::BUSYBOX.1);
    let erofs = || machine::lacks(image::EROFS.0, image::EROFS.1).or_else(busybox);
    let cpio = || machine::lacks(image::CPIO.0, image::CPIO.1).or_else(busybox);
    suite.test_if(erofs(), "an_images_own_init_is_pid_1", own_init);
    suite.test_if(erofs(), "a_reboot_ends_a_plain_boot", || ends("reboot -f"));
    suite.test_if(
        erofs(),
        "an_init_that_ends_is_a_panic_and_ends_it",
        init_ends,
    );
    suite.test_if(cpio(), "an_initrd_alone", || {
        initrd(&machine::default_kernel(), &[])
    });
    let bzimage = machine::default_kernel().with_file_name("bzImage");
    suite.test_if(
        machine::lacks_file(&bzimage).or_else(cpio),
        "a_bzimage",
        move || initrd(&bzimage, &[]),
    );
    let debian = debian_kernel();
    let missing = match &debian {
        None => Some("needs Debian's kernel, which the lab brings".to_owned()),
        Some(_) => cpio(),
    };
    suite.test_if(
        missing,
        "debians_kernel_finds_its_devices_by_acpi",
        move || initrd(&debian.context("no kernel")?, &["LNRO0005"]),
    );
}

/// The stock kernel that the lab itself boots.
fn debian_kernel() -> Option<PathBuf> {
    let folders = fs::read_dir(machine::cache_home().join("casita/lab")).ok()?;
    folders
        .flatten()
        .map(|folder| folder.path().join("kernel"))
        .find(|kernel| kernel.is_file())
}

/// Boots an image whose init is `script`.
fn boot_image(script: &str, options: &[&str]) -> Result<Finished> {
    let place = Place::new()?;
    image::tree(&place.path("tree"), script)?;
    image::erofs(&place.path("tree"), &place.path("image"))?;
    let arguments = ["run", "--boot", "plain", "--rootfs", "image"];
    place.casita([&arguments[..], options].concat()).finish()
}

fn own_init() -> Result<()> {
    let script = "mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /tmp
echo \"I am $$ of $(ls -d /proc/[0-9]* | head -n 1)\"; cat /proc/cmdline
echo x > /etc/x || echo read-only; ls /sys/block; echo out > /tmp/out; cat /tmp/out; poweroff -f";
    let disk = ["--disk", "64M", "--cmdline", "quiet casita.test=b"];
    let finished = boot_image(script, &disk)?.expect(0)?;
    finished.says(&[
        "I am 1 of ",
        "root=/dev/vda ro",
        "casita.test=b",
        "read-only",
        "vda",
        "vdb",
        "out",
    ])?;
    Ok(())
}

fn ends(command: &str) -> Result<()> {
    let finished = boot_image(&format!("echo before; {command}"), &["--cmdline", "quiet"])?;
    finished.expect(0)?.says(&["before"])?;
    Ok(())
}

fn init_ends() -> Result<()> {
    let finished = boot_image("echo before; exit 1", &["--cmdline", "quiet"])?;
    ensure!(
        finished.status.code().is_some(),
        "an end was expected\n{finished}"
    );
    finished.says(&[
        "before",
        "Kernel panic - not syncing: Attempted to kill init",
    ])?;
    Ok(())
}

/// Boots `kernel` with an initrd alone; its init looks for ACPI's devices, among which each of
/// `hids` has to be.
fn initrd(kernel: &std::path::Path, hids: &[&str]) -> Result<()> {
    let place = Place::new()?;
    let script = "mount -t proc proc /proc; mount -t sysfs sysfs /sys
echo \"init is $$\"; cat /etc/marker; uname -r; grep -c ^processor /proc/cpuinfo
cat /sys/bus/acpi/devices/*/hid; poweroff -f";
    image::tree(&place.path("tree"), script)?;
    image::initrd(&place.path("tree"), &place.path("initrd"))?;
    let kernel = kernel.display().to_string();
    let arguments = [
        "run", "--boot", "plain", "--kernel", &kernel, "--initrd", "initrd",
    ];
    let options = ["--cmdline", "quiet", "--cpus", "2", "--memory", "512M"];
    let finished = place
        .casita([&arguments[..], &options].concat())
        .finish()?
        .expect(0)?;
    let finished = finished.says(&["init is 1", "from the image", "\r\n2\r\n", "PNP0501"])?;
    finished.says(hids)?;
    Ok(())
}
