//! Names of a network's members, answered in place of a resolver.
//!
//! A member is known by each of its names, alone or with the network's name behind it
//! (`web`, `web.backend`).

use std::net::IpAddr;

use crate::dns::{self, Code, Question, Record};

/// Whoever asks again after so many seconds gets what is true then.
const LIFETIME: u32 = 5;

/// A member, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its names; the first is what its addresses are called.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Who is asked for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// We know: this message.
    Here(Vec<u8>),
    /// A name that is none of the network's: somebody else.
    Elsewhere,
}

/// Answers a question for a name or an address of the network called `network`.
pub fn answer(question: &Question, network: &str, members: &[Named]) -> Answered {
    if let Some(address) = dns::reverse(&question.name) {
        return reverse(question, address, network, members);
    }
    let (name, qualified) = match question.name.rsplit_once('.') {
        Some((name, behind)) if behind.eq_ignore_ascii_case(network) => (name, true),
        _ => (question.name.as_str(), false),
    };
    let is_called = |member: &&Named| {
        member
            .names
            .iter()
            .any(|own| own.eq_ignore_ascii_case(name))
    };
    let mut found = members.iter().filter(is_called).peekable();
    if found.peek().is_none() {
        // Names below the network's are nobody else's.
        return if qualified {
            Answered::Here(dns::write_answer(question, Code::NoName, &[], LIFETIME))
        } else {
            Answered::Elsewhere
        };
    }
    let wanted = |address: &&IpAddr| match question.kind {
        dns::A => address.is_ipv4(),
        dns::AAAA => address.is_ipv6(),
        dns::ANY => true,
        _ => false,
    };
    let addresses = found.flat_map(|member| member.addresses.iter().filter(wanted));
    let records: Vec<_> = addresses.copied().map(Record::Address).collect();
    Answered::Here(dns::write_answer(
        question,
        Code::Success,
        &records,
        LIFETIME,
    ))
}

fn reverse(question: &Question, address: IpAddr, network: &str, members: &[Named]) -> Answered {
    let mut owners = members
        .iter()
        .filter(|member| member.addresses.contains(&address));
    let Some(name) = owners.next().and_then(|owner| owner.names.first()) else {
        return Answered::Elsewhere;
    };
    let record = Record::Name(format!(
        "{}.{}",
        name.to_ascii_lowercase(),
        network.to_ascii_lowercase()
    ));
    let records = if matches!(question.kind, dns::PTR | dns::ANY) {
        &[record][..]
    } else {
        &[]
    };
    Answered::Here(dns::write_answer(
        question,
        Code::Success,
        records,
        LIFETIME,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Named> {
        let member = |names: &[&str], addresses: &[&str]| Named {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
        };
        vec![
            member(&["web", "www"], &["10.0.0.2", "fd00::2"]),
            member(&["Db.main", "store"], &["10.0.0.3"]),
            member(&["other", "www"], &["10.0.0.4"]),
        ]
    }

    fn asked(name: &str, kind: u16) -> Option<Vec<String>> {
        let question = Question {
            id: 1,
            name: name.to_owned(),
            kind,
            recursion: true,
        };
        match answer(&question, "Net", &members()) {
            Answered::Elsewhere => None,
            Answered::Here(message) => {
                let addresses = dns::read_answer(&message).map(|answer| answer.addresses);
                Some(
                    addresses
                        .unwrap_or_default()
                        .iter()
                        .map(|(address, _)| address.to_string())
                        .collect(),
                )
            }
        }
    }

    #[test]
    fn members_are_found_by_each_name_with_and_without_the_networks() {
        assert_eq!(asked("web", dns::A).unwrap(), ["10.0.0.2"]);
        assert_eq!(asked("web.net", dns::AAAA).unwrap(), ["fd00::2"]);
        assert_eq!(asked("db.main", dns::A).unwrap(), ["10.0.0.3"]);
        assert_eq!(asked("www", dns::A).unwrap(), ["10.0.0.2", "10.0.0.4"]);
        // It exists, but has none of these.
        assert!(asked("store", dns::AAAA).unwrap().is_empty());
        assert!(asked("store", 15).unwrap().is_empty());
    }

    #[test]
    fn other_names_are_for_others() {
        for name in ["example.org", "we", "web.org", "net"] {
            assert_eq!(asked(name, dns::A), None, "{name}");
        }
        assert!(asked("missing.net", dns::A).unwrap().is_empty());
    }

    #[test]
    fn addresses_have_names() {
        let question = Question {
            id: 1,
            name: "3.0.0.10.in-addr.arpa".to_owned(),
            kind: dns::PTR,
            recursion: true,
        };
        let Answered::Here(message) = answer(&question, "Net", &members()) else {
            panic!("elsewhere")
        };
        let text: Vec<u8> = message
            .iter()
            .map(|byte| if byte.is_ascii_graphic() { *byte } else { b'.' })
            .collect();
        assert!(String::from_utf8(text).unwrap().contains(".db.main.net."));
        let other = Question {
            name: "9.0.0.10.in-addr.arpa".to_owned(),
            ..question
        };
        assert_eq!(answer(&other, "Net", &members()), Answered::Elsewhere);
    }
}
