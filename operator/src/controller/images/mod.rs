//! Image truth: whether the images of a HawkeyeDeployment were built for the hardware that they would run on, and which
//! content is behind the tag of its model.
//!
//! Pure but for [`Checker`], which hands questions to the lookups and takes what they know. The planner keeps replicas
//! off classes whose image is [`Verdict::Missing`]; [`condition`] tells it all in the status.

pub mod condition;
pub mod digest;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use hawkeye_crds::v1alpha1::{HawkeyeDeployment, ModelImage, Reason};
use kube::ResourceExt;

use self::digest::{Digests, Memory, follows};
use super::{
    apply::owned_by,
    build::{model::digest_of, pool_name},
    observe::Pod,
    pool::PoolDeployment,
};
use crate::{
    hardware::{ClassIndex, ClassNodes, Images, ModelDefaults},
    registry::{Answer, Lookups, Platforms, Policy, Subject},
};

/// Nodes that a message names.
const NODES: usize = 3;

/// The verdict on every image that a HawkeyeDeployment would run, by class. Empty while verification is off.
pub type Checks = BTreeMap<String, Check>;

/// The image of a class, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The container's image.
    pub image: String,
    /// What is known of it, and of the model's image.
    pub verdict: Verdict,
}

/// Whether an image can run on a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was built for the class's architecture.
    Has,
    /// It was not. A sentence that names image, architecture and nodes.
    Missing(String),
    /// The model's tag has moved to an image that was not. Its pods keep the content that they run. A sentence as above.
    Kept(String),
    /// Nobody knows: why, and a sentence. It blocks nothing.
    Unknown(Reason, String),
}

/// The part that an image plays, for the words of a message and for what a node does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It runs. One that is not an index is taken by every node, and fails where it does not fit.
    Container,
    /// It is mounted, so that it fits everywhere unless it is an index without an entry for the node.
    Model,
}

/// What a class wants to know about an image.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Its name.
    pub image: &'a str,
    /// Its part.
    pub role: Role,
    /// The class.
    pub class: &'a ClassNodes,
    /// The first nodes of the class, by name.
    pub nodes: &'a [&'a str],
    /// It was missing when a registry last told, which the status remembers.
    pub was_missing: bool,
}

/// The verdict on one image. `Err` while the first answer is awaited.
///
/// # Errors
/// [`Pending`].
pub fn judge(question: &Question<'_>, answer: &Answer) -> Result<Verdict, Pending> {
    let (image, arch) = (question.image, question.class.spec.arch.as_str());
    match answer {
        Answer::Pending => Err(Pending),
        Answer::Known(found) => Ok(weigh(question, &found.platforms)),
        Answer::Unknown(why) if question.was_missing => Ok(Verdict::Missing(format!(
            "{}linux/{arch} when its registry last told; now it does not tell ({why}).{}",
            not_built(image),
            on_nodes(question)
        ))),
        Answer::Unknown(why) => Ok(Verdict::Unknown(
            Reason::ImageUnreadable,
            format!("Whether {image} was built for linux/{arch} is not known: {why}."),
        )),
    }
}

/// The first answer about an image is still awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending;

fn weigh(question: &Question<'_>, platforms: &Platforms) -> Verdict {
    let (image, arch) = (question.image, question.class.spec.arch.as_str());
    if platforms.has(arch) || (question.role == Role::Model && !platforms.index) {
        return Verdict::Has;
    }
    if platforms.open {
        return Verdict::Unknown(
            Reason::ImageUnreadable,
            format!("Whether {image} was built for linux/{arch} is not known: its registry does not say the platform."),
        );
    }
    let known = if platforms.list.is_empty() {
        "for no platform".to_owned()
    } else {
        format!("only for {}", platforms.describe())
    };
    Verdict::Missing(format!(
        "{}linux/{arch}, {known}.{} Build it for that platform too, or name another image.",
        not_built(image),
        on_nodes(question)
    ))
}

/// " It would run on spark-1, spark-2 and 3 more."
fn on_nodes(question: &Question<'_>) -> String {
    let verb = match question.role {
        Role::Container => "run",
        Role::Model => "be mounted",
    };
    let shown: Vec<&str> = question.nodes.iter().take(NODES).copied().collect();
    let total = question.class.nodes as usize;
    match (shown.len(), total.saturating_sub(shown.len())) {
        (0, _) => String::new(),
        (_, 0) => format!(" It would {verb} on {}.", shown.join(", ")),
        (_, more) => format!(" It would {verb} on {} and {more} more.", shown.join(", ")),
    }
}

