//! Pure crates compute and do nothing else: time and randomness arrive inside commands, and the caller does I/O.
//!
//! It must not know what the pure crates compute.

use crate::{
    manifests::product_dependencies,
    violation::{Violation, assert_each, enforce, enforce_manifests, found_in},
    walk::{Form, Walk},
    workspace::Workspace,
};

const PURE: &[&str] = &["model", "analysis"];

/// What a pure crate may not name, and the way out.
const IMPURE_PATHS: &[(&[&str], &str)] = &[
    (&["std", "fs"], "the caller reads and writes files"),
    (&["std", "process"], "the caller runs processes"),
    (&["std", "env"], "the caller reads the environment"),
    (&["std", "thread"], "the caller decides about threads"),
    (&["std", "os"], "the caller speaks to the system"),
    (&["tokio"], "asynchronous work belongs to the caller"),
    (&["rand"], "randomness arrives inside the command, as a seed"),
    (&["getrandom"], "randomness arrives inside the command, as a seed"),
    (&["fastrand"], "randomness arrives inside the command, as a seed"),
];

/// Names that are clocks or randomness wherever they stand in a path.
const IMPURE_NAMES: &[(&str, &str)] = &[
    ("SystemTime", "time arrives inside the command, as `Timestamp`"),
    ("Instant", "time arrives inside the command, as `Timestamp`"),
    ("HashMap", "its order is random: use `BTreeMap`"),
    ("HashSet", "its order is random: use `BTreeSet`"),
    ("RandomState", "its order is random: use an ordered map"),
];

/// Of `std::net`, what is mere data.
const NET_DATA: &[&str] = &["IpAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddr", "SocketAddrV4", "SocketAddrV6", "AddrParseError"];

/// Packages (by how their names begin) that a pure crate may not depend on outside its tests.
const IMPURE_PACKAGES: &[&str] =
    &["tokio", "rand", "getrandom", "fastrand", "nix", "libc", "socket2", "hyper", "reqwest", "tempfile", "walkdir", "tracing"];

fn impure_code(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| PURE.contains(&source.crate_name.as_str())) {
        for mention in Walk::of(&source.product).mentions {
            let names: Vec<&str> = mention.names.iter().map(String::as_str).collect();
            if names.len() < 2 && mention.form == Form::Code {
                continue;
            }
            if let Some(way_out) = impurity(&names, &mention.form) {
                let what = format!("`{}` is pure and may not name `{}`: {way_out}", source.crate_name, names.join("::"));
                violations.push(Violation::new(&source.file, mention.line, "pure", what));
            }
        }
    }
    violations
}

/// What is impure about a path, as the way out of it.
fn impurity(names: &[&str], form: &Form) -> Option<&'static str> {
    if let Some((_, way_out)) = IMPURE_PATHS.iter().find(|(path, _)| names.starts_with(path)) {
        return Some(way_out);
    }
    if let Some((_, way_out)) = IMPURE_NAMES.iter().find(|(name, _)| names.contains(name)) {
        return Some(way_out);
    }
    if names.starts_with(&["std", "net"]) && !names.get(2).is_some_and(|name| NET_DATA.contains(name)) {
        return Some("only addresses are data; the caller connects");
    }
    if names.last() == Some(&"now") {
        return Some("time arrives inside the command, as `Timestamp`");
    }
    (names == ["std"] && *form != Form::Code).then_some("import what is used by name")
}

fn impure_packages(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in workspace.manifests.iter().filter(|manifest| PURE.contains(&manifest.crate_name.as_str())) {
        for dependency in product_dependencies(manifest, workspace) {
            let is_impure = |package: &&&str| {
                let rest = dependency.package.strip_prefix(**package);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
            };
            if IMPURE_PACKAGES.iter().any(|package| is_impure(&package)) {
                let what = format!(
                    "`{}` is pure and may not depend on `{}`: the caller reads, measures, draws lots and logs",
                    manifest.crate_name, dependency.package
                );
                violations.push(Violation::new(&manifest.file, dependency.line, "pure", what));
            }
        }
    }
    violations
}

#[test]
fn pure_crates_name_no_clock_randomness_or_io() {
    enforce(impure_code);
}

#[test]
fn pure_crates_depend_on_no_package_that_acts() {
    enforce_manifests(impure_packages);
}

#[test]
fn planted_impurity_is_caught() {
    let model = "src/model/src/x.rs";
    let analysis = "src/analysis/src/x.rs";
    assert_each(
        impure_code,
        &[
            (model, "use std::time::{Duration, Instant};", &["pure@2"]),
            (model, "fn f() { std::time::SystemTime::now(); }", &["pure@2"]),
            (model, "use jiff::Timestamp;\nfn f() { Timestamp::now(); }", &["pure@3"]),
            (model, "fn f() { let _ = std::fs::read(\"x\"); }", &["pure@2"]),
            (model, "use std::net::TcpStream;", &["pure@2"]),
            (model, "use std::{net, fmt};", &["pure@2"]),
            (model, "use std::process;", &["pure@2"]),
            (model, "fn f() { std::env::var(\"X\").ok(); }", &["pure@2"]),
            (model, "use std::*;", &["pure@2"]),
            (model, "fn f() { format!(\"{:?}\", std::time::Instant::now()); }", &["pure@2"]),
            (analysis, "use std::thread;", &["pure@2"]),
            (analysis, "async fn f() { tokio::spawn(async {}); }", &["pure@2"]),
            (analysis, "use rand::Rng;", &["pure@2"]),
            (analysis, "fn f() { getrandom::fill(&mut []).ok(); }", &["pure@2"]),
            (analysis, "use std::collections::HashMap;", &["pure@2"]),
        ],
    );
    let manifest = "[package]\nname = \"swell-model\"\n[dependencies]\ntokio-util.workspace = true\nrandomize = \"1\"";
    assert_eq!(found_in(impure_packages, &[("src/model/Cargo.toml", manifest)]), ["pure@4"]);
}

#[test]
fn pure_code_passes() {
    assert_each(
        impure_code,
        &[
            ("src/model/src/x.rs", "use std::{collections::BTreeMap, net::{IpAddr, SocketAddr}, time::Duration};", &[]),
            ("src/model/src/x.rs", "#[cfg(all(test, unix))]\nmod tests { use std::fs; }", &[]),
            ("src/model/src/x.rs", "fn f(now: u64) -> u64 { now + 1 }", &[]),
            ("src/agent/src/x.rs", "use std::{fs, time::Instant};", &[]),
        ],
    );
    let manifest = "[dependencies]\nserde.workspace = true\n[dev-dependencies]\ntokio.workspace = true";
    assert_eq!(found_in(impure_packages, &[("src/model/Cargo.toml", manifest)]), [""; 0]);
    assert_eq!(found_in(impure_packages, &[("src/agent/Cargo.toml", "[dependencies]\ntokio = \"1\"")]), [""; 0]);
}
