//! Every write of the operator goes through one gate, and says what became of it. Events, too.

use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};

use super::context::{Context, NoAuthority, REQUEST_DEADLINE};
use crate::api::reason::Reason;
use crate::etcd::survey::chain;

/// A write failed. Writes before it stand; each can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The lease is lost.
    #[error("not written")]
    NoAuthority(#[from] NoAuthority),
    /// The apiserver refused.
    #[error("cannot {verb} {what}")]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// On which object.
        what: String,
        /// Why.
        source: kube::Error,
    },
    /// The apiserver did not answer: whether it was done is unknown.
    #[error("no answer within {}s when trying to {verb} {what}", REQUEST_DEADLINE.as_secs())]
    Deadline {
        /// What was tried.
        verb: &'static str,
        /// On which object.
        what: String,
    },
    /// A certificate could not be made.
    #[error("no certificate")]
    Issue(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ApplyError {
    /// Whether somebody else was faster: look again at once.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { source: kube::Error::Api(status), .. } if status.code == 409)
    }

    /// Whether the namespace is being deleted: nothing can be made in it, and the object goes with it.
    pub fn namespace_ends(&self) -> bool {
        let Self::Refused { source: kube::Error::Api(status), .. } = self else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    }
}

/// The one gate through which every write goes.
pub(super) async fn write<T>(
    context: &Context,
    verb: &'static str,
    what: String,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApplyError> {
    context.authority.check()?;
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Err(_) => Err(ApplyError::Deadline { verb, what }),
        Ok(Err(source)) => Err(ApplyError::Refused { verb, what, source }),
        Ok(Ok(done)) => Ok(done),
    }
}

/// What the apiserver said, without the rest of its answer.
pub(super) fn refusal(error: &ApplyError) -> String {
    if let ApplyError::Refused { source: kube::Error::Api(status), .. } = error {
        return format!("{error}: {}", status.message);
    }
    chain(error)
}

/// What there is to tell in events.
pub type Notes = Vec<(Reason, String)>;

/// Events are for people: one that cannot be published is logged, and nothing else suffers.
pub(super) async fn publish<K>(context: &Context, object: &K, notes: Notes)
where
    K: Resource<DynamicType = ()>,
{
    for (reason, note) in notes {
        tracing::info!(%reason, note, "event");
        let event = Event {
            type_: if reason.is_good_news() { EventType::Normal } else { EventType::Warning },
            reason: reason.to_string(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let request = context.recorder.publish(&event, &reference);
        if let Err(error) = write(context, "publish an event of", object.name_any(), request).await {
            tracing::warn!(error = %chain(&error), "cannot publish an event");
        }
    }
}

/// Tells of a mistake of ours in an event: the operator's log is not where the object's owner looks.
pub async fn publish_mistake<K>(context: &Context, object: &K, what: &str)
where
    K: Resource<DynamicType = ()>,
{
    let note = format!(
        "The operator made a mistake while it worked on this object: {what}. What runs stays as it is, and it is tried again. Please report it with the operator's log."
    );
    publish(context, object, vec![(Reason::InvariantViolated, note)]).await;
}
