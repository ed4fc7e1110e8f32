//! How others judge an object of ours: Flux, Helm and kpt by kstatus, Argo CD by `deploy/argocd/health.lua`.

use mlua::{Lua, LuaSerdeExt};
use serde_json::Value;

/// kstatus (sigs.k8s.io/cli-utils and fluxcd/cli-utils, pkg/kstatus/status, `Compute`) for a kind that it has no rules
/// of its own for.
pub(crate) fn kstatus(object: &Value) -> &'static str {
    if object.pointer("/metadata/deletionTimestamp").is_some_and(|time| *time != "") {
        return "Terminating";
    }
    let generation = object.pointer("/metadata/generation");
    let observed = object.pointer("/status/observedGeneration");
    if generation.is_some() && observed.is_some() && generation != observed {
        return "InProgress";
    }
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let conditions = || conditions.into_iter().flatten();
    // In the order of the list: an object with both would depend on it.
    for condition in conditions().filter(|condition| condition["status"] == "True") {
        match condition["type"].as_str() {
            Some("Reconciling") => return "InProgress",
            Some("Stalled") => return "Failed",
            _ => {}
        }
    }
    match conditions().find(|condition| condition["type"] == "Ready") {
        Some(ready) if ready["status"] != "True" => "InProgress",
        Some(_) | None => "Current",
    }
}

/// Status and message by which Argo CD shows the object.
pub(crate) fn argo(object: &Value) -> (String, String) {
    let lua = Lua::new();
    // As Argo CD hands it over: what JSON lacks is nil.
    let options =
        mlua::serde::SerializeOptions::new().serialize_none_to_null(false).serialize_unit_to_null(false);
    lua.globals().set("obj", lua.to_value_with(object, options).unwrap()).unwrap();
    let health: mlua::Table = lua.load(include_str!("../../deploy/argocd/health.lua")).eval().unwrap();
    (health.get("status").unwrap(), health.get("message").unwrap())
}
