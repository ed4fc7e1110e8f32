//! Every read of the apiserver has a deadline, and says what was asked for.

use super::context::REQUEST_DEADLINE;

/// Kubernetes could not be read: nothing is known, so nothing is done.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A request failed.
    #[error("cannot read {what}")]
    Read {
        /// What was asked for.
        what: String,
        /// Why.
        source: kube::Error,
    },
    /// A request took too long.
    #[error("no answer within {}s when reading {what}", REQUEST_DEADLINE.as_secs())]
    Deadline {
        /// What was asked for.
        what: String,
    },
}

/// One read.
pub(super) async fn read<T>(
    what: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ObserveError> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Err(_) => Err(ObserveError::Deadline { what: what.to_owned() }),
        Ok(Err(source)) => Err(ObserveError::Read { what: what.to_owned(), source }),
        Ok(Ok(found)) => Ok(found),
    }
}
