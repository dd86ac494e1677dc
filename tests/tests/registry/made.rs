//! Images made for tests: in memory for the fake registry, with umoci for everything else.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::Result;
use casita_tests::place::Place;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::run;

pub fn digest(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
    format!("sha256:{hex}")
}

/// An image as a registry has it.
#[derive(Clone)]
pub struct Image {
    pub manifest: Vec<u8>,
    pub blobs: HashMap<String, Vec<u8>>,
    pub layers: Vec<String>,
}

impl Image {
    /// Of layers that have one file each, with this content.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        Self::of("amd64", files)
    }

    pub fn of(architecture: &str, files: &[(&str, &[u8])]) -> Self {
        let tars: Vec<_> = files.iter().map(|(name, data)| tar(name, data)).collect();
        let layers: Vec<_> = tars.iter().map(|tar| digest(tar)).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Cmd": ["/bin/true"], "Env": ["A=1"] },
            "rootfs": { "type": "layers", "diff_ids": layers },
        });
        let config = config.to_string().into_bytes();
        let descriptor = |kind: &str, bytes: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest(bytes),
                "size": bytes.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": tars.iter().map(|tar| descriptor("layer.v1.tar", tar)).collect::<Vec<_>>(),
        });
        let mut blobs: HashMap<_, _> = layers.iter().cloned().zip(tars).collect();
        blobs.insert(digest(&config), config);
        Self {
            manifest: manifest.to_string().into_bytes(),
            blobs,
            layers,
        }
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Writes it as an OCI layout of one or more images, by tag.
    pub fn layout(images: &[(&str, &Self)], folder: &Path) -> Result<()> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let mut manifests = Vec::new();
        for (tag, image) in images {
            let manifest = (image.digest(), image.manifest.clone());
            let all = image.blobs.clone().into_iter().chain([manifest]);
            for (name, content) in all {
                fs::write(blobs.join(name.trim_start_matches("sha256:")), content)?;
            }
            manifests.push(json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": image.digest(),
                "size": image.manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": tag },
            }));
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(folder.join("index.json"), index.to_string())?;
        fs::write(
            folder.join("oci-layout"),
            json!({ "imageLayoutVersion": "1.0.0" }).to_string(),
        )?;
        Ok(())
    }
}

/// An index of images by platform.
pub fn index(images: &[(&str, &Image)]) -> Vec<u8> {
    let entry = |(platform, image): &(&str, &Image)| -> Value {
        let (os, architecture) = platform.split_once('/').unwrap_or(("linux", platform));
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.digest(),
            "size": image.manifest.len(),
            "platform": { "os": os, "architecture": architecture },
        })
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": images.iter().map(entry).collect::<Vec<_>>(),
    });
    index.to_string().into_bytes()
}

/// A tar of one file.
pub fn tar(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", data.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// Bytes that no compression makes smaller, the same each time.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An OCI layout made by umoci: `PLACE/layout`, tag `v1`, two layers, of which the second removes
/// and replaces things of the first.
pub fn umoci(place: &Place) -> Result<()> {
    let layout = place.text("layout");
    let image = format!("{layout}:v1");
    let bundle = place.text("bundle");
    run(&["umoci", "init", "--layout", &layout])?;
    run(&["umoci", "new", "--image", &image])?;
    run(&["umoci", "unpack", "--image", &image, &bundle])?;
    let root = place.path("bundle/rootfs");
    first_layer(&root)?;
    run(&["umoci", "repack", "--image", &image, &bundle])?;
    fs::remove_dir_all(&bundle)?;
    run(&["umoci", "unpack", "--image", &image, &bundle])?;
    second_layer(&root)?;
    run(&["umoci", "repack", "--image", &image, &bundle])?;
    fs::remove_dir_all(&bundle)?;
    run(&[
        "umoci",
        "config",
        "--image",
        &image,
        "--config.cmd=/bin/hello",
        "--config.env=A=1",
        "--config.user=1000",
        "--config.workingdir=/home",
        "--config.stopsignal=SIGINT",
        "--config.exposedports=80/tcp",
    ])?;
    Ok(())
}

fn first_layer(root: &Path) -> Result<()> {
    for folder in ["bin", "etc", "home/user", "opaque/sub", "dev", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("bin/hello"), "#!/bin/sh\necho hello\n")?;
    fs::set_permissions(root.join("bin/hello"), PermissionsExt::from_mode(0o4755))?;
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    fs::write(root.join("etc/shadow"), "secret")?;
    fs::set_permissions(root.join("etc/shadow"), PermissionsExt::from_mode(0o640))?;
    chown(root.join("etc/shadow"), Some(0), Some(42))?;
    chown(root.join("home/user"), Some(1000), Some(1001))?;
    fs::write(root.join("etc/removed"), "x")?;
    fs::write(root.join("etc/changed"), "old")?;
    fs::write(root.join("etc/name with spaces, \u{e4}"), "x")?;
    fs::write(root.join("opaque/gone"), "x")?;
    fs::write(root.join("opaque/sub/gone"), "x")?;
    fs::write(root.join("large"), noise(1_500_001))?;
    fs::hard_link(root.join("large"), root.join("linked"))?;
    let none = XattrFlags::empty();
    setxattr(root.join("bin/hello"), "user.note", b"kept", none)?;
    // cap_net_bind_service, effective and permitted.
    let mut capability = [0; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 4);
    setxattr(root.join("large"), "security.capability", &capability, none)?;
    symlink("../../bin/hello", root.join("home/user/link"))?;
    let mode = Mode::from(0o600);
    mknodat(
        CWD,
        root.join("dev/null"),
        FileType::CharacterDevice,
        mode,
        makedev(1, 3),
    )?;
    mknodat(CWD, root.join("dev/fifo"), FileType::Fifo, mode, 0)?;
    Ok(())
}

fn second_layer(root: &Path) -> Result<()> {
    fs::remove_file(root.join("etc/removed"))?;
    fs::write(root.join("etc/changed"), "new and longer")?;
    fs::remove_dir_all(root.join("opaque"))?;
    fs::create_dir(root.join("opaque"))?;
    fs::write(root.join("opaque/new"), "x")?;
    fs::remove_dir_all(root.join("home/user"))?;
    fs::write(root.join("home/user"), "a file now")?;
    Ok(())
}
