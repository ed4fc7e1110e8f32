//! Two modelled etcds and the agents between them: the real machine, whose commands are carried out late, twice or
//! never, and whose answers get lost.

use std::collections::{BTreeSet, VecDeque};

use quorate::mirror::assembler::{Canceled, Event as WatchEvent, Response, STREAM};
use quorate::mirror::batch::Change;
use quorate::mirror::checkpoint::Claims;
use quorate::mirror::config::{Config, Limits, MirrorId, Policy, claims_key};
use quorate::mirror::keyspace::{Fate, Side, Span};
use quorate::mirror::machine::{
    Command, Event, LeaseAnswer, LeaseRequest, Look, Machine, Mode, Own, Sample, SeenSite, Settings, Watchers,
};
use quorate::mirror::stop::Stop;
use quorate::mirror::transaction::{Guard, Node, Transaction};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::bugs::Bug;
use super::etcd::{Etcd, Happened};
use super::judge;

/// Revisions of an answer that catches up; etcd's is 1,000.
const CATCH_UP: usize = 4;
/// Events above which an answer comes in fragments.
const FRAGMENT: usize = 2;
/// Seconds that a lease lives which the source does not have any more.
const PASSING: u32 = 4;

/// A watch at the source.
struct Watch {
    number: u64,
    watchers: Vec<Watcher>,
    /// What was sent and has not arrived.
    sent: VecDeque<Response>,
}

struct Watcher {
    span: Span,
    next: i64,
    created: bool,
}

/// A request of an agent.
struct Request {
    command: Command,
    /// What the server answered, once it has done it.
    answer: Option<Event>,
}

/// A process.
pub(super) struct Agent {
    pub(super) machine: Machine,
    requests: Vec<Request>,
    watch: Option<Watch>,
    pub(super) over: Option<Stop>,
    /// It has sent this one before.
    resent: Option<Transaction>,
    ranges: Vec<Span>,
}

/// Everything.
pub(super) struct Pair {
    pub(super) random: StdRng,
    pub(super) source: Etcd,
    /// What the source was before it was set back.
    pub(super) before: Vec<Etcd>,
    pub(super) target: Etcd,
    /// Claims in the source.
    pub(super) upstream: Claims,
    pub(super) agents: Vec<Agent>,
    /// Transactions whose sender has given them up.
    ghosts: Vec<Transaction>,
    pub(super) config: Config,
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    /// Keys of the target that no mirror has written.
    pub(super) foreign: BTreeSet<Vec<u8>>,
    /// Mirrors make others' writes good.
    pub(super) repair: bool,
    /// Mirrored keys of the target that somebody else has written: anything may be in them until the end.
    pub(super) meddled: BTreeSet<Vec<u8>>,
    pub(super) bug: Bug,
    pub(super) violation: Option<String>,
    pub(super) journal: Vec<String>,
    /// Nobody writes to the source until those who knew it before it was set back have noticed.
    pub(super) frozen: bool,
    /// The target as somebody saved it.
    pub(super) backup: Option<Etcd>,
    /// How often it was set back to that.
    pub(super) restored: u32,
    /// How often the configuration was another one.
    pub(super) reconfigured: u32,
    /// How often an answer or a request was lost, and a revision divided.
    pub(super) lost: u64,
    pub(super) divided: u64,
    /// How often a lease ended in the target.
    pub(super) ended: u64,
    /// How often somebody had made a key where there was none when it was read: where there was nothing at all, and
    /// beside other keys.
    pub(super) taken: u64,
    pub(super) refused: u64,
    /// How often another mirror had written the claims when the target was to be taken over.
    pub(super) touched: u64,
    /// The journal has what agents hear and want.
    pub(super) verbose: bool,
    started: u64,
}

