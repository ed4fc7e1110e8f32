//! Why a look at an object ended early, and when it is tried again: the same for every kind.

use std::time::Duration;

use super::context::REQUEST_DEADLINE;
use super::read::ObserveError;
use super::write::ApplyError;

/// First and longest pause after an error.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why a reconcile ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The object could not be read.
    #[error("cannot read the object")]
    Get(#[source] kube::Error),
    /// It could not be read in time.
    #[error("no answer within {}s when reading the object", REQUEST_DEADLINE.as_secs())]
    Deadline,
    /// Kubernetes could not be read.
    #[error("cannot look")]
    Observe(#[from] ObserveError),
    /// A write failed.
    #[error("cannot act")]
    Apply(#[from] ApplyError),
    /// A mistake of ours.
    #[error("a mistake in the operator: {0}")]
    Panic(String),
}

impl ReconcileError {
    /// The word in the metric.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Get(_) => "get",
            Self::Deadline => "deadline",
            Self::Observe(_) => "observe",
            Self::Apply(error) if error.is_conflict() => "conflict",
            Self::Apply(_) => "apply",
            Self::Panic(_) => "panic",
        }
    }

    /// Whether something was written that wakes this very reconcile again: a status that tells of the refusal, the
    /// part of a plan that was not refused. Without a pause that holds, it would be tried again at once, for ever.
    pub fn wakes_itself(&self) -> bool {
        match self {
            Self::Get(_) | Self::Deadline | Self::Observe(_) => false,
            Self::Apply(_) | Self::Panic(_) => true,
        }
    }
}

/// After an error: at once for a lost race, else later and later, never all at the same moment.
pub fn pause_after(error: &ReconcileError, failures: u32, jitter: f64) -> Duration {
    let (first, longest) = BACK_OFF;
    let failures = match error {
        ReconcileError::Apply(error) if error.is_conflict() => return Duration::ZERO,
        // What went wrong by itself once, with nothing from outside, goes wrong again.
        ReconcileError::Panic(_) => u32::MAX,
        ReconcileError::Get(_)
        | ReconcileError::Deadline
        | ReconcileError::Observe(_)
        | ReconcileError::Apply(_) => failures,
    };
    first.saturating_mul(1 << failures.min(10)).min(longest).mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_its_limit_and_is_never_the_same_for_all() {
        let error = ReconcileError::Deadline;
        let shortest = |failures| pause_after(&error, failures, 0.0).as_secs_f64();
        let longest = |failures| pause_after(&error, failures, 1.0).as_secs_f64();
        let pauses: Vec<f64> = (0..8).map(longest).collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        for failures in [0, 3, 7, 100, u32::MAX] {
            assert!((longest(failures) - 2.0 * shortest(failures)).abs() < 1e-9);
        }
        assert!((longest(u32::MAX) - 30.0).abs() < 1e-9);
    }

    #[test]
    fn a_mistake_of_ours_is_not_made_again_soon() {
        let error = ReconcileError::Panic("index out of bounds".to_owned());
        assert_eq!(pause_after(&error, 0, 1.0), BACK_OFF.1);
    }
}
