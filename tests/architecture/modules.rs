//! The modules of a crate: which file a path leads to, through imports and re-exports.
//!
//! It must not know which paths are allowed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    walk::{Form, Walk},
    workspace::Source,
};

/// Re-exports that are followed before a path is given up, so that those that form a ring end.
const HOPS_MAX: usize = 12;

type Path = Vec<String>;

/// A module, inline ones among them.
#[derive(Default)]
struct Module {
    /// The index of its file among the sources of the crate.
    file: usize,
    /// Names of items that it defines.
    items: BTreeSet<String>,
    /// What it imports, re-exports among it: the name by which it is known here, and its path as written.
    imports: BTreeMap<String, Path>,
    globs: Vec<Path>,
}

/// The modules of one crate, outside its tests.
pub struct Modules {
    modules: BTreeMap<Path, Module>,
}

/// Where a path leads.
#[derive(Debug, PartialEq)]
pub enum Target {
    /// To something that this file defines.
    Item(usize),
    /// To a module as a whole, whose file this is.
    Module(usize),
}

impl Modules {
    /// Of the product files of a crate, with what each mentions.
    pub fn of(files: &[(&Source, Walk)]) -> Self {
        let mut modules = Self { modules: BTreeMap::new() };
        for (at, (source, _)) in files.iter().enumerate() {
            modules.define(at, &source.module, &source.product.items);
        }
        for (source, walk) in files {
            for mention in &walk.mentions {
                let path = [&source.module[..], &mention.inside].concat();
                let Some(module) = modules.modules.get_mut(&path) else { continue };
                match &mention.form {
                    Form::Import { alias, .. } => {
                        module.imports.insert(alias.clone(), mention.names.clone());
                    }
                    Form::Glob { .. } => module.globs.push(mention.names.clone()),
                    Form::Code => {}
                }
            }
        }
        modules
    }

    fn define(&mut self, file: usize, path: &[String], items: &[syn::Item]) {
        let mut names = BTreeSet::new();
        for item in items {
            match item {
                syn::Item::Const(i) => names.insert(i.ident.to_string()),
                syn::Item::Enum(i) => names.insert(i.ident.to_string()),
                syn::Item::Fn(i) => names.insert(i.sig.ident.to_string()),
                syn::Item::Static(i) => names.insert(i.ident.to_string()),
                syn::Item::Struct(i) => names.insert(i.ident.to_string()),
                syn::Item::Trait(i) => names.insert(i.ident.to_string()),
                syn::Item::Type(i) => names.insert(i.ident.to_string()),
                syn::Item::Union(i) => names.insert(i.ident.to_string()),
                syn::Item::Macro(i) => i.ident.as_ref().is_some_and(|ident| names.insert(ident.to_string())),
                syn::Item::Mod(i) => {
                    if let Some((_, inner)) = &i.content {
                        self.define(file, &[path, &[i.ident.to_string()]].concat(), inner);
                    }
                    false
                }
                _ => false,
            };
        }
        let module = self.modules.entry(path.to_vec()).or_default();
        module.file = file;
        module.items.append(&mut names);
    }

    /// Where a path leads that is written in a module; nothing where it leaves the crate or is not known.
    pub fn resolve(&self, from: &[String], names: &[String]) -> Option<Target> {
        self.resolve_within(from, names, HOPS_MAX)
    }

    fn resolve_within(&self, from: &[String], names: &[String], hops: usize) -> Option<Target> {
        let hops = hops.checked_sub(1)?;
        let first = names.first()?;
        match first.as_str() {
            "crate" => self.descend(Vec::new(), &names[1..], hops),
            "self" => self.descend(from.to_vec(), &names[1..], hops),
            "super" => {
                let parent = from.split_last()?.1.to_vec();
                let rest = &names[1..];
                if rest.first().is_some_and(|next| next == "super") {
                    self.resolve_within(&parent, rest, hops)
                } else {
                    self.descend(parent, rest, hops)
                }
            }
            _ => {
                let here = self.modules.get(from)?;
                let is_known = here.items.contains(first)
                    || here.imports.get(first).is_some_and(|path| path.first() != Some(first) || path.len() > 1)
                    || self.modules.contains_key(&[from, std::slice::from_ref(first)].concat())
                    || !here.globs.is_empty();
                if is_known { self.descend(from.to_vec(), names, hops) } else { None }
            }
        }
    }

    /// Follows names down from a module.
    fn descend(&self, mut at: Path, names: &[String], hops: usize) -> Option<Target> {
        let hops = hops.checked_sub(1)?;
        for (done, name) in names.iter().enumerate() {
            let here = self.modules.get(&at)?;
            let child = [&at[..], std::slice::from_ref(name)].concat();
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            if here.items.contains(name) {
                return Some(Target::Item(here.file));
            }
            if let Some(path) = here.imports.get(name) {
                let whole = [path, &names[done + 1..]].concat();
                return if whole == names[done..] { None } else { self.resolve_within(&at, &whole, hops) };
            }
            let through = here.globs.iter().find_map(|glob| {
                let whole = [glob, &names[done..]].concat();
                self.resolve_within(&at, &whole, hops)
            });
            return through;
        }
        self.modules.get(&at).map(|module| Target::Module(module.file))
    }
}

#[test]
fn paths_lead_to_the_file_that_defines_what_they_name() {
    let workspace = crate::workspace::Workspace::planted(&[
        ("src/raft/src/lib.rs", "pub mod log;\nmod vote;\npub use vote::*;\npub use log::entry::Entry;\npub use outside::X;"),
        ("src/raft/src/log/mod.rs", "pub mod entry;\nuse super::vote;\nuse entry::Entry as E;"),
        ("src/raft/src/log/entry.rs", "pub struct Entry;"),
        ("src/raft/src/vote.rs", "pub enum Vote { Yes }\nmod deep { pub fn f() {} }"),
    ]);
    let files: Vec<_> = workspace.sources.iter().map(|source| (source, Walk::of(&source.product))).collect();
    let modules = Modules::of(&files);
    let cases: &[(&[&str], &str, Option<Target>)] = &[
        (&["log", "entry"], "crate::log", Some(Target::Module(1))),
        (&["log", "entry"], "super::super::vote::Vote::Yes", Some(Target::Item(3))),
        (&["log", "entry"], "crate::Vote", Some(Target::Item(3))),
        (&["vote"], "crate::Entry", Some(Target::Item(2))),
        (&["log"], "vote::deep::f", Some(Target::Item(3))),
        (&["log"], "E::new", Some(Target::Item(2))),
        (&["log"], "entry::Entry", Some(Target::Item(2))),
        (&["vote"], "crate::X", None),
        (&["vote"], "std::fmt", None),
        (&["vote"], "Vote::Yes", Some(Target::Item(3))),
    ];
    for (from, path, expected) in cases {
        let from: Vec<String> = from.iter().map(|part| (*part).to_owned()).collect();
        let names: Vec<String> = path.split("::").map(str::to_owned).collect();
        assert_eq!(modules.resolve(&from, &names), *expected, "{path}");
    }
}
