//! Writes an image archive (`docker save` format) of one layer from files at hand, without a container engine.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result};

/// An image with one layer and no base.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Full reference with a tag, e.g. `localhost/hawkeye-pause:1`.
    pub reference: String,
    /// What a container of it runs; empty for an image that is only ever mounted.
    pub entrypoint: Vec<String>,
    /// User that a container of it runs as, numeric (`65532:65532`); empty for root.
    pub user: String,
    /// Files: path in the image (relative to its root), file here, mode.
    pub files: Vec<(String, PathBuf, u32)>,
}

impl Image {
    /// Writes the archive; a run that is cut short leaves nothing at `target`.
    ///
    /// # Errors
    /// When a file cannot be read or the archive cannot be written.
    pub fn write(&self, target: &Path) -> Result<()> {
        let folder = target.parent().unwrap_or(Path::new("."));
        let what = || format!("writing the image {} to {}", self.reference, target.display());
        std::fs::create_dir_all(folder).context(what)?;
        let mut layer = tempfile::tempfile_in(folder).context(what)?;
        let diff_id = self.write_layer(&mut layer).context(what)?;
        let config = self.config(&diff_id).to_string();
        let manifest = json!([{
            "Config": format!("{}.json", hex(&Sha256::digest(&config))),
            "RepoTags": [self.reference],
            "Layers": [format!("{diff_id}.tar")],
        }]);
        let archive = tempfile::NamedTempFile::new_in(folder).context(what)?;
        let mut tar = tar::Builder::new(io::BufWriter::new(archive.as_file()));
        append(
            &mut tar,
            manifest[0]["Config"].as_str().unwrap_or_default(),
            config.as_bytes(),
        )
        .context(what)?;
        append(&mut tar, "manifest.json", manifest.to_string().as_bytes()).context(what)?;
        layer.rewind().context(what)?;
        let size = layer.metadata().context(what)?.len();
        tar.append_data(&mut header(size, 0o644), format!("{diff_id}.tar"), layer)
            .context(what)?;
        tar.into_inner().and_then(|mut out| out.flush()).context(what)?;
        archive.persist(target).map_err(|error| error.error).context(what)?;
        Ok(())
    }

    /// Writes the layer and returns the sha256 of its bytes, which is its identity in the image's config.
    fn write_layer(&self, out: &mut File) -> io::Result<String> {
        let mut tar = tar::Builder::new(io::BufWriter::new(&mut *out));
        let mut folders = std::collections::BTreeSet::new();
        for (path, _, _) in &self.files {
            folders.extend(
                Path::new(path)
                    .ancestors()
                    .skip(1)
                    .filter(|folder| !folder.as_os_str().is_empty()),
            );
        }
        for folder in folders {
            let mut head = header(0, 0o755);
            head.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut head, folder, io::empty())?;
        }
        for (path, source, mode) in &self.files {
            let file =
                File::open(source).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", source.display())))?;
            tar.append_data(&mut header(file.metadata()?.len(), *mode), path, file)?;
        }
        tar.into_inner()?.flush()?;
        out.rewind()?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match out.read(&mut buffer)? {
                0 => return Ok(hex(&hash.finalize())),
                n => hash.update(&buffer[..n]),
            }
        }
    }

    fn config(&self, diff_id: &str) -> serde_json::Value {
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "WorkingDir": "/", "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "hawkeye-e2e"}],
        })
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64, 0o644), path, bytes)
}

/// Owner root and time zero, so that the same files make the same archive.
fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn the_archive_names_its_image_and_the_digests_match() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("tool");
        std::fs::write(&source, b"binary").unwrap();
        let image = Image {
            reference: "localhost/tool:1".into(),
            entrypoint: vec!["/bin/tool".into()],
            user: "65532:65532".into(),
            files: vec![("bin/tool".into(), source, 0o755)],
        };
        let target = folder.path().join("out/tool.tar");
        image.write(&target).unwrap();

        let files: std::collections::BTreeMap<_, _> = entries(&std::fs::read(&target).unwrap()).into_iter().collect();
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "localhost/tool:1");
        let config_name = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(
            config_name,
            format!("{}.json", hex(&Sha256::digest(&files[config_name])))
        );
        let config: serde_json::Value = serde_json::from_slice(&files[config_name]).unwrap();
        let layer = &files[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", hex(&Sha256::digest(layer)))
        );
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/tool");
        let names: Vec<_> = entries(layer).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["bin", "bin/tool"]);
        assert_eq!(
            std::fs::read_dir(target.parent().unwrap()).unwrap().count(),
            1,
            "no temporary files stay"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image {
            files: vec![("a".into(), folder.path().join("absent"), 0o644)],
            ..Image::default()
        };
        let target = folder.path().join("a.tar");
        assert!(image.write(&target).unwrap_err().to_string().contains("absent"));
        assert!(!target.exists());
    }
}
