//! The operator as a process: started, read by way of its metrics and the kernel's figures, killed.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::default_model;
use crate::install::OPERATOR_NAMESPACE;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A running operator; killed when dropped.
pub(super) struct Operator {
    child: Child,
    url: String,
    http: reqwest::Client,
    started: Instant,
}

impl Operator {
    pub(super) fn start(program: &Path, kubeconfig: &Path, arguments: &[String]) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env("NO_PROXY", "*")
            .env("HAWKEYE_DEFAULT_MODEL", default_model())
            // Pods of kwok have no addresses that could be asked.
            .env("HAWKEYE_DEVICE_CHECKS", "0")
            .env("HAWKEYE_LOG_FORMAT", "text")
            .env("RUST_LOG", "warn")
            // The same each time, so that a restart takes its Lease over at once, as a pod's container does.
            .env("POD_NAME", "bench")
            .env("POD_NAMESPACE", OPERATOR_NAMESPACE)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let started = Instant::now();
        let child = command.spawn().with_context(|| program.display().to_string())?;
        Ok(Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(10))
                .build()?,
            started,
        })
    }

    /// Waits until `/readyz` says so.
    pub(super) async fn until_ready(&mut self, limit: Duration) -> Result<()> {
        while self.started.elapsed() < limit {
            self.alive()?;
            let answer = self.http.get(format!("{}/readyz", self.url)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("the operator is not ready after {} s", limit.as_secs())
    }

    /// Waits until it has made no request, watches left out, for `quiet`.
    pub(super) async fn until_quiet(&mut self, quiet: Duration, limit: Duration) -> Result<Duration> {
        self.until_reconciled(0, quiet, limit).await
    }

    /// Waits until it has reconciled this often and nothing changes for `quiet`; returns how long after its start the last
    /// change was.
    pub(super) async fn until_reconciled(
        &mut self,
        count: usize,
        quiet: Duration,
        limit: Duration,
    ) -> Result<Duration> {
        let begun = Instant::now();
        let mut last = (0, Instant::now());
        while begun.elapsed() < limit {
            self.alive()?;
            if let Ok(metrics) = self.metrics().await {
                let reconciles = metrics.get("hawkeye_operator_reconciles_total").copied().unwrap_or(0);
                let writes: u64 = metrics
                    .iter()
                    .filter(|(name, _)| name.starts_with("hawkeye_operator_api_requests_total"))
                    .filter(|(name, _)| ["Create", "Patch", "Delete"].iter().any(|verb| name.contains(verb)))
                    .map(|(_, value)| value)
                    .sum();
                let now = (reconciles << 32) + writes;
                if now != last.0 {
                    last = (now, Instant::now());
                }
                if reconciles >= count as u64 && last.1.elapsed() >= quiet {
                    return Ok(last.1 - self.started);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("the operator is not quiet after {} s", limit.as_secs())
    }

    /// Its requests by verb.
    pub(super) async fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let metrics = self.metrics().await?;
        Ok(metrics
            .into_iter()
            .filter_map(|(name, value)| {
                let verb = name
                    .strip_prefix("hawkeye_operator_api_requests_total{verb=\"")?
                    .strip_suffix("\"}")?;
                Some((verb.to_lowercase(), value))
            })
            .collect())
    }

    /// CPU time so far, user and system.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = fs::read_to_string(&path).context(path)?;
        // After the name in parentheses: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = text
            .rsplit_once(')')
            .context("an unknown form of stat")?
            .1
            .split_whitespace()
            .collect();
        let ticks = |position: usize| -> Result<f64> {
            Ok(fields
                .get(position - 3)
                .context("a short stat")?
                .parse::<u32>()
                .map(f64::from)?)
        };
        Ok((ticks(14)? + ticks(15)?) / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Largest resident memory so far.
    pub(super) fn peak_rss_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).context(path)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("no VmHWM")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Ends it without a word.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the operator ended by itself ({status})"),
        }
    }

    async fn metrics(&self) -> Result<BTreeMap<String, u64>> {
        let text = self
            .http
            .get(format!("{}/metrics", self.url))
            .send()
            .await?
            .text()
            .await?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.kill();
    }
}
