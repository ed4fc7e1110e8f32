//! `status --watch`: the same picture again on every change.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};

use super::{
    Arguments, Output, RESOURCE, api, json_text, missing, name_text, picture, plain, understand, worst,
    yaml_text,
};
use crate::api::EtcdCluster;
use crate::cli::connect::Host;
use crate::cli::problem::{Problem, Request, classify};
use crate::cli::{Exit, terminal};

/// Clears the screen and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Namespace and name.
type Key = (String, String);

/// What is on show.
#[derive(Default)]
struct Scene {
    objects: BTreeMap<Key, DynamicObject>,
    /// The first list is complete: there is something to show.
    complete: bool,
    /// The line last printed of each cluster: status also changes where a line does not.
    printed: BTreeMap<Key, String>,
}

/// Shows changes until Ctrl-C; the exit code is that of the last state.
pub(super) async fn execute(host: &Host, arguments: &Arguments) -> anyhow::Result<Exit> {
    let mut config = watcher::Config::default();
    if let Some(name) = &arguments.name {
        config = config.fields(&format!("metadata.name={name}"));
    }
    let events = watcher(api(host, arguments.scope(host)), config).default_backoff();
    let scene = follow(host, arguments, pin!(events)).await?;
    Ok(worst(&scene.clusters()?))
}

async fn follow(
    host: &Host,
    arguments: &Arguments,
    mut events: impl Stream<Item = watcher::Result<Event<DynamicObject>>> + Unpin,
) -> anyhow::Result<Scene> {
    let request = Request {
        verb: "watch",
        resource: RESOURCE,
        name: arguments.name.as_deref(),
        namespace: arguments.scope(host),
    };
    let mut scene = Scene::default();
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut first_answer = pin!(tokio::time::sleep(host.timeout));
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = &mut interrupted => return Ok(scene),
            () = &mut first_answer, if !scene.complete => return Err(host.late().into()),
        };
        match event {
            None => return Ok(scene),
            Some(Err(error)) => endure(error, &request, host, scene.complete)?,
            Some(Ok(event)) => {
                let Some(changed) = scene.take(event) else { continue };
                if let (Some(name), true) = (&arguments.name, scene.objects.is_empty()) {
                    return Err(missing(host, name).await.into());
                }
                scene.show(&changed, arguments)?;
            }
        }
    }
}

/// A watch outlives a restart of the API server; a refusal, or a failure before anything was shown, ends it.
fn endure(error: watcher::Error, request: &Request<'_>, host: &Host, shown: bool) -> Result<(), Problem> {
    let problem = match error {
        watcher::Error::InitialListFailed(source) => {
            classify(source, &Request { verb: "list", ..*request }, &host.address)
        }
        watcher::Error::WatchStartFailed(source) | watcher::Error::WatchFailed(source) => {
            classify(source, request, &host.address)
        }
        // The server ended the watch because our position is too old: a new list follows.
        watcher::Error::WatchError(_) => return Ok(()),
        watcher::Error::NoResourceVersion => {
            Problem::Other("the Kubernetes API does not support watching".to_owned())
        }
    };
    match problem {
        Problem::Unreachable { .. }
        | Problem::Refused { .. }
        | Problem::Request { .. }
        | Problem::Timeout { .. }
            if shown =>
        {
            terminal::complain(&format!("{problem}; trying again."));
            Ok(())
        }
        problem => Err(problem),
    }
}

impl Scene {
    /// Takes an event in; answers which clusters changed, once the first list is complete.
    fn take(&mut self, event: Event<DynamicObject>) -> Option<Vec<Key>> {
        match event {
            Event::Init => {
                self.objects.clear();
                None
            }
            Event::InitApply(object) => {
                self.objects.insert(key(&object), object);
                None
            }
            Event::InitDone => {
                self.complete = true;
                Some(self.objects.keys().cloned().collect())
            }
            Event::Apply(object) => {
                let changed = key(&object);
                self.objects.insert(changed.clone(), object);
                Some(vec![changed])
            }
            Event::Delete(object) => {
                let changed = key(&object);
                self.objects.remove(&changed);
                Some(vec![changed])
            }
        }
    }

    fn clusters(&self) -> anyhow::Result<Vec<EtcdCluster>> {
        self.objects.values().map(understand).collect()
    }

    fn show(&mut self, changed: &[Key], arguments: &Arguments) -> anyhow::Result<()> {
        if arguments.output == Output::Table && terminal::is_terminal() {
            return self.redraw(arguments);
        }
        for key in changed {
            let text = match (self.objects.get(key), arguments.output) {
                (None, Output::Table) => format!("{}/{} is gone", key.0, key.1),
                (None, _) => continue,
                (Some(object), Output::Table) => picture::line(&understand(object)?),
                (Some(object), Output::Json) => json_text(&plain(object)?)?,
                (Some(object), Output::Yaml) => format!("---\n{}", yaml_text(&plain(object)?)?),
                (Some(object), Output::Name) => name_text(object),
            };
            if arguments.output != Output::Table {
                terminal::print(&text)?;
            } else if self.printed.insert(key.clone(), text.clone()).as_ref() != Some(&text) {
                terminal::print(&format!("{:.0} {text}\n", Timestamp::now()))?;
            }
        }
        Ok(())
    }

    fn redraw(&self, arguments: &Arguments) -> anyhow::Result<()> {
        let clusters = self.clusters()?;
        let picture = match clusters.as_slice() {
            [] => "There is no EtcdCluster here now.\n".to_owned(),
            clusters => arguments.table(clusters),
        };
        let seen = Timestamp::now();
        terminal::print(&format!("{CLEAR}{picture}\nLast change seen at {seen:.0}. Ctrl-C ends.\n"))
    }
}

fn key(object: &DynamicObject) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}
