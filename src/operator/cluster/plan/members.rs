//! Each member's volume and Pod.

use std::collections::BTreeSet;

use super::super::credentials::LeafState;
use super::super::desired::Desired;
use super::super::manifests::{pod as pods, volume as volumes};
use super::super::observed::{Intent, MemberPod, Observed, Volume, VolumeState};
use super::membership::{Joiners, learners_at_once, leaving};
use super::roster::Roster;
use super::{Ensure, Finding, Plan, Step, exchange, is_ours, owns};
use crate::api::reason::Reason;
use crate::etcd::flags::InitialState;
use crate::etcd::identity::bootstrap_member_id;
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

pub(super) fn rule(desired: &Desired, observed: &Observed, plan: &mut Plan) {
    let names = observed.record.member_names(&desired.name);
    let missing = names.iter().filter(|name| !observed.volumes.contains_key(*name)).count();
    if observed.record.cluster_id.is_some() && missing == names.len() {
        plan.findings.push(Finding::stalled(
            Reason::AllMembersLost,
            None,
            format!("All {missing} volumes of the cluster are gone, and its data with them. Nothing is started empty. Restore a backup into a new EtcdCluster; delete this one when nothing of it is needed."),
        ));
        return;
    }
    let look = Look { desired, observed, roster: Roster::of(desired, observed) };
    for name in &names {
        member(&look, name, plan);
    }
    for name in look.waiting_for_their_turn() {
        member(&look, &name, plan);
    }
}

/// What every rule about one member looks at.
struct Look<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    roster: Option<Roster<'a>>,
}

impl Look<'_> {
    /// Members that join and are not in the list yet, whose Pods are made ahead: only where etcd takes one learner at
    /// a time, so that the second one is no slower for it.
    fn waiting_for_their_turn(&self) -> Vec<String> {
        let Some(roster) = &self.roster else { return Vec::new() };
        if learners_at_once(self.desired, roster) > 1 || !roster.all_healthy() || roster.learners.is_empty() {
            return Vec::new();
        }
        let joiners = Joiners::of(self.desired, self.observed, roster);
        // Where data are to be put aside, the guard must be told the new member's ID, which nobody knows yet.
        let is_new = |name: &String| {
            let volume = self.observed.volumes.get(name);
            volume.is_some_and(|volume| volume.incarnation == 0 && volume.identity.is_none())
        };
        joiners.names.into_iter().filter(|name| roster.seat(name).is_none() && is_new(name)).collect()
    }

    fn joins(&self, name: &str) -> bool {
        let record = &self.observed.record;
        record.joining.contains(name) || (record.cluster_id.is_some() && !record.members.contains_key(name))
    }

    /// The members that a Pod is told to join. It matters to one without data only, and must be the list at that
    /// moment, member for member (`ValidateClusterAndAssignIDs`).
    fn initial(&self, name: &str) -> Option<Vec<String>> {
        if !self.joins(name) {
            return Some(self.observed.record.member_names(&self.desired.name));
        }
        let mut names = self.roster.as_ref()?.names();
        names.insert(name.to_owned());
        Some(names.into_iter().collect())
    }

    /// Who the member list says that it is.
    fn listed_identity(&self, name: &str) -> Option<(ClusterId, MemberId)> {
        let roster = self.roster.as_ref()?;
        Some((roster.cluster_id, roster.seat(name)?.id))
    }

    /// Whether it votes, or has all that it needs to be promoted next.
    fn will_vote(&self, name: &str) -> bool {
        let learner = self.roster.as_ref().and_then(|roster| Some((roster, roster.seat(name)?)));
        !self.joins(name) || learner.is_some_and(|(roster, seat)| roster.has_caught_up(self.observed, seat))
    }

    /// Whether clients may be let in: a voter by the list itself, and on record, and not about to leave. `None`: nobody
    /// can tell now.
    fn serves(&self, name: &str, volume: &Volume) -> Option<bool> {
        let roster = self.roster.as_ref()?;
        let known =
            volume.identity.is_some_and(|(_, id)| self.observed.record.members.get(name) == Some(&id));
        let votes = roster.voters.iter().any(|seat| seat.name == name);
        let is_compared = !matches!(volume.intent, Some(Intent::Compare(_)));
        Some(known && votes && is_compared && !self.leaves(name))
    }

    fn is_unhealthy(&self, name: &str) -> bool {
        self.roster.as_ref().and_then(|roster| roster.seat(name)).is_some_and(|seat| !seat.healthy)
    }

    /// Size of the largest voter's database.
    fn database_bytes(&self) -> Option<i64> {
        let voters = &self.roster.as_ref()?.voters;
        voters.iter().filter_map(|seat| Some(seat.answer?.db_size_bytes)).max()
    }

    /// Whether it is about to leave the cluster.
    fn leaves(&self, name: &str) -> bool {
        let leaves =
            |roster| leaving(self.desired, self.observed, roster).iter().any(|seat| seat.name == name);
        self.roster.as_ref().is_some_and(leaves)
    }
}

