//! `health`: one line a cluster, and an exit code, for a probe or a person in a hurry; also of an etcd that Quorate does
//! not run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kube::ResourceExt as _;

use super::connect;
use super::problem::Problem;
use super::{Exit, status, terminal};
use crate::api::quantity::format_bytes;
use crate::etcd::MemberId;
use crate::etcd::connect::{Address, ClientIdentity};
use crate::etcd::hash::{Comparison, Hashes, compare};
use crate::etcd::quorum::{margin, quorum};
use crate::etcd::survey::{Answer, QuorumAnswer, Survey, hashes, survey};

/// Arguments of `health`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Name of an EtcdCluster; without one, all of the namespace.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Every namespace.
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    all_namespaces: bool,
    /// Ask these members of any etcd instead, such as https://10.0.0.1:2379,https://10.0.0.2:2379.
    #[arg(long, value_name = "URLS", value_delimiter = ',', conflicts_with_all = ["name", "all_namespaces"])]
    endpoints: Vec<String>,
    /// Authorities of the members' certificates, with --endpoints https://…
    #[arg(long, value_name = "FILE", requires_all = ["endpoints", "cert", "key"])]
    cacert: Option<PathBuf>,
    /// Client certificate.
    #[arg(long, value_name = "FILE", requires = "cacert")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "cacert")]
    key: Option<PathBuf>,
    #[command(flatten)]
    connection: connect::Options,
}

/// Prints a line for each; the exit code is that of the worst.
pub(super) async fn execute(arguments: Arguments) -> anyhow::Result<Exit> {
    if !arguments.endpoints.is_empty() {
        return of_endpoints(&arguments).await;
    }
    let host = arguments.connection.open().await?;
    let objects = match &arguments.name {
        Some(name) => vec![status::get(&host, name).await?],
        None => status::list(&host, (!arguments.all_namespaces).then_some(host.namespace.as_str())).await?,
    };
    let mut exits = Vec::new();
    for object in &objects {
        let cluster = status::understand(object)?;
        let (word, phrase, exit) = status::verdict(&cluster);
        let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
        terminal::print(&format!("{name}  {word}  {phrase}\n"))?;
        exits.push(exit);
    }
    Ok(status::worst_of(exits))
}

async fn of_endpoints(arguments: &Arguments) -> anyhow::Result<Exit> {
    let addresses = addresses(&arguments.endpoints)?;
    let identity = identity(arguments)?;
    let secure = arguments.endpoints.iter().any(|url| url.starts_with("https://"));
    if secure != identity.is_some() {
        let what = "https:// endpoints need --cacert, --cert and --key, and http:// ones take none of them";
        return Err(Problem::Usage(what.to_owned()).into());
    }
    let survey = survey(addresses.clone(), identity.as_ref()).await;
    for (url, answer) in &survey {
        terminal::print(&line(url, answer))?;
    }
    let revision = survey.values().flatten().map(|answer| answer.revision).min().unwrap_or_default();
    let found = hashes(addresses, identity.as_ref(), revision).await;
    let of =
        |url: &String| Some((survey.get(url)?.as_ref().ok()?.member_id, *found.get(url)?.as_ref().ok()?));
    let compared: Hashes = survey.keys().filter_map(of).collect();
    let (words, exit) = judge(&survey, &compared);
    terminal::print(&format!("{words}\n"))?;
    Ok(exit)
}

fn addresses(endpoints: &[String]) -> Result<BTreeMap<String, Address>, Problem> {
    let address = |url: &String| {
        let dial = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let dial = dial.map(|dial| dial.trim_end_matches('/')).filter(|dial| dial.contains(':'));
        let (host, _) = dial.and_then(|dial| dial.rsplit_once(':')).ok_or_else(|| {
            Problem::Usage(format!("{url} is no endpoint; give one such as https://10.0.0.1:2379"))
        })?;
        let name = host.trim_matches(['[', ']']).to_owned();
        Ok((url.clone(), Address { dial: dial.unwrap_or_default().to_owned(), name }))
    };
    endpoints.iter().map(address).collect()
}

