//! Reads the source and holds it to the rules of the house: who may import whom, where third-party names live,
//! what a pure module may not know, and a few habits that a compiler does not enforce.
//!
//! It must not know what the modules do. The rules are explained in docs/ARCHITECTURE.md; the last part of this file
//! plants a violation of each rule and checks that it is caught.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use syn::{punctuated::Punctuated, spanned::Spanned, visit::Visit};

/// Who may import whom. A module that is not listed here does not belong to the house yet.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("analysis", &["model"]),
    ("crash", &[]),
    ("sockets", &[]),
    ("storage", &["model", "crash"]),
    ("security", &["model", "crash"]),
    ("raft", &["model", "storage", "security", "crash"]),
    ("artifacts", &["model", "security", "crash"]),
    ("runner", &["model", "security", "artifacts", "crash"]),
    ("gateway", &["model", "security", "artifacts", "sockets", "crash"]),
    ("agent", &["model", "security", "artifacts", "runner", "crash"]),
    ("actors", &["model", "analysis", "raft", "artifacts", "runner", "security", "crash"]),
    ("http", &["model", "analysis", "raft", "artifacts", "security", "sockets", "crash"]),
    ("cli", &["model", "analysis", "security", "crash"]),
    ("main", EVERY_MODULE),
    ("roles", EVERY_MODULE),
    ("lib", EVERY_MODULE),
];

const EVERY_MODULE: &[&str] = &[
    "model",
    "analysis",
    "crash",
    "sockets",
    "storage",
    "security",
    "raft",
    "artifacts",
    "runner",
    "gateway",
    "agent",
    "actors",
    "http",
    "cli",
];

/// Third-party crates (by how their names begin) and the one module that may name them.
const HOMES: &[(&str, &str)] = &[
    ("openraft", "raft"),
    ("rocksdb", "storage"),
    ("ractor", "actors"),
    ("libcontainer", "runner"),
    ("axum", "http"),
    ("aws_sdk_s3", "artifacts"),
];

/// Modules that compute and do nothing else.
const PURE: &[&str] = &["model", "analysis"];

/// What a pure module may not name, and the way out.
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

/// Names that are clocks or randomness wherever they stand in a path of a pure module.
const IMPURE_NAMES: &[(&str, &str)] = &[
    ("SystemTime", "time arrives inside the command, as `Timestamp`"),
    ("Instant", "time arrives inside the command, as `Timestamp`"),
    ("HashMap", "its order is random: use `BTreeMap`"),
    ("HashSet", "its order is random: use `BTreeSet`"),
    ("RandomState", "its order is random: use an ordered map"),
];

/// Of `std::net`, what is mere data.
const NET_DATA: &[&str] = &["IpAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddr", "SocketAddrV4", "SocketAddrV6", "AddrParseError"];

const LINES_WARN: usize = 500;
const LINES_MAX: usize = 600;

/// One broken rule, in the form that editors jump to.
#[derive(Debug, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.file, self.line, self.rule, self.what)
    }
}

/// A source file, as it was read.
struct Source {
    /// Relative to the repository, for messages.
    file: String,
    /// `src/raft/log/mod.rs` is `["raft", "log"]`; `src/main.rs` is `["main"]`.
    module: Vec<String>,
    text: String,
}

/// Checks the files of `src/` together, because one file's `#[cfg(test)] mod x;` makes another a test.
fn check(sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut parsed = Vec::new();
    for source in sources {
        match syn::parse_file(&source.text) {
            Ok(file) => parsed.push((source, file)),
            Err(error) => violations.push(Violation {
                file: source.file.clone(),
                line: error.span().start().line,
                rule: "syntax",
                what: format!("cannot be parsed: {error}"),
            }),
        }
    }
    let mut test_modules = BTreeSet::new();
    for (source, file) in &parsed {
        collect_test_modules(&source.module, &file.items, &mut test_modules);
    }
    for (source, file) in &parsed {
        let is_test = (1..=source.module.len()).any(|depth| test_modules.contains(&source.module[..depth]));
        check_text(source, is_test, &mut violations);
        let mut checker = Checker::new(source, is_test, &mut violations);
        checker.check_module_is_known();
        checker.visit_file(file);
    }
    violations.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    violations.dedup();
    violations
}

