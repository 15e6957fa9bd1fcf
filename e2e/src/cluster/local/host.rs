//! What a node is on the host: cgroups that hold its processes, one end of a link, a folder.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{ClusterName, NodeChoice, addresses::Block, node::Node};
use crate::{
    command,
    error::{Error, IoContext, Result},
};

/// Debian's packages for [`PROGRAMS`] and [`PLUGINS`]; `e2e/setup.sh` installs them.
const PACKAGES: [&str; 6] = [
    "runc",
    "containernetworking-plugins",
    "iptables",
    "iproute2",
    "util-linux",
    "mount",
];
const PROGRAMS: [&str; 8] = [
    "runc",
    "iptables",
    "iptables-restore",
    "ip",
    "unshare",
    "nsenter",
    "setsid",
    "mount",
];
const PLUGINS: [&str; 4] = ["ptp", "host-local", "portmap", "loopback"];
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Kernel settings that the kubelet insists on. The cluster sees files with these values in their place, so that the
/// host's own settings stay as they are.
const KUBELET_TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Folders where kubelet, containerd and CNI plug-ins write whatever their settings say. The cluster sees its own layer
/// over each, which goes with its folder.
const HOST_FOLDERS: [&str; 3] = ["/var/lib", "/var/log", "/opt"];

/// Finds the folder of the CNI plug-ins and checks that every program is there.
pub(super) fn check_programs() -> Result<PathBuf> {
    let holds_all = |folder: &&PathBuf| PLUGINS.iter().all(|plugin| folder.join(plugin).is_file());
    let folders = PLUGIN_FOLDERS.map(PathBuf::from);
    let plugins = folders.iter().find(holds_all).cloned();
    let programs = PROGRAMS
        .iter()
        .filter(|program| command::find(program).is_none())
        .map(|&program| program.to_owned());
    let mut missing: Vec<String> = programs.collect();
    if plugins.is_none() {
        missing.push(format!("the CNI plug-ins {}", PLUGINS.join(", ")));
    }
    match plugins {
        Some(folder) if missing.is_empty() => Ok(folder),
        _ => Err(Error::MissingPrograms {
            missing: missing.join(", "),
            packages: PACKAGES.join(" "),
        }),
    }
}

/// The host's side of one node.
pub(super) struct Host {
    cluster: String,
    /// `hawkeye-<cluster>`, for the second node `hawkeye-<cluster>.arm64`: the node's name, its cgroups' name.
    name: String,
    /// The host's end of the link to the first node, by which the second is reached as well.
    link: Option<String>,
    folder: PathBuf,
    /// The cluster's: one for both nodes.
    logs: PathBuf,
}

impl Host {
    /// `folder` is the cluster's; the second node has a folder in it.
    pub(super) fn new(cluster: &ClusterName, place: NodeChoice, folder: &Path) -> Self {
        let logs = folder.join("logs");
        let (name, link, folder) = match place {
            NodeChoice::First => (
                format!("hawkeye-{cluster}"),
                Some(format!("hk-{cluster}")),
                folder.to_owned(),
            ),
            NodeChoice::Arm64 => (format!("hawkeye-{cluster}.arm64"), None, folder.join("arm64")),
        };
        Self {
            cluster: cluster.to_string(),
            name,
            link,
            folder,
            logs,
        }
    }

    /// The log of the node's first process.
    fn holder_log(&self) -> PathBuf {
        let name = self.link.as_ref().map_or("holder-arm64.log", |_| "holder.log");
        self.logs.join(name)
    }

    /// The node's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The node's folder under a short name, in a `/run` that only its own mount namespace shows: socket paths end at
    /// 108 bytes.
    pub(super) fn run_folder(&self) -> PathBuf {
        Path::new("/run").join(&self.name)
    }

