//! `crds`: the custom resource definitions as YAML.

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{Exit, terminal};
use crate::api::schema;

/// Arguments of `crds`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {}

/// Prints every definition.
pub(super) fn execute(Arguments {}: &Arguments) -> anyhow::Result<Exit> {
    terminal::print(&documents(&schema::all_crds())?)?;
    Ok(Exit::Done)
}

/// One YAML document each.
fn documents(definitions: &[CustomResourceDefinition]) -> anyhow::Result<String> {
    let mut text = String::new();
    for definition in definitions {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(definition).context("could not write a definition as YAML")?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_yaml_says_what_the_definitions_say() {
        for definition in schema::all_crds() {
            let text = documents(std::slice::from_ref(&definition)).unwrap();
            let read: Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read, serde_json::to_value(&definition).unwrap());
        }
    }

    #[test]
    fn words_that_yaml_1_1_takes_for_booleans_are_quoted() {
        // kubectl reads YAML 1.1, where a bare Off is false: the enum of compaction.mode would be refused.
        let text = documents(&schema::all_crds()).unwrap();
        let bare = |line: &str| {
            let value = line.trim_start_matches([' ', '-']).rsplit(": ").next().unwrap_or_default();
            matches!(value.to_lowercase().as_str(), "on" | "off" | "yes" | "no" | "y" | "n")
        };
        let wrong: Vec<&str> = text.lines().filter(|line| bare(line)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
