//! What must be on record before anything else happens.

use std::collections::{BTreeMap, BTreeSet};

use super::super::desired::Desired;
use super::super::observed::{Observed, Record, Volume, VolumeState};
use super::roster::Roster;
use super::{Finding, Plan, is_ours};
use crate::api::cluster::BootstrapStatus;
use crate::api::reason::Reason;
use crate::etcd::failure::Remedy;
use crate::etcd::{ClusterId, MemberId};
use crate::operator::names;

/// A first start is begun anew at most this often: what fails six times will not be cured by a seventh.
const INCARNATIONS: i32 = 6;

/// The first record that is missing.
pub(super) fn rule(desired: &Desired, observed: &Observed) -> Option<Plan> {
    let record = &observed.record;
    let Some(bootstrap) = &record.bootstrap else {
        return Some(taken_over(desired, observed).unwrap_or_else(|| first_start(desired, observed)));
    };
    if record.cluster_id.is_some() {
        return changed(desired, observed);
    }
    begun_anew(desired, observed, bootstrap).or_else(|| formed(desired, observed))
}

/// A first start: serials above every name that was ever used, so that no volume, DNS name or certificate
/// belongs to two members.
fn first_start(desired: &Desired, observed: &Observed) -> Plan {
    let replicas = i32::try_from(desired.replicas).unwrap_or_default();
    store(Record { bootstrap: Some(start(desired, observed, 0, replicas)), ..Record::default() })
}

fn start(desired: &Desired, observed: &Observed, incarnation: i32, replicas: i32) -> BootstrapStatus {
    let used = observed.volumes.keys().chain(observed.pods.keys());
    let first =
        used.filter_map(|name| names::serial(&desired.name, name)).max().map_or(0, |highest| highest + 1);
    BootstrapStatus {
        incarnation,
        serials: (first..first + replicas).collect(),
        token: token(desired, incarnation),
    }
}

/// Member and cluster IDs are hashes of peer URLs and token, without time: only another token makes another
/// cluster (`reliability.md` I-5).
fn token(desired: &Desired, incarnation: i32) -> String {
    let token = format!("{}/{}/{}", desired.namespace, desired.name, desired.uid);
    if incarnation == 0 { token } else { format!("{token}/{incarnation}") }
}

fn store(record: Record) -> Plan {
    Plan { record: Some(record), ..Plan::default() }
}

fn stop(reason: Reason, message: String) -> Plan {
    Plan { findings: vec![Finding::stalled(reason, None, message)], ..Plan::default() }
}

/// No first start on record, but volumes that hold members: of the UID that `quorate.dev/adopt` names, or of our
/// own (the status was lost). They are the cluster.
fn taken_over(desired: &Desired, observed: &Observed) -> Option<Plan> {
    // Those that have left the cluster, or never voted in it, are none of its members.
    let is_member = |volume: &Volume| match volume.state {
        VolumeState::Member => true,
        VolumeState::Joining => volume.identity.is_none(),
        VolumeState::Retired => false,
    };
    let of = |uid: &str| -> BTreeMap<&String, &Volume> {
        let of_uid = |volume: &Volume| volume.cluster_uid.as_deref() == Some(uid);
        observed.volumes.iter().filter(|(_, volume)| of_uid(volume) && is_member(volume)).collect()
    };
    let own: BTreeMap<_, _> =
        of(&desired.uid).into_iter().filter(|(_, volume)| volume.identity.is_some()).collect();
    let (uid, volumes) = match &desired.adopt {
        _ if !own.is_empty() => (&desired.uid, own),
        Some(adopt) => (adopt, of(adopt)),
        None => return None,
    };
    if volumes.is_empty() {
        return Some(stop(
            Reason::NothingToAdopt,
            format!(
                "No volume of {} carries the UID {uid} that the annotation quorate.dev/adopt names. Nothing is started. Correct the annotation, or remove it to start an empty cluster.",
                desired.name
            ),
        ));
    }
    let members: BTreeMap<String, MemberId> =
        volumes.iter().filter_map(|(name, volume)| Some(((*name).clone(), volume.identity?.1))).collect();
    let clusters: BTreeSet<ClusterId> =
        volumes.values().filter_map(|volume| Some(volume.identity?.0)).collect();
    let cluster_id = clusters.iter().next().copied();
    if members.len() != volumes.len() || clusters.len() != 1 {
        let names: Vec<&str> = volumes.keys().map(|name| name.as_str()).collect();
        return Some(stop(
            Reason::ForeignVolume,
            format!(
                "The volumes {} of UID {uid} do not all carry the ID of one etcd cluster. Nothing is started. Delete the ones that are not members.",
                names.join(", ")
            ),
        ));
    }
    let serials = members.keys().filter_map(|name| names::serial(&desired.name, name)).collect();
    let bootstrap = BootstrapStatus { incarnation: 0, serials, token: token(desired, 0) };
    Some(store(Record { bootstrap: Some(bootstrap), cluster_id, members, ..Record::default() }))
}

