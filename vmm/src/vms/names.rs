//! IDs and names of VMs.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A VM's ID: twelve lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// How many digits an ID has.
    pub const LEN: usize = 12;

    /// A new one.
    ///
    /// # Errors
    /// If the host has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; Self::LEN / 2];
        random(&mut bytes)?;
        Ok(Self(crate::staging::hex(&bytes)))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == Self::LEN && is_prefix(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not the ID of a VM"))
        }
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

/// Whether an ID may begin with `text`.
pub fn is_prefix(text: &str) -> bool {
    (1..=Id::LEN).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    // Up to 256 bytes come whole.
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(())
}

/// A name for a VM that was given none, such as `calm_heron`; from the `attempt`th on with a number.
pub fn generate(attempt: u32) -> io::Result<String> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    let [a, b, c, d, rest @ ..] = bytes;
    let adjective = ADJECTIVES[usize::from(u16::from_le_bytes([a, b])) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(u16::from_le_bytes([c, d])) % NOUNS.len()];
    Ok(if attempt < 4 {
        format!("{adjective}_{noun}")
    } else {
        format!("{adjective}_{noun}_{}", u32::from_le_bytes(rest))
    })
}

const ADJECTIVES: [&str; 64] = [
    "agile", "amber", "ample", "bold", "brave", "brief", "bright", "brisk", "calm", "candid",
    "clear", "clever", "cosy", "crisp", "curious", "deft", "eager", "early", "exact", "fair",
    "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy",
    "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry",
    "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plain", "polite", "proud",
    "quick", "quiet", "rapid", "ready", "sharp", "silent", "sincere", "steady", "sunny", "swift",
    "tidy", "vivid", "warm", "wise",
];

const NOUNS: [&str; 64] = [
    "acorn", "adobe", "alcove", "alder", "arbor", "arch", "aspen", "atrium", "attic", "balcony",
    "bay", "beam", "birch", "brick", "bridge", "brook", "cabin", "cedar", "cellar", "chalet",
    "clover", "cottage", "court", "cove", "dome", "fern", "finch", "gable", "garden", "gate",
    "grove", "harbor", "hearth", "hedge", "heron", "island", "ivy", "kitchen", "lagoon", "lantern",
    "larch", "lark", "loft", "maple", "meadow", "mill", "oak", "orchard", "otter", "patio", "pine",
    "porch", "quarry", "ridge", "robin", "roof", "spruce", "stable", "studio", "terrace", "tower",
    "veranda", "willow", "window",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::check_name;

    #[test]
    fn ids_are_twelve_digits_and_nothing_else_is_one() {
        let id = Id::random().unwrap();
        assert_eq!(id.as_str().parse::<Id>().unwrap(), id);
        for bad in [
            "",
            "../../etc/pw",
            "0123456789a",
            "0123456789abc",
            "0123456789aB",
        ] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }

    #[test]
    fn generated_names_are_names() {
        for attempt in 0..200 {
            let name = generate(attempt).unwrap();
            check_name(&name).unwrap();
            // Else it could be mistaken for an ID.
            assert!(name.contains('_'));
        }
    }
}
