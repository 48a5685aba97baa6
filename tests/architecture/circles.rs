//! The files of a crate import one another in one direction: a circle is one file in several pieces.
//!
//! A declaration `mod x;` is no arrow, nor are the re-exports of a table of contents. Tests are left out. It must not know
//! what the files are about.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    circles_known::KNOWN,
    modules::{Modules, Target},
    violation::{Violation, enforce, found_in, sorted},
    walk::{Form, Mention, Walk},
    workspace::{Source, Workspace},
};

/// From a file to the files whose definitions it names, each with the line of the first mention.
type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

fn circles(workspace: &Workspace) -> Vec<Violation> {
    circles_but(workspace, KNOWN)
}

/// The circles that are left without the known arrows, and the known arrows that close none.
fn circles_but(workspace: &Workspace, known: &[(&str, &str)]) -> Vec<Violation> {
    let mut graph = graph_of(workspace);
    let mut violations = Vec::new();
    for (from, to) in known {
        let closes = graph.get(from).is_some_and(|targets| targets.contains_key(to)) && route(&graph, to, from).is_some();
        if !closes {
            let what = format!("the known arrow to {to} closes no circle any more: take it out of circles_known.rs");
            violations.push(Violation::new(from, 1, "circle", what));
        }
    }
    for (from, to) in known {
        if let Some(targets) = graph.get_mut(from) {
            targets.remove(to);
        }
    }
    while let Some(circle) = shortest_circle(&graph) {
        let (from, to) = backward_arrow(&graph, &circle);
        let line = graph[from][to];
        let round: Vec<&str> = circle.iter().chain(circle.first()).map(|file| short(file)).collect();
        let what = format!(
            "(\"{from}\", \"{to}\") closes the circle {}: move what both need to a third file, or hand it in",
            round.join(" → ")
        );
        violations.push(Violation::new(from, line, "circle", what));
        graph.get_mut(from).unwrap().remove(to);
    }
    sorted(violations)
}

/// A file's name without what the files of all crates share.
fn short(file: &str) -> &str {
    file.split_once("/src/").map_or(file, |(_, within)| within)
}

fn graph_of(workspace: &Workspace) -> Graph<'_> {
    let mut crates: BTreeMap<&str, Vec<(&Source, Walk)>> = BTreeMap::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src() && !source.is_test) {
        crates.entry(&source.crate_name).or_default().push((source, Walk::of(&source.product)));
    }
    let mut graph = Graph::new();
    for files in crates.values() {
        let modules = Modules::of(files);
        for (at, (source, walk)) in files.iter().enumerate() {
            let targets = graph.entry(&source.file).or_default();
            for mention in walk.mentions.iter().filter(|mention| is_arrow(source, mention)) {
                let module = [&source.module[..], &mention.inside].concat();
                let target = match modules.resolve(&module, &mention.names) {
                    Some(Target::Item(file)) => file,
                    Some(Target::Module(file)) if matches!(mention.form, Form::Glob { .. }) => file,
                    _ => continue,
                };
                if target != at {
                    targets.entry(&files[target].0.file).or_insert(mention.line);
                }
            }
        }
    }
    graph
}

fn is_arrow(source: &Source, mention: &Mention) -> bool {
    let re_exported = matches!(mention.form, Form::Import { public: true, .. } | Form::Glob { public: true });
    !(re_exported && source.is_table_of_contents())
}

/// The files on a shortest way from one to another, both among them.
fn route<'a>(graph: &Graph<'a>, from: &str, to: &str) -> Option<Vec<&'a str>> {
    let start = *graph.get_key_value(from)?.0;
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    let mut seen = BTreeSet::from([start]);
    while let Some(file) = queue.pop_front() {
        if file == to {
            let mut way = vec![file];
            while let Some(previous) = before.get(way[way.len() - 1]) {
                way.push(previous);
            }
            way.reverse();
            return Some(way);
        }
        for target in graph.get(file).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(target) {
                before.insert(target, file);
                queue.push_back(target);
            }
        }
    }
    None
}

fn shortest_circle<'a>(graph: &Graph<'a>) -> Option<Vec<&'a str>> {
    let arrows = graph.iter().flat_map(|(from, targets)| targets.keys().map(move |to| (*from, *to)));
    arrows.filter_map(|(from, to)| route(graph, to, from)).min_by_key(Vec::len)
}

