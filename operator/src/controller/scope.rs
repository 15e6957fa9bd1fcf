//! Which namespaces the operator looks after: all of them through one watch for each kind, or a few through one watch for
//! each kind and namespace, whose events are made into one stream.

use std::{collections::BTreeMap, fmt::Debug};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use super::observe::strip;

/// What a watch yields.
pub type Events<K> = watcher::Result<Event<K>>;

/// Objects that one answer to a list has at most.
const PAGE: u32 = 250;

/// How every kind is read: lists in pages. A list that may be of any age, which costs the API server less, comes whole
/// whatever the page size says, and thousands of nodes or pods at once are more memory than everything that is kept of them.
pub fn paged() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// The namespaces that are looked after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All.
    #[default]
    Cluster,
    /// These, in alphabetical order.
    Namespaces(Vec<String>),
}

impl Scope {
    /// The scope of a list of names, of which an empty one means all.
    pub fn new(mut names: Vec<String>) -> Self {
        names.retain(|name| !name.is_empty());
        names.sort();
        names.dedup();
        if names.is_empty() {
            Self::Cluster
        } else {
            Self::Namespaces(names)
        }
    }

    /// A sentence about what cannot be seen, for whoever counts on free GPUs; none when everything is seen.
    pub fn blind_spot(&self) -> Option<String> {
        match self {
            Self::Cluster => None,
            Self::Namespaces(names) => Some(format!(
                "The operator sees pods of {} only: GPUs that pods of other namespaces hold count as free.",
                names.join(", ")
            )),
        }
    }

    /// The events of a kind in these namespaces. `filter` sees each before it is kept anywhere.
    pub fn events<K>(
        &self,
        client: &Client,
        config: &watcher::Config,
        filter: fn(Event<K>) -> Event<K>,
    ) -> BoxStream<'static, Events<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let names = match self {
            Self::Cluster => return source(Api::all(client.clone()), config, filter).boxed(),
            Self::Namespaces(names) => names,
        };
        let sources: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let api = Api::namespaced(client.clone(), name);
                source(api, config, filter).map(move |event| (number, event)).boxed()
            })
            .collect();
        let mut merge = Merge::new(sources.len());
        stream::select_all(sources)
            .flat_map(move |(number, event)| stream::iter(merge.take(number, event)))
            .boxed()
    }
}

/// The events of one watch, started again with growing waits after errors.
pub fn source<K>(
    api: Api<K>,
    config: &watcher::Config,
    filter: fn(Event<K>) -> Event<K>,
) -> impl Stream<Item = Events<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    watcher(api, config.clone())
        .default_backoff()
        .modify(strip)
        .map(move |event| event.map(filter))
}

/// Makes the events of several watches into those of one: one first list, when all have listed, and then single changes,
/// since a second list would replace what the others hold.
struct Merge<K> {
    sources: Vec<Source<K>>,
    started: bool,
}

struct Source<K> {
    /// What there is, by name.
    objects: BTreeMap<String, K>,
    /// What a list that is under way has brought so far.
    list: Option<BTreeMap<String, K>>,
    /// It has been listed, or may not be.
    ready: bool,
}

impl<K: Resource<DynamicType = ()> + Clone> Merge<K> {
    fn new(sources: usize) -> Self {
        let empty = |_| Source {
            objects: BTreeMap::new(),
            list: None,
            ready: false,
        };
        Self {
            sources: (0..sources).map(empty).collect(),
            started: false,
        }
    }