    /// Makes cgroups and the holder with its namespaces.
    pub(super) fn create(&self, pause: &Path) -> Result<Node> {
        fs::create_dir_all(&self.logs).context(|| format!("creating {}", self.logs.display()))?;
        for cgroup in self.cgroups()? {
            create_cgroup(&cgroup)?;
        }
        self.start_holder(pause)?;
        let started = Instant::now();
        // The file appears when the namespaces are set up.
        while !self.folder.join("holder-ready").exists() {
            if started.elapsed() > Duration::from_secs(10) {
                let log = self.holder_log();
                let tail = fs::read_to_string(&log).unwrap_or_default();
                return Err(Error::Stopped {
                    component: "the namespaces' first process".into(),
                    log,
                    tail,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.node()
    }

    /// Makes the link between this machine and the first node.
    pub(super) fn connect(&self, node: &Node, block: Block) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let (host, inside) = (block.host(), block.node(NodeChoice::First));
        ip(&format!(
            "link add {link} type veth peer name eth0 netns {}",
            node.holder()
        ))?;
        ip(&format!("addr add {host}/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        for words in [
            format!("addr add {inside}/30 dev eth0"),
            "link set eth0 up".into(),
            format!("route add default via {host}"),
        ] {
            node.ip(&words)?;
        }
        ip(&format!("route add {block} via {inside}"))
    }

    fn start_holder(&self, pause: &Path) -> Result<()> {
        let tunables = self.folder.join("tunables");
        for (name, value) in KUBELET_TUNABLES {
            let file = tunables.join(name);
            let folder = file.parent().unwrap_or(&tunables);
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&file, value))
                .context(|| format!("{}", file.display()))?;
        }
        let tunables = KUBELET_TUNABLES.map(|(name, _)| name).join(" ");
        let folders: Vec<_> = HOST_FOLDERS
            .into_iter()
            .filter(|folder| !self.folder.starts_with(folder))
            .collect();
        let folders = folders.join(" ");
        // The first process binds what it needs, says so, and becomes `pause`, which reaps whatever is orphaned.
        let inside = format!(
            r#"cd "$FOLDER"
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir "$RUN"
mount --bind . "$RUN"
for name in {tunables}; do
  if [ -e "/proc/sys/$name" ]; then mount --bind "$RUN/tunables/$name" "/proc/sys/$name"; fi
done
for folder in {folders}; do
  layers="$RUN/host$folder"
  mkdir -p "$layers/upper" "$layers/work"
  mount -t overlay -o "lowerdir=$folder,upperdir=$layers/upper,workdir=$layers/work" overlay "$folder"
done
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
: > "$RUN/holder-ready"
exec "$PAUSE""#
        );
        let outside = r#"echo 0 > "$CGROUP/cgroup.procs"
exec setsid unshare --net --mount --pid --fork --kill-child --mount-proc --propagation slave -- sh -ec "$INSIDE""#;
        let log = fs::File::create(self.holder_log()).context(|| "creating holder.log".into())?;
        let errors = log.try_clone().context(|| "holder.log".into())?;
        let mut shell = Command::new("sh");
        shell.args(["-ec", outside]).current_dir("/").env_clear();
        shell
            .env("PATH", super::node::PATH)
            .env("INSIDE", inside)
            .env("PAUSE", pause);
        shell
            .env("FOLDER", &self.folder)
            .env("RUN", self.run_folder())
            .env("CGROUP", self.components_cgroup()?);
        shell.stdin(Stdio::null()).stdout(log).stderr(errors);
        shell
            .spawn()
            .context(|| "starting the namespaces' first process".into())?;
        Ok(())
    }

    /// The running node, found by its holder.
    pub(super) fn node(&self) -> Result<Node> {
        let cgroup = self.components_cgroup()?;
        let holder = processes(&cgroup)
            .into_iter()
            .find(|&pid| is_first_in_child_namespace(pid));
        let holder = holder.ok_or_else(|| match self.link {
            Some(_) => Error::NotUp(self.cluster.clone()),
            None => Error::NoArm64Node(format!(
                "cluster `{}` has none; `cluster up --arm64` starts it afresh with one",
                self.cluster
            )),
        })?;
        Ok(Node::new(holder, cgroup, self.logs.clone()))
    }

    /// Whether a component's process is there, by the file name of its program.
    pub(super) fn runs(&self, program: &str) -> Result<bool> {
        let is_it =
            |pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.file_name() == Some(program.as_ref()));
        Ok(processes(&self.components_cgroup()?).into_iter().any(is_it))
    }

    /// Whether the host shows nothing of the node beside its folder.
    pub(super) fn is_clean(&self) -> Result<bool> {
        let cgroups = self.cgroups()?;
        Ok(!cgroups.iter().any(|cgroup| cgroup.exists()) && !self.link_exists())
    }

    fn link_exists(&self) -> bool {
        let exists = |link| Path::new("/sys/class/net").join(link).exists();
        self.link.as_ref().is_some_and(exists)
    }

    /// Ends every process of the node and removes all that [`Self::create`] made, the folder last.
    pub(super) fn delete(&self) -> Result<()> {
        let cgroups = self.cgroups()?;
        self.end_processes(&cgroups)?;
        for cgroup in &cgroups {
            remove_cgroup(cgroup)?;
        }
        if let Some(link) = &self.link
            && self.link_exists()
        {
            // Its other end may be on its way out with the network namespace, and take this one along.
            let deleted = ip(&format!("link delete {link}"));
            if self.link_exists() {
                deleted?;
            }
        }
        self.refuse_mounts()?;
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).context(|| format!("removing {}", self.folder.display()))?;
        }
        Ok(())
    }

    /// Kills everything in the cgroups until nothing is there, and waits until the last has really gone: a cgroup no
    /// longer lists a process that is still letting go of its namespaces.
    fn end_processes(&self, cgroups: &[PathBuf]) -> Result<()> {
        let started = Instant::now();
        let mut killed = BTreeSet::new();
        loop {
            let alive: BTreeSet<_> = cgroups.iter().flat_map(|cgroup| processes_below(cgroup)).collect();
            if alive.is_empty() && !killed.iter().any(|&(pid, started)| start_time(pid) == Some(started)) {
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(20) {
                let why = format!("they do not end: {alive:?}");
                return Err(Error::Leftover {
                    what: format!("the processes of {}", self.name),
                    why,
                });
            }
            killed.extend(alive.iter().filter_map(|&pid| Some((pid, start_time(pid)?))));
            for pid in alive.into_iter().filter_map(Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Mounts live in the cluster's own mount namespace. One that the host sees below the folder is somebody else's, and
    /// removing the folder would remove what is mounted there.
    fn refuse_mounts(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context(|| "reading the mounts".into())?;
        let inside = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|point| Path::new(point).starts_with(&self.folder))
        };
        mounts.lines().find(inside).map_or(Ok(()), |mount| {
            let why = format!("something is mounted in it: {mount}");
            Err(Error::Leftover {
                what: self.folder.display().to_string(),
                why,
            })
        })
    }

    /// The node's cgroup in each hierarchy; the kubelet's pods come below it.
    fn cgroups(&self) -> Result<Vec<PathBuf>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context(|| "reading the mounts".into())?;
        Ok(hierarchies(&mounts)
            .into_iter()
            .map(|root| root.join(&self.name))
            .collect())
    }

    /// Where the components themselves are. One hierarchy is enough to find them by.
    fn components_cgroup(&self) -> Result<PathBuf> {
        let cgroups = self.cgroups()?;
        let first = cgroups.first().ok_or_else(|| Error::Leftover {
            what: "cgroups".into(),
            why: "this machine mounts none at /sys/fs/cgroup".into(),
        })?;
        Ok(first.join("components"))
    }
}

