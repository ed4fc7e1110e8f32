//! Switching the sites over with roles as the fence, taking that back, and the return of a site that was lost: cases 28 and 29.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::time::Duration;

use etcd_client::{Client, Error, Permission, PutOptions};
use quorate::mirror::agent::config::{Credentials, Fence};
use quorate::mirror::agent::lost::Lost;
use quorate::mirror::agent::status::{AgentPhase, AgentStatus, ProblemReason, SwitchResult};
use quorate::mirror::agent::switch;
use quorate::mirror::authorize::{FenceError, Writers, fence, give_back, holds};
use quorate::mirror::config::{Config, MirrorId};
use quorate::mirror::connect::{Access, UserName};
use quorate::mirror::fence::{Kind, Record, Taken};
use quorate::mirror::keyspace::Span;
use quorate::mirror::verify::verify;
use quorate_pair::programs::{MINORS, until};
use quorate_pair::{Etcd, Pair, Settings, Side};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::agent::{File, problem, status, until_it_says};
use super::{Mirror, alike, held, level, pass};

/// Between two writes of an application: some hundred a second.
const PACE: Duration = Duration::from_millis(3);
/// A write that crosses a change of permissions is asked again so often.
const TRIES: usize = 100;
/// Role and user of the applications.
const WRITERS: &str = "writers";

/// A side where auth is on: applications may write below /k/, and the mirror everywhere.
async fn guard(side: &mut Side) {
    let write = |prefix: &str| Permission::read_write(prefix).with_prefix();
    side.etcd.user(WRITERS, WRITERS, vec![write("/k/")]).await;
    side.etcd.user("mirror", "mirror", vec![Permission::read_write("").with_all_keys()]).await;
    side.etcd.enable_auth().await;
}

/// Both sides guarded, and an agent's file with a fence of roles.
async fn guarded() -> (Pair, File) {
    // Each connection logs in anew: what a password costs is not what is tested.
    let settings = || Settings::of("3.6").flag("bcrypt-cost", 4);
    let mut pair = Pair::start(settings(), settings()).await;
    pair.source.etcd.fill("/k/", 200, 10).await;
    guard(&mut pair.source).await;
    guard(&mut pair.target).await;
    let mut file = File::of(&pair);
    let user = |name: &str, password: &str| Credentials {
        user_file: Some(file.secret(&format!("{name}.name"), name)),
        password_file: Some(file.secret(&format!("{name}.password"), password)),
        ..Credentials::default()
    };
    let (mirror, root) = (user("mirror", "mirror"), user("root", "secret"));
    file.change(|config| {
        for site in &mut config.sites {
            site.credentials = mirror.clone();
        }
        let both = config.sites.iter().map(|site| (site.name.clone(), root.clone()));
        config.fence = Some(Fence::Roles { roles: vec![WRITERS.to_owned()], root: both.collect() });
    });
    (pair, file)
}

/// Whether a write was done, or denied. etcd may refuse one that crosses a change of permissions: it is to be asked again.
async fn written(client: &mut Client, key: &[u8]) -> bool {
    for _ in 0..TRIES {
        match client.put(key.to_vec(), "1", None).await {
            Ok(_) => return true,
            Err(Error::GRpcStatus(status)) if status.message().contains("permission denied") => return false,
            Err(Error::GRpcStatus(status)) if status.message().contains("auth store is old") => {
                pass(PACE).await;
            }
            Err(error) => panic!("a write ended otherwise: {error}"),
        }
    }
    panic!("a write is neither done nor denied");
}

/// Whether an application may write at a side.
async fn may_write(side: &Side, key: &str) -> bool {
    written(&mut side.etcd.client_as(WRITERS).await, key.as_bytes()).await
}

/// An application that writes one new key after the other to a site.
struct Application(JoinHandle<BTreeSet<Vec<u8>>>);

impl Application {
    /// Until it is denied.
    async fn writing(side: &Side, name: &'static str) -> Self {
        let mut client = side.etcd.client_as(WRITERS).await;
        Self(tokio::spawn(async move {
            let mut acknowledged = BTreeSet::new();
            loop {
                let key = format!("/k/{name}/{:06}", acknowledged.len()).into_bytes();
                if !written(&mut client, &key).await {
                    return acknowledged;
                }
                acknowledged.insert(key);
                pass(PACE).await;
            }
        }))
    }

    /// What was acknowledged until it was denied.
    async fn denied(self) -> BTreeSet<Vec<u8>> {
        until("the application is denied", async || self.0.is_finished()).await;
        self.0.await.unwrap()
    }
}

