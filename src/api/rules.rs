//! What `kubectl apply` refuses: validation rules of the schema, in CEL.
//!
//! Separate because the expressions are a language of their own: a field's declaration names its rules, this file
//! says them. The apiserver evaluates them, so they hold for every writer, also while no operator runs.
//!
//! **Invariant:** every message ends with the fix, and every rule can be evaluated without a cluster
//! (`tests/it/bad_input.rs` does), so `sortBy`, `cel.bind` and comprehensions of two arguments are not used.

use kube::core::{Message, Rule};

/// A size that Kubernetes, etcd and [`super::quantity`] read alike; few enough digits to fit 64 bits.
const SIZE: &str = "^([1-9][0-9]{0,9}(Ki|Mi)|[1-9][0-9]{0,5}(Gi|Ti))$";
/// A duration that Go and [`super::duration`] read alike.
const DURATION: &str = "^([0-9]{1,6}(h|m|s))+$";
/// A release that may be asked for: a minor, or a patch of it.
const VERSION: &str = "^3[.][567]([.](0|[1-9][0-9]{0,2}))?$";

/// Flags that the operator owns, by what to do instead; those of every minor (`etcd --help` of 3.5, 3.6 and 3.7).
const OWNED_FLAGS: &[(&str, &[&str])] = &[
    ("use spec.quotaBackend", &["quota-backend-bytes"]),
    ("use spec.compaction", &["auto-compaction-mode", "auto-compaction-retention"]),
    ("use spec.logLevel", &["log-level"]),
    (
        "the operator makes and mounts certificates, use spec.tls",
        &[
            "cert-file",
            "key-file",
            "trusted-ca-file",
            "client-cert-auth",
            "client-cert-file",
            "client-key-file",
            "client-crl-file",
            "client-cert-allowed-hostname",
            "peer-cert-file",
            "peer-key-file",
            "peer-trusted-ca-file",
            "peer-client-cert-auth",
            "peer-client-cert-file",
            "peer-client-key-file",
            "peer-crl-file",
            "peer-cert-allowed-cn",
            "peer-cert-allowed-hostname",
            "tls-min-version",
            "self-signed-cert-validity",
        ],
    ),
    (
        "the operator gives every member its identity and its place, remove it",
        &[
            "name",
            "data-dir",
            "wal-dir",
            "listen-client-urls",
            "listen-client-http-urls",
            "listen-peer-urls",
            "listen-metrics-urls",
            "advertise-client-urls",
            "initial-advertise-peer-urls",
            "initial-cluster",
            "initial-cluster-state",
            "initial-cluster-token",
            "discovery",
            "discovery-cacert",
            "discovery-cert",
            "discovery-dial-timeout",
            "discovery-endpoints",
            "discovery-fallback",
            "discovery-insecure-skip-tls-verify",
            "discovery-insecure-transport",
            "discovery-keepalive-time",
            "discovery-keepalive-timeout",
            "discovery-key",
            "discovery-password",
            "discovery-proxy",
            "discovery-request-timeout",
            "discovery-srv",
            "discovery-srv-name",
            "discovery-token",
            "discovery-user",
            "proxy",
            "config-file",
        ],
    ),
    (
        "the guard reads the log and the kubelet keeps it, remove it",
        &["log-format", "log-outputs", "logger", "enable-log-rotation", "log-rotation-config-json"],
    ),
    (
        "the operator sets it so that damage is noticed and membership stays safe, remove it",
        &[
            "feature-gates",
            "experimental-initial-corrupt-check",
            "experimental-compact-hash-check-enabled",
            "max-learners",
            "strict-reconfig-check",
        ],
    ),
    (
        "it can cost acknowledged writes or let strangers in, remove it",
        &[
            "force-new-cluster",
            "unsafe-no-fsync",
            "auto-tls",
            "peer-auto-tls",
            "peer-skip-client-san-verification",
            "experimental-peer-skip-client-san-verification",
            "enable-pprof",
            "enable-v2",
            "experimental-enable-v2v3",
            "v2-deprecation",
        ],
    ),
];

/// A rule whose message is an expression too, to show the values that were found.
pub(super) fn explained(rule: String, message: &str) -> Rule {
    Rule { message: Some(Message::Expression(message.to_owned())), ..Rule::new(rule) }
}

/// Names of children are made of the cluster's: all of them must be possible and nobody else's.
pub(super) fn name_leaves_room_for_children() -> Rule {
    Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message(
        "metadata.name must be at most 40 characters: small letters, digits and dashes, beginning with a letter. \
         Names of Pods, Services and certificates are made of it. Choose a shorter or simpler name.",
    )
}

/// `main-peers` is the headless Service of `main`.
pub(super) fn name_is_not_anothers_service() -> Rule {
    Rule::new("!self.metadata.name.endsWith('-peers')").message(
        "metadata.name may not end with -peers: a Service of the EtcdCluster without that ending has this name. \
         Choose another name.",
    )
}