/// Finds `#[cfg(test)] mod name;`.
fn collect_test_modules(parent: &[String], items: &[syn::Item], found: &mut BTreeSet<Vec<String>>) {
    for item in items {
        if let syn::Item::Mod(module) = item {
            // Only the crate's root declares top-level modules without a prefix.
            let mut path = if matches!(parent, [root] if root == "lib") { vec![] } else { parent.to_vec() };
            path.push(module.ident.to_string());
            if module.attrs.iter().any(is_only_for_tests) {
                found.insert(path);
            } else if let Some((_, inner)) = &module.content {
                collect_test_modules(&path, inner, found);
            }
        }
    }
}

fn check_text(source: &Source, is_test: bool, violations: &mut Vec<Violation>) {
    let mut report = |line, rule, what| violations.push(Violation { file: source.file.clone(), line, rule, what });
    if !source.text.starts_with("//!") {
        report(1, "head", "begin with `//!`: what the file is for and what it must not know".to_owned());
    }
    let lines = source.text.lines().count();
    if lines > LINES_MAX && !is_test {
        report(lines, "length", format!("{lines} lines, at most {LINES_MAX}: split it; a file is about one thing"));
    } else if lines > LINES_WARN && !is_test {
        println!("warning: {} has {lines} lines; over {LINES_MAX} it fails", source.file);
    }
}

/// Whether an attribute is `#[test]`, or a `#[cfg(…)]` that cannot hold outside tests.
fn is_only_for_tests(attribute: &syn::Attribute) -> bool {
    fn implies_test(meta: &syn::Meta) -> bool {
        match meta {
            syn::Meta::Path(path) => path.is_ident("test"),
            syn::Meta::List(list) => {
                let Ok(parts) = list.parse_args_with(Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated) else {
                    return false;
                };
                (list.path.is_ident("all") && parts.iter().any(implies_test))
                    || (list.path.is_ident("any") && parts.iter().all(implies_test))
            }
            syn::Meta::NameValue(_) => false,
        }
    }
    attribute.path().is_ident("test")
        || (attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Meta>().is_ok_and(|meta| implies_test(&meta)))
}

