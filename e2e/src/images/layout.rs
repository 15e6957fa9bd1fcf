//! Reads image archives: `docker save` files and OCI layouts in a tar file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::arch::{Arch, elf_machine};
use crate::{
    archive::hex,
    error::{Error, IoContext, Result},
};

/// Manifests, configurations and indexes are a few KiB; what is larger is a layer.
const SMALL: u64 = 1 << 20;

/// A pointer to a blob, as manifests and indexes hold it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// Of an index's entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Value>,
    /// The name of an image, among others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    /// The architecture that an index's entry names.
    pub fn arch(&self) -> Option<Arch> {
        self.platform.as_ref()?["architecture"].as_str()?.parse().ok()
    }
}

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What its configuration says it is for.
    pub arch: Arch,
    /// Bytes of all files.
    pub size: u64,
    /// ELF files (programs and libraries): path and machine.
    pub binaries: Vec<(String, u16)>,
}

impl Contents {
    /// The binaries that are for another architecture than the image.
    pub fn foreign(&self) -> impl Iterator<Item = &str> {
        let own = self.arch.elf_machine();
        let others = self.binaries.iter().filter(move |(_, machine)| *machine != own);
        others.map(|(path, _)| path.as_str())
    }
}

/// The architecture that an archive's image is for, by its configuration.
///
/// # Errors
/// When the file cannot be read or is no archive of one image.
pub fn architecture(archive: &Path) -> Result<Arch> {
    let (config, _) = parts(archive)?;
    let config: Value = serde_json::from_slice(&required(archive, &config)?)?;
    config["architecture"].as_str().unwrap_or_default().parse()
}

/// The paths of an image's configuration and layers in its archive.
fn parts(archive: &Path) -> Result<(String, Vec<String>)> {
    let parts = if let Some(manifest) = small_file(archive, "manifest.json")? {
        let manifest: Value = serde_json::from_slice(&manifest)?;
        let layers = manifest[0]["Layers"].as_array().into_iter().flatten();
        let layers = layers.filter_map(|layer| layer.as_str().map(str::to_owned)).collect();
        (manifest[0]["Config"].as_str().unwrap_or_default().to_owned(), layers)
    } else {
        let top = Layout::open(archive)?.top()?;
        let manifest: Value = serde_json::from_slice(&required(archive, &top.path())?)?;
        let config: Descriptor = serde_json::from_value(manifest["config"].clone())?;
        let layers: Vec<Descriptor> = serde_json::from_value(manifest["layers"].clone())?;
        (config.path(), layers.iter().map(Descriptor::path).collect())
    };
    Ok(parts)
}

/// Reads an archive of one image, from its configuration to each file's first bytes.
///
/// # Errors
/// When the file cannot be read or is no archive of one image.
pub fn inspect(archive: &Path) -> Result<Contents> {
    let (_, layers) = parts(archive)?;
    let mut contents = Contents {
        arch: architecture(archive)?,
        size: 0,
        binaries: Vec::new(),
    };
    let what = || format!("reading {}", archive.display());
    for entry in open(archive)?.entries().context(what)? {
        let entry = entry.context(what)?;
        if layers.contains(&name(&entry)) {
            read_layer(entry, &mut contents).context(what)?;
        }
    }
    contents.binaries.sort();
    Ok(contents)
}

fn read_layer(mut layer: impl Read, contents: &mut Contents) -> io::Result<()> {
    let mut start = [0; 2];
    layer.read_exact(&mut start)?;
    let layer = start.as_slice().chain(layer);
    let layer: Box<dyn Read> = if start == [0x1f, 0x8b] {
        Box::new(flate2::read::GzDecoder::new(layer))
    } else {
        Box::new(layer)
    };
    let mut layer = tar::Archive::new(layer);
    for entry in layer.entries()? {
        let mut entry = entry?;
        contents.size += entry.size();
        let mut head = Vec::new();
        entry.by_ref().take(20).read_to_end(&mut head)?;
        if let Some(machine) = elf_machine(&head) {
            contents.binaries.push((name(&entry), machine));
        }
    }
    Ok(())
}

