//! Conversation with one registry about one repository: every request is tried again when that has
//! a chance, and logs in when it has to.
//!
//! `oci-client` does the login, which each registry does its own way. The requests are made here,
//! because that client neither bounds what it reads nor tells how long a registry asks to wait.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casita_images::Reference;
use oci_client::RegistryOperation;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use reqwest::header::{self, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::backoff::{Backoff, retry_after};
use super::error::{PullError, When};
use super::login::Login;

const CONNECT: Duration = Duration::from_secs(15);
/// A connection on which nothing comes for so long is broken.
const SILENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;
const LOGIN: Duration = Duration::from_mins(1);
const USER_AGENT: &str = concat!("casita/", env!("CARGO_PKG_VERSION"));

/// A repository of a registry.
pub struct Registry {
    host: String,
    repository: String,
    /// `https://HOST/v2/REPOSITORY`
    base: String,
    http: reqwest::Client,
    oci: oci_client::Client,
    name: oci_client::Reference,
    login: Login,
    access: Mutex<Access>,
    /// Whether it ever did: one that never answered is not asked again.
    answered: AtomicBool,
}

/// What requests say about who makes them.
#[derive(Clone, Default)]
struct Access {
    authorization: Option<HeaderValue>,
    /// Counts logins, so that of many requests that were refused together one logs in.
    logins: u32,
}

impl Registry {
    /// Finds out how to talk with the registry of `image`. One on this machine, or any with
    /// `insecure`, may be without TLS.
    pub async fn open(image: &Reference, login: Login, insecure: bool) -> Result<Self, PullError> {
        let name = oci_client::Reference::with_tag(
            image.registry().to_owned(),
            image.repository().to_owned(),
            "latest".to_owned(),
        );
        let api_host = name.resolve_registry().to_owned();
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .danger_accept_invalid_certs(insecure)
            .redirect(redirects(insecure))
            .build()
            .map_err(PullError::Client)?;
        let plain = (insecure || is_loopback(&api_host)) && lacks_tls(&http, &api_host).await;
        let (scheme, protocol) = if plain {
            ("http", ClientProtocol::Http)
        } else {
            ("https", ClientProtocol::Https)
        };
        log::info!("asking {scheme}://{api_host}");
        let oci = oci_client::Client::new(ClientConfig {
            protocol,
            accept_invalid_certificates: insecure,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        });
        Ok(Self {
            host: image.registry().to_owned(),
            repository: image.repository().to_owned(),
            base: format!("{scheme}://{api_host}/v2/{}", image.repository()),
            http,
            oci,
            name,
            login,
            access: Mutex::default(),
            answered: AtomicBool::new(false),
        })
    }

    /// The registry's name for people.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Gets `path` of the repository, from the byte `from` on where the registry can. The response
    /// is 200, 206, or 416 when there is nothing from there on. `what` is how people call it.
    pub async fn get(
        &self,
        path: &str,
        what: &str,
        accept: Option<&'static str>,
        from: u64,
    ) -> Result<Response, PullError> {
        let mut backoff = Backoff::default();
        let mut refused = false;
        loop {
            let access = self.access.lock().await.clone();
            let mut request = self.http.get(format!("{}/{path}", self.base));
            if let Some(types) = accept {
                request = request.header(header::ACCEPT, types);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = access.authorization.clone() {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => {
                    let error = self.broken(error);
                    backoff.wait(None, || error).await?;
                    continue;
                }
            };
            self.answered.store(true, Ordering::Relaxed);
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => return Ok(response),
                StatusCode::UNAUTHORIZED if !refused => {
                    refused = true;
                    self.log_in(access.logins).await?;
                }
                StatusCode::TOO_MANY_REQUESTS => {
                    let asked = retry_after(response.headers(), SystemTime::now());
                    let error = || self.too_many(asked);
                    backoff.wait(asked, error).await?;
                }
                status if status.is_server_error() => {
                    let asked = retry_after(response.headers(), SystemTime::now());
                    backoff.wait(asked, || self.refusal(status, what)).await?;
                }
                status => return Err(self.refusal(status, what)),
            }
        }
    }

    /// Reads a whole body of at most `limit` bytes. One that broke off is an error here.
    pub async fn body(
        &self,
        mut response: Response,
        what: &str,
        limit: usize,
    ) -> Result<Vec<u8>, PullError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(error))? {
            if chunk.len() > limit - body.len() {
                return Err(PullError::TooLong {
                    host: self.host.clone(),
                    what: what.to_owned(),
                    size: limit as u64,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Gets the right to go on, unless another request has since the one that was refused.
    async fn log_in(&self, before: u32) -> Result<(), PullError> {
        let mut access = self.access.lock().await;
        if access.logins != before {
            return Ok(());
        }
        let auth = match &self.login {
            Login::Password { user, password, .. } => {
                RegistryAuth::Basic(user.clone(), password.clone())
            }
            Login::None | Login::Elsewhere { .. } => RegistryAuth::Anonymous,
        };
        let token = self.oci.auth(&self.name, &auth, RegistryOperation::Pull);
        let token = match tokio::time::timeout(LOGIN, token).await {
            Ok(token) => token.map_err(|error| self.no_token(error))?,
            Err(_) => return Err(self.token_error("the token server does not answer")),
        };
        let authorization = match (token, auth) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, RegistryAuth::Basic(user, password)) => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            (None, _) => return Err(self.unauthorized()),
        };
        access.authorization = match authorization.map(HeaderValue::try_from) {
            Some(Ok(mut value)) => {
                value.set_sensitive(true);
                Some(value)
            }
            Some(Err(_)) => return Err(self.token_error("it can't stand in a header")),
            None => None,
        };
        access.logins += 1;
        Ok(())
    }

    fn no_token(&self, error: OciDistributionError) -> PullError {
        match error {
            OciDistributionError::AuthenticationFailure(said) => {
                log::info!("the token server of {} said: {said}", self.host);
                if said.to_ascii_uppercase().contains("TOOMANYREQUESTS") {
                    return self.too_many(None);
                }
                self.unauthorized()
            }
            OciDistributionError::RequestError(error) => PullError::TokenServer {
                host: self.host.clone(),
                source: error.without_url(),
            },
            other => self.token_error(&other.to_string()),
        }
    }

    fn token_error(&self, reason: &str) -> PullError {
        PullError::Token {
            host: self.host.clone(),
            repository: self.repository.clone(),
            reason: reason.to_owned(),
        }
    }

    fn too_many(&self, asked: Option<Duration>) -> PullError {
        PullError::TooManyRequests {
            host: self.host.clone(),
            when: When(asked),
        }
    }

    fn unauthorized(&self) -> PullError {
        let hint = match &self.login {
            Login::None => {
                "; `docker login`, `podman login` or `skopeo login` makes one".to_owned()
            }
            Login::Password { user, file, .. } => {
                format!(", other than {user:?} from {}", file.display())
            }
            Login::Elsewhere { keeper, file } => format!(
                "; by {} it is kept by {keeper}, which casita does not ask: give --authfile",
                file.display()
            ),
        };
        PullError::Unauthorized {
            host: self.host.clone(),
            repository: self.repository.clone(),
            hint,
        }
    }

    fn refusal(&self, status: StatusCode, what: &str) -> PullError {
        let host = self.host.clone();
        match status {
            StatusCode::UNAUTHORIZED => self.unauthorized(),
            StatusCode::FORBIDDEN => PullError::Forbidden {
                host,
                who: match &self.login {
                    Login::Password { user, .. } => format!("{user:?}"),
                    Login::None | Login::Elsewhere { .. } => "anybody".into(),
                },
                repository: self.repository.clone(),
            },
            StatusCode::NOT_FOUND => PullError::NotFound {
                host,
                what: what.to_owned(),
            },
            status => PullError::Status {
                host,
                status,
                what: what.to_owned(),
            },
        }
    }

    /// What a broken request or body means.
    pub(super) fn broken(&self, source: reqwest::Error) -> PullError {
        let host = self.host.clone();
        let source = source.without_url();
        if is_about_certificates(&source) {
            PullError::Certificate { host, source }
        } else if self.answered.load(Ordering::Relaxed) {
            PullError::Broken { host, source }
        } else {
            PullError::Unreachable { host, source }
        }
    }
}

/// Credentials never go along to another host, which is the client's own rule. Whoever was asked
/// by TLS does not send us to where anybody on the way could answer.
fn redirects(insecure: bool) -> Policy {
    Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if !insecure && leaves_tls(attempt.previous(), attempt.url()) {
            attempt.error("a redirect from https to plain http, which only --insecure follows")
        } else {
            attempt.follow()
        }
    })
}

