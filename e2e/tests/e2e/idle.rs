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
    let (before, renewed) = writes(suite)?;
    let before = before.len();
    ensure!(
        before > 0,
        "the audit log knows no write of the operator at all: it does not measure what it should"
    );
    tokio::time::sleep(Duration::from_mins(2)).await;
    let (after, renewals) = writes(suite)?;
    ensure!(
        after.len() == before,
        "while idle the operator wrote: {:#?}",
        &after[before..]
    );
    // One leader that renews every two seconds, and no second one beside it.
    let renewals = renewals - renewed;
    ensure!(
        (30..=70).contains(&renewals),
        "the Lease was written {renewals} times in two minutes"
    );
    scope.delete("idle").await
}

/// The operator's writes, and how often it wrote its Lease, as the API server's audit log has them.
fn writes(suite: &Suite) -> Result<(Vec<String>, usize)> {
    let log = suite.cluster.logs().join("audit.log");
    let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let (mut found, mut renewals) = (Vec::new(), 0);
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let user = entry["user"]["username"].as_str().unwrap_or_default();
        let verb = entry["verb"].as_str().unwrap_or_default();
        let resource = entry["objectRef"]["resource"].as_str().unwrap_or_default();
        if user.starts_with("system:serviceaccount:hawkeye-system:")
            && !["get", "list", "watch"].contains(&verb)
            && entry["stage"] == "ResponseComplete"
        {
            if resource == "leases" {
                renewals += 1;
                continue;
            }
            found.push(format!(
                "{verb} {resource} {}",
                entry["requestURI"].as_str().unwrap_or_default()
            ));
        }
    }
    Ok((found, renewals))
}
