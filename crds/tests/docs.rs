//! The documentation holds together: every page is in the table of contents and every link leads somewhere.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn pages() -> BTreeMap<PathBuf, String> {
    fn gather(folder: &Path, into: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                into.insert(path.clone(), fs::read_to_string(path).unwrap());
            }
        }
    }
    let root = repository().join("docs/src");
    let mut found = BTreeMap::new();
    gather(&root, &mut found);
    let local = |path: &Path| path.strip_prefix(&root).unwrap().to_owned();
    found.into_iter().map(|(path, text)| (local(&path), text)).collect()
}

/// Lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, end)) = after.split_once(')') else {
                break;
            };
            found.push(target.to_owned());
            rest = end;
        }
    }
    found
}

/// What mdbook makes of a heading.
fn anchors(text: &str) -> BTreeSet<String> {
    let id = |heading: &str| -> String {
        heading
            .trim()
            .chars()
            .filter_map(|c| match c {
                c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c.to_ascii_lowercase()),
                c if c.is_whitespace() => Some('-'),
                _ => None,
            })
            .collect()
    };
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| id(line.trim_start_matches('#')))
        .collect()
}

/// `a/../b` → `b`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[test]
fn the_table_of_contents_has_every_page_once() {
    let pages = pages();
    let listed: Vec<PathBuf> = links(&pages[Path::new("SUMMARY.md")])
        .into_iter()
        .map(PathBuf::from)
        .collect();
    let set: BTreeSet<&PathBuf> = listed.iter().collect();
    assert_eq!(set.len(), listed.len(), "a page is listed twice");
    let existing: BTreeSet<&PathBuf> = pages.keys().filter(|path| *path != Path::new("SUMMARY.md")).collect();
    assert_eq!(set, existing);
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut checked = 0;
    for (page, text) in &pages {
        for link in links(text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                plain(&page.parent().unwrap().join(file))
            };
            let found = pages
                .get(&target)
                .unwrap_or_else(|| panic!("{}: no page {link}", page.display()));
            assert!(
                anchor.is_empty() || anchors(found).contains(anchor),
                "{}: {} has no heading for #{anchor}",
                page.display(),
                target.display()
            );
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} links were found");
}

#[test]
fn every_included_file_is_there() {
    for (page, text) in pages() {
        for line in text.lines() {
            let Some((_, after)) = line.split_once("{{#include ") else {
                continue;
            };
            let (file, _) = after.split_once("}}").unwrap();
            let (file, anchor) = file.split_once(':').unwrap_or((file, ""));
            let path = repository().join("docs/src").join(page.parent().unwrap()).join(file);
            let included =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {file}: {error}", page.display()));
            assert!(
                anchor.is_empty() || included.contains(&format!("ANCHOR: {anchor}")),
                "{}: {file} has no anchor {anchor}",
                page.display()
            );
        }
    }
}