/// Walks one file. Paths inside macro calls are found by their tokens, since a macro's body need not parse.
struct Checker<'a> {
    file: &'a str,
    /// The module that the visited item is in; inline modules are pushed.
    module: Vec<String>,
    /// How deep we are in items that exist for tests alone.
    test_depth: usize,
    violations: &'a mut Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn new(source: &'a Source, is_test: bool, violations: &'a mut Vec<Violation>) -> Self {
        Self { file: &source.file, module: source.module.clone(), test_depth: usize::from(is_test), violations }
    }

    fn home(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    fn report(&mut self, span: Span, rule: &'static str, what: String) {
        self.violations.push(Violation { file: self.file.to_owned(), line: span.start().line, rule, what });
    }

    fn check_module_is_known(&mut self) {
        if !MAY_IMPORT.iter().any(|(name, _)| *name == self.home()) {
            let what = format!(
                "`{}` is not in the table of modules: add it to MAY_IMPORT and docs/ARCHITECTURE.md, with its arrows",
                self.home()
            );
            self.report(Span::call_site(), "arrow", what);
        }
    }

    /// Every rule about paths. `imported` is true for a whole path of a `use`, whose first segment is a name of its own.
    fn check_path(&mut self, path: &[Ident], imported: bool) {
        let Some(first) = path.first() else { return };
        let names: Vec<String> = path.iter().map(Ident::to_string).collect();
        let span = first.span();
        if let Some(target) = self.target_module(&names) {
            self.check_arrow(&target, span);
            return;
        }
        if names.len() < 2 && !imported {
            return;
        }
        if self.test_depth == 0 {
            self.check_home(&names[0], span);
            self.check_purity(&names, span);
            self.check_bounds(&names, span);
            if names.ends_with(&["Option".to_owned(), "unwrap".to_owned()])
                || names.ends_with(&["Result".to_owned(), "unwrap".to_owned()])
            {
                self.report_unwrap(span);
            }
        }
    }

    /// The top-level module that a path leads to, if it leads into this crate.
    fn target_module(&self, names: &[String]) -> Option<String> {
        let mut names = names.iter().map(String::as_str).peekable();
        match names.peek().copied() {
            Some("crate" | "groundswell") => {
                names.next();
                Some(names.next().unwrap_or("*").to_owned())
            }
            Some("super") => {
                let mut depth = self.module.len();
                while names.next_if_eq(&"super").is_some() {
                    depth = depth.saturating_sub(1);
                }
                if depth > 0 { None } else { Some(names.next().unwrap_or("*").to_owned()) }
            }
            _ => None,
        }
    }

    fn check_arrow(&mut self, target: &str, span: Span) {
        let home = self.home().to_owned();
        if target == home || matches!(home.as_str(), "main" | "lib") {
            return;
        }
        if matches!(target, "*" | "self") {
            self.report(span, "arrow", "name the module that is imported, instead of the crate's root".to_owned());
            return;
        }
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == home).map_or(&[][..], |(_, allowed)| *allowed);
        if !EVERY_MODULE.contains(&target) || allowed.contains(&target) {
            return;
        }
        let what = format!(
            "`{home}` may not import `{target}` (it may import {}): let `main` hand it in through a trait of `model::ports`, \
             or move what is shared to `model`",
            if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") }
        );
        self.report(span, "arrow", what);
    }

    fn check_home(&mut self, root: &str, span: Span) {
        let Some((_, home)) = HOMES.iter().find(|(prefix, _)| is_crate_of(root, prefix)) else { return };
        if self.home() != *home {
            let what = format!(
                "`{root}` is named in `{}`, its home is `{home}`: wrap what is needed there and use the wrapper",
                self.home()
            );
            self.report(span, "home", what);
        }
    }

    fn check_purity(&mut self, names: &[String], span: Span) {
        if !PURE.contains(&self.home()) {
            return;
        }
        let written = names.join("::");
        let way_out = if let Some((_, way_out)) = IMPURE_PATHS.iter().find(|(path, _)| begins_with(names, path)) {
            Some(*way_out)
        } else if let Some((_, way_out)) = IMPURE_NAMES.iter().find(|(name, _)| names.iter().any(|n| n == name)) {
            Some(*way_out)
        } else if begins_with(names, &["std", "net"]) && !names.get(2).is_some_and(|n| NET_DATA.contains(&n.as_str())) {
            Some("only addresses are data; the caller connects")
        } else if names.last().is_some_and(|name| name == "now") {
            Some("time arrives inside the command, as `Timestamp`")
        } else if names == ["std", "self"] {
            Some("import what is used by name")
        } else {
            None
        };
        if let Some(way_out) = way_out {
            let what = format!("`{}` is pure and may not name `{written}`: {way_out}", self.home());
            self.report(span, "pure", what);
        }
    }

    fn check_bounds(&mut self, names: &[String], span: Span) {
        let last = names.last().map(String::as_str);
        let channel = last == Some("unbounded") && names.iter().any(|n| n.contains("mpsc") || n.contains("channel"));
        if last == Some("unbounded_channel") || channel || begins_with(names, &["std", "sync", "mpsc", "channel"]) {
            self.report_unbounded(span);
        }
    }

    fn report_unbounded(&mut self, span: Span) {
        let what = "an unbounded channel: give it a capacity, and say what happens when it is full".to_owned();
        self.report(span, "bounded", what);
    }

    fn report_unwrap(&mut self, span: Span) {
        let what = "`unwrap` outside tests: return an error that says what was tried, on what, and the way out".to_owned();
        self.report(span, "unwrap", what);
    }

    fn check_macro_name(&mut self, name: &Ident) {
        if self.test_depth == 0 && (name == "todo" || name == "unimplemented") {
            self.report(name.span(), "todo", format!("`{name}!` outside tests: write it, or leave the feature out"));
        }
    }

    /// Finds paths, `.unwrap()` and `todo!` among tokens that are not parsed.
    fn check_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_punct = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.check_tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let mut path = vec![first.clone()];
                    while is_punct(at + 1, ':')
                        && is_punct(at + 2, ':')
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        path.push(next.clone());
                        at += 3;
                    }
                    self.check_path(&path, false);
                    if is_punct(at + 1, '!') {
                        self.check_macro_name(first);
                    }
                    let called_bare = matches!(tokens.get(at + 1),
                        Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis && g.stream().is_empty());
                    if self.test_depth == 0 && first == "unwrap" && path.len() == 1 && called_bare {
                        self.report_unwrap(first.span());
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    fn in_tests_if(&mut self, attributes: &[syn::Attribute], visit: impl FnOnce(&mut Self)) {
        let depth = usize::from(attributes.iter().any(is_only_for_tests));
        self.test_depth += depth;
        visit(self);
        self.test_depth -= depth;
    }
}

