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
    /// The agent of a mirror starts.
    AgentStarting,
    /// The agent of a mirror does not answer.
    AgentDown,
    /// Another agent has taken the target over.
    AnotherAgent,
    /// A mirror copies for the first time.
    InitialSync,
    /// A mirror has copied everything once.
    InitialSyncDone,
    /// A mirror scans both sides and writes differences.
    Resyncing,
    /// A mirror has scanned both sides and written differences.
    Resynced,
    /// A mirror is further behind than `lagObjective`.
    LagHigh,
    /// The source may compact what a mirror still needs.
    HistoryAtRisk,
    /// `spec.state` is Stopped.
    StoppedByUser,
    /// The sites of a mirror are being switched.
    Switching,
    /// Another site of a mirror is active.
    Switched,
    /// Both sides of a mirror were never compared.
    NeverVerified,
    /// Both sides of a mirror differ.
    MismatchFound,
    /// The EtcdCluster of a site does not exist.
    SiteMissing,
    /// The EtcdCluster of a site has not formed.
    SiteNotReady,
    /// An EtcdCluster of another namespace has not consented.
    ConsentMissing,
    /// An object of somebody else has the name of one that is needed.
    NameTaken,
    /// Both sides of a mirror are the same cluster.
    SameCluster,
    /// Mirrors copy in a circle.
    MirrorLoop,
    /// Two mirrors write the same range.
    ClaimOverlaps,
    /// Mappings of a mirror cannot be used.
    MappingInvalid,
    /// An ignore pattern cannot be used.
    PatternInvalid,
    /// `active` names no site.
    UnknownSite,
    /// No endpoint of the source answers with quorum.
    SourceUnreachable,
    /// No endpoint of the target answers with quorum.
    TargetUnreachable,
    /// A certificate between agent and etcd is not accepted.
    CertificateRefused,
    /// etcd does not accept user and password.
    CredentialsRefused,
    /// etcd does not let the agent do what it must.
    PermissionDenied,
    /// The target differs at a first sync.
    TargetDiffers,
    /// The source is empty, and the target is not.
    SourceEmpty,
    /// The source is another cluster than before.
    SourceChanged,
    /// The source is older than it was.
    SourceRewound,
    /// Another site is active than the spec says.
    ActiveMismatch,
    /// The target does not take a value of this size.
    ValueTooLarge,
    /// The database of the target is full.
    TargetNoSpace,
    /// The target takes too few operations in a transaction.
    TooFewOperations,
    /// The checkpoint cannot be read.
    CheckpointDamaged,
    /// A resync would delete more than it may unasked.
    PruneRefused,
    /// A switch was asked for without a fence.
    FenceMissing,
    /// Writers cannot be stopped as the fence says.
    FenceRefused,
    /// The sites of a mirror cannot be switched now.
    SwitchRefused,
    /// A site of a mirror was made active, and the one that was does not follow it yet.
    SwitchUnfinished,
    /// Writers of a mirror's active site are still kept out.
    WritersKeptOut,
    /// A site of a mirror is back after the other one was promoted without it.
    SiteReturned,
    /// Somebody else writes to the mirrored range of the target.
    ForeignWrites,
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
        Self::AgentStarting,
        Self::AgentDown,
        Self::AnotherAgent,
        Self::InitialSync,
        Self::InitialSyncDone,
        Self::Resyncing,
        Self::Resynced,
        Self::LagHigh,
        Self::HistoryAtRisk,
        Self::StoppedByUser,
        Self::Switching,
        Self::Switched,
        Self::NeverVerified,
        Self::MismatchFound,
        Self::SiteMissing,
        Self::SiteNotReady,
        Self::ConsentMissing,
        Self::NameTaken,
        Self::SameCluster,
        Self::MirrorLoop,
        Self::ClaimOverlaps,
        Self::MappingInvalid,
        Self::PatternInvalid,
        Self::UnknownSite,
        Self::SourceUnreachable,
        Self::TargetUnreachable,
        Self::CertificateRefused,
        Self::CredentialsRefused,
        Self::PermissionDenied,
        Self::TargetDiffers,
        Self::SourceEmpty,
        Self::SourceChanged,
        Self::SourceRewound,
        Self::ActiveMismatch,
        Self::ValueTooLarge,
        Self::TargetNoSpace,
        Self::TooFewOperations,
        Self::CheckpointDamaged,
        Self::PruneRefused,
        Self::FenceMissing,
        Self::FenceRefused,
        Self::SwitchRefused,
        Self::SwitchUnfinished,
        Self::WritersKeptOut,
        Self::SiteReturned,
        Self::ForeignWrites,
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
                | R::AgentStarting
                | R::InitialSync
                | R::InitialSyncDone
                | R::Resyncing
                | R::Resynced
                | R::StoppedByUser
                | R::Switching
                | R::Switched
                | R::NeverVerified
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The variant's name is the word: one spelling in conditions, events, metrics and the manual.
        write!(formatter, "{self:?}")
    }
}
