//! `mirror status|pause|resume|verify|resync|switch`: what a person does with an EtcdMirror.
//!
//! Each verb only writes a field or an annotation, and says which: nothing is possible here that Git could not do.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

use super::connect::{self, Host};
use super::problem::{Problem, Request};
use super::{Exit, terminal};
use crate::api::EtcdMirror;
use crate::api::duration::parse_duration;
use crate::api::mirror::{EtcdMirrorStatus, SwitchStatus};
use crate::operator::names::{RESYNC, VERIFY};

/// Plural and group, in the words of RBAC.
const RESOURCE: &str = "etcdmirrors.quorate.dev";

/// Verbs about an EtcdMirror.
#[derive(clap::Subcommand, Debug)]
pub(super) enum Verb {
    /// Show how a mirror is, and what to do about it.
    Status(Named),
    /// Write nothing to the target until `resume`.
    Pause(Change),
    /// Go on where it was.
    Resume(Change),
    /// Compare both sides now.
    Verify(Change),
    /// Scan both sides and write the differences; or approve a plan that waits.
    Resync(Resync),
    /// Make the other site active.
    Switch(Switch),
}

/// Which EtcdMirror.
#[derive(clap::Args, Debug)]
pub(super) struct Named {
    /// Name of the EtcdMirror.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    connection: connect::Options,
}

