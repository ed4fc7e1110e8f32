//! Desired + Observed → Plan. Pure and total: no clock, no I/O, no failure.
//!
//! 1. being deleted: nothing
//! 2. what the agent needs of each site: endpoints, Secrets, consent
//! 3. whether it may run beside the other mirrors
//! 4. its file, its Deployment, the ConfigMap of the active site
//!
//! While something that an agent needs is missing, one that runs is left as it is: it knows better than we whether its
//! etcds are well. One that may not run, and one that is told to stop, is stopped.

use std::collections::BTreeMap;

use serde_json::Value;

use super::desired::Desired;
use super::manifests::{
    self, CONFIG_FILE, Mount, config_map, deployment, is_as_wanted, is_ours, secret_copy,
};
use super::observed::{Cluster, ClusterSeen, Fields, Observed};
use super::overlap::conflict;
use crate::api::mirror::{
    EtcdMirrorStatus, FenceMode, ForeignWrites, InitialSync, LeasePolicy, MirrorSite, MirrorState, SecretRef,
};
use crate::api::reason::Reason;
use crate::etcd::flags::{CLIENT_PORT, url};
use crate::mirror::agent::config as agent_config;
use crate::mirror::agent::config::{AgentConfig, Credentials, Fence, Limits, RunState, Site, Verify};
use crate::operator::names;

/// How often a kubelet is told to look again while the agent runs by another file.
const HAND_OVER_AGAIN_SECONDS: i64 = 10;

/// What to do, and what there is to tell.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// What should exist and does not, in this order.
    pub ensure: Vec<Ensure>,
    /// What was found, worst first.
    pub findings: Vec<Finding>,
    /// Of the file that an agent should run by; absent: none should run, or nothing is known of it.
    pub fingerprint: Option<String>,
}

/// Something that should be otherwise.
#[derive(PartialEq)]
pub enum Ensure {
    /// Server-side apply of an object that is ours.
    Apply {
        /// Kind of the object.
        kind: &'static str,
        /// All that we say of it.
        manifest: Value,
    },
    /// Makes a kubelet look at a Pod whose file has changed.
    Touch {
        /// Name of the Pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// Of the file; with more behind it, if the agent does not run by it yet.
        file: String,
    },
}

/// Some manifests hold keys of certificates.
impl std::fmt::Debug for Ensure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Apply { kind, manifest } => write!(formatter, "apply {kind} {}", name_of(manifest)),
            Self::Touch { pod, .. } => write!(formatter, "touch {pod}"),
        }
    }
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The stable word.
    pub reason: Reason,
    /// What was seen, what the operator does next, what a person can do.
    pub message: String,
    /// Whether nothing goes on without a person.
    pub stalled: bool,
}

impl Finding {
    /// The apiserver refused a write.
    pub fn refused(why: &str) -> Self {
        let message = format!(
            "The Kubernetes API refused a write: {why}. It is tried again, later and later. Remove what stands in the way (a quota, an admission policy, a missing right)."
        );
        Self::waiting(Reason::ReconcileError, message)
    }

    fn waiting(reason: Reason, message: String) -> Self {
        Self { reason, message, stalled: false }
    }

    fn stalled(reason: Reason, message: String) -> Self {
        Self { reason, message, stalled: true }
    }
}

/// Decides.
pub fn plan(desired: &Desired, observed: &Observed, before: &EtcdMirrorStatus) -> Plan {
    let mut plan = Plan::default();
    if desired.deleting {
        return plan;
    }
    let mut inputs = Vec::new();
    for site in &desired.sites {
        match input(desired, observed, site) {
            Ok(input) => inputs.push(input),
            Err(finding) => plan.findings.push(finding),
        }
    }
    let root = root(desired, observed).map_err(|finding| plan.findings.push(finding)).ok();
    let conflict = conflict(&desired.pair, &observed.others);
    let refused =
        conflict.is_some() || plan.findings.iter().any(|finding| finding.reason == Reason::ConsentMissing);
    plan.findings.extend(conflict.map(|conflict| Finding::stalled(conflict.reason, conflict.message)));
    let active = active(desired, observed, before);
    if let Some(input) = inputs.iter().find(|input| input.site.name == active) {
        want(desired, observed, &mut plan, "ConfigMap", active_map(desired, input));
    }
    if refused || desired.spec.state == MirrorState::Stopped {
        stop(desired, observed, &mut plan);
        return sorted(plan);
    }
    let (Ok([first, second]), Some(root)) = (<[Input; 2]>::try_from(inputs), root) else {
        return sorted(plan);
    };
    run(desired, observed, &mut plan, [first, second], root);
    agent_findings(observed, &mut plan);
    sorted(plan)
}

