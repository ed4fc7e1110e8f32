//! The CRDs as they are installed: kube's derived schema plus what the derive cannot say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::json;

use super::{EtcdCluster, EtcdMemberReplacement, EtcdMirror};

/// Longest value of a map of strings: etcd's longest flags are lists of ciphers and of origins.
const LONGEST_VALUE: i64 = 4096;
/// Most entries of a map whose declaration says nothing else; the apiserver counts a rule's cost by it.
const MOST_ENTRIES: i64 = 64;

/// Longest prefix of keys: etcd's keys are rarely longer as a whole.
const LONGEST_PREFIX: i64 = 512;

/// Most resources of a container: CPU, memory, ephemeral storage, huge pages.
const MOST_AMOUNTS: i64 = 16;
/// Longest amount, with room.
const LONGEST_AMOUNT: i64 = 32;

/// Every CRD of this project.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    vec![etcd_cluster(), etcd_member_replacement(), etcd_mirror()]
}

/// The root of each version's schema.
fn roots(definition: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    let versions = definition.spec.versions.iter_mut();
    versions.filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
}

/// An object that no operator has seen must not look finished to Argo CD, Flux and `kubectl wait`.
fn unseen_at_first(root: &mut JSONSchemaProps) {
    if let Some(status) = property(root, &["status"]) {
        status.default = Some(JSON(json!({"observedGeneration": -1})));
    }
}

fn etcd_member_replacement() -> CustomResourceDefinition {
    let mut definition = EtcdMemberReplacement::crd();
    for root in roots(&mut definition) {
        unseen_at_first(root);
        if let Some(selector) = property(root, &["spec", "placement", "nodeSelector"]) {
            bound_values(selector);
        }
        unwrap_paragraphs(root);
    }
    definition
}

fn etcd_mirror() -> CustomResourceDefinition {
    let mut definition = EtcdMirror::crd();
    for root in roots(&mut definition) {
        unseen_at_first(root);
        if let Some(resources) = property(root, &["spec", "agent", "resources"]) {
            bound_resources(resources);
        }
        let mapping = property(root, &["spec", "mappings"]).and_then(|mappings| mappings.items.as_mut());
        if let Some(JSONSchemaPropsOrArray::Schema(mapping)) = mapping
            && let Some(prefixes) = property(mapping, &["prefixes"])
            && let Some(JSONSchemaPropsOrBool::Schema(prefix)) = &mut prefixes.additional_properties
        {
            prefix.max_length = Some(LONGEST_PREFIX);
        }
        for map in [&["metadata", "labels"][..], &["metadata", "annotations"], &["nodeSelector"]] {
            if let Some(map) = property(root, &[&["spec", "agent", "podTemplate"], map].concat()) {
                bound_values(map);
            }
        }
        unwrap_paragraphs(root);
    }
    definition
}

fn etcd_cluster() -> CustomResourceDefinition {
    let mut definition = EtcdCluster::crd();
    for root in roots(&mut definition) {
        unseen_at_first(root);
        if let Some(resources) = property(root, &["spec", "resources"]) {
            bound_resources(resources);
        }
        if let Some(arguments) = property(root, &["spec", "extraArgs"]) {
            arguments.max_properties = Some(MOST_ENTRIES);
            bound_values(arguments);
        }
        for map in [
            ["spec", "podTemplate", "metadata", "labels"],
            ["spec", "podTemplate", "metadata", "annotations"],
        ] {
            if let Some(map) = property(root, &map) {
                bound_values(map);
            }
        }
        unwrap_paragraphs(root);
    }
    definition
}

/// `kubectl explain` wraps paragraphs itself; line ends of the source would make them ragged.
fn unwrap_paragraphs(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<String> = description.split("\n\n").map(|text| text.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        unwrap_paragraphs(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut schema.items {
        unwrap_paragraphs(item);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut schema.additional_properties {
        unwrap_paragraphs(value);
    }
}

fn property<'a>(schema: &'a mut JSONSchemaProps, path: &[&str]) -> Option<&'a mut JSONSchemaProps> {
    path.iter().try_fold(schema, |schema, name| schema.properties.as_mut()?.get_mut(*name))
}

fn bound_resources(resources: &mut JSONSchemaProps) {
    // Refers to a part of the Pod that we do not offer.
    resources.properties.get_or_insert_default().remove("claims");
    for map in ["requests", "limits"] {
        if let Some(map) = property(resources, &[map]) {
            bound_amounts(map);
        }
    }
}

/// The apiserver counts the cost of a rule by the sizes that it may meet.
fn bound_amounts(map: &mut JSONSchemaProps) {
    map.max_properties = Some(MOST_AMOUNTS);
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut map.additional_properties {
        value.max_length = Some(LONGEST_AMOUNT);
        value.description = Some("An amount, such as 500m, 2 or 1Gi.".to_owned());
    }
}

fn bound_values(map: &mut JSONSchemaProps) {
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut map.additional_properties {
        value.max_length = Some(LONGEST_VALUE);
    }
}