/// A change of an EtcdMirror.
#[derive(clap::Args, Debug)]
pub(super) struct Change {
    #[command(flatten)]
    named: Named,
    /// Only let the Kubernetes API check the change, and show it.
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `resync`.
#[derive(clap::Args, Debug)]
pub(super) struct Resync {
    #[command(flatten)]
    change: Change,
    /// Hash of the plan that `status` shows: it and no other is carried out.
    #[arg(long, value_name = "HASH")]
    approve: Option<String>,
}

/// Arguments of `switch`.
#[derive(clap::Args, Debug)]
pub(super) struct Switch {
    #[command(flatten)]
    change: Change,
    /// The site that becomes active; default: the one that follows.
    #[arg(long, value_name = "SITE")]
    to: Option<String>,
    /// You have stopped the writers yourself: for a mirror without spec.fence.
    #[arg(long)]
    writers_stopped: bool,
    /// Show the steps until it is done, for at most so long.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "15m", value_parser = duration)]
    wait: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Does what the verb says.
pub(super) async fn execute(verb: Verb) -> anyhow::Result<Exit> {
    match verb {
        Verb::Status(named) => show(&named).await,
        Verb::Pause(change) => patch(&change, &json!({"spec": {"state": "Paused"}})).await,
        Verb::Resume(change) => patch(&change, &json!({"spec": {"state": "Running"}})).await,
        Verb::Verify(change) => patch(&change, &annotation(VERIFY, &Timestamp::now().to_string())).await,
        Verb::Resync(Resync { change, approve }) => {
            let word = approve.unwrap_or_else(|| Timestamp::now().to_string());
            patch(&change, &annotation(RESYNC, &word)).await
        }
        Verb::Switch(switch) => switch_over(&switch).await,
    }
}

fn annotation(name: &str, value: &str) -> Value {
    json!({"metadata": {"annotations": {name: value}}})
}

async fn show(named: &Named) -> anyhow::Result<Exit> {
    let host = named.connection.open().await?;
    let object = get(&host, &named.name).await?;
    terminal::print(&picture(&object))?;
    Ok(verdict(&object))
}

async fn get(host: &Host, name: &str) -> Result<EtcdMirror, Problem> {
    let request =
        Request { verb: "get", resource: RESOURCE, name: Some(name), namespace: Some(&host.namespace) };
    let api: Api<EtcdMirror> = Api::namespaced(host.client.clone(), &host.namespace);
    host.call(request, api.get(name)).await
}

async fn patch(change: &Change, what: &Value) -> anyhow::Result<Exit> {
    let host = change.named.connection.open().await?;
    write(&host, change, what).await?;
    Ok(Exit::Done)
}

async fn write(host: &Host, change: &Change, what: &Value) -> anyhow::Result<()> {
    let name = &change.named.name;
    let request =
        Request { verb: "patch", resource: RESOURCE, name: Some(name), namespace: Some(&host.namespace) };
    let parameters = PatchParams {
        dry_run: change.dry_run,
        field_manager: Some("quorate-cli".to_owned()),
        ..PatchParams::default()
    };
    let api: Api<EtcdMirror> = Api::namespaced(host.client.clone(), &host.namespace);
    host.call(request, api.patch(name, &parameters, &Patch::Merge(what))).await?;
    if change.dry_run {
        let yaml = serde_saphyr::to_string(what).context("could not write the change as YAML")?;
        return terminal::print(&format!("# It would be changed by:\n{yaml}"));
    }
    terminal::print(&format!("etcdmirror.quorate.dev/{name} patched\n"))
}

async fn switch_over(switch: &Switch) -> anyhow::Result<Exit> {
    let name = &switch.change.named.name;
    let host = switch.change.named.connection.open().await?;
    let object = get(&host, name).await?;
    let to = match wanted(&object, switch) {
        Ok(Some(to)) => to,
        Ok(None) => {
            let (said, exit) = asked_already(&object);
            terminal::print(&format!("{said}\n"))?;
            return Ok(exit);
        }
        Err(why) => return Err(Problem::Usage(why).into()),
    };
    let spec = if switch.writers_stopped {
        json!({"active": to, "fence": {"mode": "Manual"}})
    } else {
        json!({"active": to})
    };
    write(&host, &switch.change, &json!({"spec": spec})).await?;
    match switch.wait.filter(|_| !switch.change.dry_run) {
        Some(longest) => {
            let before = object.status.and_then(|status| status.switch);
            follow(&host, name, (&to, before.as_ref()), longest).await
        }
        None => Ok(Exit::Done),
    }
}

/// Nothing is to be done: what there is to say, and whether it has come to pass.
fn asked_already(object: &EtcdMirror) -> (String, Exit) {
    let (active, status) = (&object.spec.active, object.status.clone().unwrap_or_default());
    match status.source.filter(|source| source != active) {
        None => (format!("{active} is asked to be active already"), Exit::Done),
        Some(source) => {
            let why = status.summary.unwrap_or_default();
            (format!("{active} is asked to be active already, and {source} is. {why}"), Exit::Unavailable)
        }
    }
}

/// The site that is to become active; `None`: nothing is to be done.
fn wanted(object: &EtcdMirror, switch: &Switch) -> Result<Option<String>, String> {
    let active = &object.spec.active;
    let names: Vec<&str> = object.spec.sites.iter().map(|site| site.name.as_str()).collect();
    let other = names.iter().find(|name| *name != active).copied().unwrap_or_default();
    let to = switch.to.as_deref().unwrap_or(other);
    if !names.contains(&to) {
        return Err(format!("{to} is no site of this mirror; its sites are {}", names.join(" and ")));
    }
    if to == active {
        return Ok(None);
    }
    match (&object.spec.fence, switch.writers_stopped) {
        (None, false) => Err(format!(
            "this mirror has no spec.fence, so nothing keeps writers out of {active} while it is switched; set one, or \
             stop the writers yourself and add --writers-stopped"
        )),
        (Some(_), true) => {
            Err("this mirror has a spec.fence, which keeps writers out; leave --writers-stopped \
             away, or set spec.fence.mode to Manual"
                .to_owned())
        }
        (None, true) | (Some(_), false) => Ok(Some(to.to_owned())),
    }
}

/// Prints every step until it is over.
async fn follow(
    host: &Host,
    name: &str,
    (to, before): (&str, Option<&SwitchStatus>),
    longest: Duration,
) -> anyhow::Result<Exit> {
    let api: Api<EtcdMirror> = Api::namespaced(host.client.clone(), &host.namespace);
    let mut changes = watcher::watch_object(api, name).default_backoff().boxed();
    let mut last = String::new();
    let watched = async {
        while let Some(object) = changes.try_next().await? {
            let Some(object) = object else {
                let what = format!("the EtcdMirror {}/{name} was deleted", host.namespace);
                return Err(Problem::Other(what).into());
            };
            let status = object.status.unwrap_or_default();
            let (line, ended) = progress(&since(status, before), to);
            if line != last {
                terminal::print(&line)?;
                last = line;
            }
            if let Some(exit) = ended {
                return Ok(exit);
            }
        }
        anyhow::Ok(Exit::Unavailable)
    };
    if let Ok(ended) = tokio::time::timeout(longest, watched).await {
        return ended;
    }
    let seconds = longest.as_secs();
    terminal::complain(&format!(
        "not done within {seconds} s; it goes on: kubectl quorate mirror status {name}"
    ));
    Ok(Exit::Timeout)
}

/// What the status says, without a switch that had ended before: one that was taken back may have gone the same way.
fn since(mut status: EtcdMirrorStatus, before: Option<&SwitchStatus>) -> EtcdMirrorStatus {
    status.switch.take_if(|switch| switch.finished_at.is_some() && Some(&*switch) == before);
    status
}

/// A line about a switch to `to`, and how it ended once it has.
fn progress(status: &EtcdMirrorStatus, to: &str) -> (String, Option<Exit>) {
    let switch = status.switch.clone().filter(|switch| switch.to == to).unwrap_or_default();
    if let Some(stalled) = status.conditions.iter().find(|condition| condition.type_ == "Stalled") {
        return (format!("Stalled    {}\n", stalled.message), Some(Exit::Unavailable));
    }
    // An agent that was exchanged after the switch has not seen its steps; which site is active is in etcd.
    let mut conditions = status.conditions.iter();
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let is_active = status.source.as_deref() == Some(to);
    match switch.step.as_str() {
        "Done" if is_active => (format!("Done       {to} is active\n"), Some(Exit::Done)),
        "" if is_active && is_ready => (format!("Done       {to} is active\n"), Some(Exit::Done)),
        "Aborted" => ("Aborted    the old site stays active\n".to_owned(), Some(Exit::Unavailable)),
        "" | "Done" => ("Waiting    the agent is started anew\n".to_owned(), None),
        step => (format!("{step:<10} {} -> {}\n", switch.from, switch.to), None),
    }
}

fn verdict(object: &EtcdMirror) -> Exit {
    let status = object.status.clone().unwrap_or_default();
    let is = |type_: &str| {
        status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    match (is("Stalled"), is("Ready") || is("Paused")) {
        (true, _) => Exit::Unavailable,
        (false, true) => Exit::Done,
        (false, false) => Exit::Degraded,
    }
}

/// What there is to say of a mirror, a fact a line.
fn picture(object: &EtcdMirror) -> String {
    let status = object.status.clone().unwrap_or_default();
    let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "?".to_owned());
    let mut lines = format!(
        "{} ({})  {} -> {}  {}\n",
        object.name_any(),
        object.namespace().unwrap_or_default(),
        text(&status.source),
        text(&status.target),
        text(&status.phase)
    );
    let mut line = |name: &str, fact: Option<String>| {
        if let Some(fact) = fact {
            lines += &format!("  {name:<12}{fact}\n");
        }
    };
    let number = |number: i64| crate::operator::mirror::status::thousands(number.unsigned_abs());
    line("Lag", lag(object, &status));
    line(
        "Checkpoint",
        status.checkpoint.map(|revision| format!("revision {revision} of {}", text(&status.source))),
    );
    line("Synced", status.synced.clone());
    line(
        "Verified",
        status.verification.as_ref().map(|last| match last.missing + last.extra + last.different {
            0 => format!("equal at {}, {} keys", last.time, number(last.keys)),
            _ => format!(
                "DIFFERENT at {}: {} missing, {} extra, {} different",
                last.time, last.missing, last.extra, last.different
            ),
        }),
    );
    line(
        "Resync",
        status.last_resync.as_ref().map(|last| {
            format!(
                "{}: {} put, {} deleted, {}",
                last.time,
                number(last.puts),
                number(last.deletes),
                last.reason
            )
        }),
    );
    line("Switch", status.switch.as_ref().map(steps));
    line("Lost", status.switch.as_ref().and_then(|switch| switch.lost.clone()));
    for site in &status.sites {
        let how = if site.reachable { "ok" } else { "DOWN" };
        let why = site.message.as_ref().map(|message| format!(", {message}")).unwrap_or_default();
        let id = site.cluster_id.as_deref().unwrap_or("unknown");
        line("Site", Some(format!("{}  {how}  cluster {id}{why}", site.name)));
    }
    line(
        "Plan",
        status.plan.as_ref().map(|plan| {
            format!(
                "waits for approval: {} keys added, {} overwritten, {} deleted; kubectl quorate mirror resync {} --approve {}",
                number(plan.adds),
                number(plan.overwrites),
                number(plan.deletes),
                object.name_any(),
                plan.hash
            )
        }),
    );
    line("What now", Some(advice(&status)));
    lines
}

fn lag(object: &EtcdMirror, status: &EtcdMirrorStatus) -> Option<String> {
    let lag = status.lag.as_ref()?;
    let time = lag.time.as_ref()?;
    let revisions = lag.revisions.map(|revisions| format!("{revisions} revisions, ")).unwrap_or_default();
    Some(format!("{revisions}{time} (objective {})", object.spec.lag_objective.time))
}

fn steps(switch: &SwitchStatus) -> String {
    let taken = |started: &str, finished: &Option<String>| {
        let started: Timestamp = started.parse().ok()?;
        let finished: Timestamp = finished.as_ref()?.parse().ok()?;
        Some(format!(" {:.1}s", finished.duration_since(started).as_secs_f64()))
    };
    let names = switch.steps.iter().map(|step| {
        format!("{}{}", step.name, taken(&step.started_at, &step.finished_at).unwrap_or_default())
    });
    let mut text = format!("{} -> {}: {}", switch.from, switch.to, names.collect::<Vec<_>>().join(", "));
    if let Some(finished) = &switch.finished_at {
        // Into a String nothing can fail.
        if write!(text, "; {} at {finished}", switch.step).is_err() {
            return text;
        }
    }
    text
}

/// The sentence of the worst condition.
fn advice(status: &EtcdMirrorStatus) -> String {
    let of = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_);
    let bad_if = |type_: &str, bad: &str| of(type_).filter(|condition| condition.status == bad);
    let worst = bad_if("Stalled", "True")
        .or_else(|| bad_if("Paused", "True"))
        .or_else(|| bad_if("Ready", "False"))
        .or_else(|| bad_if("Verified", "False"))
        .or_else(|| bad_if("HistoryRisk", "True"));
    match worst {
        Some(condition) => format!("{}: {}", condition.reason, condition.message),
        None if status.conditions.is_empty() => "The operator has not looked at it yet.".to_owned(),
        None => "Nothing.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn mirror(spec: &Value, status: Value) -> EtcdMirror {
        let mut object = json!({
            "apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdMirror",
            "metadata": {"name": "dc", "namespace": "prod"},
            "spec": {"active": "eqiad", "sites": [{"name": "eqiad"}, {"name": "codfw"}]},
        });
        for (field, value) in spec.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        object["status"] = status;
        serde_json::from_value(object).unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-02T03:04:05Z"})
    }

