//! Compiles the small C programs of the benchmark: PID 1 of the peers' guests, the library that stamps
//! events in any monitor, and both ends of questions over the network.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // The peers' guests need one file, which is linked with nothing.
    compile(
        "guest/guest-init.c",
        &out.join("guest-init"),
        &[
            "-Os",
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
            "-fno-asynchronous-unwind-tables",
            "-fno-pie",
            "-no-pie",
            "-s",
            "-Wl,-z,noseparate-code,--build-id=none",
        ],
    );
    // Both ends of the network's questions; in the guest there are no libraries for it.
    compile(
        "guest/net-peer.c",
        &out.join("net-peer"),
        &["-O2", "-static", "-s"],
    );
    compile(
        "guest/shim.c",
        &out.join("shim.so"),
        &["-O2", "-shared", "-fPIC"],
    );
}

fn compile(source: &str, to: &Path, options: &[&str]) {
    println!("cargo::rerun-if-changed={source}");
    let mut command = Command::new("gcc");
    command.args(["-Wall", "-Wextra"]).args(options);
    let status = command.arg("-o").arg(to).arg(source).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "gcc can't compile {source}: install gcc and libc6-dev, or run `make deps`"
    );
}
