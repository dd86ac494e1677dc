//! Messages of the domain name system (RFC 1035): questions of guests, and answers to them.
//!
//! Only what is needed is read: one question, and the addresses in an answer to it. Names are
//! compared in small letters; one with bytes that no host's name has is not read at all.

mod read;
mod write;

use std::net::IpAddr;
use std::time::Duration;

pub use read::{read_answer, read_question};
pub use write::{Code, Record, write_answer};

/// The port that resolvers listen on.
pub const PORT: u16 = 53;

/// An IPv4 address.
pub const A: u16 = 1;
/// Another name.
pub const CNAME: u16 = 5;
/// The name of an address.
pub const PTR: u16 = 12;
/// An IPv6 address.
pub const AAAA: u16 = 28;
/// Whatever there is.
pub const ANY: u16 = 255;
const INTERNET: u16 = 1;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The asker's number for it.
    pub id: u16,
    /// The name, in small letters, without a dot at its end.
    pub name: String,
    /// The type of record that is wanted.
    pub kind: u16,
    /// Whether others may be asked for the answer.
    pub recursion: bool,
}

/// The addresses that an answer has for the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The asker's number for the question.
    pub id: u16,
    /// The name that was asked for.
    pub name: String,
    /// Addresses, and for how long they hold.
    pub addresses: Vec<(IpAddr, Duration)>,
}

/// The address whose name is asked for with `name`, as in `1.0.0.10.in-addr.arpa`.
pub fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(numbers) = name.strip_suffix(".in-addr.arpa") {
        let mut bytes = [0; 4];
        let mut labels = numbers.split('.');
        for byte in bytes.iter_mut().rev() {
            *byte = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| bytes.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut value = 0u128;
    let mut count = 0;
    for label in digits.rsplit('.') {
        let one = label.len() == 1 && label.as_bytes()[0].is_ascii_hexdigit();
        let digit = u128::from_str_radix(label, 16).ok().filter(|_| one)?;
        value = value << 4 | digit;
        count += 1;
        if count > 32 {
            return None;
        }
    }
    (count == 32).then(|| IpAddr::V6(value.into()))
}

#[cfg(test)]
mod tests;
