//! The walls between crates, read from the manifests: who may import whom, the one home of a third-party name, and
//! versions and lints that stand once, in the root manifest.
//!
//! It must not know what the crates do; the compiler sees to it that code uses only what its manifest names.

use crate::{
    violation::{Violation, enforce_manifests},
    workspace::{LEAVES, Manifest, ROOT, Workspace},
};

/// Who may import whom, in product code and in tests. A folder of `src/` that is not listed here has no place yet.
pub const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("system", &[]),
    ("analysis", &["model"]),
    ("storage", &["model", "system"]),
    ("security", &["model", "system"]),
    ("sandbox", &["model", "system"]),
    ("raft", &["model", "storage", "security", "system"]),
    ("projections", &["model", "raft"]),
    ("artifacts", &["model", "security", "system"]),
    ("git", &["model", "security", "system"]),
    ("repositories", &["model", "security", "git", "artifacts", "raft", "system"]),
    ("runner", &["model", "security", "artifacts", "git", "sandbox", "system"]),
    ("agent", &["model", "security", "artifacts", "sandbox", "system"]),
    ("gateway", &["model", "security", "artifacts", "system"]),
    ("actors", &["model", "analysis", "raft", "projections", "artifacts", "git", "repositories", "runner", "security", "system"]),
    ("http", &["model", "analysis", "raft", "projections", "artifacts", "repositories", "security", "system", "ui"]),
    ("cli", &["model", "analysis", "security", "system"]),
];

/// Crates outside `src/` that import nothing of ours. The binary, benchmarks and the load generator wire everything.
const IMPORT_NOTHING: &[&str] = &["ui", "xtask"];

/// Third-party packages (by how their names begin) and the one crate whose product code may name them.
const HOMES: &[(&str, &str)] = &[
    ("openraft", "raft"),
    ("rocksdb", "storage"),
    ("ractor", "actors"),
    ("libcontainer", "sandbox"),
    ("axum", "http"),
    ("utoipa", "http"),
    ("aws-sdk-s3", "artifacts"),
];

/// Keys of `[package]` that every member takes from the root manifest.
const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];

/// Keys that say where a dependency comes from, and so belong in the root manifest.
const ORIGINS: &[&str] = &["version", "path", "git", "registry"];

const DOCUMENT: &str = "docs/ARCHITECTURE.md";

/// Test support that a crate offers to the tests of those that may import it.
const TESTING: &str = "testing";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Product,
    Test,
}

/// An entry of a table of dependencies.
pub struct Dependency {
    pub kind: Kind,
    /// The package's own name, where the manifest renames it.
    pub package: String,
    pub features: Vec<String>,
    pub line: usize,
    /// What it says itself, instead of taking it from the root manifest.
    says_itself: Option<&'static str>,
}

/// What product code is built with: dependencies and build-dependencies, of any target.
pub fn product_dependencies(manifest: &Manifest, workspace: &Workspace) -> Vec<Dependency> {
    let mut dependencies = dependencies(manifest, workspace);
    dependencies.retain(|dependency| dependency.kind == Kind::Product);
    dependencies
}

fn dependencies(manifest: &Manifest, workspace: &Workspace) -> Vec<Dependency> {
    let targets = manifest.toml.get("target").and_then(toml::Value::as_table);
    let tables = targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    let mut found = Vec::new();
    for table in [&manifest.toml].into_iter().chain(tables) {
        for (section, kind) in
            [("dependencies", Kind::Product), ("build-dependencies", Kind::Product), ("dev-dependencies", Kind::Test)]
        {
            let entries = table.get(section).and_then(toml::Value::as_table);
            for (key, value) in entries.into_iter().flatten() {
                found.push(dependency(manifest, workspace, section, kind, key, value));
            }
        }
    }
    found
}

