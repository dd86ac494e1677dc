//! What people write about networks is refused in one line, or reads back as it is written.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use casita::net::spec::{IpSpec, NetSpec, PortSpec};
use libfuzzer_sys::fuzz_target;

fn round<T: FromStr<Err = String> + Display + Debug + PartialEq>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    assert_eq!(value.to_string().parse(), Ok(text.parse::<T>().ok()?));
    Some(value)
}

fuzz_target!(|text: &str| {
    round::<NetSpec>(text);
    round::<IpSpec>(text);
    if let Some(ports) = round::<PortSpec>(text) {
        assert_eq!(ports.pairs().count(), ports.guest.len());
    }
});
