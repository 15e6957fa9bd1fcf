//! An operator with nothing to do writes nothing.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::Suite;

pub async fn two_idle_minutes_write_nothing_but_the_lease(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("idle").await?;
    scope
        .apply("idle", json!({"replicas": 2, "classes": ["dgx-spark", "graviton"]}))
        .await?;
    scope.until_ready("idle", 2, 60).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = writes(suite)?.len();
    ensure!(
        before > 0,
        "the audit log knows no write of the operator at all: it does not measure what it should"
    );
    tokio::time::sleep(Duration::from_mins(2)).await;
    let after = writes(suite)?;
    ensure!(
        after.len() == before,
        "while idle the operator wrote: {:#?}",
        &after[before..]
    );
    scope.delete("idle").await
}

/// The operator's writes, leases left out, as the API server's audit log has them.
fn writes(suite: &Suite) -> Result<Vec<String>> {
    let log = suite.cluster.logs().join("audit.log");
    let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut found = Vec::new();
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let user = entry["user"]["username"].as_str().unwrap_or_default();
        let verb = entry["verb"].as_str().unwrap_or_default();
        let resource = entry["objectRef"]["resource"].as_str().unwrap_or_default();
        if user.starts_with("system:serviceaccount:hawkeye-system:")
            && !["get", "list", "watch"].contains(&verb)
            && resource != "leases"
            && entry["stage"] == "ResponseComplete"
        {
            found.push(format!(
                "{verb} {resource} {}",
                entry["requestURI"].as_str().unwrap_or_default()
            ));
        }
    }
    Ok(found)
}
