//! Cluster and member IDs: how etcd writes them and how it derives them at a bootstrap.

use std::fmt;
use std::str::FromStr;

use sha1::{Digest, Sha1};

/// etcd's ID of a cluster; printed in lower hex, as etcdctl does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

/// etcd's ID of a member; new on every add. Printed in lower hex, as etcdctl does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// A string that is no ID in hex.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an ID in lower hex")]
pub struct InvalidId(String);

macro_rules! hex_id {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{:x}", self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{:x}", self.0)
            }
        }
        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                u64::from_str_radix(text, 16).map($type).map_err(|_| InvalidId(text.to_owned()))
            }
        }
    };
}
hex_id!(ClusterId);
hex_id!(MemberId);

/// The ID that a member of a static bootstrap gets: SHA-1 over its peer URLs and the token, first eight bytes
/// (`computeMemberID` in server/etcdserver/api/membership/member.go; time is no part of it at a bootstrap).
pub fn bootstrap_member_id(peer_url: &str, token: &str) -> MemberId {
    MemberId(first_eight_bytes(&[peer_url.as_bytes(), token.as_bytes()]))
}

/// The ID of a statically bootstrapped cluster: SHA-1 over its sorted member IDs (`genID` in cluster.go).
pub fn bootstrap_cluster_id(members: impl IntoIterator<Item = MemberId>) -> ClusterId {
    let mut ids: Vec<u64> = members.into_iter().map(|member| member.0).collect();
    ids.sort_unstable();
    let bytes: Vec<[u8; 8]> = ids.into_iter().map(u64::to_be_bytes).collect();
    let parts: Vec<&[u8]> = bytes.iter().map(<[u8; 8]>::as_slice).collect();
    ClusterId(first_eight_bytes(&parts))
}

fn first_eight_bytes(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha1::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taken from etcd 3.6.16: `etcd --name m0 --initial-cluster m0=http://127.0.0.1:2380 --initial-cluster-token t`.
    #[test]
    fn ids_are_the_ones_that_etcd_derives() {
        let member = bootstrap_member_id("http://127.0.0.1:2380", "t");
        assert_eq!(
            format!("{member} {}", bootstrap_cluster_id([member])),
            "5b941b0d71c9917e 6ff7ad0266691698"
        );
    }

    #[test]
    fn ids_print_and_parse_in_lower_hex() {
        assert_eq!("8e9e05c52164694d".parse::<MemberId>().unwrap().to_string(), "8e9e05c52164694d");
        assert!("xyz".parse::<ClusterId>().is_err());
    }
}
