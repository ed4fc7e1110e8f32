//! etcd by its rules: who leads, what is committed, who may join, and what each member answers.
//!
//! No I/O, no clock and no chance: the caller says what time it is, and where etcd would throw dice the lowest member
//! ID wins. Raft is raft (a log, a term and a vote per member; majorities are counted), only its timing is coarse.
//! `conformance.rs` runs the same sequences against this and against real processes.

mod answers;
mod disk;
mod join;
mod links;
mod raft;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use quorate::etcd::version::Minor;
use quorate::etcd::{ClusterId, MemberId};

pub(crate) use disk::{Data, Disk, Member, Members};
pub(crate) use join::added_member_id;

/// Milliseconds since 1970: etcd's member IDs depend on the second in which they were added.
pub(crate) type Millis = u64;

/// A Pod's UID: a Pod that was made anew is another process.
pub(crate) type ProcessId = String;

/// A process that ended by itself: its last line, and the disk that it left.
pub(crate) type Ended = (ProcessId, String, Disk);

/// Between two heartbeats (etcd's default).
const STEP: Millis = 100;
/// A follower without a leader for so long stands for election (etcd's default).
const ELECTION: Millis = 1000;
/// A leader without a majority for so long steps down: raft checks once an election timeout, so on average.
const LEASE: Millis = 1500;
/// A connection that is cut is noticed after so long: tried on 3.6.16, the leader saw it after 77 s, when its send
/// buffer was full, a follower after 165 s, by TCP's keep-alive. `rafthttp.ConnReadTimeout` says five seconds, but it
/// has no effect on connections that etcd dials: `NewTransport` sets `DialContext`, which goes before the dialler with
/// that timeout (3.5.35, 3.6.16 and 3.7.3 alike).
const SILENCE: Millis = 120_000;
/// For so long members must have been connected before the cluster may change (`etcdserver.HealthInterval`).
const HEALTHY: Millis = 5000;
/// etcd gives up a request, and asks anew, after so long (`ReqTimeout`).
const REQUEST: Millis = 7000;
/// A removed member ends so long after it has learnt of it.
const REMOVED: Millis = 1000;

/// etcd's words when it is no member any more; it ends with exit code 0.
const REMOVED_LINE: &str = r#"{"level":"warn","msg":"server error","error":"the member has been permanently removed from the cluster"}"#;

/// What a process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) name: String,
    pub(crate) peer_url: String,
    /// Name and peer URL of each.
    pub(crate) initial_cluster: Vec<(String, String)>,
    /// `--initial-cluster-state=new`.
    pub(crate) new: bool,
    pub(crate) token: String,
    pub(crate) max_learners: usize,
    pub(crate) minor: Minor,
}

/// Why a call was not answered with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// Nothing listens there.
    Refused,
    /// No answer in time; whatever was asked for may still happen.
    Timeout,
    NotLeader,
    BadTransferee,
    TransferTimeout,
    MemberNotFound,
    MemberExists,
    PeerUrlExists,
    TooManyLearners,
    LearnerNotReady,
    NotLearner,
    Unhealthy,
    NotEnoughStarted,
    NotForLearner,
    NoSpace,
    Corrupt,
}

impl Error {
    /// As a client sees it.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Refused => "connection refused",
            Self::Timeout => "etcdserver: request timed out",
            Self::NotLeader => "etcdserver: not leader",
            Self::BadTransferee => "etcdserver: bad leader transferee",
            Self::TransferTimeout => "etcdserver: request timed out, leader transfer took too long",
            Self::MemberNotFound => "etcdserver: member not found",
            Self::MemberExists => "etcdserver: member ID already exist",
            Self::PeerUrlExists => "etcdserver: Peer URLs already exists",
            Self::TooManyLearners => "etcdserver: too many learner members in cluster",
            Self::LearnerNotReady => {
                "etcdserver: can only promote a learner member which is in sync with leader"
            }
            Self::NotLearner => "etcdserver: can only promote a learner member",
            Self::Unhealthy => "etcdserver: unhealthy cluster",
            Self::NotEnoughStarted => "etcdserver: re-configuration failed due to not enough started members",
            Self::NotForLearner => "etcdserver: rpc not supported for learner",
            Self::NoSpace => "etcdserver: mvcc: database space exceeded",
            Self::Corrupt => "etcdserver: corrupt cluster",
        }
    }
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) leader: Option<MemberId>,
    pub(crate) learner: bool,
    pub(crate) term: u64,
    pub(crate) applied: u64,
    pub(crate) revision: u64,
}

