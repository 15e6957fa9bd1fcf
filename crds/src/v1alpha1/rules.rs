//! Rules that several fields share.

use kube::core::Rule;

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
