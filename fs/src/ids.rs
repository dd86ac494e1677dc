//! Which users and groups of the host there are in the namespace.

use std::fs;
use std::io;

use rustix::process::Pid;
use rustix::thread::CapabilitySet;

/// The contents of a process's `uid_map` and `gid_map`.
pub struct IdMaps {
    users: String,
    groups: String,
    /// The namespace has no user but this process's own.
    pub one_user: bool,
}

impl IdMaps {
    /// Root's namespace has the users that root itself sees, under their own numbers: a guest's user
    /// 1000 is the host's. Anybody else can have no user but themselves, whom the guest sees as root.
    pub fn of_this_process() -> io::Result<Self> {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let may = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let capabilities = rustix::thread::capabilities(None)?.effective;
        if user.is_root() && capabilities.contains(may) {
            return Ok(Self {
                users: same_numbers(&fs::read_to_string("/proc/self/uid_map")?),
                groups: same_numbers(&fs::read_to_string("/proc/self/gid_map")?),
                one_user: false,
            });
        }
        Ok(Self {
            users: format!("0 {} 1\n", user.as_raw()),
            groups: format!("0 {} 1\n", group.as_raw()),
            one_user: true,
        })
    }

    /// Gives them to `process`, which has just entered a user namespace of its own. The caller is in
    /// the namespace above: only from there can more than one user be named.
    pub fn give_to(&self, process: Pid) -> io::Result<()> {
        let dir = format!("/proc/{}", process.as_raw_nonzero());
        if self.one_user {
            // The kernel's condition for a group map by somebody who is not root.
            fs::write(format!("{dir}/setgroups"), "deny")?;
        }
        fs::write(format!("{dir}/uid_map"), &self.users)?;
        fs::write(format!("{dir}/gid_map"), &self.groups)
    }
}

/// From a map of this namespace to the one above, a map of one below to this one that changes
/// nothing.
fn same_numbers(map: &str) -> String {
    map.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (first, count) = (fields.next()?, fields.nth(1)?);
            Some(format!("{first} {first} {count}\n"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_a_container_becomes_one_that_changes_nothing() {
        let map = "         0     100000      65536\n     70000       1000          1\n";
        assert_eq!(same_numbers(map), "0 0 65536\n70000 70000 1\n");
    }
}
