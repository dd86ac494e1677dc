//! A registry that does what a test tells it to, well or badly.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;

use crate::made::Image;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// The answer's address, for URLs that lead here.
    pub host: String,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The byte from which on the rest is wanted.
    pub fn from(&self) -> usize {
        let range = self.header("range").strip_prefix("bytes=");
        range
            .and_then(|range| range.trim_end_matches('-').parse().ok())
            .unwrap_or(0)
    }
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Only so many bytes of the body are sent.
    pub cut: Option<usize>,
    /// Then the connection is held until the client goes away.
    pub hold: bool,
    /// The body is sent again and again.
    pub endless: bool,
}

impl Answer {
    pub fn ok(body: &[u8]) -> Self {
        Self {
            status: 200,
            body: body.to_vec(),
            ..Self::default()
        }
    }

    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }

    /// The part from a byte on, as a registry that can do that sends it.
    pub fn from(mut self, from: usize) -> Self {
        if from > 0 && self.status == 200 {
            let (len, last) = (self.body.len(), self.body.len().saturating_sub(1));
            self.body.drain(..from.min(len));
            self.status = 206;
            return self.with("Content-Range", &format!("bytes {from}-{last}/{len}"));
        }
        self
    }
}

/// Answers for one image under any name and tag.
pub fn serve(image: &Image, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    if path == "/v2/" {
        Answer::ok(b"{}")
    } else if path.contains("/manifests/") {
        if last.starts_with("sha256:") && last != image.digest() {
            return Answer::status(404);
        }
        Answer::ok(&image.manifest)
            .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            .with("Docker-Content-Digest", &image.digest())
    } else {
        match image.blobs.get(last) {
            Some(blob) => Answer::ok(blob).from(request.from()),
            None => Answer::status(404),
        }
    }
}

type Rule = dyn Fn(&Request) -> Answer + Send + Sync;

/// A listening registry. It ends with the test.
pub struct Fake {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl Fake {
    pub fn start(rule: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let fake = Self {
            address: listener.local_addr()?,
            log: Arc::default(),
            ended: Arc::default(),
        };
        let (log, ended, rule) = (
            fake.log.clone(),
            fake.ended.clone(),
            Arc::<Rule>::from(Box::new(rule) as Box<Rule>),
        );
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (log, rule) = (log.clone(), rule.clone());
                // A client that goes away is no failure here.
                thread::spawn(move || stream.map(|stream| converse(&stream, &log, &*rule)));
            }
        });
        Ok(fake)
    }

    /// Serves an image well.
    pub fn of(image: &Image) -> Result<Self> {
        let image = image.clone();
        Self::start(move |request| serve(&image, request))
    }

    /// A name for an image here.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far whose path has `part`.
    pub fn asked(&self, part: &str) -> Vec<Request> {
        let log = lock(&self.log);
        let asked = log.iter().filter(|request| request.path.contains(part));
        asked.cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn converse(stream: &TcpStream, log: &Mutex<Vec<Request>>, rule: &Rule) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    reader.by_ref().take(8192).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line).into_owned();
    let Some(path) = line
        .strip_prefix("GET ")
        .and_then(|rest| rest.split(' ').next())
    else {
        // A TLS greeting, for one.
        return stream.shutdown(Shutdown::Both);
    };
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    let request = Request {
        path: path.to_owned(),
        headers,
        host: stream.local_addr()?.to_string(),
    };
    lock(log).push(request.clone());
    answer(stream, &rule(&request))
}

fn answer(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = Vec::new();
    write!(
        head,
        "HTTP/1.1 {} Told\r\nConnection: close\r\n",
        answer.status
    )?;
    for (name, value) in &answer.headers {
        write!(head, "{name}: {value}\r\n")?;
    }
    if !answer.endless {
        write!(head, "Content-Length: {}\r\n", answer.body.len())?;
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head)?;
    let end = answer
        .cut
        .unwrap_or(answer.body.len())
        .min(answer.body.len());
    stream.write_all(&answer.body[..end])?;
    if answer.endless {
        loop {
            stream.write_all(&answer.body)?;
        }
    }
    if answer.hold {
        // Until the client closes it.
        let _ = stream.read(&mut [0]);
    }
    stream.shutdown(Shutdown::Write)?;
    // Closing with unread input would reset the connection before the client has read all.
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    Ok(())
}
