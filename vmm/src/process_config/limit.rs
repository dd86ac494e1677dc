//! Resource limits by name, as `--ulimit` takes them.

use std::fmt;
use std::str::FromStr;

use casita_agent::wire::Limit;
use serde::{Deserialize, Serialize};

/// Linux's numbers of the resources are the places here.
const NAMES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];
const UNLIMITED: u64 = u64::MAX;

/// A resource limit: `NAME=SOFT[:HARD]`, each a number or `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ulimit(pub Limit);

impl FromStr for Ulimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a limit: write NAME=SOFT[:HARD], such as nofile=1024:4096");
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        let resource = NAMES.iter().position(|known| *known == name);
        let resource = resource.ok_or_else(|| {
            format!(
                "'{name}' is not a resource with a limit: {}",
                NAMES.join(", ")
            )
        })?;
        let value = |text: &str| match text {
            "unlimited" | "-1" => Some(UNLIMITED),
            _ => text.parse().ok(),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = value(soft).zip(value(hard)).ok_or_else(wrong)?;
        if soft > hard {
            return Err(format!(
                "'{text}': the soft limit is above the hard one; give SOFT:HARD"
            ));
        }
        Ok(Self(Limit {
            resource: resource as u8,
            soft,
            hard,
        }))
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.get(usize::from(self.0.resource)).unwrap_or(&"?");
        let text = |value| match value {
            UNLIMITED => "unlimited".to_owned(),
            value => value.to_string(),
        };
        write!(f, "{name}={}:{}", text(self.0.soft), text(self.0.hard))
    }
}

impl TryFrom<String> for Ulimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Ulimit> for String {
    fn from(limit: Ulimit) -> Self {
        limit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_both_limits_and_minus_one_is_none() {
        let limit: Ulimit = "nofile=1024".parse().unwrap();
        assert_eq!(
            limit.0,
            Limit {
                resource: 7,
                soft: 1024,
                hard: 1024
            }
        );
        let limit: Ulimit = "core=0:-1".parse().unwrap();
        assert_eq!(
            limit.0,
            Limit {
                resource: 4,
                soft: 0,
                hard: u64::MAX
            }
        );
        assert_eq!(limit.to_string(), "core=0:unlimited");
        assert_eq!(limit.to_string().parse(), Ok(limit));
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "",
            "nofile",
            "nofile=",
            "files=1",
            "nofile=2:1",
            "nofile=-2",
            "nofile=1:2:3",
        ] {
            assert!(text.parse::<Ulimit>().is_err(), "{text}");
        }
    }
}
