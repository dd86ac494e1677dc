//! Bytes in JSON without a loss: as text where they are UTF-8, else in base64.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

/// Any bytes. In JSON `{"text": "..."}` if they are UTF-8, else `{"base64": "..."}`.
///
/// ```
/// use casita::sandbox::Bytes;
///
/// let json = serde_json::to_string(&Bytes::from("olé"))?;
/// assert_eq!(json, r#"{"text":"olé"}"#);
/// let json = serde_json::to_string(&Bytes::from(vec![0xff, 0]))?;
/// assert_eq!(json, r#"{"base64":"/wA="}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Coded", try_from = "Coded")]
pub struct Bytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Coded {
    Text(String),
    Base64(String),
}

impl Bytes {
    /// As text, with a mark in place of what is none.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl Bytes {
    /// Its text if it is UTF-8, and in base64 if it is not.
    pub(super) fn into_parts(self) -> (Option<String>, Option<String>) {
        match self.into() {
            Coded::Text(text) => (Some(text), None),
            Coded::Base64(text) => (None, Some(text)),
        }
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<Bytes> for Coded {
    fn from(bytes: Bytes) -> Self {
        match String::from_utf8(bytes.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Base64(BASE64_STANDARD.encode(error.as_bytes())),
        }
    }
}

impl TryFrom<Coded> for Bytes {
    type Error = String;

    fn try_from(coded: Coded) -> Result<Self, String> {
        match coded {
            Coded::Text(text) => Ok(Self(text.into_bytes())),
            Coded::Base64(text) => decode(&text),
        }
    }
}

/// What `text` is in base64.
pub(super) fn decode(text: &str) -> Result<Bytes, String> {
    let bytes = BASE64_STANDARD.decode(text);
    bytes
        .map(Bytes)
        .map_err(|error| format!("no base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_are_read_as_they_were_written(bytes: Vec<u8>) {
            let bytes = Bytes(bytes);
            let json = serde_json::to_string(&bytes).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        assert!(serde_json::from_str::<Bytes>(r#"{"base64":"?"}"#).is_err());
        assert!(serde_json::from_str::<Bytes>(r#"{"hex":"00"}"#).is_err());
    }
}
