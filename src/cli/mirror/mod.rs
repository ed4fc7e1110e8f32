//! `mirror`: one keyspace of an etcd, exactly, in another; on any host, without Kubernetes.

mod arguments;
mod follow;
mod target;

use super::{Exit, etcdmirror, terminal};
use crate::mirror::stop::Stop;

use arguments::Action;
pub(super) use arguments::Arguments;

/// Exit codes of `mirror`, as its help shows them.
pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 done, or told to stop; 1 differences found by --verify or --dry-run; 2 failed; 3 wrong usage; \
10 the target has keys of its own; 11 the source is another cluster or was set back; 12 a scan would delete too much; \
13 another agent has taken over; 14 the target was promoted, or the sites do not agree; 15 another mirror has claimed \
the range, or the mirrors would copy in a circle; 16 the checkpoint was lost or changed by others; 17 a key or value that the target does not take.";

/// Mirrors, or looks at a mirror's target.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    match arguments.action {
        Some(Action::Promote(of)) => target::promote(of).await,
        Some(Action::Checkpoint(of)) => target::checkpoint(of).await,
        Some(Action::Lost(of)) => target::lost(of).await,
        Some(Action::Release(of)) => target::release(of).await,
        Some(Action::EtcdMirror(verb)) => etcdmirror::execute(verb).await,
        None => match arguments.config {
            Some(file) => follow::by_file(&file, &arguments.follow).await,
            None => follow::execute(arguments.follow).await,
        },
    }
}

/// Says why it stopped, in one line.
fn stopped(stop: &Stop) -> Exit {
    let code = match stop {
        Stop::Done => return Exit::Done,
        Stop::Counted { counts, .. } => {
            let alike = counts.missing + counts.differing + counts.extra == 0;
            terminal::complain(&stop.to_string());
            return if alike { Exit::Done } else { Exit::Degraded };
        }
        Stop::SameCluster(_) => 3,
        Stop::TargetDiffers(_) => 10,
        Stop::SourceChanged { .. } | Stop::SourceRewound { .. } => 11,
        Stop::PruneGuard { .. } => 12,
        Stop::Fenced => 13,
        Stop::Promoted | Stop::Site(_) => 14,
        Stop::Claimed { .. } | Stop::Circle(_) => 15,
        Stop::Unreadable { .. } | Stop::CheckpointLost | Stop::CheckpointChanged => 16,
        Stop::ValueTooLarge { .. } | Stop::Nameless(_) | Stop::TooFewOperations => 17,
    };
    terminal::complain(&format!("{}: {stop}", stop.reason()));
    Exit::Program(code)
}
