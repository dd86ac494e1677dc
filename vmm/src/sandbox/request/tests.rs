use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        any::<Vec<u8>>().prop_map(Content::Bytes),
        "[a-z/]{1,9}".prop_map(|path| Content::File(path.into())),
    ]
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-z*]{1,5}){1,3}"
}

prop_compose! {
    fn put()(path in path(), content in content(), mode in option::of(0..=0o7777_u32)) -> PutFile {
        PutFile { path, content, mode }
    }
}

prop_compose! {
    fn request()(
        image in prop_oneof![
            Just(ImageSource::BuiltIn),
            "[a-z]{1,9}".prop_map(ImageSource::Reference),
            "[a-z/]{1,9}".prop_map(|path| ImageSource::Rootfs(path.into())),
        ],
        command in vec("[^\0]{0,9}", 0..4),
        env in vec("[A-Z]{1,4}=[^\0]{0,9}", 0..4),
        workdir in option::of(path()),
        user in option::of("[a-z]{1,8}"),
        stdin in option::of(content()),
        put in vec(put(), 0..4),
        take in vec(path(), 0..4),
        egress in prop_oneof![Just("none"), Just("all"), Just("10.0.0.0/8:80/tcp,example.org")],
        cpus in 1..=MAX_CPUS,
        output in 0..=Limits::MAX_DATA,
    ) -> SandboxRequest {
        let egress = egress.parse().unwrap();
        let limits = Limits { output, ..Limits::default() };
        SandboxRequest { image, command, env, workdir, user, stdin, put, take, limits, egress, cpus, ..Default::default() }
    }
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(request in request()) {
        let json = serde_json::to_vec(&request).unwrap();
        prop_assert_eq!(SandboxRequest::from_json(&json).unwrap(), request);
    }

    #[test]
    fn any_text_is_a_request_or_refused_in_one_line(text in "\\PC{0,60}") {
        if let Err(error) = SandboxRequest::from_json(text.as_bytes()) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

fn refused(change: impl FnOnce(&mut SandboxRequest)) -> String {
    let mut request = SandboxRequest::default();
    change(&mut request);
    request.check().unwrap_err().to_string()
}

#[test]
fn paths_that_lead_nowhere_are_refused() {
    for bad in ["", "a", "/", "/a/", "/a/../b", "/a/./b", "/a/..", "/a\0b"] {
        let put = refused(|request| request.put = vec![PutFile::new(bad, "")]);
        assert!(put.contains("put a file at"), "{put}");
        let take = refused(|request| request.take = vec![bad.to_owned()]);
        assert!(take.contains("take a file from"), "{take}");
    }
    let long = format!("/{}", "x".repeat(MAX_PATH));
    refused(|request| request.take = vec![long]);
}

#[test]
fn what_no_guest_could_do_is_refused() {
    refused(|request| request.cpus = 0);
    refused(|request| request.limits.memory = 1);
    refused(|request| request.command = vec!["a\0".to_owned()]);
    refused(|request| request.command = vec!["x".repeat(MAX_COMMAND + 1)]);
    refused(|request| request.env = vec!["=x".to_owned()]);
    refused(|request| request.workdir = Some("here".to_owned()));
    refused(|request| request.take = vec!["/x".to_owned(); MAX_TAKES + 1]);
    refused(|request| {
        request.put = vec![PutFile {
            mode: Some(0o10000),
            ..PutFile::new("/a", "")
        }];
    });
}

#[test]
fn unknown_fields_and_two_contents_are_refused() {
    for (json, why) in [
        ("{\"comand\":[]}", "comand"),
        ("{\"put\":[{\"path\":\"/a\"}]}", "/a: a content is one of"),
        (
            "{\"put\":[{\"path\":\"/a\",\"text\":\"\",\"file\":\"b\"}]}",
            "one of",
        ),
        ("{\"stdin\":{\"base64\":\"?\"}}", "base64"),
        ("{\"image\":\"debian\"}", "debian"),
        ("[]", "not one"),
        ("", "not one"),
    ] {
        let error = SandboxRequest::from_json(json.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}
