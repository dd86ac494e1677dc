//! A file system's tree in memory: what layers are applied to, and EROFS is written from.
//!
//! Inodes lie in one vector and are known by their place in it; a directory maps names to them, in
//! the order that EROFS wants. Nothing here recurses: a tree may be as deep as a hostile layer
//! wants it. Files' data are not here; a file knows at which block of the image they start.

mod hide;
mod path;

use std::cell::Cell;
use std::collections::BTreeMap;

pub use crate::archive::{Time, Xattr};
pub(crate) use path::lossy;
pub use path::{MAX_NAME, MAX_PATH, PathError, Place, components};

/// The root directory.
pub const ROOT: InodeId = InodeId(0);

/// Names, link targets and attributes of all inodes may have so many bytes together: they stay in
/// memory.
const MAX_TEXT: u64 = 256 << 20;

/// What an attribute takes in memory beside its bytes.
const XATTR_COST: usize = 32;

/// Links may lead through thousands of directories, for every entry: together they take no more
/// steps than this.
const MAX_STEPS: u64 = 100_000_000;

/// An inode, by its place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// Its place, less than [`Tree::capacity`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// The lower 12 bits of the mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last changed.
    pub mtime: Time,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// A file's data in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The first block; of no meaning without bytes.
    pub block: u32,
    /// How many bytes.
    pub size: u64,
}

/// What an inode is.
#[derive(Debug)]
pub enum Content {
    /// A directory.
    Directory(Box<Directory>),
    /// A file.
    File(Data),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A character device, its numbers as Linux encodes them.
    Char(u32),
    /// A block device.
    Block(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One inode.
#[derive(Debug)]
pub struct Inode {
    /// Mode, owner, time, attributes.
    pub meta: Meta,
    /// What it is.
    pub content: Content,
    /// How many names it has; of a directory, without `.` and `..`.
    pub links: u32,
}

/// A directory's names.
#[derive(Debug)]
pub struct Directory {
    /// The directory it is in; the root's is itself.
    pub parent: InodeId,
    /// Its names, in the order of their bytes.
    pub entries: BTreeMap<Box<[u8]>, Name>,
    /// The last layer that put something at or below here.
    touched: u16,
    /// The last layer that hid all that lower ones had put here.
    opaque: u16,
}

/// Where a name leads, and which layer says so.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// The inode.
    pub inode: InodeId,
    layer: u16,
}

/// Why something can't be put into the tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Its path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// More entries than allowed.
    #[error("the image has more than {0} entries")]
    TooMany(u64),
    /// More text than allowed.
    #[error("the image's names, links and attributes have more than 256 MiB")]
    TooMuchText,
    /// A hard link to what is not there.
    #[error("is a hard link to {0:?}, which is not in the image")]
    NoTarget(String),
    /// A hard link to a directory.
    #[error("is a hard link to {0:?}, which is a directory")]
    DirectoryTarget(String),
    /// The root has to stay a directory.
    #[error("would replace the root directory")]
    Root,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Option<Inode>>,
    /// Places in `inodes` that are free.
    free: Vec<InodeId>,
    /// Data of files that are gone.
    dead: Vec<Data>,
    /// The layer that is being applied, from 1.
    layer: u16,
    names_left: u64,
    max_names: u64,
    text_left: u64,
    /// Steps through symbolic links that may still be taken.
    steps_left: Cell<u64>,
}

impl Tree {
    /// A root directory without names.
    pub fn new(max_names: u64) -> Self {
        let meta = Meta {
            mode: 0o755,
            ..Meta::default()
        };
        let root = Inode {
            meta,
            content: Content::Directory(Box::new(Directory::new(ROOT, 0))),
            links: 1,
        };
        Self {
            inodes: vec![Some(root)],
            free: Vec::new(),
            dead: Vec::new(),
            layer: 1,
            names_left: max_names,
            max_names,
            text_left: MAX_TEXT,
            steps_left: Cell::new(MAX_STEPS),
        }
    }

    /// What follows comes from the next layer.
    pub fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// One more than the largest place of an inode.
    pub fn capacity(&self) -> usize {
        self.inodes.len()
    }

