//! Who wrote what, read from the apiserver's audit log; of the operator, what it read, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::state::Cluster;

/// What may be asked of the log.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only what this user wrote; everybody's without it.
    #[arg(long)]
    user: Option<String>,
    /// Only what was received at this time (RFC 3339, UTC) or later.
    #[arg(long, default_value = "")]
    since: String,
}

/// A line of the log, as far as it is told.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    request_received_timestamp: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: Object,
    #[serde(default)]
    response_status: Answer,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Object {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    code: u16,
}

/// What changes something.
const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

/// A use of a right: API group, resource with its subresource, verb.
pub(crate) type Use = (String, String, String);

/// A line for each write: time, verb, resource, namespace/name, the answer's code, user.
pub(crate) fn lines(cluster: &Cluster, options: &Options) -> Result<Vec<String>> {
    let mut found = Vec::new();
    each(cluster, |line| found.extend(told(line, options)))?;
    Ok(found)
}

/// Every right that a user has used, if only once, and was not refused. A patch that makes an object (server-side apply)
/// needs the right to create it, too.
pub(crate) fn used(cluster: &Cluster, user: &str) -> Result<BTreeSet<Use>> {
    let mut found = BTreeSet::new();
    each(cluster, |line| found.extend(rights(line, user)))?;
    Ok(found)
}

/// Hands over every line of the log, in the order of time.
fn each(cluster: &Cluster, mut take: impl FnMut(&str)) -> Result<()> {
    let folder = cluster.path("log");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten();
    // The apiserver begins a new file at 100 MB; names sort by time, and the newest has none.
    let is_log = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit"))
            && path.extension().is_some_and(|extension| extension == "log")
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_log).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        text.lines().for_each(&mut take);
    }
    Ok(())
}

fn rights(line: &str, user: &str) -> Vec<Use> {
    let Ok(entry) = serde_json::from_str::<Entry>(line) else { return Vec::new() };
    let Object { api_group, resource, subresource, .. } = entry.object_ref;
    let resource = if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
    if entry.user.username != user || entry.response_status.code == 403 {
        return Vec::new();
    }
    let makes = entry.response_status.code == 201 && entry.verb == "patch";
    let also = makes.then(|| (api_group.clone(), resource.clone(), "create".to_owned()));
    also.into_iter().chain([(api_group, resource, entry.verb)]).collect()
}

/// The last line may be half written: it is skipped.
fn told(line: &str, options: &Options) -> Option<String> {
    let Entry { request_received_timestamp: time, verb, user, object_ref, response_status } =
        serde_json::from_str(line).ok()?;
    let wanted = options.user.as_ref().is_none_or(|user_wanted| *user_wanted == user.username);
    if !wanted || !WRITES.contains(&verb.as_str()) || time.as_str() < options.since.as_str() {
        return None;
    }
    let Object { resource, subresource, namespace, name, .. } = object_ref;
    let resource = if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
    Some(format!("{time} {verb} {resource} {namespace}/{name} {} {}", response_status.code, user.username))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_who_wrote_what() {
        let line = r#"{"kind":"Event","verb":"patch","user":{"username":"operator","uid":"1"},"objectRef":{"resource":"etcdclusters","namespace":"a","name":"main","subresource":"status"},"responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"2026-11-21T12:00:00.100000Z"}"#;
        let of = |user: &str, since: &str| {
            told(line, &Options { user: Some(user.to_owned()), since: since.to_owned() })
        };
        let said = "2026-11-21T12:00:00.100000Z patch etcdclusters/status a/main 200 operator";
        assert_eq!(of("operator", "").as_deref(), Some(said));
        assert_eq!(of("operator", "2026-11-21T12:00:00.0").as_deref(), Some(said));
        assert_eq!(of("operator", "2026-11-21T12:00:01"), None);
        assert_eq!(of("somebody", ""), None);
        let group = line.replace("etcdclusters\"", "etcdclusters\",\"apiGroup\":\"quorate.dev\"");
        let used = |verb: &str| ("quorate.dev".to_owned(), "etcdclusters/status".to_owned(), verb.to_owned());
        assert_eq!(rights(&group, "operator"), [used("patch")]);
        assert_eq!(rights(&group.replace("200", "201"), "operator"), [used("create"), used("patch")]);
        assert_eq!(rights(&group.replace("200", "403"), "operator"), []);
        let read = line.replace("\"patch\"", "\"get\"");
        assert_eq!(told(&read, &Options { user: None, since: String::new() }), None);
        assert_eq!(told(line.get(..100).unwrap(), &Options { user: None, since: String::new() }), None);
    }
}
