//! Why a mirror stopped by itself: one reason and one sentence each, which says what to do.

use super::circle::Origin;
use super::resync::Counts;
use super::text::shown;
use crate::etcd::ClusterId;

/// Why it stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was to stop when the target has caught up.
    Done,
    /// It was only to say what it would do.
    Counted {
        /// What it found.
        counts: Counts,
        /// What permits exactly this.
        plan: String,
    },
    /// Another agent has taken over.
    Fenced,
    /// The target was promoted.
    Promoted,
    /// The sides' `site` keys do not allow this direction.
    Site(String),
    /// Both sides are one cluster.
    SameCluster(ClusterId),
    /// Another mirror writes some of these keys.
    Claimed {
        /// Its id.
        id: String,
        /// A prefix of its own.
        prefix: String,
    },
    /// Keys of the target would come back to it.
    Circle(Origin),
    /// A key of ours that was not written by us.
    Unreadable {
        /// Its name.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The checkpoint is gone, and the mirror was running.
    CheckpointLost,
    /// Somebody else wrote the checkpoint.
    CheckpointChanged,
    /// A first sync found keys that no mirror has written.
    TargetDiffers(Counts),
    /// The source is another cluster than before.
    SourceChanged {
        /// As stored.
        stored: ClusterId,
        /// As seen.
        seen: ClusterId,
        /// What a scan would do.
        counts: Counts,
        /// What permits it.
        plan: String,
    },
    /// The source's history is shorter than what was copied of it.
    SourceRewound {
        /// What was stored and what was seen.
        what: String,
        /// What a scan would do.
        counts: Counts,
        /// What permits it.
        plan: String,
    },
    /// A scan would delete more than is believable.
    PruneGuard {
        /// What is left to do.
        counts: Counts,
        /// Keys that it has deleted.
        deleted: u64,
        /// What permits it.
        plan: String,
    },
    /// A value is larger than the target takes.
    ValueTooLarge {
        /// Its key.
        key: Vec<u8>,
        /// Its size.
        bytes: usize,
    },
    /// The mapping takes the whole name of a key.
    Nameless(Vec<u8>),
    /// The target's `--max-txn-ops` leaves no room.
    TooFewOperations,
}

impl Stop {
    /// One word, for labels and scripts.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Counted { .. } => "Counted",
            Self::Fenced => "Fenced",
            Self::Promoted => "Promoted",
            Self::Site(_) => "SiteMismatch",
            Self::SameCluster(_) => "SameCluster",
            Self::Claimed { .. } => "RangeClaimed",
            Self::Circle(_) => "MirrorLoop",
            Self::Unreadable { .. } => "CheckpointUnreadable",
            Self::CheckpointLost => "CheckpointLost",
            Self::CheckpointChanged => "CheckpointChanged",
            Self::TargetDiffers(_) => "TargetDiffers",
            Self::SourceChanged { .. } => "SourceChanged",
            Self::SourceRewound { .. } => "SourceRewound",
            Self::PruneGuard { .. } => "ResyncApprovalRequired",
            Self::ValueTooLarge { .. } => "ValueTooLarge",
            Self::Nameless(_) => "EmptyKey",
            Self::TooFewOperations => "TooFewOperations",
        }
    }

    /// Whether trying again is of no use: this run is over. Whatever else is wrong can be cured meanwhile.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Counted { .. } | Self::Fenced)
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done => write!(to, "the target has what the source had"),
            Self::Counted { counts, plan } => {
                write!(to, "a scan would {}; nothing was written (plan {plan})", work(*counts))
            }
            Self::Fenced => write!(
                to,
                "another agent of this mirror has taken over; this one writes nothing any more. Run one agent a mirror"
            ),
            Self::Promoted => write!(
                to,
                "the target was promoted: it is written to directly, and nothing is copied into it. To mirror the other \
                 way, exchange --source and --target"
            ),
            Self::Site(why) => write!(to, "{why}"),
            Self::SameCluster(id) => {
                write!(to, "source and target are the same cluster, {id}; give two different ones")
            }
            Self::Claimed { id, prefix } => write!(
                to,
                "the mirror {id:?} writes keys below {prefix:?} of this target, which overlap with this one's; map to \
                 another prefix, or give that mirror's --id if this is to take its place. If it is no more: quorate mirror \
                 release --id {id} with this target"
            ),
            Self::Circle(origin) => write!(
                to,
                "mirrors copy in a circle: {origin}, where keys below {:?} come back below {:?}. They would be written for \
                 ever, and older values win over newer ones. Nothing is copied. Give each direction prefixes of its own; for \
                 two etcds that take turns promote the other one. If one of these mirrors is no more, take its claim away: \
                 quorate mirror release --id with its name, and --target with what it copied into",
                origin.from, origin.to
            ),
            Self::Unreadable { key, problem } => write!(
                to,
                "the key {key} of the target is not as a mirror wrote it: {problem}. Put its former value back, or delete \
                 the mirror's keys to begin with a first sync"
            ),
            Self::CheckpointLost => write!(
                to,
                "the checkpoint in the target is gone, though this mirror has run into it: was the target emptied, or \
                 restored? Nothing is written. To begin with a first sync, delete the mirror's key `owner` there, if it \
                 is left, and start the mirror anew"
            ),
            Self::CheckpointChanged => write!(
                to,
                "the checkpoint in the target is another one than this mirror wrote: the target was set back, or somebody \
                 else has written it; the mirror goes on from it in a few seconds"
            ),
            Self::TargetDiffers(counts) => write!(
                to,
                "the target has keys of its own: {} differ from the source and {} are not in the source ({} are missing). \
                 Nothing of them was changed. Look whether source and target are the right way round; then permit it \
                 with --initial-sync overwrite (for those that differ) and --prune (for those that the source lacks)",
                counts.differing, counts.extra, counts.missing
            ),
            Self::SourceChanged { stored, seen, counts, plan } => write!(
                to,
                "the source is the cluster {seen}, and what the target holds is a copy of {stored}. A scan would {}; if \
                 that is meant, permit it with --resync={plan}",
                work(*counts)
            ),
            Self::SourceRewound { what, counts, plan } => write!(
                to,
                "the source was set back: {what}. The target may hold the only copy of what it lost. A scan would {}; if \
                 that is meant, permit it with --resync={plan}",
                work(*counts)
            ),
            Self::PruneGuard { counts, deleted, plan } => write!(
                to,
                "a scan has deleted {deleted} keys and would {}: more than is believable. Look whether this is the right \
                 source; then permit it with --resync={plan}",
                work(*counts)
            ),
            Self::ValueTooLarge { key, bytes } => write!(
                to,
                "the target does not take the key {} with its {bytes} bytes; raise its --max-request-bytes, or ignore the \
                 key",
                shown(key)
            ),
            Self::Nameless(key) => write!(
                to,
                "the key {} would have an empty name in the target, which etcd refuses; delete it, ignore it, or map to \
                 another prefix",
                shown(key)
            ),
            Self::TooFewOperations => write!(
                to,
                "the target takes too few operations in a transaction; raise its --max-txn-ops to at least 4"
            ),
        }
    }
}

fn work(counts: Counts) -> String {
    format!("put {} keys, overwrite {} and delete {}", counts.missing, counts.differing, counts.extra)
}
