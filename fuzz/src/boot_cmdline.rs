//! Command lines of any parts hold what was pushed, end in one NUL, and keep to every maximum.

use casita_boot::Cmdline;

/// Two bytes of the maximum; behind them the parts, each up to a byte of all ones.
pub fn run(data: &[u8]) {
    let Some((max, parts)) = data.split_first_chunk() else {
        return;
    };
    let max = u16::from_le_bytes(*max);
    let mut line = Cmdline::default();
    let mut expected: Vec<u8> = Vec::new();
    for part in parts.split(|byte| *byte == 0xff) {
        let pushed = line.push(part);
        assert!(!(pushed.is_ok() && part.contains(&0)));
        if pushed.is_ok() && !part.is_empty() {
            if !expected.is_empty() {
                expected.push(b' ');
            }
            expected.extend(part);
        }
        assert_eq!(line.as_bytes(), expected);
    }
    let max = usize::from(max);
    match line.to_guest_bytes(max) {
        Ok(bytes) => {
            assert!(bytes.len() <= max + 1);
            assert_eq!(bytes.split_last(), Some((&0, &expected[..])));
        }
        Err(_) => assert!(expected.len() > max),
    }
}
