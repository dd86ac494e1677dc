//! Names of images, by the rules that Docker's users know: `nginx` is
//! `docker.io/library/nginx:latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
/// What the default registry was once called.
const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// Registry and repository together; what the distribution specification allows.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// An image's full name: registry, repository, and a tag or a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why something is no image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing, or nothing before the tag.
    #[error("{0:?} is no image name: it has no repository")]
    Empty(String),
    /// A repository has to be in lower case.
    #[error("{0:?} is no image name: the repository has to be in lower case")]
    Uppercase(String),
    /// The repository's path.
    #[error(
        "{name:?} is no image name: {part:?} may have lower-case letters and digits, separated by \
         one '.', '_', '__' or any number of '-'"
    )]
    Repository {
        /// The whole name.
        name: String,
        /// The component that is wrong.
        part: String,
    },
    /// The registry's host and port.
    #[error("{name:?} is no image name: {part:?} is no registry's host and port")]
    Registry {
        /// The whole name.
        name: String,
        /// What stands for the registry.
        part: String,
    },
    /// The tag.
    #[error(
        "{name:?} is no image name: the tag {tag:?} may have at most 128 letters, digits, '_', '.' \
         and '-', and starts with none of the last two"
    )]
    Tag {
        /// The whole name.
        name: String,
        /// The tag.
        tag: String,
    },
    /// The digest.
    #[error("{name:?} is no image name: {cause}")]
    Digest {
        /// The whole name.
        name: String,
        /// What is wrong with the digest.
        cause: DigestError,
    },
    /// Too long.
    #[error("an image name has at most 255 characters before its tag, and {0:?} has more")]
    TooLong(String),
    /// 64 hex digits are taken for a digest everywhere else.
    #[error("{0:?} is no image name but a digest: write sha256: before it")]
    Hex(String),
}

impl Reference {
    /// The registry's name for people, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in its registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. Without a digest there always is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest that is meant.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The shortest name that means the same, as Docker shows it: `nginx:latest`.
    pub fn familiar(&self) -> String {
        let repository = if self.registry == DEFAULT_REGISTRY {
            match self.repository.strip_prefix(DEFAULT_NAMESPACE) {
                // `library/a/b` would lose its namespace, and `localhost/x` become a registry's.
                Some(name) if !name.contains('/') => name.to_owned(),
                _ if names_registry(first_part(&self.repository)) => self.name(),
                _ => self.repository.clone(),
            }
        } else {
            self.name()
        };
        format!("{repository}{}", self.suffix())
    }

    fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(text, digest)?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it, a port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].find(':') {
            Some(colon) => {
                let (name, tag) = rest.split_at(name_start + colon);
                (name, Some(parse_tag(text, &tag[1..])?))
            }
            None => (rest, None),
        };
        if tag.is_none() && digest.is_none() && Digest::from_hex(name).is_some() {
            return Err(ReferenceError::Hex(text.into()));
        }
        let (registry, repository) = parse_name(text, name)?;
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag,
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

fn parse_digest(text: &str, digest: &str) -> Result<Digest, ReferenceError> {
    digest.parse().map_err(|cause| ReferenceError::Digest {
        name: text.into(),
        cause,
    })
}

fn parse_tag(text: &str, tag: &str) -> Result<String, ReferenceError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = tag.as_bytes();
    let good = bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|&first| word(first))
        && bytes
            .iter()
            .all(|&byte| word(byte) || byte == b'.' || byte == b'-');
    if !good {
        return Err(ReferenceError::Tag {
            name: text.into(),
            tag: tag.into(),
        });
    }
    Ok(tag.to_owned())
}

/// Splits registry and repository, and adds what a short name leaves out.
fn parse_name(text: &str, name: &str) -> Result<(String, String), ReferenceError> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if names_registry(first) => (first, rest.to_owned()),
        Some(_) => (DEFAULT_REGISTRY, name.to_owned()),
        None => (DEFAULT_REGISTRY, format!("{DEFAULT_NAMESPACE}{name}")),
    };
    if repository.is_empty() || name.is_empty() {
        return Err(ReferenceError::Empty(text.into()));
    }
    let registry = if registry == OLD_DEFAULT_REGISTRY {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("{DEFAULT_NAMESPACE}{repository}")
    } else {
        repository
    };
    if !is_host_and_port(registry) {
        return Err(ReferenceError::Registry {
            name: text.into(),
            part: registry.into(),
        });
    }
    if let Some(part) = repository.split('/').find(|part| !is_repository_part(part)) {
        if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(text.into()));
        }
        return Err(ReferenceError::Repository {
            name: text.into(),
            part: part.into(),
        });
    }
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(ReferenceError::TooLong(text.into()));
    }
    Ok((registry.to_owned(), repository))
}

fn first_part(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// Whether the first part of a name is a registry rather than a namespace.
fn names_registry(part: &str) -> bool {
    part == "localhost"
        || part.contains(['.', ':', '['])
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = if text.starts_with('[') {
        match text.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, rest)) if rest.starts_with(':') => (host, Some(&rest[1..])),
            _ => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let good_port = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    });
    good_port
        && match host.strip_prefix('[') {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.split('.').all(is_host_part),
        }
}

fn is_host_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('-')
        && !part.ends_with('-')
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Letters and digits, with separators only between them.
fn is_repository_part(part: &str) -> bool {
    let word = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !part.starts_with(word) || !part.ends_with(word) {
        return false;
    }
    part.split(word).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name(), self.suffix())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