fn dependency(
    manifest: &Manifest,
    workspace: &Workspace,
    section: &str,
    kind: Kind,
    key: &str,
    value: &toml::Value,
) -> Dependency {
    let text_of = |value: &toml::Value, name: &str| value.get(name).and_then(toml::Value::as_str).map(str::to_owned);
    let inherited = workspace
        .manifest_of(ROOT)
        .and_then(|root| root.toml.get("workspace")?.get("dependencies")?.get(key))
        .and_then(|entry| text_of(entry, "package"));
    let features = value.get("features").and_then(toml::Value::as_array);
    let says_itself =
        if value.is_str() { Some("version") } else { ORIGINS.iter().copied().find(|origin| value.get(origin).is_some()) };
    Dependency {
        kind,
        package: text_of(value, "package").or(inherited).unwrap_or_else(|| key.to_owned()),
        features: features.into_iter().flatten().filter_map(|feature| feature.as_str().map(str::to_owned)).collect(),
        line: line_of(&manifest.text, section, key),
        says_itself,
    }
}

/// The line of a key in a section, for messages; the section's, or the first, where it is written in another way.
fn line_of(text: &str, section: &str, key: &str) -> usize {
    let mut within = section.is_empty();
    let mut best = 1;
    for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            if header.ends_with(&format!("{section}.{key}")) {
                return at;
            }
            within = header == section || header.ends_with(&format!(".{section}"));
            if (within || header.starts_with(&format!("{section}."))) && best == 1 {
                best = at;
            }
        } else if within
            && let Some(rest) = line.strip_prefix(key)
            && rest.starts_with([' ', '.', '='])
        {
            return at;
        }
    }
    best
}

/// What a crate may import; nothing where it is unknown.
fn allowed(crate_name: &str) -> Vec<&'static str> {
    let row = MAY_IMPORT.iter().find(|(name, _)| *name == crate_name);
    match row {
        Some((_, allowed)) => allowed.to_vec(),
        None if IMPORT_NOTHING.contains(&crate_name) || !is_wiring(crate_name) => Vec::new(),
        None => MAY_IMPORT.iter().map(|(name, _)| *name).chain(["ui", "loadgen"]).collect(),
    }
}

fn is_wiring(crate_name: &str) -> bool {
    crate_name == ROOT || LEAVES.contains(&crate_name)
}

pub fn arrows(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in &workspace.manifests {
        let name = manifest.crate_name.as_str();
        let allowed = allowed(name);
        for dependency in dependencies(manifest, workspace) {
            let Some(target) = dependency.package.strip_prefix("swell-") else { continue };
            let mut report = |what| violations.push(Violation::new(&manifest.file, dependency.line, "arrow", what));
            if !allowed.contains(&target) {
                let may = if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") };
                report(format!(
                    "`{name}` may not import `{target}` (it may import {may}): let the binary hand it in through a trait of \
                     `model::interfaces`, or move what is shared to `model`; a test that needs both belongs in tests/"
                ));
            }
            if dependency.kind == Kind::Product && dependency.features.iter().any(|feature| feature == TESTING) {
                report(format!("test support of `{target}` in product code: name the feature `{TESTING}` in [dev-dependencies]"));
            }
        }
    }
    violations
}

pub fn places(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (name, file) in &workspace.crates {
        if workspace.manifest_of(name).is_none() {
            let what = format!("`{name}` has no manifest: a folder of src/ is a crate, with its Cargo.toml and src/lib.rs");
            violations.push(Violation::new(file, 1, "place", what));
        }
    }
    for manifest in &workspace.manifests {
        let name = manifest.crate_name.as_str();
        if is_wiring(name) {
            continue;
        }
        if !MAY_IMPORT.iter().any(|(row, _)| *row == name) {
            let what =
                format!("`{name}` is not in the table of crates: add it to MAY_IMPORT and docs/ARCHITECTURE.md, with its arrows");
            violations.push(Violation::new(&manifest.file, 1, "place", what));
        }
        let package = manifest.toml.get("package").and_then(|package| package.get("name")?.as_str());
        if package != Some(format!("swell-{name}").as_str()) {
            let what = format!("the crate in src/{name} is named `swell-{name}`, so that its folder is found by its name");
            violations.push(Violation::new(&manifest.file, line_of(&manifest.text, "package", "name"), "place", what));
        }
    }
    violations
}

