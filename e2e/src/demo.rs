//! `hawkeye-e2e demo`: from nothing to the elements of a screenshot, parsed in a real cluster.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, ProviderChoice, UpOptions},
    command::Kubectl,
    images,
    install::{self, OPERATOR_NAMESPACE},
    paths::Cache,
    progress::Progress,
};

/// The demo's namespace; it enforces the `restricted` Pod Security level.
const NAMESPACE: &str = "hawkeye-demo";
/// The demo's HawkeyeDeployment.
const NAME: &str = "demo";
/// A screenshot of a page of our own, committed.
const SCREENSHOT: &str = "inference/export/testdata/screens/demo.png";
/// The built-in CPU classes request a whole core for each pod: too much for a second replica on a machine of two.
const SMALL_MACHINE: [&str; 2] = [
    "--set=hardwareClasses.cpu-amd64.cpu.request=500m",
    "--set=hardwareClasses.cpu-arm64.cpu.request=500m",
];
/// How long the pod may take to load its models on two busy cores.
const READY_WITHIN: Duration = Duration::from_mins(5);

/// Said before anything is done; docs/src/development/local-cluster.md has it in full.
const PREFACE: &str = "\
What this does: builds Hawkeye's images and a Kubernetes cluster, starts the cluster, installs Hawkeye, parses a screenshot.
  The first time that takes about 30 minutes on two cores, then under half a minute.
  On this machine, until `make demo-down`: processes in a cgroup hawkeye-NAME, and, without a container engine, a network
  link hk-NAME with a route to a part of 10.213.0.0/16. Files: in $HAWKEYE_CACHE and out/demo only.";

/// Options of the demo.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Name of the cluster.
    #[arg(long, global = true, default_value = "demo")]
    pub name: String,
    /// How to run the cluster.
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub provider: ProviderChoice,
    /// The screenshot to parse: PNG, JPEG, WebP or BMP.
    #[arg(long)]
    pub screenshot: Option<PathBuf>,
    /// Where the annotated picture and the elements are written.
    #[arg(long, default_value = "out/demo")]
    pub out: PathBuf,
}

/// The fields of the answer of `/parse` that the demo shows.
#[derive(Debug, Deserialize)]
struct Answer {
    elements: Vec<Element>,
    processing_time_ms: f64,
    device_name: String,
    som_image: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Element {
    #[serde(rename = "element_id")]
    id: Option<u32>,
    #[serde(rename = "type")]
    type_: String,
    bbox: [i64; 4],
    interactable: Option<bool>,
    content: Option<String>,
}

/// Runs everything and leaves the cluster up.
///
/// # Errors
/// The first step that fails, with what it said.
pub async fn run(args: &Options, repository: &Path) -> Result<()> {
    let progress = Progress::new();
    let cache = Cache::from_env()?;
    let screenshot = args.screenshot.clone().unwrap_or_else(|| repository.join(SCREENSHOT));
    let picture = fs::read(&screenshot).with_context(|| format!("cannot read {}", screenshot.display()))?;

    progress.step(PREFACE);
    progress.step("1/5 container images (about 10 minutes the first time)");
    let images = images::build_for_cluster(&cache, repository, progress)?;
    progress.step("2/5 a cluster (about 10 minutes more the first time: its programs are built from Go modules)");
    let cluster = Cluster::new(&args.name, args.provider, progress)?;
    cluster.up(UpOptions {
        keep: true,
        ..UpOptions::default()
    })?;
    for image in &images {
        cluster.load_image(image)?;
    }
    progress.step("3/5 Hawkeye, with Helm");
    install::charts(&cluster, repository, &SMALL_MACHINE)?;
    progress.step("4/5 a HawkeyeDeployment");
    let kubectl = cluster.kubectl();
    kubectl.apply(&objects())?;
    wait_available(&kubectl, progress)?;
    progress.step(format!("5/5 {} through the Service", screenshot.display()));
    let started = Instant::now();
    let answer = parse(&kubectl, &picture).await?;
    let took = started.elapsed();

    fs::create_dir_all(&args.out)?;
    let annotated = args.out.join("annotated.png");
    let elements = args.out.join("elements.json");
    fs::write(&elements, serde_json::to_vec_pretty(&answer)?)?;
    let answer: Answer = serde_json::from_value(answer).context("the service's answer is not what /parse promises")?;
    if let Some(overlay) = &answer.som_image {
        fs::write(
            &annotated,
            BASE64_STANDARD.decode(overlay).context("som_image is not base64")?,
        )?;
    }
    progress.step(format!(
        "{} elements in {:.1} s ({:.1} s in the parser, on {})",
        answer.elements.len(),
        took.as_secs_f64(),
        answer.processing_time_ms / 1000.0,
        answer.device_name
    ));
    let state = kubectl.run(["-n", NAMESPACE, "get", "hkd,deploy,pods", "-o", "wide"])?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}\n{state}", table(&answer.elements))?;
    writeln!(out, "Written: {} and {}\n", annotated.display(), elements.display())?;
    writeln!(out, "{}", next_steps(&cache, kubectl.kubeconfig(), &screenshot))?;
    Ok(())
}

/// The namespace and the HawkeyeDeployment. Its model comes from the chart's `defaultModel`; the profile Quality returns up
/// to 100 elements, so that all of the screenshot's text is in the table.
fn objects() -> String {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    let deployment = json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        // All that a reader may have changed since, so that a second demo is like the first.
        "spec": {"profile": "Quality", "replicas": 1, "device": "Auto", "fallback": "Degrade"},
    });
    format!("{namespace}\n---\n{deployment}\n")
}