fn identity(arguments: &Arguments) -> anyhow::Result<Option<ClientIdentity>> {
    let read =
        |file: &Path| std::fs::read(file).with_context(|| format!("could not read {}", file.display()));
    let (Some(authority), Some(certificate), Some(key)) =
        (&arguments.cacert, &arguments.cert, &arguments.key)
    else {
        return Ok(None);
    };
    Ok(Some(ClientIdentity { authority: read(authority)?, certificate: read(certificate)?, key: read(key)? }))
}

fn line(url: &str, answer: &Result<Answer, String>) -> String {
    let Answer { member_id, version, revision, learner, leader, raft_term, db_size_bytes, .. } = match answer
    {
        Err(silence) => return format!("{url}  DOWN  {silence}\n"),
        Ok(answer) => answer,
    };
    let role = match (*learner, *leader == Some(*member_id)) {
        (true, _) => "learner",
        (false, true) => "leader",
        (false, false) => "follower",
    };
    let serves = answer.as_ref().is_ok_and(|answer| answer.quorum.is_some() || answer.learner);
    let health = if serves { "ok" } else { "NO QUORUM READ" };
    let size = format_bytes(u64::try_from(*db_size_bytes).unwrap_or_default());
    format!(
        "{url}  {health}  {member_id}  {role}  {version}  term {raft_term}  revision {revision}  db {size}\n"
    )
}

/// What the answers say together.
fn judge(survey: &Survey, compared: &Hashes) -> (String, Exit) {
    let answers = || survey.values().flatten();
    let clusters: BTreeSet<_> = answers().map(|answer| answer.cluster_id).collect();
    if clusters.len() > 1 {
        return ("UNAVAILABLE  the endpoints are of more than one cluster".to_owned(), Exit::Unavailable);
    }
    let Some(known) = answers().find_map(|answer| answer.quorum.as_ref()) else {
        return ("UNAVAILABLE  no member can read with quorum".to_owned(), Exit::Unavailable);
    };
    let voters: BTreeSet<MemberId> =
        known.members.iter().filter(|member| !member.learner).map(|member| member.id).collect();
    let healthy =
        answers().filter(|answer| answer.quorum.is_some() && voters.contains(&answer.member_id)).count();
    let mut wrong = troubles(known, compared);
    if healthy < voters.len() {
        wrong.insert(0, format!("{} voters do not answer or were not asked", voters.len() - healthy));
    }
    let bears = margin(voters.len(), healthy).map_or_else(
        || format!("too few answer, quorum is {}", quorum(voters.len())),
        |more| format!("may lose {more}"),
    );
    let sum = format!("{healthy} of {} voters healthy, {bears}", voters.len());
    if wrong.is_empty() {
        (format!("HEALTHY  {sum}"), Exit::Done)
    } else {
        (format!("DEGRADED  {sum}; {}", wrong.join("; ")), Exit::Degraded)
    }
}

fn troubles(known: &QuorumAnswer, compared: &Hashes) -> Vec<String> {
    let mut wrong: Vec<String> =
        known.alarms.iter().map(|(id, alarm)| format!("{id} raised {alarm:?}")).collect();
    match compare(compared) {
        Comparison::Equal | Comparison::Incomparable => {}
        Comparison::NoMajority => {
            wrong.push("members hold different data, and no majority the same".to_owned());
        }
        Comparison::Differ(minority) => {
            let ids: Vec<String> = minority.iter().map(ToString::to_string).collect();
            wrong.push(format!("{} hold other data than the majority (HashKV)", ids.join(", ")));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_with_a_port() {
        let of = |url: &str| addresses(&[url.to_owned()]).ok().and_then(|mut all| all.remove(url));
        assert_eq!(of("https://10.0.0.1:2379").unwrap().name, "10.0.0.1");
        assert_eq!(of("http://[::1]:2379").unwrap().dial, "[::1]:2379");
        assert!(["10.0.0.1:2379", "https://10.0.0.1", "etcd"].iter().all(|wrong| of(wrong).is_none()));
    }

    #[test]
    fn who_asks_nobody_gets_no_all_clear() {
        let silent = Survey::from([("http://a:1".to_owned(), Err("connection refused".to_owned()))]);
        let (words, exit) = judge(&silent, &Hashes::new());
        assert_eq!(
            (words.as_str(), exit),
            ("UNAVAILABLE  no member can read with quorum", Exit::Unavailable)
        );
    }
}
