//! MAC addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of a network device, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// An address of this machine's own making from six bytes by chance: the bits that say 'not from a
    /// manufacturer' and 'not a group' are set as they have to be.
    pub fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }

    /// It is that of a group of machines, so no device can have it.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// What is wrong with an address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacError {
    /// It does not have the form.
    #[error(
        "{0:?} is not a MAC address; it is six bytes in hexadecimal, such as 52:54:00:12:34:56"
    )]
    Form(String),
    /// No device can have it.
    #[error("{0} is the address of a group; the first byte of a device's is even")]
    Group(String),
    /// No device can have it.
    #[error("a MAC address of zeroes only is none")]
    Zero,
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut fields = text.split(':');
        for byte in &mut bytes {
            let field = fields.next().ok_or_else(form)?;
            // from_str_radix takes a sign, too.
            let hex = field.bytes().all(|digit| digit.is_ascii_hexdigit());
            if field.len() != 2 || !hex {
                return Err(form());
            }
            *byte = u8::from_str_radix(field, 16).map_err(|_| form())?;
        }
        if fields.next().is_some() {
            return Err(form());
        }
        let address = Self(bytes);
        if address.is_group() {
            return Err(MacError::Group(text.to_owned()));
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(address)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, others @ ..] = self.0;
        write!(f, "{first:02x}")?;
        others.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_correspond() {
        let address: MacAddress = "52:54:00:12:ab:FF".parse().unwrap();
        assert_eq!(address.0, [0x52, 0x54, 0, 0x12, 0xab, 0xff]);
        assert_eq!(address.to_string(), "52:54:00:12:ab:ff");
    }

    #[test]
    fn what_no_device_can_have_is_refused() {
        let refused = |text: &str| text.parse::<MacAddress>().unwrap_err();
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "52:54:00:12:34:+6",
            "5:54:00:12:34:56",
            "52:54:00:12:34:5g",
        ] {
            assert_eq!(refused(text), MacError::Form(text.to_owned()));
        }
        let group = "01:00:5e:00:00:01";
        assert_eq!(refused(group), MacError::Group(group.to_owned()));
        assert_eq!(refused("00:00:00:00:00:00"), MacError::Zero);
    }

    #[test]
    fn addresses_by_chance_are_local_and_of_one_device() {
        for first in 0..=255 {
            let address = MacAddress::local([first, 0, 0, 0, 0, 0]);
            assert!(!address.is_group());
            assert_eq!(address.0[0] & 2, 2);
        }
    }
}