fn member(look: &Look, name: &str, plan: &mut Plan) {
    // A Pod that waits for a volume that is not to be had waits in vain, but harms nobody.
    let Some(volume) = usable_volume(look, name, plan) else { return ending(look, name, plan) };
    record(look, name, volume, plan);
    match look.observed.pods.get(name) {
        // One that is down and leaves next is not started once more for that.
        None if look.leaves(name) => {}
        None => create(look, name, volume, plan),
        Some(pod) => existing(look, name, pod, volume, plan),
    }
}

/// A member that runs on a volume which is being deleted serves on until it leaves.
fn ending(look: &Look, name: &str, plan: &mut Plan) {
    let volume = look.observed.volumes.get(name).filter(|volume| is_ours(look.desired, volume));
    if let (Some(volume), Some(pod)) = (volume, look.observed.pods.get(name))
        && owns(look.desired, pod)
        && !pod.deleting
    {
        label(look, name, pod, volume, plan);
    }
}

fn label(look: &Look, name: &str, pod: &MemberPod, volume: &Volume, plan: &mut Plan) {
    // A Pod that is deleted next is not written to before: its kubelet would take a second longer to end it.
    let ends = look.leaves(name) && look.is_unhealthy(name);
    if let Some(serves) = look.serves(name, volume).filter(|serves| *serves != pod.voter_label && !ends) {
        let manifest = pods::voter_label(look.desired, name, &pod.uid, serves);
        plan.ensure.push(Ensure::Apply { kind: "Pod", manifest });
    }
}

/// The member's volume, if a Pod may be put on it; makes one where none was ever recorded.
fn usable_volume<'a>(look: &Look<'a>, name: &str, plan: &mut Plan) -> Option<&'a Volume> {
    let Look { desired, observed, .. } = look;
    let Some(volume) = observed.volumes.get(name) else {
        if look.joins(name) {
            return None; // It never voted: `membership` removes it and takes another.
        }
        if observed.record.cluster_id.is_some() {
            plan.findings.push(Finding::stalled(
                Reason::VolumeMissing,
                Some(name),
                format!("The volume {name} is gone, and this member's data with it. The member is not started empty: its ID has voted. It is replaced by one with a new volume as soon as the others have quorum without it and spec.repair allows."),
            ));
        } else {
            let incarnation = observed.record.bootstrap.as_ref().map_or(0, |bootstrap| bootstrap.incarnation);
            plan.ensure.push(Ensure::Create {
                kind: "PersistentVolumeClaim",
                manifest: volumes::volume(desired, name, incarnation, &volumes::Special::default()),
            });
        }
        return None;
    };
    if !is_ours(desired, volume) {
        let owner = volume.cluster_uid.as_deref().unwrap_or("nobody that Quorate knows");
        plan.findings.push(Finding::stalled(
            Reason::ForeignVolume,
            Some(name),
            format!("The volume {name} belongs to {owner}, not to this EtcdCluster ({}). It is not mounted, changed or deleted. Delete it if nothing of it is needed.", desired.uid),
        ));
        return None;
    }
    if volume.deleting && (volume.identity.is_none() || look.joins(name)) {
        plan.findings.push(Finding::waiting(
            Reason::VolumeTerminating,
            Some(name),
            format!(
                "The volume {name}, whose member has not voted yet, is being deleted; a new one is made."
            ),
        ));
        return None;
    }
    if volume.deleting {
        plan.findings.push(Finding::stalled(
            Reason::VolumeTerminating,
            Some(name),
            format!("The volume {name} is being deleted; it stays as long as its Pod runs. No new Pod is put on it. Another member joins with a new volume, then this one leaves, while all members are healthy and spec.repair allows."),
        ));
        return None;
    }
    Some(volume)
}

