//! Which images may be looked up, and with which Secrets. Pure.

use std::collections::BTreeSet;

use hawkeye_crds::v1alpha1::Reason;

use super::reference::{ImageRef, InvalidReference, Scope};

/// What the administrator allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    scopes: Vec<Scope>,
    secrets: BTreeSet<(String, String)>,
}

/// An image to be looked up. What one set of Secrets could see is not shown to whoever has another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Its name, as it stands in the spec.
    pub image: String,
    /// Namespace and name of the Secrets to try, in the order of the spec; none: without credentials.
    pub secrets: Vec<(String, String)>,
    /// A word that comes from the spec, too. With a new one the image is asked for at once.
    pub revision: Option<String>,
}

impl Policy {
    /// Allows the registries, or parts of them, and Secrets by namespace and name. Without a registry it is off.
    ///
    /// # Errors
    /// When one is not a registry.
    pub fn new(
        registries: &[String],
        secrets: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, InvalidReference> {
        Ok(Self {
            scopes: registries
                .iter()
                .map(|text| Scope::parse(text))
                .collect::<Result<_, _>>()?,
            secrets: secrets.into_iter().collect(),
        })
    }

    /// False when nothing may be looked up.
    pub fn is_on(&self) -> bool {
        !self.scopes.is_empty()
    }

    /// What to ask for an image of a pod in `namespace` that names these pull secrets.
    ///
    /// # Errors
    /// Why nothing may be asked: a reason and a sentence.
    pub fn subject<'a>(
        &self,
        namespace: &str,
        image: &str,
        pull_secrets: impl IntoIterator<Item = &'a str>,
    ) -> Result<Subject, (Reason, String)> {
        let parsed = ImageRef::parse(image).map_err(|error| {
            (
                Reason::ImageUnreadable,
                format!("{image} was not looked up: it is {error}."),
            )
        })?;
        if !self.scopes.iter().any(|scope| scope.holds(&parsed)) {
            return Err((
                Reason::RegistryNotAllowed,
                format!(
                    "{image} was not looked up: the chart's imageVerification.registries does not list {}.",
                    parsed.registry
                ),
            ));
        }
        Ok(Subject {
            image: image.to_owned(),
            secrets: pull_secrets
                .into_iter()
                .map(|name| (namespace.to_owned(), name.to_owned()))
                .filter(|secret| self.secrets.contains(secret))
                .collect(),
            revision: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_values_name_is_looked_up() {
        let policy = Policy::new(
            &["ghcr.io/team".to_owned(), "localhost:5000".to_owned()],
            [("prod".to_owned(), "pull".to_owned())],
        )
        .unwrap();
        assert!(policy.is_on() && !Policy::default().is_on());
        let anonymous = policy.subject("dev", "ghcr.io/team/app:v1", ["pull", "other"]).unwrap();
        assert_eq!(anonymous.secrets, [], "that Secret was granted in another namespace");
        let private = policy
            .subject("prod", "ghcr.io/team/app:v1", ["other", "pull"])
            .unwrap();
        assert_eq!(private.secrets, [("prod".to_owned(), "pull".to_owned())]);
        assert_ne!(anonymous, private);
        let (reason, message) = policy.subject("prod", "ghcr.io/teams/app", []).unwrap_err();
        assert_eq!(reason, Reason::RegistryNotAllowed);
        assert!(message.contains("ghcr.io/teams/app") && message.contains("imageVerification.registries"));
        assert_eq!(
            policy.subject("prod", "A B", []).unwrap_err().0,
            Reason::ImageUnreadable
        );
        assert!(Policy::new(&["not a host".to_owned()], []).is_err());
    }
}
