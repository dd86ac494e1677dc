//! Debian's docker-registry, with images that umoci makes and skopeo copies.

use std::fs;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::{Program, Running};
use casita_tests::suite::Suite;

use crate::compare;
use crate::made;
use crate::{image, refused, run};

pub fn tests(suite: &mut Suite) {
    suite.test("a_pulled_image_is_what_umoci_unpacks", pulled);
    suite.test("dockers_own_format_is_pulled_too", docker_format);
    suite.test("a_name_that_the_registry_does_not_have", unknown);
    suite.test("a_registry_with_passwords", passwords);
    suite.test("a_registry_with_tls", tls);
}

/// A registry that runs until it is dropped.
struct Served {
    _running: Running,
    address: String,
}

impl Served {
    /// Starts one with more lines of configuration, indented as `http:` needs and as nothing needs.
    fn start(place: &Place, http: &str, more: &str) -> Result<Self> {
        let config = place.write(
            "registry.yml",
            format!(
                "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: 127.0.0.1:0\n{http}{more}",
                place.text("served")
            ),
        )?;
        // It writes its log to standard error.
        let script = format!("exec docker-registry serve '{config}' 2>&1");
        let running = Program::new(["sh", "-c", &script]).start()?;
        running.wait_for("listening on 127.0.0.1:")?;
        running.wait_for("\n")?;
        let port = port(&running)?;
        Ok(Self {
            _running: running,
            address: format!("127.0.0.1:{port}"),
        })
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

/// The port that a process listens at, from the kernel.
fn port(running: &Running) -> Result<u16> {
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", running.id()))?;
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{}/fd", running.id()))?
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?.strip_prefix("socket:[")?;
            Some(link.trim_end_matches(']').to_owned())
        })
        .collect();
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        // 0A is a listening socket's state.
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .filter(|fields| {
            fields
                .get(9)
                .is_some_and(|inode| sockets.iter().any(|it| it == inode))
        })
        .find_map(|fields| u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok())
        .context("the registry listens nowhere")
}

fn push(place: &Place, to: &str, options: &[&str]) -> Result<()> {
    let from = format!("oci:{}:v1", place.text("layout"));
    let to = format!("docker://{to}");
    let mut words = vec!["skopeo", "copy", "-q", "--dest-tls-verify=false"];
    words.extend(options);
    words.extend([from.as_str(), to.as_str()]);
    run(&words).map(drop)
}

fn pulled() -> Result<()> {
    let place = Place::new()?;
    made::umoci(&place)?;
    let served = Served::start(&place, "", "")?;
    let name = served.name("team/app:v1");
    push(&place, &name, &[])?;
    let told = crate::made(&place, &["pull", &name])?;
    compare::with_umoci(&place, &told, &format!("{}:v1", place.text("layout")))?;
    let digest = told["digest"].as_str().context("no digest")?;
    let again = crate::made(
        &place,
        &["pull", &served.name(&format!("team/app@{digest}"))],
    )?;
    ensure!(again["digest"] == digest, "{again}");
    let shown = image(&place, &["inspect", &name]).finish()?.expect(0)?;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    let config = &shown["config"];
    ensure!(config["cmd"][0] == "/bin/hello", "{shown}");
    ensure!(
        config["user"] == "1000" && config["workdir"] == "/home",
        "{shown}"
    );
    ensure!(config["stop_signal"] == "SIGINT", "{shown}");
    ensure!(config["exposed_ports"][0] == "80/tcp", "{shown}");
    Ok(())
}

fn docker_format() -> Result<()> {
    let place = Place::new()?;
    made::umoci(&place)?;
    let served = Served::start(&place, "", "")?;
    let name = served.name("app");
    push(&place, &name, &["--format", "v2s2"])?;
    let told = crate::made(&place, &["pull", &name])?;
    compare::with_umoci(&place, &told, &format!("{}:v1", place.text("layout")))
}

fn unknown() -> Result<()> {
    let place = Place::new()?;
    let served = Served::start(&place, "", "")?;
    let name = served.name("team/none:v1");
    let finished = image(&place, &["pull", &name]).finish()?;
    refused(&place, &finished, &["(404)", &name])
}

/// `user` and `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn passwords() -> Result<()> {
    let place = Place::new()?;
    made::umoci(&place)?;
    let file = place.write("htpasswd", HTPASSWD)?;
    let auth = format!("auth:\n  htpasswd:\n    realm: here\n    path: {file}\n");
    let served = Served::start(&place, "", &auth)?;
    let name = served.name("app:v1");
    push(&place, &name, &["--dest-creds", "user:secret"])?;

    let finished = image(&place, &["pull", &name]).finish()?;
    refused(&place, &finished, &["(401)", &served.address, "login"])?;
    let logins = place.text("logins.json");
    let log_in = |password: &str| {
        let registry = &served.address;
        let words = [
            "skopeo",
            "login",
            "--authfile",
            &logins,
            "--tls-verify=false",
            "-u",
            "user",
        ];
        let words = words.iter().copied().chain(["-p", password, registry]);
        Program::new(words).finish()?.expect(0)
    };
    log_in("secret")?;
    let told = crate::made(&place, &["pull", "--authfile", &logins, &name])?;
    ensure!(told["fetched"] == true, "{told}");

    let other = Place::new()?;
    let wrong = fs::read_to_string(&logins)?.replace("dXNlcjpzZWNyZXQ=", "dXNlcjp3cm9uZw==");
    let wrong = other.write("wrong.json", wrong)?;
    let finished = image(&other, &["pull", "--authfile", &wrong, &name]).finish()?;
    refused(&other, &finished, &["(401)", "\"user\"", "wrong.json"])?;
    let found = image(&other, &["pull", &name])
        .env("REGISTRY_AUTH_FILE", &logins)
        .finish()?;
    found.expect(0).map(drop)
}

fn tls() -> Result<()> {
    let place = Place::new()?;
    made::umoci(&place)?;
    let (key, cert) = (place.text("key.pem"), place.text("cert.pem"));
    let subject = [
        "-subj",
        "/CN=here",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ];
    let mut words = vec![
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ];
    words.extend(["-keyout", &key, "-out", &cert]);
    words.extend(subject);
    words.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
    run(&words)?;
    let http = format!("  tls:\n    certificate: {cert}\n    key: {key}\n");
    let served = Served::start(&place, &http, "")?;
    let name = served.name("app:v1");
    push(&place, &name, &[])?;
    let finished = image(&place, &["pull", &name]).finish()?;
    refused(
        &place,
        &finished,
        &["certificate", "SSL_CERT_FILE", "--insecure"],
    )?;
    image(&place, &["pull", &name])
        .env("SSL_CERT_FILE", &cert)
        .finish()?
        .expect(0)?;
    let other = Place::new()?;
    image(&other, &["pull", "--insecure", &name])
        .finish()?
        .expect(0)
        .map(drop)
}
