//! Names are the field's own nouns: words that were replaced do not come back.
//!
//! It must not know what the names stand for.

use proc_macro2::Ident;
use syn::visit::Visit;

use crate::{
    violation::{Violation, assert_each, enforce},
    workspace::Workspace,
};

/// What kind of thing a definition names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Type,
    Function,
    Field,
    Variant,
    Module,
    Constant,
    /// A local variable or a parameter.
    Local,
}

/// Where a replaced word may not stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// As a word of any name: `told_at`, `WasTold`.
    Word,
    /// As a whole name, but of locals, variants and constants.
    Item,
    Type,
    Module,
    /// As a module of this crate.
    ModuleOf(&'static str),
    /// As a type of this crate.
    TypeOf(&'static str),
    /// As a variant, written `Enum::Variant`.
    Variant,
}

/// Replaced words, where they may not stand, and the word to use.
const REPLACED: &[(&str, Scope, &str)] = &[
    ("told", Scope::Word, "assigned_release"),
    ("belated", Scope::Word, "late"),
    ("goable", Scope::Word, "rollback_candidates"),
    ("held", Scope::Item, "retained"),
    ("drive", Scope::Type, "Reconciler"),
    ("drive", Scope::ModuleOf("actors"), "reconciler"),
    ("look", Scope::Item, "reconcile"),
    ("After::Look", Scope::Variant, "Requeue"),
    ("leading", Scope::Type, "LeaderContext"),
    ("charge", Scope::Type, "Controller"),
    ("staff", Scope::Word, "spawn_missing"),
    ("mark", Scope::Item, "record_failures"),
    ("board", Scope::Type, "RunnerLiveness"),
    ("board", Scope::Module, "runner_liveness"),
    ("heard", Scope::Word, "LastHeartbeat"),
    ("sight", Scope::Word, "ProbeEvent"),
    ("pulse", Scope::Word, "ProbeState"),
    ("follower", Scope::TypeOf("actors"), "EventSubscription"),
    ("thing", Scope::Word, "FollowedResource"),
    ("things", Scope::Word, "the noun for what they are"),
    ("trouble", Scope::Word, "ActorFailure"),
    ("floors", Scope::Word, "PolicyLimits"),
    ("facts", Scope::Type, "TargetInfo"),
    ("room", Scope::Word, "capacity"),
    ("kept", Scope::Module, "data_dirs"),
    ("taken", Scope::Module, "port_conflicts"),
    ("saved", Scope::Module, "checksummed_file"),
    ("words", Scope::Module, "error_chain"),
    ("ports_kept", Scope::Item, "port_leases"),
    ("ports", Scope::ModuleOf("model"), "interfaces"),
    ("BuildAction::Push", Scope::Variant, "ImportArtifact"),
    ("Cause::Pushed", Scope::Variant, "Cause::Push"),
];

/// A name that our code gives, and so can change; the methods of others' traits are not among them.
pub struct Definition {
    pub name: String,
    pub kind: Kind,
    pub line: usize,
    /// The enum of a variant.
    of: Option<String>,
}

/// All definitions of a file, in tests too.
pub fn definitions_of(file: &syn::File) -> Vec<Definition> {
    let mut finder = Finder(Vec::new());
    finder.visit_file(file);
    finder.0
}

struct Finder(Vec<Definition>);

impl Finder {
    fn add(&mut self, ident: &Ident, kind: Kind) {
        let name = ident.to_string().trim_start_matches("r#").to_owned();
        self.0.push(Definition { name, kind, line: ident.span().start().line, of: None });
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Const(i) => self.add(&i.ident, Kind::Constant),
            syn::Item::Static(i) => self.add(&i.ident, Kind::Constant),
            syn::Item::Struct(i) => self.add(&i.ident, Kind::Type),
            syn::Item::Union(i) => self.add(&i.ident, Kind::Type),
            syn::Item::Trait(i) => self.add(&i.ident, Kind::Type),
            syn::Item::Type(i) => self.add(&i.ident, Kind::Type),
            syn::Item::Fn(i) => self.add(&i.sig.ident, Kind::Function),
            syn::Item::Mod(i) => self.add(&i.ident, Kind::Module),
            syn::Item::Enum(i) => {
                self.add(&i.ident, Kind::Type);
                for variant in &i.variants {
                    let line = variant.ident.span().start().line;
                    let of = Some(i.ident.to_string());
                    self.0.push(Definition { name: variant.ident.to_string(), kind: Kind::Variant, line, of });
                }
            }
            _ => {}
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        for item in block.items.iter().filter(|_| block.trait_.is_none()) {
            match item {
                syn::ImplItem::Fn(function) => self.add(&function.sig.ident, Kind::Function),
                syn::ImplItem::Const(constant) => self.add(&constant.ident, Kind::Constant),
                _ => {}
            }
        }
        syn::visit::visit_item_impl(self, block);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.add(&function.sig.ident, Kind::Function);
        syn::visit::visit_trait_item_fn(self, function);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if let Some(name) = &field.ident {
            self.add(name, Kind::Field);
        }
        syn::visit::visit_field(self, field);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        if pattern.ident.to_string().starts_with(|c: char| c.is_lowercase()) {
            self.add(&pattern.ident, Kind::Local);
        }
        syn::visit::visit_pat_ident(self, pattern);
    }
}

/// `last_heard`, `LastHeard` and `LAST_HEARD` are `["last", "heard"]`.
pub fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lowercase = false;
    for c in name.chars() {
        if c == '_' || (c.is_uppercase() && after_lowercase) {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        after_lowercase = c.is_lowercase() || c.is_ascii_digit();
    }
    words.retain(|word| !word.is_empty());
    words
}

fn replaced_names(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src()) {
        for definition in definitions_of(&source.ast) {
            for (word, scope, instead) in REPLACED {
                if is_replaced(&definition, word, *scope, &source.crate_name) {
                    let what = format!("`{}` is a word that was replaced: use `{instead}`", definition.name);
                    violations.push(Violation::new(&source.file, definition.line, "name", what));
                }
            }
        }
    }
    violations
}

