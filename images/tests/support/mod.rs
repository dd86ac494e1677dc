//! What the tests share: building tars, making images, reading them back.

#![allow(dead_code, reason = "each test program uses its own part")]

pub mod erofs;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use casita_images::{Digest, Image, Import, ImportError, LayerInput, Limits, Store};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// A tar, entry by entry.
pub struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1000);
        header.set_size(0);
        header
    }

    /// With the name as it is, which the builder itself would not write.
    pub fn raw(mut self, mut header: Header, path: &[u8], link: &[u8], data: &[u8]) -> Self {
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn entry(self, kind: EntryType, path: &str, link: &str, mode: u32) -> Self {
        self.raw(
            Self::header(kind, mode),
            path.as_bytes(),
            link.as_bytes(),
            b"",
        )
    }

    pub fn file(self, path: &str, data: &str) -> Self {
        let header = Self::header(EntryType::Regular, 0o644);
        self.raw(header, path.as_bytes(), b"", data.as_bytes())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777)
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644)
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut len = body + body.to_string().len();
            if len.to_string().len() != body.to_string().len() {
                len += 1;
            }
            bytes.extend_from_slice(format!("{len} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        self.raw(
            Self::header(EntryType::XHeader, 0o644),
            b"PaxHeaders/x",
            b"",
            &bytes,
        )
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A store in a directory of its own.
pub struct Stores {
    pub dir: TempDir,
    pub store: Store,
    next: Cell<u32>,
}

impl Stores {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("images")).unwrap();
        Self {
            dir,
            store,
            next: Cell::new(0),
        }
    }

    pub fn import(&self, layers: &[Vec<u8>]) -> Result<Image, ImportError> {
        self.import_within(layers, &Limits::default())
    }

    pub fn import_within(&self, layers: &[Vec<u8>], limits: &Limits) -> Result<Image, ImportError> {
        self.next.set(self.next.get() + 1);
        let import = Import {
            reference: None,
            digest: Digest::of(&self.next.get().to_le_bytes()),
            config: b"{}",
            layers: inputs(layers),
        };
        self.store.import(import, limits, &|_| ())
    }

    /// What is in the store's directory but its lock.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("images")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != "lock");
        names.sort();
        names
    }
}

pub fn inputs(layers: &[Vec<u8>]) -> Vec<LayerInput> {
    let numbered = layers.iter().cloned().enumerate();
    numbered
        .map(|(index, layer)| LayerInput {
            name: format!("{}", index + 1),
            len: Some(layer.len() as u64),
            reader: Box::new(Cursor::new(layer)),
            diff_id: None,
        })
        .collect()
}

/// The tree of an image that is made of these layers.
pub fn tree(layers: &[Vec<u8>]) -> BTreeMap<String, erofs::Node> {
    let stores = Stores::new();
    let image = stores
        .import(layers)
        .unwrap_or_else(|error| panic!("{error}"));
    fsck(&image.path);
    erofs::read(&image.path)
}

/// The names in an image, with a word on what they are.
pub fn listing(layers: &[Vec<u8>]) -> Vec<String> {
    let describe = |(path, node): (String, erofs::Node)| {
        let text = String::from_utf8_lossy(&node.content).into_owned();
        match node.mode & 0o170_000 {
            0o040_000 => format!("{path}/"),
            0o120_000 => format!("{path} -> {text}"),
            0o100_000 => format!("{path} = {text}"),
            _ => format!("{path} ? {}", node.device),
        }
    };
    let mut lines: Vec<String> = tree(layers).into_iter().map(describe).collect();
    lines.retain(|line| line != "//");
    lines
}

/// The reference checker has to find nothing.
pub fn fsck(image: &Path) {
    let run = Command::new("fsck.erofs").arg("-d1").arg(image).output();
    let output = run.expect("fsck.erofs runs: install erofs-utils");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("<E>"), "{said}");
}
