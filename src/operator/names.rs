//! Names, labels and annotations of everything that the operator makes.

/// Label: name of the EtcdCluster.
pub const CLUSTER: &str = "quorate.dev/cluster";
/// Label: UID of the EtcdCluster. A volume with another one is never touched.
pub const CLUSTER_UID: &str = "quorate.dev/cluster-uid";
/// Label: name of the member.
pub const MEMBER: &str = "quorate.dev/member";
/// Label on a Pod: [`VOTER`] once its identity is on record; what the client Service selects.
pub const ROLE: &str = "quorate.dev/role";
/// Value of [`ROLE`].
pub const VOTER: &str = "voter";
/// Annotation on a volume: etcd's cluster ID, once its member has reported it.
pub const CLUSTER_ID: &str = "quorate.dev/cluster-id";
/// Annotation on a volume: etcd's member ID, once its member has reported it, or was added.
pub const MEMBER_ID: &str = "quorate.dev/member-id";
/// Annotation on a volume: `true` once etcd has run on it, so that its data must be there.
pub const STARTED: &str = "quorate.dev/started";
/// Annotation on a volume: rises when the member is wiped in place.
pub const INCARNATION: &str = "quorate.dev/incarnation";
/// Annotation on a volume: `joining`, `member` or `retired`.
pub const STATE: &str = "quorate.dev/state";
/// Annotation on a volume: `wipe` or `leave`, and the ID of the member that makes way for another.
pub const INTENT: &str = "quorate.dev/intent";
/// Annotation on a volume: ID of the member that its member is to replace.
pub const REPLACES: &str = "quorate.dev/replaces";
/// Annotation on a volume: a size of its own, to which spec.storage.size does not apply.
pub const SIZE: &str = "quorate.dev/size";
/// Annotation on a volume: further labels that the node of its member must have, as JSON.
pub const NODE_SELECTOR: &str = "quorate.dev/node-selector";
/// Annotation on a volume: when it is deleted, since its member was replaced.
pub const DELETE_AFTER: &str = "quorate.dev/delete-after";
/// Label on an EtcdMemberReplacement: [`REPAIR`] where the operator made it.
pub const CREATED_BY: &str = "quorate.dev/created-by";
/// Value of [`CREATED_BY`].
pub const REPAIR: &str = "repair";
/// Annotation on an EtcdMemberReplacement that the operator made: why.
pub const WHY: &str = "quorate.dev/why";
/// Annotation on an EtcdMemberReplacement that the operator made: `true` if nothing was proven but that its member was
/// down, so that spec.repair.maxPerHour counts it.
pub const COUNTED: &str = "quorate.dev/counted";
/// Annotation on a Pod: hash of what the spec made of it.
pub const TEMPLATE: &str = "quorate.dev/template";
/// Annotation on a PodDisruptionBudget: the members that clients reach.
pub const SERVING: &str = "quorate.dev/serving";
/// Annotation on an EtcdCluster: UID of an earlier one whose volumes it takes over.
pub const ADOPT: &str = "quorate.dev/adopt";
/// Annotation on an EtcdCluster: a value that is new asks for new certificate authorities.
pub const ROTATE_AUTHORITY: &str = "quorate.dev/rotate-authority";
/// Annotation on a Pod: which certificates its Secret holds. A Pod that changes is looked at by its kubelet at once,
/// which then also renews the mounted files; by itself it does so about once a minute.
pub const CERTIFICATES: &str = "quorate.dev/certificates";
/// Label: name of the EtcdMirror.
pub const MIRROR: &str = "quorate.dev/mirror";
/// Label: UID of the EtcdMirror.
pub const MIRROR_UID: &str = "quorate.dev/mirror-uid";
/// Annotation on an agent's Pod: which file it should have. A Pod that changes is looked at by its kubelet at once.
pub const CONFIG: &str = "quorate.dev/config";
/// Annotation on an EtcdCluster: namespaces, separated by commas, whose EtcdMirrors may use it; `*` stands for all.
pub const ALLOW_MIRRORS_FROM: &str = "quorate.dev/allow-mirrors-from";
/// Annotation on an EtcdMirror: a value that is new asks for a comparison of both sides.
pub const VERIFY: &str = "quorate.dev/verify";
/// Annotation on an EtcdMirror: a value that is new asks for a scan; the hash of a plan approves that plan.
pub const RESYNC: &str = "quorate.dev/resync";
/// Field manager of the operator.
pub const MANAGER: &str = "quorate";

/// Name of a member, its Pod and its volume.
pub fn member(cluster: &str, serial: i32) -> String {
    format!("{cluster}-{serial}")
}

/// The serial in a member's name; `None` if the name is not one of this cluster's.
pub fn serial(cluster: &str, name: &str) -> Option<i32> {
    let digits = name.strip_prefix(cluster)?.strip_prefix('-')?;
    let serial: i32 = digits.parse().ok()?;
    // "main-007" is somebody else's.
    (serial.to_string() == digits).then_some(serial)
}

/// Headless Service of the members.
pub fn peers(cluster: &str) -> String {
    format!("{cluster}-peers")
}

/// DNS name under which members and the operator know a member.
pub fn address(namespace: &str, cluster: &str, member: &str) -> String {
    format!("{member}.{}.{namespace}.svc", peers(cluster))
}

/// Secret with the certificate authorities.
pub fn authority(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// Secret with the operator's own client certificate.
pub fn operator_certificate(cluster: &str) -> String {
    format!("{cluster}-operator")
}

/// Secret with a client certificate for applications.
pub fn client_certificate(cluster: &str) -> String {
    format!("{cluster}-client")
}

/// Secret with a member's server and peer certificates.
pub fn member_certificate(member: &str) -> String {
    format!("{member}-tls")
}

/// ConfigMap with what an application needs to connect.
pub fn connection(cluster: &str) -> String {
    format!("{cluster}-connection")
}

/// Deployment of a mirror's agent, and ConfigMap with its file.
pub fn agent(mirror: &str) -> String {
    format!("{mirror}-agent")
}

/// ConfigMap that names the active site of a mirror.
pub fn active(mirror: &str) -> String {
    format!("{mirror}-active")
}

/// Copy of the client Secret of an EtcdCluster in another namespace: Pods mount those of their own only.
pub fn site_secret(mirror: &str, site: &str) -> String {
    format!("{mirror}-agent-{site}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_would_give_are_members() {
        let of = |name| serial("main", name);
        assert_eq!(
            (of("main-0"), of("main-12"), of("main-01"), of("main-x"), of("main2-1")),
            (Some(0), Some(12), None, None, None)
        );
    }
}
