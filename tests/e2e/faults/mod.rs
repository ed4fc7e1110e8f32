//! What goes wrong with members, and what Quorate promises then: one table of faults, each with what is expected of it
//! at each size. `harm` does it, `cell` does one of them to one cluster under load and judges what comes of it,
//! `matrix` does all of them to clusters of every kind, `chaos` draws them by lot.

pub(crate) mod cell;
mod chaos;
pub(crate) mod harm;
mod matrix;
mod page;

use Expected::{Refused, Replaced, Stays, Whole};
use Fault::*;

/// All of them, in the order of the page.
pub(crate) const FAULTS: &[Fault] = &[
    MemberKilled,
    LeaderKilled,
    AllKilled,
    Stopped15Seconds,
    Stopped2Minutes,
    VolumeWiped,
    WalGone,
    DatabaseGone,
    RolledBack,
    RolledBackBesideOneThatLags,
    ValueChanged,
    HealthyRestartedBesideChangedValue,
    AlarmOfRemoved,
    VolumesSwapped,
    ForeignVolume,
    DatabaseDamaged,
    DatabaseBegun,
    DatabaseUnused,
    WalDamaged,
    WalTorn,
    ClaimDeleted,
    PodAndClaimDeleted,
    ClaimStuck,
    DiskFull,
    CutFromPeers,
    CutFromOperator,
    CutFromBoth,
    Lossy,
    Slow,
    WrongCertificate,
    ExpiredCertificate,
    MostWiped,
    TwoOfFiveWiped,
    FrozenWhileTheOthersWrote,
    AllVolumesGone,
    TwoOperators,
    CreatedAgain,
    NodeKilled,
    NodeBackAfterRepair,
];

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    MemberKilled,
    LeaderKilled,
    AllKilled,
    Stopped15Seconds,
    Stopped2Minutes,
    VolumeWiped,
    WalGone,
    DatabaseGone,
    RolledBack,
    RolledBackBesideOneThatLags,
    ValueChanged,
    HealthyRestartedBesideChangedValue,
    AlarmOfRemoved,
    VolumesSwapped,
    ForeignVolume,
    DatabaseDamaged,
    DatabaseBegun,
    DatabaseUnused,
    WalDamaged,
    WalTorn,
    ClaimDeleted,
    PodAndClaimDeleted,
    ClaimStuck,
    DiskFull,
    CutFromPeers,
    CutFromOperator,
    CutFromBoth,
    Lossy,
    Slow,
    WrongCertificate,
    ExpiredCertificate,
    MostWiped,
    TwoOfFiveWiped,
    FrozenWhileTheOthersWrote,
    AllVolumesGone,
    TwoOperators,
    CreatedAgain,
    NodeKilled,
    NodeBackAfterRepair,
}

/// What must come of it. In every case no acknowledged write is lost, and every member that was not harmed keeps its ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The same members are healthy again.
    Stays,
    /// Who was harmed has left, and as many members as before are healthy.
    Replaced,
    /// One of these two: what was hit may have been of use or not.
    Whole,
    /// A condition says so, and nobody is removed and nothing is deleted. After what was done is undone, where it can
    /// be, the same members are healthy again.
    Refused {
        /// Type and reason of the condition.
        condition: (&'static str, &'static str),
        /// What the status calls those who were harmed.
        health: &'static str,
    },
}

/// No member serves, so nothing can be repaired.
const fn lost(health: &'static str) -> Expected {
    Refused { condition: ("Ready", "QuorumLost"), health }
}

/// The others serve, but what is wrong has a cause that only a person can know.
const fn refused(health: &'static str) -> Expected {
    Refused { condition: ("Stalled", "RepairRefused"), health }
}