/// Keeps what is known of the member on its volume: whose it is, who it is as soon as it has said so, whether it
/// votes, and the size that is asked for.
fn record(look: &Look, name: &str, volume: &Volume, plan: &mut Plan) {
    let Look { desired, observed, .. } = look;
    let reported = if volume.started { None } else { reported_identity(look, name, plan) };
    // The ID of one that was added is noted at once: were it removed before it starts, nobody else may take its volume.
    let identity = volume.identity.or(reported).or_else(|| look.listed_identity(name));
    let started = volume.started || (reported.is_some() && reported == identity);
    let votes = volume.state == VolumeState::Member || look.will_vote(name);
    let state = if started && votes { VolumeState::Member } else { VolumeState::Joining };
    let size = size(desired, observed, name, volume, plan);
    let intent = exchange::intent(desired, observed, look.roster.as_ref(), name, volume);
    let unchanged = volume.cluster_uid.as_deref() == Some(desired.uid.as_str())
        && volume.owned == volumes::is_owned(desired)
        && (volume.identity, volume.started) == (identity, started)
        && volume.state == state
        && volume.intent == intent
        && volume.requested == size;
    if !unchanged {
        let incarnation = volume.incarnation;
        let delete_after = None;
        let known = volumes::Known { identity, started, state, size, incarnation, intent, delete_after };
        let manifest = volumes::record(desired, name, volume, &known);
        plan.ensure.push(Ensure::Apply { kind: "PersistentVolumeClaim", manifest });
    }
}

/// Who the member says that it is, if that is who it must be: by the hash of a first start, or by the member list.
fn reported_identity(look: &Look, name: &str, plan: &mut Plan) -> Option<(ClusterId, MemberId)> {
    let Look { desired, observed, roster } = look;
    let answer = observed.survey.get(name)?.as_ref().ok()?;
    let expected = match observed.record.cluster_id {
        Some(_) => roster.as_ref()?.seat(name)?.id,
        None => bootstrap_member_id(&desired.peer_url(name), &observed.record.bootstrap.as_ref()?.token),
    };
    let another_cluster = observed.record.cluster_id.is_some_and(|cluster| cluster != answer.cluster_id);
    if answer.member_id == expected && !another_cluster {
        return Some((answer.cluster_id, answer.member_id));
    }
    plan.findings.push(Finding::stalled(
        Reason::ClusterIDMismatch,
        Some(name),
        format!("{name} says that it is member {} of cluster {}, but it must be {expected}. It is not put on record and serves nobody. Look at how it was started.", answer.member_id, answer.cluster_id),
    ));
    None
}

/// The size to ask for: the spec's, where the volume can grow to it.
fn size(desired: &Desired, observed: &Observed, name: &str, volume: &Volume, plan: &mut Plan) -> String {
    let wanted = &desired.spec.storage.size;
    if !volume.is_smaller_than(desired) || !volume.bound {
        return volume.requested.clone();
    }
    let class = volume.storage_class.as_deref().unwrap_or_default();
    if observed.expandable_classes.contains(class) {
        plan.findings.push(Finding::waiting(
            Reason::VolumeGrowing,
            Some(name),
            format!("The volume {name} grows from {} to {wanted}.", volume.requested),
        ));
        return wanted.clone();
    }
    plan.findings.push(Finding::stalled(
        Reason::VolumeCannotGrow,
        Some(name),
        format!("The volume {name} has {}, spec.storage.size is {wanted}, but its storage class {class} does not allow to expand volumes. The member goes on with what it has; new members get {wanted}. Set spec.storage.size back, or allow volume expansion in the class.", volume.requested),
    ));
    volume.requested.clone()
}

