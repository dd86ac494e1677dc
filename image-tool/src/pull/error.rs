//! Why an image could not be pulled.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use casita_images::Digest;

use super::login::LoginError;

/// Each is one line that says what to do, where there is something.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Nobody answers.
    #[error("the registry {host} can't be reached; check its name and the network")]
    Unreachable {
        /// The registry.
        host: String,
        /// What the connection gave.
        #[source]
        source: reqwest::Error,
    },
    /// Somebody answers, but who?
    #[error(
        "the registry {host} has a certificate that is not trusted; SSL_CERT_FILE=FILE names a CA \
         to trust, --insecure trusts anybody"
    )]
    Certificate {
        /// The registry.
        host: String,
        /// What TLS said.
        #[source]
        source: reqwest::Error,
    },
    /// The answer broke off, again and again.
    #[error("the connection to the registry {host} broke; try again, what is there is kept")]
    Broken {
        /// The registry.
        host: String,
        /// How.
        #[source]
        source: reqwest::Error,
    },
    /// 401.
    #[error("the registry {host} wants a login for {repository} (401){hint}")]
    Unauthorized {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// What to do.
        hint: String,
    },
    /// 403.
    #[error("the registry {host} does not allow {who} to pull {repository} (403)")]
    Forbidden {
        /// The registry.
        host: String,
        /// The user, or anybody.
        who: String,
        /// The repository.
        repository: String,
    },
    /// 404.
    #[error("the registry {host} has no {what} (404)")]
    NotFound {
        /// The registry.
        host: String,
        /// The image or a blob of it.
        what: String,
    },
    /// 429.
    #[error("the registry {host} has had too many requests (429); try again {when}, or log in")]
    TooManyRequests {
        /// The registry.
        host: String,
        /// When it wants to be asked again.
        when: When,
    },
    /// Any other status.
    #[error("the registry {host} answered {status} when asked for {what}")]
    Status {
        /// The registry.
        host: String,
        /// What it said.
        status: reqwest::StatusCode,
        /// What it was asked for.
        what: String,
    },
    /// The token server is not what it should be.
    #[error("the registry {host} gives no token for {repository}: {reason}")]
    Token {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// What went wrong.
        reason: String,
    },
    /// Nobody answers who gives tokens.
    #[error("the token server of the registry {host} can't be reached")]
    TokenServer {
        /// The registry.
        host: String,
        /// What the connection gave.
        #[source]
        source: reqwest::Error,
    },
    /// A body that ends too early, however often it is asked for.
    #[error("the registry {host} gives only {got} of the {size} bytes of {digest}")]
    Truncated {
        /// The registry.
        host: String,
        /// The blob.
        digest: Digest,
        /// What came.
        got: u64,
        /// What it should have.
        size: u64,
    },
    /// A body that does not end.
    #[error("the registry {host} gives more than the {size} bytes of {what}")]
    TooLong {
        /// The registry.
        host: String,
        /// The manifest or blob.
        what: String,
        /// What is allowed.
        size: u64,
    },
    /// The content is not what was asked for.
    #[error("the registry {host} gave something else than {expected}: its digest is {got}")]
    WrongDigest {
        /// The registry.
        host: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// A blob's file.
    #[error("the download {} can't be written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The logins.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The HTTP client itself.
    #[error("there can be no connections")]
    Client(#[source] reqwest::Error),
}

impl PullError {
    /// Whether what was fetched so far is good for another attempt.
    pub fn keeps_downloads(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Broken { .. }
                | Self::TokenServer { .. }
                | Self::TooManyRequests { .. }
        )
    }
}

/// When to ask a registry again.
#[derive(Debug, Clone, Copy)]
pub struct When(pub Option<Duration>);

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(wait) if wait.as_secs() > 0 => write!(f, "in {} s", wait.as_secs()),
            _ => f.write_str("later"),
        }
    }
}