/// Runs `ip` on this machine.
pub(super) fn ip(words: &str) -> Result<()> {
    command::run(Command::new("ip").args(words.split(' '))).map(drop)
}

/// Mount points of the hierarchies with controllers: the one of version 2, or each of version 1.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let point = PathBuf::from(place.split(' ').nth(4)?);
        let kind = kind.split(' ').next()?;
        let under = point.starts_with("/sys/fs/cgroup");
        (under && kind.starts_with("cgroup")).then(|| (point, kind == "cgroup2"))
    });
    let mounts: Vec<_> = mounts.collect();
    let any_v1 = mounts.iter().any(|(_, v2)| !v2);
    // Beside version 1, version 2 has no controllers; but runc puts every container there too.
    let (mut v1, v2): (Vec<_>, Vec<_>) = mounts.into_iter().partition(|(_, v2)| !v2);
    if any_v1 {
        v1.extend(v2);
        v1.into_iter().map(|(point, _)| point).collect()
    } else {
        v2.into_iter().map(|(point, _)| point).collect()
    }
}

fn create_cgroup(cgroup: &Path) -> Result<()> {
    let components = cgroup.join("components");
    fs::create_dir_all(&components).context(|| format!("creating {}", components.display()))?;
    let Some(root) = cgroup.parent() else { return Ok(()) };
    // Version 2: controllers must be handed down. Those that the kernel lacks are left out one by one.
    for parent in [root, cgroup] {
        let available = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        for controller in available.split_whitespace() {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    // Version 1: a new cpuset is empty and takes no process until it is filled.
    for folder in [cgroup, &components] {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (own, parent) = (folder.join(file), folder.parent().unwrap_or(root).join(file));
            if let (Ok(own_value), Ok(value)) = (fs::read_to_string(&own), fs::read_to_string(&parent))
                && own_value.trim().is_empty()
                && !value.trim().is_empty()
            {
                fs::write(&own, value).context(|| format!("writing {}", own.display()))?;
            }
        }
    }
    Ok(())
}

/// Cgroups below this one and itself, deepest first.
fn tree(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else {
        return Vec::new();
    };
    let folders = entries
        .filter_map(io::Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = folders.flat_map(|entry| tree(&entry.path())).collect();
    all.push(cgroup.into());
    all
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process outside this process-id namespace.
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|&pid| pid > 0)
        .collect()
}

fn processes_below(cgroup: &Path) -> Vec<i32> {
    tree(cgroup).iter().flat_map(|cgroup| processes(cgroup)).collect()
}

fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        let mut busy = None;
        for folder in tree(cgroup) {
            if let Err(error) = fs::remove_dir(&folder) {
                busy = Some((folder, error));
            }
        }
        match busy {
            None => return Ok(()),
            // A process that has just ended keeps its cgroup busy for a moment.
            Some(_) if started.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(50)),
            Some((folder, error)) => return Err(error).context(|| format!("removing {}", folder.display())),
        }
    }
}

