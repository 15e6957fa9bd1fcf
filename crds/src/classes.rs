//! The built-in hardware classes: YAML in `crds/classes`, the one source for operator, chart and plan.

use crate::v1alpha1::HardwareClass;

/// File name and text of each built-in class.
pub const FILES: [(&str, &str); 6] = [
    ("dgx-spark.yaml", include_str!("../classes/dgx-spark.yaml")),
    ("cuda-arm64.yaml", include_str!("../classes/cuda-arm64.yaml")),
    ("cuda-amd64.yaml", include_str!("../classes/cuda-amd64.yaml")),
    ("graviton.yaml", include_str!("../classes/graviton.yaml")),
    ("cpu-arm64.yaml", include_str!("../classes/cpu-arm64.yaml")),
    ("cpu-amd64.yaml", include_str!("../classes/cpu-amd64.yaml")),
];

const TABLES: [(&str, &str); 2] = [
    ("tables/graviton.csv", include_str!("../classes/tables/graviton.csv")),
    (
        "tables/graviton-gpu.csv",
        include_str!("../classes/tables/graviton-gpu.csv"),
    ),
];

/// Why a class or a list in it could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not a HardwareClass.
    #[error("{file} is not a HardwareClass: {source}")]
    Parse {
        /// Its name.
        file: String,
        /// What is wrong with it.
        source: Box<serde_saphyr::Error>,
    },
    /// A class asks for a list from a table that is not there.
    #[error("there is no table {0}")]
    NoTable(String),
    /// A row of a table is not `family,generation,sizes`.
    #[error("not a row of family, generation and sizes: {0}")]
    Row(String),
    /// A list has a beginning and no end.
    #[error("the list from {0} has no line `# end of list`")]
    NoEnd(String),
}

/// The built-in classes, the highest priority first.
///
/// # Errors
/// When a built-in file does not parse, which the tests rule out.
pub fn built_in() -> Result<Vec<HardwareClass>, Error> {
    FILES.iter().map(|(file, text)| parse(file, text)).collect()
}

/// Reads one HardwareClass; `file` is named in the error.
///
/// # Errors
/// When the text is not YAML or not a HardwareClass.
pub fn parse(file: &str, text: &str) -> Result<HardwareClass, Error> {
    serde_saphyr::from_str(text).map_err(|source| Error::Parse {
        file: file.to_owned(),
        source: Box::new(source),
    })
}

/// The instance types of a table, in its order.
///
/// # Errors
/// When the table or one of its rows is not there as it should be.
pub fn instance_types(table: &str) -> Result<Vec<String>, Error> {
    let (_, text) = TABLES
        .iter()
        .find(|(name, _)| *name == table)
        .ok_or_else(|| Error::NoTable(table.to_owned()))?;
    let mut types = Vec::new();
    for row in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let mut cells = row.split(',');
        let (Some(family), Some(_), Some(sizes), None) = (cells.next(), cells.next(), cells.next(), cells.next())
        else {
            return Err(Error::Row(row.to_owned()));
        };
        types.extend(sizes.split(' ').map(|size| format!("{family}.{size}")));
    }
    Ok(types)
}

/// The Graviton generation of an instance type, by its family; `None` for other makes and for families that the tables do
/// not have.
pub fn graviton_generation(instance_type: &str) -> Option<&'static str> {
    let (family, _) = instance_type.split_once('.')?;
    let mut rows = TABLES.iter().flat_map(|(_, text)| text.lines());
    rows.find_map(|row| {
        let (name, rest) = row.split_once(',')?;
        let (generation, _) = rest.split_once(',')?;
        (name == family).then_some(generation)
    })
}

/// Fills each block between `# list from TABLE` and `# end of list` with the instance types of the table. Selectors know
/// no patterns, so what a pattern would say has to be enumerated.
///
/// # Errors
/// When a table is not there or a block has no end.
pub fn fill_lists(yaml: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut lines = yaml.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some((indent, table)) = line.split_once("# list from ") else {
            continue;
        };
        for name in instance_types(table)? {
            out.extend([indent, "- ", &name, "\n"]);
        }
        let end = lines
            .find(|line| line.trim() == "# end of list")
            .ok_or_else(|| Error::NoEnd(table.to_owned()))?;
        out.push_str(end);
        out.push('\n');
    }
    Ok(out)
}
