//! What the files of a control group say (cgroup v2, the kernel's admin-guide/cgroup-v2.rst).

/// The value of `key` in a file of lines with a key and a number each, such as `memory.events`.
pub fn value(text: &[u8], key: &str) -> Option<u64> {
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let rest = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        number(rest)
    })
}

/// The number that is all of a file's first line, such as `memory.peak`.
pub fn number(text: &[u8]) -> Option<u64> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    core::str::from_utf8(line).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_whole_words() {
        let text = b"low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(value(text, "oom"), Some(3));
        assert_eq!(value(text, "oom_kill"), Some(2));
        assert_eq!(value(text, "max"), None);
        assert_eq!(value(b"max x\n", "max"), None);
    }

    #[test]
    fn a_number_is_the_whole_line() {
        assert_eq!(number(b"4096\n"), Some(4096));
        assert_eq!(number(b"max\n"), None);
        assert_eq!(number(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(text: Vec<u8>) {
            let _ = (value(&text, "max"), number(&text));
        }
    }
}
