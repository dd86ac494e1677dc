//! An image's configuration: the part of OCI's (and Docker's) JSON that decides how it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::time;

/// More than any real image has; registries refuse manifests of this size.
pub const MAX_CONFIG: usize = 8 << 20;

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// What comes before the command.
    pub entrypoint: Vec<String>,
    /// The command, or the entry point's default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The directory to start in; empty means `/`.
    pub workdir: String,
    /// `user`, `uid`, `user:group`, ...; empty means root.
    pub user: String,
    /// The signal that asks it to end, such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// `80/tcp`, in order.
    pub exposed_ports: Vec<String>,
    /// Paths that want a volume, in order.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The processor it is for, in Go's words: `amd64`.
    pub architecture: String,
    /// The system it is for: `linux`.
    pub os: String,
}

/// A configuration blob, as far as it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// How to run the image.
    pub config: ImageConfig,
    /// The digests of the layers' tars, from the bottom up.
    pub diff_ids: Vec<Digest>,
    /// When the image was made, in seconds since 1970.
    pub created: Option<u64>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Larger than any real one.
    #[error("the image's configuration has {0} bytes; at most 8 MiB are accepted")]
    TooLarge(usize),
    /// No JSON, or a field of another type.
    #[error("the image's configuration is not valid: {0}")]
    Json(serde_json::Error),
    /// For another machine.
    #[error(
        "the image is for {os}/{architecture}, and this machine runs linux/amd64: choose an image \
         or a tag for amd64"
    )]
    Platform {
        /// Its system.
        os: String,
        /// Its processor.
        architecture: String,
    },
}

/// The JSON itself. A field may be missing or null; one of another type is an error.
#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    os: Option<String>,
    created: Option<String>,
    config: Option<Run>,
    rootfs: Option<Rootfs>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<Names>,
    volumes: Option<Names>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Docker writes sets as objects of empty objects.
#[derive(Default)]
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let set = BTreeMap::<String, serde_json::Map<String, serde_json::Value>>::deserialize(
            deserializer,
        )?;
        Ok(Self(set.into_keys().collect()))
    }
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Option<Vec<Digest>>,
}

impl ConfigFile {
    /// Reads a configuration blob.
    ///
    /// # Errors
    /// If it is too large, no JSON, or a field that counts has another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > MAX_CONFIG {
            return Err(ConfigError::TooLarge(bytes.len()));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        let run = document.config.unwrap_or_default();
        let config = ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            workdir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: run.exposed_ports.unwrap_or_default().0,
            volumes: run.volumes.unwrap_or_default().0,
            labels: run
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, value.unwrap_or_default()))
                .collect(),
            // Old images name neither; all that can be said of them is that they once ran here.
            architecture: non_empty(document.architecture, "amd64"),
            os: non_empty(document.os, "linux"),
        };
        Ok(Self {
            config,
            diff_ids: document
                .rootfs
                .and_then(|rootfs| rootfs.diff_ids)
                .unwrap_or_default(),
            created: document.created.as_deref().and_then(time::parse_rfc3339),
        })
    }

    /// Refuses an image that can't run on this machine.
    ///
    /// # Errors
    /// If it is for another system or processor.
    pub fn check_platform(&self) -> Result<(), ConfigError> {
        if self.config.os == "linux" && self.config.architecture == "amd64" {
            return Ok(());
        }
        Err(ConfigError::Platform {
            os: self.config.os.clone(),
            architecture: self.config.architecture.clone(),
        })
    }
}

fn non_empty(text: Option<String>, default: &str) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_counts_is_read() {
        let file = ConfigFile::parse(
            br#"{"architecture":"amd64","os":"linux","created":"1970-01-02T00:00:01.5Z",
                "history":[{"x":1}],"config":{"Entrypoint":["/e"],"Cmd":["a","b"],
                "Env":["A=1"],"WorkingDir":"/w","User":"1:2","StopSignal":"SIGQUIT",
                "ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Volumes":{"/v":{}},
                "Labels":{"k":"v"},"ArgsEscaped":true,"OnBuild":null,"Healthcheck":{"Test":[]}},
                "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#,
        )
        .unwrap();
        assert_eq!(file.created, Some(86401));
        assert_eq!(file.diff_ids, [Digest::of(b"")]);
        let config = file.config;
        assert_eq!(config.entrypoint, ["/e"]);
        assert_eq!(config.cmd, ["a", "b"]);
        assert_eq!(config.env, ["A=1"]);
        assert_eq!(
            (config.workdir.as_str(), config.user.as_str()),
            ("/w", "1:2")
        );
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert_eq!(config.volumes, ["/v"]);
        assert_eq!(config.labels["k"], "v");
    }

    #[test]
    fn missing_and_null_fields_have_defaults() {
        for json in [
            "{}",
            r#"{"config":null}"#,
            r#"{"config":{"Cmd":null,"Labels":null}}"#,
        ] {
            let file = ConfigFile::parse(json.as_bytes()).unwrap();
            let expected = ImageConfig {
                architecture: "amd64".into(),
                os: "linux".into(),
                ..ImageConfig::default()
            };
            assert_eq!(file.config, expected, "{json}");
            file.check_platform().unwrap();
        }
    }

    #[test]
    fn a_field_of_another_type_is_an_error_of_one_line() {
        for json in [
            "",
            "[]x",
            r#"{"config":{"Cmd":"sh"}}"#,
            r#"{"config":{"Env":{"A":"1"}}}"#,
            r#"{"config":{"User":0}}"#,
            r#"{"config":{"ExposedPorts":["80"]}}"#,
            r#"{"rootfs":{"diff_ids":["x"]}}"#,
        ] {
            let error = ConfigFile::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_image_for_another_machine_is_refused_by_both_names() {
        let file = ConfigFile::parse(br#"{"architecture":"arm64","os":"linux"}"#).unwrap();
        let error = file.check_platform().unwrap_err().to_string();
        assert!(
            error.contains("linux/arm64") && error.contains("linux/amd64"),
            "{error}"
        );
    }
}