/// Puts a Pod on the volume, once its certificates are there.
fn create(look: &Look, name: &str, volume: &Volume, plan: &mut Plan) {
    let Look { desired, observed, .. } = look;
    if desired.tls() && !certificates_exist(observed, name) {
        return;
    }
    let (Some(bootstrap), Some(initial)) = (&observed.record.bootstrap, look.initial(name)) else { return };
    let anyone_on_record = observed.record.cluster_id.is_some()
        || initial
            .iter()
            .any(|name| observed.volumes.get(name).is_some_and(|volume| volume.identity.is_some()));
    let manifest = pods::pod(
        desired,
        &pods::Member {
            name,
            initial: &initial,
            state: if anyone_on_record { InitialState::Existing } else { InitialState::New },
            token: &bootstrap.token,
            incarnation: volume.incarnation,
            identity: volume.identity.or_else(|| look.listed_identity(name)),
            has_data: volume.started,
            high_water: observed.record.high_water.get(name).copied().filter(|_| volume.started),
            checked: !matches!(volume.intent, Some(Intent::Compare(_))),
            node_selector: &volume.node_selector,
            database_bytes: look.database_bytes().filter(|_| volume.incarnation > 0),
        },
    );
    plan.ensure.push(Ensure::Create { kind: "Pod", manifest });
    if observed.record.cluster_id.is_some() && !look.joins(name) {
        plan.findings.push(Finding::waiting(
            Reason::Recovering,
            Some(name),
            format!("The Pod {name} was gone; it is made again on its volume."),
        ));
    }
}

fn certificates_exist(observed: &Observed, member: &str) -> bool {
    let leaf = observed.credentials.leafs.get(&names::member_certificate(member));
    matches!(leaf, Some(LeafState::Good(_) | LeafState::Unjudged))
}

fn existing(look: &Look, name: &str, pod: &MemberPod, volume: &Volume, plan: &mut Plan) {
    let Look { desired, observed, .. } = look;
    if !owns(desired, pod) {
        plan.findings.push(Finding::waiting(
            Reason::Deleting,
            Some(name),
            format!("A Pod {name} of another owner exists. The operator waits until it is gone. Delete it if nobody else will."),
        ));
        return;
    }
    if pod.deleting {
        plan.findings.push(Finding::waiting(
            Reason::Recovering,
            Some(name),
            format!("The Pod {name} is ending; a new one is made on its volume when it is gone."),
        ));
        return;
    }
    label(look, name, pod, volume, plan);
    if let Some(why) = replaceable(look, name, pod, volume, observed) {
        plan.step.get_or_insert(why);
    }
}

/// A volume that was never bound, of a class that the spec does not name (any more).
fn has_wrong_class(desired: &Desired, observed: &Observed, volume: &Volume) -> bool {
    let wanted = desired.spec.storage.storage_class_name.as_ref();
    let missing =
        observed.missing_storage_class.is_some() && observed.missing_storage_class == volume.storage_class;
    let differs = volume.storage_class.as_ref() != wanted && (wanted.is_some() || missing);
    let own = volume.cluster_uid.as_deref() == Some(desired.uid.as_str());
    own && !volume.bound && !volume.started && differs
}

/// A Pod that serves nobody and would do better if it were made anew.
fn replaceable(
    look: &Look,
    name: &str,
    pod: &MemberPod,
    volume: &Volume,
    observed: &Observed,
) -> Option<Step> {
    let desired = look.desired;
    if pod.ended() {
        let why = format!("it has ended ({}); a new one is made on its volume", pod.phase);
        return Some(Step::DeletePod(pod.premise(name, why)));
    }
    let answers = observed.survey.get(name).is_some_and(Result::is_ok);
    if pod.ready || answers {
        return None;
    }
    if pod.checked && matches!(volume.intent, Some(Intent::Compare(_))) {
        let why = "etcd says that somebody's data differ, but not whose: it is started once without etcd's own check, and serves nobody until all members are compared";
        return Some(Step::DeletePod(pod.premise(name, why.to_owned())));
    }
    if has_wrong_class(desired, observed, volume) {
        let why = "it was never bound, and the spec names another storage class now".to_owned();
        return Some(Step::DeleteVolume(volume.premise(name, why), None));
    }
    // A learner without data can only join the members that it was told of.
    let behind = look.joins(name)
        && !volume.started
        && look
            .initial(name)
            .is_some_and(|initial| initial.into_iter().collect::<BTreeSet<_>>() != pod.initial);
    if behind {
        let why = "it is to join, and the member list has changed since it was made".to_owned();
        return Some(Step::DeletePod(pod.premise(name, why)));
    }
    let cannot_start = !pod.running || observed.record.cluster_id.is_none();
    let outdated = pod.template.as_deref() != Some(pods::template_hash(desired).as_str());
    (outdated && cannot_start).then(|| {
        let why = "it cannot start, and the spec has changed since it was made".to_owned();
        Step::DeletePod(pod.premise(name, why))
    })
}
