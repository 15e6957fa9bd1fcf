//! Operators beside the one of the other scenarios, each behind a proxy of its own.

use std::{
    fs::OpenOptions,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    proxy::Proxy,
    server::{Cluster, client, get, kubeconfig, lock, port, wait},
};

/// An operator's process, and what it is started with.
pub struct Operator {
    process: Arc<Process>,
    kubelet: Option<JoinHandle<()>>,
    pub proxy: Proxy,
}

struct Process {
    folder: PathBuf,
    name: String,
    listen: u16,
    environment: Vec<(String, String)>,
    child: Mutex<Option<Child>>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.abort();
        }
        self.process.end();
    }
}

impl Process {
    fn start(&self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.log", self.name)))?;
        let child = Command::new(env!("CARGO_BIN_EXE_hawkeye-operator"))
            .arg("run")
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the operator does not start")?;
        *lock(&self.child) = Some(child);
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = lock(&self.child).as_ref()
            && let Some(pid) = Pid::from_raw(child.id().cast_signed())
        {
            // An error means that it has ended by itself; it was not waited for, so the id is no one else's.
            let _ended = kill_process(pid, signal);
        }
    }

    fn ended(&self) -> Option<ExitStatus> {
        lock(&self.child)
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
    }

    fn end(&self) {
        if let Some(mut child) = lock(&self.child).take() {
            crate::server::end(&mut child);
        }
    }
}

impl Operator {
    /// Starts one as the pod `pod`, with more environment, and waits until it has read the cluster.
    pub async fn start(cluster: &Cluster, pod: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let operator = Self::prepare(cluster, pod, environment).await?;
        operator.process.start()?;
        operator.ready().await?;
        Ok(operator)
    }

    /// The same without starting it.
    pub async fn prepare(cluster: &Cluster, pod: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let folder = cluster.folder.path().to_owned();
        let proxy = Proxy::start(client(&folder.join("operator")).await?).await?;
        let config = folder.join(format!("{pod}-{}", proxy.port));
        std::fs::write(
            &config,
            kubeconfig(&format!("http://127.0.0.1:{}", proxy.port), "operator"),
        )?;
        let listen = port()?;
        let mut all: Vec<(String, String)> = vec![
            ("KUBECONFIG".to_owned(), config.display().to_string()),
            ("HAWKEYE_LISTEN".to_owned(), format!("127.0.0.1:{listen}")),
            ("HAWKEYE_LOG_FORMAT".to_owned(), "text".to_owned()),
            ("POD_NAME".to_owned(), pod.to_owned()),
            ("HAWKEYE_IMAGE_CPU".to_owned(), "example.com/test:cpu".to_owned()),
            ("HAWKEYE_IMAGE_CUDA".to_owned(), "example.com/test:cuda".to_owned()),
        ];
        all.extend(
            environment
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        let process = Arc::new(Process {
            folder,
            name: format!("{pod}-{}", proxy.port),
            listen,
            environment: all,
            child: Mutex::new(None),
        });
        let killed = Arc::clone(&process);
        proxy.kills(move || killed.signal(Signal::KILL));
        Ok(Self {
            process,
            kubelet: None,
            proxy,
        })
    }

    /// Starts it, and starts it again after it ended, as a kubelet would.
    pub fn keep_alive(&mut self, pause: Duration) {
        let process = Arc::clone(&self.process);
        self.kubelet = Some(tokio::spawn(async move {
            loop {
                if process.start().is_err() {
                    return;
                }
                while process.ended().is_none() {
                    sleep(Duration::from_millis(20)).await;
                }
                sleep(pause).await;
            }
        }));
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub async fn ready(&self) -> Result<()> {
        wait("the operator to be ready", async || {
            Ok(get(self.process.listen, "/readyz").await.is_ok().then_some(()))
        })
        .await
        .with_context(|| self.log())
    }

    pub async fn leads(&self) -> bool {
        let metrics = get(self.process.listen, "/metrics").await.unwrap_or_default();
        metrics.lines().any(|line| line == "hawkeye_operator_leader 1")
    }

    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
    }

    pub fn log(&self) -> String {
        let path = self.process.folder.join(format!("{}.log", self.process.name));
        std::fs::read_to_string(path).unwrap_or_default()
    }
}
