//! An agent: what it does by its file, and what it says at `/status`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use quorate::mirror::agent::config::{AgentConfig, Fence, RunState};
use quorate::mirror::agent::status::{AgentPhase, AgentStatus, ProblemReason, SwitchResult};
use quorate::mirror::config::Config;
use quorate::mirror::connect::{Access, Connection};
use quorate::mirror::inspect::discarded;
use quorate_pair::etcd::Settings;
use quorate_pair::programs::until;
use quorate_pair::{Pair, Side};
use tempfile::TempDir;

use super::{Mirror, alike, held, level};

/// An endpoint that is down: of those that are given, one must not stand in the way.
const NOBODY: &str = "http://127.0.0.1:1";

/// A file of an agent, and what it says.
pub(super) struct File {
    folder: TempDir,
    pub(super) config: AgentConfig,
}

impl File {
    pub(super) fn of(pair: &Pair) -> Self {
        let minimal = r#"{"fingerprint": "", "id": "default", "active": "a", "sites": [
            {"name": "a", "endpoints": []}, {"name": "b", "endpoints": []}]}"#;
        let mut config: AgentConfig = serde_json::from_str(minimal).unwrap();
        for (site, side) in config.sites.iter_mut().zip([&pair.source, &pair.target]) {
            site.endpoints = side.endpoints().split(',').map(str::to_owned).collect();
        }
        let file = Self { folder: TempDir::new().unwrap(), config };
        file.write();
        file
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// A secret beside it: the name of its file.
    pub(super) fn secret(&self, name: &str, content: &str) -> String {
        let file = self.folder.path().join(name);
        fs::write(&file, format!("{content}\n")).unwrap();
        file.display().to_string()
    }

    /// At once, as a kubelet exchanges a ConfigMap's files.
    fn write(&self) {
        let next = self.folder.path().join("next");
        fs::write(&next, serde_saphyr::to_string(&self.config).unwrap()).unwrap();
        fs::rename(next, self.path()).unwrap();
    }

    pub(super) fn fingerprint(&self) -> String {
        self.config.clone().fingerprinted().fingerprint
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut AgentConfig)) {
        change(&mut self.config);
        self.write();
    }
}

