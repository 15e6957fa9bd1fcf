//! Which content of a model's image the pods of each class mount: what a registry last said to be behind the tag. Pure.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{ModelImage, ModelSource, PullPolicy};

use crate::registry::{ImageRef, reference::Version};

/// The digest that the pods of each class mount now, as far as their Deployments name one. So it is known, too, to an
/// operator that starts while the registry is away.
pub type Memory = BTreeMap<String, String>;

/// The image whose tag is followed. A digest always means the same, and what is never pulled is taken by the name that it
/// was brought to the node under.
pub fn follows(model: &ModelSource) -> Option<&ModelImage> {
    let image = model.image.as_ref()?;
    let parsed = ImageRef::parse(&image.reference).ok()?;
    let tag = matches!(parsed.version, Version::Tag(_));
    (tag && image.pull_policy != Some(PullPolicy::Never)).then_some(image)
}

/// The digests that pods mount, by class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// For classes that are not in the map.
    others: Option<String>,
    by_class: BTreeMap<String, Option<String>>,
    memory: Memory,
}

impl Digests {
    /// As a registry says now.
    pub fn now(digest: &str, memory: Memory) -> Self {
        Self {
            others: Some(digest.to_owned()),
            by_class: BTreeMap::new(),
            memory,
        }
    }

    /// As it was, while nobody knows. A class that joins mounts what another one does.
    pub fn as_before(memory: Memory) -> Self {
        Self {
            others: memory.values().next().cloned(),
            by_class: memory
                .iter()
                .map(|(class, digest)| (class.clone(), Some(digest.clone())))
                .collect(),
            memory,
        }
    }

    /// What pods of a class mount; `None` where they mount the tag.
    pub fn of(&self, class: &str) -> Option<&str> {
        self.by_class.get(class).unwrap_or(&self.others).as_deref()
    }

    /// True when pods of a class would be replaced to mount other content.
    pub fn moved(&self, class: &str) -> bool {
        self.of(class) != self.memory.get(class).map(String::as_str)
    }

    /// True when pods of a class mount a digest.
    pub fn remembers(&self, class: &str) -> bool {
        self.memory.contains_key(class)
    }

    /// Leaves a class with what its pods mount.
    pub fn keep(&mut self, class: &str) {
        self.by_class.insert(class.to_owned(), self.memory.get(class).cloned());
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn memory(known: &[(&str, &str)]) -> Memory {
        known
            .iter()
            .map(|(class, digest)| ((*class).to_owned(), (*digest).to_owned()))
            .collect()
    }

    #[rstest]
    #[case::tag("image: {reference: 'example.com/bundle:v1'}", true)]
    #[case::no_tag_is_latest("image: {reference: 'example.com/bundle', pullPolicy: Always}", true)]
    #[case::preloaded("image: {reference: 'example.com/bundle:v1', pullPolicy: Never}", false)]
    #[case::digest("image: {reference: 'example.com/bundle:v1@sha256:DIGEST'}", false)]
    #[case::claim("persistentVolumeClaim: {claimName: bundle}", false)]
    fn tags_are_followed(#[case] model: &str, #[case] is: bool) {
        let model = format!("{{{}}}", model.replace("DIGEST", &"a".repeat(64)));
        let model: ModelSource = serde_saphyr::from_str(&model).unwrap();
        assert_eq!(follows(&model).is_some(), is);
    }

    #[test]
    fn what_a_registry_says_is_for_every_class() {
        let digests = Digests::now(
            "sha256:2",
            memory(&[("graviton", "sha256:1"), ("cpu-amd64", "sha256:2")]),
        );
        assert_eq!(digests.of("graviton"), Some("sha256:2"));
        assert_eq!(digests.of("cpu-arm64"), Some("sha256:2"));
        assert!(digests.moved("graviton") && !digests.moved("cpu-amd64"));
    }

    #[test]
    fn while_nobody_knows_everything_stays_as_it_is() {
        let digests = Digests::as_before(memory(&[("graviton", "sha256:1"), ("cpu-amd64", "sha256:2")]));
        assert_eq!(digests.of("graviton"), Some("sha256:1"));
        assert_eq!(digests.of("cpu-amd64"), Some("sha256:2"));
        assert!(digests.of("cpu-arm64").is_some(), "not a third content");
        assert!(!digests.moved("graviton") && !digests.moved("cpu-amd64"));
        assert_eq!(Digests::as_before(Memory::new()).of("graviton"), None);
    }

    #[test]
    fn a_class_that_cannot_follow_keeps_what_it_has() {
        let mut digests = Digests::now("sha256:2", memory(&[("graviton", "sha256:1")]));
        digests.keep("graviton");
        digests.keep("cpu-arm64");
        assert_eq!(digests.of("graviton"), Some("sha256:1"));
        assert_eq!(digests.of("cpu-arm64"), None, "it mounts the tag");
        assert_eq!(digests.of("cpu-amd64"), Some("sha256:2"));
    }
}
