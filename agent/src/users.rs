//! Who a process runs as: the guest's `/etc/passwd` and `/etc/group`, by the rules of container
//! runtimes.

use alloc::string::String;
use alloc::vec::Vec;

/// The most supplementary groups of a process (`NGROUPS_MAX` of Linux).
pub const MAX_GROUPS: usize = 65536;

/// The largest number of a user or a group that can be asked for.
const MAX_ID: u32 = i32::MAX as u32;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The user's home directory.
    pub home: Vec<u8>,
}

/// Why nobody is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("user {0:?} is neither in the guest's /etc/passwd nor a number up to {MAX_ID}")]
    User(String),
    /// No such group.
    #[error("group {0:?} is neither in the guest's /etc/group nor a number up to {MAX_ID}")]
    Group(String),
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Whom `asked` means: `USER[:GROUP]`, each a name or a number, empty for root. A name counts
/// before a number. Who is in no file has the group 0 and no home but `/`. Supplementary groups
/// are the user's, unless a group is asked for.
///
/// # Errors
/// A name that is not in the files, or a number that is too large.
pub fn identity(asked: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UserError> {
    let (user, asked_group) = match asked.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (asked, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse(user.as_bytes());
    let known = users(passwd).find(|known| known.name == user.as_bytes());
    let known = known.or_else(|| users(passwd).find(|known| Some(known.uid) == number));
    let (name, mut identity) = match (known, number) {
        (Some(known), _) => {
            let identity = Identity {
                uid: known.uid,
                gid: known.gid,
                groups: Vec::new(),
                home: known.home.to_vec(),
            };
            (known.name, identity)
        }
        (None, Some(uid)) => {
            let home = if uid == 0 { "/root" } else { "/" };
            let identity = Identity {
                uid,
                gid: 0,
                groups: Vec::new(),
                home: home.into(),
            };
            (user.as_bytes(), identity)
        }
        (None, None) => return Err(UserError::User(user.into())),
    };
    if identity.home.is_empty() {
        identity.home.push(b'/');
    }
    if let Some(asked) = asked_group {
        identity.gid = group_number(asked, group)?;
    } else {
        let theirs = groups(group).filter(|group| {
            let mut members = group.members.split(|byte| *byte == b',');
            members.any(|member| member == name)
        });
        let numbers = theirs.map(|group| group.gid);
        identity.groups.extend(numbers.take(MAX_GROUPS));
    }
    Ok(identity)
}

fn group_number(asked: &str, group: &[u8]) -> Result<u32, UserError> {
    let known = groups(group).find(|known| known.name == asked.as_bytes());
    known
        .map(|known| known.gid)
        .or_else(|| parse(asked.as_bytes()))
        .ok_or_else(|| UserError::Group(asked.into()))
}

/// The lines that make sense; others are passed over, as libc does.
fn users(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let mut fields = fields.skip(1);
        Some(User {
            name,
            uid: parse(fields.next()?)?,
            gid: parse(fields.next()?)?,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let mut fields = fields.skip(1);
        Some(Group {
            name,
            gid: parse(fields.next()?)?,
            members: fields.next().unwrap_or_default(),
        })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = file.split(|byte| *byte == b'\n');
    lines
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
}

/// A decimal number up to [`MAX_ID`], without a sign.
fn parse(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u32 = core::str::from_utf8(digits).ok()?.parse().ok()?;
    (number <= MAX_ID).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        broken\n\
        postgres:x:70:71::/var/lib/postgresql:/bin/sh\n\
        1000:x:7:8::/seven:\n\
        nobody:x:65534:65534::\n";
    const GROUP: &[u8] = b"root:x:0:root\nadm:x:4:syslog,postgres\ntty:x:5:\n\
        postgres:x:71:\nssl:x:101:postgres";

    fn found(asked: &str) -> (u32, u32, Vec<u32>, String) {
        let found = identity(asked, PASSWD, GROUP).unwrap();
        let home = String::from_utf8(found.home).unwrap();
        (found.uid, found.gid, found.groups, home)
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let home = "/var/lib/postgresql".to_owned();
        assert_eq!(found("postgres"), (70, 71, vec![4, 101], home.clone()));
        assert_eq!(found("70"), (70, 71, vec![4, 101], home));
    }

    #[test]
    fn nobody_asked_for_is_root() {
        assert_eq!(found(""), (0, 0, vec![0], "/root".into()));
        let bare = identity("", b"", b"").unwrap();
        assert_eq!((bare.uid, bare.home), (0, b"/root".to_vec()));
    }

    #[test]
    fn a_group_that_is_asked_for_is_the_only_one() {
        let home = "/var/lib/postgresql".to_owned();
        assert_eq!(found("postgres:tty"), (70, 5, vec![], home.clone()));
        assert_eq!(found("postgres:12345"), (70, 12345, vec![], home));
        assert_eq!(found(":tty"), (0, 5, vec![], "/root".into()));
    }

    #[test]
    fn a_number_need_not_be_known_and_a_name_goes_before_it() {
        assert_eq!(found("4711"), (4711, 0, vec![], "/".into()));
        assert_eq!(found("4711:4712"), (4711, 4712, vec![], "/".into()));
        assert_eq!(found("1000"), (7, 8, vec![], "/seven".into()));
    }

    #[test]
    fn a_user_without_a_home_is_at_the_root() {
        assert_eq!(found("nobody").3, "/");
    }

    #[test]
    fn whoever_is_unknown_is_refused() {
        let error = |asked| identity(asked, PASSWD, GROUP).unwrap_err();
        assert_eq!(error("broken"), UserError::User("broken".into()));
        assert_eq!(error("-1"), UserError::User("-1".into()));
        assert_eq!(error("2147483648"), UserError::User("2147483648".into()));
        assert_eq!(error("root:x"), UserError::Group("x".into()));
    }

    proptest! {
        #[test]
        fn any_files_are_read(
            asked in ".{0,10}",
            passwd in vec(any::<u8>(), 0..100),
            group in vec(any::<u8>(), 0..100),
        ) {
            let _ = identity(&asked, &passwd, &group);
        }
    }
}
