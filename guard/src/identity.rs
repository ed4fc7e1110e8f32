//! Who a member is to etcd: two 64-bit numbers, printed as etcdctl prints them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A cluster's or member's ID: lower hex without a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexId(pub u64);

/// The two IDs in the metadata record of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's ID.
    pub cluster: HexId,
    /// The member's ID; new at every add.
    pub member: HexId,
}

/// A text that is no ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an ID of 1 to 16 hexadecimal digits")]
pub struct InvalidId(String);

impl fmt::Display for HexId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:x}", self.0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "member {} of cluster {}", self.member, self.cluster)
    }
}

impl FromStr for HexId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(value) if digits => Ok(Self(value)),
            Ok(_) | Err(_) => Err(InvalidId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for HexId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<HexId> for String {
    fn from(id: HexId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::HexId;

    #[test]
    fn an_id_is_what_etcdctl_prints() {
        assert_eq!("8e9e05c52164694d".parse(), Ok(HexId(0x8e9e_05c5_2164_694d)));
        assert_eq!(HexId(0xab).to_string(), "ab");
        for bad in ["", "0x1", "+1", "12345678901234567", "xyz"] {
            assert!(bad.parse::<HexId>().is_err(), "{bad}");
        }
    }
}
