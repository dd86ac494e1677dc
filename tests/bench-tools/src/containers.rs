//! The namespace containers that Casita is raced against: the same root file system and the same
//! words as its guests have.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Subjects;

/// A container program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// util-linux's.
    Unshare,
    /// bubblewrap's.
    Bwrap,
    /// The OCI runtime in C.
    Crun,
    /// The OCI runtime in Go.
    Runc,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Unshare, Self::Bwrap, Self::Crun, Self::Runc];
    const OCI: [Self; 2] = [Self::Crun, Self::Runc];

    /// Its name as a program and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unshare => "unshare",
            Self::Bwrap => "bwrap",
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }

    fn is_installed(self) -> bool {
        std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join(self.name()).exists())
        })
    }

    /// The program with its own options.
    fn program(self) -> Command {
        let mut command = Command::new(self.name());
        if self == Self::Crun {
            command.args(["--cgroup-manager", "cgroupfs"]);
        }
        command
    }
}

/// The containers' root, and what an OCI runtime is told.
pub struct Containers {
    root: PathBuf,
    bundles: PathBuf,
    spec: Value,
}

impl Containers {
    /// Unpacks the image that Casita's guests have.
    pub fn new(subjects: &Subjects) -> Result<Self> {
        let folder = subjects.work.join("containers");
        let _ = fs::remove_dir_all(&folder);
        let (root, bundles) = (folder.join("root"), folder.join("bundles"));
        fs::create_dir_all(&bundles)?;
        let output = Command::new("fsck.erofs")
            .arg(format!("--extract={}", root.display()))
            .arg(&subjects.image)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .context("fsck.erofs (erofs-utils) can't be started")?;
        ensure!(
            output.status.success(),
            "fsck.erofs: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut spec = Value::Null;
        if Kind::Crun.is_installed() {
            let output = Command::new("crun")
                .arg("spec")
                .current_dir(&folder)
                .output()?;
            ensure!(output.status.success(), "crun spec failed");
            spec = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
            spec["process"]["terminal"] = false.into();
            spec["root"]["path"] = root.display().to_string().into();
        }
        Ok(Self {
            root,
            bundles,
            spec,
        })
    }

    /// All that are installed.
    pub fn installed(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| self.can_run(*kind))
    }

    /// Those whose containers can be entered.
    pub fn oci(&self) -> impl Iterator<Item = Kind> {
        Kind::OCI.into_iter().filter(|kind| self.can_run(*kind))
    }

    fn can_run(&self, kind: Kind) -> bool {
        kind.is_installed() && (!Kind::OCI.contains(&kind) || !self.spec.is_null())
    }

    /// Runs `words` to their end with all namespaces that the program makes. No two containers at
    /// a time may have the same `name`.
    pub fn run(&self, kind: Kind, name: &str, words: &[&str]) -> Result<Command> {
        let mut command = kind.program();
        match kind {
            Kind::Unshare => {
                command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
                command.args(["--fork", "--mount-proc", "--root"]);
                command.arg(&self.root).args(words);
            }
            Kind::Bwrap => {
                command.args(["--unshare-all", "--die-with-parent", "--ro-bind"]);
                command.arg(&self.root).args(["/", "--proc", "/proc"]);
                command.args(["--dev", "/dev"]).args(words);
            }
            Kind::Crun | Kind::Runc => {
                command.args(["run", "--bundle"]);
                command.arg(self.bundle(kind, name, words)?).arg(name);
            }
        }
        Ok(command)
    }

    fn bundle(&self, kind: Kind, name: &str, words: &[&str]) -> Result<PathBuf> {
        let bundle = self.bundles.join(format!("{}-{name}", kind.name()));
        fs::create_dir_all(&bundle)?;
        let mut spec = self.spec.clone();
        spec["process"]["args"] = words.into();
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
        Ok(bundle)
    }

    /// Starts a container that stays.
    pub fn start(&self, kind: Kind, name: &str, words: &[&str]) -> Result<Standing> {
        let bundle = self.bundle(kind, name, words)?;
        let status = kind
            .program()
            .args(["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "{} run --detach failed", kind.name());
        Ok(Standing {
            kind,
            name: name.to_owned(),
        })
    }
}

/// A container that runs until this is dropped.
pub struct Standing {
    kind: Kind,
    name: String,
}

impl Standing {
    /// Runs `words` in it.
    pub fn exec(&self, words: &[&str]) -> Command {
        let mut command = self.kind.program();
        command.args(["exec", &self.name]).args(words);
        command
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // What is left of it ends with the lab, or is named by the next start.
        let _ = self
            .kind
            .program()
            .args(["delete", "--force", &self.name])
            .stdout(Stdio::null())
            .status();
    }
}
