//! The figures as a table.

use std::io::Write as _;

use anyhow::Result;

use super::Figures;

/// Prints one line for each size.
pub(super) fn print(all: &[Figures]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:>7} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>6}",
        "nodes", "hkds", "placed s", "ready s", "requests", "per hkd", "CPU s", "RSS MiB", "restart s", "idle"
    )?;
    for one in all {
        let requests: u64 = one.requests.values().sum();
        writeln!(
            out,
            "{:>7} {:>6} {:>9.1} {:>9.1} {:>9} {:>9.1} {:>9.1} {:>9.1} {:>11.1} {:>6}",
            one.nodes,
            one.deployments,
            one.seconds_to_placed,
            one.seconds_to_ready,
            requests,
            one.requests_per_deployment,
            one.cpu_seconds,
            one.peak_rss_mib,
            one.restart_seconds,
            one.idle_writes
        )?;
    }
    writeln!(
        out,
        "idle: writes while nothing changed, its Lease left out ({} of those)",
        all.iter().map(|one| one.idle_lease_writes).sum::<usize>()
    )?;
    Ok(())
}