fn sorted(mut plan: Plan) -> Plan {
    plan.findings.sort_by_key(|finding| !finding.stalled);
    plan
}

/// The site that etcd's records call active: as the agent says, as it once said, or, before it ever did, as the spec.
pub fn active(desired: &Desired, observed: &Observed, before: &EtcdMirrorStatus) -> String {
    let told = observed.answer.as_ref().and_then(|answer| answer.as_ref().ok()?.active.clone());
    let known = |name: &String| desired.sites.iter().any(|site| site.name == *name);
    // The term comes from etcd's records only: without it the status says what the spec said.
    let once = before.source.clone().filter(|_| before.term.is_some());
    told.or(once).filter(known).unwrap_or_else(|| desired.spec.active.clone())
}

/// What an agent needs of a site.
struct Input {
    site: Site,
    mounts: Vec<Mount>,
    /// A Secret that is copied here, and what is in it.
    copy: Option<(String, Fields)>,
    /// Where applications find it.
    service: Vec<String>,
    /// Authorities of its servers, as PEM.
    authority: Option<String>,
    /// Secret in this namespace that opens it.
    secret: Option<String>,
}

fn input(desired: &Desired, observed: &Observed, site: &MirrorSite) -> Result<Input, Finding> {
    match (&site.external, &site.cluster_ref) {
        (Some(external), _) => {
            let tls = brought(observed, site, external.tls_secret_ref.as_ref(), check_tls)?;
            let auth = brought(observed, site, external.auth_secret_ref.as_ref(), check_auth)?;
            let (credentials, mounts) = mounted("site", &site.name, tls, auth);
            Ok(Input {
                site: Site { name: site.name.clone(), endpoints: external.endpoints.clone(), credentials },
                mounts,
                copy: None,
                service: external.endpoints.clone(),
                authority: tls.and_then(|(_, fields)| fields.text("ca.crt")),
                secret: tls.map(|(name, _)| name.to_owned()),
            })
        }
        (None, Some(_)) => of_cluster(desired, site, formed(desired, observed, site)?),
        (None, None) => {
            let message = format!(
                "The site {} has neither clusterRef nor external in spec.sites. Nothing is copied. Add one of them.",
                site.name
            );
            Err(Finding::stalled(Reason::InvalidSpec, message))
        }
    }
}

fn formed<'a>(desired: &Desired, observed: &'a Observed, site: &MirrorSite) -> Result<&'a Cluster, Finding> {
    let reference = site.cluster_ref.clone().unwrap_or_default();
    let namespace = reference.namespace.unwrap_or_else(|| desired.namespace.clone());
    let what = format!("The EtcdCluster {namespace}/{} of the site {}", reference.name, site.name);
    let seen = observed.clusters.get(&site.name).unwrap_or(&ClusterSeen::Missing);
    Err(match seen {
        ClusterSeen::Formed(cluster) => return Ok(cluster),
        ClusterSeen::Missing => Finding::stalled(
            Reason::SiteMissing,
            format!(
                "{what} does not exist. It is looked for every few seconds. Create it, or correct spec.sites."
            ),
        ),
        ClusterSeen::NoConsent => Finding::stalled(
            Reason::ConsentMissing,
            format!(
                "{what} is in another namespace, and has not consented: no agent runs. Whoever owns it consents with \
                 kubectl -n {namespace} annotate etcdcluster {} {}={}.",
                reference.name,
                names::ALLOW_MIRRORS_FROM,
                desired.namespace
            ),
        ),
        ClusterSeen::Forbidden(why) => Finding::stalled(
            Reason::SiteMissing,
            format!(
                "{what} cannot be read: {why}. It is tried every few seconds. Add the namespace to watchNamespaces of \
                 the operator's chart."
            ),
        ),
        ClusterSeen::Forming => Finding::waiting(
            Reason::SiteNotReady,
            format!("{what} has not formed. The agent is started when it has. See: kubectl quorate status."),
        ),
    })
}

