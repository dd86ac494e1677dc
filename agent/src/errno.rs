//! Linux's error numbers in words, for the errors that mounting and executing meet
//! (`include/uapi/asm-generic/errno-base.h` and `errno.h`).

use core::fmt;

/// No such file or directory.
pub const ENOENT: i32 = 2;
/// Exec format error.
pub const ENOEXEC: i32 = 8;
/// Permission denied.
pub const EACCES: i32 = 13;
/// No such device; of `mount`: no such file system.
pub const ENODEV: i32 = 19;
/// Not a directory.
pub const ENOTDIR: i32 = 20;

/// An error number, displayed as its text and name, such as
/// `No such file or directory (ENOENT)`; one that is not known by name as its number.
pub fn describe(errno: i32) -> impl fmt::Display {
    Described(errno)
}

struct Described(i32);

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(errno, ..)| *errno == self.0) {
            Some((_, name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "error {}", self.0),
        }
    }
}

const NAMES: &[(i32, &str, &str)] = &[
    (1, "EPERM", "Operation not permitted"),
    (ENOENT, "ENOENT", "No such file or directory"),
    (4, "EINTR", "Interrupted system call"),
    (5, "EIO", "Input/output error"),
    (6, "ENXIO", "No such device or address"),
    (7, "E2BIG", "Argument list too long"),
    (ENOEXEC, "ENOEXEC", "Exec format error"),
    (9, "EBADF", "Bad file descriptor"),
    (11, "EAGAIN", "Resource temporarily unavailable"),
    (12, "ENOMEM", "Cannot allocate memory"),
    (EACCES, "EACCES", "Permission denied"),
    (14, "EFAULT", "Bad address"),
    (15, "ENOTBLK", "Block device required"),
    (16, "EBUSY", "Device or resource busy"),
    (17, "EEXIST", "File exists"),
    (ENODEV, "ENODEV", "No such device"),
    (ENOTDIR, "ENOTDIR", "Not a directory"),
    (21, "EISDIR", "Is a directory"),
    (22, "EINVAL", "Invalid argument"),
    (26, "ETXTBSY", "Text file busy"),
    (27, "EFBIG", "File too large"),
    (28, "ENOSPC", "No space left on device"),
    (30, "EROFS", "Read-only file system"),
    (36, "ENAMETOOLONG", "File name too long"),
    (38, "ENOSYS", "Function not implemented"),
    (40, "ELOOP", "Too many levels of symbolic links"),
    (61, "ENODATA", "No data available"),
    (74, "EBADMSG", "Bad message"),
    (75, "EOVERFLOW", "Value too large for defined data type"),
    (80, "ELIBBAD", "Accessing a corrupted shared library"),
    (95, "EOPNOTSUPP", "Operation not supported"),
    (117, "EUCLEAN", "Structure needs cleaning"),
    (123, "ENOMEDIUM", "No medium found"),
    (129, "EKEYREJECTED", "Key was rejected by service"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_error_is_told_in_words_as_the_standard_library_does() {
        for (errno, name, text) in NAMES {
            let std = std::io::Error::from_raw_os_error(*errno).to_string();
            assert_eq!(std, format!("{text} (os error {errno})"), "{name}");
        }
        assert_eq!(
            describe(ENOENT).to_string(),
            "No such file or directory (ENOENT)"
        );
    }

    #[test]
    fn an_unknown_error_is_told_by_its_number() {
        assert_eq!(describe(4095).to_string(), "error 4095");
    }
}