impl Fault {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            MemberKilled => "a member killed -9",
            LeaderKilled => "the leader killed -9",
            AllKilled => "all members killed -9",
            Stopped15Seconds => "SIGSTOP for 15 s",
            Stopped2Minutes => "SIGSTOP for 2 min",
            VolumeWiped => "volume wiped",
            WalGone => "only `wal` gone",
            DatabaseGone => "only `snap/db` gone",
            RolledBack => "`member/` 10,000 writes old",
            RolledBackBesideOneThatLags => {
                "`member/` rolled back while another member lags by 200 acknowledged writes"
            }
            ValueChanged => "a value changed silently in one member's db",
            HealthyRestartedBesideChangedValue => {
                "a healthy member restarted while a value of another one was changed silently"
            }
            AlarmOfRemoved => "an alarm of a member that is removed",
            VolumesSwapped => "volumes of two members swapped",
            ForeignVolume => "volume of another cluster",
            DatabaseDamaged => "64 KiB of random bytes in the middle of the used part of `db`",
            DatabaseBegun => "64 KiB of random bytes in the first page of `db`",
            DatabaseUnused => "64 KiB of random bytes behind the used part of `db`",
            WalDamaged => "random bytes in the middle of the WAL",
            WalTorn => "torn tail of the WAL",
            ClaimDeleted => "PVC deleted",
            PodAndClaimDeleted => "Pod and PVC deleted",
            ClaimStuck => "PVC stuck Terminating, Pod killed",
            DiskFull => "disk full",
            CutFromPeers => "member cut from its peers for 30 s",
            CutFromOperator => "member cut from the operator for 30 s",
            CutFromBoth => "member cut from its peers and the operator for 30 s",
            Lossy => "20 % loss on one member's link for 30 s",
            Slow => "1 Mbit/s on one member's link for 30 s",
            WrongCertificate => "wrong certificate on one member",
            ExpiredCertificate => "expired certificate on one member",
            MostWiped => "most volumes wiped",
            TwoOfFiveWiped => "two of five volumes wiped",
            FrozenWhileTheOthersWrote => {
                "one frozen, 50 keys acknowledged by the others, those wiped and killed, the frozen one thawed"
            }
            AllVolumesGone => "all Pods and volumes gone",
            TwoOperators => "volume wiped while two operators are active at once",
            CreatedAgain => {
                "volume wiped, EtcdCluster deleted and created again under its name (`quorate.dev/adopt`)"
            }
            NodeKilled => "node killed and never back",
            NodeBackAfterRepair => "node killed and back after the repair",
        }
    }

    /// What must come of it at that size; `None`: it makes no sense there.
    pub(crate) const fn expected(self, size: usize) -> Option<Expected> {
        Some(match (self, size) {
            (
                MemberKilled | Stopped15Seconds | Stopped2Minutes | WalTorn | DatabaseUnused | DiskFull
                | CutFromOperator | Lossy | Slow | WrongCertificate | ExpiredCertificate,
                _,
            )
            | (LeaderKilled | AllKilled | CutFromPeers | CutFromBoth, 3..)
            | (CreatedAgain, 1) => Stays,
            (VolumeWiped | WalGone | DatabaseGone, 1) | (MostWiped, 3..) | (FrozenWhileTheOthersWrote, 3) => {
                lost("DataLost")
            }
            (RolledBack, 1) => lost("RolledBack"),
            (ForeignVolume, 1) | (VolumesSwapped, 3) => lost("ForeignVolume"),
            (WalDamaged, 1) => lost("WalDamaged"),
            (DatabaseBegun, 1) => lost("EtcdFailed"),
            (VolumesSwapped, 5) => refused("ForeignVolume"),
            (TwoOfFiveWiped, 5) => refused("DataLost"),
            (AllVolumesGone, _) => Refused { condition: ("Ready", "AllMembersLost"), health: "MemberDown" },
            (DatabaseDamaged, 3..) => Whole,
            (ClaimDeleted, _)
            | (RolledBackBesideOneThatLags, 3)
            | (
                VolumeWiped
                | WalGone
                | DatabaseGone
                | RolledBack
                | ValueChanged
                | HealthyRestartedBesideChangedValue
                | AlarmOfRemoved
                | ForeignVolume
                | DatabaseBegun
                | WalDamaged
                | PodAndClaimDeleted
                | ClaimStuck
                | TwoOperators
                | CreatedAgain
                | NodeKilled
                | NodeBackAfterRepair,
                3..,
            ) => Replaced,
            _ => return None,
        })
    }

    /// Whether who was harmed is replaced by one of another name, on another volume.
    pub(crate) const fn needs_volume(self) -> bool {
        matches!(
            self,
            ClaimDeleted | PodAndClaimDeleted | ClaimStuck | ForeignVolume | NodeKilled | NodeBackAfterRepair
        )
    }

    /// Whether it disturbs clusters beside the one that it is done to.
    pub(crate) const fn is_alone(self) -> bool {
        matches!(self, NodeKilled | NodeBackAfterRepair)
    }

    /// Whether it takes a minute or more.
    pub(crate) const fn is_long(self) -> bool {
        self.is_alone() || matches!(self, Stopped2Minutes)
    }

    /// Whether clients that know the cluster lose it: its certificates or its data are gone for good.
    pub(crate) const fn ends_clients(self) -> bool {
        matches!(self, CreatedAgain | AllVolumesGone)
    }
}
