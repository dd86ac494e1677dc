use super::*;
use proptest::prelude::*;

fn item(text: &str) -> EgressItem {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn items_of_every_kind_are_read() {
    let range = |text: &str| Target::Range(text.parse().unwrap());
    let cases = [
        ("10.0.0.0/8", range("10.0.0.0/8"), None, None),
        ("10.0.0.0/8:443", range("10.0.0.0/8"), Some(443), None),
        (
            "10.0.0.0/8/udp",
            range("10.0.0.0/8"),
            None,
            Some(Transport::Udp),
        ),
        (
            "1.1.1.1:53/udp",
            range("1.1.1.1"),
            Some(53),
            Some(Transport::Udp),
        ),
        ("2001:db8::/32", range("2001:db8::/32"), None, None),
        (
            "2001:db8::1/tcp",
            range("2001:db8::1"),
            None,
            Some(Transport::Tcp),
        ),
        ("[2001:db8::/32]:80", range("2001:db8::/32"), Some(80), None),
        ("[::1]", range("::1"), None, None),
    ];
    for (text, target, port, transport) in cases {
        assert_eq!(
            item(text),
            EgressItem {
                target,
                port,
                transport
            },
            "{text}"
        );
    }
    assert_eq!(
        item("Example.ORG.:443/tcp").to_string(),
        "example.org:443/tcp"
    );
    let policy: EgressPolicy = "db, api.example.org:443,api.example.org:80"
        .parse()
        .unwrap();
    let names: Vec<_> = policy.names().into_iter().map(HostName::as_str).collect();
    assert_eq!(names, ["api.example.org", "db"]);
}

#[test]
fn what_is_wrong_is_told_in_one_line_with_the_item() {
    let cases = [
        ("", "empty item"),
        ("a,,b", "empty item"),
        ("10.0.0.0/8,all", "stands alone"),
        ("none,x", "stands alone"),
        ("x:0", "not a port"),
        ("x:65536", "not a port"),
        ("x:http", "not a port"),
        ("x:+80", "not a port"),
        ("x:", "not a port"),
        ("10.0.0.1/8", "10.0.0.0/8 is meant"),
        ("10.0.0.0/40", "not a range"),
        ("10.0.0", "four numbers"),
        ("300.1.1.1", "four numbers"),
        ("*.example.org", "name each host"),
        ("a b", "neither an address nor a host's name"),
        ("-x", "neither"),
        ("[::1", "bracket"),
        ("[::1]80", "bracket"),
        ("[x]:80", "not a range"),
        ("::1::2", "not a range"),
        ("http://example.org/", "leave out"),
        ("x/sctp", "not a range"),
    ];
    for (text, part) in cases {
        let error = text.parse::<EgressPolicy>().unwrap_err().to_string();
        assert!(
            error.contains(part) && !error.contains('\n'),
            "{text}: {error}"
        );
    }
    let long = vec!["x"; MAX_ITEMS + 1].join(",");
    assert_eq!(
        long.parse::<EgressPolicy>(),
        Err(EgressError::TooMany(MAX_ITEMS + 1))
    );
}

#[test]
fn in_files_it_is_a_text() {
    for text in ["all", "none", "10.0.0.0/8,[::1]:80/udp,db:5432"] {
        let policy: EgressPolicy = text.parse().unwrap();
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<EgressPolicy>(&json).unwrap(), policy);
    }
}

prop_compose! {
    fn any_item()(v6: bool, address: u128, bits in 0u8..=128, port: Option<u16>, transport in 0..3u8, name in proptest::option::of("[a-z][a-z0-9_]{0,8}(\\.[a-z]{1,5}){0,3}")) -> EgressItem {
        let address = if v6 { std::net::Ipv6Addr::from(address).into() } else { std::net::Ipv4Addr::from(address as u32).into() };
        let bits = if v6 { bits } else { bits / 4 };
        EgressItem {
            target: match name {
                Some(name) => Target::Host(name.parse().unwrap()),
                None => Target::Range(Cidr::around(address, bits).unwrap()),
            },
            port: port.filter(|port| *port > 0),
            transport: [None, Some(Transport::Tcp), Some(Transport::Udp)][usize::from(transport)],
        }
    }
}

proptest! {
    #[test]
    fn a_policy_is_read_as_it_is_written(items in proptest::collection::vec(any_item(), 1..8)) {
        // Names that stand alone are no hosts.
        let odd = |item: &EgressItem| matches!(item.to_string().as_str(), "all" | "none");
        prop_assume!(!items.iter().any(odd));
        let policy = EgressPolicy::List(items);
        prop_assert_eq!(policy.to_string().parse::<EgressPolicy>().unwrap(), policy);
    }

    #[test]
    fn no_text_is_too_odd(text in "\\PC{0,40}") {
        let _ = text.parse::<EgressPolicy>();
    }
}
