//! The namespace containers that Casita is raced against, each running `true` and nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Subjects;

/// A container program, and how it is called for one run.
pub struct Container {
    /// Its name in tables.
    pub name: &'static str,
    bundle: PathBuf,
}

impl Container {
    /// Those that are installed.
    pub fn all(subjects: &Subjects) -> Result<Vec<Self>> {
        let bundle = make_bundle(subjects)?;
        let installed = |name: &&str| {
            std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path).any(|folder| folder.join(name).exists())
            })
        };
        Ok(["unshare", "bwrap", "crun"]
            .into_iter()
            .filter(installed)
            .map(|name| Self {
                name,
                bundle: bundle.clone(),
            })
            .collect())
    }

    /// One run of `true` with all namespaces that the program makes, on a small root.
    pub fn command(&self, run: usize) -> Command {
        let root = self.bundle.join("rootfs");
        let mut command = Command::new(self.name);
        match self.name {
            "unshare" => {
                command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
                command.args(["--fork", "--mount-proc", "--root"]);
                command.arg(root).arg("/bin/true");
            }
            "bwrap" => {
                command.args(["--unshare-all", "--die-with-parent", "--ro-bind"]);
                command.arg(root).args(["/", "--proc", "/proc"]);
                command.args(["--dev", "/dev", "/bin/true"]);
            }
            _ => {
                command.args(["--cgroup-manager", "cgroupfs", "run", "--bundle"]);
                command.arg(&self.bundle).arg(format!("bench-{run}"));
            }
        }
        command
    }
}

/// An OCI bundle whose root has busybox.
fn make_bundle(subjects: &Subjects) -> Result<PathBuf> {
    let bundle = subjects.work.join("bundle");
    let root = bundle.join("rootfs");
    let _ = fs::remove_dir_all(&bundle);
    for folder in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("busybox-static is not installed")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/true"))?;
    let output = Command::new("crun")
        .arg("spec")
        .current_dir(&bundle)
        .output();
    if let Ok(output) = output {
        ensure!(output.status.success(), "crun spec failed");
        let path = bundle.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = vec!["/bin/true"].into();
        fs::write(&path, serde_json::to_vec(&config)?)?;
    }
    Ok(bundle)
}