pub(super) async fn status(agent: &Mirror) -> Option<AgentStatus> {
    let answer = agent.ask("/status").await.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// Waits until the agent says so.
pub(super) async fn until_it_says(
    agent: &Mirror,
    what: &str,
    is_so: impl Fn(&AgentStatus) -> bool,
) -> AgentStatus {
    let mut last = None;
    until(&format!("the agent says {what}"), async || {
        last = status(agent).await;
        last.as_ref().is_some_and(&is_so)
    })
    .await;
    last.unwrap()
}

pub(super) fn problem(status: &AgentStatus) -> Option<ProblemReason> {
    status.problem.as_ref().map(|problem| problem.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_mirrors_by_its_file_and_follows_it() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k/", 300, 10).await;
    let mut file = File::of(&pair);
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    let said = until_it_says(&agent, "that it follows", |status| status.phase == AgentPhase::Streaming).await;
    assert!(said.initial_sync_done && said.problem.is_none(), "{said:?}");
    assert_eq!((said.active.as_deref(), said.term), (Some("a"), Some(1)));
    assert_eq!(said.counters.puts, 300);
    assert!(said.sites.iter().all(|site| site.reachable && site.cluster_id.is_some()), "{said:?}");

    file.change(|config| config.requests.verify = Some("now".to_owned()));
    let said = until_it_says(&agent, "what it compared", |status| status.verification.is_some()).await;
    let verification = said.verification.unwrap();
    assert_eq!((verification.keys, verification.mismatched()), (300, 0));

    file.change(|config| config.state = RunState::Paused);
    until_it_says(&agent, "that it is paused", |status| status.phase == AgentPhase::Paused).await;
    pair.source.etcd.put("/k/new", "1").await;
    pair.source.etcd.put("/locks/1", "1").await;
    file.change(|config| {
        config.state = RunState::Running;
        config.ignore = vec!["/locks/.*".to_owned()];
    });
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
    assert!(held(&pair.target, "/locks/").await.is_empty(), "an ignored key was copied");
    let fingerprint = status(&agent).await.unwrap().fingerprint;
    assert_eq!(fingerprint, file.fingerprint());
    assert_eq!(agent.terminate().await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_file_asks_for_in_vain_is_told_and_curing_it_lets_it_go_on() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.put("/k", "source").await;
    pair.target.etcd.put("/k", "target").await;
    let mut file = File::of(&pair);
    file.change(|config| config.active = "c".to_owned());
    let agent = Mirror::by_file(&file.path());
    let is = |reason| move |status: &AgentStatus| problem(status) == Some(reason);
    until_it_says(&agent, "that there is no such site", is(ProblemReason::UnknownSite)).await;
    file.change(|config| {
        config.active = "a".to_owned();
        config.ignore = vec!["(".to_owned()];
    });
    until_it_says(&agent, "that the pattern is none", is(ProblemReason::PatternInvalid)).await;
    file.change(|config| config.ignore.clear());
    let said = until_it_says(&agent, "that keys differ", is(ProblemReason::TargetDiffers)).await;
    assert_eq!(said.phase, AgentPhase::Stopped);
    assert_eq!(held(&pair.target, "/k").await[&b"/k".to_vec()].value, b"target");
    file.change(|config| config.overwrite = true);
    level(&pair.source, &pair.target).await;
    let said = until_it_says(&agent, "that it follows", |status| status.phase == AgentPhase::Streaming).await;
    assert_eq!(said.problem, None);
    pair.source.hold(true);
    let said = until_it_says(&agent, "that the source is silent", is(ProblemReason::SourceUnreachable)).await;
    assert!(said.initial_sync_done, "what is known is not forgotten");
    pair.source.hold(false);
    until_it_says(&agent, "that it follows again", |status| status.phase == AgentPhase::Streaming).await;
}

/// Case 29: what the lost side has of its own is nobody's to overwrite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_promotion_by_hand_nothing_is_copied_either_way() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k/", 20, 10).await;
    let mut file = File::of(&pair);
    file.change(|config| config.fence = Some(Fence::Manual));
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    let mut promote = Command::new(env!("CARGO_BIN_EXE_quorate"));
    promote.args(["mirror", "promote", "--target", &format!("{NOBODY},{}", pair.target.endpoints())]);
    assert!(promote.output().unwrap().status.success());
    pair.source.etcd.put("/k/of the lost side", "1").await;
    let mismatch = |status: &AgentStatus| problem(status) == Some(ProblemReason::ActiveMismatch);
    until_it_says(&agent, "that somebody promoted", mismatch).await;
    for (active, fence) in [("b", None), ("a", Some(Fence::Manual)), ("a", None)] {
        file.change(|config| (config.active, config.fence) = (active.to_owned(), fence));
        until_it_says(&agent, "that it knows the new file", |status| {
            status.fingerprint == file.fingerprint()
        })
        .await;
        until_it_says(&agent, "the same of it", mismatch).await;
    }
    assert_eq!(held(&pair.source, "/k/").await.len(), 21, "the lost side was written to");
    assert_eq!(held(&pair.target, "/k/").await.len(), 20);
}

/// Case 28, with a person as the fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sites_are_switched_and_switched_back() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k/", 300, 10).await;
    let mut file = File::of(&pair);
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    file.change(|config| {
        config.fence = Some(Fence::Manual);
        config.active = "b".to_owned();
        for site in &mut config.sites {
            site.endpoints.insert(0, NOBODY.to_owned());
        }
    });
    let follows = |active: &'static str| {
        move |status: &AgentStatus| {
            status.phase == AgentPhase::Streaming && status.active.as_deref() == Some(active)
        }
    };
    let said = until_it_says(&agent, "that b is active", follows("b")).await;
    let switch = said.switch.unwrap();
    assert_eq!((switch.result, switch.lost), (Some(SwitchResult::Done), None));
    let names: Vec<&str> = switch.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["Verify", "Fence", "Drain", "Compare", "Promote", "Reverse"]);
    assert_eq!((said.term, said.problem), (Some(2), None));
    assert_eq!((said.counters.puts, said.counters.deletes), (0, 0), "what was equal was written again");
    pair.target.etcd.put("/k/at b", "1").await;
    alike(&pair.target, "/k/", &pair.source, "/k/").await;

    // Killed wherever it is, it ends what it began.
    file.change(|config| (config.active, config.agreed_term) = ("a".to_owned(), Some(2)));
    agent.kill();
    let mut kills = 0;
    let agent = loop {
        let agent = Mirror::by_file(&file.path());
        super::pass(std::time::Duration::from_millis(700 + 150 * kills)).await;
        if status(&agent).await.is_some_and(|status| follows("a")(&status)) {
            break agent;
        }
        kills += 1;
        agent.kill();
    };
    pair.source.etcd.put("/k/at a", "1").await;
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
    let said = until_it_says(&agent, "that a is active", follows("a")).await;
    assert_eq!(said.term, Some(3), "after {kills} kills");
    assert_eq!(held(&pair.target, "/k/").await.len(), 302);
}

