//! Random layers against a model that only knows paths: what the image has is what the model has.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::{Tar, tree};
use tar::EntryType;

/// One entry of a layer. Paths are of few names, so that they meet.
#[derive(Debug, Clone)]
enum Op {
    File(String, u16),
    Directory(String, u32),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), 0..9000u16).prop_map(|(path, len)| Op::File(path, len)),
        3 => (path(), 0..0o10000u32).prop_map(|(path, mode)| Op::Directory(path, mode)),
        // To nothing that entries go through: the model follows no links.
        1 => (path(), "x[a-z]{0,99}").prop_map(|(path, target)| Op::Symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Op::Link(path, target)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Directory(u32),
    File(u16),
    Symlink(String),
}

#[derive(Debug, Clone)]
struct Item {
    kind: Kind,
    layer: usize,
}

/// The files of an image, by path.
#[derive(Default)]
struct Model {
    items: BTreeMap<String, Item>,
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

impl Model {
    fn is_directory(&self, path: &str) -> bool {
        matches!(
            self.items.get(path),
            Some(Item {
                kind: Kind::Directory(_),
                ..
            })
        )
    }

    fn clear(&mut self, path: &str) {
        self.items
            .retain(|other, _| other != path && !is_below(other, path));
    }

    /// Whether every parent is a directory or missing.
    fn reachable(&self, path: &str) -> bool {
        parents(path).all(|parent| self.is_directory(parent) || !self.items.contains_key(parent))
    }

    fn put(&mut self, path: &str, kind: Kind, layer: usize) {
        for parent in parents(path) {
            let made = Item {
                kind: Kind::Directory(0o755),
                layer,
            };
            self.items.entry(parent.to_owned()).or_insert(made);
        }
        if !(matches!(kind, Kind::Directory(_)) && self.is_directory(path)) {
            self.clear(path);
        }
        self.items.insert(path.to_owned(), Item { kind, layer });
    }

    /// Hides what lower layers have below a path, but for directories of which this layer needs
    /// what is below.
    fn hide(&mut self, layer: usize, hidden: impl Fn(&str) -> bool) {
        let present: Vec<String> = self
            .items
            .iter()
            .filter(|(_, item)| item.layer == layer)
            .map(|(path, _)| path.clone())
            .collect();
        self.items.retain(|path, item| {
            !hidden(path)
                || item.layer == layer
                || present.iter().any(|other| is_below(other, path))
        });
    }

    /// False if the importer has to refuse this.
    fn apply(&mut self, op: &Op, layer: usize) -> bool {
        match op {
            Op::File(path, _) | Op::Directory(path, _) | Op::Symlink(path, _)
                if !self.reachable(path) =>
            {
                return false;
            }
            Op::Whiteout(path) if !self.reachable(path) => return false,
            Op::Opaque(path) if !self.reachable(path) => return false,
            Op::File(path, len) => self.put(path, Kind::File(*len), layer),
            Op::Directory(path, mode) => self.put(path, Kind::Directory(*mode), layer),
            Op::Symlink(path, target) => self.put(path, Kind::Symlink(target.clone()), layer),
            Op::Link(path, target) => {
                if !self.reachable(path) || !self.reachable(target) || self.is_directory(target) {
                    return false;
                }
                let Some(item) = self.items.get(target) else {
                    return false;
                };
                let kind = item.kind.clone();
                // A link to itself changes nothing.
                if path != target {
                    self.put(path, kind, layer);
                }
            }
            Op::Whiteout(path) => self.hide(layer, |other| other == path || is_below(other, path)),
            Op::Opaque(path) => {
                if self.is_directory(path) {
                    self.hide(layer, |other| is_below(other, path));
                }
            }
        }
        true
    }
}

fn sibling(path: &str, prefix: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{prefix}{name}"),
        None => format!("{prefix}{path}"),
    }
}

fn data(path_len: u16) -> String {
    (0..path_len)
        .map(|at| char::from(b'a' + (at % 23) as u8))
        .collect()
}

fn add(tar: Tar, op: &Op) -> Tar {
    match op {
        Op::File(path, len) => tar.file(path, &data(*len)),
        Op::Directory(path, mode) => tar.entry(EntryType::Directory, path, "", *mode),
        Op::Symlink(path, target) => tar.symlink(path, target),
        Op::Link(path, target) => tar.link(path, target),
        Op::Whiteout(path) => tar.file(&sibling(path, ".wh."), ""),
        Op::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), ""),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn an_image_is_what_its_layers_say(
        layers in prop::collection::vec(prop::collection::vec(op(), 0..16), 1..4),
    ) {
        let mut model = Model::default();
        let mut tars = Vec::new();
        for (layer, ops) in layers.iter().enumerate() {
            let mut tar = Tar::new();
            for op in ops {
                if model.apply(op, layer) {
                    tar = add(tar, op);
                }
            }
            tars.push(tar.done());
        }
        let mut found = tree(&tars);
        found.remove("/");
        let paths: Vec<&String> = found.keys().collect();
        prop_assert_eq!(paths, model.items.keys().collect::<Vec<_>>());
        for (path, item) in &model.items {
            let node = &found[path];
            let content = String::from_utf8(node.content.clone()).unwrap();
            let kind = match node.mode & 0o170_000 {
                0o040_000 => Kind::Directory(u32::from(node.mode & 0o7777)),
                0o120_000 => Kind::Symlink(content),
                _ => {
                    prop_assert!(content == data(content.len() as u16), "data of {}", path);
                    Kind::File(content.len() as u16)
                }
            };
            prop_assert_eq!(&kind, &item.kind, "{}", path);
        }
    }
}
