//! Serves runs over HTTP on a Unix socket, with a bounded pool and a bounded queue.

use std::convert::Infallible;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use casita::sandbox::{
    Content, EgressPolicy, ImageSource, PullPolicy, Sandbox, SandboxError, SandboxRequest,
    SandboxResult,
};
use casita_examples::pool::Pool;
use clap::Parser;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The longest request, in bytes.
const MAX_BODY: usize = 16 << 20;
/// How long a client may take to send one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients may be connected at a time.
const MAX_CLIENTS: usize = 256;

/// Serve sandboxed runs over HTTP on a Unix socket.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where clients find it
    #[arg(long)]
    socket: PathBuf,
    /// Runs at a time
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Requests that may wait
    #[arg(long, default_value_t = 8)]
    queue: usize,
    /// Seconds from a request's arrival to its run's end
    #[arg(long, default_value_t = 60)]
    deadline: u64,
}

/// What runs requests.
type Runner = dyn Fn(&SandboxRequest) -> Result<SandboxResult, SandboxError> + Send + Sync;

/// All that a client's request is served with.
struct Service {
    pool: Pool,
    runner: Box<Runner>,
    deadline: Duration,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::new()?;
    let service = Arc::new(Service {
        pool: Pool::new(arguments.workers, arguments.queue),
        runner: Box::new(move |request| sandbox.run(request)),
        deadline: Duration::from_secs(arguments.deadline),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(arguments.workers + 1)
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        serve(&arguments.socket, service, stop).await
    })
}

/// Takes clients until `stop`, and ends when what they asked for is done.
async fn serve(path: &Path, service: Arc<Service>, stop: impl Future<Output = ()>) -> Result<()> {
    let listener = listen(path).with_context(|| path.display().to_string())?;
    let clients = Arc::new(tokio::sync::Semaphore::new(MAX_CLIENTS));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let client = tokio::select! {
            client = listener.accept() => client,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = client else {
            // There is no file descriptor left: those who are here leave some.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = clients.clone().try_acquire_owned() else {
            continue;
        };
        let service = service.clone();
        let answer = service_fn(move |request| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.answer(request).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), answer));
        tokio::spawn(async move {
            // Whatever a client does is its own affair.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = std::fs::remove_file(path);
    graceful.shutdown().await;
    Ok(())
}

/// Listens where nobody does; a socket that somebody left behind is taken over.
fn listen(path: &Path) -> Result<UnixListener> {
    let left = std::fs::symlink_metadata(path);
    let is_left = left.is_ok_and(|found| found.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path).is_err();
    if is_left {
        std::fs::remove_file(path)?;
    }
    Ok(UnixListener::bind(path)?)
}

/// A status, and why.
type Refusal = (StatusCode, String);

impl Service {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answered = match (request.method(), request.uri().path()) {
            (&Method::POST, "/run") => self.run(request).await,
            (&Method::GET, "/health") => {
                let (running, waiting) = self.pool.load();
                Ok(json!({"running": running, "waiting": waiting}))
            }
            (_, "/run" | "/health") => {
                let why = "POST /run, GET /health".to_owned();
                Err((StatusCode::METHOD_NOT_ALLOWED, why))
            }
            _ => Err((
                StatusCode::NOT_FOUND,
                "there is /run and /health".to_owned(),
            )),
        };
        match answered {
            Ok(value) => response(StatusCode::OK, &value),
            Err((status, why)) => response(status, &json!({"error": why})),
        }
    }

    async fn run(self: &Arc<Self>, request: Request<Incoming>) -> Result<Value, Refusal> {
        let deadline = Instant::now() + self.deadline;
        // First of all: a request that has no place costs nothing but its headers.
        let place = self.pool.enter().map_err(|_| {
            let why = "all workers are busy, and the queue is full".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, why)
        })?;
        let mut wanted = read(request).await?;
        let late = || {
            let why = "its time was over before it could be started".to_owned();
            (StatusCode::GATEWAY_TIMEOUT, why)
        };
        let worker = place.worker(deadline).await.map_err(|_| late())?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(late());
        }
        wanted.limits.time = wanted.limits.time.min(left);
        let service = self.clone();
        // It goes on, and keeps its worker, if the client leaves.
        let run = tokio::task::spawn_blocking(move || {
            let result = (service.runner)(&wanted);
            drop(worker);
            result
        });
        match run.await.map_err(|error| internal(&error))? {
            Ok(result) => serde_json::to_value(result).map_err(|error| internal(&error)),
            Err(error @ SandboxError::Request(_)) => {
                Err((StatusCode::BAD_REQUEST, error.to_string()))
            }
            Err(error @ SandboxError::Refused(_)) => {
                Err((StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
            }
            Err(error) => Err(internal(&error)),
        }
    }
}

/// Reads a request, and refuses one that names files of this host.
async fn read(request: Request<Incoming>) -> Result<SandboxRequest, Refusal> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(PATIENCE, body).await {
        Err(_) => {
            let why = "the request did not come in time".to_owned();
            return Err((StatusCode::REQUEST_TIMEOUT, why));
        }
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let why = format!("the request is longer than {MAX_BODY} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, error.to_string())),
        Ok(Ok(body)) => body.to_bytes(),
    };
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let request = SandboxRequest::from_json(&body);
    let mut request = request.map_err(|error| bad(error.to_string()))?;
    // Which images there are is not for clients to say.
    request.pull = PullPolicy::Never;
    let mut contents = request
        .put
        .iter()
        .map(|put| &put.content)
        .chain(&request.stdin);
    let names_files = contents.any(|content| matches!(content, Content::File(_)))
        || matches!(request.image, ImageSource::Rootfs(_))
        || request.kernel.is_some();
    if names_files {
        return Err(bad("a request names no files of this host".to_owned()));
    }
    if request.egress != EgressPolicy::None {
        return Err(bad("a run reaches nothing from here".to_owned()));
    }
    Ok(request)
}

fn internal(error: &dyn std::error::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(format!("{value}\n")));
    let builder = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json");
    let builder = if status == StatusCode::SERVICE_UNAVAILABLE {
        builder.header(RETRY_AFTER, "1")
    } else {
        builder
    };
    builder.body(body).unwrap_or_default()
}

#[cfg(test)]
mod tests;
