//! Installs Hawkeye's charts with Helm, as a user does.

use std::path::Path;

use crate::{cluster::Cluster, command, error::Result, images::BUNDLE_REFERENCE};

/// The namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "hawkeye-system";

/// Installs or upgrades both charts and waits until the operator is ready. `extra` are further arguments for the
/// operator's chart.
///
/// # Errors
/// What Helm says.
pub fn charts(cluster: &Cluster, repository: &Path, extra: &[&str]) -> Result<()> {
    let model = format!("defaultModel.image.reference={BUNDLE_REFERENCE}");
    let operator = [
        "--set",
        &model,
        "--set",
        "defaultModel.image.pullPolicy=Never",
        // The images are on the nodes and in no registry.
        "--set",
        "imageVerification.enabled=false",
    ];
    for (release, arguments) in [
        ("hawkeye-crds", [].as_slice()),
        ("hawkeye", [&operator, extra].concat().as_slice()),
    ] {
        let mut helm = cluster.helm();
        helm.args(["upgrade", "--install", release])
            .arg(repository.join("charts").join(release));
        helm.args([
            "--namespace",
            OPERATOR_NAMESPACE,
            "--create-namespace",
            "--wait",
            "--timeout",
            "3m",
        ]);
        command::run(helm.args(arguments))?;
    }
    Ok(())
}
