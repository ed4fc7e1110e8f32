//! Writes, reads and watches while the cluster is disturbed, and notes what came of it. It judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use quorate::etcd::connect::{Address, ClientIdentity, connect};
use quorate::etcd::survey::chain;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::check::agreement;
use crate::history::{
    Call, End, Event, History, Listed, MemberEnd, Operation, Outcome, Revision, Stored, Swapped, Watched,
};

/// Addresses are asked for, and whoever came or went is noticed, so often.
const LOOK: Duration = Duration::from_millis(250);
/// Asking for addresses is given up after so long; the old ones are used on.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How often the recorder notes that it runs: the grain of `longest_stall`.
const PULSE: Duration = Duration::from_millis(20);
/// A watcher that hears nothing for so long asks anew: a member that vanished with its node says no goodbye.
const SILENCE: Duration = Duration::from_secs(2);
/// A call after the load: nothing is measured by it, and a hash takes longer than a write.
const CALM_DEADLINE: Duration = Duration::from_secs(5);
/// Of so many writes of a writer one is a delete.
const DELETE_EVERY: usize = 8;
/// Of so many swaps one expects what never was.
const VAIN_EVERY: usize = 6;
/// Answers by which etcd says that it proposed nothing. "Database space exceeded" is none: a quota that runs out
/// between proposal and apply gives it to a put that was done (quotaApplierV3 of server/etcdserver).
const REFUSALS: [&str; 4] = [
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
    "etcdserver: permission denied",
    "etcdserver: request is too large",
];

/// How much load.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// So many clients put and delete; one more swaps, and one reads.
    pub writers: usize,
    /// The writers share so many keys.
    pub keys: usize,
    /// Each client waits so long between its calls.
    pub pause_ms: u64,
    /// A call without an answer after so long has an unknown end.
    pub deadline: Duration,
}

impl Default for Settings {
    /// About 50 writes and 12 reads a second: a machine of two cores has time left for the cluster under test.
    fn default() -> Self {
        Self { writers: 3, keys: 12, pause_ms: 80, deadline: Duration::from_secs(1) }
    }
}

/// Puts load on whatever members there are until `stop` is set.
pub async fn run(
    addresses: impl AsyncFn() -> BTreeMap<String, Address>,
    identity: Option<ClientIdentity>,
    settings: Settings,
    stop: &AtomicBool,
) -> History {
    let history = History { prefix: new_prefix(), ..History::default() };
    let recorder = Recorder::new(history, identity, settings.deadline);
    let load = async {
        if recorder.begin(stop).await {
            let writers =
                join_all((0..settings.writers).map(|writer| recorder.write(writer, settings, stop)));
            let (swapper, reader) = (recorder.swap(settings, stop), recorder.read_all(settings, stop));
            tokio::join!(writers, swapper, reader, recorder.watch_all(stop));
        }
    };
    tokio::join!(load, recorder.look(&addresses, stop), recorder.pulse(stop));
    recorder.into_history()
}

/// Waits until all members answer and agree, `patience` at most, and notes what each of them holds.
pub async fn finish(
    history: History,
    addresses: impl AsyncFn() -> BTreeMap<String, Address>,
    identity: Option<ClientIdentity>,
    patience: Duration,
) -> History {
    let recorder = Recorder::new(history, identity, CALM_DEADLINE);
    let begun = Instant::now();
    let mut tick = interval(LOOK);
    loop {
        tick.tick().await;
        if let Ok(members) = timeout(LOOK_DEADLINE, addresses()).await {
            let end = recorder.end(members).await;
            let calm = !end.members.is_empty() && agreement(&end).is_empty();
            recorder.history().end = Some(end);
            if calm {
                break;
            }
        }
        if begun.elapsed() > patience {
            break;
        }
    }
    recorder.into_history()
}

/// Writes a history to a file.
pub fn keep(history: &History, path: &Path) -> io::Result<()> {
    let file = BufWriter::new(File::create(path)?);
    serde_json::to_writer(file, history).map_err(io::Error::from)
}

/// Reads what [`keep`] wrote.
pub fn kept(path: &Path) -> io::Result<History> {
    serde_json::from_reader(BufReader::new(File::open(path)?)).map_err(io::Error::from)
}

