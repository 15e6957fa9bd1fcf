//! Kubernetes objects from files: JSON or YAML, one object, several documents, or the List that `kubectl get` writes.
//!
//! A List of thousands of nodes is cut into its items first, each without what nobody reads, and these are decoded on all
//! processors. What cannot be cut (flow style, anchors) is decoded as a whole, which is slower and means the same.

use std::{
    borrow::Cow,
    fs,
    io::Read,
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::{
    error::Error,
    trim::{Unused, is_item, trim},
};

/// Fewer objects than this are not worth a second thread.
const WORTH_A_THREAD: usize = 64;

/// What objects are read into.
pub trait Kind: DeserializeOwned + Send {
    /// The kind that the files have to hold.
    const KIND: &'static str;
    /// How to get such a file.
    const HOW: &'static str;
    /// Parts of the object that are not decoded.
    const UNUSED: Unused;

    /// The kind that the object says it is; empty in the items of some lists.
    fn kind(&self) -> &str;
}

/// Reads every object of the files, in their order.
///
/// # Errors
/// When a file cannot be read, does not parse, or holds something else.
pub fn objects<T: Kind>(files: &[PathBuf]) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    for file in files {
        let text = text(file)?;
        all.extend(parse(&text).map_err(|source| Error::Parse {
            file: name(file),
            how: T::HOW,
            source,
        })?);
    }
    Ok(all)
}

/// What a file is called in messages.
pub fn name(file: &Path) -> String {
    if file == Path::new("-") {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

fn text(file: &Path) -> Result<String, Error> {
    let read = || {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            fs::read_to_string(file)
        }
    };
    read().map_err(|source| Error::File {
        file: name(file),
        source,
    })
}

/// Why a text does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Not YAML.
    #[error("{0}")]
    Yaml(#[from] Box<serde_saphyr::Error>),
    /// Another kind of object.
    #[error("it holds a {found} where only objects of kind {wanted} are of use")]
    Kind {
        /// What is there.
        found: String,
        /// What should be.
        wanted: &'static str,
    },
}

impl From<serde_saphyr::Error> for ParseError {
    fn from(error: serde_saphyr::Error) -> Self {
        Self::Yaml(Box::new(error))
    }
}

/// One object in its text.
enum Piece<'a> {
    Json(&'a RawValue),
    /// A document.
    Yaml(Cow<'a, str>),
    /// An item of a list, with its dash.
    Item(Cow<'a, str>),
}

/// Reads every object of a text.
///
/// # Errors
/// When it does not parse or holds something else.
pub fn parse<T: Kind>(text: &str) -> Result<Vec<T>, ParseError> {
    if text.trim_start().starts_with('{') {
        // What is not JSON may still be YAML.
        if let Ok(pieces) = json_pieces(text) {
            return decode_all(&pieces);
        }
    }
    let mut all = Vec::new();
    for document in documents(text) {
        let decoded = match yaml_items(document) {
            Some(items) => decode_all(&items),
            None => decode_all(&[Piece::Yaml(Cow::Borrowed(document))]),
        };
        match decoded {
            Ok(objects) => all.extend(objects),
            // As a whole, the lines in messages are those of the document, and anchors are known everywhere.
            Err(ParseError::Yaml(_)) => all.extend(whole(document)?),
            // A List that is not in block style.
            Err(ParseError::Kind { found, .. }) if is_list(&found) => all.extend(whole(document)?),
            Err(other) => return Err(other),
        }
    }
    Ok(all)
}

#[derive(Deserialize)]
struct JsonHead<'a> {
    #[serde(default)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
}

fn json_pieces(text: &str) -> Result<Vec<Piece<'_>>, serde_json::Error> {
    let mut pieces = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let value = value?;
        let head: JsonHead<'_> = serde_json::from_str(value.get())?;
        match head.items {
            Some(items) if is_list(&head.kind) => pieces.extend(items.into_iter().map(Piece::Json)),
            _ => pieces.push(Piece::Json(value)),
        }
    }
    Ok(pieces)
}

fn is_list(kind: &str) -> bool {
    kind.ends_with("List")
}

/// The documents of a YAML stream, without those that hold nothing.
fn documents(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let marker =
            line.starts_with("---") && line[3..].starts_with([' ', '\n', '\r', '\t']) || line.trim_end() == "---";
        if marker || line.trim_end() == "..." {
            documents.push(&text[start..at]);
            start = at + 3;
        }
        at += line.len();
    }
    documents.push(&text[start..]);
    let holds = |document: &&str| {
        document.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
        })
    };
    documents.retain(holds);
    documents
}

/// The items of a List in block style; `None` when the document is something else.
fn yaml_items(document: &str) -> Option<Vec<Piece<'_>>> {
    let mut kind = "";
    let mut items = Vec::new();
    // Where the current item begins, and the column of the dashes once it is known.
    let mut start = None;
    let mut dashes = None;
    let mut inside = false;
    let mut at = 0;
    for line in document.split_inclusive('\n') {
        let here = at;
        at += line.len();
        let bare = line.trim_start_matches(' ');
        let column = line.len() - bare.len();
        if bare.trim_end().is_empty() || bare.starts_with('#') {
            continue;
        }
        if inside {
            if is_item(bare) && column == *dashes.get_or_insert(column) {
                if let Some(start) = start.replace(here) {
                    items.push(&document[start..here]);
                }
                continue;
            }
            if column > 0 && start.is_some() {
                continue;
            }
            if let Some(start) = start.take() {
                items.push(&document[start..here]);
            }
            inside = false;
        }
        if column == 0 {
            let (key, value) = line.split_once(':')?;
            match (key, value.trim()) {
                ("items", "") => inside = true,
                ("items", "[]") => {}
                ("items", _) => return None,
                ("kind", value) => kind = value.trim_matches(['"', '\'']),
                _ => {}
            }
        }
    }
    items.extend(start.map(|start| &document[start..]));
    let pieces = items.into_iter().map(|item| Piece::Item(Cow::Borrowed(item)));
    is_list(kind).then(|| pieces.collect())
}

