//! Carries a plan out. Every write asks first whether this replica may still write.

use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::json;

use super::desired::Desired;
use super::plan::{Ensure, Plan, name_of};
use crate::operator::context::Context;
use crate::operator::names;
use crate::operator::write::{ApplyError, write};

/// Does what the plan says, in its order. Whether anything was written.
pub async fn apply(context: &Context, desired: &Desired, plan: &Plan) -> Result<bool, ApplyError> {
    for ensure in &plan.ensure {
        match ensure {
            Ensure::Apply { kind, manifest } => {
                let name = name_of(manifest);
                let parameters = PatchParams::apply(names::MANAGER).force();
                let patch = Patch::Apply(manifest);
                let request = api(context, desired, kind);
                let request = request.patch(&name, &parameters, &patch);
                write(context, "apply", format!("{kind} {name}"), request).await?;
            }
            Ensure::Touch { pod, uid, file } => {
                let patch = json!({"metadata": {"uid": uid, "annotations": {names::CONFIG: file}}});
                let parameters =
                    PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
                let patch = Patch::Merge(&patch);
                let request = api(context, desired, "Pod");
                let request = request.patch(pod, &parameters, &patch);
                write(context, "change", format!("Pod {pod}"), request).await?;
            }
        }
    }
    Ok(!plan.ensure.is_empty())
}

fn api(context: &Context, desired: &Desired, kind: &str) -> Api<DynamicObject> {
    let group = if kind == "Deployment" { "apps" } else { "" };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    Api::namespaced_with(context.client.clone(), &desired.namespace, &resource)
}
