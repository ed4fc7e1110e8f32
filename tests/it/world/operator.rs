//! The operator's ways to Kubernetes and etcd, with a gate in front of every request.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request as HttpRequest, Response};
use kube::client::Body;
use kube::runtime::controller::Action;
use quorate::api::EtcdCluster;
use quorate::etcd::connect::{Address, ClientIdentity};
use quorate::etcd::hash::KeyHash;
use quorate::etcd::membership::{Asked, Call, ChangeError, Members, Roll};
use quorate::etcd::survey::{Answer, ListedMember, QuorumAnswer, Silence, Survey};
use quorate::operator::cluster::reconcile::reconcile;
use quorate::operator::context::{Authority, Context, Planner};
use quorate::operator::failure::ReconcileError;
use quorate::operator::metrics::Metrics;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::apiserver::{Request, failure, identity, text};
use super::etcd::{self, Error, Millis};
use super::{CLUSTER, NAMESPACE, World, invariants, kubelet};

/// What goes wrong in a pass. Requests and writes are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The n-th request waits until it is let go: what was read before is old by then.
    Hold(usize),
    /// The process dies right after the n-th write was done.
    Crash(usize),
    /// The n-th write is done, and its answer lost.
    Lose(usize),
    /// The n-th request is answered with that code, and nothing is done.
    Fail(usize, u16),
}

/// What the gate tells the one who drives the operator.
enum Signal {
    Held,
    Crashed,
}

#[derive(Default)]
struct Orders {
    fault: Option<Fault>,
    requests: usize,
    writes: usize,
}

struct Gate {
    world: Shared,
    orders: Mutex<Orders>,
    signals: mpsc::UnboundedSender<Signal>,
    released: Notify,
}

pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change of the member list has no effect when it arrives later than this: whoever asked has hung up.
const HANGS_UP: Millis = 8_000;

/// How a request is to be treated.
struct Ruling {
    /// How long it was under way.
    held: Millis,
    code: Option<u16>,
    crash: bool,
    lose: bool,
}

impl Gate {
    async fn enter(&self, is_write: bool) -> Ruling {
        let (fault, requests, writes) = {
            let mut orders = lock(&self.orders);
            orders.requests += 1;
            orders.writes += usize::from(is_write);
            (orders.fault, orders.requests, orders.writes)
        };
        let sent = lock(&self.world).now;
        if fault == Some(Fault::Hold(requests)) {
            self.signals.send(Signal::Held).unwrap();
            self.released.notified().await;
        }
        let code = match fault {
            Some(Fault::Fail(at, code)) if at == requests => Some(code),
            _ => None,
        };
        Ruling {
            held: lock(&self.world).now - sent,
            code,
            crash: is_write && fault == Some(Fault::Crash(writes)),
            lose: is_write && fault == Some(Fault::Lose(writes)),
        }
    }

    /// After a write: no answer may come.
    async fn leave(&self, ruling: &Ruling) {
        if ruling.crash {
            self.signals.send(Signal::Crashed).unwrap();
        }
        if ruling.crash || ruling.lose {
            std::future::pending::<()>().await;
        }
    }
}

type Reconcile = Pin<Box<dyn Future<Output = Result<Action, ReconcileError>>>>;

/// One operator process.
pub(crate) struct Operator {
    name: &'static str,
    world: Shared,
    planner: Planner,
    context: Arc<Context>,
    gate: Arc<Gate>,
    signals: mpsc::UnboundedReceiver<Signal>,
    pass: Option<Reconcile>,
}

impl Operator {
    pub(crate) fn new(name: &'static str, world: &Shared, planner: Planner) -> Self {
        let (sender, signals) = mpsc::unbounded_channel();
        let gate = Arc::new(Gate {
            world: world.clone(),
            orders: Mutex::default(),
            signals: sender,
            released: Notify::new(),
        });
        let context = context(name, world, &gate, planner);
        Self { name, world: world.clone(), planner, context, gate, signals, pass: None }
    }