/// A first start that was never recorded and cannot go on is begun anew, beside what it left. Nothing was
/// acknowledged: no Pod has had the label that lets clients in.
fn begun_anew(desired: &Desired, observed: &Observed, bootstrap: &BootstrapStatus) -> Option<Plan> {
    let names = observed.record.member_names(&desired.name);
    let refusal = names.iter().find_map(|name| {
        let pod = observed.pods.get(name)?;
        let hopeless = matches!(pod.failure()?.remedy(), Remedy::Wipe | Remedy::Replace);
        let report = pod.last_exit.as_ref().filter(|_| hopeless)?;
        Some(format!("{name}: {}", report.sentence()))
    });
    let clusters: BTreeSet<ClusterId> = names
        .iter()
        .filter_map(|name| {
            Some(observed.volumes.get(name).filter(|volume| is_ours(desired, volume))?.identity?.0)
        })
        .collect();
    let ends = || {
        // One that was never bound held nobody; `members` makes such a one anew where the spec names another class.
        let gone = |name: &&String| {
            observed.volumes.get(*name).is_some_and(|volume| volume.deleting && volume.bound)
        };
        names.iter().find(gone).map(|name| format!("the volume {name} is being deleted"))
    };
    let why = refusal
        .or_else(ends)
        .or_else(|| (clusters.len() > 1).then(|| "members report more than one cluster ID".to_owned()))?;
    if bootstrap.incarnation + 1 >= INCARNATIONS {
        return Some(stop(
            Reason::BootstrapRestarted,
            format!(
                "The first start failed {INCARNATIONS} times, the last time because {why}. It is not tried again. Find the cause, then delete the EtcdCluster and make it anew."
            ),
        ));
    }
    let replicas = i32::try_from(bootstrap.serials.len()).unwrap_or_default();
    let bootstrap = start(desired, observed, bootstrap.incarnation + 1, replicas);
    let mut plan = store(Record { bootstrap: Some(bootstrap), ..Record::default() });
    plan.findings.push(Finding::waiting(
        Reason::BootstrapRestarted,
        None,
        format!("The first start cannot go on ({why}). Nothing was acknowledged yet; it is begun anew with new members."),
    ));
    Some(plan)
}

/// All volumes of the first start carry the same cluster ID: the cluster is on record from now on.
fn formed(desired: &Desired, observed: &Observed) -> Option<Plan> {
    let mut members = BTreeMap::new();
    let mut cluster_id = None;
    for name in observed.record.member_names(&desired.name) {
        let volume = observed.volumes.get(&name).filter(|volume| is_ours(desired, volume))?;
        let (cluster, member) = volume.identity?;
        cluster_id = Some(cluster);
        members.insert(name, member);
    }
    cluster_id?;
    Some(store(Record { cluster_id, members, ..observed.record.clone() }))
}

/// Who etcd says is a member, and the numbers that are used up: on record before anything is done about them.
fn changed(desired: &Desired, observed: &Observed) -> Option<Plan> {
    let record = &observed.record;
    let mut new = record.clone();
    if let Some(roster) = Roster::of(desired, observed).filter(|roster| roster.strangers.is_empty()) {
        new.members = roster.seats().map(|seat| (seat.name.clone(), seat.id)).collect();
        new.joining = roster.learners.iter().map(|seat| seat.name.clone()).collect();
        // A name that means another member now has no mark yet.
        new.high_water.retain(|name, _| new.members.get(name) == record.members.get(name));
    }
    let used = observed.volumes.keys().chain(observed.pods.keys()).chain(new.members.keys());
    let highest = used.filter_map(|name| names::serial(&desired.name, name)).max();
    new.next_serial = record.next_serial.max(highest.map_or(0, |highest| highest + 1));
    let same = (&new.members, &new.joining, new.next_serial)
        == (&record.members, &record.joining, record.next_serial);
    (!same).then(|| store(new))
}