impl Pair {
    pub(super) fn new(seed: u64, config: Config, bug: Bug) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            source: Etcd::new(0xa),
            before: Vec::new(),
            target: Etcd::new(0xb),
            upstream: Claims::new(),
            agents: Vec::new(),
            ghosts: Vec::new(),
            config,
            policy: Policy::default(),
            limits: Limits { page_keys: 4, ..Limits::default() },
            foreign: BTreeSet::new(),
            repair: false,
            meddled: BTreeSet::new(),
            bug,
            violation: None,
            journal: Vec::new(),
            frozen: false,
            backup: None,
            restored: 0,
            reconfigured: 0,
            lost: 0,
            divided: 0,
            ended: 0,
            taken: 0,
            refused: 0,
            touched: 0,
            verbose: std::env::var_os("QUORATE_MIRROR_SEED").is_some(),
            started: 0,
        }
    }

    pub(super) fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        self.random.random_range(0..count)
    }

    pub(super) fn note(&mut self, line: impl Into<String>) {
        self.journal.push(line.into());
    }

    /// Starts a process; what an earlier one has under way stays under way.
    pub(super) fn start(&mut self, mode: Mode, approved: Option<String>) -> usize {
        self.started += 1;
        let settings = Settings {
            id: MirrorId::new("default").unwrap(),
            config: self.config.clone(),
            policy: Some(self.policy),
            limits: self.limits,
            epoch: format!("run-{}", self.started),
            resync: false,
            approved,
            mode,
            ran: false,
            active: None,
            repair: self.repair,
        };
        let keyspace = self.bug.keyspace(&self.config).keyspace().unwrap();
        let ranges = keyspace.spans(Side::Source);
        let (machine, commands) = Machine::start(settings, keyspace);
        self.note(format!("start run-{}", self.started));
        self.agents.push(Agent {
            machine,
            requests: Vec::new(),
            watch: None,
            over: None,
            resent: None,
            ranges,
        });
        let agent = self.agents.len() - 1;
        self.enqueue(agent, commands);
        agent
    }

    /// Kills a process.
    pub(super) fn crash(&mut self, agent: usize) {
        let agent = self.agents.remove(agent);
        for request in agent.requests {
            if let (Command::Commit(transaction), None) = (request.command, request.answer) {
                self.ghosts.push(transaction);
            }
        }
        self.note("crash");
    }

    /// Keys that transactions on their way would add.
    pub(super) fn adding(&self) -> Vec<String> {
        let requests = self.agents.iter().flat_map(|agent| &agent.requests);
        let added = requests.filter_map(|request| match (&request.command, &request.answer) {
            (Command::Commit(transaction), None) => Some(added(transaction, false)),
            _ => None,
        });
        added.flatten().map(|key| String::from_utf8(key).unwrap()).collect()
    }

    /// Whether something may yet arrive from a request that was given up.
    pub(super) fn haunt(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let at = self.below(self.ghosts.len());
        let ghost = self.ghosts.remove(at);
        self.note("late");
        drop(self.transact(&ghost));
    }

    pub(super) fn bury(&mut self) {
        self.ghosts.clear();
    }

    pub(super) fn tell(&mut self, agent: usize, event: Event) {
        for event in self.bug.events(event) {
            if self.agents[agent].over.is_some() {
                return;
            }
            let line = self.verbose.then(|| format!("{event:?}"));
            let commands = self.agents[agent].machine.handle(event);
            if let Some(line) = line.filter(|line| line != "Tick" || !commands.is_empty()) {
                let view = self.agents[agent].machine.view();
                self.note(format!(
                    "  agent {agent}: {line}\n   {} {} -> {commands:?}",
                    view.phase, view.revision
                ));
            }
            self.enqueue(agent, commands);
        }
    }

    fn enqueue(&mut self, agent: usize, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Stop(stop) => {
                    self.note(format!("stop {}", stop.reason()));
                    let changed = matches!(*stop, Stop::CheckpointChanged | Stop::CheckpointLost);
                    if changed && self.restored == 0 {
                        let made_up = format!("made up: {}, and nobody has done that", stop.reason());
                        self.violation.get_or_insert(made_up);
                    }
                    self.agents[agent].over = Some(*stop);
                }
                Command::Progress => self.progress(agent),
                Command::Watch { number, from, watchers } => self.watch(agent, number, from, watchers),
                command @ (Command::Lease(_)
                | Command::ReadOwn
                | Command::Commit(_)
                | Command::ReadTarget(..)
                | Command::Look { .. }
                | Command::CountTarget
                | Command::Park
                | Command::WriteSite(_)
                | Command::Probe { .. }
                | Command::ReadSource(..)) => {
                    let agent = &mut self.agents[agent];
                    if matches!(command, Command::Probe { elsewhere: true }) {
                        agent.requests.retain(|request| !of_source(&request.command));
                        agent.watch = None;
                    }
                    agent.requests.push(Request { command, answer: None });
                }
            }
        }
    }

    fn watch(&mut self, agent: usize, number: u64, from: i64, watchers: Watchers) {
        let from = self.bug.watch_from(from);
        let agent = &mut self.agents[agent];
        let hull = Span {
            start: agent.ranges.iter().map(|span| span.start.clone()).min().unwrap(),
            end: agent.ranges.last().unwrap().end.clone(),
        };
        let spans = if watchers == Watchers::Ranges { agent.ranges.clone() } else { vec![hull] };
        let watcher = |span| Watcher { span, next: from, created: false };
        let watchers = spans.into_iter().map(watcher).collect();
        agent.watch = Some(Watch { number, watchers, sent: VecDeque::new() });
    }

    /// The role may watch mapped ranges only.
    pub(super) fn deny(&mut self, agent: usize) {
        let Some(watch) = self.agents[agent].watch.take() else { return };
        self.tell(agent, Event::WatchDenied(watch.number));
    }

    /// etcd answers only if all watchers of the stream are there and have everything.
    fn progress(&mut self, agent: usize) {
        let (head, cluster) = (self.source.revision, self.source.identity.cluster.0);
        let Some(watch) = &mut self.agents[agent].watch else { return };
        if watch.watchers.iter().all(|watcher| watcher.created && watcher.next == head + 1) {
            watch.sent.push_back(Response { watcher: STREAM, head, cluster, ..Response::default() });
        }
    }

    /// The server sends something on a watch.
    pub(super) fn serve_watch(&mut self, agent: usize) {
        let Some(watch) = &mut self.agents[agent].watch else { return };
        let index = self.random.random_range(0..watch.watchers.len());
        let watcher = &mut watch.watchers[index];
        let head = self.source.revision;
        let cluster = self.source.identity.cluster.0;
        let id = i64::try_from(index).unwrap();
        let empty = Response { watcher: id, head, cluster, ..Response::default() };
        if watcher.next <= head && watcher.next < self.source.compacted {
            let canceled = Canceled { compacted: self.source.compacted, reason: String::new() };
            watch.sent.push_back(Response { created: !watcher.created, canceled: Some(canceled), ..empty });
        } else if !watcher.created {
            watcher.created = true;
            watch.sent.push_back(Response { created: true, ..empty });
        } else if watcher.next <= head {
            let (mut events, mut revisions) = (Vec::new(), 0);
            while watcher.next <= head && revisions < CATCH_UP {
                let changes = self.source.changes(watcher.next, &watcher.span);
                revisions += usize::from(!changes.is_empty());
                events.extend(changes.into_iter().map(|change| event(watcher.next, change)));
                watcher.next += 1;
            }
            while events.len() > FRAGMENT {
                let rest = events.split_off(FRAGMENT);
                watch.sent.push_back(Response { fragment: true, events, ..empty.clone() });
                events = rest;
            }
            if !events.is_empty() {
                watch.sent.push_back(Response { events, ..empty });
            }
        } else {
            // By itself, every now and then.
            watch.sent.push_back(empty);
        }
    }

    /// Something that was sent on a watch arrives.
    pub(super) fn hear(&mut self, agent: usize) {
        let agent_ref = &mut self.agents[agent];
        if !agent_ref.machine.wants_events() {
            return;
        }
        let Some(watch) = &mut agent_ref.watch else { return };
        let Some(response) = watch.sent.pop_front() else { return };
        let number = watch.number;
        self.tell(agent, Event::Watched(number, response));
    }

    /// The connection to the source breaks.
    pub(super) fn cut(&mut self, agent: usize) {
        if let Some(watch) = self.agents[agent].watch.take() {
            self.note("cut");
            self.tell(agent, Event::WatchEnded(watch.number));
        }
    }

    /// The source's process ends: its connections and all that it was asked.
    pub(super) fn cut_all(&mut self, agent: usize) {
        let asked = self.agents[agent].requests.iter().any(|request| of_source(&request.command));
        self.agents[agent].requests.retain(|request| !of_source(&request.command));
        self.cut(agent);
        if asked {
            self.tell(agent, Event::SourceSilent);
        }
    }

    /// One request goes one step further.
    pub(super) fn advance(&mut self, agent: usize, faults: bool) {
        let count = self.agents[agent].requests.len();
        if count == 0 {
            return;
        }
        let at = self.below(count);
        let often = self.bug.loses();
        let lost = faults && self.chance(often);
        self.lost += u64::from(lost);
        if self.agents[agent].requests[at].answer.is_none() {
            if lost {
                return self.lose(agent, at);
            }
            let command = self.agents[agent].requests[at].command.clone();
            let answer = self.carry_out(agent, &command);
            self.agents[agent].requests[at].answer = Some(answer);
            return;
        }
        let request = self.agents[agent].requests.remove(at);
        if lost {
            self.note("answer lost");
            return self.tell(agent, self.bug.silence(&request.command, silent(&request.command)));
        }
        self.tell(agent, request.answer.unwrap());
    }

    /// A request is given up; a transaction may be done later all the same.
    fn lose(&mut self, agent: usize, at: usize) {
        let request = self.agents[agent].requests.remove(at);
        let silent = self.bug.silence(&request.command, silent(&request.command));
        if let Command::Commit(transaction) = request.command {
            self.agents[agent].resent = Some(transaction.clone());
            self.ghosts.push(transaction);
            self.note("given up");
        }
        self.tell(agent, silent);
    }

    fn carry_out(&mut self, agent: usize, command: &Command) -> Event {
        match command {
            Command::ReadOwn => Event::Own(self.own()),
            Command::Commit(transaction) => {
                let again = self.agents[agent].resent.as_ref() == Some(transaction);
                self.touch_claims(transaction);
                let transactions = self.bug.transactions(transaction.clone(), again);
                let taken = |guard: &Guard| matches!(guard, Guard::Vacant(..)) && !self.target.holds(guard);
                self.taken += u64::from(transaction.when.iter().any(taken));
                let mut answer = Event::TargetSilent;
                for transaction in transactions {
                    answer = self.transact(&transaction);
                }
                if let Event::Committed(answer) = &answer {
                    self.refused += u64::from(answer.refused_adds() > 0);
                }
                answer
            }
            Command::ReadTarget(number, span, limit) => {
                let mut page = self.target.range(span, *limit);
                self.bug.leases_of(&mut page, &self.source, &self.config);
                Event::TargetPage(*number, page)
            }
            Command::Look { number, from, through } => Event::Looked(*number, self.look(*from, *through)),
            Command::Lease(request) => Event::Lease(self.lease(request), None),
            Command::CountTarget => Event::TargetCount(self.target.keys.len() as u64),
            Command::Park => {
                self.target.parking = true;
                Event::Parked
            }
            Command::Probe { .. } => Event::Sample(Sample {
                identity: self.source.identity,
                head: self.source.revision,
                site: SeenSite::Absent,
                claims: Some(self.upstream.clone()),
                version: "3.6.16".to_owned(),
            }),
            Command::ReadSource(number, span, limit) => {
                Event::SourcePage(*number, self.source.range(span, *limit))
            }
            Command::Watch { .. } | Command::Progress | Command::WriteSite(_) | Command::Stop(_) => {
                unreachable!("not a request")
            }
        }
    }

    /// At times another mirror has written the claims since they were read: the target is not taken over, or later.
    fn touch_claims(&mut self, transaction: &Transaction) {
        let claims = |guard: &Guard| matches!(guard, Guard::Modified(key, _) if *key == claims_key());
        if let Some(stored) = self.target.stored(&claims_key())
            && transaction.when.iter().any(claims)
            && self.chance(0.1)
        {
            self.note("claims touched");
            self.touched += 1;
            self.target.write(vec![Happened { key: claims_key(), value: Some(stored.value), lease: 0 }]);
        }
    }

    /// Mirrored keys that changed without a checkpoint.
    fn look(&self, from: i64, through: i64) -> Look {
        let keyspace = self.config.keyspace().unwrap();
        let checkpoint = MirrorId::new("default").unwrap().key("checkpoint");
        let mut look = Look::default();
        for revision in from..=through {
            let changes = self.target.history.get(usize::try_from(revision).unwrap());
            let changes = changes.filter(|changes| changes.iter().all(|change| change.key != checkpoint));
            for change in changes.into_iter().flatten() {
                if let Fate::Mirrored(_) = keyspace.of_target(&change.key) {
                    look.writes += 1;
                    look.first.get_or_insert(revision);
                    look.keys.push(change.key.clone());
                }
            }
        }
        look
    }

    /// A request about leases is carried out.
    fn lease(&mut self, request: &LeaseRequest) -> LeaseAnswer {
        let renewed = |target: &mut Etcd, id: i64| (id, i64::from(target.renew(id)));
        match request {
            LeaseRequest::Grant(ids) => {
                if self.bug != Bug::GrantSkipped {
                    for id in ids {
                        let seconds = self.source.leases.get(id).map_or(PASSING, |lease| lease.seconds);
                        self.target.grant(*id, seconds);
                    }
                    return LeaseAnswer::Granted(
                        ids.iter().map(|id| renewed(&mut self.target, *id)).collect(),
                    );
                }
                LeaseAnswer::Granted(ids.iter().map(|id| (*id, 60)).collect())
            }
            LeaseRequest::Keep(ids) => {
                let mut kept: Vec<(i64, i64)> = Vec::new();
                for (id, _) in ids {
                    let ends = self.bug == Bug::NotKept;
                    kept.push(if ends { (*id, 60) } else { renewed(&mut self.target, *id) });
                }
                if self.bug == Bug::LossUnseen {
                    for (_, seconds) in &mut kept {
                        *seconds = (*seconds).max(2);
                    }
                }
                LeaseAnswer::Kept(kept)
            }
            LeaseRequest::Look(ids) => {
                let forgets = self.bug == Bug::ForgottenEarly;
                let gone = ids.iter().filter(|id| forgets || !self.source.leases.contains_key(id));
                LeaseAnswer::Looked(gone.copied().collect(), self.source.revision)
            }
        }
    }

    /// A tenth of a second passes: of an agent, and of leases of the target. Those of the source have owners.
    pub(super) fn tick(&mut self, agent: usize) {
        for id in self.target.age() {
            self.note(format!("lease {id} ends in the target"));
            self.ended += 1;
        }
        self.tell(agent, Event::Tick);
    }

    fn own(&self) -> Own {
        let id = MirrorId::new("default").unwrap();
        Own {
            cluster: self.target.identity.cluster.0,
            revision: self.target.revision,
            owner: self.target.stored(&id.key("owner")),
            checkpoint: self.target.stored(&id.key("checkpoint")),
            site: self.target.stored(&id.key("site")),
            claims: self.target.stored(&claims_key()),
        }
    }

    /// A transaction of an agent reaches the target, and is judged.
    fn transact(&mut self, transaction: &Transaction) -> Event {
        let before = self.target.clone();
        match self.target.transact(transaction) {
            Err(refusal) => {
                self.note(format!("target: {refusal:?}"));
                Event::Refused(refusal)
            }
            Ok(answer) => {
                let line = told(transaction, answer.succeeded);
                self.note(line);
                if self.target.revision > before.revision
                    && let Err(violation) = judge::transaction(self, &before)
                {
                    self.violation.get_or_insert(violation);
                }
                Event::Committed(answer)
            }
        }
    }

    /// Somebody writes to the source.
    pub(super) fn write(&mut self, changes: Vec<(String, Option<String>, i64)>) {
        let changes = changes.into_iter().map(|(key, value, lease)| Happened {
            key: key.into_bytes(),
            value: value.map(String::into_bytes),
            lease,
        });
        self.source.write(changes.collect());
    }

    pub(super) fn idle(&self, agent: usize) -> bool {
        let agent = &self.agents[agent];
        agent.requests.is_empty() && agent.watch.as_ref().is_none_or(|watch| watch.sent.is_empty())
    }
}