fn follows(active: &'static str) -> impl Fn(&AgentStatus) -> bool {
    move |status| {
        status.phase == AgentPhase::Streaming
            && status.active.as_deref() == Some(active)
            && status.problem.is_none()
    }
}

/// An own key of the mirror.
async fn own(side: &Side, name: &str) -> Option<Vec<u8>> {
    let key = MirrorId::new("default").unwrap().key(name);
    let answer = side.client().await.get(key, None).await.unwrap();
    answer.kvs().first().map(|kv| kv.value().to_vec())
}

async fn has_all(side: &Side, acknowledged: &BTreeSet<Vec<u8>>) {
    let there = held(side, "/k/").await;
    let lost: Vec<_> = acknowledged.iter().filter(|key| !there.contains_key(*key)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost", lost.len(), acknowledged.len());
}

/// Case 28.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sites_are_switched_under_load_and_no_acknowledged_write_is_lost() {
    let (pair, mut file) = guarded().await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    assert_eq!(agent.terminate().await.code, Some(0));
    // An agent that knows of no switch, and stands still with all that it has read.
    let mut old = by_flags(&pair, &file);
    let mut root = pair.source.client().await;
    let lease = root.lease_grant(600, None).await.unwrap().id();
    root.put("/k/leased", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
    old.pause();
    pair.source.etcd.fill("/k/late/", 50, 10).await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;

    let application = Application::writing(&pair.source, "a").await;
    file.change(|config| config.active = "b".to_owned());
    let acknowledged = application.denied().await;
    let said = until_it_says(&agent, "that b is active", follows("b")).await;
    println!("{} writes were acknowledged before the fence", acknowledged.len());
    let switch = said.switch.unwrap();
    let names: Vec<&str> = switch.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["Verify", "Fence", "Drain", "Compare", "Promote", "Reverse"]);
    assert_eq!((switch.result, switch.lost), (Some(SwitchResult::Done), None));
    has_all(&pair.target, &acknowledged).await;
    assert!(!may_write(&pair.source, "/k/denied").await, "the old side can be written to");
    assert!(may_write(&pair.target, "/k/at b").await, "the new side cannot be written to");
    let fenced = Record::parse(&own(&pair.source, "fence").await.unwrap()).unwrap();
    assert_eq!(fenced.taken.len(), 1, "{fenced:?}");
    assert_eq!(own(&pair.target, "fence").await, None);

    let before = held(&pair.target, "/k/").await;
    old.resume();
    until("the old agent finds out", async || !old.is_running() || old.said().contains("was promoted")).await;
    assert_eq!(held(&pair.target, "/k/").await, before, "a late transaction changed something");
    old.kill();

    alike(&pair.target, "/k/", &pair.source, "/k/").await;
    level(&pair.target, &pair.source).await;
    let recorder = pair.source.etcd.record().await;
    file.change(|config| config.active = "a".to_owned());
    until_it_says(&agent, "that a is active", follows("a")).await;
    let changed = recorder.all(&pair.source.etcd).await.into_iter().map(|change| change.key);
    let copied: BTreeSet<Vec<u8>> = changed.filter(|key| key.starts_with(b"/k/")).collect();
    assert!(copied.is_subset(&BTreeSet::from([b"/k/leased".to_vec()])), "written again: {copied:?}");
    assert!(may_write(&pair.source, "/k/at a again").await, "roles were not given back");
    assert!(!may_write(&pair.target, "/k/denied").await);
    assert_eq!(own(&pair.source, "fence").await, None);
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_is_taken_back_gives_the_roles_back_and_copying_goes_on() {
    let (pair, mut file) = guarded().await;
    let before = pair.source.etcd.permissions(WRITERS).await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    pair.target.distance(Duration::from_millis(300));
    file.change(|config| config.active = "b".to_owned());
    let drains = |status: &AgentStatus| {
        let step = status.switch.as_ref().and_then(|switch| switch.steps.last());
        step.is_some_and(|step| step.name == "Drain")
    };
    until_it_says(&agent, "that it drains", drains).await;
    // Nothing of the switch goes on from here.
    pair.target.hold(true);
    assert!(!may_write(&pair.source, "/k/denied").await, "it drains without a fence");
    file.change(|config| config.active = "a".to_owned());
    until_it_says(&agent, "that it knows the new file", |said| said.fingerprint == file.fingerprint()).await;
    assert!(!may_write(&pair.source, "/k/denied").await, "writers were let in while a promotion may come");
    pair.target.hold(false);
    pair.target.distance(Duration::ZERO);
    until("roles are given back", async || own(&pair.source, "fence").await.is_none()).await;
    assert_eq!(pair.source.etcd.permissions(WRITERS).await, before);
    assert!(may_write(&pair.source, "/k/again").await);
    let said = until_it_says(&agent, "that it copies on", follows("a")).await;
    assert_eq!(said.switch.unwrap().result, Some(SwitchResult::Aborted));
    assert_eq!(said.term, Some(1));
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
    // It was no hindrance for the next one.
    file.change(|config| config.active = "b".to_owned());
    until_it_says(&agent, "that b is active", follows("b")).await;
}

/// Wherever it is before its promotion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_is_taken_back_at_every_step() {
    let (pair, mut file) = guarded().await;
    let before = pair.source.etcd.permissions(WRITERS).await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    for step in ["Verify", "Fence", "Drain", "Compare"] {
        let sides = [&pair.source, &pair.target];
        // Each step asks both sides more than once, so it is seen before it is over.
        for side in sides {
            side.distance(Duration::from_millis(300));
        }
        file.change(|config| config.active = "b".to_owned());
        let is_there = |status: &AgentStatus| {
            let switch = status.switch.as_ref().filter(|switch| switch.result.is_none());
            switch.is_some_and(|switch| switch.steps.iter().any(|known| known.name == step))
        };
        until_it_says(&agent, step, is_there).await;
        // And does not end before the file was read.
        for side in sides {
            side.hold(true);
        }
        file.change(|config| config.active = "a".to_owned());
        let has_read = |status: &AgentStatus| status.fingerprint == file.fingerprint();
        until_it_says(&agent, "that it has read the file", has_read).await;
        for side in sides {
            side.hold(false);
            side.distance(Duration::ZERO);
        }
        let aborted = |status: &AgentStatus| {
            let result = status.switch.as_ref().and_then(|switch| switch.result);
            result == Some(SwitchResult::Aborted) && follows("a")(status)
        };
        let said = until_it_says(&agent, "that it copies on", aborted).await;
        let steps: Vec<String> = said.switch.unwrap().steps.into_iter().map(|step| step.name).collect();
        println!("{steps:?}");
        assert_eq!(said.term, Some(1), "{step}");
        assert_eq!(pair.source.etcd.permissions(WRITERS).await, before, "{step}");
        assert_eq!((own(&pair.source, "fence").await, own(&pair.target, "switch").await), (None, None));
        assert!(may_write(&pair.source, &format!("/k/after {step}")).await);
    }
    level(&pair.source, &pair.target).await;
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
}

