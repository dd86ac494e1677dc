//! From an archive's path to a place in the tree, resolved inside the tree as a container engine
//! resolves it inside the image's root.

use super::{Content, InodeId, Meta, ROOT, Time, Tree, TreeError};

/// The longest name in a directory.
pub const MAX_NAME: usize = 255;
/// The longest path, and the longest target of a symbolic link.
pub const MAX_PATH: usize = 4095;
/// As many symbolic links as Linux follows.
const MAX_SYMLINKS: usize = 40;

/// Where an entry belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// The root directory itself.
    Root,
    /// A name in a directory.
    Name {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: &'a [u8],
    },
}

/// What is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing.
    #[error("has no name")]
    Empty,
    /// Up.
    #[error("has '..' in its name {0:?}")]
    DotDot(String),
    /// From the root, where that is not allowed.
    #[error("has the absolute name {0:?}")]
    Absolute(String),
    /// A byte that no file system takes.
    #[error("has a NUL in its name {0:?}")]
    Nul(String),
    /// A component that is too long.
    #[error("has a name of {0} bytes; at most 255 are possible")]
    NameTooLong(usize),
    /// The whole is too long.
    #[error("has a path of {0} bytes; at most 4095 are possible")]
    TooLong(usize),
    /// Below something that has nothing below.
    #[error("is below {0:?}, which is no directory")]
    NotDirectory(String),
    /// Through a link to nothing.
    #[error("goes through the symbolic link {0:?}, which leads to nothing in the image")]
    Dangling(String),
    /// Through links, too often.
    #[error("goes through symbolic links once too often: no real image follows 100 million")]
    TooManySteps,
    /// Through too many links.
    #[error("goes through more than 40 symbolic links")]
    TooManySymlinks,
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    /// What a message shows of a name.
    const SHOWN: usize = 256;
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    if bytes.len() > SHOWN {
        text.push_str("...");
    }
    text
}

/// The parts of an archive's path, without `.` and empty ones. A leading slash means nothing, as
/// all paths are below the image's root.
///
/// # Errors
/// If there is a part that no file can have.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong(path.len()));
    }
    if path.contains(&0) {
        return Err(PathError::Nul(lossy(path)));
    }
    let mut parts = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => (),
            b".." => return Err(PathError::DotDot(lossy(path))),
            part if part.len() > MAX_NAME => return Err(PathError::NameTooLong(part.len())),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

impl Tree {
    /// The place of a path whose directories are there, or are made if they are missing; then they
    /// get this time.
    ///
    /// # Errors
    /// If something on the way is no directory, or there are too many.
    pub fn place<'a>(&mut self, parts: &[&'a [u8]], mtime: Time) -> Result<Place<'a>, TreeError> {
        let Some((name, directories)) = parts.split_last() else {
            return Ok(Place::Root);
        };
        let (mut at, mut followed) = (ROOT, 0);
        self.touch(at);
        for part in directories {
            at = match self.step(at, part, &mut followed)? {
                Some(next) => next,
                None => self.make_directory(at, part, mtime)?,
            };
            self.touch(at);
        }
        Ok(Place::Name { parent: at, name })
    }

    /// The place of a path, if its directories are there.
    ///
    /// # Errors
    /// If something on the way is no directory.
    pub fn find_place<'a>(&self, parts: &[&'a [u8]]) -> Result<Option<Place<'a>>, TreeError> {
        let Some((name, directories)) = parts.split_last() else {
            return Ok(Some(Place::Root));
        };
        let (mut at, mut followed) = (ROOT, 0);
        for part in directories {
            match self.step(at, part, &mut followed)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(Place::Name { parent: at, name }))
    }

    /// What is at a place. A symbolic link is not followed.
    pub fn at(&self, place: &Place<'_>) -> Option<InodeId> {
        match *place {
            Place::Root => Some(ROOT),
            Place::Name { parent, name } => self.lookup(parent, name),
        }
    }

    /// What is at a place, as a directory: a symbolic link is followed. None if it is none.
    pub fn directory_at(&self, place: &Place<'_>) -> Option<InodeId> {
        match *place {
            Place::Root => Some(ROOT),
            Place::Name { parent, name } => self.step(parent, name, &mut 0).ok().flatten(),
        }
    }

    fn make_directory(
        &mut self,
        parent: InodeId,
        name: &[u8],
        mtime: Time,
    ) -> Result<InodeId, TreeError> {
        let meta = Meta {
            mode: 0o755,
            mtime,
            ..Meta::default()
        };
        let content = self.new_directory();
        self.put(&Place::Name { parent, name }, meta, content)
    }

    fn touch(&mut self, directory: InodeId) {
        let layer = self.layer;
        if let Some(directory) = self.directory_mut(directory) {
            directory.touched = layer;
        }
    }

    /// From a directory to the one of this name in it, through symbolic links; none if there is
    /// nothing of that name. `followed` counts the links of a whole path.
    fn step(
        &self,
        directory: InodeId,
        name: &[u8],
        followed: &mut usize,
    ) -> Result<Option<InodeId>, PathError> {
        let Some(next) = self.lookup(directory, name) else {
            return Ok(None);
        };
        match &self.inode(next).content {
            Content::Directory(_) => Ok(Some(next)),
            Content::Symlink(target) => self.follow(directory, name, target, followed).map(Some),
            _ => Err(PathError::NotDirectory(lossy(name))),
        }
    }

    /// Where a symbolic link leads, which has to be a directory. Inside the image: an absolute
    /// target starts at its root, and no `..` leads out of that.
    fn follow(
        &self,
        start: InodeId,
        link: &[u8],
        target: &[u8],
        followed: &mut usize,
    ) -> Result<InodeId, PathError> {
        let mut at = start;
        let mut begin = Some(target);
        // What remains of targets, the innermost last.
        let mut todo = Vec::new();
        loop {
            if let Some(target) = begin.take() {
                *followed += 1;
                if *followed > MAX_SYMLINKS {
                    return Err(PathError::TooManySymlinks);
                }
                if target.starts_with(b"/") {
                    at = ROOT;
                }
                todo.push(target);
            }
            let Some(rest) = todo.pop() else {
                return Ok(at);
            };
            let left = self.steps_left.get().checked_sub(1);
            self.steps_left.set(left.ok_or(PathError::TooManySteps)?);
            let mut parts = rest.splitn(2, |&byte| byte == b'/');
            let part = parts.next().unwrap_or_default();
            todo.extend(parts.next());
            match part {
                b"" | b"." => (),
                b".." => {
                    at = self
                        .directory(at)
                        .map_or(ROOT, |directory| directory.parent);
                }
                part => {
                    let dangling = || PathError::Dangling(lossy(link));
                    let next = self.lookup(at, part).ok_or_else(dangling)?;
                    match &self.inode(next).content {
                        Content::Directory(_) => at = next,
                        Content::Symlink(target) => begin = Some(target),
                        _ => return Err(PathError::NotDirectory(lossy(link))),
                    }
                }
            }
        }
    }
}
