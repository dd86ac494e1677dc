//! Patterns of paths, as shells have them: `*`, `?` and `[...]` within one name. `*` and `?` at its
//! beginning do not match a leading dot.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// The most paths that a pattern leads to.
pub const MAX_FOUND: usize = 4096;
/// The longest path.
const MAX_PATH: usize = 4096;

/// Whether `text` has characters that make it a pattern.
pub fn is_pattern(text: &[u8]) -> bool {
    text.iter().any(|byte| b"*?[".contains(byte))
}

/// Whether the name `name` matches `pattern`. It takes time in proportion to the product of their
/// lengths, at most.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first().is_some_and(|first| b"*?[".contains(first)) {
        return false;
    }
    let (mut at, mut rest) = (pattern, name);
    // Where to go on if what follows the last `*` does not fit: with one character more for it.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some(behind) = at.strip_prefix(b"*") {
            again = Some((behind, rest));
            at = behind;
            continue;
        }
        let step = match (one(at), rest.split_first()) {
            (None, None) => return true,
            (Some((class, behind)), Some((byte, left))) if class.has(*byte) => Some((behind, left)),
            _ => None,
        };
        (at, rest) = match (step, again) {
            (Some(step), _) => step,
            (None, Some((behind, from))) => {
                let Some((_, from)) = from.split_first() else {
                    return false;
                };
                again = Some((behind, from));
                (behind, from)
            }
            (None, None) => return false,
        };
    }
}

/// What one character of a name may be.
enum Class<'a> {
    Any,
    Byte(u8),
    Set { members: &'a [u8], negated: bool },
}

impl Class<'_> {
    fn has(&self, byte: u8) -> bool {
        match self {
            Class::Any => true,
            Class::Byte(wanted) => *wanted == byte,
            Class::Set { members, negated } => {
                let mut members = *members;
                let mut found = false;
                while let Some((first, rest)) = members.split_first() {
                    members = match rest {
                        [b'-', last, rest @ ..] => {
                            found |= (*first..=*last).contains(&byte);
                            rest
                        }
                        rest => {
                            found |= *first == byte;
                            rest
                        }
                    };
                }
                found != *negated
            }
        }
    }
}

/// The first character of a pattern, and what follows it. A `[` without an end is itself.
fn one(pattern: &[u8]) -> Option<(Class<'_>, &[u8])> {
    let (first, rest) = pattern.split_first()?;
    Some(match first {
        b'?' => (Class::Any, rest),
        b'[' => set(rest).unwrap_or((Class::Byte(b'['), rest)),
        byte => (Class::Byte(*byte), rest),
    })
}

fn set(text: &[u8]) -> Option<(Class<'_>, &[u8])> {
    let negated = matches!(text.first(), Some(b'!' | b'^'));
    let text = text.get(usize::from(negated)..)?;
    // A `]` that comes first is a member.
    let end = text.iter().skip(1).position(|byte| *byte == b']')? + 1;
    let (members, rest) = text.split_at_checked(end)?;
    Some((Class::Set { members, negated }, rest.get(1..)?))
}

/// The paths that the absolute `pattern` leads to, in order; none if there are none, and at most
/// [`MAX_FOUND`] of them.
pub fn find(pattern: &[u8]) -> BTreeSet<Vec<u8>> {
    let names = pattern.split(|byte| *byte == b'/');
    let names: Vec<&[u8]> = names.filter(|name| !name.is_empty()).collect();
    let mut paths = BTreeSet::from([Vec::new()]);
    for name in names {
        let mut next = BTreeSet::new();
        for path in &paths {
            if is_pattern(name) {
                // A directory that can't be read has nothing in it for us.
                let _ = expand(path, name, &mut next);
            } else {
                add(path, name, &mut next);
            }
        }
        paths = next;
    }
    paths.retain(|path| statat(CWD, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_ok());
    paths
}

fn add(path: &[u8], name: &[u8], found: &mut BTreeSet<Vec<u8>>) {
    if found.len() < MAX_FOUND && path.len() + name.len() < MAX_PATH {
        found.insert([path, b"/", name].concat());
    }
}

fn expand(path: &[u8], pattern: &[u8], found: &mut BTreeSet<Vec<u8>>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let place = if path.is_empty() { b"/" } else { path };
    for entry in Dir::new(openat(CWD, place, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && matches(pattern, name) {
            add(path, name, found);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*.c", "main.c", true),
            ("*.c", "main.cc", false),
            ("*.c", ".c", false),
            (".*", ".c", true),
            ("?", ".", false),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "axxbyybz", false),
            ("[a-c]?", "bx", true),
            ("[!a-c]?", "bx", false),
            ("[^a-c]", "d", true),
            ("[]x]", "]", true),
            ("[ab", "[ab", true),
            ("[a-", "[a-", true),
            ("a[-z]", "a-", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn patterns_lead_to_what_is_there_in_order() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().display().to_string();
        for name in ["a/1.txt", "a/2.txt", "b/3.txt", "b/.4.txt", "b/5.c"] {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", place.path().join("b/l.txt")).unwrap();
        let found = |pattern: &str| -> Vec<String> {
            find(format!("{base}/{pattern}").as_bytes())
                .into_iter()
                .map(|path| String::from_utf8(path).unwrap().replace(&base, ""))
                .collect()
        };
        let all = ["/a/1.txt", "/a/2.txt", "/b/3.txt", "/b/l.txt"];
        assert_eq!(found("*/*.txt"), all);
        assert_eq!(found("[b]/*.c"), ["/b/5.c"]);
        assert_eq!(found("a"), ["/a"]);
        assert!(found("c/*").is_empty() && found("a/9").is_empty());
    }

    #[test]
    fn no_pattern_leads_to_more_than_there_is_room_for() {
        let place = tempfile::tempdir().unwrap();
        for number in 0..MAX_FOUND + 5 {
            fs::write(place.path().join(number.to_string()), "").unwrap();
        }
        let pattern = format!("{}/*", place.path().display());
        assert_eq!(find(pattern.as_bytes()).len(), MAX_FOUND);
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_a_star(name in "[a-z]{0,12}") {
            prop_assert!(matches(name.as_bytes(), name.as_bytes()));
            prop_assert!(matches(b"*", name.as_bytes()));
        }

        #[test]
        fn any_pattern_is_answered(pattern in "[]ab*?!^.\\[-]{0,16}", name in "[]ab.\\[-]{0,16}") {
            let _ = matches(pattern.as_bytes(), name.as_bytes());
        }
    }
}