pub(super) fn replicas_are_not_none() -> Rule {
    Rule::new("self != 0").message(
        "replicas cannot be 0: a cluster without members cannot be asked anything. To stop it, delete the \
         EtcdCluster: its volumes stay.",
    )
}

pub(super) fn replicas_are_odd() -> Rule {
    Rule::new("self in [0, 1, 3, 5, 7]").message(
        "replicas must be 1, 3, 5 or 7: an even count tolerates no more failures than one fewer, and more than 7 \
         only make writes slower. Use 3 or 5.",
    )
}

pub(super) fn version_is_known() -> Rule {
    explained(
        format!("self.matches('{VERSION}')"),
        "'version ' + self + ' is not known. Use 3.5, 3.6 or 3.7, or a patch of one of them such as 3.6.16.'",
    )
}

/// The floors are those of `etcd::version`; a test compares them.
pub(super) fn version_is_not_dangerous() -> Rule {
    explained(
        format!(
            "!self.matches('{VERSION}') || self.split('.').size() < 3 || int(self.split('.')[2]) >= \
             (self.startsWith('3.5') ? 33 : (self.startsWith('3.6') ? 14 : 1))"
        ),
        "'version ' + self + ' has known bugs that lose data or let strangers in. Use ' + \
         (self.startsWith('3.5') ? '3.5.33' : (self.startsWith('3.6') ? '3.6.14' : '3.7.1')) + ' or newer.'",
    )
}

/// Upgrades go one minor at a time. Of the minors that are known only 3.7 is two above another; a rule for each
/// such pair is cheaper for the apiserver than arithmetic.
pub(super) fn version_skips_no_minor() -> Rule {
    explained(
        "!self.spec.version.startsWith('3.7') || !oldSelf.spec.version.startsWith('3.5')".to_owned(),
        "'version ' + oldSelf.spec.version + ' -> ' + self.spec.version + ' skips 3.6; upgrade one minor at a \
         time. Use 3.6 first.'",
    )
    .field_path(".spec.version")
}

/// A cluster is upgraded when its last member is: the spec may be ahead of the members by one minor only.
pub(super) fn version_waits_for_members() -> Rule {
    explained(
        "self.spec.version == oldSelf.spec.version || !self.spec.version.startsWith('3.7') || !has(self.status) || \
         !has(self.status.members) || \
         !self.status.members.exists(member, has(member.version) && member.version.startsWith('3.5.'))"
            .to_owned(),
        "'version ' + self.spec.version + ' skips 3.6 for members that still run 3.5; upgrade one minor at a time. \
         Use 3.6 until every member runs it.'",
    )
    .field_path(".spec.version")
}

/// Data are written in the new format once *all* members run the new minor. While one still reports the old, or
/// before the cluster has formed, the way back is open: a version that cannot be pulled must not be a trap.
pub(super) fn version_does_not_go_down() -> Rule {
    explained(
        format!(
            "!self.spec.version.matches('{VERSION}') || !oldSelf.spec.version.matches('{VERSION}') || \
             self.spec.version.substring(0, 3) >= oldSelf.spec.version.substring(0, 3) || \
             !has(self.status) || !has(self.status.clusterID) || (has(self.status.members) && \
             self.status.members.exists(member, has(member.version) && \
             member.version.startsWith(self.spec.version.substring(0, 3) + '.')))"
        ),
        "'version cannot go down from ' + oldSelf.spec.version + ' to ' + self.spec.version + ': the data may be \
         in the newer format. Keep ' + oldSelf.spec.version + ', or restore a backup into a new EtcdCluster.'",
    )
    .field_path(".spec.version")
}

pub(super) fn repository_has_no_tag() -> Rule {
    explained(
        "self.matches('^([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*$')".to_owned(),
        "'image.repository ' + self + ' must be a repository without tag or digest, such as \
         registry.example/etcd. The tag is made of spec.version; use image.digest for a digest.'",
    )
}

pub(super) fn digest_is_sha256() -> Rule {
    Rule::new("self.matches('^sha256:[0-9a-f]{64}$')").message(
        "image.digest must be sha256: and 64 hexadecimal digits. Copy it from `docker images --digests`.",
    )
}

/// `field` is the path below `spec`.
pub(super) fn is_size(field: &str) -> Rule {
    explained(
        format!("self.matches('{SIZE}')"),
        &format!(
            "'{field} ' + self + ' is not a size. Use a whole number with Ki, Mi, Gi or Ti, such as 8Gi.'"
        ),
    )
}

