//! EtcdMirror against the world's apiserver: the real observe, apply and status, request by request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use expect_test::expect;
use http::{Request as HttpRequest, Response};
use kube::client::Body;
use kube::core::PartialObjectMeta;
use quorate::api::EtcdMirror;
use quorate::etcd::change::Dialled;
use quorate::mirror::agent::config::AgentConfig;
use quorate::operator::context::{Authority, Context};
use quorate::operator::metrics::Metrics;
use quorate::operator::mirror::reconcile::reconcile;
use serde_json::{Value, json};

use crate::world::apiserver::{Answer, Apiserver, Key, Request};

const NAMESPACE: &str = "team";
const NOW: &str = "2026-01-02T03:04:05Z";

/// The apiserver, and what was written to it.
#[derive(Default)]
struct Host {
    api: Apiserver,
    writes: Vec<String>,
    events: Vec<String>,
}

type Shared = Arc<Mutex<Host>>;

fn lock(host: &Shared) -> MutexGuard<'_, Host> {
    host.lock().unwrap()
}

impl Host {
    fn answer(&mut self, request: &Request) -> Answer {
        let answer = self.api.answer(request, NOW);
        let part = if request.status { "/status" } else { "" };
        let name =
            request.name.clone().or_else(|| request.body["metadata"]["name"].as_str().map(str::to_owned));
        match request.kind {
            "Event" => self.events.push(request.body["reason"].as_str().unwrap_or_default().to_owned()),
            _ if request.is_write() => {
                self.writes.push(format!("{} {}{part}", request.kind, name.unwrap_or_default()));
            }
            _ => {}
        }
        answer
    }

    fn key(kind: &'static str, name: &str) -> Key {
        (kind, NAMESPACE.to_owned(), name.to_owned())
    }

    fn make(&mut self, kind: &'static str, name: &str, object: Value) {
        assert_eq!(self.api.create(Self::key(kind, name), object, NOW).0, 201);
    }

    fn edit(&mut self, kind: &'static str, name: &str, change: impl FnOnce(&mut Value)) {
        assert!(self.api.change(&Self::key(kind, name), change), "{kind} {name} stays as it was");
    }