pub fn homes(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in &workspace.manifests {
        for dependency in product_dependencies(manifest, workspace) {
            let package = &dependency.package;
            let home = HOMES.iter().find(|(prefix, _)| is_package_of(package, prefix));
            if let Some((_, home)) = home.filter(|(_, home)| *home != manifest.crate_name) {
                let what = format!(
                    "`{package}` is named by `{}`, its home is `{home}`: wrap what is needed there and use the wrapper",
                    manifest.crate_name
                );
                violations.push(Violation::new(&manifest.file, dependency.line, "home", what));
            }
        }
    }
    violations
}

/// `ractor_cluster` belongs to `ractor`; `raft` is not `raftery`.
fn is_package_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '-']))
}

pub fn inheritance(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in &workspace.manifests {
        let mut report = |line, what| violations.push(Violation::new(&manifest.file, line, "inherit", what));
        for key in INHERITED {
            let value = manifest.toml.get("package").and_then(|package| package.get(key));
            if !value.is_some_and(is_inherited) {
                let what = format!("write `{key}.workspace = true`: it stands once, in the root manifest");
                report(line_of(&manifest.text, "package", key), what);
            }
        }
        if !manifest.toml.get("lints").is_some_and(is_inherited) {
            let what = "write `[lints]` with `workspace = true`: lints stand once, in the root manifest".to_owned();
            report(line_of(&manifest.text, "lints", "workspace"), what);
        }
        for dependency in dependencies(manifest, workspace) {
            if let Some(key) = dependency.says_itself {
                let what = format!(
                    "`{}` has a {key} of its own: put it into [workspace.dependencies] of the root manifest and write \
                     `{0}.workspace = true`",
                    dependency.package
                );
                report(dependency.line, what);
            }
        }
    }
    violations
}

fn is_inherited(value: &toml::Value) -> bool {
    value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
}

/// Compares the table of docs/ARCHITECTURE.md with ours, as far as the crates exist.
pub fn documentation(workspace: &Workspace, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |line, what| violations.push(Violation::new(DOCUMENT, line, "table", what));
    let mut missing: Vec<&str> = workspace.crates.keys().map(String::as_str).filter(|name| !is_wiring(name)).collect();
    for (at, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, folder, _, imports, _] = cells[..] else { continue };
        let Some(name) = folder.strip_prefix("`src/").and_then(|rest| rest.strip_suffix("/`")) else { continue };
        if name.contains('`') {
            continue;
        }
        missing.retain(|other| *other != name);
        let mut documented: Vec<&str> = imports.split(", ").filter(|import| *import != "nothing of ours").collect();
        let mut allowed = allowed(name);
        // Crates that are planned stand in one table, in both or in none.
        let is_planned =
            |import: &str| MAY_IMPORT.iter().any(|(row, _)| *row == import) && !workspace.crates.contains_key(import);
        documented.retain(|import| !is_planned(import));
        allowed.retain(|import| workspace.crates.contains_key(*import));
        documented.sort_unstable();
        allowed.sort_unstable();
        if documented != allowed {
            let what = format!("`{name}` may import {}: write it in the last column, or change MAY_IMPORT", allowed.join(", "));
            report(at + 1, what);
        }
    }
    for name in missing {
        report(1, format!("`src/{name}/` has no row in the table of crates: say what it is for and what it may import"));
    }
    violations
}

#[test]
fn table_of_imports_is_documented() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let text = std::fs::read_to_string(std::path::Path::new(&root).join(DOCUMENT)).unwrap();
    enforce_manifests(|workspace| documentation(workspace, &text));
}

#[test]
fn manifests_follow_the_table_of_imports() {
    enforce_manifests(arrows);
}

#[test]
fn folders_of_src_are_crates_of_the_table() {
    enforce_manifests(places);
}

#[test]
fn third_party_packages_have_one_home() {
    enforce_manifests(homes);
}

#[test]
fn manifests_inherit_versions_and_lints() {
    enforce_manifests(inheritance);
}

#[test]
fn table_of_imports_has_no_circle() {
    // Taking away crates that import nothing which is left must empty the table.
    let mut left: Vec<_> = MAY_IMPORT.to_vec();
    while !left.is_empty() {
        let names: Vec<&str> = left.iter().map(|(name, _)| *name).collect();
        let before = left.len();
        left.retain(|(_, imports)| imports.iter().any(|import| names.contains(import)));
        assert!(left.len() < before, "these import one another: {names:?}");
    }
}
