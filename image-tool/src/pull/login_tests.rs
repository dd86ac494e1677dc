use super::*;

fn login(image: &str, json: &str) -> Result<Login, LoginError> {
    let file: File = serde_json::from_str(json).unwrap();
    file.login(&image.parse().unwrap(), Path::new("f"))
}

fn user(image: &str, json: &str) -> Option<String> {
    match login(image, json).unwrap() {
        Login::Password { user, .. } => Some(user),
        _ => None,
    }
}

#[test]
fn a_login_stands_under_any_of_the_registrys_names() {
    // user:pass
    let auth = |key: &str| format!(r#"{{"auths":{{"{key}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#);
    for key in [
        "https://index.docker.io/v1/",
        "docker.io",
        "registry-1.docker.io",
        "docker.io/library/nginx",
    ] {
        assert_eq!(user("nginx", &auth(key)).as_deref(), Some("user"), "{key}");
    }
    for key in [
        "localhost:5000",
        "http://localhost:5000",
        "https://localhost:5000/v2/",
    ] {
        let found = user("localhost:5000/a/b", &auth(key));
        assert_eq!(found.as_deref(), Some("user"), "{key}");
    }
    for key in [
        "localhost",
        "localhost:5001",
        "localhost:5000/b",
        "docker.io",
    ] {
        assert_eq!(user("localhost:5000/a/b", &auth(key)), None, "{key}");
    }
}

#[test]
fn the_most_exact_name_wins() {
    let json = r#"{"auths":{
        "h:1":{"username":"host","password":"x"},
        "h:1/a":{"username":"folder","password":"x"},
        "h:1/a/b":{"username":"repository","password":"x"}}}"#;
    assert_eq!(user("h:1/a/b", json).as_deref(), Some("repository"));
    assert_eq!(user("h:1/a/c", json).as_deref(), Some("folder"));
    assert_eq!(user("h:1/d", json).as_deref(), Some("host"));
}

#[test]
fn a_password_may_have_colons_and_padding() {
    // u:a:b\0\0
    let json = r#"{"auths":{"h:1":{"auth":"dTphOmIAAA=="}}}"#;
    let expected = Login::Password {
        user: "u".into(),
        password: "a:b".into(),
        file: "f".into(),
    };
    assert!(login("h:1/x", json).unwrap() == expected);
}

#[test]
fn what_is_no_login_is_refused_with_its_place() {
    for auth in ["%%%", "dXNlcg=="] {
        let json = format!(r#"{{"auths":{{"h:1":{{"auth":"{auth}"}}}}}}"#);
        let refused = login("h:1/x", &json).err().unwrap().to_string();
        assert!(refused.starts_with("f: the login for h:1 "), "{refused}");
    }
}

#[test]
fn helpers_are_named() {
    let keeper = |json: &str| match login("h:1/x", json).unwrap() {
        Login::Elsewhere { keeper, .. } => keeper,
        _ => String::new(),
    };
    let store = r#"{"auths":{"h:1":{}},"credsStore":"pass"}"#;
    assert_eq!(keeper(store), "the program docker-credential-pass");
    let helper = r#"{"credHelpers":{"h:1":"gcr"}}"#;
    assert_eq!(keeper(helper), "the program docker-credential-gcr");
    let token = r#"{"auths":{"h:1":{"identitytoken":"t"}}}"#;
    assert_eq!(keeper(token), "an identity token");
}

#[test]
fn files_are_looked_at_in_order_and_may_be_missing() {
    let place = tempfile::tempdir().unwrap();
    let image = "h:1/x".parse().unwrap();
    let at = |name: &str| place.path().join(name);
    let find = |named: Option<&Path>| {
        find_in(&image, named, &|name| match name {
            "HOME" => Some(at("home").into()),
            "XDG_RUNTIME_DIR" => Some(at("run").into()),
            _ => None,
        })
    };
    assert!(find(None).unwrap() == Login::None);
    let write = |name: &str, user: &str| {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        let json = format!(r#"{{"auths":{{"h:1":{{"username":"{user}","password":""}}}}}}"#);
        fs::write(at(name), json).unwrap();
    };
    let who = |login: Login| match login {
        Login::Password { user, .. } => user,
        _ => String::new(),
    };
    write("home/.docker/config.json", "docker");
    assert_eq!(who(find(None).unwrap()), "docker");
    write("run/containers/auth.json", "run");
    assert_eq!(who(find(None).unwrap()), "run");
    write("mine", "mine");
    assert_eq!(who(find(Some(&at("mine"))).unwrap()), "mine");
    let missing = find(Some(&at("none"))).err().unwrap();
    assert!(matches!(missing, LoginError::Read { .. }));
}
