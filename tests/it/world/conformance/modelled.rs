//! The rule-level etcd as a subject.

use std::collections::BTreeMap;

use quorate::etcd::MemberId;
use quorate::etcd::survey::Alarm;
use quorate::etcd::version::Minor;

use super::{Call, Reply, Row, Subject, TOKEN};
use crate::world::etcd::{Disk, Error, Etcd, Member, Millis, Start};

/// A second's beginning.
const BEGIN: Millis = 1_800_000_000_000;

pub(super) struct Modelled {
    etcd: Etcd,
    now: Millis,
    minor: Minor,
    disks: BTreeMap<String, Disk>,
    saved: BTreeMap<String, Disk>,
    last_lines: BTreeMap<String, String>,
}

impl Modelled {
    pub(super) fn new(minor: Minor) -> Self {
        let (disks, saved, last_lines) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { etcd: Etcd::default(), now: BEGIN, minor, disks, saved, last_lines }
    }
}

impl Subject for Modelled {
    fn now(&self) -> Millis {
        self.now
    }

    fn pass(&mut self) {
        self.now += 100;
        self.etcd.advance(self.now);
        for (name, line, disk) in self.etcd.ended() {
            self.disks.insert(name.clone(), disk);
            self.last_lines.insert(name, line);
        }
    }

    fn peer_url(&mut self, name: &str) -> String {
        format!("http://{name}:2380")
    }

    fn start(&mut self, name: &str, cluster: &[&str], new: bool) -> Result<(), String> {
        let initial_cluster =
            cluster.iter().map(|name| ((*name).to_owned(), format!("http://{name}:2380"))).collect();
        let start = Start {
            name: name.to_owned(),
            peer_url: self.peer_url(name),
            initial_cluster,
            new,
            token: TOKEN.to_owned(),
            max_learners: if self.minor == Minor::V3_5 { 1 } else { 2 },
            minor: self.minor,
        };
        self.last_lines.remove(name);
        let disk = self.disks.remove(name).unwrap_or_default();
        let started = self.etcd.start(self.now, name.to_owned(), &start, disk);
        started.map_err(|(line, disk)| {
            self.disks.insert(name.to_owned(), disk);
            line
        })
    }

    fn kill(&mut self, name: &str) {
        if let Some(disk) = self.etcd.stop(name) {
            self.disks.insert(name.to_owned(), disk);
        }
    }

    fn pause(&mut self, name: &str) {
        self.etcd.pause(name);
    }

    fn resume(&mut self, name: &str) {
        self.etcd.resume(name);
    }

    fn save(&mut self, name: &str) {
        self.saved.insert(name.to_owned(), self.disks[name].clone());
    }

    fn roll_back(&mut self, name: &str) {
        self.disks.insert(name.to_owned(), self.saved[name].clone());
    }

    fn wipe(&mut self, name: &str) {
        self.disks.remove(name);
    }

    fn is_connected(&mut self, name: &str, member: MemberId) -> bool {
        self.etcd.is_connected(name, member)
    }

    fn ended(&mut self, name: &str) -> Option<String> {
        self.last_lines.get(name).cloned()
    }

    fn call(&mut self, name: &str, call: &Call<'_>) -> Result<Reply, String> {
        let answer = self.answer(name, call);
        if let Err(Error::Timeout | Error::TransferTimeout) = answer {
            // The client has waited.
            self.now += call.deadline().as_secs() * 1000;
            self.etcd.advance(self.now);
        }
        answer.map_err(|error| error.message().to_owned())
    }
}

impl Modelled {
    fn answer(&mut self, name: &str, call: &Call<'_>) -> Result<Reply, Error> {
        let etcd = &mut self.etcd;
        match call {
            Call::Status => etcd.status(name).map(|status| Reply::Status {
                cluster: status.cluster.0,
                member: status.member,
                leader: status.leader,
                learner: status.learner,
            }),
            Call::Read => etcd.read(name).map(Reply::Count),
            Call::Keys => Ok(Reply::Count(etcd.keys(name).len() as u64)),
            Call::List { linearizable } => etcd.member_list(name, *linearizable).map(members),
            Call::Put(key) => etcd.put(name, *key).map(Reply::Count),
            Call::Add { peer_url, learner: true } => {
                etcd.add_learner(name, peer_url).map(|(id, _)| Reply::Added(id))
            }
            Call::Add { peer_url, learner: false } => {
                etcd.add_voter(name, peer_url).map(|(id, _)| Reply::Added(id))
            }
            Call::Promote(id) => etcd.promote(name, *id).map(members),
            Call::Remove(id) => etcd.remove(name, *id).map(members),
            Call::Move(id) => etcd.move_leader(name, *id).map(|()| Reply::Done),
            Call::Alarms => etcd.alarms(name).map(|alarms| {
                Reply::Alarms(alarms.into_iter().map(|(id, alarm)| (id, word(alarm).to_owned())).collect())
            }),
            Call::Raise(id, alarm) => etcd.raise(name, *id, alarm_of(alarm)).map(|()| Reply::Done),
            Call::Disarm(id, alarm) => etcd.disarm(name, *id, alarm_of(alarm)).map(|()| Reply::Done),
        }
    }
}

fn members(members: Vec<Member>) -> Reply {
    let row = |member: Member| Row {
        id: member.id,
        name: member.name,
        peer_url: member.peer_url,
        learner: member.learner,
    };
    Reply::Members(members.into_iter().map(row).collect())
}

fn word(alarm: Alarm) -> &'static str {
    match alarm {
        Alarm::NoSpace => "NOSPACE",
        Alarm::Corrupt => "CORRUPT",
    }
}

fn alarm_of(word: &str) -> Alarm {
    if word == "CORRUPT" { Alarm::Corrupt } else { Alarm::NoSpace }
}