/// `ractor_cluster` belongs to `ractor`; `raft` is not `raftery`.
fn is_crate_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

fn begins_with(names: &[String], prefix: &[&str]) -> bool {
    names.len() >= prefix.len() && names.iter().zip(prefix).all(|(name, expected)| name == expected)
}

/// All whole paths of a `use`: `a::{b, c::D as E, f::*}` is `a::b`, `a::c::D`, `a::f::*`.
fn flatten(tree: &syn::UseTree, prefix: &mut Vec<Ident>, found: &mut Vec<Vec<Ident>>) {
    let mut leaf = |ident: Ident| found.push(prefix.iter().cloned().chain([ident]).collect());
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.clone());
            flatten(&path.tree, prefix, found);
            prefix.pop();
        }
        syn::UseTree::Name(name) if name.ident == "self" && !prefix.is_empty() => found.push(prefix.clone()),
        syn::UseTree::Rename(name) if name.ident == "self" && !prefix.is_empty() => found.push(prefix.clone()),
        syn::UseTree::Name(name) => leaf(name.ident.clone()),
        syn::UseTree::Rename(name) => leaf(name.ident.clone()),
        syn::UseTree::Glob(glob) => {
            // An identifier cannot be `*`: `self` stands for everything that a root holds.
            let mut path = prefix.clone();
            if prefix.len() <= 1 {
                path.push(Ident::new("self", glob.span()));
            }
            found.push(path);
        }
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| flatten(item, prefix, found)),
    }
}

impl<'ast> Visit<'ast> for Checker<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Const(i) => &i.attrs,
            syn::Item::Enum(i) => &i.attrs,
            syn::Item::ExternCrate(i) => &i.attrs,
            syn::Item::Fn(i) => &i.attrs,
            syn::Item::ForeignMod(i) => &i.attrs,
            syn::Item::Impl(i) => &i.attrs,
            syn::Item::Macro(i) => &i.attrs,
            syn::Item::Mod(i) => &i.attrs,
            syn::Item::Static(i) => &i.attrs,
            syn::Item::Struct(i) => &i.attrs,
            syn::Item::Trait(i) => &i.attrs,
            syn::Item::Type(i) => &i.attrs,
            syn::Item::Use(i) => &i.attrs,
            _ => &Vec::new(),
        };
        self.in_tests_if(attributes, |checker| syn::visit::visit_item(checker, item));
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.in_tests_if(&function.attrs, |checker| syn::visit::visit_impl_item_fn(checker, function));
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.module.push(module.ident.to_string());
        syn::visit::visit_item_mod(self, module);
        self.module.pop();
    }

    /// `pub(crate)` imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        for path in paths {
            self.check_path(&path, true);
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.check_path(std::slice::from_ref(&item.ident), true);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let idents: Vec<Ident> = path.segments.iter().map(|segment| segment.ident.clone()).collect();
        self.check_path(&idents, false);
        syn::visit::visit_path(self, path);
    }

    fn visit_meta_list(&mut self, list: &'ast syn::MetaList) {
        syn::visit::visit_meta_list(self, list);
        self.check_tokens(list.tokens.clone());
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        syn::visit::visit_macro(self, call);
        if let Some(last) = call.path.segments.last() {
            self.check_macro_name(&last.ident);
        }
        self.check_tokens(call.tokens.clone());
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if self.test_depth == 0 && call.method == "unwrap" && call.args.is_empty() {
            self.report_unwrap(call.method.span());
        }
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(function) = &*call.func {
            let names: Vec<String> = function.path.segments.iter().map(|s| s.ident.to_string()).collect();
            // The standard library's `mpsc::channel()` takes no capacity; tokio's takes one.
            if self.test_depth == 0 && call.args.is_empty() && names.ends_with(&["mpsc".to_owned(), "channel".to_owned()]) {
                self.report_unbounded(call.span());
            }
        }
        syn::visit::visit_expr_call(self, call);
    }
}