/// Every voter is an endpoint of its own: what is asked of one must not be answered by another, which may be behind.
fn of_cluster(desired: &Desired, site: &MirrorSite, cluster: &Cluster) -> Result<Input, Finding> {
    let Cluster { namespace, name, members, tls, client } = cluster;
    let address = |member: &String| url(*tls, &names::address(namespace, name, member), CLIENT_PORT);
    let here = *namespace == desired.namespace;
    let mut copy = None;
    let secret = match client {
        None if *tls => {
            let message = format!(
                "The EtcdCluster {namespace}/{name} of the site {} brings its own certificates, and names none for \
                 clients. The agent waits for it. Set spec.tls.secrets.client of the EtcdCluster.",
                site.name
            );
            return Err(Finding::stalled(Reason::SecretDamaged, message));
        }
        None => None,
        Some((secret, fields)) => {
            let fields = fields.as_ref().ok_or_else(|| missing(secret, &site.name))?;
            check_tls(secret, &site.name, fields)?;
            let copied = names::site_secret(&desired.name, &site.name);
            if !here {
                copy = Some((copied.clone(), fields.clone()));
            }
            Some((if here { secret.clone() } else { copied }, fields))
        }
    };
    let tls_secret = secret.as_ref().map(|(name, fields)| (name.as_str(), *fields));
    let (credentials, mounts) = mounted("site", &site.name, tls_secret, None);
    Ok(Input {
        site: Site { name: site.name.clone(), endpoints: members.iter().map(address).collect(), credentials },
        mounts,
        copy,
        service: vec![url(*tls, &format!("{name}.{namespace}.svc"), CLIENT_PORT)],
        authority: tls_secret.and_then(|(_, fields)| fields.text("ca.crt")),
        secret: tls_secret.map(|(name, _)| name.to_owned()),
    })
}

type Named<'a> = Option<(&'a str, &'a Fields)>;

/// A Secret that the spec names, if it can be used.
fn brought<'a>(
    observed: &'a Observed,
    site: &MirrorSite,
    reference: Option<&'a SecretRef>,
    check: fn(&str, &str, &Fields) -> Result<(), Finding>,
) -> Result<Named<'a>, Finding> {
    let Some(SecretRef { name }) = reference else { return Ok(None) };
    let fields = observed.secrets.get(name).ok_or_else(|| missing(name, &site.name))?;
    check(name, &site.name, fields)?;
    Ok(Some((name, fields)))
}

fn missing(secret: &str, site: &str) -> Finding {
    let message = format!(
        "The Secret {secret} of the site {site} does not exist. It is looked for every few seconds. Create it, or \
         correct its name in spec."
    );
    Finding::stalled(Reason::SecretDamaged, message)
}

fn check_tls(secret: &str, site: &str, fields: &Fields) -> Result<(), Finding> {
    let problem = match (fields.has("ca.crt"), fields.has("tls.crt"), fields.has("tls.key")) {
        (true, true, true) | (true, false, false) => return Ok(()),
        (false, _, _) => "has no ca.crt, the authorities of the servers",
        (true, true, false) => "has a tls.crt without its tls.key",
        (true, false, true) => "has a tls.key without its tls.crt",
    };
    Err(incomplete(secret, site, problem))
}

fn check_auth(secret: &str, site: &str, fields: &Fields) -> Result<(), Finding> {
    if fields.has("username") && fields.has("password") {
        return Ok(());
    }
    Err(incomplete(secret, site, "must have username and password"))
}

fn incomplete(secret: &str, site: &str, problem: &str) -> Finding {
    let message = format!(
        "The Secret {secret} of the site {site} {problem}. It is read every few seconds. Add what is missing."
    );
    Finding::stalled(Reason::SecretDamaged, message)
}

/// Files of a site's Secrets, and where they are mounted.
fn mounted(use_: &str, site: &str, tls: Named, auth: Named) -> (Credentials, Vec<Mount>) {
    let mount = |kind: &str, secret: &str| Mount {
        volume: format!("{use_}-{site}-{kind}"),
        secret: secret.to_owned(),
        folder: format!("/etc/quorate/{use_}/{site}/{kind}"),
    };
    let tls_mount = tls.map(|(secret, _)| mount("tls", secret));
    let auth_mount = auth.map(|(secret, _)| mount("auth", secret));
    let file =
        |mount: &Option<Mount>, name: &str| mount.as_ref().map(|mount| format!("{}/{name}", mount.folder));
    let pair = tls_mount.clone().filter(|_| tls.is_some_and(|(_, fields)| fields.has("tls.crt")));
    let credentials = Credentials {
        authority_file: file(&tls_mount, "ca.crt"),
        certificate_file: file(&pair, "tls.crt"),
        key_file: file(&pair, "tls.key"),
        user_file: file(&auth_mount, "username"),
        password_file: file(&auth_mount, "password"),
    };
    (credentials, [tls_mount, auth_mount].into_iter().flatten().collect())
}