fn leaves_tls(before: &[Url], next: &Url) -> bool {
    next.scheme() != "https" && before.iter().any(|url| url.scheme() == "https")
}

fn is_loopback(host_and_port: &str) -> bool {
    let host = match host_and_port.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => host_and_port,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether nobody speaks TLS at this host. A certificate that is not trusted is TLS.
async fn lacks_tls(http: &reqwest::Client, host: &str) -> bool {
    match http.get(format!("https://{host}/v2/")).send().await {
        Ok(_) => false,
        Err(error) => !is_about_certificates(&error),
    }
}

fn is_about_certificates(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error's source is that of the error in it, not that error.
        cause = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_redirect_leaves_tls() {
        let url = |text: &str| Url::parse(text).unwrap();
        let (safe, plain) = (url("https://a/b"), url("http://a/b"));
        assert!(leaves_tls(std::slice::from_ref(&safe), &plain));
        assert!(leaves_tls(&[safe.clone(), url("https://c/")], &plain));
        assert!(!leaves_tls(std::slice::from_ref(&safe), &url("https://c/")));
        // Who began without it has it no worse.
        assert!(!leaves_tls(std::slice::from_ref(&plain), &plain));
    }

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.example.com:5000",
            "128.0.0.1:1",
            "[::2]:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
