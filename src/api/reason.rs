//! Every reason that a condition, an event or a metric of ours can carry, once.
//!
//! **Invariant:** `docs/operations.md` has a heading for each (a test compares them).

/// A stable word for what was found; printed as it is spelt here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// All is well.
    Healthy,
    /// The first start is under way.
    Bootstrapping,
    /// Pods are made again on their volumes.
    Recovering,
    /// Some member is down; quorum holds.
    MemberDown,
    /// Too few voters answer.
    QuorumLost,
    /// Members answer but see no leader.
    NoLeader,
    /// No member could be asked.
    Unreachable,
    /// All volumes are gone.
    AllMembersLost,
    /// A member's volume is gone.
    VolumeMissing,
    /// A member's volume is being deleted.
    VolumeTerminating,
    /// A volume of another EtcdCluster stands where ours should.
    ForeignVolume,
    /// The guard found the member's data gone.
    DataLost,
    /// The guard found the member's data older than it was.
    RolledBack,
    /// The guard found the write-ahead log damaged.
    WalDamaged,
    /// Another process holds the volume.
    VolumeInUse,
    /// The member's own name does not resolve to its address.
    NameUnresolved,
    /// The guard cannot write the volume.
    VolumeUnwritable,
    /// The guard was configured wrongly.
    BadConfiguration,
    /// etcd ended by itself.
    EtcdFailed,
    /// The scheduler finds no node.
    Unschedulable,
    /// The image cannot be pulled.
    ImagePullFailed,
    /// The storage class does not exist.
    StorageClassMissing,
    /// The volume cannot be bound.
    VolumeUnbound,
    /// A Secret cannot be used.
    SecretDamaged,
    /// A certificate is about to end.
    CertificateExpiring,
    /// A certificate has ended.
    CertificateExpired,
    /// The certificate authorities are being replaced.
    AuthorityRotating,
    /// The certificate authorities were replaced.
    AuthorityRotated,
    /// etcd's auth is not yet as `spec.auth` wants it.
    AuthPending,
    /// etcd asks who a client is, from now on.
    AuthEnabled,
    /// etcd does not ask who a client is, from now on.
    AuthDisabled,
    /// `spec` cannot be used.
    InvalidSpec,
    /// Members join or leave.
    Scaling,
    /// etcd refuses a change of the member list for now.
    MembershipRefused,
    /// The member list was changed, or leadership was moved.
    MembershipChanged,
    /// A volume grows.
    VolumeGrowing,
    /// The storage class does not let volumes grow.
    VolumeCannotGrow,
    /// The volume of a member that has left is kept.
    VolumeRetired,
    /// A member makes way for another.
    Replacing,
    /// A member has made way for another.
    Replaced,
    /// A replacement waits for its turn.
    ReplacementPending,
    /// A replacement cannot be done; nothing was touched.
    ReplacementRejected,
    /// A replacement was begun and could not be finished.
    ReplacementFailed,
    /// A member needs a repair that the operator does not do by itself.
    RepairRefused,
    /// A changed spec applies to new Pods only.
    RollOutPending,
    /// No progress for `progressDeadline`.
    ProgressDeadlineExceeded,
    /// A member reports another cluster.
    ClusterIDMismatch,
    /// A member that nobody knows is in the member list.
    UnknownMember,
    /// `quorate.dev/adopt` names volumes that are not there.
    NothingToAdopt,
    /// An invariant of the planner does not hold.
    InvariantViolated,
    /// NOSPACE: writes are refused.
    NoSpaceAlarm,
    /// CORRUPT: data differ between members.
    CorruptAlarm,
    /// One more failure costs quorum.
    OneFailureFromOutage,
    /// `spec.paused`.
    PausedByUser,
    /// The object is being deleted.
    Deleting,
    /// The Kubernetes API refused or failed a request.
    ReconcileError,
    /// The cluster formed.
    Bootstrapped,
    /// The first start was begun anew.
    BootstrapRestarted,
    /// A Pod was made.
    PodCreated,
    /// A Pod that had ended or could not start was deleted.
    PodDeleted,
    /// A volume that never held data was deleted.
    VolumeDeleted,
    /// Certificates were made anew.
    CertificateRenewed,
    /// Another member leads.
    LeaderChanged,
    /// Quorum is back.
    QuorumRegained,
    /// Volumes of an earlier EtcdCluster were taken over.
    VolumesAdopted,
}

impl Reason {
    /// Every reason, for whoever must know them all.
    pub const ALL: &[Self] = &[
        Self::Healthy,
        Self::Bootstrapping,
        Self::Recovering,
        Self::MemberDown,
        Self::QuorumLost,
        Self::NoLeader,
        Self::Unreachable,
        Self::AllMembersLost,
        Self::VolumeMissing,
        Self::VolumeTerminating,
        Self::ForeignVolume,
        Self::DataLost,
        Self::RolledBack,
        Self::WalDamaged,
        Self::VolumeInUse,
        Self::NameUnresolved,
        Self::VolumeUnwritable,
        Self::BadConfiguration,
        Self::EtcdFailed,
        Self::Unschedulable,
        Self::ImagePullFailed,
        Self::StorageClassMissing,
        Self::VolumeUnbound,
        Self::SecretDamaged,
        Self::CertificateExpiring,
        Self::CertificateExpired,
        Self::AuthorityRotating,
        Self::AuthorityRotated,
        Self::AuthPending,
        Self::AuthEnabled,
        Self::AuthDisabled,
        Self::InvalidSpec,
        Self::Scaling,
        Self::MembershipRefused,
        Self::MembershipChanged,
        Self::VolumeGrowing,
        Self::VolumeCannotGrow,
        Self::VolumeRetired,
        Self::Replacing,
        Self::Replaced,
        Self::ReplacementPending,
        Self::ReplacementRejected,
        Self::ReplacementFailed,
        Self::RepairRefused,
        Self::RollOutPending,
        Self::ProgressDeadlineExceeded,
        Self::ClusterIDMismatch,
        Self::UnknownMember,
        Self::NothingToAdopt,
        Self::InvariantViolated,
        Self::NoSpaceAlarm,
        Self::CorruptAlarm,
        Self::OneFailureFromOutage,
        Self::PausedByUser,
        Self::Deleting,
        Self::ReconcileError,
        Self::Bootstrapped,
        Self::BootstrapRestarted,
        Self::PodCreated,
        Self::PodDeleted,
        Self::VolumeDeleted,
        Self::CertificateRenewed,
        Self::LeaderChanged,
        Self::QuorumRegained,
        Self::VolumesAdopted,
    ];

    /// The reason of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.to_string() == word)
    }

    /// Whether an event with it is of type Normal.
    pub fn is_good_news(self) -> bool {
        use Reason as R;
        matches!(
            self,
            R::Healthy
                | R::Bootstrapping
                | R::Bootstrapped
                | R::PodCreated
                | R::PodDeleted
                | R::VolumeDeleted
                | R::Scaling
                | R::MembershipChanged
                | R::VolumeGrowing
                | R::VolumeRetired
                | R::LeaderChanged
                | R::QuorumRegained
                | R::VolumesAdopted
                | R::CertificateRenewed
                | R::AuthorityRotating
                | R::AuthorityRotated
                | R::AuthPending
                | R::AuthEnabled
                | R::AuthDisabled
                | R::PausedByUser
                | R::Recovering
                | R::Replacing
                | R::Replaced
                | R::ReplacementPending
                | R::RollOutPending
                | R::Deleting
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The variant's name is the word: one spelling in conditions, events, metrics and the manual.
        write!(formatter, "{self:?}")
    }
}