    /// An inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        self.inodes[id.index()]
            .as_ref()
            .expect("an id is of an inode that has names")
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[id.index()]
            .as_mut()
            .expect("an id is of an inode that has names")
    }

    /// A directory's names; none if it is something else.
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// All inodes that there are.
    pub fn inodes(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.iter().flatten()
    }

    /// Data of files that went since the last call.
    pub fn take_dead(&mut self) -> Vec<Data> {
        std::mem::take(&mut self.dead)
    }

    /// Puts a new inode into a place, instead of what is there. A directory stays one, with its
    /// names, and only gets new metadata.
    ///
    /// # Errors
    /// If there are too many, or the place is the root and the inode no directory.
    pub fn put(
        &mut self,
        place: &Place<'_>,
        meta: Meta,
        content: Content,
    ) -> Result<InodeId, TreeError> {
        let xattrs: usize = meta
            .xattrs
            .iter()
            .map(|it| XATTR_COST + it.name.len() + it.value.len())
            .sum();
        let link = match &content {
            Content::Symlink(target) => target.len(),
            _ => 0,
        };
        self.count_text(xattrs + link)?;
        let is_directory = matches!(content, Content::Directory(_));
        let Place::Name { parent, name } = *place else {
            if !is_directory {
                return Err(TreeError::Root);
            }
            self.inode_mut(ROOT).meta = meta;
            return Ok(ROOT);
        };
        if is_directory
            && let Some(there) = self.lookup(parent, name)
            && self.directory(there).is_some()
        {
            self.inode_mut(there).meta = meta;
            let layer = self.layer;
            if let Some(entry) = self
                .directory_mut(parent)
                .and_then(|it| it.entries.get_mut(name))
            {
                entry.layer = layer;
            }
            return Ok(there);
        }
        let id = self.insert(Inode {
            meta,
            content,
            links: 0,
        })?;
        if let Some(directory) = self.directory_mut(id) {
            directory.parent = parent;
        }
        self.name(parent, name, id)?;
        Ok(id)
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// If it is a directory, or there are too many names.
    pub fn link(&mut self, place: &Place<'_>, target: InodeId) -> Result<(), TreeError> {
        let Place::Name { parent, name } = *place else {
            return Err(TreeError::Root);
        };
        if self.lookup(parent, name) == Some(target) {
            return Ok(());
        }
        self.name(parent, name, target)
    }

    /// Counts an entry that puts nothing into the tree.
    ///
    /// # Errors
    /// If there are too many.
    pub fn count_entry(&mut self) -> Result<(), TreeError> {
        let left = self.names_left.checked_sub(1);
        self.names_left = left.ok_or(TreeError::TooMany(self.max_names))?;
        Ok(())
    }

    fn count_text(&mut self, len: usize) -> Result<(), TreeError> {
        let left = self.text_left.checked_sub(len as u64);
        self.text_left = left.ok_or(TreeError::TooMuchText)?;
        Ok(())
    }

    /// An empty directory, as content for [`Tree::put`].
    pub fn new_directory(&self) -> Content {
        Content::Directory(Box::new(Directory::new(ROOT, self.layer)))
    }

    fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        Some(self.directory(directory)?.entries.get(name)?.inode)
    }

    fn insert(&mut self, inode: Inode) -> Result<InodeId, TreeError> {
        if let Some(id) = self.free.pop() {
            self.inodes[id.index()] = Some(inode);
            return Ok(id);
        }
        let id =
            u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooMany(self.max_names))?;
        self.inodes.push(Some(inode));
        Ok(InodeId(id))
    }

    /// Lets a name lead to an inode, instead of what it leads to.
    fn name(&mut self, parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), TreeError> {
        self.count_entry()?;
        self.count_text(name.len())?;
        self.inode_mut(inode).links += 1;
        let layer = self.layer;
        let directory = self
            .directory_mut(parent)
            .expect("a place is in a directory");
        let before = match directory.entries.get_mut(name) {
            Some(entry) => Some(std::mem::replace(entry, Name { inode, layer })),
            None => directory.entries.insert(name.into(), Name { inode, layer }),
        };
        if let Some(before) = before {
            self.unlink(before.inode);
        }
        Ok(())
    }
}

impl Directory {
    fn new(parent: InodeId, touched: u16) -> Self {
        Self {
            parent,
            entries: BTreeMap::new(),
            touched,
            opaque: 0,
        }
    }
}

/// A device's number as Linux encodes it in 32 bits; none if it does not fit.
pub fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}