fn read_sources(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.push(source(&file, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources
}

fn source(file: &str, text: &str) -> Source {
    let module = file.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
    let module = module.strip_suffix("/mod").unwrap_or(module);
    Source { file: file.to_owned(), module: module.split('/').map(str::to_owned).collect(), text: text.to_owned() }
}

#[test]
fn the_house_keeps_its_rules() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let sources = read_sources(&root);
    assert!(sources.len() > 3, "no source was found under {}", root.display());
    let violations = check(&sources);
    let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
    assert!(list.is_empty(), "{} broken rules (docs/ARCHITECTURE.md explains them):\n{}", list.len(), list.join("\n"));
}

#[test]
fn arrows_form_no_circle() {
    // Taking away modules that import nothing which is left must empty the table.
    let mut left: Vec<_> = MAY_IMPORT.to_vec();
    while !left.is_empty() {
        let names: Vec<&str> = left.iter().map(|(name, _)| *name).collect();
        let before = left.len();
        left.retain(|(_, imports)| imports.iter().any(|import| names.contains(import)));
        assert!(left.len() < before, "these import one another: {names:?}");
    }
}

/// What the rules say of one planted file, as `rule@line`.
fn found_in(file: &str, text: &str) -> Vec<String> {
    check(&[source(file, text)]).iter().map(|v| format!("{}@{}", v.rule, v.line)).collect()
}

#[test]
fn planted_violations_are_caught() {
    let cases: &[(&str, &str, &str)] = &[
        // Arrows, in each form in which one can be written.
        ("src/http/x.rs", "use crate::actors::Tree;", "arrow@2"),
        ("src/http/x.rs", "use crate::{model::ids, raft::{Node, self}, actors::{deep::{Thing as T}}};", "arrow@2"),
        ("src/http/x.rs", "fn f() { crate::actors::start(); }", "arrow@2"),
        ("src/http/x.rs", "struct S(Vec<Box<dyn crate::actors::Port>>);", "arrow@2"),
        ("src/http/x.rs", "fn f() { println!(\"{}\", crate::actors::COUNT); }", "arrow@2"),
        ("src/http/x.rs", "use super::super::actors::Tree;", "arrow@2"),
        ("src/http/mod.rs", "mod inner { use super::super::actors::Tree; }", "arrow@2"),
        ("src/http/x.rs", "#[cfg(test)]\nmod tests {\n    use crate::actors::Tree;\n}", "arrow@4"),
        ("src/http/x.rs", "use crate::*;", "arrow@2"),
        ("src/http/x.rs", "use swell_gateway;", "arrow@2"),
        ("src/model/x.rs", "use crate::crash;", "arrow@2"),
        ("src/storage/x.rs", "use crate::raft::Node;", "arrow@2"),
        ("src/cellar/mod.rs", "", "arrow@1"),
        // Homes.
        ("src/raft/x.rs", "use rocksdb::DB;", "home@2"),
        ("src/storage/x.rs", "use openraft::storage::RaftLogStorage;", "home@2"),
        ("src/http/x.rs", "use {std::fs, ractor_cluster::node};", "home@2"),
        ("src/agent/x.rs", "fn f(c: libcontainer::container::Container) {}", "home@2"),
        ("src/main.rs", "fn f() { axum::serve(); }", "home@2"),
        ("src/http/x.rs", "#[derive(ractor_cluster::RactorMessage)] struct S;", "home@2"),
        ("src/http/x.rs", "extern crate aws_sdk_s3;", "home@2"),
        ("src/http/x.rs", "macro_rules! m { () => { openraft::Raft::new() } }", "home@2"),
        // Purity.
        ("src/model/x.rs", "use std::time::{Duration, Instant};", "pure@2"),
        ("src/model/x.rs", "fn f() { std::time::SystemTime::now(); }", "pure@2"),
        ("src/model/x.rs", "use jiff::Timestamp;\nfn f() { Timestamp::now(); }", "pure@3"),
        ("src/model/x.rs", "fn f() { let _ = std::fs::read(\"x\"); }", "pure@2"),
        ("src/model/x.rs", "use std::net::TcpStream;", "pure@2"),
        ("src/model/x.rs", "use std::{net, fmt};", "pure@2"),
        ("src/model/x.rs", "use std::process;", "pure@2"),
        ("src/model/x.rs", "fn f() { std::env::var(\"X\").ok(); }", "pure@2"),
        ("src/model/x.rs", "use std::*;", "pure@2"),
        ("src/analysis/x.rs", "use std::thread;", "pure@2"),
        ("src/analysis/x.rs", "async fn f() { tokio::spawn(async {}); }", "pure@2"),
        ("src/analysis/x.rs", "use rand::Rng;", "pure@2"),
        ("src/analysis/x.rs", "fn f() { getrandom::fill(&mut []).ok(); }", "pure@2"),
        ("src/analysis/x.rs", "use std::collections::HashMap;", "pure@2"),
        // Habits.
        ("src/raft/x.rs", "fn f() {\n    g().unwrap();\n}", "unwrap@3"),
        ("src/raft/x.rs", "fn f() { println!(\"{}\", g().unwrap()); }", "unwrap@2"),
        ("src/raft/x.rs", "fn f() { x.map(Option::unwrap); }", "unwrap@2"),
        ("src/raft/x.rs", "fn f() { todo!() }", "todo@2"),
        ("src/raft/x.rs", "fn f() { vec![unimplemented!()] }", "todo@2"),
        ("src/raft/x.rs", "use tokio::sync::mpsc;\nfn f() { mpsc::unbounded_channel::<u8>(); }", "bounded@3"),
        ("src/raft/x.rs", "use tokio::sync::mpsc::{self, unbounded_channel};", "bounded@2"),
        ("src/raft/x.rs", "fn f() { futures::channel::mpsc::unbounded::<u8>(); }", "bounded@2"),
        ("src/raft/x.rs", "use std::sync::mpsc;\nfn f() { mpsc::channel::<u8>(); }", "bounded@3"),
        ("src/raft/x.rs", "fn f( {", "syntax@2"),
    ];
    for (file, text, expected) in cases {
        let found = found_in(file, &format!("//! A file.\n{text}\n"));
        assert_eq!(found, [*expected], "in {file}: {text}");
    }
    assert_eq!(found_in("src/raft/x.rs", "use std::fmt;\n"), ["head@1"]);
    let long = format!("//! A file.\n{}", "// line\n".repeat(LINES_MAX));
    assert_eq!(found_in("src/raft/x.rs", &long), [format!("length@{}", LINES_MAX + 1)]);
}

#[test]
fn what_is_allowed_passes() {
    let cases: &[(&str, &str)] = &[
        ("src/http/x.rs", "use crate::{model::ids, raft::Node, http::problem, crash};\nuse axum::Router;"),
        ("src/http/deep/x.rs", "use super::super::problem;\nuse super::super::actors;"),
        ("src/main.rs", "use groundswell::{actors, http, agent};\nfn main() { swell_cli::run(); }"),
        ("src/raft/x.rs", "use openraft::Raft;\nfn f() { axumatic::go(); let axum = 1; drop(axum); }"),
        ("src/model/x.rs", "use std::{collections::BTreeMap, net::{IpAddr, SocketAddr}, time::Duration};"),
        ("src/agent/x.rs", "use std::{fs, time::Instant};\nfn f() { g().unwrap_or_default(); tokio::spawn(h()); }"),
        ("src/agent/x.rs", "fn f() { let (a, b) = tokio::sync::mpsc::channel::<u8>(16); }"),
        ("src/raft/x.rs", "pub(crate) fn f() {}\npub(in crate::raft) mod y {}"),
        ("src/raft/x.rs", "#[cfg(test)]\nmod tests { use rocksdb::DB; fn f() { g().unwrap(); todo!(); } }"),
        ("src/model/x.rs", "#[cfg(all(test, unix))]\nmod tests { use std::fs; }"),
    ];
    for (file, text) in cases {
        assert_eq!(found_in(file, &format!("//! A file.\n{text}\n")), [""; 0], "in {file}: {text}");
    }
}

#[test]
fn a_file_declared_for_tests_may_do_what_tests_do() {
    let long = format!("//! Tests.\nfn f() {{ g().unwrap(); }}\n{}", "// line\n".repeat(LINES_MAX));
    let sources = [
        source("src/raft/mod.rs", "//! A folder.\npub mod log;\n"),
        source("src/raft/log.rs", "//! A log.\n#[cfg(test)]\nmod tests;\n"),
        source("src/raft/log/tests.rs", &long),
    ];
    assert_eq!(check(&sources), []);
    let broken = check(&[source("src/raft/log/tests.rs", &long)]);
    assert_eq!(broken.len(), 2, "without the declaration it is no test: {broken:?}");
}

#[test]
fn a_message_names_place_rule_and_way_out() {
    let violations = check(&[source("src/gateway/x.rs", "//! A file.\nuse crate::raft::Node;\n")]);
    let message = violations[0].to_string();
    for part in ["src/gateway/x.rs:2", "[arrow]", "`gateway` may not import `raft`", "model::ports"] {
        assert!(message.contains(part), "{part} is missing in: {message}");
    }
}