/// All etcd processes of the world, of any cluster.
#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    now: Millis,
    stepped: Millis,
    processes: Vec<Process>,
    started: u64,
    cuts: BTreeSet<(ProcessId, ProcessId)>,
    ended: Vec<Ended>,
    /// Whether connections or memberships may have changed since links were looked at.
    unlinked: bool,
    /// Whether the last step changed anything; if not, the next ones will not either until a timer is due.
    busy: bool,
    /// Entries that a lagging member gets in one step.
    pub(crate) entries_per_step: usize,
    /// A log is cut when it is twice as long as this; who lags further gets a snapshot
    /// (`--snapshot-catchup-entries`).
    pub(crate) kept_entries: u64,
}

impl Default for Etcd {
    fn default() -> Self {
        Self {
            now: 0,
            stepped: 0,
            processes: Vec::new(),
            started: 0,
            cuts: BTreeSet::new(),
            ended: Vec::new(),
            unlinked: false,
            busy: true,
            entries_per_step: 50,
            kept_entries: 5000,
        }
    }
}

#[derive(Clone, Debug)]
struct Process {
    id: ProcessId,
    start: Start,
    /// When it was started among all: of two that claim one identity, the peers hear the later.
    order: u64,
    data: Box<Data>,
    /// The member list of a joiner that has not applied everything is made of its flags; `None`: as applied.
    listed: Option<Members>,
    leads: Option<Leader>,
    lead: Option<MemberId>,
    /// When it last heard of a leader, or gave a vote.
    heard: Millis,
    /// How long it waits then.
    patience: Millis,
    paused: bool,
    /// Whether it answers clients: not before it has published itself, which takes a quorum.
    serving: bool,
    published: Option<Millis>,
    links: BTreeMap<MemberId, Link>,
    /// The entry whose outcome somebody waits for.
    awaited: Option<(u64, u64)>,
    outcome: Option<Result<(), Error>>,
    /// When it will end, and its last line.
    ending: Option<(Millis, String)>,
}

/// What only a leader knows.
#[derive(Clone, Debug)]
struct Leader {
    progress: BTreeMap<MemberId, Progress>,
    pending_change: u64,
    /// When a majority last answered.
    majority: Millis,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    next: u64,
    matched: u64,
}

/// A connection to a peer, as a process sees it.
#[derive(Clone, Copy, Debug)]
struct Link {
    since: Millis,
    broken: Option<Millis>,
    order: u64,
}

impl Process {
    fn member(&self) -> MemberId {
        self.data.member
    }

    fn list(&self) -> &Members {
        self.listed.as_ref().unwrap_or(&self.data.store.members)
    }

    fn is_learner(&self) -> bool {
        self.list().get(&self.member()).is_some_and(|member| member.learner)
    }

    fn follow(&mut self, term: u64, lead: Option<MemberId>) {
        if term > self.data.term {
            (self.data.term, self.data.vote) = (term, None);
        }
        (self.leads, self.lead) = (None, lead);
    }

    fn end(&mut self, when: Millis, line: impl Into<String>) {
        if self.ending.is_none() {
            self.ending = Some((when, line.into()));
        }
    }
}