fn is_replaced(definition: &Definition, word: &str, scope: Scope, crate_name: &str) -> bool {
    let is_word = definition.name.to_lowercase() == *word;
    match scope {
        Scope::Word => words_of(&definition.name).iter().any(|part| part == word),
        Scope::Item => is_word && ![Kind::Local, Kind::Variant, Kind::Constant].contains(&definition.kind),
        Scope::Type => is_word && definition.kind == Kind::Type,
        Scope::Module => is_word && definition.kind == Kind::Module,
        Scope::ModuleOf(name) => is_word && definition.kind == Kind::Module && name == crate_name,
        Scope::TypeOf(name) => is_word && definition.kind == Kind::Type && name == crate_name,
        Scope::Variant => definition.of.as_ref().is_some_and(|of| format!("{of}::{}", definition.name) == word),
    }
}

#[test]
fn names_are_no_replaced_words() {
    enforce(replaced_names);
}

#[test]
fn planted_names_are_caught() {
    let file = "src/raft/src/x.rs";
    assert_each(
        replaced_names,
        &[
            (file, "struct S {\n    told: u8,\n}", &["name@3"]),
            (file, "fn f(told_at: u8) {}", &["name@2"]),
            (file, "fn f() { let was_told = 1; }", &["name@2"]),
            (file, "enum E {\n    LastHeard,\n}", &["name@3"]),
            (file, "const PULSE_MS_MAX: u8 = 1;", &["name@2"]),
            (file, "struct Thing;", &["name@2"]),
            (file, "trait Drive {}", &["name@2"]),
            (file, "impl S { fn staff(&self) {} }", &["name@2"]),
            (file, "trait T { fn look(); }", &["name@2"]),
            (file, "mod board;", &["name@2"]),
            (file, "enum After { Look }", &["name@2"]),
            ("src/model/src/lib.rs", "pub mod ports;", &["name@2"]),
            ("src/actors/src/x.rs", "struct Follower;", &["name@2"]),
            (file, "#[cfg(test)]\nmod tests { fn f() { let trouble = 1; } }", &["name@3"]),
        ],
    );
}

#[test]
fn good_names_pass() {
    let file = "src/raft/src/x.rs";
    assert_each(
        replaced_names,
        &[
            (file, "fn look_up() { let held = nothing; let look = 1; }", &[]),
            (file, "enum Role { Follower, Leader }\nstruct Follower;", &[]),
            (file, "fn f() { let kept = keep(); motherboard(); things.told(); }", &[]),
            (file, "impl Others for S { fn look(&self) {} }", &[]),
            (file, "fn keyboard() {}\nfn mark_seen() {}\nmod ports;\nenum Action { Push, Look }", &[]),
        ],
    );
}
