use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn parse(text: &str) -> Reference {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn short_names_mean_what_docker_means() {
    for (given, canonical, familiar) in [
        ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
        (
            "bitnami/redis",
            "docker.io/bitnami/redis:latest",
            "bitnami/redis:latest",
        ),
        (
            "docker.io/nginx",
            "docker.io/library/nginx:latest",
            "nginx:latest",
        ),
        ("index.docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        (
            "localhost:5000/a/b/c:T_1",
            "localhost:5000/a/b/c:T_1",
            "localhost:5000/a/b/c:T_1",
        ),
        (
            "127.0.0.1:5000/x",
            "127.0.0.1:5000/x:latest",
            "127.0.0.1:5000/x:latest",
        ),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest", "ghcr.io/a/b:latest"),
        ("HOST/a", "HOST/a:latest", "HOST/a:latest"),
        (
            "library/a/b",
            "docker.io/library/a/b:latest",
            "library/a/b:latest",
        ),
        (
            "a--b/c__d.e",
            "docker.io/a--b/c__d.e:latest",
            "a--b/c__d.e:latest",
        ),
    ] {
        let reference = parse(given);
        assert_eq!(reference.to_string(), canonical, "{given}");
        assert_eq!(reference.familiar(), familiar, "{given}");
        assert_eq!(parse(familiar), reference, "{given}");
    }
}

#[test]
fn a_digest_takes_the_place_of_the_tag() {
    let by_digest = parse(&format!("nginx@sha256:{HEX}"));
    assert_eq!(by_digest.tag(), None);
    assert_eq!(
        by_digest.to_string(),
        format!("docker.io/library/nginx@sha256:{HEX}")
    );
    let both = parse(&format!("nginx:1@sha256:{HEX}"));
    assert_eq!(both.tag(), Some("1"));
    assert_eq!(both.digest().unwrap().hex(), HEX);
}

#[test]
fn bad_names_are_refused_for_their_reason() {
    use ReferenceError as E;
    type Check = fn(&ReferenceError) -> bool;
    let long = "a".repeat(256);
    let long_tag = format!("a:{}", "b".repeat(129));
    let cases: &[(&str, Check)] = &[
        ("", |e| matches!(e, E::Empty(_))),
        (":tag", |e| matches!(e, E::Empty(_))),
        ("localhost:5000/", |e| matches!(e, E::Empty(_))),
        ("Nginx", |e| matches!(e, E::Uppercase(_))),
        ("localhost/Nginx", |e| matches!(e, E::Uppercase(_))),
        ("a//b", |e| matches!(e, E::Repository { .. })),
        ("a/", |e| matches!(e, E::Repository { .. })),
        ("../a", |e| matches!(e, E::Registry { .. })),
        ("a/../b", |e| matches!(e, E::Repository { .. })),
        ("a b", |e| matches!(e, E::Repository { .. })),
        ("-a", |e| matches!(e, E::Repository { .. })),
        ("a___b", |e| matches!(e, E::Repository { .. })),
        ("a..b", |e| matches!(e, E::Repository { .. })),
        ("/a", |e| matches!(e, E::Repository { .. })),
        ("host:99999/a", |e| matches!(e, E::Registry { .. })),
        ("-x.y/a", |e| matches!(e, E::Registry { .. })),
        ("a:", |e| matches!(e, E::Tag { .. })),
        ("a:-b", |e| matches!(e, E::Tag { .. })),
        ("a:b c", |e| matches!(e, E::Tag { .. })),
        (&long_tag, |e| matches!(e, E::Tag { .. })),
        ("a@sha256:12", |e| matches!(e, E::Digest { .. })),
        ("a@", |e| matches!(e, E::Digest { .. })),
        (&long, |e| matches!(e, E::TooLong(_))),
        (HEX, |e| matches!(e, E::Hex(_))),
    ];
    for (name, check) in cases {
        let error = name.parse::<Reference>().expect_err(name);
        assert!(check(&error), "{name}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
}

proptest! {
    #[test]
    fn what_is_accepted_is_a_fixed_point(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&parse(&reference.to_string()), &reference);
            prop_assert_eq!(&parse(&reference.familiar()), &reference);
        }
    }

    #[test]
    fn well_formed_names_are_accepted(
        registry in proptest::option::of("[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{1,3})?"),
        // No dot in its first part, which would be a registry.
        path in "[a-z0-9]{1,6}([_-][a-z0-9]{1,6})?(/[a-z0-9]{1,6}([._-][a-z0-9]{1,6}){0,3}){0,2}",
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
    ) {
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let registry = registry.map(|registry| format!("{registry}/")).unwrap_or_default();
        let name = format!("{registry}{path}{tag}");
        prop_assert!(name.parse::<Reference>().is_ok(), "{}", name);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = text.parse::<Reference>();
    }
}