fn of_source(command: &Command) -> bool {
    matches!(command, Command::Probe { .. } | Command::ReadSource(..))
}

fn event(revision: i64, change: Happened) -> WatchEvent {
    let Happened { key, value, lease } = change;
    WatchEvent { revision, change: Change { key, value, lease } }
}

/// What comes of a request without an answer.
fn silent(command: &Command) -> Event {
    if let Command::Lease(request) = command {
        let (answer, side) = match request {
            LeaseRequest::Grant(_) => (LeaseAnswer::Granted(Vec::new()), Side::Source),
            LeaseRequest::Keep(_) => (LeaseAnswer::Kept(Vec::new()), Side::Target),
            LeaseRequest::Look(_) => (LeaseAnswer::Looked(Vec::new(), 0), Side::Source),
        };
        return Event::Lease(answer, Some(side));
    }
    if let Command::ReadTarget(number, ..) = command {
        Event::TargetPageLost(*number)
    } else if let Command::Look { number, .. } = command {
        Event::LookLost(*number)
    } else if of_source(command) {
        Event::SourceSilent
    } else {
        Event::TargetSilent
    }
}

/// A transaction as the journal has it.
fn told(transaction: &Transaction, succeeded: bool) -> String {
    let id = MirrorId::new("default").unwrap();
    let checkpoint = put_of(&transaction.then, &id.key("checkpoint")).map(String::from_utf8_lossy);
    let checkpoint = checkpoint.as_deref().and_then(|text| text.split(",\"source\"").next()).unwrap_or("");
    format!(
        "target: {} {} {checkpoint}",
        if succeeded { "done" } else { "refused" },
        shown(&transaction.then)
    )
}

