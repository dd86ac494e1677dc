use super::*;
use crate::spec::WindowSize;
use crate::wire::Program;

fn process(env: &[&str]) -> ProcessSpec {
    ProcessSpec {
        program: Program::Command(Vec::new()),
        env: env
            .iter()
            .map(|variable| variable.as_bytes().to_vec())
            .collect(),
        workdir: Vec::new(),
        user: String::new(),
        terminal: None,
        limits: Vec::new(),
        group: None,
    }
}

fn environment(process: &ProcessSpec) -> Vec<Vec<u8>> {
    super::environment(process, "yard", b"/root")
}

fn shown(env: &[Vec<u8>]) -> Vec<&str> {
    env.iter()
        .map(|variable| str::from_utf8(variable).unwrap())
        .collect()
}

fn tried(name: &str, path: &str) -> Vec<String> {
    candidates(name.as_bytes(), path.as_bytes())
        .map(|file| String::from_utf8(file).unwrap())
        .collect()
}

fn verdict(name: &str, errors: &[i32], exists: bool) -> (u8, String) {
    let mut attempts = Attempts::default();
    for errno in errors {
        attempts.failed(*errno);
    }
    attempts.verdict(name.as_bytes(), exists)
}

#[test]
fn an_empty_environment_gets_the_defaults() {
    let path = format!("PATH={}", str::from_utf8(DEFAULT_PATH).unwrap());
    let env = environment(&process(&[]));
    assert_eq!(shown(&env), [path.as_str(), "HOME=/root", "HOSTNAME=yard"]);
}

#[test]
fn a_terminal_is_named_only_where_there_is_one() {
    let mut process = process(&["PATH=/bin", "HOME=/", "HOSTNAME=x"]);
    assert_eq!(variable(&environment(&process), b"TERM"), None);
    process.terminal = Some(WindowSize { rows: 1, cols: 1 });
    assert_eq!(
        variable(&environment(&process), b"TERM"),
        Some(b"linux".as_slice())
    );
}

#[test]
fn given_variables_replace_the_defaults_and_later_ones_the_earlier() {
    let process = process(&["A=1", "PATH=/bin", "A=2", "HOME=", "PATHS=x", "HOSTNAME=z"]);
    let env = environment(&process);
    assert_eq!(
        shown(&env),
        ["A=2", "PATH=/bin", "HOME=", "PATHS=x", "HOSTNAME=z"]
    );
}

#[test]
fn a_variable_is_found_by_its_whole_name() {
    let env = [b"PATHS=x".to_vec(), b"PATH=a=b".to_vec()];
    assert_eq!(variable(&env, b"PATH"), Some(b"a=b".as_slice()));
    assert_eq!(variable(&env, b"PAT"), None);
}

#[test]
fn a_name_with_a_slash_is_not_searched_for() {
    assert_eq!(tried("./run", "/bin"), ["./run"]);
    assert_eq!(tried("/", "/bin"), ["/"]);
}

#[test]
fn a_name_is_tried_in_each_directory_and_an_empty_one_is_the_working_directory() {
    assert_eq!(
        tried("ls", "/bin:/usr/bin/::x"),
        ["/bin/ls", "/usr/bin/ls", "ls", "x/ls"]
    );
}

#[test]
fn an_empty_name_is_nowhere() {
    assert!(tried("", "/bin:/usr/bin").is_empty());
    assert_eq!(verdict("", &[], false).0, 127);
}

#[test]
fn what_is_not_found_is_127() {
    let not_found = (127, "exec \"foo\": not found in PATH".to_string());
    assert_eq!(
        verdict("foo", &[errno::ENOENT, errno::ENOTDIR], false),
        not_found
    );
    let (status, line) = verdict("/foo", &[errno::ENOENT], false);
    assert_eq!(
        (status, line.as_str()),
        (127, "exec \"/foo\": No such file or directory (ENOENT)")
    );
    assert_eq!(verdict("/foo/x", &[errno::ENOTDIR], false).0, 127);
}

#[test]
fn what_cannot_be_executed_is_126() {
    let (status, line) = verdict("foo", &[errno::ENOENT, errno::EACCES, errno::ENOENT], false);
    assert_eq!(
        (status, line.as_str()),
        (126, "exec \"foo\": Permission denied (EACCES)")
    );
    assert_eq!(verdict("/foo", &[errno::ENOEXEC], false).0, 126);
}

#[test]
fn a_missing_interpreter_is_not_a_missing_command() {
    let (status, line) = verdict("/foo", &[errno::ENOENT], true);
    assert_eq!(status, 126);
    assert!(line.contains("interpreter"), "{line}");
}

#[test]
fn the_search_ends_at_a_file_that_is_no_program() {
    let mut attempts = Attempts::default();
    assert!(attempts.failed(errno::ENOENT));
    assert!(attempts.failed(errno::EACCES));
    assert!(attempts.failed(errno::ENOTDIR));
    assert!(!attempts.failed(errno::ENOEXEC));
}

#[test]
fn bytes_that_are_no_text_are_still_told() {
    let (_, line) = Attempts::default().verdict(b"\xff\n", false);
    assert_eq!(line, "exec \"\u{fffd}\\n\": not found in PATH");
}