/// An OCI layout in a tar file: its small blobs in memory, its layers on disk.
#[derive(Debug)]
pub struct Layout {
    archive: PathBuf,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Layout {
    /// Reads the layout.
    ///
    /// # Errors
    /// When the file cannot be read or is no OCI layout.
    pub fn open(archive: &Path) -> Result<Self> {
        let what = || format!("reading {}", archive.display());
        let mut blobs = BTreeMap::new();
        for entry in open(archive)?.entries().context(what)? {
            let mut entry = entry.context(what)?;
            if entry.size() <= SMALL && entry.header().entry_type().is_file() {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).context(what)?;
                blobs.insert(name(&entry), content);
            }
        }
        let archive = archive.to_owned();
        Ok(Self { archive, blobs })
    }

    /// What the layout is a layout of: an image or an index.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn top(&self) -> Result<Descriptor> {
        let index: Value = serde_json::from_slice(self.file("index.json")?)?;
        let mut all: Vec<Descriptor> = serde_json::from_value(index["manifests"].clone())?;
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(self.not_one()),
        }
    }

    /// The images of the index.
    ///
    /// # Errors
    /// When the layout is not one of an index.
    pub fn children(&self) -> Result<Vec<Descriptor>> {
        let index: Value = serde_json::from_slice(self.blob(&self.top()?.digest)?)?;
        Ok(serde_json::from_value(index["manifests"].clone())?)
    }

    /// A manifest, a configuration or an index by its digest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn blob(&self, digest: &str) -> Result<&[u8]> {
        self.file(&format!("blobs/{}", digest.replace(':', "/")))
    }

    fn file(&self, path: &str) -> Result<&[u8]> {
        let found = self.blobs.get(path).map(Vec::as_slice);
        found.ok_or_else(|| missing(&self.archive, path))
    }

    /// Writes the index's image for `arch` as an archive of its own, named `reference`. A runtime that resolves indexes for
    /// the machine below an emulated node takes the wrong one from the index; from this it takes what is there.
    ///
    /// # Errors
    /// When there is none, or the archive cannot be written.
    pub fn write_child(&self, arch: Arch, reference: &str, target: &Path) -> Result<()> {
        let mut children = self.children()?.into_iter();
        let mut child = children
            .find(|child| child.arch() == Some(arch))
            .ok_or_else(|| missing(&self.archive, &arch.platform()))?;
        let manifest: Value = serde_json::from_slice(self.blob(&child.digest)?)?;
        let mut wanted: Vec<Descriptor> = serde_json::from_value(manifest["layers"].clone())?;
        wanted.push(serde_json::from_value(manifest["config"].clone())?);
        wanted.push(child.clone());
        let wanted: Vec<String> = wanted.iter().map(Descriptor::path).collect();
        child.annotations = [
            ("io.containerd.image.name", reference),
            ("org.opencontainers.image.ref.name", reference),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let index = json!({"schemaVersion": 2, "manifests": [child]}).to_string();

        let what = || format!("writing {}", target.display());
        let mut out = tar::Builder::new(io::BufWriter::new(File::create(target).context(what)?));
        for (path, content) in [
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", &index),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, path, content.as_bytes()).context(what)?;
        }
        for entry in open(&self.archive)?.entries().context(what)? {
            let entry = entry.context(what)?;
            let path = name(&entry);
            if wanted.contains(&path) {
                let mut header = entry.header().clone();
                out.append_data(&mut header, path, entry).context(what)?;
            }
        }
        out.into_inner().and_then(|mut out| out.flush()).context(what)
    }

    /// Whether every blob that is in memory has the digest that is its name.
    pub fn digests_match(&self) -> bool {
        let blobs = self
            .blobs
            .iter()
            .filter_map(|(path, blob)| Some((path.strip_prefix("blobs/sha256/")?, blob)));
        blobs.into_iter().all(|(name, blob)| hex(&Sha256::digest(blob)) == name)
    }

    fn not_one(&self) -> Error {
        missing(&self.archive, "exactly one image or index")
    }
}

fn open(archive: &Path) -> Result<tar::Archive<BufReader<File>>> {
    let file = File::open(archive).context(|| format!("opening {}", archive.display()))?;
    Ok(tar::Archive::new(BufReader::with_capacity(1 << 20, file)))
}

fn name<R: Read>(entry: &tar::Entry<'_, R>) -> String {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    path.trim_start_matches("./").to_owned()
}

