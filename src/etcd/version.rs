//! etcd's versions: which this operator knows, and which patch a minor means.

use std::fmt;
use std::str::FromStr;

/// A minor that this operator can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Minor {
    /// 3.5
    V3_5,
    /// 3.6
    V3_6,
    /// 3.7
    V3_7,
}

/// A release of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The minor.
    pub minor: Minor,
    /// The patch.
    pub patch: u32,
}

/// A version that cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidVersion {
    /// Not of the form 3.x or 3.x.y with a known x.
    #[error("version {0:?} is not known: use 3.5, 3.6 or 3.7, or a patch of them such as 3.6.16")]
    Unknown(String),
    /// Older than the floor.
    #[error(
        "version {version} is below {floor}, the first without known data loss or a hole in security: use {floor} or newer"
    )]
    BelowFloor {
        /// What was asked for.
        version: Version,
        /// The oldest that is allowed.
        floor: Version,
    },
}

impl Minor {
    const ALL: [Self; 3] = [Self::V3_5, Self::V3_6, Self::V3_7];

    fn text(self) -> &'static str {
        match self {
            Self::V3_5 => "3.5",
            Self::V3_6 => "3.6",
            Self::V3_7 => "3.7",
        }
    }

    /// The newest patch that was tested with this operator.
    pub fn newest(self) -> Version {
        let patch = match self {
            Self::V3_5 => 35,
            Self::V3_6 => 16,
            Self::V3_7 => 3,
        };
        Version { minor: self, patch }
    }

    /// The oldest patch without the data-loss bugs and advisories of `reliability.md` table F
    /// (etcd issues 19557, 20793, 20967; GHSA-xg4h-6gfc-h4m8, GHSA-6vch-q96h-7gc3).
    pub fn floor(self) -> Version {
        let patch = match self {
            Self::V3_5 => 33,
            Self::V3_6 => 14,
            Self::V3_7 => 1,
        };
        Version { minor: self, patch }
    }
}

impl Version {
    /// What `spec.version` means: a minor is its newest known patch, a patch is itself.
    pub fn resolve(text: &str) -> Result<Self, InvalidVersion> {
        let unknown = || InvalidVersion::Unknown(text.to_owned());
        if let Some(minor) = Minor::ALL.into_iter().find(|minor| minor.text() == text) {
            return Ok(minor.newest());
        }
        let version: Self = text.parse().map_err(|()| unknown())?;
        let floor = version.minor.floor();
        if version < floor { Err(InvalidVersion::BelowFloor { version, floor }) } else { Ok(version) }
    }
}

impl FromStr for Version {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (minor, patch) = text.rsplit_once('.').ok_or(())?;
        let minor = Minor::ALL.into_iter().find(|known| known.text() == minor).ok_or(())?;
        Ok(Self { minor, patch: patch.parse().map_err(|_| ())? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.minor.text(), self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_means_its_newest_patch_and_a_patch_means_itself() {
        let resolved = |text| Version::resolve(text).map(|version| version.to_string());
        assert_eq!(resolved("3.6"), Ok("3.6.16".to_owned()));
        assert_eq!(resolved("3.5.34"), Ok("3.5.34".to_owned()));
        assert!(matches!(resolved("3.4"), Err(InvalidVersion::Unknown(_))));
        assert!(matches!(resolved("3.6.4"), Err(InvalidVersion::BelowFloor { .. })));
    }
}
