//! The addresses of one cluster: a /22 that no route of this host and no other cluster uses.

use std::{
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::NodeChoice;
use crate::{
    command,
    error::{Error, IoContext, Result},
    paths::Cache,
};

/// Where blocks are taken from: a part of 10/8 that neither container engines nor common VPN defaults use.
const RANGE: &str = "10.213.0.0/16";
const BASE: u32 = u32::from_be_bytes([10, 213, 0, 0]);
const BLOCKS: u32 = 64;
const BLOCK_SIZE: u32 = 1024;
const FILE: &str = "addresses";

/// 1024 addresses: 256 for links, 256 for Services, 256 for the pods of each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block(Ipv4Addr);

impl Block {
    /// Takes the first free block and records it in the cluster's folder.
    pub(super) fn claim(cache: &Cache, folder: &Path) -> Result<Self> {
        // Two clusters that start at once must not take the same block.
        let path = cache.clusters();
        let lock = fs::File::open(&path).context(|| format!("opening {}", path.display()))?;
        lock.lock().context(|| format!("locking {}", path.display()))?;
        let block = Self::first_free(&occupied(cache)?).ok_or(Error::NoAddresses(RANGE))?;
        let file = folder.join(FILE);
        fs::write(&file, block.0.to_string()).context(|| format!("writing {}", file.display()))?;
        Ok(block)
    }

    /// The block of a cluster that runs.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(FILE);
        let text = fs::read_to_string(&file).context(|| format!("reading {}", file.display()))?;
        let address = text
            .trim()
            .parse()
            .map_err(std::io::Error::other)
            .context(|| format!("{}", file.display()))?;
        Ok(Self(address))
    }

    fn first_free(taken: &[(u32, u32)]) -> Option<Self> {
        let blocks = (0..BLOCKS).map(|index| BASE + index * BLOCK_SIZE);
        let overlaps = |start: u32| {
            taken
                .iter()
                .any(|&(first, last)| first < start + BLOCK_SIZE && start <= last)
        };
        blocks
            .into_iter()
            .find(|&start| !overlaps(start))
            .map(|start| Self(start.into()))
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        (u32::from(self.0) + offset).into()
    }

    /// The host's end of its link to the first node.
    pub(super) fn host(self) -> Ipv4Addr {
        self.at(1)
    }

    /// A node's address: the first's end of the host's link, the second's end of the link between both.
    pub(super) fn node(self, place: NodeChoice) -> Ipv4Addr {
        match place {
            NodeChoice::First => self.at(2),
            NodeChoice::Arm64 => self.at(6),
        }
    }

    /// The first node's end of the link to the second.
    pub(super) fn gateway(self) -> Ipv4Addr {
        self.at(5)
    }

    /// Cluster addresses of Services.
    pub(super) fn services(self) -> String {
        format!("{}/24", self.at(256))
    }

    /// The Service of the API server: Kubernetes takes the range's first address.
    pub(super) fn api_service(self) -> Ipv4Addr {
        self.at(257)
    }

    /// The Service of cluster DNS.
    pub(super) fn dns(self) -> Ipv4Addr {
        self.at(266)
    }

    /// Addresses of all pods.
    pub(super) fn pods(self) -> String {
        format!("{}/23", self.at(512))
    }

    /// Addresses of a node's pods.
    pub(super) fn pods_of(self, place: NodeChoice) -> String {
        let first = match place {
            NodeChoice::First => 512,
            NodeChoice::Arm64 => 768,
        };
        format!("{}/24", self.at(first))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/22", self.0)
    }
}

/// First and last address of everything that is in use.
fn occupied(cache: &Cache) -> Result<Vec<(u32, u32)>> {
    let routes = command::run(Command::new("ip").args(["-json", "-4", "route", "show", "table", "all"]))?;
    let mut taken = routes_in(&routes)?;
    let folders = fs::read_dir(cache.clusters()).context(|| format!("reading {}", cache.clusters().display()))?;
    let folders = folders
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .filter(|path: &PathBuf| path.is_dir());
    taken.extend(
        folders
            .filter_map(|folder| Block::read(&folder).ok())
            .map(|block| range(block.0, 22)),
    );
    Ok(taken)
}

fn routes_in(json: &str) -> Result<Vec<(u32, u32)>> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
    }
    let routes: Vec<Route> = serde_json::from_str(json)?;
    let parse = |route: Route| {
        let (address, length) = route.dst.split_once('/').unwrap_or((&route.dst, "32"));
        Some(range(address.parse().ok()?, length.parse().ok()?))
    };
    // "default" parses as no address: it covers everything and excludes nothing.
    Ok(routes.into_iter().filter_map(parse).collect())
}

fn range(address: Ipv4Addr, length: u32) -> (u32, u32) {
    let host_bits = u32::MAX.checked_shr(length).unwrap_or(0);
    let first = u32::from(address) & !host_bits;
    (first, first | host_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Block {
        Block(text.parse().unwrap())
    }

    #[test]
    fn a_block_is_cut_into_link_services_and_pods() {
        let block = block("10.213.4.0");
        assert_eq!(block.to_string(), "10.213.4.0/22");
        assert_eq!(
            (block.host().to_string(), block.node(NodeChoice::First).to_string()),
            ("10.213.4.1".into(), "10.213.4.2".into())
        );
        assert_eq!(
            (block.services(), block.pods()),
            ("10.213.5.0/24".into(), "10.213.6.0/23".into())
        );
        assert_eq!(
            (block.gateway().to_string(), block.node(NodeChoice::Arm64).to_string()),
            ("10.213.4.5".into(), "10.213.4.6".into())
        );
        assert_eq!(
            (block.pods_of(NodeChoice::First), block.pods_of(NodeChoice::Arm64)),
            ("10.213.6.0/24".into(), "10.213.7.0/24".into())
        );
        assert_eq!(
            (block.api_service().to_string(), block.dns().to_string()),
            ("10.213.5.1".into(), "10.213.5.10".into())
        );
    }

    #[test]
    fn blocks_in_use_are_passed_over() {
        let routes = r#"[{"dst":"default"},{"dst":"10.213.0.0/22"},{"dst":"10.213.7.9"},{"dst":"192.168.0.0/16"}]"#;
        let taken = routes_in(routes).unwrap();
        assert_eq!(taken.len(), 3);
        assert_eq!(Block::first_free(&taken), Some(block("10.213.8.0")));
        assert_eq!(Block::first_free(&[]), Some(block("10.213.0.0")));
        assert_eq!(Block::first_free(&[range(Ipv4Addr::new(10, 0, 0, 0), 8)]), None);
    }

    #[test]
    fn the_record_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Block::read(folder.path()).is_err());
        fs::write(folder.path().join(FILE), "10.213.8.0\n").unwrap();
        assert_eq!(Block::read(folder.path()).unwrap(), block("10.213.8.0"));
    }
}
