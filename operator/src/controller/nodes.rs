//! The nodes as planning sees them. Kubelets and label publishers write to nodes all the time, and most of what they write
//! nobody here reads: what placement uses is kept, and only a change of that is news.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::runtime::watcher::Event;
use tokio::sync::watch;

use super::observe::Node;
use crate::{hardware::NodeFacts, texts::Texts};

type ByName = BTreeMap<String, Arc<NodeFacts>>;

/// The facts of every node, kept up to date by one watch and read by planning.
#[derive(Clone, Debug)]
pub struct Nodes {
    state: Arc<Mutex<State>>,
    ready: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    facts: ByName,
    /// What a list that is under way has brought so far.
    listed: Option<ByName>,
    /// Keys and values of their labels.
    texts: Texts,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            ready: watch::Sender::new(false),
        }
    }
}

impl Nodes {
    /// Takes in what the watch says; true when planning has to look again.
    pub fn take(&self, event: Event<Node>) -> bool {
        let mut state = self.lock();
        match event {
            Event::Init => {
                state.listed = Some(ByName::new());
                false
            }
            Event::InitApply(node) => {
                let (facts, _) = state.facts_of(&node);
                if let Some(listed) = &mut state.listed {
                    listed.insert(facts.name.clone(), facts);
                }
                false
            }
            Event::InitDone => {
                let listed = state.listed.take().unwrap_or_default();
                let news = listed != state.facts || !*self.ready.borrow();
                state.facts = listed;
                self.ready.send_replace(true);
                news
            }
            Event::Apply(node) => {
                let (facts, news) = state.facts_of(&node);
                if news {
                    state.facts.insert(facts.name.clone(), facts);
                }
                news
            }
            Event::Delete(node) => {
                let name = node.metadata.name.unwrap_or_default();
                state.facts.remove(&name).is_some()
            }
        }
    }

    /// The facts, by name.
    pub fn facts(&self) -> Vec<Arc<NodeFacts>> {
        self.lock().facts.values().cloned().collect()
    }

    /// Returns once all nodes have been read.
    pub async fn wait_until_ready(&self) {
        let mut ready = self.ready.subscribe();
        // It fails only when the sender is gone, which this holds.
        let _ended = ready.wait_for(|ready| *ready).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The facts of a node, and whether they differ from what is known: what is the same keeps its place in memory.
    fn facts_of(&mut self, node: &Node) -> (Arc<NodeFacts>, bool) {
        let facts = node.facts_with(&mut self.texts);
        match self.facts.get(&facts.name) {
            Some(known) if **known == facts => (Arc::clone(known), false),
            _ => (Arc::new(facts), true),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, change: impl Fn(&mut Value)) -> Node {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/arch": "arm64"}},
            "status": {"allocatable": {"nvidia.com/gpu": "1"}, "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": "1"},
            ]},
        });
        change(&mut node);
        serde_json::from_value(node).unwrap()
    }

    fn listed(names: &[&str]) -> Nodes {
        let nodes = Nodes::default();
        assert!(!nodes.take(Event::Init));
        for name in names {
            assert!(!nodes.take(Event::InitApply(node(name, |_| ()))));
        }
        assert!(nodes.take(Event::InitDone), "the first list is news, even an empty one");
        nodes
    }

    #[test]
    fn a_heartbeat_is_no_news() {
        let nodes = listed(&["a"]);
        let beat = |node: &mut Value| node["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2");
        assert!(!nodes.take(Event::Apply(node("a", beat))));
        let grown = |node: &mut Value| node["metadata"]["resourceVersion"] = json!("7");
        assert!(!nodes.take(Event::Apply(node("a", grown))));
    }

    #[test]
    fn what_placement_uses_is_news() {
        let changes: [fn(&mut Value); 5] = [
            |node| node["metadata"]["labels"]["nvidia.com/gpu.product"] = json!("NVIDIA-GB10"),
            |node| node["status"]["allocatable"]["nvidia.com/gpu"] = json!("0"),
            |node| node["status"]["conditions"][0]["status"] = json!("False"),
            |node| node["spec"] = json!({"unschedulable": true}),
            |node| node["spec"] = json!({"taints": [{"key": "a", "effect": "NoSchedule"}]}),
        ];
        for change in changes {
            let nodes = listed(&["a"]);
            assert!(nodes.take(Event::Apply(node("a", change))));
            assert!(!nodes.take(Event::Apply(node("a", change))), "it is known now");
            assert_eq!(*nodes.facts()[0], node("a", change).facts());
        }
        let nodes = listed(&["a"]);
        assert!(nodes.take(Event::Apply(node("b", |_| ()))));
        assert!(nodes.take(Event::Delete(node("a", |_| ()))));
        assert!(!nodes.take(Event::Delete(node("a", |_| ()))));
        assert_eq!(nodes.facts().len(), 1);
    }

    #[test]
    fn a_list_that_brings_nothing_new_is_no_news() {
        let nodes = listed(&["a", "b"]);
        let before = nodes.facts();
        for (names, news) in [(&["a", "b"][..], false), (&["b"], true), (&["b", "c"], true)] {
            nodes.take(Event::Init);
            for name in names {
                nodes.take(Event::InitApply(node(name, |_| ())));
            }
            assert_eq!(nodes.take(Event::InitDone), news, "{names:?}");
        }
        assert!(
            Arc::ptr_eq(&before[1], &nodes.facts()[0]),
            "what is the same is kept once"
        );
    }

    #[test]
    fn nodes_share_their_labels() {
        let nodes = listed(&["a", "b"]);
        let facts = nodes.facts();
        let first = |at: usize| facts[at].labels.first_key_value().unwrap();
        let (one, two) = (first(0), first(1));
        assert!(Arc::ptr_eq(one.0, two.0) && Arc::ptr_eq(one.1, two.1));
    }

    #[tokio::test]
    async fn it_is_ready_after_the_first_list() {
        let nodes = Nodes::default();
        let waiting = tokio::spawn({
            let nodes = nodes.clone();
            async move { nodes.wait_until_ready().await }
        });
        nodes.take(Event::Init);
        nodes.take(Event::InitDone);
        waiting.await.unwrap();
    }
}
