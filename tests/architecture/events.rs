//! Kinds of events are written as `EventKind` everywhere; one table in `model` renders them as text.
//!
//! It must not know the kinds: a literal of their shape is enough.

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

use crate::{
    violation::{Violation, assert_each, enforce},
    workspace::{Source, Workspace},
};

/// What an event can be about: the part of its kind before the dot.
const NOUNS: &[&str] = &[
    "agent",
    "artifact",
    "build",
    "cluster",
    "deploy",
    "environment",
    "gateway",
    "instance",
    "pipeline",
    "release",
    "repository",
    "rollout",
    "runner",
    "server",
    "service",
    "session",
    "target",
    "token",
    "wave",
];

/// Ends of file names, which have the shape of an event's kind: `cluster.toml`.
const FILE_ENDS: &[&str] =
    &["db", "json", "lock", "log", "md", "pid", "rs", "service", "sh", "sock", "tmp", "toml", "txt", "zst"];

/// Modules of `model` that may write kinds as text: the table, and the pipeline file, whose keys look alike (`build.image`).
const EXEMPT: &[&str] = &["event", "event_kind", "pipeline_file"];

fn literal_kinds(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src() && !is_exempt(source)) {
        let mut finder = Finder(Vec::new());
        finder.visit_file(&source.product);
        for (line, text) in finder.0.iter().filter(|(_, text)| is_kind(text)) {
            let what =
                format!("\"{text}\" is an event's kind as text: use `EventKind`, which is rendered in `model::event` alone");
            violations.push(Violation::new(&source.file, *line, "event", what));
        }
    }
    violations
}

fn is_exempt(source: &Source) -> bool {
    source.crate_name == "model" && source.module.iter().any(|module| EXEMPT.contains(&module.as_str()))
}

fn is_kind(text: &str) -> bool {
    let Some((noun, verb)) = text.split_once('.') else { return false };
    let is_verb = !verb.is_empty() && verb.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    NOUNS.contains(&noun) && is_verb && !FILE_ENDS.contains(&verb)
}

/// String literals and their lines, in macros too.
struct Finder(Vec<(usize, String)>);

impl Finder {
    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                        self.visit_lit_str(&text);
                    }
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_lit_str(&mut self, literal: &'ast syn::LitStr) {
        self.0.push((literal.span().start().line, literal.value()));
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
    }
}

#[test]
fn event_kinds_are_written_as_text_in_one_table() {
    enforce(literal_kinds);
}

#[test]
fn planted_event_kinds_are_caught() {
    assert_each(
        literal_kinds,
        &[
            ("src/actors/src/x.rs", "fn f() { on(\"build.state\"); }", &["event@2"]),
            ("src/http/src/x.rs", "fn f() { matches!(kind, \"rollout.cancel_asked\"); }", &["event@2"]),
            ("src/model/src/build/apply.rs", "const KIND: &str = \"build.state\";", &["event@2"]),
            ("src/cli/src/x.rs", "fn f() {\n    match k {\n        \"target.joined\" => {}\n    }\n}", &["event@4"]),
        ],
    );
}

#[test]
fn other_text_of_that_shape_passes() {
    assert_each(
        literal_kinds,
        &[
            ("src/actors/src/x.rs", "fn f() { read(\"cluster.toml\"); read(\"build.rs\"); ask(\"example.org\"); }", &[]),
            ("src/actors/src/x.rs", "fn f() { \"build.State\"; \"build. state\"; \"the build.state\"; \"build.\"; }", &[]),
            ("src/model/src/event.rs", "fn f() { \"build.state\"; }", &[]),
            ("src/model/src/pipeline_file/check.rs", "fn f() { \"build.image\"; }", &[]),
            ("src/actors/src/x.rs", "/// build.state\n#[cfg(test)]\nmod tests { fn f() { \"build.state\"; } }", &[]),
        ],
    );
}