    /// Begins a pass and goes on until it ends, is held or crashes. One that is held already only goes on.
    pub(crate) async fn passes(&mut self, fault: Option<Fault>) {
        if self.pass.is_some() {
            return self.goes_on().await;
        }
        lock(&self.world).stale = false;
        let object = lock(&self.world).cluster().cloned();
        let object = object.unwrap_or_else(|| json!({"apiVersion": "quorate.dev/v1alpha1", "kind": "EtcdCluster", "metadata": {"name": CLUSTER, "namespace": NAMESPACE}, "spec": {}}));
        let object: EtcdCluster = serde_json::from_value(object).unwrap();
        *lock(&self.gate.orders) = Orders { fault, ..Orders::default() };
        self.pass = Some(Box::pin(reconcile(Arc::new(object), self.context.clone())));
        self.drive().await;
    }

    /// A pass that was held goes on.
    pub(crate) async fn goes_on(&mut self) {
        if self.pass.is_some() {
            lock(&self.world).stale = true;
            self.gate.released.notify_one();
            self.drive().await;
        }
    }

    /// kill -9: what it knew is gone.
    pub(crate) fn dies(&mut self) {
        self.pass = None;
        *self = Self::new(self.name, &self.world, self.planner);
    }

    /// How many writes the last pass made.
    pub(crate) fn writes(&self) -> usize {
        lock(&self.gate.orders).writes
    }

    async fn drive(&mut self) {
        let Some(pass) = &mut self.pass else { return };
        let signal = tokio::select! {
            biased;
            signal = self.signals.recv() => signal,
            result = pass => {
                if let Err(error) = result {
                    let text = quorate::etcd::survey::chain(&error);
                    lock(&self.world).note(&format!("{}: {text}", self.name));
                }
                self.pass = None;
                None
            }
        };
        match signal {
            Some(Signal::Crashed) => {
                lock(&self.world).note(&format!("{} crashes", self.name));
                self.dies();
            }
            Some(Signal::Held) | None => {}
        }
    }
}

fn context(name: &'static str, world: &Shared, gate: &Arc<Gate>, planner: Planner) -> Arc<Context> {
    let service = {
        let gate = gate.clone();
        tower::service_fn(move |request: HttpRequest<Body>| {
            let gate = gate.clone();
            async move { Ok::<_, std::convert::Infallible>(serve(&gate, request).await) }
        })
    };
    let client = kube::Client::new(service, NAMESPACE);
    let authority = Arc::new(Authority::default());
    authority.extend(Instant::now() + Duration::from_hours(24));
    let clock = {
        let world = world.clone();
        Arc::new(move || lock(&world).timestamp_of(name))
    };
    let image = "quorate:world".to_owned();
    let mut context =
        Context::new(client, Arc::new(Way(gate.clone())), clock, image, Arc::new(Metrics::new()), authority);
    context.planner = planner;
    Arc::new(context)
}

