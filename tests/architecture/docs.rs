//! What a crate offers to others is documented: types, functions, traits, constants and modules.
//!
//! Fields and variants need a comment only where there is something to add, so rustc's `missing_docs` is too coarse.

use std::collections::BTreeSet;

use crate::{
    violation::{Violation, assert_each, enforce, found_in},
    walk::{Form, Walk},
    workspace::{Source, Workspace},
};

/// Names of functions that say it all.
const SELF_EVIDENT: &[&str] = &["new"];

/// Crates and the names that they offer: of public modules, and re-exported ones.
type Offered = BTreeSet<(String, String)>;

fn undocumented(workspace: &Workspace) -> Vec<Violation> {
    let product = || workspace.sources.iter().filter(|source| source.is_in_src() && !source.is_test);
    let mut hidden = BTreeSet::new();
    let mut offered = Offered::new();
    for source in product() {
        collect_hidden_modules(&source.crate_name, &source.module, &source.product.items, &mut hidden);
        for mention in Walk::of(&source.product).mentions {
            if let (Form::Import { alias: _, public: true }, Some(name)) = (&mention.form, mention.names.last()) {
                offered.insert((source.crate_name.clone(), name.clone()));
            }
        }
    }
    let is_hidden = |source: &Source| {
        (1..=source.module.len()).any(|depth| hidden.contains(&(source.crate_name.clone(), source.module[..depth].to_vec())))
    };
    for source in product().filter(|source| !is_hidden(source)) {
        for_each_public(&source.product.items, &mut |_, name, _| {
            offered.insert((source.crate_name.clone(), name.to_string()));
        });
    }
    let mut violations = Vec::new();
    for source in product() {
        for_each_public(&source.product.items, &mut |of, name, attributes| {
            let offering = of.unwrap_or(name).to_string();
            let is_offered = offered.contains(&(source.crate_name.clone(), offering));
            let is_documented = attributes.iter().any(|attribute| attribute.path().is_ident("doc"));
            if is_offered && !is_documented && !SELF_EVIDENT.contains(&name.to_string().as_str()) {
                let what =
                    format!("`{name}` has no doc comment: say what it is for, its unit and bound, and what its errors mean");
                violations.push(Violation::new(&source.file, name.span().start().line, "docs", what));
            }
        });
    }
    violations
}

/// Modules that are declared without `pub`.
fn collect_hidden_modules(crate_name: &str, parent: &[String], items: &[syn::Item], found: &mut BTreeSet<(String, Vec<String>)>) {
    for item in items {
        if let syn::Item::Mod(module) = item {
            let path = [parent, &[module.ident.to_string()]].concat();
            if !is_public(&module.vis) {
                found.insert((crate_name.to_owned(), path));
            }
        }
    }
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

/// Calls `visit` with each public item: the type that it belongs to, its name and its attributes.
fn for_each_public(items: &[syn::Item], visit: &mut impl FnMut(Option<&syn::Ident>, &syn::Ident, &[syn::Attribute])) {
    for item in items {
        match item {
            syn::Item::Const(i) if is_public(&i.vis) && i.ident != "_" => visit(None, &i.ident, &i.attrs),
            syn::Item::Enum(i) if is_public(&i.vis) => visit(None, &i.ident, &i.attrs),
            syn::Item::Fn(i) if is_public(&i.vis) => visit(None, &i.sig.ident, &i.attrs),
            syn::Item::Static(i) if is_public(&i.vis) => visit(None, &i.ident, &i.attrs),
            syn::Item::Struct(i) if is_public(&i.vis) => visit(None, &i.ident, &i.attrs),
            syn::Item::Type(i) if is_public(&i.vis) => visit(None, &i.ident, &i.attrs),
            syn::Item::Trait(i) if is_public(&i.vis) => {
                visit(None, &i.ident, &i.attrs);
                for item in &i.items {
                    if let syn::TraitItem::Fn(function) = item {
                        visit(Some(&i.ident), &function.sig.ident, &function.attrs);
                    }
                }
            }
            syn::Item::Impl(i) if i.trait_.is_none() => {
                let syn::Type::Path(own) = &*i.self_ty else { continue };
                let of = own.path.segments.last().map(|last| &last.ident);
                for item in &i.items {
                    match item {
                        syn::ImplItem::Fn(f) if is_public(&f.vis) => visit(of, &f.sig.ident, &f.attrs),
                        syn::ImplItem::Const(c) if is_public(&c.vis) => visit(of, &c.ident, &c.attrs),
                        _ => {}
                    }
                }
            }
            // The head of its file documents a module that has one.
            syn::Item::Mod(syn::ItemMod { vis, content: Some((_, inner)), .. }) if is_public(vis) => {
                for_each_public(inner, visit)
            }
            _ => {}
        }
    }
}

#[test]
fn public_items_are_documented() {
    enforce(undocumented);
}

#[test]
fn planted_items_without_a_comment_are_caught() {
    let file = "src/raft/src/x.rs";
    assert_each(
        undocumented,
        &[
            (file, "pub fn f() {}", &["docs@2"]),
            (file, "pub struct S;\nimpl S { pub fn f() {} }", &["docs@2", "docs@3"]),
            (file, "/// Reads the log in order.\npub trait T {\n    fn f();\n}", &["docs@4"]),
            (file, "pub mod inner { pub const A: u8 = 1; }", &["docs@2"]),
        ],
    );
    let re_exported = [("src/raft/src/lib.rs", "mod vote;\npub use vote::Vote;"), ("src/raft/src/vote.rs", "pub struct Vote;")];
    assert_eq!(found_in(undocumented, &re_exported), ["docs@1"]);
}

#[test]
fn documented_and_private_items_pass() {
    let file = "src/raft/src/x.rs";
    assert_each(
        undocumented,
        &[
            (file, "/// Reads the log in order.\npub fn f() {}\nfn g() {}\npub(crate) fn h() {}\npub mod x;", &[]),
            (
                file,
                "/// The vote of a server.\npub struct S {\n    pub term: u64,\n}\nimpl Default for S { fn default() {} }",
                &[],
            ),
            (file, "#[cfg(test)]\nmod tests { pub fn f() {} }", &[]),
            (file, "mod inner { pub fn f() {} }\nstruct S;\nimpl S { pub fn f() {} }", &[]),
            (file, "/// The vote of a server.\npub struct S;\nimpl S { pub fn new() -> S { S } }", &[]),
        ],
    );
    let hidden = [("src/raft/src/lib.rs", "mod vote;"), ("src/raft/src/vote.rs", "pub struct Vote;")];
    assert_eq!(found_in(undocumented, &hidden), [""; 0]);
}
