//! The small files that give the guest its name.

use alloc::format;
use alloc::string::String;

/// The guest's `/etc/hosts`. The machine's own name is 127.0.1.1, as Debian does where a machine
/// has no permanent address.
pub fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         127.0.1.1\t{hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n"
    )
}

/// The guest's `/etc/hostname`.
pub fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}