async fn serve(gate: &Gate, request: HttpRequest<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect_bytes().await.unwrap();
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let request = Request::parse(parts.method.as_str(), path, query, body)
        .unwrap_or_else(|| panic!("the world does not know {} {path}", parts.method));
    let ruling = gate.enter(request.is_write()).await;
    let (code, answer) = match ruling.code {
        Some(404) => failure(404, "NotFound", "not found"),
        Some(409) => failure(409, "Conflict", "the object has been modified"),
        Some(429) => failure(429, "TooManyRequests", "too many requests"),
        Some(code) => failure(code, "InternalError", "the apiserver is ill"),
        None => act(&mut lock(&gate.world), &request),
    };
    gate.leave(&ruling).await;
    let body = Body::from(serde_json::to_vec(&answer).unwrap());
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

/// Does what is asked for, between two looks at the invariants.
fn act(world: &mut World, request: &Request) -> (u16, Value) {
    if !request.is_write() {
        return world.api.answer(request, "");
    }
    let before = invariants::Truth::of(world);
    invariants::before_write(world, request);
    let now = world.clock();
    let (code, answer) = world.api.answer(request, &now);
    if request.kind == "Event" && !request.body["note"].is_null() {
        world.note(&format!(
            "  {}: {}",
            request.body["reason"].as_str().unwrap_or_default(),
            request.body["note"].as_str().unwrap_or_default()
        ));
    } else if request.kind != "Event" && code < 300 {
        let name = request.name.clone().or_else(|| text(&request.body, "/metadata/name")).unwrap_or_default();
        let part = if request.status { "/status" } else { "" };
        world.note(&format!("{} {} {name}{part}", request.method, request.kind));
    }
    invariants::after_effect(world, before.as_ref());
    (code, answer)
}

/// gRPC to the members, as far as the operator can reach them.
struct Way(Arc<Gate>);

/// The process behind an address, if the operator gets there and the name is its own.
fn process(world: &World, address: &Address) -> Result<String, Silence> {
    let silence = || Err(format!("cannot connect to {}: connection refused", address.dial));
    let ip = address.dial.split(':').next().unwrap_or_default();
    let pod = world.api.all("Pod").find(|pod| pod["status"]["podIP"] == ip);
    let Some((name, uid)) = pod.map(identity) else { return silence() };
    let right_name = address.name.starts_with(&format!("{name}."));
    if !right_name
        || world.unreachable.contains(&name)
        || !world.containers.get(&uid).is_some_and(|container| container.runs)
    {
        return silence();
    }
    Ok(uid)
}

fn listed(members: Vec<etcd::Member>) -> Vec<ListedMember> {
    let row = |member: etcd::Member| ListedMember {
        id: member.id,
        name: if member.published { member.name } else { String::new() },
        peer_urls: vec![member.peer_url],
        learner: member.learner,
    };
    members.into_iter().map(row).collect()
}

fn ask(world: &mut World, address: &Address) -> Result<Answer, Silence> {
    let process = process(world, address)?;
    let status = world.etcd.status(&process).map_err(|error| error.message().to_owned())?;
    let quorum = if status.learner { None } else { ask_quorum(world, &process).ok() };
    let name = text(
        world.api.all("Pod").find(|pod| identity(pod).1 == process).unwrap_or(&Value::Null),
        "/metadata/name",
    );
    let old = name.and_then(|name| text(world.api.get("Pod", &name)?, "/spec/containers/0/image"));
    Ok(Answer {
        cluster_id: status.cluster,
        member_id: status.member,
        leader: status.leader,
        learner: status.learner,
        raft_term: status.term,
        applied_index: status.applied,
        revision: i64::try_from(status.revision).unwrap(),
        db_size_bytes: 4096,
        version: if old.is_some_and(|image| image.contains("v3.5")) { "3.5.35" } else { "3.6.16" }.to_owned(),
        errors: Vec::new(),
        quorum,
    })
}

fn ask_quorum(world: &mut World, process: &str) -> Result<QuorumAnswer, Error> {
    world.etcd.read(process)?;
    let members = listed(world.etcd.member_list(process, false)?);
    let alarms = world.etcd.alarms(process)?.into_iter().collect();
    Ok(QuorumAnswer { members, alarms })
}

fn change_error(error: Error) -> ChangeError {
    ChangeError::of(error.message().to_owned())
}

impl Members for Way {
    fn survey(&self, members: BTreeMap<String, Address>, _: Option<ClientIdentity>) -> Asked<'_, Survey> {
        Box::pin(async move {
            let ruling = self.0.enter(false).await;
            let mut world = lock(&self.0.world);
            let mut waits = false;
            let answer = |(name, address): (String, Address)| {
                let answer = if ruling.code.is_some() {
                    Err("no answer within 3s".to_owned())
                } else {
                    ask(&mut world, &address)
                };
                let reads = answer.as_ref().is_ok_and(|answer| answer.learner || answer.quorum.is_some());
                waits |= !reads && process(&world, &address).is_ok();
                (name, answer)
            };
            let answers = members.into_iter().map(answer).collect();
            if waits && world.unanswered > 0 {
                world.stale = true;
                let millis = world.unanswered;
                kubelet::wait(&mut world, millis);
            }
            answers
        })
    }

    fn roll(&self, member: Address, _: Option<ClientIdentity>) -> Asked<'_, Result<Roll, ChangeError>> {
        Box::pin(async move {
            let ruling = self.0.enter(false).await;
            let mut world = lock(&self.0.world);
            if ruling.code.is_some() {
                return Err(ChangeError::Unknown("no answer".to_owned()));
            }
            let process = process(&world, &member).map_err(ChangeError::Wait)?;
            world.etcd.read(&process).map_err(change_error)?;
            let status = world.etcd.status(&process).map_err(change_error)?;
            let members = listed(world.etcd.member_list(&process, false).map_err(change_error)?);
            Ok(Roll { cluster_id: status.cluster, leader: status.leader, members })
        })
    }

    fn hashes(
        &self,
        members: BTreeMap<String, Address>,
        _: Option<ClientIdentity>,
        revision: i64,
    ) -> Asked<'_, BTreeMap<String, Result<KeyHash, Silence>>> {
        Box::pin(async move {
            let ruling = self.0.enter(false).await;
            let world = lock(&self.0.world);
            let answer = |(name, address): (String, Address)| {
                let lost = || Err("no hash within 30s".to_owned());
                (name, if ruling.code.is_some() { lost() } else { hash(&world, &address, revision) })
            };
            members.into_iter().map(answer).collect()
        })
    }

    fn change(
        &self,
        member: Address,
        _: Option<ClientIdentity>,
        call: Call,
    ) -> Asked<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let ruling = self.0.enter(true).await;
            if ruling.code.is_some() {
                return Err(ChangeError::Unknown("no answer".to_owned()));
            }
            if ruling.held > HANGS_UP {
                return Err(ChangeError::Unknown("none within 8s".to_owned()));
            }
            let result = change(&mut lock(&self.0.world), &member, &call, ruling.held > 0);
            if ruling.lose {
                return Err(ChangeError::Unknown("none within 8s".to_owned()));
            }
            self.0.leave(&ruling).await;
            result
        })
    }
}

