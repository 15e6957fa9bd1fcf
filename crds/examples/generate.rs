//! Writes everything that is made from this crate: the CustomResourceDefinitions from the types, the reference pages from
//! the definitions, and the instance-type lists of the built-in classes from their tables.
//! `cargo run -p hawkeye-crds --example generate`.

use std::{error::Error, fs, path::Path};

use hawkeye_crds::{classes, crd, reference};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, definition) in crd::definitions()? {
        fs::write(root.join("yaml").join(file), crd::to_yaml(&definition)?)?;
    }
    let pages = root.join("../docs/src/reference");
    for (file, definition) in crd::definitions()? {
        let page = pages.join(format!(
            "{}.md",
            definition.spec.names.singular.clone().unwrap_or_default()
        ));
        fs::write(page, reference::page(&definition)?)
            .map_err(|error| format!("the reference page of {file}: {error}"))?;
    }
    for entry in fs::read_dir(root.join("classes"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let old = fs::read_to_string(&path)?;
            fs::write(&path, classes::fill_lists(&old)?)?;
        }
    }
    Ok(())
}
