use std::net::IpAddr;

use super::{A, AAAA, INTERNET, PTR, Question};

/// How a question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Here is what there is, which may be nothing.
    Success = 0,
    /// There is no such name.
    NoName = 3,
    /// You are not to ask that.
    Refused = 5,
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The address of the name that was asked for.
    Address(IpAddr),
    /// The name of the address that was asked for.
    Name(String),
}

/// An answer to `question`. Who asks again after `lifetime` seconds may get another one. Records
/// that would make it longer than a datagram of old (512 bytes) are left out.
pub fn write_answer(question: &Question, code: Code, records: &[Record], lifetime: u32) -> Vec<u8> {
    const MAX: usize = 512;
    /// The name in the question, which is behind the header.
    const POINTER: [u8; 2] = [0xc0, 12];
    let mut message = Vec::with_capacity(128);
    message.extend(question.id.to_be_bytes());
    message.extend([
        // An answer, by one who knows.
        0x84 | u8::from(question.recursion),
        0x80 | code as u8,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    write_name(&mut message, &question.name);
    message.extend(question.kind.to_be_bytes());
    message.extend(INTERNET.to_be_bytes());
    let mut count = 0u16;
    for record in records {
        let mut data = Vec::new();
        let kind = match record {
            Record::Address(IpAddr::V4(address)) => {
                data.extend(address.octets());
                A
            }
            Record::Address(IpAddr::V6(address)) => {
                data.extend(address.octets());
                AAAA
            }
            Record::Name(name) => {
                write_name(&mut data, name);
                PTR
            }
        };
        if message.len() + data.len() + 12 > MAX {
            break;
        }
        message.extend(POINTER);
        message.extend(kind.to_be_bytes());
        message.extend(INTERNET.to_be_bytes());
        message.extend(lifetime.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
        message.extend(data);
        count += 1;
    }
    message[6..8].copy_from_slice(&count.to_be_bytes());
    message
}

/// Names that are too long lose their ends; those that were read are not.
fn write_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes().get(..63).unwrap_or(label.as_bytes());
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend(label);
    }
    message.push(0);
}
