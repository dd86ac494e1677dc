//! Who pulls: user names and passwords as Docker, Podman and Skopeo keep them.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use casita_images::Reference;
use serde::Deserialize;

/// Files are small; a larger one is none of ours.
const MAX_FILE: u64 = 1 << 20;

/// Why logins can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The file that was named can't be read.
    #[error("the logins in {} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} holds no logins: it should be JSON with `auths`, as `docker login` writes it", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// One login is not what it should be.
    #[error("{}: the login for {registry} is no base64 of `user:password`", path.display())]
    Auth {
        /// The file.
        path: PathBuf,
        /// The name it stands under.
        registry: String,
    },
}

/// What there is for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// Nothing: pull as anybody.
    None,
    /// A user name and a password.
    Password {
        /// The user's name.
        user: String,
        /// The password, or a token that stands for it.
        password: String,
        /// Where they are from.
        file: PathBuf,
    },
    /// Something that is not in a file, so pull as anybody; it is spoken of if that fails.
    Elsewhere {
        /// What keeps it, such as `the program docker-credential-pass`.
        keeper: String,
        /// The file that says so.
        file: PathBuf,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Finds the login for an image: in `named` alone if that is given, else in the first of the usual
/// files that has one.
///
/// # Errors
/// [`LoginError`] when a file is there and not to be understood, or a named one is not there.
pub fn find(image: &Reference, named: Option<&Path>) -> Result<Login, LoginError> {
    find_in(image, named, &|name| env::var_os(name))
}

fn find_in(
    image: &Reference,
    named: Option<&Path>,
    lookup: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Login, LoginError> {
    let named = named
        .map(Path::to_owned)
        .or_else(|| path(lookup("REGISTRY_AUTH_FILE")));
    let mut found = Login::None;
    let files = match &named {
        Some(file) => vec![file.clone()],
        None => usual_files(lookup),
    };
    for file in files {
        match read(&file) {
            Ok(logins) => match logins.login(image, &file)? {
                Login::None => (),
                login @ Login::Password { .. } => return Ok(login),
                elsewhere @ Login::Elsewhere { .. } => found = elsewhere,
            },
            Err(LoginError::Read { source, .. })
                if named.is_none() && source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn path(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn usual_files(lookup: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let home = path(lookup("HOME"));
    let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
    let runtime = path(lookup("XDG_RUNTIME_DIR"));
    let config = path(lookup("XDG_CONFIG_HOME")).or_else(|| below_home(".config"));
    let docker = path(lookup("DOCKER_CONFIG")).or_else(|| below_home(".docker"));
    [
        runtime.map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        docker.map(|folder| folder.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read(path: &Path) -> Result<File, LoginError> {
    let error = |source| LoginError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(error)?.len() > MAX_FILE {
        return Err(error(io::ErrorKind::FileTooLarge.into()));
    }
    let text = fs::read(path).map_err(error)?;
    serde_json::from_slice(&text).map_err(|source| LoginError::Json {
        path: path.to_owned(),
        source,
    })
}

impl File {
    fn login(&self, image: &Reference, file: &Path) -> Result<Login, LoginError> {
        let keys = keys(image);
        let elsewhere = |keeper: String| Login::Elsewhere {
            keeper,
            file: file.to_owned(),
        };
        for key in &keys {
            if let Some(helper) = self.cred_helpers.get(key) {
                return Ok(elsewhere(format!("the program docker-credential-{helper}")));
            }
            let entry = self
                .auths
                .iter()
                .find(|(name, _)| plain_key(name) == *key)
                .map(|(_, entry)| entry);
            let Some(entry) = entry else { continue };
            if let Some((user, password)) = entry.password(key, file)? {
                return Ok(Login::Password {
                    user,
                    password,
                    file: file.to_owned(),
                });
            }
            if entry.identitytoken.as_ref().is_some_and(|t| !t.is_empty()) {
                return Ok(elsewhere("an identity token".into()));
            }
        }
        Ok(match &self.creds_store {
            Some(store) if !store.is_empty() => {
                elsewhere(format!("the program docker-credential-{store}"))
            }
            _ => Login::None,
        })
    }
}

impl Entry {
    fn password(&self, key: &str, file: &Path) -> Result<Option<(String, String)>, LoginError> {
        if let (Some(user), Some(password)) = (&self.username, &self.password)
            && !user.is_empty()
        {
            return Ok(Some((user.clone(), password.clone())));
        }
        let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) else {
            return Ok(None);
        };
        let engine = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let decoded = engine
            .decode(auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        decoded
            .as_deref()
            .and_then(|text| text.split_once(':'))
            // Docker pads with NUL bytes.
            .map(|(user, password)| Some((user.into(), password.trim_end_matches('\0').into())))
            .ok_or_else(|| LoginError::Auth {
                path: file.to_owned(),
                registry: key.to_owned(),
            })
    }
}

/// The names that an image's login may stand under, the most exact first.
fn keys(image: &Reference) -> Vec<String> {
    let mut keys = Vec::new();
    let mut name = format!("{}/{}", image.registry(), image.repository());
    loop {
        keys.push(name.clone());
        match name.rfind('/') {
            Some(slash) => name.truncate(slash),
            None => break,
        }
    }
    if image.registry() == "docker.io" {
        keys.extend(["index.docker.io", "registry-1.docker.io"].map(String::from));
    }
    keys
}

/// A name in `auths` without what older programs put around it: `https://HOST/v1/`.
fn plain_key(name: &str) -> &str {
    let name = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"))
        .unwrap_or(name)
        .trim_end_matches('/');
    name.strip_suffix("/v1")
        .or_else(|| name.strip_suffix("/v2"))
        .unwrap_or(name)
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
