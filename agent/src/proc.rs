//! What `/proc` tells of a process, for the host's `top`.

use alloc::format;
use alloc::string::String;

use crate::wire::ProcessInfo;

/// The longest command line that is told, in bytes.
const MAX_COMMAND: usize = 256;
/// Linux counts CPU time in hundredths of a second for user space, whatever its own clock does.
const MS_PER_TICK: u64 = 10;
const KIB_PER_PAGE: u64 = 4;

/// Reads `/proc/PID/stat` and `/proc/PID/cmdline` of a process that runs as `uid`; `None` if the
/// first is not what Linux writes.
pub fn info(uid: u32, stat: &[u8], cmdline: &[u8]) -> Option<ProcessInfo> {
    // The name may have blanks and parentheses of its own.
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let pid = number(stat.get(..open)?)?;
    let name = stat.get(open + 1..close)?;
    let mut fields = stat
        .get(close + 1..)?
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let parent = number(fields.next()?)?;
    // Fields 14, 15 and 24 of proc_pid_stat(5); the parent is field 4.
    let user: u64 = number(fields.nth(9)?)?;
    let system: u64 = number(fields.next()?)?;
    let pages: u64 = number(fields.nth(8)?)?;
    Some(ProcessInfo {
        pid,
        parent,
        uid,
        state,
        cpu_ms: user.saturating_add(system).saturating_mul(MS_PER_TICK),
        rss_kib: pages.saturating_mul(KIB_PER_PAGE),
        command: command(name, cmdline),
    })
}

/// The effective user in `/proc/PID/status`.
pub fn effective_user(status: &[u8]) -> Option<u32> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    number(fields.nth(1)?)
}

/// Arguments with blanks between them; the name in brackets if there are none, as `ps` does.
fn command(name: &[u8], cmdline: &[u8]) -> String {
    let arguments = without_trailing_nuls(cmdline);
    let text = if arguments.is_empty() {
        format!("[{}]", String::from_utf8_lossy(name))
    } else {
        let cut = arguments.get(..MAX_COMMAND).unwrap_or(arguments);
        String::from_utf8_lossy(cut).into_owned()
    };
    let mut shown = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if shown.len() + c.len_utf8() > MAX_COMMAND {
            break;
        }
        shown.push(c);
    }
    shown
}

/// Programs that write their title over their command line leave many.
fn without_trailing_nuls(bytes: &[u8]) -> &[u8] {
    let last = bytes.iter().rposition(|byte| *byte != 0);
    bytes
        .get(..last.map_or(0, |last| last + 1))
        .unwrap_or_default()
}

fn number<N: core::str::FromStr>(digits: &[u8]) -> Option<N> {
    core::str::from_utf8(digits).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const STAT: &[u8] = b"42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 99 \
        5000000 250 18446744073709551615 1 1 0 0";

    #[test]
    fn a_process_is_read() {
        let told = info(7, STAT, b"sleep\x0010\0").unwrap();
        assert_eq!((told.pid, told.parent, told.uid), (42, 1, 7));
        assert_eq!((told.state, told.cpu_ms, told.rss_kib), (b'S', 420, 1000));
        assert_eq!(told.command, "sleep 10");
    }

    #[test]
    fn this_process_is_read() {
        let read = |name| std::fs::read(format!("/proc/self/{name}")).unwrap();
        let uid = effective_user(&read("status")).unwrap();
        let told = info(uid, &read("stat"), &read("cmdline")).unwrap();
        assert_eq!(told.pid, std::process::id());
        assert!(told.rss_kib > 100, "{told:?}");
    }

    #[test]
    fn a_process_without_arguments_shows_its_name() {
        assert_eq!(info(0, STAT, b"\0\0").unwrap().command, "[a) b (c]");
    }

    #[test]
    fn a_command_line_is_cut_and_has_no_control_characters() {
        let long = "ü\x1b\n".repeat(200);
        let command = info(0, STAT, long.as_bytes()).unwrap().command;
        assert!(command.len() <= MAX_COMMAND && command.starts_with("ü  ü"));
    }

    proptest! {
        #[test]
        fn any_files_are_read(stat in vec(any::<u8>(), 0..100), other in vec(any::<u8>(), 0..400)) {
            let _ = info(0, &stat, &other);
            let _ = effective_user(&other);
            if let Some(told) = info(0, STAT, &other) {
                prop_assert!(told.command.len() <= MAX_COMMAND);
                prop_assert!(!told.command.chars().any(char::is_control));
            }
        }
    }
}
