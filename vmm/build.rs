//! Builds the agent, the guest's PID 1, which is a program of its own without a standard library,
//! so that `casita` can carry it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    if var("PROFILE") == "release" {
        // Cargo forgets the profile's `strip` for packages with an optimization level of their own.
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
    }
    let workspace = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("..");
    for source in [
        "agent/src",
        "agent/build.rs",
        "agent/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    // A target folder of its own: the outer build holds the lock on its own one.
    let target = PathBuf::from(var("OUT_DIR")).join("agent-target");
    let status = Command::new(var("CARGO"))
        .current_dir(&workspace)
        .args([
            "build",
            "--profile",
            "agent",
            "--package",
            "casita-agent",
            "--features",
            "init",
            "--target-dir",
        ])
        .arg(&target)
        // Flags for the outer program, such as those of a sanitizer, do not fit this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the agent did not build");
    println!(
        "cargo::rustc-env=CASITA_AGENT={}",
        target.join("agent/casita-agent").display()
    );
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