/// The fence, and Secrets that it needs.
fn root(desired: &Desired, observed: &Observed) -> Result<(Option<Fence>, Vec<Mount>), Finding> {
    let Some(fence) = &desired.spec.fence else { return Ok((None, Vec::new())) };
    match fence.mode {
        FenceMode::Manual => Ok((Some(Fence::Manual), Vec::new())),
        FenceMode::Roles => {
            let (mut root, mut mounts) = (BTreeMap::new(), Vec::new());
            for access in &fence.root {
                let site = MirrorSite { name: access.site.clone(), ..MirrorSite::default() };
                let tls = brought(observed, &site, access.tls_secret_ref.as_ref(), check_tls)?;
                let auth = brought(observed, &site, access.auth_secret_ref.as_ref(), check_auth)?;
                let (credentials, more) = mounted("fence", &access.site, tls, auth);
                root.insert(access.site.clone(), credentials);
                mounts.extend(more);
            }
            Ok((Some(Fence::Roles { roles: fence.roles.clone(), root }), mounts))
        }
    }
}

/// Brings file and agent to what is asked for.
fn run(
    desired: &Desired,
    observed: &Observed,
    plan: &mut Plan,
    inputs: [Input; 2],
    (fence, root_mounts): (Option<Fence>, Vec<Mount>),
) {
    for (name, fields) in inputs.iter().filter_map(|input| input.copy.as_ref()) {
        want(desired, observed, plan, "Secret", secret_copy(desired, name, fields));
    }
    let mounts: Vec<Mount> =
        inputs.iter().flat_map(|input| input.mounts.clone()).chain(root_mounts).collect();
    let config = config(desired, inputs.map(|input| as_root(desired, fence.as_ref(), input.site)), fence);
    let text = serde_saphyr::to_string(&config).unwrap_or_default();
    let file = config_map(desired, &names::agent(&desired.name), &[(CONFIG_FILE, text)]);
    want(desired, observed, plan, "ConfigMap", file);
    want(desired, observed, plan, "Deployment", deployment(desired, &mounts, 1));
    hand_over(observed, plan, &config);
    plan.fingerprint = Some(config.fingerprint);
}

/// Makes the kubelet hand the file over: at once, and again every few seconds until the agent says that it runs by it,
/// since a kubelet may look before it has heard of the file's change.
fn hand_over(observed: &Observed, plan: &mut Plan, config: &AgentConfig) {
    let Some((name, pod)) = observed.pods.iter().find(|(_, pod)| pod.running) else { return };
    let answer = observed.answer.as_ref().and_then(|answer| answer.as_ref().ok());
    let by_another = answer.is_some_and(|agent| agent.fingerprint != config.fingerprint);
    let (digest, told) = (config.digest(), pod.config.clone().unwrap_or_default());
    let file = match by_another {
        true => format!("{digest}-{}", observed.now.as_second() / HAND_OVER_AGAIN_SECONDS),
        false if told.starts_with(&digest) => return,
        false => digest,
    };
    if told != file {
        plan.ensure.push(Ensure::Touch { pod: name.clone(), uid: pod.uid.clone(), file });
    }
}

/// The Secret of an EtcdCluster's clients is the applications': where their role is taken from them, the mirror must come as
/// somebody else, and the fence has root.
fn as_root(desired: &Desired, fence: Option<&Fence>, site: Site) -> Site {
    let is_cluster =
        desired.sites.iter().any(|wanted| wanted.name == site.name && wanted.cluster_ref.is_some());
    match fence {
        Some(Fence::Roles { root, .. }) if is_cluster => {
            let root = root.get(&site.name).cloned().unwrap_or_default();
            Site { credentials: site.credentials.of_root(&root), ..site }
        }
        Some(Fence::Roles { .. } | Fence::Manual) | None => site,
    }
}

/// Takes the agent away, if there is one.
fn stop(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let key = ("Deployment", names::agent(&desired.name));
    let Some(agent) = observed.children.get(&key).filter(|agent| is_ours(desired, agent)) else { return };
    if agent.pointer("/spec/replicas").and_then(Value::as_i64) == Some(0) {
        return;
    }
    // Without a Pod it needs no Secrets.
    let manifest = deployment(desired, &[], 0);
    plan.ensure.push(Ensure::Apply { kind: "Deployment", manifest });
}

