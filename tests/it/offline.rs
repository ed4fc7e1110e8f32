//! The apiserver's judgement without an apiserver: defaults and rules of the committed schema.

use kube::core::cel::Validator;
use quorate::api::schema::all_crds;
use serde_json::Value;

/// The schema of EtcdCluster as it is installed.
pub(crate) fn schema() -> Value {
    let definition = serde_json::to_value(all_crds().into_iter().next().unwrap()).unwrap();
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

/// Messages that refuse `object`, or the change from `old` to it; none if it is accepted.
pub(crate) fn refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

/// Reads one YAML document.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("not YAML: {error}\n{text}"))
}