/// How a site is reached without a user.
fn access(side: &Side) -> Access {
    let endpoints = side.endpoints().split(',').map(str::to_owned).collect();
    Access { endpoints, ..Access::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_that_comes_after_it_was_taken_back_changes_nothing() {
    let pair = Pair::of("3.6").await;
    pair.source.etcd.fill("/k/", 20, 10).await;
    let file = File::of(&pair);
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    agent.kill();
    let id = MirrorId::new("default").unwrap();
    let (old, new) = (access(&pair.source), access(&pair.target));
    let sites = switch::Pair { id, old, new, back: Config::whole() };
    let compared = verify(&sites.old, &sites.new, &sites.id).await.unwrap();
    let before = own(&pair.target, "site").await;

    let taken_back = switch::attempt(&sites).await.unwrap();
    assert!(switch::take_back(&sites).await.unwrap());
    switch::promote(&sites, &taken_back, &compared, "b").await.unwrap_err();
    let earlier = switch::attempt(&sites).await.unwrap();
    let later = switch::attempt(&sites).await.unwrap();
    switch::promote(&sites, &earlier, &compared, "b").await.unwrap_err();
    assert_eq!(own(&pair.target, "site").await, before);
    assert_eq!(switch::promote(&sites, &later, &compared, "b").await.unwrap(), 2);
    assert!(!switch::take_back(&sites).await.unwrap(), "it was taken back after it was done");
    assert_ne!(own(&pair.target, "site").await, before);
}

/// Case 4, of a switch: whenever the agent dies, what it began is ended by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_in_a_switch_leaves_nothing_half_done() {
    let (pair, mut file) = guarded().await;
    let mut agent = Some(Mirror::by_file(&file.path()));
    level(&pair.source, &pair.target).await;
    let mut acknowledged = BTreeSet::new();
    let mut kills = 0;
    let rounds = [("b", "a1"), ("a", "b1"), ("b", "a2"), ("a", "b2")];
    for (round, (to, name)) in rounds.into_iter().enumerate() {
        let (old, new) = if to == "b" { (&pair.source, &pair.target) } else { (&pair.target, &pair.source) };
        let application = Application::writing(old, name).await;
        let agreed = Some(round as u64 + 1);
        file.change(|config| (config.active, config.agreed_term) = (to.to_owned(), agreed));
        // The file is read after a second at the latest; by then it is begun anew by it, too.
        for turn in 0..20_u64 {
            pass(Duration::from_millis(rand::random_range(50..700) + 50 * turn)).await;
            let running = agent.take().unwrap_or_else(|| Mirror::by_file(&file.path()));
            if status(&running).await.is_some_and(|status| follows(to)(&status)) {
                agent = Some(running);
                break;
            }
            running.kill();
            kills += 1;
            agent = Some(Mirror::by_file(&file.path()));
        }
        let running = agent.as_ref().unwrap();
        let said = until_it_says(running, "that the switch is whole", follows(to)).await;
        assert_eq!(said.term, Some(round as u64 + 2));
        acknowledged.extend(application.denied().await);
        assert!(may_write(new, &format!("/k/{name}/after")).await, "nobody can write at {to}");
        assert!(!may_write(old, "/k/denied").await, "both sides can be written to");
        assert_eq!((own(new, "fence").await, own(new, "switch").await), (None, None));
        alike(new, "/k/", old, "/k/").await;
        has_all(new, &acknowledged).await;
    }
    println!("{} writes acknowledged, {kills} kills", acknowledged.len());
    assert!(kills > 0);
}

/// A mirror from a to b that knows no sites.
fn by_flags(pair: &Pair, file: &File) -> Mirror {
    let password = file.secret("flags.password", "mirror");
    let of = |side: &str| [format!("--{side}-user=mirror"), format!("--{side}-password-file={password}")];
    let flags = [of("source"), of("target")].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Mirror::start(&pair.source, &pair.target, &flags)
}

fn mirror(pair: &Pair, file: &File, verb: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["mirror", verb, "--target", &pair.target.endpoints(), "--target-user", "mirror"]);
    command.args(["--target-password-file", &file.secret("command.password", "mirror")]);
    command.output().unwrap()
}