    #[test]
    fn a_switch_to_what_is_asked_for_already_says_whether_it_is_so() {
        let asked = |status| asked_already(&mirror(&json!({}), status));
        for status in [json!({}), json!({"source": "eqiad"})] {
            assert_eq!(asked(status), ("eqiad is asked to be active already".to_owned(), Exit::Done));
        }
        let summary = "This file wants eqiad, and the sites agreed on codfw.";
        let (said, exit) = asked(json!({"source": "codfw", "summary": summary}));
        assert_eq!(said, format!("eqiad is asked to be active already, and codfw is. {summary}"));
        assert_eq!(exit, Exit::Unavailable);
    }

    fn following() -> Value {
        json!({
            "phase": "Streaming", "source": "eqiad", "target": "codfw", "checkpoint": 3_020_127,
            "lag": {"revisions": 0, "time": "0s"}, "synced": "1,204,331 keys",
            "sites": [{"name": "eqiad", "clusterID": "424b", "reachable": true},
                {"name": "codfw", "clusterID": "1860", "reachable": true}],
            "verification": {"time": "2026-01-02T03:00:00Z", "revision": 3_020_000, "keys": 1_204_331,
                "missing": 0, "extra": 0, "different": 0},
            "conditions": [condition("Ready", "True", "Healthy", "The target follows.")],
        })
    }