    fn take(&mut self, number: usize, event: Events<K>) -> Vec<Events<K>> {
        let Some(source) = self.sources.get_mut(number) else {
            return Vec::new();
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                // A namespace that is gone took its Role with it; that must not keep the others waiting.
                source.ready |= forbidden(&error);
                let mut events = vec![Err(error)];
                events.extend(self.start());
                return events;
            }
        };
        let changes = source.take(event);
        if self.started {
            changes.into_iter().map(Ok).collect()
        } else {
            self.start()
        }
    }

    /// The first list, once every watch has brought its own.
    fn start(&mut self) -> Vec<Events<K>> {
        if self.started || !self.sources.iter().all(|source| source.ready) {
            return Vec::new();
        }
        self.started = true;
        let objects = self.sources.iter().flat_map(|source| source.objects.values());
        let mut events = vec![Ok(Event::Init)];
        events.extend(objects.map(|object| Ok(Event::InitApply(object.clone()))));
        events.push(Ok(Event::InitDone));
        events
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Source<K> {
    /// Takes an event in and says what changed by it.
    fn take(&mut self, event: Event<K>) -> Vec<Event<K>> {
        match event {
            Event::Init => {
                self.list = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(list) = &mut self.list {
                    list.insert(object.name_any(), object);
                }
                Vec::new()
            }
            Event::InitDone => {
                let old = std::mem::replace(&mut self.objects, self.list.take().unwrap_or_default());
                self.ready = true;
                let gone = old.into_iter().filter(|(name, _)| !self.objects.contains_key(name));
                let mut changes: Vec<Event<K>> = gone.map(|(_, object)| Event::Delete(object)).collect();
                changes.extend(self.objects.values().cloned().map(Event::Apply));
                changes
            }
            Event::Apply(object) => {
                self.objects.insert(object.name_any(), object.clone());
                vec![Event::Apply(object)]
            }
            Event::Delete(object) => {
                if let Some(list) = &mut self.list {
                    list.remove(&object.name_any());
                }
                let known = self.objects.remove(&object.name_any()).is_some();
                if known { vec![Event::Delete(object)] } else { Vec::new() }
            }
        }
    }
}

fn forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;

    use super::*;

    fn object(namespace: &str, name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.name = Some(name.to_owned());
        object
    }

    /// In short: `[` and `]` around a list, `+` in it, `=` for a change, `-` for a deletion, `!` for an error.
    fn short(events: &[Events<ConfigMap>]) -> String {
        let name = |object: &ConfigMap| {
            let namespace = object.namespace().unwrap_or_default();
            format!("{namespace}/{}", object.name_any())
        };
        events
            .iter()
            .map(|event| match event {
                Ok(Event::Init) => "[".to_owned(),
                Ok(Event::InitApply(object)) => format!("+{}", name(object)),
                Ok(Event::InitDone) => "]".to_owned(),
                Ok(Event::Apply(object)) => format!("={}", name(object)),
                Ok(Event::Delete(object)) => format!("-{}", name(object)),
                Err(_) => "!".to_owned(),
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn list(merge: &mut Merge<ConfigMap>, number: usize, namespace: &str, names: &[&str]) -> String {
        let mut events = merge.take(number, Ok(Event::Init));
        for name in names {
            events.extend(merge.take(number, Ok(Event::InitApply(object(namespace, name)))));
        }
        events.extend(merge.take(number, Ok(Event::InitDone)));
        short(&events)
    }

    fn error(code: u16) -> watcher::Error {
        let status = Status {
            code,
            ..Status::default()
        };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn names_are_sorted_and_none_means_all() {
        assert_eq!(Scope::new(vec![String::new()]), Scope::Cluster);
        let names = ["b", "a", "b"].map(str::to_owned).to_vec();
        assert_eq!(Scope::new(names), Scope::Namespaces(vec!["a".into(), "b".into()]));
        assert_eq!(Scope::Cluster.blind_spot(), None);
    }

    #[test]
    fn the_first_list_waits_for_all_and_comes_once() {
        let mut merge = Merge::new(2);
        assert_eq!(list(&mut merge, 0, "a", &["x", "y"]), "");
        // Changes before the other's list are in the first list.
        assert_eq!(short(&merge.take(0, Ok(Event::Delete(object("a", "y"))))), "");
        assert_eq!(short(&merge.take(0, Ok(Event::Apply(object("a", "z"))))), "");
        assert_eq!(list(&mut merge, 1, "b", &["x"]), "[ +a/x +a/z +b/x ]");
    }

    #[test]
    fn a_second_list_of_one_leaves_the_others_alone() {
        let mut merge = Merge::new(2);
        list(&mut merge, 0, "a", &["x", "y"]);
        list(&mut merge, 1, "b", &["x"]);
        assert_eq!(list(&mut merge, 0, "a", &["y", "z"]), "-a/x =a/y =a/z");
        // What a filter took out of a list is gone as well.
        let mut events = merge.take(1, Ok(Event::Init));
        events.extend(merge.take(1, Ok(Event::Delete(object("b", "x")))));
        events.extend(merge.take(1, Ok(Event::InitDone)));
        assert_eq!(short(&events), "-b/x");
    }

    #[test]
    fn a_namespace_that_may_not_be_read_holds_up_nobody() {
        let mut merge = Merge::new(2);
        assert_eq!(list(&mut merge, 0, "a", &["x"]), "");
        assert_eq!(short(&merge.take(1, Err(error(500)))), "!");
        assert_eq!(short(&merge.take(1, Err(error(403)))), "! [ +a/x ]");
        assert_eq!(list(&mut merge, 1, "b", &["y"]), "=b/y");
    }
}