pub(super) fn storage_only_grows() -> Rule {
    explained(
        format!(
            "!self.matches('{SIZE}') || !oldSelf.matches('{SIZE}') || \
             quantity(self).compareTo(quantity(oldSelf)) >= 0"
        ),
        "'storage.size can only grow (' + oldSelf + ' -> ' + self + '). Keep ' + oldSelf + ', or create a new \
         EtcdCluster with smaller volumes and copy the keys.'",
    )
}

pub(super) fn quota_fits_the_volume() -> Rule {
    explained(
        format!(
            "!self.quotaBackend.matches('{SIZE}') || !self.storage.size.matches('{SIZE}') || \
             quantity(self.quotaBackend).compareTo(quantity(self.storage.size)) < 0"
        ),
        "'quotaBackend ' + self.quotaBackend + ' must be smaller than storage.size ' + self.storage.size + ': the \
         log and snapshots need space too. Lower quotaBackend or raise storage.size.'",
    )
}

pub(super) fn quota_is_enough() -> Rule {
    explained(
        format!("!self.matches('{SIZE}') || quantity(self).compareTo(quantity('16Mi')) >= 0"),
        "'quotaBackend ' + self + ' is too small for etcd to start with. Use 16Mi or more.'",
    )
}

pub(super) fn resources_are_quantities() -> Rule {
    let good = |map: &str| {
        format!(
            "(!has(self.{map}) || self.{map}.all(name, isQuantity(self.{map}[name]) && \
             !quantity(self.{map}[name]).isLessThan(quantity('0'))))"
        )
    };
    Rule::new(format!("{} && {}", good("requests"), good("limits"))).message(
        "resources.requests and resources.limits must be amounts that are not negative. Use such as cpu: 500m or \
         memory: 1Gi.",
    )
}

pub(super) fn requests_fit_limits() -> Rule {
    Rule::new(
        "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || \
         !isQuantity(self.requests[name]) || !isQuantity(self.limits[name]) || \
         quantity(self.requests[name]).compareTo(quantity(self.limits[name])) <= 0)",
    )
    .message(
        "resources.requests may not be above resources.limits of the same name. Lower the request or raise the \
         limit.",
    )
}

pub(super) fn retention_is_a_duration() -> Rule {
    explained(
        format!(
            "self.mode != 'Periodic' || (self.retention.matches('{DURATION}') && \
             duration(self.retention) > duration('0s'))"
        ),
        "'compaction.retention ' + self.retention + ' is not a duration. In mode Periodic use one such as 1h or \
         30m; mode Disabled compacts nothing.'",
    )
}

pub(super) fn retention_is_a_number() -> Rule {
    explained(
        "self.mode != 'Revision' || self.retention.matches('^[1-9][0-9]{0,14}$')".to_owned(),
        "'compaction.retention ' + self.retention + ' is not a number of revisions. In mode Revision use one such \
         as 10000; mode Disabled compacts nothing.'",
    )
}

pub(super) fn deadline_is_a_duration() -> Rule {
    explained(
        format!("self.matches('{DURATION}') && duration(self) >= duration('1m')"),
        "'progressDeadline ' + self + ' is not a duration of at least one minute. Use one such as 15m or 1h30m.'",
    )
}

pub(super) fn tls_mode_stays() -> Rule {
    explained(
        "self == oldSelf".to_owned(),
        "'tls.mode cannot change in place (' + oldSelf + ' -> ' + self + '): members of both kinds cannot talk to \
         each other. Keep ' + oldSelf + ', or create a new EtcdCluster and copy the keys.'",
    )
}

pub(super) fn secrets_are_named() -> Rule {
    Rule::new("self.mode != 'Secrets' || has(self.secrets)").message(
        "tls.mode Secrets needs tls.secrets with the names of your Secrets. Add server, peer and operator, or use mode \
         OperatorManaged.",
    )
}

pub(super) fn secrets_are_used() -> Rule {
    Rule::new("self.mode == 'Secrets' || !has(self.secrets)").message(
        "tls.secrets is only used in tls.mode Secrets: in the others it would be ignored. Use mode Secrets, or remove \
         tls.secrets.",
    )
}

pub(super) fn rotation_is_of_durations() -> Rule {
    let good = |field: &str| format!("self.{field}.matches('{DURATION}')");
    Rule::new(format!("{} && {} && {}", good("renewBefore"), good("leafLife"), good("authorityLife"))).message(
        "tls.rotation.renewBefore, leafLife and authorityLife must be durations. Use such as 720h, 8760h and 87600h.",
    )
}

