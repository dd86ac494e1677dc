use proptest::prelude::*;

use super::*;

/// A question as a resolver of a C library writes it, with EDNS behind it.
pub(crate) fn asked(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        message.push(label.len().try_into().unwrap());
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    message
}

fn question(name: &str, kind: u16) -> Question {
    Question {
        id: 7,
        name: name.to_owned(),
        kind,
        recursion: true,
    }
}

/// An answer with records of any owner: name, type, data.
fn answered(name: &str, records: &[(&str, u16, Vec<u8>)]) -> Vec<u8> {
    let mut message = write_answer(&question(name, A), Code::Success, &[], 0);
    message[7] = records.len().try_into().unwrap();
    for (owner, kind, data) in records {
        message.extend(labels(owner));
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
    }
    message
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len().try_into().unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

fn found(message: &[u8]) -> Vec<String> {
    let answer = read_answer(message).unwrap();
    answer
        .addresses
        .iter()
        .map(|(address, _)| address.to_string())
        .collect()
}

#[test]
fn a_question_is_read_in_small_letters() {
    assert_eq!(
        read_question(&asked(7, "Web.Example", AAAA)),
        Some(question("web.example", AAAA))
    );
    let mut two = asked(7, "web", A);
    two[5] = 2;
    assert_eq!(read_question(&two), None);
    let mut update = asked(7, "web", A);
    update[2] |= 5 << 3;
    assert_eq!(read_question(&update), None);
    assert_eq!(read_question(&asked(7, "a b", A)), None);
}

#[test]
fn what_is_answered_is_read_again() {
    let records = ["10.0.0.2", "fd00::2"].map(|text| Record::Address(text.parse().unwrap()));
    let message = write_answer(&question("web", ANY), Code::Success, &records, 5);
    let answer = read_answer(&message).unwrap();
    assert_eq!((answer.id, answer.name.as_str()), (7, "web"));
    assert_eq!(
        answer.addresses[1],
        ("fd00::2".parse().unwrap(), Duration::from_secs(5))
    );
    assert_eq!(
        read_answer(&write_answer(&question("web", A), Code::NoName, &[], 0)),
        None
    );
    let many = vec![records[1].clone(); 100];
    assert!(write_answer(&question("web", AAAA), Code::Success, &many, 5).len() <= 512);
}

#[test]
fn only_the_name_that_was_asked_for_gets_addresses() {
    let forged = [("other", A, vec![6, 6, 6, 6]), ("web", A, vec![1, 2, 3, 4])];
    assert_eq!(found(&answered("web", &forged)), ["1.2.3.4"]);
    let chained = [
        ("web", CNAME, labels("cdn.example")),
        ("cdn.example", A, vec![1, 1, 1, 1]),
        ("web", A, vec![6, 6, 6, 6]),
    ];
    assert_eq!(found(&answered("web", &chained)), ["1.1.1.1"]);
}

#[test]
fn pointers_lead_back_or_nowhere() {
    let mut message = answered("web", &[]);
    message[7] = 1;
    let at = u8::try_from(message.len()).unwrap();
    message.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 9, 9, 9, 9]);
    assert!(found(&message).is_empty());
    let at = message.len() - 15;
    message[at] = 12;
    assert_eq!(found(&message), ["9.9.9.9"]);
}

#[test]
fn names_of_addresses_are_understood() {
    assert_eq!(
        reverse("2.1.0.10.in-addr.arpa"),
        Some("10.0.1.2".parse().unwrap())
    );
    let v6 = format!("1{}.d.f.ip6.arpa", ".0".repeat(29));
    assert_eq!(reverse(&v6), Some("fd00::1".parse().unwrap()));
    for bad in [
        "1.2.3.in-addr.arpa",
        "5.1.2.3.4.in-addr.arpa",
        "256.1.2.3.in-addr.arpa",
        "1.ip6.arpa",
        "web",
    ] {
        assert_eq!(reverse(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), answer: bool) {
        if let Some(header) = bytes.get_mut(..12) {
            header[2..8].copy_from_slice(&[u8::from(answer) << 7, 0, 0, 1, 0, u8::from(answer) * 9]);
        }
        let _ = read_question(&bytes);
        if let Some(answer) = read_answer(&bytes) {
            prop_assert!(answer.addresses.len() <= 128);
        }
    }

    #[test]
    fn questions_come_through(id: u16, name in "[a-z0-9_-]{1,63}(\\.[a-z0-9-]{1,20}){0,5}", kind: u16) {
        let read = read_question(&asked(id, &name, kind)).unwrap();
        let message = write_answer(&read, Code::Success, &[], 0);
        prop_assert_eq!(read_answer(&message).unwrap().name, name);
    }
}
