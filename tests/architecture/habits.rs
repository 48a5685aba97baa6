//! Habits of product code that clippy does not keep everywhere, macros included: no `unwrap`, no `todo!`, no unbounded channel.
//!
//! It must not know what the code does.

use crate::{
    violation::{Violation, assert_each, enforce, sorted},
    walk::{BareCall, Mention, Walk},
    workspace::Workspace,
};

fn syntax(workspace: &Workspace) -> Vec<Violation> {
    workspace.broken.clone()
}

fn unwraps(workspace: &Workspace) -> Vec<Violation> {
    over_product_code(workspace, "unwrap", |walk| {
        let called = walk.bare_calls.iter().filter(|call| call.names == ["unwrap"]).map(|call| call.line);
        let named = walk.mentions.iter().filter(|mention| {
            let names: Vec<&str> = mention.names.iter().map(String::as_str).collect();
            names.ends_with(&["Option", "unwrap"]) || names.ends_with(&["Result", "unwrap"])
        });
        let what = "`unwrap` outside tests: return an error that says what was tried, on what, and the way out";
        called.chain(named.map(|mention| mention.line)).map(|line| (line, what.to_owned())).collect()
    })
}

fn unfinished(workspace: &Workspace) -> Vec<Violation> {
    over_product_code(workspace, "todo", |walk| {
        let macros = walk.macros.iter().filter(|(name, _)| ["todo", "unimplemented"].contains(&name.as_str()));
        macros.map(|(name, line)| (*line, format!("`{name}!` outside tests: write it, or leave the feature out"))).collect()
    })
}

fn unbounded_channels(workspace: &Workspace) -> Vec<Violation> {
    over_product_code(workspace, "bounded", |walk| {
        let named = walk.mentions.iter().filter(|mention| is_unbounded_path(mention)).map(|mention| mention.line);
        let called = walk.bare_calls.iter().filter(|call| is_std_channel(call)).map(|call| call.line);
        let what = "an unbounded channel: give it a capacity, and say what happens when it is full";
        named.chain(called).map(|line| (line, what.to_owned())).collect()
    })
}

fn is_unbounded_path(mention: &Mention) -> bool {
    let names: Vec<&str> = mention.names.iter().map(String::as_str).collect();
    let of_channels = names.iter().any(|name| name.contains("mpsc") || name.contains("channel"));
    names.len() > 1
        && (names.last() == Some(&"unbounded_channel")
            || (names.last() == Some(&"unbounded") && of_channels)
            || names.starts_with(&["std", "sync", "mpsc", "channel"]))
}

/// The standard library's `mpsc::channel()` takes no capacity; tokio's takes one.
fn is_std_channel(call: &BareCall) -> bool {
    let names: Vec<&str> = call.names.iter().map(String::as_str).collect();
    !call.method && names.ends_with(&["mpsc", "channel"])
}

/// Reports, of each file, the lines that `find` names.
fn over_product_code(workspace: &Workspace, rule: &'static str, find: impl Fn(&Walk) -> Vec<(usize, String)>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in &workspace.sources {
        let found = find(&Walk::of(&source.product));
        violations.extend(found.into_iter().map(|(line, what)| Violation::new(&source.file, line, rule, what)));
    }
    sorted(violations)
}

#[test]
fn files_can_be_parsed() {
    enforce(syntax);
}

#[test]
fn product_code_does_not_unwrap() {
    enforce(unwraps);
}

#[test]
fn product_code_leaves_nothing_to_do() {
    enforce(unfinished);
}

#[test]
fn channels_are_bounded() {
    enforce(unbounded_channels);
}

/// All rules of this file.
#[cfg(test)]
fn habits(workspace: &Workspace) -> Vec<Violation> {
    [syntax, unwraps, unfinished, unbounded_channels].iter().flat_map(|rule| rule(workspace)).collect()
}

#[test]
fn planted_habits_are_caught() {
    let file = "src/raft/src/x.rs";
    assert_each(
        habits,
        &[
            (file, "fn f() {\n    g().unwrap();\n}", &["unwrap@3"]),
            (file, "fn f() { println!(\"{}\", g().unwrap()); }", &["unwrap@2"]),
            (file, "fn f() { x.map(Option::unwrap); }", &["unwrap@2"]),
            ("src/roles/x.rs", "fn f() { g().unwrap(); }", &["unwrap@2"]),
            ("xtask/src/x.rs", "fn f() { g().unwrap(); }", &["unwrap@2"]),
            (file, "fn f() { todo!() }", &["todo@2"]),
            (file, "fn f() { vec![unimplemented!()] }", &["todo@2"]),
            (file, "use tokio::sync::mpsc;\nfn f() { mpsc::unbounded_channel::<u8>(); }", &["bounded@3"]),
            (file, "use tokio::sync::mpsc::{self, unbounded_channel};", &["bounded@2"]),
            (file, "fn f() { futures::channel::mpsc::unbounded::<u8>(); }", &["bounded@2"]),
            (file, "use std::sync::mpsc;\nfn f() { mpsc::channel::<u8>(); }", &["bounded@3"]),
            (file, "use std::sync::mpsc::channel;", &["bounded@2"]),
            (file, "fn f( {", &["syntax@2"]),
        ],
    );
}

#[test]
fn good_habits_pass() {
    assert_each(
        habits,
        &[
            ("src/agent/src/x.rs", "fn f() { g().unwrap_or_default(); tokio::spawn(h()); }", &[]),
            ("src/agent/src/x.rs", "fn f() { let (a, b) = tokio::sync::mpsc::channel::<u8>(16); }", &[]),
            ("src/raft/src/x.rs", "#[cfg(test)]\nmod tests { use rocksdb::DB; fn f() { g().unwrap(); todo!(); } }", &[]),
            ("src/raft/src/x.rs", "impl S { #[cfg(any(test, feature = \"testing\"))]\nfn f() { g().unwrap(); } }", &[]),
            ("src/raft/tests/x.rs", "fn f() { g().unwrap(); }", &[]),
        ],
    );
}