/// Case 29.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_site_has_of_its_own_is_listed_before_it_follows() {
    let (pair, mut file) = guarded().await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    pair.source.hold(true);
    let a = pair.source.etcd.client_as(WRITERS).await;
    let mut puts = BTreeMap::new();
    for key in ["/k/new at a", "/k/00001", "/k/00002", "/k/both"] {
        let answer = a.clone().put(key, "of a", None).await.unwrap();
        puts.insert(key.replace(' ', "%20"), answer.header().unwrap().revision());
    }
    for key in ["/k/00003", "/k/00004", "/k/00005"] {
        a.clone().delete(key, None).await.unwrap();
    }
    // Nobody can know of these.
    a.clone().put("/k/for a moment", "1", None).await.unwrap();
    a.clone().delete("/k/for a moment", None).await.unwrap();
    let promoted = mirror(&pair, &file, "promote");
    assert!(promoted.status.success(), "{promoted:?}");
    assert!(mirror(&pair, &file, "promote").status.success(), "done twice it is the same");
    let b = pair.target.etcd.client_as(WRITERS).await;
    for (key, value) in [("/k/both", "of b"), ("/k/00005", "of b"), ("/k/new at b", "1")] {
        b.clone().put(key, value, None).await.unwrap();
    }

    file.change(|config| config.active = "b".to_owned());
    pair.source.hold(false);
    let returned = |status: &AgentStatus| problem(status) == Some(ProblemReason::SiteReturned);
    let said = until_it_says(&agent, "that a is back", returned).await;
    let plan = said.plan.unwrap();
    assert_eq!((plan.adds, plan.overwrites, plan.deletes), (4, 3, 1), "of b, as a is to be made");
    assert!(!may_write(&pair.source, "/k/denied").await, "a is not fenced");
    assert!(may_write(&pair.target, "/k/written at b").await);
    let lost = Lost::parse(&own(&pair.target, "lost").await.unwrap()).unwrap();
    let listed: BTreeMap<String, i64> = lost.puts.iter().map(|put| (put.key.clone(), put.revision)).collect();
    assert_eq!(listed, puts);
    // What b has changed since is b's.
    assert_eq!(lost.deletes, ["/k/00003", "/k/00004"]);
    assert_eq!((lost.put_count, lost.delete_count, lost.whole), (4, 2, true));
    let shown = mirror(&pair, &file, "lost");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let lines = shown.lines().filter(|line| line.starts_with("put ") || line.starts_with("deleted "));
    assert_eq!(lines.count(), 6, "{shown}");

    let before = held(&pair.source, "/k/").await;
    file.change(|config| config.requests.resync = Some("another hash".to_owned()));
    let knows = |said: &AgentStatus| said.fingerprint == file.fingerprint() && returned(said);
    until_it_says(&agent, "that it is no leave", knows).await;
    assert_eq!(held(&pair.source, "/k/").await, before, "a was written to before anybody said so");
    file.change(|config| config.requests.resync = Some(lost.hash.clone()));
    let said = until_it_says(&agent, "that a follows", follows("b")).await;
    assert!(said.switch.unwrap().lost.unwrap().contains("4 keys"));
    level(&pair.target, &pair.source).await;
    alike(&pair.target, "/k/", &pair.source, "/k/").await;
    assert_eq!(held(&pair.target, "/k/").await[&b"/k/both".to_vec()].value, b"of b");
    assert!(!may_write(&pair.source, "/k/denied").await, "what follows can be written to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_that_would_not_hold_is_refused_and_takes_nothing() {
    let (pair, mut file) = guarded().await;
    let write = Permission::write("/k/sub/").with_prefix();
    pair.source.etcd.user("others", "others", vec![write]).await;
    let before = pair.source.etcd.permissions(WRITERS).await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    file.change(|config| config.active = "b".to_owned());
    let refused = |status: &AgentStatus| problem(status) == Some(ProblemReason::FenceRefused);
    let said = until_it_says(&agent, "that somebody else can write", refused).await;
    let message = said.problem.unwrap().message;
    assert!(message.contains("the user others") && !message.contains("secret"), "{message}");
    assert_eq!(said.active.as_deref(), Some("a"));
    assert_eq!(pair.source.etcd.permissions(WRITERS).await, before);
    pair.source.etcd.put("/k/later", "1").await;
    level(&pair.source, &pair.target).await;
    pair.source.client().await.user_revoke_role("others", "others").await.unwrap();
    until_it_says(&agent, "that b is active", follows("b")).await;
    assert!(!agent.said().contains("secret"), "a password was logged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_switch_after_its_promotion_is_told_until_it_is_done() {
    let (pair, mut file) = guarded().await;
    let agent = Mirror::by_file(&file.path());
    level(&pair.source, &pair.target).await;
    // The mirror may not write at the old side any more.
    let may = async |permission: Permission| {
        let all = permission.with_all_keys();
        pair.source.client().await.role_grant_permission("mirror", all).await.unwrap();
    };
    may(Permission::read("")).await;
    file.change(|config| config.active = "b".to_owned());
    let is = |reason| move |status: &AgentStatus| problem(status) == Some(reason);
    let said = until_it_says(&agent, "that a does not follow yet", is(ProblemReason::SwitchUnfinished)).await;
    assert_eq!((said.active.as_deref(), said.phase), (Some("b"), AgentPhase::Stopped));
    let message = said.problem.unwrap().message;
    assert!(message.starts_with("b is active") && message.contains("permission denied"), "{message}");
    assert!(may_write(&pair.target, "/k/at b").await);
    may(Permission::read_write("")).await;
    until_it_says(&agent, "that it follows", follows("b")).await;

    // Root's password is wrong at the side that was fenced.
    let wrong = file.secret("wrong.password", "wrong");
    let right = with_password_of_root_at_a(&mut file, &wrong);
    file.change(|config| config.active = "a".to_owned());
    let said = until_it_says(&agent, "that writers are kept out", is(ProblemReason::WritersKeptOut)).await;
    assert_eq!(said.active.as_deref(), Some("a"));
    let message = said.problem.unwrap().message;
    assert!(message.starts_with("Writers of a") && !message.contains("wrong"), "{message}");
    assert!(!may_write(&pair.source, "/k/denied").await);
    alike(&pair.source, "/k/", &pair.target, "/k/").await;
    with_password_of_root_at_a(&mut file, &right);
    let said = until_it_says(&agent, "that all is well", follows("a")).await;
    assert_eq!(said.term, Some(3));
    assert!(may_write(&pair.source, "/k/at a").await);
}

/// Exchanges the file of root's password; the one before.
fn with_password_of_root_at_a(file: &mut File, password: &str) -> String {
    let mut before = None;
    file.change(|config| {
        let Some(Fence::Roles { root, .. }) = &mut config.fence else { panic!("a fence of roles") };
        let root = root.get_mut("a").unwrap();
        before = root.password_file.replace(password.to_owned());
    });
    before.unwrap()
}

/// How root comes, and who writes, at one etcd.
fn writers(etcd: &Etcd, secrets: &TempDir) -> Writers {
    let password = secrets.path().join("root");
    std::fs::write(&password, "secret").unwrap();
    let access = |user| Access { endpoints: vec![etcd.url(etcd.address(0))], user, ..Access::default() };
    Writers {
        id: MirrorId::new("default").unwrap(),
        site: "a".to_owned(),
        root: access(Some((UserName::Said("root".to_owned()), password))),
        own: access(None),
        roles: vec![WRITERS.to_owned()],
        spans: vec![Span::of_prefix(b"/k/")],
    }
}

/// Of each minor: what was taken comes back as it was, wherever a crash was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fence_took_comes_back_as_it_was_after_every_crash() {
    for minor in MINORS {
        let mut etcd = Etcd::start(Settings::of(minor)).await;
        let secrets = TempDir::new().unwrap();
        let side = writers(&etcd, &secrets);
        let permissions = vec![
            Permission::read_write("/k/").with_prefix(),
            // etcd looks for the permission to be replaced by its key only.
            Permission::read_write("/k/"),
            Permission::read_write("/k/").with_range_end("/k/m"),
            Permission::write("/k/w").with_range_end("/k/x"),
            Permission::read("/k/r"),
            Permission::read_write("/other/").with_prefix(),
        ];
        etcd.user(WRITERS, WRITERS, permissions).await;
        let off = fence(&side).await.unwrap_err();
        assert!(matches!(&off, FenceError::Refused(why) if why.contains("auth is off")), "{minor}: {off}");
        etcd.enable_auth().await;
        let sorted = async || {
            let mut permissions = etcd.permissions(WRITERS).await;
            permissions.sort();
            permissions
        };
        let before = sorted().await;
        assert!(holds(&side).await.is_err(), "{minor}: nothing is fenced yet");
        fence(&side).await.unwrap();
        fence(&side).await.unwrap();
        holds(&side).await.unwrap();
        let fenced = sorted().await;
        let can_write = fenced.iter().filter(|(kind, key, _)| *kind != 0 && key.starts_with(b"/k"));
        assert_eq!(can_write.count(), 0, "{minor}: {fenced:?}");
        assert_eq!(fenced.iter().filter(|(kind, ..)| *kind == 2).count(), 1, "{minor}: {fenced:?}");

        // One permission was not taken yet, and another one came back by hand: the fence is completed.
        let mut root = etcd.client().await;
        let back = Permission::read_write("/k/").with_prefix();
        root.role_grant_permission(WRITERS, back).await.unwrap();
        assert!(matches!(holds(&side).await, Err(FenceError::Refused(_))), "{minor}");
        fence(&side).await.unwrap();
        assert_eq!(sorted().await, fenced, "{minor}");
        let client = etcd.client().await;
        let key = side.id.key("fence");
        let record = client.kv_client().get(key.clone(), None).await.unwrap().kvs()[0].value().to_vec();
        assert_eq!(Record::parse(&record).unwrap().taken.len(), 4, "{minor}");

        // Half of it was given back when the agent died.
        let half = Permission::read_write("/k/");
        root.role_grant_permission(WRITERS, half).await.unwrap();
        assert!(give_back(&side.root, &side.id).await.unwrap(), "{minor}");
        assert_eq!(sorted().await, before, "{minor}");
        assert!(!give_back(&side.root, &side.id).await.unwrap(), "{minor}: it was not forgotten");

        // A record alone: nothing of it was taken yet; a role that is gone is nobody's.
        let gone =
            Taken { role: "gone".to_owned(), kind: Kind::Write, key: "/k/".to_owned(), end: String::new() };
        let record = Record::parse(&record).unwrap().with(vec![gone]);
        client.kv_client().put(key.clone(), record.text(), None).await.unwrap();
        assert!(give_back(&side.root, &side.id).await.unwrap(), "{minor}");
        assert_eq!(sorted().await, before, "{minor}");
        client.kv_client().put(key, record.text(), None).await.unwrap();
        fence(&side).await.unwrap();
        assert_eq!(sorted().await, fenced, "{minor}");
    }
}
