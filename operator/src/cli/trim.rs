//! Leaves out of YAML what nobody reads, before it is parsed: a node's container images and annotations are two thirds of
//! what `kubectl get nodes -o yaml` writes, and YAML is slow to parse.
//!
//! It goes by lines and indentation only and removes whole blocks of keys that it is told, so what stays is YAML with the
//! same meaning. Text in another form (flow style, say) passes unchanged.

/// Keys to leave out of a part of an object: `("status", ["images"])`.
pub type Unused = &'static [(&'static str, &'static [&'static str])];

/// The text of one object (a document, or an item of a list that begins with `- `) without the unused blocks.
pub fn trim(text: &str, unused: Unused) -> String {
    let mut out = String::with_capacity(text.len() / 2);
    // Column of the object's own keys: of `metadata`, `spec` and `status`.
    let mut object = None;
    // The part that the line is in: its unused keys and, once seen, the column of its keys.
    let mut part: Option<(&[&str], Option<usize>)> = None;
    let mut dropping = None;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start_matches(' ');
        let mut column = line.len() - bare.len();
        if bare.trim_end().is_empty() || bare.starts_with('#') {
            // Part of a block scalar, or nothing.
            if dropping.is_none() {
                out.push_str(line);
            }
            continue;
        }
        if let Some(limit) = dropping {
            // A list may stand at the column of its key.
            if column > limit || (column == limit && is_item(bare)) {
                continue;
            }
            dropping = None;
        }
        let mut key = bare;
        if object.is_none() {
            // The first line of an item holds its first key.
            while let Some(rest) = key.strip_prefix("- ") {
                let rest_bare = rest.trim_start_matches(' ');
                column += key.len() - rest_bare.len();
                key = rest_bare;
            }
            object = Some(column);
        }
        let empty_value = || key.split_once(':').is_some_and(|(_, value)| value.trim().is_empty());
        let name = key.split_once(':').map_or("", |(name, _)| name);
        if Some(column) == object {
            let keys = unused.iter().find(|(part, _)| *part == name && empty_value());
            part = keys.map(|(_, keys)| (*keys, None));
        } else if let Some((keys, at)) = &mut part {
            let at = *at.get_or_insert(column);
            if column == at && keys.contains(&name) {
                dropping = Some(at);
                continue;
            }
        }
        out.push_str(line);
    }
    out
}

/// Begins an item of a list.
pub fn is_item(bare: &str) -> bool {
    bare.strip_prefix('-')
        .is_some_and(|rest| rest.starts_with([' ', '\n', '\r']) || rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNUSED: Unused = &[("metadata", &["annotations"]), ("status", &["images"])];

    #[test]
    fn blocks_go_and_the_rest_stays() {
        let text = "\
- apiVersion: v1
  metadata:
    annotations:
      images: no key of status
      script: |
        a: b

        status:
    # a comment
    labels:
      images: kept
    name: a
  status:
    images:
    - names:
      - x
    - names: []
    conditions:
    - images: kept
      type: Ready
    images: {}
";
        let left = "\
- apiVersion: v1
  metadata:
    labels:
      images: kept
    name: a
  status:
    conditions:
    - images: kept
      type: Ready
";
        assert_eq!(trim(text, UNUSED), left);
    }

    #[test]
    fn other_forms_pass_unchanged() {
        for text in [
            "{metadata: {annotations: {a: b}}, status: {images: []}}\n",
            "metadata: {name: a, annotations: {}}\nstatus: {images: [a]}\n",
            "- - a\n",
            "",
        ] {
            assert_eq!(trim(text, UNUSED), text);
        }
    }
}