/// A file of at most 1 MiB at the archive's top level.
fn small_file(archive: &Path, wanted: &str) -> Result<Option<Vec<u8>>> {
    let what = || format!("reading {}", archive.display());
    for entry in open(archive)?.entries().context(what)? {
        let mut entry = entry.context(what)?;
        if name(&entry) == wanted && entry.size() <= SMALL {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).context(what)?;
            return Ok(Some(content));
        }
    }
    Ok(None)
}

fn required(archive: &Path, wanted: &str) -> Result<Vec<u8>> {
    small_file(archive, wanted)?.ok_or_else(|| missing(archive, wanted))
}

fn missing(archive: &Path, what: &str) -> Error {
    Error::Io {
        what: archive.display().to_string(),
        source: io::Error::new(io::ErrorKind::NotFound, format!("there is no {what} in it")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::archive::Image;

    /// An ELF header's start for a machine.
    fn elf(machine: u8) -> Vec<u8> {
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = machine;
        header
    }

    #[test]
    fn an_archive_tells_what_each_file_in_it_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            fs::write(folder.path().join(name), content).unwrap();
            (name.to_owned(), folder.path().join(name), 0o755)
        };
        let image = Image {
            reference: "localhost/mixed:1".into(),
            files: vec![file("x86", &elf(62)), file("arm", &elf(183)), file("text", b"hello")],
            ..Image::default()
        };
        let target = folder.path().join("image.tar");
        image.write(&target).unwrap();
        let contents = inspect(&target).unwrap();
        assert_eq!(contents.arch, Arch::HOST);
        assert_eq!(contents.size, 64 + 64 + 5);
        assert_eq!(contents.binaries, [("arm".to_owned(), 183), ("x86".to_owned(), 62)]);
        let foreign = if Arch::HOST == Arch::Amd64 { "arm" } else { "x86" };
        assert_eq!(contents.foreign().collect::<Vec<_>>(), [foreign]);
        assert!(inspect(&folder.path().join("text")).is_err());
    }

    /// A layout of an index over two images of one small layer each.
    fn index(target: &Path) {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut add = |media_type: &str, content: &[u8]| {
            let digest = hex(&Sha256::digest(content));
            files.push((format!("blobs/sha256/{digest}"), content.to_vec()));
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()})
        };
        let mut manifests = Vec::new();
        for (arch, machine) in [("amd64", 62), ("arm64", 183)] {
            let mut layer = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(64);
            layer
                .append_data(&mut header, "program", elf(machine).as_slice())
                .unwrap();
            let layer = add("application/vnd.oci.image.layer.v1.tar", &layer.into_inner().unwrap());
            let config = json!({"architecture": arch, "os": "linux"}).to_string();
            let config = add("application/vnd.oci.image.config.v1+json", config.as_bytes());
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
            let mut manifest = add("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
            manifest["platform"] = json!({"os": "linux", "architecture": arch});
            manifests.push(manifest);
        }
        let list = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        let list = add("application/vnd.oci.image.index.v1+json", list.as_bytes());
        let top = json!({"schemaVersion": 2, "manifests": [list]}).to_string();
        files.push(("index.json".to_owned(), top.into_bytes()));
        let mut out = tar::Builder::new(File::create(target).unwrap());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            out.append_data(&mut header, path, content.as_slice()).unwrap();
        }
        out.finish().unwrap();
    }

    #[test]
    fn an_index_gives_its_child_as_an_archive_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (both, child) = (folder.path().join("both.tar"), folder.path().join("child.tar"));
        index(&both);
        let layout = Layout::open(&both).unwrap();
        assert!(layout.digests_match());
        let children = layout.children().unwrap();
        let architectures: Vec<_> = children.iter().filter_map(Descriptor::arch).collect();
        assert_eq!(architectures, [Arch::Amd64, Arch::Arm64]);
        layout.write_child(Arch::Arm64, "localhost/both:1", &child).unwrap();

        let contents = inspect(&child).unwrap();
        assert_eq!((contents.arch, contents.foreign().count()), (Arch::Arm64, 0));
        assert_eq!(contents.binaries, [("program".to_owned(), 183)]);
        let alone = Layout::open(&child).unwrap();
        let top = alone.top().unwrap();
        assert_eq!(top.digest, children[1].digest, "the very manifest that the index names");
        assert_eq!(top.annotations["io.containerd.image.name"], "localhost/both:1");
        assert!(alone.digests_match());
        assert!(alone.children().is_err() || alone.children().unwrap().is_empty());
    }
}