/// Of the verdicts on the images of one pod the one that decides: a missing one, then one that is not known.
fn worst(a: Verdict, b: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Missing(_) => 3,
        Verdict::Kept(_) => 2,
        Verdict::Unknown(..) => 1,
        Verdict::Has => 0,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

/// Images that ready pods run, by namespace, HawkeyeDeployment and class: they prove themselves.
pub fn proved<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> BTreeSet<(String, String, String, String)> {
    pods.into_iter()
        .filter(|pod| pod.active() && pod.ready())
        .filter_map(|pod| {
            let (namespace, name) = pod.instance()?;
            let container = pod.spec.containers.iter().find(|c| c.name == "inference")?;
            Some((
                namespace.to_owned(),
                name.to_owned(),
                pod.class()?.to_owned(),
                container.image.clone()?,
            ))
        })
        .collect()
}

/// What a pass of the planner found out about all images.
#[derive(Debug, Default)]
pub struct Checked(HashMap<String, Result<Truth, Pending>>);

/// What is known of the images of one HawkeyeDeployment.
#[derive(Debug)]
pub struct Truth {
    /// The verdicts by class.
    pub checks: Checks,
    /// Which content of its model pods mount.
    pub digests: Digests,
}

impl Checked {
    /// The verdicts for a UID, as far as they are there.
    pub fn of(&self, uid: &str) -> Option<&Checks> {
        Some(&self.0.get(uid)?.as_ref().ok()?.checks)
    }

    /// What is known for a UID; `None` while verification is off.
    ///
    /// # Errors
    /// While a first answer is awaited.
    pub fn take(&mut self, uid: &str) -> Result<Option<Truth>, Pending> {
        self.0.remove(uid).transpose()
    }
}

/// Asks about the images of all HawkeyeDeployments.
#[derive(Clone)]
pub struct Checker {
    /// What may be looked up.
    pub policy: Policy,
    /// The images of this release.
    pub images: Images,
    /// What a spec without a model uses.
    pub models: ModelDefaults,
    /// What is known, and where questions go.
    pub lookups: Arc<Lookups>,
}

impl Checker {
    /// What is known for all objects now. What is not known yet is asked for meanwhile. `deployment` finds one by namespace
    /// and name.
    pub fn check(
        &self,
        objects: &[&HawkeyeDeployment],
        index: &ClassIndex,
        pods: &[Arc<Pod>],
        deployment: impl Fn(&str, &str) -> Option<Arc<PoolDeployment>>,
    ) -> Checked {
        if !self.policy.is_on() {
            return Checked::default();
        }
        let proved = proved(pods);
        let nodes: HashMap<&str, Vec<&str>> = index
            .classes
            .iter()
            .map(|class| (class.name.as_str(), index.nodes_of(&class.name).take(NODES).collect()))
            .collect();
        let mut wanted = BTreeSet::new();
        let questions: Vec<_> = objects
            .iter()
            .map(|object| self.questions(object, index, &nodes, &mut wanted))
            .collect();
        self.lookups.want(&wanted);
        let by_uid = objects
            .iter()
            .zip(questions)
            .filter_map(|(object, questions)| {
                let uid = object.uid()?;
                let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
                let runs = |class: &str, image: &str| {
                    proved.contains(&(namespace.clone(), name.clone(), class.to_owned(), image.to_owned()))
                };
                let followed = self.models.of(&object.spec).and_then(follows);
                let memory = followed.map_or_else(Memory::new, |model| {
                    let mounts = |class: &ClassNodes| {
                        let made = deployment(&namespace, &pool_name(&name, &class.name))?;
                        let mounted = made.model.as_deref().filter(|_| owned_by(&*made, &uid))?;
                        let digest = digest_of(mounted, &model.reference)?;
                        Some((class.name.clone(), digest.to_owned()))
                    };
                    index.classes.iter().filter_map(mounts).collect()
                });
                let truth = self.truth(object, followed, memory, &questions, runs);
                Some((uid, truth))
            })
            .collect();
        Checked(by_uid)
    }

    /// What to ask for one object: for each class with nodes its image, and the model's.
    fn questions<'a>(
        &self,
        object: &'a HawkeyeDeployment,
        index: &'a ClassIndex,
        nodes: &'a HashMap<&str, Vec<&'a str>>,
        wanted: &mut BTreeSet<Subject>,
    ) -> Vec<(String, &'a ClassNodes, Vec<Asked<'a>>)> {
        let spec = &object.spec;
        let model = self.models.of(spec).and_then(|model| model.image.as_ref());
        index
            .classes
            .iter()
            .filter(|class| class.nodes > 0 || class.spec.autoscaled)
            .filter(|class| spec.classes.as_ref().is_none_or(|names| names.contains(&class.name)))
            .map(|class| {
                let change = spec.overrides.as_ref().and_then(|all| all.get(&class.name));
                let image = self.images.of(class.spec.image_variant, spec, change);
                let asked = [
                    (Some(image.as_str()), Role::Container),
                    (model.map(|m| m.reference.as_str()), Role::Model),
                ]
                .into_iter()
                .filter_map(|(image, role)| Some((image?, role)))
                .map(|(name, role)| {
                    let subject = self.subject(object, name, role);
                    if let Ok(subject) = &subject {
                        wanted.insert(subject.clone());
                    }
                    Asked {
                        image: name.to_owned(),
                        role,
                        subject,
                        nodes: nodes.get(class.name.as_str()).map_or(&[], Vec::as_slice),
                        was_missing: was_missing(object, &class.name, name),
                    }
                })
                .collect();
                (image.clone(), class, asked)
            })
            .collect()
    }

    /// What to ask for an image. Whoever changes the model's revision wants what is behind its tag now.
    fn subject(&self, object: &HawkeyeDeployment, image: &str, role: Role) -> Result<Subject, (Reason, String)> {
        let secrets = object.spec.image_pull_secrets.iter().map(|secret| secret.name.as_str());
        let mut subject = self
            .policy
            .subject(&object.namespace().unwrap_or_default(), image, secrets)?;
        if role == Role::Model {
            subject.revision = self.models.of(&object.spec).and_then(|model| model.revision.clone());
        }
        Ok(subject)
    }

    fn truth(
        &self,
        object: &HawkeyeDeployment,
        followed: Option<&ModelImage>,
        memory: Memory,
        questions: &[(String, &ClassNodes, Vec<Asked<'_>>)],
        runs: impl Fn(&str, &str) -> bool,
    ) -> Result<Truth, Pending> {
        // Where the registry may not be asked nothing is followed, and nothing remembered.
        let subject = followed.and_then(|model| self.subject(object, &model.reference, Role::Model).ok());
        let mut digests = subject.map_or_else(Digests::default, |subject| match self.lookups.answer(&subject) {
            Answer::Known(found) => Digests::now(&found.digest, memory),
            Answer::Pending | Answer::Unknown(_) => Digests::as_before(memory),
        });
        let mut checks = Checks::new();
        for (image, class, asked) in questions {
            let mut verdict = Verdict::Has;
            for asked in asked {
                let next = match &asked.subject {
                    Err((reason, message)) => Verdict::Unknown(*reason, message.clone()),
                    Ok(subject) => {
                        let next = judge(&asked.question(class), &self.lookups.answer(subject))?;
                        if matches!(next, Verdict::Missing(_)) {
                            self.lookups.hurry(subject);
                        }
                        next
                    }
                };
                verdict = worst(
                    verdict,
                    softened(next, asked.role, &class.name, runs(&class.name, image), &mut digests),
                );
            }
            checks.insert(
                class.name.clone(),
                Check {
                    image: image.clone(),
                    verdict,
                },
            );
        }
        Ok(Truth { checks, digests })
    }
}

/// What becomes of a missing image where pods are at work already. `runs` says that ready pods of the class prove their
/// image.
///
/// A model whose tag has moved to what a class cannot mount is kept as it is there. That does not hang on pods that are
/// ready at this moment: the digest that their Deployment names was found good when it was set, and a pod that starts
/// again on another node is no reason to take the class from all of them.
fn softened(verdict: Verdict, role: Role, class: &str, runs: bool, digests: &mut Digests) -> Verdict {
    let Verdict::Missing(message) = verdict else {
        return verdict;
    };
    if role == Role::Model && digests.moved(class) && (runs || digests.remembers(class)) {
        digests.keep(class);
        return Verdict::Kept(format!("{message} Its pods keep the content that they run."));
    }
    if runs { Verdict::Has } else { Verdict::Missing(message) }
}

struct Asked<'a> {
    image: String,
    role: Role,
    subject: Result<Subject, (Reason, String)>,
    nodes: &'a [&'a str],
    was_missing: bool,
}