/// A document as a whole, by way of a tree.
fn whole<T: Kind>(document: &str) -> Result<Vec<T>, ParseError> {
    let mut value: Value = serde_saphyr::from_str_with_options(document, unlimited())?;
    let list = value.get("kind").and_then(Value::as_str).is_some_and(is_list);
    let objects = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if list => items,
        Some(items) => {
            value["items"] = items;
            vec![value]
        }
        None => vec![value],
    };
    objects
        .into_iter()
        .map(|object| checked(serde_json::from_value(object)?))
        .collect()
}

/// A file of one's own may be as large as it likes.
fn unlimited() -> serde_saphyr::Options {
    serde_saphyr::options! { budget: None }
}

fn decode_all<T: Kind>(pieces: &[Piece<'_>]) -> Result<Vec<T>, ParseError> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(8);
    if pieces.len() < WORTH_A_THREAD || threads == 1 {
        return pieces.iter().map(decode).collect();
    }
    let parts: Vec<Result<Vec<T>, ParseError>> = thread::scope(|scope| {
        let workers: Vec<_> = pieces
            .chunks(pieces.len().div_ceil(threads))
            .map(|part| scope.spawn(|| part.iter().map(decode).collect()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut all = Vec::with_capacity(pieces.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

fn decode<T: Kind>(piece: &Piece<'_>) -> Result<T, ParseError> {
    match piece {
        Piece::Json(raw) => checked(serde_json::from_str(raw.get())?),
        Piece::Yaml(text) => checked(serde_saphyr::from_str_with_options(
            &trim(text, T::UNUSED),
            unlimited(),
        )?),
        Piece::Item(text) => {
            let [object]: [T; 1] = serde_saphyr::from_str_with_options(&trim(text, T::UNUSED), unlimited())?;
            checked(object)
        }
    }
}

fn checked<T: Kind>(object: T) -> Result<T, ParseError> {
    if object.kind() == T::KIND || object.kind().is_empty() {
        return Ok(object);
    }
    Err(ParseError::Kind {
        found: object.kind().to_owned(),
        wanted: T::KIND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Thing {
        #[serde(default)]
        kind: String,
        n: i32,
        #[serde(default)]
        text: String,
    }

    impl Kind for Thing {
        const KIND: &'static str = "Thing";
        const HOW: &'static str = "";
        const UNUSED: Unused = &[];

        fn kind(&self) -> &str {
            &self.kind
        }
    }

    fn read(text: &str) -> Vec<i32> {
        let things: Vec<Thing> = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        things.iter().map(|thing| thing.n).collect()
    }

    #[test]
    fn every_form_is_read() {
        for (text, numbers) in [
            (r#"{"kind": "Thing", "n": 1}"#, vec![1]),
            (
                "{\"kind\": \"Thing\", \"n\": 1}\n{\"kind\": \"Thing\", \"n\": 2}",
                vec![1, 2],
            ),
            (r#"{"kind": "ThingList", "items": [{"n": 1}, {"n": 2}]}"#, vec![1, 2]),
            (r#"{"kind": "List", "items": []}"#, vec![]),
            ("kind: Thing\nn: 1\n", vec![1]),
            (
                "# head\n---\nkind: Thing\nn: 1\n---\n# none\n--- \nkind: Thing\nn: 2\n...\n",
                vec![1, 2],
            ),
            ("--- {kind: Thing, n: 1}\n--- {kind: Thing, n: 2}", vec![1, 2]),
            ("kind: List\nitems:\n- kind: Thing\n  n: 1\n- n: 2\n", vec![1, 2]),
            (
                "apiVersion: v1\nitems:\n  # two\n  - n: 1\n\n  - n: 2\nkind: ThingList\nmetadata: {}\n",
                vec![1, 2],
            ),
            ("kind: List\nitems: []\n", vec![]),
            ("kind: List\nitems: [{n: 1}, {n: 2}]\n", vec![1, 2]),
            ("{kind: List, items: [{n: 1}]}\n", vec![1]),
            ("kind: List\nitems:\n- &a\n  n: 1\n- *a\n", vec![1, 1]),
            (
                "kind: \"List\"\nitems:\n-\n  n: 1\n- text: |\n    - n: 5\n\n    kind: x\n  n: 2\n",
                vec![1, 2],
            ),
            ("", vec![]),
        ] {
            assert_eq!(read(text), numbers, "{text}");
        }
    }

    #[test]
    fn many_objects_keep_their_order() {
        let numbers: Vec<i32> = (0..1000).collect();
        let items: Vec<String> = numbers.iter().map(|n| format!("- n: {n}")).collect();
        assert_eq!(read(&format!("kind: List\nitems:\n{}", items.join("\n"))), numbers);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = |text: &str| parse::<Thing>(text).unwrap_err().to_string();
        assert!(error("kind: List\nitems:\n- n: 1\n- n: x: y\n").contains("line 4"));
        assert!(error("kind: Pod\nn: 1\n").contains("it holds a Pod"));
        assert!(error(r#"{"kind": "Thing", "n": "x"}"#).contains("line 1 column"));
    }
}