fn shown(nodes: &[Node]) -> String {
    let shown = nodes.iter().map(|node| match node {
        Node::Put { key, .. } if key.starts_with(b"/__quorate") => String::new(),
        Node::Put { key, value, .. } => format!("{}={} ", key.escape_ascii(), value.escape_ascii()),
        Node::Delete(key) => format!("{}=- ", key.escape_ascii()),
        Node::Get(_) => String::new(),
        Node::Nested(nested) if nested.when.is_empty() => shown(&nested.then),
        Node::Nested(nested) => format!("+{}", shown(&nested.then)),
    });
    shown.collect()
}

/// Keys that are put on the condition that they are not there.
fn added(transaction: &Transaction, nested: bool) -> Vec<Vec<u8>> {
    let absent = |guard: &Guard| match guard {
        Guard::Vacant(..) => true,
        Guard::Created(_, revision) => *revision == 0,
        Guard::Value(..) | Guard::Modified(..) => false,
    };
    let adds = nested || transaction.when.iter().any(absent);
    let keys = transaction.then.iter().map(|node| match node {
        Node::Put { key, .. } if adds && !key.starts_with(b"/__quorate/") => vec![key.clone()],
        Node::Nested(nested) => added(nested, adds),
        Node::Put { .. } | Node::Delete(_) | Node::Get(_) => Vec::new(),
    });
    keys.flatten().collect()
}

/// What a transaction puts under this key, at any depth.
pub(super) fn put_of<'a>(nodes: &'a [Node], name: &[u8]) -> Option<&'a [u8]> {
    nodes.iter().find_map(|node| match node {
        Node::Put { key, value, .. } if key == name => Some(value.as_slice()),
        Node::Nested(nested) => put_of(&nested.then, name),
        Node::Put { .. } | Node::Delete(_) | Node::Get(_) => None,
    })
}