/// When a process was started, in ticks since boot: with its number, this names it for good. `None` when it is gone, or
/// only waits for its parent to read its status.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(18).filter(|_| !ended)?.parse().ok()
}

/// Whether the process is number 1 of a namespace directly below this one.
fn is_first_in_child_namespace(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap_or_default();
    ids.split_whitespace().skip(1).eq(["1"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_hierarchies_come_first_and_version_2_is_not_forgotten() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                      40 31 0:37 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n";
        let expected = ["cpu", "pids", "unified"].map(|name| Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(hierarchies(hybrid), expected);
        let pure = "30 23 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchies(pure), [Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_tree_lists_children_before_parents() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/cgroup.procs"), "12\n0\n34\n").unwrap();
        let tree = tree(folder.path());
        assert_eq!(
            tree,
            [folder.path().join("a/b"), folder.path().join("a"), folder.path().into()]
        );
        assert_eq!(processes_below(folder.path()), [12, 34]);
    }

    #[test]
    fn this_process_is_not_a_holder() {
        assert!(!is_first_in_child_namespace(std::process::id() as i32));
    }

    #[test]
    fn a_process_is_named_by_its_start_until_it_has_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let started = start_time(pid);
        assert!(started.is_some_and(|started| started >= start_time(std::process::id() as i32).unwrap()));
        child.kill().unwrap();
        // Ended but not yet waited for, then gone.
        while start_time(pid).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
    }

    #[test]
    fn a_folder_with_a_mount_inside_is_not_removed() {
        let name = "unit".parse().unwrap();
        let error = Host::new(&name, NodeChoice::First, Path::new("/proc"))
            .refuse_mounts()
            .unwrap_err()
            .to_string();
        assert!(error.contains("mounted"), "{error}");
        assert!(
            Host::new(&name, NodeChoice::First, Path::new("/nowhere"))
                .refuse_mounts()
                .is_ok()
        );
    }
}