/// Below it nobody else ever wrote.
fn new_prefix() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("history/{:x}-{:x}/", since.as_nanos(), process::id())
}

fn is_set(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// The pace of one client: calls that took long are not made up for.
fn pace(settings: Settings) -> Interval {
    let mut tick = interval(Duration::from_millis(settings.pause_ms.max(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// What all clients share.
struct Recorder {
    begun: Instant,
    /// Where the clock of the history stood then.
    offset: Duration,
    identity: Option<ClientIdentity>,
    deadline: Duration,
    members: Mutex<BTreeMap<String, Address>>,
    history: Mutex<History>,
}

impl Recorder {
    fn new(history: History, identity: Option<ClientIdentity>, deadline: Duration) -> Self {
        let offset = history.latest();
        let (members, history) = (Mutex::default(), Mutex::new(history));
        Self { begun: Instant::now(), offset, identity, deadline, members, history }
    }

    fn into_history(self) -> History {
        self.history.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.offset + self.begun.elapsed()
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Address>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prefix(&self) -> String {
        self.history().prefix.clone()
    }

    /// Keeps the addresses fresh: a Pod that comes back has another one.
    async fn look(&self, addresses: &impl AsyncFn() -> BTreeMap<String, Address>, stop: &AtomicBool) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !is_set(stop) {
            tick.tick().await;
            if let Ok(members) = timeout(LOOK_DEADLINE, addresses()).await {
                *self.members() = members;
            }
        }
    }

    /// Measures how long the recorder itself stood still, and when it was stopped.
    async fn pulse(&self, stop: &AtomicBool) {
        let mut tick = interval(PULSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = self.now();
        while !is_set(stop) {
            tick.tick().await;
            let now = self.now();
            let stall = now.saturating_sub(last + PULSE);
            let mut history = self.history();
            history.longest_stall = history.longest_stall.max(stall);
            drop(history);
            last = now;
        }
        self.history().ended = self.now();
    }

    /// Notes the revision before the first write; `false`: stopped before any member answered.
    async fn begin(&self, stop: &AtomicBool) -> bool {
        let mut caller = Caller::new(self, "start", 0);
        let mut tick = interval(PULSE);
        while !is_set(stop) {
            tick.tick().await;
            let Some((_, mut client)) = caller.client().await else { continue };
            let everything = GetOptions::new().with_all_keys().with_count_only();
            let answer = self.within(client.get("", Some(everything))).await;
            if let Some(revision) = answer.ok().and_then(|answer| Some(answer.header()?.revision())) {
                self.history().start = revision;
                return true;
            }
            caller.turn += 1;
        }
        false
    }

    async fn write(&self, writer: usize, settings: Settings, stop: &AtomicBool) {
        let (name, prefix) = (format!("writer-{writer}"), self.prefix());
        let mut caller = Caller::new(self, &name, writer);
        let mut tick = pace(settings);
        for number in 0_usize.. {
            tick.tick().await;
            if is_set(stop) {
                return;
            }
            let key = format!("{prefix}{}", (number + writer) % settings.keys.max(1));
            if number % DELETE_EVERY == DELETE_EVERY - 1 {
                caller.delete(key).await;
            } else {
                caller.put(key, format!("{name}/{number}")).await;
            }
        }
    }

    async fn swap(&self, settings: Settings, stop: &AtomicBool) {
        let mut caller = Caller::new(self, "swapper", settings.writers);
        let mut tick = pace(settings);
        let mut held: Option<String> = None;
        for number in 0_usize.. {
            tick.tick().await;
            if is_set(stop) {
                return;
            }
            let value = format!("swapper/{number}");
            let vain = number % VAIN_EVERY == VAIN_EVERY - 1;
            let expected = if vain { Some("never".to_owned()) } else { held.clone() };
            match caller.swap(expected, value.clone()).await {
                Some(Outcome::Acknowledged { answer: Swapped::Done, .. }) => held = Some(value),
                Some(Outcome::Acknowledged { answer: Swapped::Held(found), .. }) => held = found,
                Some(Outcome::Failed(_) | Outcome::Unknown(_)) | None => {}
            }
        }
    }

    /// Reads at one member after the other, in both ways at each.
    async fn read_all(&self, settings: Settings, stop: &AtomicBool) {
        let mut caller = Caller::new(self, "reader", 0);
        let mut tick = pace(settings);
        while !is_set(stop) {
            for linearizable in [true, false] {
                tick.tick().await;
                caller.read(linearizable).await;
            }
            caller.turn += 1;
        }
    }

    /// One watcher a member, for as long as there is a member of that name.
    async fn watch_all(&self, stop: &AtomicBool) {
        let mut watched = BTreeSet::new();
        let mut running = FuturesUnordered::new();
        let mut tick = interval(LOOK);
        while !is_set(stop) {
            let names: Vec<String> = self.members().keys().cloned().collect();
            for name in names {
                if watched.insert(name.clone()) {
                    running.push(self.watch(name, stop));
                }
            }
            tokio::select! {
                Some(gone) = running.next() => {
                    watched.remove(&gone);
                }
                _ = tick.tick() => {}
            }
        }
    }

    /// Follows one member through its restarts; returns the name of one that is gone.
    async fn watch(&self, name: String, stop: &AtomicBool) -> String {
        let address = || self.members().get(&name).cloned();
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let (Some(dialled), false) = (address(), is_set(stop)) {
            tick.tick().await;
            let Ok(client) = connect(&dialled, self.identity.as_ref()).await else { continue };
            let over = |_: Revision| is_set(stop) || address().as_ref() != Some(&dialled);
            // Why it broke is not kept: the history says where it went on.
            drop(self.follow(&name, client, over).await);
        }
        name
    }

    /// Watches all keys from where this member's watcher was, until it is over or breaks; `over` is told the next
    /// revision.
    async fn follow(
        &self,
        member: &str,
        mut client: Client,
        over: impl Fn(Revision) -> bool,
    ) -> Result<(), String> {
        let from = self.history().next_revision(member);
        if over(from) {
            return Ok(());
        }
        let everything = WatchOptions::new().with_all_keys().with_start_revision(from);
        let mut stream = self.within(client.watch("", Some(everything))).await?;
        self.saw(member, Watched::Resumed { at: self.now(), from });
        let (mut next, mut heard) = (from, Instant::now());
        while !over(next) {
            let Ok(message) = timeout(LOOK, stream.message()).await else {
                if heard.elapsed() > SILENCE {
                    return Err(format!("its watcher waits for revision {next} in vain"));
                }
                continue;
            };
            heard = Instant::now();
            let response = message.map_err(|error| words(&error))?.ok_or("its watch ended")?;
            let at = self.now();
            if response.compact_revision() > 0 {
                self.saw(member, Watched::Compacted { at, revision: response.compact_revision() });
            }
            if response.canceled() {
                return Err(format!("its watch was cancelled: {}", response.cancel_reason()));
            }
            let events: Vec<Event> = response.events().iter().filter_map(event).collect();
            if let Some(last) = events.last() {
                next = last.revision + 1;
                self.saw(member, Watched::Response { at, events });
            }
        }
        Ok(())
    }

    fn saw(&self, member: &str, watched: Watched) {
        self.history().watchers.entry(member.to_owned()).or_default().push(watched);
    }

    /// What all members have, compared at the highest revision that any of them gave.
    async fn end(&self, members: BTreeMap<String, Address>) -> End {
        let ask = async |(name, address): (String, Address)| {
            let reached = self.reach(&name, &address).await;
            (name, reached)
        };
        let reached = join_all(members.into_iter().map(ask)).await;
        let revisions = reached.iter().filter_map(|(_, reached)| Some(reached.as_ref().ok()?.1));
        let revision = revisions.max().unwrap_or(self.history().start);
        let ask = async |(name, reached): (String, Result<(Client, Revision), String>)| {
            let end = match reached {
                Ok((client, _)) => self.member_end(&name, client, revision).await,
                Err(why) => Err(why),
            };
            (name, end)
        };
        let members = join_all(reached.into_iter().map(ask)).await.into_iter().collect();
        End { revision, members }
    }

    /// A last linearizable read through one member: it must know all that was acknowledged.
    async fn reach(&self, member: &str, address: &Address) -> Result<(Client, Revision), String> {
        let mut client = connect(address, self.identity.as_ref()).await.map_err(|error| chain(&error))?;
        match self.read(("end", member), &mut client, true).await {
            Outcome::Acknowledged { revision, .. } => Ok((client, revision)),
            Outcome::Failed(why) | Outcome::Unknown(why) => Err(why),
        }
    }

    async fn member_end(
        &self,
        member: &str,
        mut client: Client,
        revision: Revision,
    ) -> Result<MemberEnd, String> {
        self.follow(member, client.clone(), |next| next > revision).await?;
        let hash = self.within(client.hash_kv(revision)).await?;
        let list = self.within(client.member_list()).await?;
        let row = |member: &etcd_client::Member| {
            let listed = Listed {
                name: member.name().to_owned(),
                peer_urls: member.peer_urls().to_vec(),
                client_urls: member.client_urls().to_vec(),
                learner: member.is_learner(),
            };
            (member.id(), listed)
        };
        Ok(MemberEnd {
            cluster_id: hash.header().ok_or("a hash without a header")?.cluster_id(),
            hash: hash.hash(),
            compact_revision: hash.compact_version(),
            listed: list.members().iter().map(row).collect(),
        })
    }

    /// Makes one call and notes it; `who`: the client's name and the member's.
    async fn call<A: Clone>(
        &self,
        who: (&str, &str),
        ask: impl Future<Output = Result<Option<(Revision, A)>, etcd_client::Error>>,
        call: impl FnOnce(Outcome<A>) -> Call,
    ) -> Outcome<A> {
        let invoked = self.now();
        let answer = timeout(self.deadline, ask).await;
        let returned = self.now();
        let outcome = match answer {
            Err(_) => Outcome::Unknown("no answer in time".to_owned()),
            Ok(Ok(Some((revision, answer)))) => Outcome::Acknowledged { revision, answer },
            Ok(Ok(None)) => Outcome::Unknown("an answer without what was asked".to_owned()),
            Ok(Err(error)) => {
                let why = words(&error);
                if REFUSALS.contains(&why.as_str()) { Outcome::Failed(why) } else { Outcome::Unknown(why) }
            }
        };
        let (client, member) = (who.0.to_owned(), who.1.to_owned());
        let call = call(outcome.clone());
        self.history().operations.push(Operation { client, member, invoked, returned, call });
        outcome
    }

    async fn read(
        &self,
        who: (&str, &str),
        client: &mut Client,
        linearizable: bool,
    ) -> Outcome<BTreeMap<String, Stored>> {
        let below = GetOptions::new().with_prefix();
        let options = if linearizable { below } else { below.with_serializable() };
        let prefix = self.prefix();
        let ask = async {
            let answer = client.get(prefix, Some(options)).await?;
            let stored = answer.kvs().iter().map(|pair| {
                let stored = Stored { value: text(pair.value()), revision: pair.mod_revision() };
                (text(pair.key()), stored)
            });
            Ok(answer.header().map(|header| (header.revision(), stored.collect())))
        };
        self.call(who, ask, |outcome| Call::Read { linearizable, outcome }).await
    }

    /// An answer within the deadline, or words.
    async fn within<A>(&self, ask: impl Future<Output = Result<A, etcd_client::Error>>) -> Result<A, String> {
        match timeout(self.deadline, ask).await {
            Err(_) => Err(format!("no answer within {} s", self.deadline.as_secs_f64())),
            Ok(answer) => answer.map_err(|error| words(&error)),
        }
    }
}

/// One client. It stays with a member until that fails it.
struct Caller<'r> {
    recorder: &'r Recorder,
    name: String,
    /// Which of the members, counted round and round.
    turn: usize,
    clients: BTreeMap<String, (Address, Client)>,
}

impl<'r> Caller<'r> {
    fn new(recorder: &'r Recorder, name: &str, turn: usize) -> Self {
        Self { recorder, name: name.to_owned(), turn, clients: BTreeMap::new() }
    }

    /// The member whose turn it is, and a client of it; a member that cannot be reached loses its turn.
    async fn client(&mut self) -> Option<(String, Client)> {
        let (member, address) = {
            let members = self.recorder.members();
            let turn = self.turn.checked_rem(members.len())?;
            members.iter().nth(turn).map(|(name, address)| (name.clone(), address.clone()))?
        };
        if let Some((dialled, client)) = self.clients.get(&member)
            && *dialled == address
        {
            return Some((member, client.clone()));
        }
        let dial = connect(&address, self.recorder.identity.as_ref());
        let Ok(Ok(client)) = timeout(self.recorder.deadline, dial).await else {
            self.turn += 1;
            return None;
        };
        self.clients.insert(member.clone(), (address, client.clone()));
        Some((member, client))
    }

    /// A member that did not acknowledge is left for the next one.
    fn note<A>(&mut self, member: &str, outcome: &Outcome<A>) {
        if outcome.revision().is_none() {
            self.clients.remove(member);
            self.turn += 1;
        }
    }

    async fn put(&mut self, key: String, value: String) {
        let Some((member, mut client)) = self.client().await else { return };
        let (put_key, put_value) = (key.clone(), value.clone());
        let ask = async {
            let answer = client.put(put_key, put_value, None).await?;
            Ok(answer.header().map(|header| (header.revision(), ())))
        };
        let call = |outcome| Call::Put { key, value, outcome };
        let outcome = self.recorder.call((&self.name, &member), ask, call).await;
        self.note(&member, &outcome);
    }

    async fn delete(&mut self, key: String) {
        let Some((member, mut client)) = self.client().await else { return };
        let deleted_key = key.clone();
        let ask = async {
            let answer = client.delete(deleted_key, None).await?;
            Ok(answer.header().map(|header| (header.revision(), answer.deleted() > 0)))
        };
        let call = |outcome| Call::Delete { key, outcome };
        let outcome = self.recorder.call((&self.name, &member), ask, call).await;
        self.note(&member, &outcome);
    }

    async fn swap(&mut self, expected: Option<String>, value: String) -> Option<Outcome<Swapped>> {
        let (member, mut client) = self.client().await?;
        let prefix = self.recorder.prefix();
        let (key, witness) = (format!("{prefix}register"), format!("{prefix}witness"));
        let compare = match &expected {
            Some(expected) => Compare::value(key.as_str(), CompareOp::Equal, expected.as_str()),
            // A key that is not there has no value to compare with.
            None => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        };
        let puts = [&key, &witness].map(|key| TxnOp::put(key.as_str(), value.as_str(), None));
        let txn = Txn::new().when([compare]).and_then(puts).or_else([TxnOp::get(key.as_str(), None)]);
        let ask = async {
            let answer = client.txn(txn).await?;
            let swapped =
                if answer.succeeded() { Some(Swapped::Done) } else { found(&answer.op_responses()) };
            Ok(answer.header().map(etcd_client::ResponseHeader::revision).zip(swapped))
        };
        let call = |outcome| Call::Swap { key, witness, expected, value, outcome };
        let outcome = self.recorder.call((&self.name, &member), ask, call).await;
        self.note(&member, &outcome);
        Some(outcome)
    }

    async fn read(&mut self, linearizable: bool) {
        let Some((member, mut client)) = self.client().await else { return };
        let outcome = self.recorder.read((&self.name, &member), &mut client, linearizable).await;
        self.note(&member, &outcome);
    }
}

/// What a swap in vain found.
fn found(answers: &[TxnOpResponse]) -> Option<Swapped> {
    let Some(TxnOpResponse::Get(answer)) = answers.first() else { return None };
    Some(Swapped::Held(answer.kvs().first().map(|pair| text(pair.value()))))
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let pair = event.kv()?;
    let value = match event.event_type() {
        etcd_client::EventType::Put => Some(text(pair.value())),
        etcd_client::EventType::Delete => None,
    };
    Some(Event { revision: pair.mod_revision(), key: text(pair.key()), value })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// etcd's own words, or the way to it.
fn words(error: &etcd_client::Error) -> String {
    if let etcd_client::Error::GRpcStatus(status) = error {
        return status.message().to_owned();
    }
    chain(error)
}