/// Two Kubernetes, whose EtcdMirrors name different sites.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_files_that_differ_do_not_switch_the_sites_to_and_fro() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k/", 20, 10).await;
    let [mut here, mut there] = [File::of(&pair), File::of(&pair)];
    here.change(|config| config.fence = Some(Fence::Manual));
    let agent = Mirror::by_file(&here.path());
    until_it_says(&agent, "that it follows", |status| status.phase == AgentPhase::Streaming).await;
    agent.kill();
    there.change(|config| (config.fence, config.agreed_term) = (Some(Fence::Manual), Some(1)));
    there.change(|config| config.active = "b".to_owned());
    let agent = Mirror::by_file(&there.path());
    let follows = |term, active: &'static str, reason| {
        move |status: &AgentStatus| {
            let is = (status.term, status.active.as_deref(), problem(status));
            is == (Some(term), Some(active), reason) && status.phase == AgentPhase::Streaming
        }
    };
    until_it_says(&agent, "that b is active", follows(2, "b", None)).await;
    agent.kill();

    // As it is known where nothing has changed since.
    here.change(|config| config.agreed_term = Some(1));
    let agent = Mirror::by_file(&here.path());
    let mismatch = Some(ProblemReason::ActiveMismatch);
    let said = until_it_says(&agent, "that b is active all the same", follows(2, "b", mismatch)).await;
    let message = said.problem.unwrap().message;
    assert!(message.contains("Only a change of active"), "{message}");
    pair.target.etcd.put("/k/at b", "1").await;
    alike(&pair.target, "/k/", &pair.source, "/k/").await;
    // Once they agree, a change is one.
    here.change(|config| config.active = "b".to_owned());
    until_it_says(&agent, "that they agree", follows(2, "b", None)).await;
    here.change(|config| config.active = "a".to_owned());
    until_it_says(&agent, "that a is active", follows(3, "a", None)).await;
}

/// What etcd's own records say counts: a changed word in a file alone exchanges no source and target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_told_the_other_direction_writes_nothing() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k/", 20, 10).await;
    let mut file = File::of(&pair);
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    pair.target.etcd.put("/k/of the follower", "1").await;
    let before = held(&pair.source, "/k/").await;
    file.change(|config| {
        config.active = "b".to_owned();
        (config.overwrite, config.prune) = (true, true);
    });
    let mismatch = |status: &AgentStatus| problem(status) == Some(ProblemReason::FenceMissing);
    let said = until_it_says(&agent, "that the other site is active", mismatch).await;
    assert_eq!(said.active.as_deref(), Some("a"), "{said:?}");
    assert_eq!(held(&pair.source, "/k/").await, before, "the active site was written to");
    pair.source.etcd.put("/k/later", "1").await;
    level(&pair.source, &pair.target).await;
    file.change(|config| config.active = "a".to_owned());
    let follows = |status: &AgentStatus| {
        status.phase == AgentPhase::Streaming && problem(status) == Some(ProblemReason::ForeignWrites)
    };
    until_it_says(&agent, "that it follows, and that somebody wrote to the follower", follows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_history_is_gone_is_known_of_every_minor() {
    for minor in ["3.5", "3.6", "3.7"] {
        let source = Side::start(Settings::of(minor)).await;
        let access = Access { endpoints: vec![source.endpoints()], ..Access::default() };
        let keyspace = Config::whole().keyspace().unwrap();
        let connection = Connection::default();
        let gone = async || discarded(&access, (&connection, 0), &keyspace).await.unwrap();
        assert_eq!(gone().await, 0, "{minor}: nothing was ever written");
        for number in 0..10 {
            source.etcd.put(format!("/k/{number}"), "v").await;
        }
        assert_eq!(gone().await, 0, "{minor}");
        source.etcd.client().await.compact(7, None).await.unwrap();
        assert_eq!(gone().await, 7, "{minor}");
    }
}