impl Etcd {
    /// Starts a process. An error is etcd's fatal line, with the disk as it left it.
    pub(crate) fn start(
        &mut self,
        now: Millis,
        process: ProcessId,
        start: &Start,
        disk: Disk,
    ) -> Result<(), (String, Disk)> {
        assert!(self.index(&process).is_none(), "{process} runs already");
        self.advance(now);
        let (data, listed) = match disk.data {
            Some(data) => (data, None),
            None => self.join(&process, start).map(|(data, listed)| (Box::new(data), listed)).map_err(
                |error| {
                    let error = error.replace('"', "\\\"");
                    (
                        format!(r#"{{"level":"fatal","msg":"discovery failed","error":"{error}"}}"#),
                        Disk::default(),
                    )
                },
            )?,
        };
        let alone = data.store.members.len() < 2;
        self.started += 1;
        self.processes.push(Process {
            id: process,
            start: start.clone(),
            order: self.started,
            listed,
            leads: None,
            lead: None,
            heard: self.now,
            patience: if alone { STEP } else { 3 * STEP },
            paused: false,
            serving: false,
            published: None,
            links: BTreeMap::new(),
            awaited: None,
            outcome: None,
            ending: None,
            data,
        });
        self.began(self.processes.len() - 1);
        (self.unlinked, self.busy) = (true, true);
        Ok(())
    }

    /// Kills a process; its disk stays as it is.
    pub(crate) fn stop(&mut self, process: &str) -> Option<Disk> {
        let index = self.index(process)?;
        let process = self.processes.remove(index);
        self.relink();
        Some(Disk { data: Some(process.data) })
    }

    /// Processes that ended by themselves since the last call.
    pub(crate) fn ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// The disk of a running process.
    pub(crate) fn disk(&self, process: &str) -> Option<Disk> {
        self.get(process).map(|process| Disk { data: Some(process.data.clone()) })
    }

    /// Puts a key into one member's store that the others never had.
    pub(crate) fn forge(&mut self, process: &str, key: u64) {
        if let Some(index) = self.index(process) {
            self.processes[index].data.store.keys.insert(key);
        }
    }

    /// No cut is left, not even of processes that do not run.
    pub(crate) fn heal_all(&mut self) {
        self.cuts.clear();
        self.relink();
    }

    /// What a running process has on disk, to look at.
    pub(crate) fn data(&self, process: &str) -> Option<&Data> {
        self.get(process).map(|process| &*process.data)
    }

    /// The processes that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &str> {
        self.processes.iter().map(|process| process.id.as_str())
    }

    /// SIGSTOP. Its kernel goes on to answer for its connections, so its peers take them for good.
    pub(crate) fn pause(&mut self, process: &str) {
        if let Some(index) = self.index(process) {
            self.processes[index].paused = true;
            self.relink();
        }
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, process: &str) {
        let now = self.now;
        let Some(index) = self.index(process) else { return };
        let process = &mut self.processes[index];
        if process.paused {
            (process.paused, process.heard) = (false, now);
            self.relink();
        }
    }

    /// Drops what one process sends to another.
    pub(crate) fn cut(&mut self, from: &str, to: &str) {
        self.cuts.insert((from.to_owned(), to.to_owned()));
        self.relink();
    }

    /// Ends a cut.
    pub(crate) fn heal(&mut self, from: &str, to: &str) {
        self.cuts.remove(&(from.to_owned(), to.to_owned()));
        self.relink();
    }

    fn index(&self, process: &str) -> Option<usize> {
        self.processes.iter().position(|other| other.id == process)
    }

    fn get(&self, process: &str) -> Option<&Process> {
        self.index(process).and_then(|index| self.processes.get(index))
    }

    /// Takes those out whose time has come.
    fn bury(&mut self) {
        let now = self.now;
        let is_over = |process: &Process| process.ending.as_ref().is_some_and(|(when, _)| *when <= now);
        while let Some(index) = self.processes.iter().position(is_over) {
            let process = self.processes.remove(index);
            if let Some((_, line)) = process.ending {
                self.ended.push((process.id, line, Disk { data: Some(process.data) }));
            }
            (self.unlinked, self.busy) = (true, true);
        }
    }
}