/// Says what should exist, unless it does; an object of somebody else's is left alone.
fn want(desired: &Desired, observed: &Observed, plan: &mut Plan, kind: &'static str, manifest: Value) {
    let name = name_of(&manifest);
    match observed.children.get(&(kind, name.clone())) {
        Some(found) if !is_ours(desired, found) => {
            let message = format!(
                "The {kind} {name} exists and is not this EtcdMirror's: it is not changed. Delete or rename it, or \
                 use another name for the EtcdMirror."
            );
            plan.findings.push(Finding::stalled(Reason::NameTaken, message));
        }
        Some(found) if is_as_wanted(&manifest, found) => {}
        Some(_) | None => plan.ensure.push(Ensure::Apply { kind, manifest }),
    }
}

pub(super) fn name_of(manifest: &Value) -> String {
    manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// For applications: where to write.
fn active_map(desired: &Desired, input: &Input) -> Value {
    let endpoints = input.service.join(",");
    let mut data = vec![
        ("site", input.site.name.clone()),
        ("endpoints", endpoints.clone()),
        ("ETCDCTL_ENDPOINTS", endpoints),
    ];
    data.extend(input.authority.clone().map(|authority| ("ca.crt", authority)));
    data.extend(input.secret.clone().map(|secret| ("clientSecret", secret)));
    manifests::config_map(desired, &names::active(&desired.name), &data)
}

/// What the agent is told.
fn config(desired: &Desired, sites: [Site; 2], fence: Option<Fence>) -> AgentConfig {
    let spec = &desired.spec;
    let positive = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
    let limits = spec.limits.unwrap_or_default();
    let config = AgentConfig {
        fingerprint: String::new(),
        namespace: desired.namespace.clone(),
        name: desired.name.clone(),
        id: spec.id.clone(),
        sites,
        active: spec.active.clone(),
        agreed_term: desired.agreed_term,
        mappings: spec.mappings.iter().map(|mapping| mapping.prefixes.clone()).collect(),
        ignore: spec.ignore.clone(),
        ignore_site: spec.ignore_site.clone(),
        state: match spec.state {
            MirrorState::Running => RunState::Running,
            MirrorState::Paused | MirrorState::Stopped => RunState::Paused,
        },
        overwrite: spec.initial_sync == InitialSync::Overwrite,
        prune: spec.prune,
        leases: match spec.leases {
            LeasePolicy::Strip => agent_config::LeasePolicy::Strip,
            LeasePolicy::Skip => agent_config::LeasePolicy::Skip,
            LeasePolicy::Recreate => agent_config::LeasePolicy::Recreate,
        },
        foreign_writes: match spec.foreign_writes {
            ForeignWrites::Report => agent_config::ForeignWrites::Report,
            ForeignWrites::Repair => agent_config::ForeignWrites::Repair,
        },
        verify: desired.verify_every.map(|every| Verify { every_seconds: every.as_secs() }),
        limits: Limits {
            keys_per_second: positive(limits.keys_per_second),
            bytes_per_second: positive(limits.bytes_per_second),
        },
        fence,
        requests: desired.requests.clone(),
    };
    config.fingerprinted()
}

/// What the Pod says while the agent does not speak for itself.
fn agent_findings(observed: &Observed, plan: &mut Plan) {
    if observed.answer.as_ref().is_some_and(Result::is_ok) {
        return;
    }
    for (name, pod) in observed.pods.iter().filter(|(_, pod)| !pod.deleting) {
        if let Some(why) = &pod.unschedulable {
            let message = format!(
                "The agent's Pod {name} finds no node: {why}. It waits. Free a node, or change spec.agent.podTemplate or \
                 spec.agent.resources."
            );
            plan.findings.push(Finding::stalled(Reason::Unschedulable, message));
        }
        match &pod.waiting {
            Some((word, why))
                if ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"].contains(&word.as_str()) =>
            {
                let message = format!(
                    "The image of the agent's Pod {name} cannot be pulled: {why}. The kubelet tries again. It is the \
                     operator's own image; its registry may need spec.agent.podTemplate.imagePullSecrets."
                );
                plan.findings.push(Finding::stalled(Reason::ImagePullFailed, message));
            }
            Some((word, _)) if word == "CrashLoopBackOff" => {
                let ended = pod.last_exit.clone().unwrap_or_else(|| "it ended".to_owned());
                let message = format!(
                    "The agent does not stay up: {ended}. It is started again, later and later. See: kubectl logs {name} \
                     --previous."
                );
                plan.findings.push(Finding::waiting(Reason::AgentDown, message));
            }
            Some(_) | None => {}
        }
    }
}
