//! The apiserver's judgement without an apiserver: defaults and rules of the committed schema.

use kube::core::cel::Validator;
use quorate::api::schema::all_crds;
use serde_json::Value;

/// The schema of EtcdCluster as it is installed.
pub(crate) fn schema() -> Value {
    schema_of("EtcdCluster")
}

/// The schema of a kind as it is installed.
pub(crate) fn schema_of(kind: &str) -> Value {
    let definition = all_crds().into_iter().find(|definition| definition.spec.names.kind == kind);
    let definition =
        serde_json::to_value(definition.unwrap_or_else(|| panic!("there is no {kind}"))).unwrap();
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

/// Messages that refuse `object`, or the change from `old` to it; none if it is accepted.
pub(crate) fn refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema_of(object["kind"].as_str().unwrap());
    match Validator::new().validate(&schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

/// Reads one YAML document.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("not YAML: {error}\n{text}"))
}
