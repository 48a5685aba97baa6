//! A file is about one thing, says so in its head, and is short enough to be read at once.
//!
//! It must not know what the head says; comments.rs judges the language.

use crate::{
    violation::{Violation, enforce, found_in},
    workspace::Workspace,
};

const LINES_WARN: usize = 500;
const LINES_MAX: usize = 600;

fn heads(workspace: &Workspace) -> Vec<Violation> {
    let headless = workspace.sources.iter().filter(|source| !source.text.starts_with("//!"));
    headless
        .map(|source| Violation::new(&source.file, 1, "head", "begin with `//!`: what the file is for and what it must not know"))
        .collect()
}

fn lengths(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| !source.is_test) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            let what = format!("{lines} lines, at most {LINES_MAX}: split it; a file is about one thing");
            violations.push(Violation::new(&source.file, lines, "length", what));
        } else if lines > LINES_WARN {
            println!("warning: {} has {lines} lines; over {LINES_MAX} it fails", source.file);
        }
    }
    violations
}

#[test]
fn files_begin_with_a_head() {
    enforce(heads);
}

#[test]
fn files_are_of_readable_length() {
    enforce(lengths);
}

#[test]
fn planted_files_without_head_or_too_long_are_caught() {
    assert_eq!(found_in(heads, &[("src/raft/src/x.rs", "use std::fmt;\n")]), ["head@1"]);
    assert_eq!(found_in(heads, &[("src/raft/tests/x.rs", "/// No head.\nfn f() {}\n")]), ["head@1"]);
    let long = format!("//! A file.\n{}", "// line\n".repeat(LINES_MAX));
    assert_eq!(found_in(lengths, &[("src/raft/src/x.rs", &long)]), [format!("length@{}", LINES_MAX + 1)]);
}

#[test]
fn short_files_and_long_tests_pass() {
    let long = "//! Tests.\n".repeat(LINES_MAX);
    let log = ("src/raft/src/log.rs", "//! The log.\n#[cfg(test)]\nmod tests;\n");
    assert_eq!(found_in(lengths, &[log, ("src/raft/src/log/tests.rs", &long[..long.len() - 11])]), [""; 0]);
    assert_eq!(found_in(lengths, &[log, ("src/raft/src/log/tests.rs", &long.repeat(2))]), [""; 0]);
    assert_eq!(found_in(lengths, &[("src/raft/src/log/tests.rs", &long.repeat(2))]), [format!("length@{}", 2 * LINES_MAX)]);
    assert_eq!(found_in(heads, &[log]), [""; 0]);
}
