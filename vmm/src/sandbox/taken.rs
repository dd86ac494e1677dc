//! Files that are taken out of a run, from the archives that its guest has made. Whatever a guest
//! writes, no more is kept than was asked for, and nothing but files.

use std::collections::HashMap;

use casita_agent::tar::{BLOCK, Entry, Kind, Reader, Step, TarError, padding};

use super::Bytes;
use super::result::{NotTaken, TakenFile};

/// The most files of a run.
const MAX_FILES: usize = 65536;
/// The most that is told of what was not taken.
const MAX_LEFT_OUT: usize = 4096;
/// The most that their paths take together, in bytes.
const MAX_NAMES: usize = 16 << 20;

/// What was taken so far.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) files: Vec<TakenFile>,
    pub(super) left_out: Vec<NotTaken>,
    limit: u64,
    left: u64,
    names_left: usize,
    archive: Option<Archive>,
}

/// An archive that comes in parts.
#[derive(Debug)]
struct Archive {
    /// The path that it was made of.
    path: String,
    reader: Reader,
    block: Vec<u8>,
    state: State,
    /// Where in [`Taken::files`] the files of this archive are, by their paths.
    places: HashMap<String, usize>,
}

#[derive(Debug)]
enum State {
    Header,
    /// In the content of a file, of which so much is left; then padding of this length.
    Content {
        file: Option<TakenFile>,
        left: u64,
        padding: usize,
    },
    /// Nothing more is read.
    Over,
}

impl Taken {
    /// Takes files with at most `limit` bytes of content together.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            files: Vec::new(),
            left_out: Vec::new(),
            limit,
            left: limit,
            names_left: MAX_NAMES,
            archive: None,
        }
    }

    /// An archive of what is at `path` in the guest comes next.
    pub(super) fn begin(&mut self, path: &str) {
        self.archive = Some(Archive {
            path: path.to_owned(),
            reader: Reader::default(),
            block: Vec::with_capacity(BLOCK),
            state: State::Header,
            places: HashMap::new(),
        });
    }

    /// A part of it.
    pub(super) fn part(&mut self, mut bytes: &[u8]) {
        let Some(mut archive) = self.archive.take() else {
            return;
        };
        while !bytes.is_empty() {
            if let Err(why) = archive.step(&mut bytes, self) {
                self.not(&archive.path, &why);
                archive.state = State::Over;
            }
        }
        self.archive = Some(archive);
    }

    /// Its end; `why` it is not whole, if it is not.
    pub(super) fn end(&mut self, why: &str) {
        let Some(archive) = self.archive.take() else {
            return;
        };
        match archive.state {
            State::Over => {}
            _ if !why.is_empty() => self.not(&archive.path, why),
            _ => self.not(&archive.path, &TarError::Truncated.to_string()),
        }
    }

    fn not(&mut self, path: &str, why: &str) {
        if self.left_out.len() < MAX_LEFT_OUT {
            self.left_out.push(NotTaken {
                path: path.to_owned(),
                why: why.to_owned(),
            });
        }
    }

    /// Whether there is room for one more file of this name and size.
    fn makes_room(&mut self, name: &str, size: u64) -> bool {
        let left = self.left.checked_sub(size);
        let names_left = self.names_left.checked_sub(name.len());
        match (left, names_left) {
            (Some(left), Some(names_left)) if self.files.len() < MAX_FILES => {
                (self.left, self.names_left) = (left, names_left);
                true
            }
            _ => false,
        }
    }
}