    fn get(&self, kind: &'static str, name: &str) -> &Value {
        self.api.get(kind, name).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    fn status(&self) -> &Value {
        &self.get("EtcdMirror", "dc")["status"]
    }

    fn condition(&self, type_: &str) -> String {
        let conditions = self.status()["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|condition| condition["type"] == type_);
        found.map_or_else(String::new, |found| {
            format!("{} {}", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
        })
    }
}

/// An EtcdCluster that has formed, its client Secret, and a mirror from it to an etcd elsewhere.
fn host() -> Shared {
    let mut host = Host::default();
    let status =
        json!({"clusterID": "424b", "members": [{"name": "main-0"}, {"name": "main-1", "joining": true}]});
    host.make("EtcdCluster", "main", json!({"metadata": {}, "spec": {}, "status": status}));
    // "x", as a Secret holds it.
    let pair = json!({"ca.crt": "eA==", "tls.crt": "eA==", "tls.key": "eA=="});
    host.make("Secret", "main-client", json!({"metadata": {}, "data": pair}));
    host.make("Secret", "codfw-client", json!({"metadata": {}, "data": {"ca.crt": "eA=="}}));
    let external =
        json!({"endpoints": ["https://codfw.example:2379"], "tlsSecretRef": {"name": "codfw-client"}});
    let sites = json!([
        {"name": "eqiad", "clusterRef": {"name": "main"}},
        {"name": "codfw", "external": external},
    ]);
    let spec = json!({"active": "eqiad", "sites": sites});
    host.make(
        "EtcdMirror",
        "dc",
        json!({"metadata": {}, "spec": spec, "status": {"observedGeneration": -1}}),
    );
    Arc::new(Mutex::new(host))
}

fn context(host: &Shared) -> Arc<Context> {
    let service = {
        let host = host.clone();
        tower::service_fn(move |request: HttpRequest<Body>| {
            let host = host.clone();
            async move { Ok::<_, std::convert::Infallible>(serve(&host, request).await) }
        })
    };
    let authority = Arc::new(Authority::default());
    authority.extend(Instant::now() + Duration::from_hours(1));
    let clock = Arc::new(|| NOW.parse().unwrap());
    Arc::new(Context::new(
        kube::Client::new(service, NAMESPACE),
        Arc::new(Dialled),
        clock,
        "quorate:test".to_owned(),
        Arc::new(Metrics::new()),
        authority,
    ))
}

async fn serve(host: &Shared, request: HttpRequest<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect_bytes().await.unwrap();
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let request = Request::parse(parts.method.as_str(), path, query, body)
        .unwrap_or_else(|| panic!("the world does not know {} {path}", parts.method));
    let (code, answer) = lock(host).answer(&request);
    let body = Body::from(serde_json::to_vec(&answer).unwrap());
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

/// One reconcile; what it wrote.
async fn look(context: &Arc<Context>, host: &Shared) -> Vec<String> {
    lock(host).writes.clear();
    let seen: PartialObjectMeta<EtcdMirror> =
        serde_json::from_value(json!({"metadata": {"name": "dc", "namespace": NAMESPACE}})).unwrap();
    reconcile(Arc::new(seen), context.clone(), None).await.unwrap();
    lock(host).writes.clone()
}

/// Pretends to be a kubelet: a Pod of the Deployment, at an address.
fn start(host: &Shared, address: SocketAddr) {
    let mut host = lock(host);
    let template = host.get("Deployment", "dc-agent")["spec"]["template"].clone();
    let status = json!({
        "podIP": address.ip().to_string(),
        "containerStatuses": [{"name": "agent", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "state": {"running": {"startedAt": NOW}}}],
    });
    host.make(
        "Pod",
        "dc-agent-1",
        json!({"metadata": template["metadata"], "spec": template["spec"], "status": status}),
    );
}

#[tokio::test]
async fn a_new_mirror_is_made_told_and_then_left_alone() {
    let host = host();
    let context = context(&host);
    let mut written = look(&context, &host).await;
    written.sort();
    expect![[r#"
        ConfigMap dc-active
        ConfigMap dc-agent
        Deployment dc-agent
        EtcdMirror dc/status"#]]
    .assert_eq(&written.join("\n"));
    {
        let host = lock(&host);
        assert_eq!(host.status()["observedGeneration"], 1);
        assert_eq!(
            (host.condition("Ready"), host.condition("Reconciling")),
            ("False AgentStarting".to_owned(), "True AgentStarting".to_owned())
        );
        let owner = &host.get("Deployment", "dc-agent")["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["controller"]), (&json!("EtcdMirror"), &json!(true)));
        assert_eq!(host.get("ConfigMap", "dc-active")["data"]["endpoints"], "https://main.team.svc:2379");
        let file = host.get("ConfigMap", "dc-agent")["data"]["config.yaml"].as_str().unwrap();
        assert!(!file.contains("main-1."), "one that joins does not serve yet: {file}");
        assert_eq!(host.events, ["AgentStarting"]);
    }
    assert_eq!(look(&context, &host).await, Vec::<String>::new(), "nothing has changed");
}

#[tokio::test]
async fn what_goes_missing_is_told_and_cured_without_touching_the_agent() {
    let host = host();
    let context = context(&host);
    look(&context, &host).await;
    lock(&host).api.remove(&Host::key("Secret", "codfw-client"));
    assert_eq!(look(&context, &host).await, ["EtcdMirror dc/status"]);
    assert_eq!(lock(&host).condition("Stalled"), "True SecretDamaged");
    assert_eq!(lock(&host).condition("Reconciling"), "", "never beside Stalled");
    lock(&host).make("Secret", "codfw-client", json!({"metadata": {}, "data": {"ca.crt": "eA=="}}));
    assert_eq!(look(&context, &host).await, ["EtcdMirror dc/status"]);
    let said = ["Stalled", "Ready"].map(|type_| lock(&host).condition(type_));
    assert_eq!(said, ["", "False AgentStarting"]);
}

#[tokio::test]
async fn an_agent_that_answers_is_told_of_and_gets_an_edit_without_a_restart() {
    let host = host();
    let context = context(&host);
    look(&context, &host).await;
    // No other program listens there: a loopback address that is nobody's.
    let listener = tokio::net::TcpListener::bind("127.66.7.1:8080").await.unwrap();
    start(&host, listener.local_addr().unwrap());
    let file = lock(&host).get("ConfigMap", "dc-agent")["data"]["config.yaml"].as_str().unwrap().to_owned();
    let fingerprint = serde_saphyr::from_str::<AgentConfig>(&file).unwrap().fingerprint;
    let answer = json!({
        "fingerprint": fingerprint, "phase": "Streaming", "active": "eqiad", "term": 1, "initialSyncDone": true,
        "lagSeconds": 0.2, "lagRevisions": 0, "checkpointRevision": 42, "keys": 7,
        "sites": [{"name": "eqiad", "clusterID": "424b", "reachable": true},
            {"name": "codfw", "clusterID": "1860", "reachable": true}],
    });
    let routes = axum::Router::new().route("/status", axum::routing::get(async move || answer.to_string()));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });
    // The Pod is told which file it should have; once more when the file holds the term that was agreed on.
    let file_too = ["Pod dc-agent-1", "EtcdMirror dc/status", "ConfigMap dc-agent", "Pod dc-agent-1"];
    assert_eq!(look(&context, &host).await, file_too);
    assert_eq!(lock(&host).status()["agreedTerm"], 1);
    assert_eq!(lock(&host).condition("Ready"), "True Healthy");
    assert_eq!(lock(&host).status()["synced"], "7 keys");
    assert_eq!(look(&context, &host).await, Vec::<String>::new(), "a quiet mirror costs no write");
    assert!(context.metrics.text().unwrap().contains("quorate_mirror_up{namespace=\"team\",name=\"dc\"} 1"));

    lock(&host).edit("EtcdMirror", "dc", |object| object["spec"]["active"] = "codfw".into());
    let written = look(&context, &host).await;
    assert_eq!(written, ["ConfigMap dc-agent", "Pod dc-agent-1", "EtcdMirror dc/status"]);
    let host_now = lock(&host);
    // The old agent still says what etcd's records say: applications stay where writes go.
    assert_eq!(host_now.get("ConfigMap", "dc-active")["data"]["site"], "eqiad");
    assert_eq!(host_now.condition("Reconciling"), "True AgentStarting");
    drop(host_now);
    server.abort();
}

#[tokio::test]
async fn a_mirror_that_is_gone_leaves_no_metrics() {
    let host = host();
    let context = context(&host);
    look(&context, &host).await;
    let told = |context: &Context| context.metrics.text().unwrap().contains("name=\"dc\"");
    assert!(told(&context));
    lock(&host).api.remove(&Host::key("EtcdMirror", "dc"));
    look(&context, &host).await;
    assert!(!told(&context));
}

#[tokio::test]
async fn a_spec_that_cannot_be_read_hides_nothing_and_is_told() {
    let host = host();
    let context = context(&host);
    look(&context, &host).await;
    lock(&host).edit("EtcdMirror", "dc", |object| object["spec"]["mappings"] = json!("everything"));
    assert_eq!(look(&context, &host).await, ["EtcdMirror dc/status"]);
    assert_eq!(lock(&host).condition("Stalled"), "True InvalidSpec");
}
