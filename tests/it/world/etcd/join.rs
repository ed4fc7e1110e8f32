//! What etcd checks when it starts on an empty directory (`bootstrap.go`, `cluster_util.go`).

use std::collections::BTreeSet;

use quorate::etcd::MemberId;
use quorate::etcd::identity::{bootstrap_cluster_id, bootstrap_member_id};
use quorate::etcd::version::Minor;

use super::disk::{Data, Member, Members};
use super::{Etcd, Process, Start};

/// The ID of a member that is added in this second: the token is no part of it, the time is.
pub(crate) fn added_member_id(peer_url: &str, seconds: u64) -> MemberId {
    bootstrap_member_id(peer_url, &seconds.to_string())
}

impl Etcd {
    /// The data of a new process, and its member list where that is not what it has applied.
    pub(super) fn join(&self, process: &str, start: &Start) -> Result<(Data, Option<Members>), String> {
        let own = start.initial_cluster.iter().find(|(name, _)| *name == start.name);
        let Some((_, own_url)) = own else {
            return Err(format!(
                "couldn't find local name \"{}\" in the initial cluster configuration",
                start.name
            ));
        };
        let urls: BTreeSet<&String> = start.initial_cluster.iter().map(|(_, url)| url).collect();
        if urls.len() < start.initial_cluster.len() {
            return Err(format!("initial cluster {} has duplicate url", initial_cluster(start)));
        }
        if start.new { self.found(process, start, own_url) } else { self.enter(process, start) }
    }

    fn found(&self, process: &str, start: &Start, own_url: &str) -> Result<(Data, Option<Members>), String> {
        if own_url != start.peer_url {
            return Err(format!(
                "--initial-cluster has {}={own_url} but missing from --initial-advertise-peer-urls={}",
                start.name, start.peer_url
            ));
        }
        let members = static_members(start);
        let own = bootstrap_member_id(own_url, &start.token);
        if let Some(remote) = self.asked(process, start) {
            if remote.list().get(&own).is_some_and(|member| member.published) {
                return Err(format!("member {own} has already been bootstrapped"));
            }
        }
        let cluster = bootstrap_cluster_id(members.keys().copied());
        Ok((Data::founder(cluster, own, members), None))
    }

    fn enter(&self, process: &str, start: &Start) -> Result<(Data, Option<Members>), String> {
        let Some(remote) = self.asked(process, start) else {
            return Err("cannot fetch cluster info from peer urls: could not retrieve cluster information \
                        from the given URLs"
                .to_owned());
        };
        let existing = remote.list();
        let invalid = |why: &str| format!("error validating peerURLs {}: {why}", describe(remote));
        if existing.len() != start.initial_cluster.len() {
            return Err(invalid("member count is unequal"));
        }
        let mut listed = Members::new();
        for member in existing.values() {
            let Some((name, _)) = start.initial_cluster.iter().find(|(_, url)| *url == member.peer_url)
            else {
                return Err(invalid(&format!(
                    "PeerURLs: no match found for existing member ({}, [{}])",
                    member.id, member.peer_url
                )));
            };
            // Only the ID is taken over: a joiner takes itself, and all others, for voters at first.
            let row = Member { name: name.clone(), learner: false, published: false, ..member.clone() };
            listed.insert(member.id, row);
        }
        let learners = existing.values().filter(|member| member.learner).count();
        if start.minor > Minor::V3_5 && learners > start.max_learners {
            return Err("membership: too many learner members in cluster".to_owned());
        }
        let own = listed.values().find(|member| member.name == start.name).map(|member| member.id);
        let own = own.ok_or("the local name is given twice")?;
        Ok((Data::joiner(remote.data.cluster, own), Some(listed)))
    }

    /// The first of the other members, by URL, that answers.
    fn asked(&self, process: &str, start: &Start) -> Option<&Process> {
        let others = start.initial_cluster.iter().filter(|(name, _)| *name != start.name);
        let mut urls: Vec<&String> = others.map(|(_, url)| url).collect();
        urls.sort();
        urls.into_iter().find_map(|url| {
            let at = |other: &&Process| {
                other.start.peer_url == *url
                    && !other.paused
                    && !self.is_cut(process, &other.id)
                    && !self.is_cut(&other.id, process)
            };
            self.processes.iter().rev().find(at)
        })
    }
}

fn static_members(start: &Start) -> Members {
    let members = start.initial_cluster.iter().map(|(name, url)| {
        let id = bootstrap_member_id(url, &start.token);
        let row = Member { id, name: name.clone(), peer_url: url.clone(), learner: false, published: false };
        (id, row)
    });
    members.collect()
}

fn initial_cluster(start: &Start) -> String {
    let pairs: Vec<String> =
        start.initial_cluster.iter().map(|(name, url)| format!("{name}={url}")).collect();
    pairs.join(",")
}

/// As etcd prints a cluster.
fn describe(process: &Process) -> String {
    let members: Vec<String> = process
        .list()
        .values()
        .map(|member| {
            format!(
                "&{{ID:{} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} ClientURLs:[]}}}}",
                member.id, member.peer_url, member.learner, member.name
            )
        })
        .collect();
    format!("{{ClusterID:{} Members:[{}] RemovedMemberIDs:[]}}", process.data.cluster, members.join(" "))
}