impl Archive {
    /// Takes some bytes from the front of `bytes`.
    fn step(&mut self, bytes: &mut &[u8], taken: &mut Taken) -> Result<(), String> {
        match &mut self.state {
            State::Over => *bytes = &[],
            State::Header => {
                let missing = BLOCK - self.block.len();
                self.block.extend_from_slice(cut(bytes, missing));
                if let Some(block) = self.block.first_chunk() {
                    let step = self
                        .reader
                        .block(block)
                        .map_err(|error| error.to_string())?;
                    self.block.clear();
                    match step {
                        Step::More => {}
                        Step::End => self.state = State::Over,
                        Step::Entry(entry) => self.enter(&entry, taken),
                    }
                }
            }
            State::Content {
                file,
                left,
                padding,
            } => {
                if *left > 0 {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX);
                    let content = cut(bytes, most);
                    *left -= content.len() as u64;
                    if let Some(file) = file {
                        file.data.0.extend_from_slice(content);
                    }
                } else {
                    *padding -= cut(bytes, *padding).len();
                }
                if *left == 0 && *padding == 0 {
                    let file = file.take();
                    self.state = State::Header;
                    self.keep(file, taken);
                }
            }
        }
        Ok(())
    }

    /// What becomes of an entry.
    fn enter(&mut self, entry: &Entry, taken: &mut Taken) {
        let file = self.file(entry, taken).unwrap_or_else(|(name, why)| {
            taken.not(&name, &why);
            None
        });
        if entry.size == 0 {
            self.keep(file, taken);
        } else {
            self.state = State::Content {
                file,
                left: entry.size,
                padding: padding(entry.size),
            };
        }
    }

    /// The file that an entry makes, as far as it is known before its content comes; none of a directory.
    ///
    /// # Errors
    /// It is left out: under what name, and why.
    fn file(
        &self,
        entry: &Entry,
        taken: &mut Taken,
    ) -> Result<Option<TakenFile>, (String, String)> {
        let Some(path) = below(&self.path, &entry.path) else {
            let why = "its archive has a path that leads out of it";
            return Err((self.path.clone(), why.to_owned()));
        };
        // Which of a file's names comes first is for the guest's file system to say: each is a file of its
        // own here.
        let first = match &entry.kind {
            Kind::Directory => return Ok(None),
            Kind::File => None,
            Kind::HardLink(target) => {
                let place = self.place(target);
                if place.is_none() {
                    let why = "it is another name of a file that was not taken";
                    return Err((path, why.to_owned()));
                }
                place
            }
            kind => return Err((path, what(kind).to_owned())),
        };
        let size = first.map_or(entry.size, |place| taken.files[place].data.0.len() as u64);
        if !taken.makes_room(&path, size) {
            let limit = taken.limit;
            let why =
                format!("with it there would be more to take than the limit of {limit} bytes");
            return Err((path, why));
        }
        let (mode, data) = match first {
            None => (entry.mode & 0o777, Bytes::default()),
            Some(place) => (taken.files[place].mode, taken.files[place].data.clone()),
        };
        Ok(Some(TakenFile { path, mode, data }))
    }

    /// Where the file is that the archive calls `target`, if that came and was taken.
    fn place(&self, target: &[u8]) -> Option<usize> {
        let place = self.places.get(&below(&self.path, target)?)?;
        Some(*place)
    }

    /// Takes a file that is whole.
    fn keep(&mut self, file: Option<TakenFile>, taken: &mut Taken) {
        if let Some(file) = file {
            self.places.insert(file.path.clone(), taken.files.len());
            taken.files.push(file);
        }
    }
}

/// Takes up to `most` bytes from the front.
fn cut<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (cut, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    cut
}

fn what(kind: &Kind) -> &'static str {
    match kind {
        Kind::Symlink(_) => "it is a symbolic link",
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => "it is a device",
        Kind::Fifo => "it is a FIFO",
        Kind::File | Kind::HardLink(_) | Kind::Directory => "it is of a kind that is not taken",
    }
}

