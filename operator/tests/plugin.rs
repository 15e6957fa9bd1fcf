//! `kubectl hawkeye` as its users meet it: the binary, files in, text and exit code out. The live side is in `api_server`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/many_nodes.rs"]
mod many_nodes;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use common::fixture;
use hawkeye_crds::v1alpha1::HawkeyeDeployment;
use hawkeye_operator::{
    cli::{objects, status},
    controller::observe::Pod,
};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

const FIXTURES: [&str; 7] = [
    "dgx-spark",
    "gh200",
    "x86-rtx",
    "graviton2",
    "graviton3",
    "cpu-arm64",
    "cpu-amd64",
];

const PARSER: &str = "
apiVersion: hawkeye.bytebot.ai/v1alpha1
kind: HawkeyeDeployment
metadata: {name: parser}
spec:
  replicas: 5
  model: {image: {reference: example.com/bundle:v2}}
";

struct Run {
    code: i32,
    out: String,
    err: String,
}

/// A folder with files, and the plugin run in it.
struct Folder(TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(TempDir::new().unwrap());
        for (name, text) in files {
            fs::write(folder.path(name), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.run_with(arguments, "")
    }

    /// The plan of [`cluster`] as JSON, in which there are these pods.
    fn plan_with_pods(&self, pods: &Value) -> Run {
        fs::write(self.path("pods.json"), pods.to_string()).unwrap();
        let arguments = "plan -f parser.yaml --nodes nodes.json --pods pods.json -o json";
        self.run(&arguments.split(' ').collect::<Vec<_>>())
    }

    fn run_with(&self, arguments: &[&str], stdin: &str) -> Run {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-hawkeye"))
            .args(arguments)
            .current_dir(self.0.path())
            .env("COLUMNS", "110")
            .env("KUBECONFIG", self.path("no-kubeconfig"))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended without reading.
        let _unread = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        Run {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The fixtures as ready nodes, and one of each kind that gets no pods.
fn nodes() -> Value {
    let mut items = Vec::new();
    let mut add = |fixture_name: &str, change: &dyn Fn(&mut Value)| {
        let mut node: Value = serde_saphyr::from_str(&fixture(fixture_name)).unwrap();
        node["spec"] = json!({});
        node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        change(&mut node);
        items.push(node);
    };
    for name in FIXTURES {
        add(name, &|_| {});
    }
    add("dgx-spark", &|node| {
        node["metadata"]["name"] = json!("dgx-spark-cordoned");
        node["spec"]["unschedulable"] = json!(true);
    });
    add("cpu-amd64", &|node| {
        node["metadata"]["name"] = json!("cpu-amd64-broken");
        node["status"]["conditions"][0]["status"] = json!("Unknown");
        node["spec"]["taints"] = json!([{"key": "dedicated", "value": "ci", "effect": "NoSchedule"}]);
    });
    add("x86-rtx", &|node| {
        node["metadata"]["name"] = json!("x86-mig");
        node["status"]["allocatable"]["nvidia.com/gpu"] = json!("0");
        node["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] = json!("7");
    });
    add("cpu-amd64", &|node| {
        node["metadata"]["name"] = json!("windows");
        node["metadata"]["labels"]["kubernetes.io/os"] = json!("windows");
    });
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn cluster() -> Folder {
    Folder::with(&[("parser.yaml", PARSER), ("nodes.json", &nodes().to_string())])
}

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!($name, $text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
        });
    };
}

#[test]
fn a_plan_says_what_goes_where_and_why() {
    let folder = cluster();
    let plan = |more: &[&str]| {
        let run = folder.run(&[&["plan", "-f", "parser.yaml", "--nodes", "nodes.json"], more].concat());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{}", run.out);
        run.out
    };
    golden!("plugin-plan-table", plan(&[]));
    golden!("plugin-plan-json", plan(&["-o", "json"]));
    golden!("plugin-plan-yaml", plan(&["-o", "yaml"]));
    let json: Value = serde_json::from_str(&plan(&["-o", "json"])).unwrap();
    let yaml: Value = serde_saphyr::from_str(&plan(&["-o", "yaml"])).unwrap();
    assert_eq!(json, yaml);
}

#[test]
fn what_has_no_place_is_said_and_ends_with_2() {
    let folder = cluster();
    let parser = PARSER.replace("  replicas: 5", "  replicas: 9\n  device: Cuda\n  fallback: Deny");
    let run = folder.run_with(&["plan", "-f", "-", "--nodes", "nodes.json"], &parser);
    assert_eq!(run.code, 2, "{}", run.err);
    golden!("plugin-plan-unplaced", run.out);
    let json = folder.run_with(&["plan", "-f", "-", "--nodes", "nodes.json", "-o", "json"], &parser);
    let report: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(report["placed"], false);
    assert_eq!(report["deployments"][0]["unplaced"], 6);

    // Without a model nothing is accepted, unless an option stands in for the chart's value.
    let bare = PARSER.replace("  model: {image: {reference: example.com/bundle:v2}}\n", "");
    let run = folder.run_with(&["plan", "-f", "-", "--nodes", "nodes.json"], &bare);
    assert_eq!(run.code, 2);
    assert!(run.out.contains("Accepted=False ModelMissing"), "{}", run.out);
    let run = folder.run_with(
        &["plan", "-f", "-", "--nodes", "nodes.json", "--default-model", "a/b:c"],
        &bare,
    );
    assert_eq!(run.code, 0);
    assert!(run.out.contains("model: image a/b:c"), "{}", run.out);
}

#[test]
fn what_others_hold_is_not_free() {
    let folder = cluster();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other", "namespace": "x"},
        "spec": {"nodeName": "dgx-spark", "containers": [{"resources": {"requests": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": "Running"},
    });
    let run = folder.plan_with_pods(&pod);
    let report: Value = serde_json::from_str(&run.out).unwrap();
    let spark = &report["classes"][0];
    assert_eq!(
        (&spark["free"], &spark["heldByOthers"]),
        (&json!(0), &json!(1)),
        "{spark}"
    );
    assert_eq!(report["deployments"][0]["pools"][0]["replicas"], 0);
}

#[test]
fn several_are_served_in_the_order_of_the_files() {
    let folder = cluster();
    let two = format!("{PARSER}---\n{}", PARSER.replace("parser}", "second, namespace: prod}"));
    fs::write(folder.path("two.yaml"), two).unwrap();
    let plan = |files: &[&str]| {
        let run = folder.run(&[&["plan", "--nodes", "nodes.json", "-o", "json", "-n", "mine"], files].concat());
        assert!(run.err.is_empty(), "{}", run.err);
        serde_json::from_str::<Value>(&run.out).unwrap()
    };
    let report = plan(&["-f", "two.yaml"]);
    let names: Vec<(&str, &str)> = report["deployments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["namespace"].as_str().unwrap(), one["name"].as_str().unwrap()))
        .collect();
    assert_eq!(names, [("mine", "parser"), ("prod", "second")]);
    assert_eq!(report["deployments"][0]["pools"][0]["replicas"], 1);
    assert_eq!(report["deployments"][1]["pools"][0]["replicas"], 0);
    // An older one goes first, wherever it stands.
    let old = PARSER.replace("parser}", "old, uid: u, creationTimestamp: \"2026-01-01T00:00:00Z\"}");
    fs::write(folder.path("old.yaml"), old).unwrap();
    assert_eq!(
        plan(&["-f", "two.yaml", "-f", "old.yaml"])["deployments"][0]["name"],
        "old"
    );
    let twice = folder.run(&["plan", "-f", "two.yaml", "-f", "parser.yaml", "--nodes", "nodes.json"]);
    assert_eq!(twice.code, 1);
    assert!(twice.err.contains("default/parser is given twice"), "{}", twice.err);
    fs::write(folder.path("empty.yaml"), "").unwrap();
    let empty = folder.run(&["plan", "-f", "empty.yaml", "--nodes", "nodes.json"]);
    assert_eq!(empty.code, 1);
    assert!(empty.err.contains("no HawkeyeDeployment in"), "{}", empty.err);
}

#[test]
fn classes_of_ones_own_take_the_place_of_the_built_in_ones() {
    let folder = cluster();
    let class = "
apiVersion: hawkeye.bytebot.ai/v1alpha1
kind: HardwareClass
metadata: {name: mig}
spec:
  priority: 200
  arch: amd64
  device: Cuda
  imageVariant: cuda
  resource: nvidia.com/mig-1g.10gb
  dtype: Float16
  batchSize: {speed: 8, balanced: 8, quality: 8}
  memory: {limit: 4Gi}
  cpu: {request: 1}
  nodeSelectorTerms: [{matchExpressions: [{key: nvidia.com/gpu.present, operator: Exists}]}]
";
    fs::write(folder.path("mig.yaml"), class).unwrap();
    let run = folder.run(&[
        "plan",
        "-f",
        "parser.yaml",
        "--nodes",
        "nodes.json",
        "--classes",
        "mig.yaml",
    ]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    golden!("plugin-plan-own-class", run.out);
    let run = folder.run(&["classes", "--nodes", "nodes.json"]);
    assert_eq!(run.code, 0);
    golden!("plugin-classes", run.out);
}

#[test]
fn the_documentation_shows_what_is_printed() {
    let here = |path: &str| format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    let path = here("../docs/src/reference/kubectl-plugin.md");
    let mut page = fs::read_to_string(&path).unwrap();
    for name in ["plugin-plan-table", "plugin-status-table", "plugin-classes"] {
        let golden = fs::read_to_string(here(&format!("tests/golden/{name}.snap"))).unwrap();
        let text = golden.splitn(3, "---\n").nth(2).unwrap().trim_end();
        let begin = format!("<!-- {name} -->\n```text\n");
        let (before, rest) = page.split_once(&begin).unwrap();
        let (shown, after) = rest.split_once("\n```\n").unwrap();
        if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
            page = format!("{before}{begin}{text}\n```\n{after}");
            fs::write(&path, &page).unwrap();
        } else {
            assert_eq!(shown, text, "{name}: INSTA_UPDATE=always brings the page up to date");
        }
    }
}

#[rstest]
// Every violation at once, each with its field.
#[case(&["plan", "-f", "bad.yaml", "--nodes", "nodes.json"], "HawkeyeDeployment bad is invalid; the API server would refuse it:
  spec.profile: Fast is not one of Speed, Balanced, Quality
  spec.replica: unknown field; did you mean replicas?
")]
#[case(&["plan", "-f", "nodes.json", "--nodes", "nodes.json"], "nodes.json: it holds a Node where only objects of kind HawkeyeDeployment are of use
  such a file is what this writes: kubectl get hkd -o yaml
")]
#[case(&["plan", "-f", "parser.yaml", "--nodes", "missing.json"], "missing.json: No such file or directory")]
#[case(&["plan", "-f", "-", "--nodes", "-"], "standard input can be read only once")]
#[case(&["plan", "-f", "parser.yaml"], "no cluster to ask: ")]
#[case(&["status"], "no cluster to ask: ")]
#[case(&["plan", "--nodez", "x"], "unexpected argument '--nodez'")]
#[case(&["plan", "--pods", "x"], "--nodes")]
fn errors_say_what_to_do_and_end_with_1(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = cluster();
    let bad = PARSER
        .replace("name: parser", "name: bad")
        .replace("replicas: 5", "replica: 5\n  profile: Fast");
    fs::write(folder.path("bad.yaml"), bad).unwrap();
    let run = folder.run(arguments);
    assert_eq!(run.code, 1);
    assert_eq!(run.out, "");
    assert!(
        run.err.starts_with("error: ") && run.err.contains(expected),
        "{}",
        run.err
    );
}

#[test]
fn help_has_examples_and_ends_with_0() {
    let folder = cluster();
    for command in ["plan", "status", "classes"] {
        let run = folder.run(&[command, "--help"]);
        assert_eq!(run.code, 0);
        assert!(
            run.out.contains(&format!("Usage: kubectl hawkeye {command}")),
            "{}",
            run.out
        );
        assert!(run.out.contains("Examples:\n"), "{}", run.out);
    }
    assert!(folder.run(&["--version"]).out.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn many_nodes_share_lines_and_every_form_of_file_means_the_same() {
    let list = many_nodes::list(&FIXTURES.map(fixture), 140);
    let folder = cluster();
    fs::write(folder.path("many.json"), list.to_string()).unwrap();
    fs::write(folder.path("many.yaml"), many_nodes::yaml(&list)).unwrap();
    let plan = |file: &str| {
        let run = folder.run(&["plan", "-f", "parser.yaml", "--nodes", file]);
        assert_eq!((run.code, run.err.as_str()), (0, ""));
        run.out
    };
    let table = plan("many.json");
    assert_eq!(table, plan("many.yaml"));
    assert!(table.contains("(+19 alike)"), "{table}");
    assert!(table.lines().count() < 60, "{table}");

    let each = folder.run(&["plan", "--nodes", "many.yaml", "--all-nodes"]);
    assert!(each.out.lines().count() > 140);
}

#[test]
fn what_is_left_out_of_yaml_changes_nothing() {
    let list = many_nodes::list(&FIXTURES.map(fixture), 21);
    let folder = Folder::with(&[
        ("cut.yaml", &many_nodes::yaml(&list)),
        // Flow style goes through the parser as it is.
        ("whole.yaml", &format!("--- {list}")),
        ("list.json", &list.to_string()),
    ]);
    let facts = |name: &str| objects::nodes(&[folder.path(name)]).unwrap();
    let cut = facts("cut.yaml");
    assert_eq!(cut.len(), 21);
    assert!(cut.iter().all(|node| node.ready && node.labels.len() == 60));
    assert_eq!(cut, facts("whole.yaml"));
    assert_eq!(cut, facts("list.json"));
}

#[test]
fn a_node_or_pod_that_is_given_twice_is_an_error() {
    let folder = cluster();
    let twice = folder.run(&[
        "plan",
        "-f",
        "parser.yaml",
        "--nodes",
        "nodes.json",
        "--nodes",
        "nodes.json",
    ]);
    assert_ne!(twice.code, 0, "{}", twice.out);
    assert!(twice.err.contains("Node dgx-spark is given twice"), "{}", twice.err);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"},
        "spec": {"nodeName": "x86-rtx", "containers": [{"name": "c", "resources": {"requests": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": "Running"},
    });
    let twice = folder.plan_with_pods(&json!({"apiVersion": "v1", "kind": "List", "items": [pod, pod]}));
    assert!(twice.err.contains("Pod a/p is given twice"), "{}", twice.err);
}

#[test]
fn a_status_shows_what_is_not_as_it_should_be() {
    let object: HawkeyeDeployment = serde_json::from_value(json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment",
        "metadata": {"name": "parser", "namespace": "prod", "generation": 3},
        "spec": {"replicas": 3},
        "status": {
            "observedGeneration": 3, "replicas": 2, "readyReplicas": 1, "summary": "PartlyReady",
            "endpoint": "http://parser.prod.svc:9989",
            "pools": [
                {"class": "dgx-spark", "device": "Cuda", "dtype": "BFloat16", "batchSize": 128, "memory": "8Gi", "nodes": 1,
                 "replicas": 1, "ready": 1, "reason": "AllReady", "message": "Has room: each pod takes one nvidia.com/gpu."},
                {"class": "graviton", "device": "Cpu", "dtype": "Float32", "batchSize": 16, "memory": "4Gi", "nodes": 2,
                 "replicas": 1, "ready": 0, "reason": "ImagePullFailed", "message": "An image of the pods cannot be had."},
                {"class": "cpu-arm64", "device": "Cpu", "dtype": "Float32", "batchSize": 16, "memory": "4Gi", "nodes": 0,
                 "replicas": 0, "ready": 0, "reason": "NoNodes", "message": "No node belongs to this class."},
            ],
            "conditions": [
                {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "x"},
                {"type": "Placed", "status": "False", "reason": "NotEnoughCapacity", "lastTransitionTime": "x",
                 "message": "1 of 3 replicas have no place: dgx-spark offers 1 nvidia.com/gpu on ready, schedulable nodes. Placed are 1 on dgx-spark, 1 on graviton."},
                {"type": "Available", "status": "True", "reason": "PartlyReady", "message": "", "lastTransitionTime": "x"},
                {"type": "Degraded", "status": "False", "reason": "AsAsked", "message": "", "lastTransitionTime": "x"},
                {"type": "FromTheFuture", "status": "False", "reason": "X", "message": "", "lastTransitionTime": "x"},
            ],
        },
    }))
    .unwrap();
    let pod = |class: &str, node: Option<&str>, status: Value| -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("parser-{class}-7c9f-x2x4z"), "namespace": "prod",
                "labels": {
                    "app.kubernetes.io/managed-by": "hawkeye-operator", "app.kubernetes.io/instance": "parser",
                    "hawkeye.bytebot.ai/class": class,
                },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("parser-{class}-7c9f"), "uid": "rs",
                    "controller": true,
                }],
            },
            "spec": {"nodeName": node, "containers": []},
            "status": status,
        }))
        .unwrap()
    };
    let pods = [
        pod(
            "dgx-spark",
            Some("spark-1"),
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        ),
        pod(
            "graviton",
            Some("c7g-2"),
            json!({"phase": "Pending", "containerStatuses": [
                {"restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff"}}},
            ]}),
        ),
    ];
    let report = status::report(std::slice::from_ref(&object), &pods, true, Vec::new());
    assert!(!report.good);
    golden!("plugin-status-table", status::render(&report, 100));
    golden!("plugin-status-json", serde_json::to_string_pretty(&report).unwrap());

    let mut degraded = object.clone();
    degraded.status.as_mut().unwrap().pools[0].on_cpu = 1;
    let shown = status::render(&status::report(&[degraded], &pods, true, Vec::new()), 100);
    assert!(shown.contains("1/1 (1 on CPU)"), "{shown}");

    let mut fine = object.clone();
    let status = fine.status.as_mut().unwrap();
    status.conditions.retain(|condition| condition.type_ != "Placed");
    assert!(status::report(&[fine.clone()], &pods, true, Vec::new()).good);
    fine.metadata.generation = Some(4);
    let stale = status::report(&[fine], &pods, true, Vec::new());
    assert!(!stale.good && status::render(&stale, 100).contains("has not looked at the current spec yet"));
}
