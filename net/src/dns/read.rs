use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{A, AAAA, Answer, CNAME, INTERNET, Question};

const HEADER: usize = 12;
/// The longest name, with the lengths of its labels (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;
/// More records than any answer that we look at.
const MAX_RECORDS: usize = 128;

/// Reads what a guest asks: a standard query with one question of the Internet's class.
pub fn read_question(message: &[u8]) -> Option<Question> {
    let header = message.first_chunk::<HEADER>()?;
    let is_answer = header[2] & 0x80 != 0;
    let operation = header[2] >> 3 & 15;
    if is_answer || operation != 0 || header[4..8] != [0, 1, 0, 0] {
        return None;
    }
    let (name, kind, _) = question(message)?;
    Some(Question {
        id: u16::from_be_bytes([header[0], header[1]]),
        name,
        kind,
        recursion: header[2] & 1 != 0,
    })
}

/// Reads an answer without an error: the addresses that it has for its question, directly or
/// through other names (CNAME). Records of names that were not asked for say nothing.
pub fn read_answer(message: &[u8]) -> Option<Answer> {
    let header = message.first_chunk::<HEADER>()?;
    let is_answer = header[2] & 0x80 != 0;
    let code = header[3] & 15;
    if !is_answer || code != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let count = usize::from(u16::from_be_bytes([header[6], header[7]])).min(MAX_RECORDS);
    let (name, _, mut at) = question(message)?;
    let mut wanted = name.clone();
    let mut addresses = Vec::new();
    for _ in 0..count {
        // What is not understood ends the reading, but what came before holds.
        let Some(record) = record(message, at) else {
            break;
        };
        at = record.end;
        if record.class != INTERNET || record.name.as_deref() != Some(&wanted) {
            continue;
        }
        match (record.kind, record.data) {
            (A, &[a, b, c, d]) => {
                addresses.push((Ipv4Addr::new(a, b, c, d).into(), record.lifetime));
            }
            (AAAA, data) => {
                let bytes: Option<[u8; 16]> = data.try_into().ok();
                addresses.extend(
                    bytes.map(|bytes| (IpAddr::V6(Ipv6Addr::from(bytes)), record.lifetime)),
                );
            }
            (CNAME, _) => match self::name(message, record.start) {
                Some((Some(next), _)) => wanted = next,
                _ => break,
            },
            _ => {}
        }
    }
    Some(Answer {
        id: u16::from_be_bytes([header[0], header[1]]),
        name,
        addresses,
    })
}

/// The question behind the header: name, type, and where it ends.
fn question(message: &[u8]) -> Option<(String, u16, usize)> {
    let (name, at) = name(message, HEADER)?;
    let &[k0, k1, c0, c1] = message.get(at..at + 4)?.first_chunk()?;
    if u16::from_be_bytes([c0, c1]) != INTERNET {
        return None;
    }
    Some((name?, u16::from_be_bytes([k0, k1]), at + 4))
}

struct RecordRead<'a> {
    /// `None` if no host has such a name.
    name: Option<String>,
    kind: u16,
    class: u16,
    lifetime: Duration,
    data: &'a [u8],
    /// Where its data starts.
    start: usize,
    end: usize,
}

fn record(message: &[u8], at: usize) -> Option<RecordRead<'_>> {
    let (name, at) = name(message, at)?;
    let &[k0, k1, c0, c1, t0, t1, t2, t3, l0, l1] = message.get(at..at + 10)?.first_chunk()?;
    let start = at + 10;
    let end = start + usize::from(u16::from_be_bytes([l0, l1]));
    Some(RecordRead {
        name,
        kind: u16::from_be_bytes([k0, k1]),
        class: u16::from_be_bytes([c0, c1]),
        lifetime: Duration::from_secs(u32::from_be_bytes([t0, t1, t2, t3]).into()),
        data: message.get(start..end)?,
        start,
        end,
    })
}

/// The name at `at`, and where what follows it begins. It is `None` inside if no host has such a
/// name. Pointers only lead back, so there is no circle.
fn name(message: &[u8], at: usize) -> Option<(Option<String>, usize)> {
    let mut text = String::new();
    let (mut place, mut least) = (at, at);
    let mut after = None;
    let mut odd = false;
    let mut total = 1;
    loop {
        let length = *message.get(place)?;
        match length >> 6 {
            0 if length == 0 => {
                let name = (!odd).then_some(text);
                return Some((name, after.unwrap_or(place + 1)));
            }
            0 => {
                let label = message.get(place + 1..place + 1 + usize::from(length))?;
                total += label.len() + 1;
                if total > MAX_NAME {
                    return None;
                }
                odd |= !label
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_');
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(
                    label
                        .iter()
                        .map(|byte| char::from(byte.to_ascii_lowercase())),
                );
                place += 1 + label.len();
            }
            3 => {
                let low = *message.get(place + 1)?;
                after = after.or(Some(place + 2));
                place = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                if place >= least {
                    return None;
                }
                least = place;
            }
            _ => return None,
        }
    }
}