pub(super) fn rotation_leaves_time() -> Rule {
    let good = |field: &str| format!("!self.{field}.matches('{DURATION}')");
    let bad = format!("{} || {} || {}", good("renewBefore"), good("leafLife"), good("authorityLife"));
    let before = "duration(self.renewBefore)";
    explained(
        format!(
            "{bad} || ({before} >= duration('10s') && duration(self.leafLife) >= {before} + {before} && \
             duration(self.authorityLife) >= {before} + {before} + {before} + {before} && \
             duration(self.authorityLife) >= duration(self.leafLife))"
        ),
        "'tls.rotation leaves no time to renew: renewBefore ' + self.renewBefore + ', leafLife ' + self.leafLife + \
         ', authorityLife ' + self.authorityLife + '. Use a renewBefore of at least 10s, a leafLife of at least twice \
         that, and an authorityLife of at least four times that and not below leafLife.'",
    )
}

pub(super) fn auth_needs_certificates() -> Rule {
    Rule::new("!self.auth.enabled || self.tls.mode != 'Disabled'").message(
        "auth.enabled needs certificates, because etcd's users are their common names, and tls.mode is Disabled. Set \
         auth.enabled to false, or make a new EtcdCluster with tls.mode OperatorManaged.",
    )
}

pub(super) fn grace_is_enough() -> Rule {
    Rule::new("self >= 30 && self <= 3600").message(
        "podTemplate.terminationGracePeriodSeconds must be from 30 to 3600: etcd hands over and flushes in that \
         time. Use 60.",
    )
}

pub(super) fn user_is_not_root() -> Rule {
    Rule::new("self >= 1 && self <= 2147483647")
        .message("podTemplate.runAsUser must be from 1 to 2147483647: members never run as root. Use 65532.")
}

/// `what` is `labels` or `annotations`.
pub(super) fn keys_are_free(what: &str) -> Rule {
    Rule::new("self.all(key, !key.startsWith('quorate.dev/') && !key.startsWith('app.kubernetes.io/'))").message(
        format!(
            "podTemplate.metadata.{what} may not begin with quorate.dev/ or app.kubernetes.io/: the operator finds \
             its Pods by them. Use a prefix of your own."
        )
        .as_str(),
    )
}

pub(super) fn flags_are_names() -> Rule {
    Rule::new("self.all(flag, flag.matches('^[a-z][a-z0-9-]*$'))").message(
        "extraArgs are names of etcd's flags in small letters with their values. Leave out the leading dashes: \
         heartbeat-interval: \"200\".",
    )
}

/// Says for each flag what to do instead of setting it. The message is put together from constants, because the
/// apiserver takes a key of a map for unbounded, and refuses a message that might be as long.
pub(super) fn flags_are_not_owned() -> Rule {
    let all: Vec<String> =
        OWNED_FLAGS.iter().flat_map(|(_, flags)| *flags).map(|flag| format!("'{flag}'")).collect();
    let mut message = "'extraArgs may not set these flags.'".to_owned();
    for (advice, flags) in OWNED_FLAGS {
        for flag in *flags {
            message += &format!(" + ('{flag}' in self ? ' {flag}: {advice}.' : '')");
        }
    }
    explained(format!("self.all(flag, !(flag in [{}]))", all.join(", ")), &message)
}

/// `field` is the path below `spec`.
pub(super) fn is_duration(field: &str) -> Rule {
    explained(
        format!("self.matches('{DURATION}') && duration(self) >= duration('10s')"),
        &format!("'{field} ' + self + ' is not a duration of at least 10s. Use one such as 10m or 1h30m.'"),
    )
}

/// `field` is the path below `spec`.
pub(super) fn is_hexadecimal(field: &str) -> Rule {
    explained(
        "self.matches('^[0-9a-fA-F]+$')".to_owned(),
        &format!(
            "'{field} ' + self + ' is not hexadecimal. Copy it from kubectl get ec -o yaml, such as 8e9e05c52164694d.'"
        ),
    )
}

/// A replacement is done once: what it asked for must be what was done.
pub(super) fn replacement_stays() -> Rule {
    Rule::new("!has(oldSelf.spec) || self.spec == oldSelf.spec").message(
        "spec of an EtcdMemberReplacement cannot change: it is done once. Delete it, which takes back what has not \
         begun, and create another one.",
    )
}

pub(super) fn one_member_is_named() -> Rule {
    Rule::new("[has(self.member), has(self.memberID), has(self.node)].exists_one(given, given)").message(
        "exactly one of member, memberID and node must be given, so that it is clear who is replaced. Keep one of \
         them.",
    )
}

pub(super) fn kept_volumes_are_removed_first() -> Rule {
    Rule::new("!(self.volume == 'Keep' && self.strategy == 'AddFirst')").message(
        "volume Keep and strategy AddFirst contradict each other: the old member uses the volume until it has left. \
         Use volume New, or strategy RemoveFirst.",
    )
}

pub(super) fn kept_volumes_stay_as_they_are() -> Rule {
    Rule::new("!(self.volume == 'Keep' && (has(self.storage) || has(self.placement)))").message(
        "storage and placement are of a new volume, but volume is Keep. Use volume New, or remove them.",
    )
}