impl Asked<'_> {
    fn question<'q>(&'q self, class: &'q ClassNodes) -> Question<'q> {
        Question {
            image: &self.image,
            role: self.role,
            class,
            nodes: self.nodes,
            was_missing: self.was_missing,
        }
    }
}

/// True when the status says that a class was passed over for this image. So an operator that starts while a registry
/// is away does not move pods that run to where their image cannot.
fn was_missing(object: &HawkeyeDeployment, class: &str, image: &str) -> bool {
    object.status.iter().flat_map(|status| &status.pools).any(|pool| {
        pool.class == class
            && pool.replicas == 0
            && pool.reason == Reason::ImageArchitectureMissing.as_str()
            && pool.message.starts_with(&not_built(image))
    })
}

/// How the sentence about a missing image begins; what the status says after a restart is found by it.
fn not_built(image: &str) -> String {
    format!("{image} was not built for ")
}

/// The classes that cannot be used, with the reason and the sentence for the plan.
pub fn barred(checks: &Checks) -> BTreeMap<String, (Reason, String)> {
    checks
        .iter()
        .filter_map(|(class, check)| match &check.verdict {
            Verdict::Missing(message) => Some((class.clone(), (Reason::ImageArchitectureMissing, message.clone()))),
            Verdict::Has | Verdict::Kept(_) | Verdict::Unknown(..) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use hawkeye_crds::classes;
    use serde_json::json;

    use super::*;
    use crate::{
        hardware::NodeFacts,
        registry::manifest::{Found, Manifest, parse_config, parse_manifest},
    };

    /// The class `cpu-arm64` with five nodes.
    fn class() -> ClassNodes {
        let index = ClassIndex::new(&classes::built_in().unwrap(), &[] as &[NodeFacts], |_, _| 0);
        ClassNodes {
            nodes: 5,
            ..index.get("cpu-arm64").unwrap().clone()
        }
    }

    fn index(architectures: &[&str]) -> Answer {
        let entry = |architecture: &&str| json!({"platform": {"os": "linux", "architecture": architecture}});
        let entries: Vec<_> = architectures.iter().map(entry).collect();
        let Ok(Manifest::Index(platforms)) = parse_manifest(json!({"manifests": entries}).to_string().as_bytes())
        else {
            panic!("not an index")
        };
        known(platforms)
    }

    fn known(platforms: Platforms) -> Answer {
        Answer::Known(Arc::new(Found {
            digest: "sha256:1".to_owned(),
            platforms,
        }))
    }

    fn single(architecture: &str) -> Answer {
        let config = json!({"os": "linux", "architecture": architecture}).to_string();
        known(parse_config(config.as_bytes()).unwrap())
    }

    fn ask(answer: &Answer, role: Role, was_missing: bool) -> Result<Verdict, Pending> {
        let question = Question {
            image: "example.com/a:1",
            role,
            class: &class(),
            nodes: &["arm-1", "arm-2"],
            was_missing,
        };
        judge(&question, answer)
    }

    fn is_missing(verdict: &Result<Verdict, Pending>) -> bool {
        matches!(verdict, Ok(Verdict::Missing(_)))
    }

    #[test]
    fn an_image_has_the_architecture_or_not() {
        for role in [Role::Container, Role::Model] {
            assert_eq!(ask(&index(&["amd64", "arm64"]), role, false), Ok(Verdict::Has));
            assert!(is_missing(&ask(&index(&["amd64"]), role, false)));
            assert!(is_missing(&ask(&index(&[]), role, false)));
        }
        assert_eq!(ask(&single("arm64"), Role::Container, false), Ok(Verdict::Has));
        assert!(is_missing(&ask(&single("amd64"), Role::Container, false)));
        assert_eq!(
            ask(&single("amd64"), Role::Model, false),
            Ok(Verdict::Has),
            "every node mounts it"
        );
    }

    #[test]
    fn the_message_names_image_architecture_and_the_first_nodes() {
        let Ok(Verdict::Missing(message)) = ask(&index(&["amd64", "s390x"]), Role::Container, false) else {
            panic!("not missing")
        };
        assert_eq!(
            message,
            "example.com/a:1 was not built for linux/arm64, only for linux/amd64, linux/s390x. It would run on arm-1, arm-2 \
             and 3 more. Build it for that platform too, or name another image."
        );
    }

    #[test]
    fn what_is_not_known_is_unknown_unless_it_was_missing() {
        let away = Answer::Unknown("no answer".into());
        let verdict = ask(&away, Role::Container, false);
        assert!(
            matches!(verdict, Ok(Verdict::Unknown(Reason::ImageUnreadable, _))),
            "{verdict:?}"
        );
        assert!(is_missing(&ask(&away, Role::Container, true)));
        assert_eq!(ask(&index(&["arm64"]), Role::Container, true), Ok(Verdict::Has));
        assert_eq!(ask(&Answer::Pending, Role::Container, true), Err(Pending));
    }

    #[test]
    fn a_restarted_operator_finds_in_the_status_what_was_missing() {
        let Ok(Verdict::Missing(message)) = ask(&index(&["amd64"]), Role::Container, false) else {
            panic!("not missing")
        };
        let object = |replicas: i32| -> HawkeyeDeployment {
            serde_json::from_value(json!({
                "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment", "metadata": {"name": "demo"},
                "spec": {},
                "status": {"pools": [{
                    "class": "cpu-arm64", "device": "Cpu", "dtype": "Float32", "batchSize": 1, "memory": "1Gi", "nodes": 5,
                    "replicas": replicas, "ready": 0, "reason": "ImageArchitectureMissing", "message": message,
                }]},
            }))
            .unwrap()
        };
        assert!(was_missing(&object(0), "cpu-arm64", "example.com/a:1"));
        assert!(
            !was_missing(&object(0), "cpu-arm64", "example.com/a:2"),
            "another image"
        );
        assert!(!was_missing(&object(0), "cpu-arm64", "example.com/a"), "another name");
        assert!(!was_missing(&object(0), "graviton", "example.com/a:1"));
        assert!(
            !was_missing(&object(1), "cpu-arm64", "example.com/a:1"),
            "said by a pod"
        );
        // And what is said from memory is found again after the next restart.
        let Ok(Verdict::Missing(again)) = ask(&Answer::Unknown("away".into()), Role::Container, true) else {
            panic!("not missing")
        };
        assert!(again.starts_with(&not_built("example.com/a:1")), "{again}");
    }

    #[test]
    fn a_class_whose_pods_mount_a_digest_keeps_it_whether_they_are_ready_or_not() {
        let missing = || Verdict::Missing("m.".to_owned());
        let memory = || Memory::from([("cpu-arm64".to_owned(), "sha256:1".to_owned())]);
        let after = |digest: &str, memory: Memory, role: Role, runs: bool| {
            let mut digests = Digests::now(digest, memory);
            let verdict = softened(missing(), role, "cpu-arm64", runs, &mut digests);
            (verdict, digests.of("cpu-arm64").map(str::to_owned))
        };
        let kept = Verdict::Kept("m. Its pods keep the content that they run.".to_owned());
        for runs in [true, false] {
            let moved = after("sha256:2", memory(), Role::Model, runs);
            assert_eq!(moved, (kept.clone(), Some("sha256:1".to_owned())), "ready: {runs}");
        }
        // Pods that mount the tag itself prove it only while they are ready.
        assert_eq!(after("sha256:2", Memory::new(), Role::Model, true), (kept, None));
        assert_eq!(after("sha256:2", Memory::new(), Role::Model, false).0, missing());
        // The same content as ever, and images that run.
        assert_eq!(after("sha256:1", memory(), Role::Model, true).0, Verdict::Has);
        assert_eq!(after("sha256:1", memory(), Role::Model, false).0, missing());
        assert_eq!(after("sha256:2", memory(), Role::Container, true).0, Verdict::Has);
        assert_eq!(after("sha256:2", memory(), Role::Container, false).0, missing());
    }

    #[test]
    fn the_worse_of_two_verdicts_decides() {
        let missing = Verdict::Missing("m".to_owned());
        let unknown = Verdict::Unknown(Reason::ImageUnreadable, "u".to_owned());
        assert_eq!(worst(Verdict::Has, Verdict::Has), Verdict::Has);
        assert_eq!(worst(Verdict::Has, unknown.clone()), unknown);
        assert_eq!(worst(unknown.clone(), missing.clone()), missing);
        assert_eq!(worst(missing.clone(), unknown.clone()), missing);
        let kept = Verdict::Kept("k".to_owned());
        assert_eq!(worst(unknown, kept.clone()), kept);
        assert_eq!(worst(kept, missing.clone()), missing);
    }
}
