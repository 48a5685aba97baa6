//! One broken rule, and how the broken rules of the whole tree are reported.
//!
//! It must not know the rules.

use std::{collections::BTreeMap, fmt};

use crate::{
    known::KNOWN,
    workspace::{Workspace, crate_of},
};

/// One broken rule, shown in the form that editors jump to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Relative to the repository.
    pub file: String,
    pub line: usize,
    pub rule: &'static str,
    /// The finding and the way out of it.
    pub what: String,
}

impl Violation {
    pub fn new(file: &str, line: usize, rule: &'static str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.file, self.line, self.rule, self.what)
    }
}

/// The violations that are not known, and a violation for each number that is higher than what is found.
fn unknown(violations: Vec<Violation>) -> Vec<Violation> {
    let mut found: BTreeMap<(&'static str, String), Vec<Violation>> = BTreeMap::new();
    for violation in violations {
        found.entry((violation.rule, crate_of(&violation.file).to_owned())).or_default().push(violation);
    }
    let mut unknown = Vec::new();
    for ((rule, place), group) in found {
        let allowed = KNOWN.iter().find(|known| (known.0, known.1) == (rule, place.as_str())).map_or(0, |known| known.2);
        if group.len() > allowed {
            unknown.extend(group);
        } else if group.len() < allowed {
            let what = format!("`{place}` breaks `{rule}` {} times now: lower its number, so that it stays so", group.len());
            unknown.push(Violation::new("tests/architecture/known.rs", 1, rule, what));
        }
    }
    unknown
}

/// Fails with every violation of the repository that is not known, sorted by file, and with their number in each crate. Fails too when no
/// source was found.
pub fn enforce(rule: impl Fn(&Workspace) -> Vec<Violation>) {
    let workspace = Workspace::of_this_repository(true);
    assert!(workspace.sources.len() > 3, "no source was found");
    fail_with(&sorted(unknown(rule(&workspace))));
}

/// As [`enforce`], for a rule that reads manifests alone: no source is parsed.
pub fn enforce_manifests(rule: impl Fn(&Workspace) -> Vec<Violation>) {
    let workspace = Workspace::of_this_repository(false);
    assert!(workspace.manifests.len() > 3, "no manifest was found");
    fail_with(&sorted(unknown(rule(&workspace))));
}

fn fail_with(violations: &[Violation]) {
    let mut per_crate: BTreeMap<&str, usize> = BTreeMap::new();
    for violation in violations {
        *per_crate.entry(crate_of(&violation.file)).or_default() += 1;
    }
    let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
    let counts: Vec<String> = per_crate.iter().map(|(name, count)| format!("{name} {count}")).collect();
    assert!(
        list.is_empty(),
        "{} broken rules (docs/ARCHITECTURE.md explains them; {}):\n{}",
        list.len(),
        counts.join(", "),
        list.join("\n")
    );
}

/// By file and line, each once.
pub fn sorted(mut violations: Vec<Violation>) -> Vec<Violation> {
    violations.sort();
    violations.dedup();
    violations
}

/// What a rule says of planted files, as `rule@line`.
pub fn found_in(rule: impl Fn(&Workspace) -> Vec<Violation>, files: &[(&str, &str)]) -> Vec<String> {
    sorted(rule(&Workspace::planted(files))).iter().map(|v| format!("{}@{}", v.rule, v.line)).collect()
}

/// Plants each file alone, below a head of one line, and compares what the rule says with what is expected.
pub fn assert_each(rule: impl Fn(&Workspace) -> Vec<Violation> + Copy, cases: &[(&str, &str, &[&str])]) {
    for (file, text, expected) in cases {
        let text = format!("//! Keeps the planted file short.\n{text}\n");
        let found = found_in(rule, &[(file, &text)]);
        assert_eq!(found, *expected, "in {file}: {text}");
    }
}