/// The world keeps no history: who is at another revision by now is asked again later.
fn hash(world: &World, address: &Address, revision: i64) -> Result<KeyHash, Silence> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let process = process(world, address)?;
    let status = world.etcd.status(&process).map_err(|error| error.message().to_owned())?;
    let data = world.etcd.data(&process).filter(|_| i64::try_from(status.revision) == Ok(revision));
    let data = data.ok_or("etcdserver: mvcc: required revision is a future revision")?;
    let mut hasher = DefaultHasher::new();
    data.store.keys.hash(&mut hasher);
    let bytes = hasher.finish().to_le_bytes();
    Ok(KeyHash { hash: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), compact_revision: 0 })
}

fn change(world: &mut World, member: &Address, call: &Call, late: bool) -> Result<(), ChangeError> {
    let process = process(world, member).map_err(ChangeError::Wait)?;
    let before = invariants::Truth::of(world);
    invariants::before_call(world, before.as_ref(), call);
    let result = match call {
        Call::AddLearner(url) => world.etcd.add_learner(&process, url).map(drop),
        Call::Promote(id) => world.etcd.promote(&process, *id).map(drop),
        Call::Remove(id) => world.etcd.remove(&process, *id).map(drop),
        Call::MoveLeader(id) => world.etcd.move_leader(&process, *id),
        Call::Disarm(id, alarm) => world.etcd.disarm(&process, *id, *alarm),
        Call::Nudge => world.etcd.alarms(&process).map(drop),
    };
    let outcome = match result {
        Ok(()) => format!("etcd: {call}"),
        Err(error) => format!("etcd: {call}: {}", error.message()),
    };
    world.note(&outcome);
    // What fails while a call is on its way to etcd, nobody can know.
    if !late {
        invariants::after_effect(world, before.as_ref());
    }
    result.map_err(change_error)
}
