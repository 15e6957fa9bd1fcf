//! Command line of image verification.

use std::collections::BTreeSet;

use clap::Args;

use super::{
    client::{RegistryClient, SetupError},
    policy::Policy,
    reference::InvalidReference,
};

/// Which registries the operator asks about images, and how.
#[derive(Clone, Debug, Default, Args)]
pub struct VerifyArgs {
    /// Registries, or parts of them such as ghcr.io/team, that are asked which platforms an image was built for, separated
    /// by commas; empty to ask none
    #[arg(long, env = "HAWKEYE_VERIFY_REGISTRIES", value_delimiter = ',')]
    pub verify_registries: Vec<String>,

    /// Registries (host and port) that are asked without TLS, separated by commas
    #[arg(long, env = "HAWKEYE_VERIFY_INSECURE_REGISTRIES", value_delimiter = ',')]
    pub verify_insecure_registries: Vec<String>,

    /// Secrets (NAMESPACE/NAME) that may be read to ask for private images of HawkeyeDeployments that name them in
    /// imagePullSecrets, separated by commas
    #[arg(long, env = "HAWKEYE_VERIFY_PULL_SECRETS", value_delimiter = ',', value_parser = parse_secret)]
    pub verify_pull_secrets: Vec<PullSecret>,

    /// Certificates, in PEM, of authorities that registries are trusted by besides the public ones
    #[arg(long, env = "HAWKEYE_VERIFY_CA", default_value = "", hide_default_value = true)]
    pub verify_ca: String,
}

/// Namespace and name of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullSecret(String, String);

impl VerifyArgs {
    /// What may be looked up.
    ///
    /// # Errors
    /// When something given is not a registry.
    pub fn policy(&self) -> Result<Policy, InvalidReference> {
        let registries: Vec<String> = said(&self.verify_registries).collect();
        let secrets = self
            .verify_pull_secrets
            .iter()
            .map(|secret| (secret.0.clone(), secret.1.clone()));
        Policy::new(&registries, secrets)
    }

    /// The client that asks.
    ///
    /// # Errors
    /// When the certificates are not usable.
    pub fn client(&self) -> Result<RegistryClient, SetupError> {
        let insecure: BTreeSet<String> = said(&self.verify_insecure_registries).collect();
        RegistryClient::new(&self.verify_ca, insecure)
    }
}

/// An empty variable is one empty value for clap.
fn said(values: &[String]) -> impl Iterator<Item = String> + '_ {
    values
        .iter()
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

fn parse_secret(text: &str) -> Result<PullSecret, String> {
    match text.trim().split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(PullSecret(namespace.to_owned(), name.to_owned()))
        }
        _ => Err("it must be NAMESPACE/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        verify: VerifyArgs,
    }

    fn parse(arguments: &[&str]) -> Result<VerifyArgs, String> {
        Cli::try_parse_from(["test"].iter().chain(arguments))
            .map(|cli| cli.verify)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_asked_unless_it_is_said() {
        assert!(!parse(&[]).unwrap().policy().unwrap().is_on());
        assert!(!parse(&["--verify-registries", ""]).unwrap().policy().unwrap().is_on());
        let some = parse(&["--verify-registries", "ghcr.io/team,localhost:5000"]).unwrap();
        assert!(some.policy().unwrap().is_on());
        assert!(some.client().is_ok());
    }

    #[test]
    fn mistakes_are_told_at_the_start() {
        assert!(
            parse(&["--verify-registries", "https://ghcr.io"])
                .unwrap()
                .policy()
                .is_err()
        );
        assert!(parse(&["--verify-ca", "x"]).unwrap().client().is_err());
        for bad in ["a", "a/", "/b", "a/b/c"] {
            assert!(
                parse(&["--verify-pull-secrets", bad])
                    .unwrap_err()
                    .contains("NAMESPACE/NAME"),
                "{bad}"
            );
        }
        let secrets = parse(&["--verify-pull-secrets", "a/b,c/d"])
            .unwrap()
            .verify_pull_secrets;
        assert_eq!(
            secrets,
            [PullSecret("a".into(), "b".into()), PullSecret("c".into(), "d".into())]
        );
    }
}
