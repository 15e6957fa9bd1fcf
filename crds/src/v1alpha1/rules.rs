//! Rules that several fields share.

use kube::core::Rule;

/// A label's key: a name of up to 63 characters, if wanted after a domain and `/`.
pub const LABEL_KEY: &str = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";

/// A label's value, which may be empty.
pub const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// The name of an object: a DNS subdomain (RFC 1123).
pub const NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// The keys of the field are those of labels or annotations.
pub fn keys(field: &str) -> Rule {
    let message = format!(
        "{field} must have keys as Kubernetes has them: up to 63 letters, digits, '-', '_' and '.', if wanted after a domain \
         and '/'"
    );
    Rule::new(format!(
        "self.all(key, key.size() <= 317 && key.matches('{LABEL_KEY}'))"
    ))
    .message(message.as_str())
}

/// An expression over labels has values if its operator compares with any.
pub fn values() -> Rule {
    Rule::new("self.operator in ['In', 'NotIn'] == (has(self.values) && self.values.size() > 0)")
        .message("values must be given for operators In and NotIn, and only for them")
        .field_path(".values")
}

/// What a container engine takes as an image: an optional registry with an optional port, a path in lower case, and a tag
/// or a digest or both. From the grammar of github.com/distribution/reference.
const IMAGE: &str = r"^((([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)([.][A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*|\\[[0-9a-fA-F:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?$";

/// The field is an image reference.
pub fn image(field: &str) -> Rule {
    let message = format!(
        "{field} must be an image reference such as registry.example.com/team/name:tag, without a scheme and in lower case \
         but for the tag"
    );
    Rule::new(format!("self.matches('{IMAGE}')")).message(message.as_str())
}

/// The field is a quantity between two others.
pub fn quantity(field: &str, least: &str, most: &str) -> Rule {
    let compare = |bound: &str| format!("quantity(string(self)).compareTo(quantity('{bound}'))");
    let message = format!("{field} must be at least {least} and at most {most}");
    Rule::new(format!("{} >= 0 && {} <= 0", compare(least), compare(most))).message(message.as_str())
}