/// The path in the guest of what the archive of `path` calls `name`: the first part of that is the
/// last of `path`. `None` if it is anything else.
fn below(path: &str, name: &[u8]) -> Option<String> {
    let name = String::from_utf8_lossy(name);
    let name = name.trim_end_matches('/');
    let mut parts = name.split('/');
    let sane = |part: &str| !part.is_empty() && part != "." && part != "..";
    let (directory, last) = path.rsplit_once('/')?;
    let good = parts.next() == Some(last) && parts.all(sane) && sane(last);
    good.then(|| format!("{directory}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use casita_agent::tar::{Time, end, header};
    use proptest::prelude::*;

    fn entry(path: &str, kind: Kind, content: &[u8]) -> Vec<u8> {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            mtime: Time::default(),
            size: content.len() as u64,
            xattrs: Vec::new(),
        };
        let mut bytes = Vec::new();
        header(&entry, &mut bytes).unwrap();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + padding(entry.size), 0);
        bytes
    }

    fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = entries.concat();
        end(&mut bytes);
        bytes
    }

    fn taken(path: &str, bytes: &[u8], limit: u64, part: usize) -> Taken {
        let mut taken = Taken::new(limit);
        taken.begin(path);
        bytes.chunks(part).for_each(|part| taken.part(part));
        taken.end("");
        taken
    }

    #[test]
    fn files_are_taken_whatever_the_parts() {
        let bytes = archive(&[
            entry("out", Kind::Directory, b""),
            entry("out/a", Kind::File, b"one"),
            entry("out/empty", Kind::File, b""),
            entry("out/d/b", Kind::File, &[7; 1024]),
        ]);
        for part in [1, 7, 511, 512, 4096, usize::MAX] {
            let taken = taken("/x/out", &bytes, 5000, part);
            assert!(taken.left_out.is_empty(), "{:?}", taken.left_out);
            let all: Vec<_> = taken.files.iter().map(|file| file.path.as_str()).collect();
            assert_eq!(all, ["/x/out/a", "/x/out/empty", "/x/out/d/b"]);
            assert_eq!(taken.files[0].data, Bytes::from("one"));
            assert_eq!(taken.files[0].mode, 0o755);
            assert_eq!(taken.files[2].data.0, [7; 1024]);
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_and_what_is_no_file_is_left_out() {
        let outside = [
            "/etc/passwd",
            "../x",
            "out/../../x",
            "other/x",
            "out/./x",
            ".",
        ];
        let mut entries: Vec<_> = outside
            .iter()
            .map(|path| entry(path, Kind::File, b"evil"))
            .collect();
        let link = Kind::Symlink(b"/etc/passwd".to_vec());
        entries.push(entry("out/l", link, b""));
        entries.push(entry("out/h", Kind::HardLink(b"/etc/shadow".to_vec()), b""));
        entries.push(entry("out/f", Kind::Fifo, b""));
        let taken = taken("/out", &archive(&entries), 5000, 100);
        assert!(taken.files.is_empty(), "{:?}", taken.files);
        assert_eq!(taken.left_out.len(), entries.len());
    }

    #[test]
    fn each_name_of_a_file_is_a_file_within_the_limit() {
        let link = |path, target: &[u8]| entry(path, Kind::HardLink(target.to_vec()), b"");
        let bytes = archive(&[
            entry("o/d/a", Kind::File, b"four"),
            link("o/b", b"o/d/a"),
            link("o/c", b"o/b"),
            link("o/e", b"o/e"),
            link("o/g", b"/o/d/a"),
            link("o/h", b"o/d/a"),
        ]);
        let taken = taken("/o", &bytes, 12, 100);
        let all: Vec<_> = taken
            .files
            .iter()
            .map(|file| (file.path.as_str(), file.mode, file.data.0.as_slice()))
            .collect();
        let four: &[u8] = b"four";
        assert_eq!(
            all,
            [
                ("/o/d/a", 0o755, four),
                ("/o/b", 0o755, four),
                ("/o/c", 0o755, four)
            ]
        );
        let not: Vec<_> = taken.left_out.iter().map(|not| not.path.as_str()).collect();
        assert_eq!(not, ["/o/e", "/o/g", "/o/h"]);
        assert!(taken.left_out[2].why.contains("limit of 12 bytes"));
    }

    #[test]
    fn no_more_is_taken_than_the_limit() {
        let big = 200 << 10;
        let bytes = archive(&[
            entry("o/a", Kind::File, &vec![1; big]),
            entry("o/b", Kind::File, b"2"),
        ]);
        let taken = taken("/o", &bytes, 10, 4096);
        let files: Vec<_> = taken.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(files, ["/o/b"]);
        assert!(taken.left_out[0].why.contains("limit of 10 bytes"));
    }

    #[test]
    fn half_an_archive_is_told() {
        let bytes = archive(&[entry("o", Kind::File, &[1; 600])]);
        for end in [0, 100, 512, 700, 1200] {
            let taken = taken("/o", &bytes[..end], 5000, 64);
            assert_eq!(taken.left_out.len(), 1, "{end}");
            assert!(taken.files.is_empty());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_not(bytes: Vec<u8>, part in 1..40_usize) {
            let taken = taken("/o", &bytes, 100, part);
            prop_assert!(taken.files.is_empty());
        }
    }
}
