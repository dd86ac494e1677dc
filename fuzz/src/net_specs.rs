//! What people write about networks is refused in one line, or reads back as it is written.
use std::fmt::{Debug, Display};
use std::str::FromStr;

use casita::net::spec::{IpSpec, NetSpec, PortSpec};

fn round<T: FromStr<Err = String> + Display + Debug + PartialEq>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string().parse(), Ok(text.parse::<T>().ok()?));
    Some(value)
}

/// Runs the target on one input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    round::<NetSpec>(text);
    round::<IpSpec>(text);
    if let Some(ports) = round::<PortSpec>(text) {
        assert_eq!(ports.pairs().count(), ports.guest.len());
    }
}