/// The arrow of a circle that most probably points the wrong way: out of the file that most others need.
fn backward_arrow<'a>(graph: &Graph<'a>, circle: &[&'a str]) -> (&'a str, &'a str) {
    let needed_by = |file: &str| graph.values().filter(|targets| targets.contains_key(file)).count();
    let arrows = (0..circle.len()).map(|at| (circle[at], circle[(at + 1) % circle.len()]));
    arrows.max_by_key(|(from, to)| (needed_by(from), std::cmp::Reverse(needed_by(to)))).unwrap()
}

#[test]
fn files_of_a_crate_import_one_another_in_no_circle() {
    enforce(circles);
}

#[test]
fn planted_circles_are_caught() {
    let lib = ("src/raft/src/lib.rs", "pub mod a;\npub mod b;\nmod c;\npub use c::C;");
    let c = ("src/raft/src/c.rs", "pub struct C;");
    let cases: &[(&str, &str)] = &[
        ("use crate::b::B;\npub struct A;", "use crate::a::A;\npub struct B;"),
        ("use super::b::{self, B as Other};\npub fn f() {}", "pub struct B;\nfn g() { super::a::f(); }"),
        ("use crate::b;\npub fn f() { b::g(); }", "pub fn g() { log!(crate::a::f()); }"),
        ("use crate::b::*;\npub fn f() {}", "use crate::a;\nfn g() -> a::f {}"),
    ];
    for (a, b) in cases {
        let files = [lib, c, ("src/raft/src/a.rs", a), ("src/raft/src/b.rs", b)];
        assert_eq!(found_in(|w| circles_but(w, &[]), &files).len(), 1, "{a}\n{b}");
    }
    let parent = [
        ("src/raft/src/log.rs", "mod entry;\npub struct Log;\nfn f() {\n    entry::g();\n}"),
        ("src/raft/src/log/entry.rs", "use super::Log;\npub fn g() {}"),
    ];
    assert_eq!(found_in(|w| circles_but(w, &[]), &parent).len(), 1);
    let three = [
        ("src/raft/src/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("src/raft/src/a.rs", "use crate::b::B;\npub struct A;"),
        ("src/raft/src/b.rs", "use crate::c::C;\npub struct B;"),
        ("src/raft/src/c.rs", "use crate::a::A;\npub struct C;"),
    ];
    let violations = circles_but(&Workspace::planted(&three), &[]);
    assert_eq!(violations.len(), 1);
    assert!(violations[0].what.contains("a.rs → b.rs → c.rs → a.rs") || violations[0].what.contains("→"), "{violations:?}");
}

#[test]
fn arrows_in_one_direction_pass() {
    let files = [
        ("src/raft/src/lib.rs", "pub mod a;\npub mod b;\nmod c;\npub use c::C;"),
        (
            "src/raft/src/a.rs",
            "use crate::{b, C};\npub struct A(C);\nfn f() -> b::B {}\n#[cfg(test)]\nmod tests { use super::A; }",
        ),
        ("src/raft/src/b.rs", "use crate::c;\npub struct B;\n#[cfg(test)]\nmod tests { use crate::a::A; }"),
        ("src/raft/src/c.rs", "use std::fmt;\npub struct C;"),
    ];
    assert_eq!(found_in(|w| circles_but(w, &[]), &files), [""; 0]);
}

#[test]
fn known_arrow_is_passed_while_it_closes_a_circle_and_reported_afterwards() {
    let (a, b) = ("src/raft/src/a.rs", "src/raft/src/b.rs");
    let circle = [
        ("src/raft/src/lib.rs", "mod a;\nmod b;"),
        (a, "use crate::b::B;\npub struct A;"),
        (b, "use crate::a::A;\npub struct B;"),
    ];
    assert_eq!(found_in(|w| circles_but(w, &[(a, b)]), &circle), [""; 0]);
    assert_eq!(found_in(|w| circles_but(w, &[(a, b), (b, a)]), &circle), [""; 0], "either closes it while the other is there");
    let mended = [circle[0], circle[1], (b, "pub struct B;")];
    assert_eq!(found_in(|w| circles_but(w, &[(a, b)]), &mended), ["circle@1"]);
    assert_eq!(found_in(|w| circles_but(w, &[("src/raft/src/gone.rs", a)]), &mended), ["circle@1"]);
}