/// Waits for the condition Available and prints each new state of the status on the way.
fn wait_available(kubectl: &Kubectl, progress: Progress) -> Result<()> {
    let started = Instant::now();
    let mut said = String::new();
    loop {
        let text = kubectl.run(["-n", NAMESPACE, "get", "hkd", NAME, "-o", "json"])?;
        let object: Value = serde_json::from_str(&text)?;
        let status = &object["status"];
        let word = status["summary"].as_str().unwrap_or("waiting for the operator");
        let line = match status["message"].as_str() {
            Some(message) if !message.is_empty() => format!("    {word}: {message}"),
            _ => format!("    {word}"),
        };
        if line != said {
            progress.step(&line);
            said = line;
        }
        let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if conditions
            .iter()
            .any(|c| c["type"] == "Available" && c["status"] == "True")
        {
            return Ok(());
        }
        if started.elapsed() > READY_WITHIN {
            let described = kubectl
                .run(["-n", NAMESPACE, "describe", "hkd,pods"])
                .unwrap_or_default();
            bail!("not available after {} s\n{described}", READY_WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Sends the picture as any client would, through `kubectl port-forward`, which works with every provider.
async fn parse(kubectl: &Kubectl, picture: &[u8]) -> Result<Value> {
    let forward = Forward::start(kubectl)?;
    let request = json!({"image": BASE64_STANDARD.encode(picture)});
    let answer = reqwest::Client::new()
        .post(format!("{}/parse", forward.url))
        .json(&request)
        .send()
        .await?;
    let status = answer.status();
    let text = answer.text().await?;
    if !status.is_success() {
        bail!("/parse answered {status}: {text}");
    }
    Ok(serde_json::from_str(&text)?)
}

/// A running `kubectl port-forward` on a free port; it ends when this is dropped.
struct Forward {
    child: Child,
    url: String,
    /// Held open: kubectl prints more lines, and a closed pipe would end it.
    _stdout: BufReader<ChildStdout>,
}

impl Forward {
    fn start(kubectl: &Kubectl) -> Result<Self> {
        let mut command = kubectl.command();
        command.args(["-n", NAMESPACE, "port-forward", &format!("service/{NAME}"), ":9989"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:41231 -> 9989"
        let port = line
            .split(" -> ")
            .next()
            .and_then(|s| s.rsplit(':').next())
            .and_then(|s| s.parse::<u16>().ok());
        let this = Self {
            child,
            url: format!("http://127.0.0.1:{}", port.unwrap_or_default()),
            _stdout: stdout,
        };
        port.with_context(|| format!("kubectl port-forward said {line:?}"))?;
        Ok(this)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The elements as a table, widths by content.
fn table(elements: &[Element]) -> String {
    const CONTENT: usize = 120;
    let mut text = format!(
        "{:>4}  {:<5} {:<22} {:<6} {}\n",
        "ID", "TYPE", "BOX (x, y, w, h)", "CLICK", "CONTENT"
    );
    for (row, element) in elements.iter().enumerate() {
        let id = element.id.map_or(row, |id| id as usize);
        let [x, y, w, h] = element.bbox;
        let place = format!("{x}, {y}, {w}, {h}");
        let click = if element.interactable == Some(true) { "yes" } else { "" };
        let content = element.content.as_deref().unwrap_or("-");
        let mut shown: String = content.chars().take(CONTENT).collect();
        if content.chars().count() > CONTENT {
            shown.push('…');
        }
        let _ = writeln!(text, "{id:>4}  {:<5} {place:<22} {click:<6} {shown}", element.type_);
    }
    text
}

/// What a reader can do with the cluster that is now up.
fn next_steps(cache: &Cache, kubeconfig: &Path, screenshot: &Path) -> String {
    format!(
        "The cluster stays up. Try next:\n\
         \n  export KUBECONFIG={} PATH={}:$PATH\n\
         \n  kubectl get hkd,hwc,deploy,pods -n {NAMESPACE}\
         \n  kubectl describe hkd {NAME} -n {NAMESPACE}\
         \n  kubectl scale hkd/{NAME} --replicas=2 -n {NAMESPACE}\
         \n  kubectl logs -n {OPERATOR_NAMESPACE} -l app.kubernetes.io/name=hawkeye-operator\
         \n  kubectl port-forward -n {NAMESPACE} service/{NAME} 9989 &\
         \n  curl -sS --retry 5 --retry-connrefused -F file=@{} 'http://127.0.0.1:9989/parse/upload?include_som=false' | jq '.elements[:3]'\
         \n  kubectl delete hkd/{NAME} -n {NAMESPACE}\n\
         \n  make demo        # again: takes what is built, under 3 minutes\
         \n  make demo-down   # removes the cluster and every trace of it\n",
        kubeconfig.display(),
        cache.tools().join("bin").display(),
        screenshot.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_cuts_long_content_at_characters() {
        let element = Element {
            id: Some(3),
            type_: "text".into(),
            bbox: [1, 2, 3, 4],
            interactable: Some(false),
            content: Some("ü".repeat(150)),
        };
        let text = table(&[element]);
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("   3  text  1, 2, 3, 4"));
        assert!(row.ends_with('…'));
        assert_eq!(row.chars().filter(|c| *c == 'ü').count(), 120);
    }

    #[test]
    fn the_objects_are_two_documents_of_the_demo_namespace() {
        let text = objects();
        let documents: Vec<Value> = text.split("---").map(|d| serde_json::from_str(d).unwrap()).collect();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[1]["metadata"]["namespace"], NAMESPACE);
    }
}
