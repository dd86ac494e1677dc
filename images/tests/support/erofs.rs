//! A second reader of EROFS, written from the format's description alone: it knows nothing of the
//! writer, and checks what the kernel relies on.

use std::collections::BTreeMap;
use std::path::Path;

const BLOCK: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub nid: u64,
    pub mode: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub device: u32,
    /// A file's data, a link's target.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

struct Image {
    bytes: Vec<u8>,
    inodes: usize,
    time: (i64, u32),
}

/// All paths of an image, the root as `/`, others without their first slash.
pub fn read(path: &Path) -> BTreeMap<String, Node> {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() % (2 << 20), 0, "padded for pmem");
    let at = |offset: usize, len: usize| &bytes[1024 + offset..][..len];
    assert_eq!(u32_at(at(0, 4), 0), 0xe0f5_e1e2);
    assert_eq!(at(12, 1), [12], "blocks of 4 KiB");
    assert_eq!(u32_at(at(80, 4), 0), 0, "no incompatible features");
    let blocks = u32_at(at(36, 4), 0) as usize;
    assert!(blocks * BLOCK <= bytes.len());
    let root = u64::from(u16_at(at(14, 2), 0));
    let count = u64_at(at(16, 8), 0);
    let image = Image {
        inodes: u32_at(at(40, 4), 0) as usize * BLOCK,
        time: (u64_at(at(24, 8), 0).cast_signed(), u32_at(at(32, 4), 0)),
        bytes,
    };
    let mut nodes = BTreeMap::new();
    let mut todo = vec![(String::new(), root, root)];
    while let Some((path, nid, parent)) = todo.pop() {
        let (node, data) = image.inode(nid);
        let mut directories = 0;
        for (name, child, kind) in entries(&data) {
            match name.as_slice() {
                b"." => assert_eq!(child, nid),
                b".." => assert_eq!(child, parent),
                name => {
                    let path = format!("{path}/{}", String::from_utf8_lossy(name));
                    let (below, content) = image.inode(child);
                    assert_eq!(kind, type_number(below.mode), "{path}");
                    if below.mode & 0o170_000 == 0o040_000 {
                        directories += 1;
                        todo.push((path, child, nid));
                    } else {
                        nodes.insert(path[1..].to_owned(), Node { content, ..below });
                    }
                }
            }
        }
        assert_eq!(node.links, 2 + directories, "links of {path}");
        let path = if path.is_empty() { "/" } else { &path[1..] };
        nodes.insert(path.to_owned(), node);
    }
    check_links(&nodes, count);
    nodes
}

fn check_links(nodes: &BTreeMap<String, Node>, count: u64) {
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    for node in nodes.values() {
        *names.entry(node.nid).or_default() += 1;
    }
    assert_eq!(names.len() as u64, count, "inodes by the superblock");
    for (path, node) in nodes
        .iter()
        .filter(|(_, node)| node.mode & 0o170_000 != 0o040_000)
    {
        assert_eq!(node.links, names[&node.nid], "links of {path}");
    }
}

fn type_number(mode: u16) -> u8 {
    match mode >> 12 {
        0o10 => 1,
        0o04 => 2,
        0o02 => 3,
        0o06 => 4,
        0o01 => 5,
        0o14 => 6,
        0o12 => 7,
        other => panic!("type {other:o}"),
    }
}

impl Image {
    fn inode(&self, nid: u64) -> (Node, Vec<u8>) {
        let start = self.inodes + nid as usize * 32;
        let raw = &self.bytes[start..];
        let format = u16_at(raw, 0);
        let (extended, layout) = (format & 1 == 1, format >> 1);
        let mode = u16_at(raw, 4);
        let (size, links, uid, gid, mtime) = if extended {
            let mtime = (u64_at(raw, 32).cast_signed(), u32_at(raw, 40));
            (
                u64_at(raw, 8),
                u32_at(raw, 44),
                u32_at(raw, 24),
                u32_at(raw, 28),
                mtime,
            )
        } else {
            let id = |offset| u32::from(u16_at(raw, offset));
            (u64::from(u32_at(raw, 8)), id(6), id(24), id(26), self.time)
        };
        let place = u32_at(raw, 16);
        let xattr_count = usize::from(u16_at(raw, 2));
        let xattrs_len = if xattr_count == 0 {
            0
        } else {
            12 + 4 * (xattr_count - 1)
        };
        let header = if extended { 64 } else { 32 };
        let xattrs = xattrs(&raw[header..][..xattrs_len]);
        let special = matches!(mode >> 12, 0o02 | 0o06);
        let size = size as usize;
        let (blocks, beside) = match layout {
            0 => (size, 0),
            2 => (size / BLOCK * BLOCK, size % BLOCK),
            other => panic!("layout {other}"),
        };
        let mut data = Vec::new();
        if blocks > 0 {
            data.extend_from_slice(&self.bytes[place as usize * BLOCK..][..blocks]);
        }
        if layout == 2 {
            let tail = start + header + xattrs_len;
            assert!(beside > 0, "a tail of nothing");
            assert_eq!(
                tail / BLOCK,
                (tail + beside - 1) / BLOCK,
                "a tail over two blocks"
            );
            data.extend_from_slice(&self.bytes[tail..][..beside]);
        }
        let device = if special { place } else { 0 };
        let node = Node {
            nid,
            mode,
            links,
            uid,
            gid,
            mtime,
            device,
            content: Vec::new(),
            xattrs,
        };
        (node, data)
    }
}

fn xattrs(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    if bytes.is_empty() {
        return found;
    }
    bytes = &bytes[12..];
    while !bytes.is_empty() {
        let (name_len, value_len) = (usize::from(bytes[0]), usize::from(u16_at(bytes, 2)));
        let prefix = match bytes[1] {
            1 => "user.",
            2 => "system.posix_acl_access",
            3 => "system.posix_acl_default",
            4 => "trusted.",
            6 => "security.",
            other => panic!("attribute index {other}"),
        };
        let name = format!(
            "{prefix}{}",
            String::from_utf8_lossy(&bytes[4..][..name_len])
        );
        found.insert(name, bytes[4 + name_len..][..value_len].to_vec());
        bytes = &bytes[(4 + name_len + value_len).next_multiple_of(4)..];
    }
    found
}

/// A directory's names, numbers and types; the order is what lookups rely on.
fn entries(data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
    for block in data.chunks(BLOCK) {
        let count = usize::from(u16_at(block, 8)) / 12;
        for index in 0..count {
            let entry = &block[index * 12..];
            let from = usize::from(u16_at(entry, 8));
            let to = if index + 1 < count {
                usize::from(u16_at(entry, 20))
            } else {
                block.len()
            };
            let name: Vec<u8> = block[from..to]
                .iter()
                .copied()
                .take_while(|&b| b != 0)
                .collect();
            if let Some((before, ..)) = entries.last() {
                assert!(*before < name, "{before:?} before {name:?}");
            }
            entries.push((name, u64_at(entry, 0), entry[10]));
        }
    }
    entries
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..][..2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..][..4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..][..8].try_into().unwrap())
}