    #[test]
    fn a_mirror_that_follows_fits_a_screen() {
        let object = mirror(&json!({}), following());
        expect![[r#"
            dc (prod)  eqiad -> codfw  Streaming
              Lag         0 revisions, 0s (objective 1m)
              Checkpoint  revision 3020127 of eqiad
              Synced      1,204,331 keys
              Verified    equal at 2026-01-02T03:00:00Z, 1,204,331 keys
              Site        eqiad  ok  cluster 424b
              Site        codfw  ok  cluster 1860
              What now    Nothing.
        "#]]
        .assert_eq(&picture(&object));
        assert_eq!(verdict(&object), Exit::Done);
    }

    #[test]
    fn one_that_waits_for_a_person_says_what_to_type() {
        let mut status = following();
        status["phase"] = "Stalled".into();
        status["plan"] = json!({"hash": "b3a1", "adds": 0, "overwrites": 12, "deletes": 4100});
        status["conditions"] = json!([
            condition("Stalled", "True", "SourceRewound", "The source is at revision 700, and was at 1000."),
            condition("Ready", "False", "SourceRewound", "The source is at revision 700, and was at 1000."),
        ]);
        let object = mirror(&json!({}), status);
        expect![[r#"
            dc (prod)  eqiad -> codfw  Stalled
              Lag         0 revisions, 0s (objective 1m)
              Checkpoint  revision 3020127 of eqiad
              Synced      1,204,331 keys
              Verified    equal at 2026-01-02T03:00:00Z, 1,204,331 keys
              Site        eqiad  ok  cluster 424b
              Site        codfw  ok  cluster 1860
              Plan        waits for approval: 0 keys added, 12 overwritten, 4,100 deleted; kubectl quorate mirror resync dc --approve b3a1
              What now    SourceRewound: The source is at revision 700, and was at 1000.
        "#]].assert_eq(&picture(&object));
        assert_eq!(verdict(&object), Exit::Unavailable);
    }

    #[test]
    fn one_that_nobody_has_seen_says_so() {
        let object = mirror(&json!({}), json!({"observedGeneration": -1}));
        expect![[r#"
            dc (prod)  ? -> ?  ?
              What now    The operator has not looked at it yet.
        "#]]
        .assert_eq(&picture(&object));
        assert_eq!(verdict(&object), Exit::Degraded);
    }

    fn switch(line: &str) -> Switch {
        #[derive(clap::Parser)]
        struct Parser {
            #[command(flatten)]
            switch: Switch,
        }
        let words = std::iter::once("switch").chain(line.split(' '));
        <Parser as clap::Parser>::try_parse_from(words).unwrap().switch
    }

    #[test]
    fn a_switch_without_a_fence_needs_a_person_who_stopped_the_writers() {
        let (bare, fenced) =
            (mirror(&json!({}), json!({})), mirror(&json!({"fence": {"mode": "Manual"}}), json!({})));
        assert!(wanted(&bare, &switch("dc")).unwrap_err().contains("--writers-stopped"));
        assert_eq!(wanted(&bare, &switch("dc --writers-stopped")), Ok(Some("codfw".to_owned())));
        assert_eq!(wanted(&fenced, &switch("dc --to codfw")), Ok(Some("codfw".to_owned())));
        assert_eq!(wanted(&fenced, &switch("dc --to eqiad")), Ok(None));
        assert!(wanted(&fenced, &switch("dc --to ulsfo")).unwrap_err().contains("eqiad and codfw"));
        assert!(wanted(&fenced, &switch("dc --writers-stopped")).is_err());
    }

    #[test]
    fn the_steps_of_a_switch_are_shown_until_it_is_over() {
        let of = |status: Value| progress(&serde_json::from_value(status).unwrap(), "codfw");
        let at = |step: &str, source: &str| {
            of(json!({"source": source, "switch": {"from": "eqiad", "to": "codfw", "step": step}}))
        };
        assert_eq!(of(json!({})), ("Waiting    the agent is started anew\n".to_owned(), None));
        assert_eq!(at("Drain", "eqiad"), ("Drain      eqiad -> codfw\n".to_owned(), None));
        assert_eq!(at("Done", "codfw").1, Some(Exit::Done));
        assert_eq!(at("Aborted", "eqiad").1, Some(Exit::Unavailable));
        let earlier =
            of(json!({"source": "eqiad", "switch": {"from": "codfw", "to": "eqiad", "step": "Done"}}));
        assert_eq!(earlier.1, None, "a switch of another day");
        let aborted =
            json!({"from": "eqiad", "to": "codfw", "step": "Aborted", "finishedAt": "2026-01-02T03:04:09Z"});
        let before: SwitchStatus = serde_json::from_value(aborted.clone()).unwrap();
        let status = || serde_json::from_value(json!({"source": "eqiad", "switch": aborted})).unwrap();
        assert_eq!(progress(&since(status(), Some(&before)), "codfw").1, None, "one that was taken back");
        assert_eq!(progress(&since(status(), None), "codfw").1, Some(Exit::Unavailable));
        let exchanged =
            of(json!({"source": "codfw", "conditions": [condition("Ready", "True", "Healthy", "")]}));
        assert_eq!(exchanged.1, Some(Exit::Done), "by an agent that is gone");
        let stalled =
            of(json!({"conditions": [condition("Stalled", "True", "FenceRefused", "Auth is off.")]}));
        assert_eq!(stalled, ("Stalled    Auth is off.\n".to_owned(), Some(Exit::Unavailable)));
    }

    #[test]
    fn a_switch_shows_how_long_its_steps_took() {
        let switch: SwitchStatus = serde_json::from_value(json!({
            "from": "eqiad", "to": "codfw", "step": "Done", "finishedAt": "2026-01-02T03:04:09Z",
            "steps": [
                {"name": "Verify", "startedAt": "2026-01-02T03:04:05Z", "finishedAt": "2026-01-02T03:04:07.500Z"},
                {"name": "Promote", "startedAt": "2026-01-02T03:04:07.500Z"},
            ],
        }))
        .unwrap();
        expect!["eqiad -> codfw: Verify 2.5s, Promote; Done at 2026-01-02T03:04:09Z"]
            .assert_eq(&steps(&switch));
    }
}
