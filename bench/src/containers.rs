//! The namespace containers that Casita is raced against: the same root file system and the same
//! words as its guests have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::geteuid;
use serde_json::{Value, json};

use crate::interrupt::{self, output_of};
use crate::subjects::Subjects;

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
    /// Containers without a daemon, as people use them.
    Podman,
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
            Self::Podman => "podman",
        }
    }

    fn is_installed(self) -> bool {
        is_installed(self.name())
    }

    /// Whether its containers have a name, by which they can be entered and removed.
    pub fn is_named(self) -> bool {
        matches!(self, Self::Crun | Self::Runc | Self::Podman)
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

/// Whether a program is in one of the folders where programs are.
pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

/// What a container has beside its root.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// A folder of the host's, and where it is inside.
    pub folder: Option<(PathBuf, &'static str)>,
    /// A network namespace that is there.
    pub network: Option<PathBuf>,
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
        let mut unpack = Command::new("fsck.erofs");
        unpack
            .arg(format!("--extract={}", root.display()))
            .arg(&subjects.image)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        output_of(&mut unpack).context("the image can't be unpacked; it takes erofs-utils")?;
        let mut spec = Value::Null;
        if let Some(runtime) = Kind::OCI.into_iter().find(|kind| kind.is_installed()) {
            let mut command = Command::new(runtime.name());
            command.arg("spec").current_dir(&folder);
            if !geteuid().is_root() {
                command.arg("--rootless");
            }
            output_of(&mut command)?;
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

    /// Whether a program is there to make such containers with.
    pub fn can_run(&self, kind: Kind) -> bool {
        kind.is_installed() && (!Kind::OCI.contains(&kind) || !self.spec.is_null())
    }

    /// Runs `words` to their end with all namespaces that the program makes. No two containers at
    /// a time may have the same `name`.
    pub fn run(&self, kind: Kind, name: &str, words: &[&str]) -> Result<Command> {
        self.run_with(kind, name, words, &Extras::default())
    }

    /// The same with more than a root.
    pub fn run_with(
        &self,
        kind: Kind,
        name: &str,
        words: &[&str],
        extras: &Extras,
    ) -> Result<Command> {
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
                command.args(["--dev", "/dev"]);
                if let Some((folder, inside)) = &extras.folder {
                    command.arg("--bind").arg(folder).arg(inside);
                }
                command.args(words);
            }
            Kind::Podman => {
                command.args(["run", "--rm", "--network", "none", "--name", name]);
                if let Some((folder, inside)) = &extras.folder {
                    command.arg(format!("--volume={}:{inside}", folder.display()));
                }
                command.arg("--rootfs").arg(&self.root).args(words);
            }
            Kind::Crun | Kind::Runc => {
                command.args(["run", "--bundle"]);
                command.arg(self.bundle(kind, name, words, extras)?);
                command.arg(name);
            }
        }
        Ok(command)
    }

    fn bundle(&self, kind: Kind, name: &str, words: &[&str], extras: &Extras) -> Result<PathBuf> {
        let bundle = self.bundles.join(format!("{}-{name}", kind.name()));
        fs::create_dir_all(&bundle)?;
        let mut spec = self.spec.clone();
        spec["process"]["args"] = words.into();
        if let Some((folder, inside)) = &extras.folder {
            add_folder(&mut spec, folder, inside);
        }
        if let Some(path) = &extras.network {
            enter_network(&mut spec, path);
        }
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
        Ok(bundle)
    }

    /// The folder that all containers have as their root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts a container that outlives the program that starts it, where that has such a thing, with
    /// that program's own output.
    pub fn background(&self, kind: Kind, name: &str, words: &[&str]) -> Result<Command> {
        if !Kind::OCI.contains(&kind) {
            return self.run(kind, name, words);
        }
        let mut command = kind.program();
        command.args(["run", "--detach", "--bundle"]);
        command.arg(self.bundle(kind, name, words, &Extras::default())?);
        command.arg(name);
        Ok(command)
    }

    /// Starts a container that stays.
    pub fn start(&self, kind: Kind, name: &str, words: &[&str]) -> Result<Standing> {
        // Before it is started: Ctrl-C may come between.
        let standing = Standing::new(kind, name);
        let mut command = self.background(kind, name, words)?;
        // The container keeps what it was started with, so this waits for no end of a pipe.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = interrupt::Child::start(&mut command)?;
        let status = child.wait()?;
        interrupt::check()?;
        anyhow::ensure!(status.success(), "{} run --detach failed", kind.name());
        Ok(standing)
    }
}

/// A container that runs until this is dropped.
pub struct Standing {
    kind: Kind,
    name: Option<String>,
}

impl Standing {
    /// Takes away a container that is started under `name`, when this is dropped.
    pub fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: Some(name.to_owned()),
        }
    }

    /// Nothing of it is left to take away.
    pub fn forget(mut self) {
        self.name = None;
    }

    /// Runs `words` in it.
    pub fn exec(&self, words: &[&str]) -> Command {
        let mut command = self.kind.program();
        command.arg("exec").args(&self.name).args(words);
        command
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        // What is left of it ends with the lab, or is named by the next start.
        let words: &[&str] = match self.kind {
            Kind::Podman => &["rm", "--force", "--time", "0"],
            Kind::Crun | Kind::Runc => &["delete", "--force"],
            Kind::Unshare | Kind::Bwrap => return,
        };
        let _ = self
            .kind
            .program()
            .args(words)
            .arg(name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// A folder of the host's in a container (OCI runtime specification, "Mounts").
fn add_folder(spec: &mut Value, folder: &Path, inside: &str) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(json!({
            "destination": inside,
            "type": "bind",
            "source": folder.display().to_string(),
            "options": ["bind", "rw"],
        }));
    }
}

/// A network namespace that is there, in place of a new one ("Linux Namespaces").
fn enter_network(spec: &mut Value, path: &Path) {
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|one| one["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": path.display().to_string() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_a_folder_and_one_network() {
        let mut spec = json!({
            "mounts": [],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }] },
        });
        add_folder(&mut spec, Path::new("/a"), "/data");
        enter_network(&mut spec, Path::new("/run/netns/n"));
        assert_eq!(spec["mounts"][0]["destination"], "/data");
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        let networks: Vec<_> = namespaces
            .iter()
            .filter(|one| one["type"] == "network")
            .collect();
        assert_eq!(networks.len(), 1);
        assert_eq!(networks[0]["path"], "/run/netns/n");
    }
}
