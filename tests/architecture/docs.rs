//! What a crate offers to others is documented: types, functions, traits, constants and modules.
//!
//! Fields and variants need a comment only where there is something to add, so rustc's `missing_docs` is too coarse.

use crate::{
    violation::{Violation, assert_each, enforce},
    workspace::Workspace,
};

fn undocumented(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src()) {
        visit_items(&source.product.items, &mut |name, attributes| {
            if !attributes.iter().any(|attribute| attribute.path().is_ident("doc")) {
                let what =
                    format!("`{name}` has no doc comment: say what it is for, its unit and bound, and what its errors mean");
                violations.push(Violation::new(&source.file, name.span().start().line, "docs", what));
            }
        });
    }
    violations
}

/// Calls `check` with the name and the attributes of each public item.
fn visit_items(items: &[syn::Item], check: &mut impl FnMut(&syn::Ident, &[syn::Attribute])) {
    let is_public = |visibility: &syn::Visibility| matches!(visibility, syn::Visibility::Public(_));
    for item in items {
        match item {
            syn::Item::Const(i) if is_public(&i.vis) && i.ident != "_" => check(&i.ident, &i.attrs),
            syn::Item::Enum(i) if is_public(&i.vis) => check(&i.ident, &i.attrs),
            syn::Item::Fn(i) if is_public(&i.vis) => check(&i.sig.ident, &i.attrs),
            syn::Item::Static(i) if is_public(&i.vis) => check(&i.ident, &i.attrs),
            syn::Item::Struct(i) if is_public(&i.vis) => check(&i.ident, &i.attrs),
            syn::Item::Type(i) if is_public(&i.vis) => check(&i.ident, &i.attrs),
            syn::Item::Trait(i) if is_public(&i.vis) => {
                check(&i.ident, &i.attrs);
                for item in &i.items {
                    if let syn::TraitItem::Fn(function) = item {
                        check(&function.sig.ident, &function.attrs);
                    }
                }
            }
            syn::Item::Impl(i) if i.trait_.is_none() => {
                for item in &i.items {
                    match item {
                        syn::ImplItem::Fn(function) if is_public(&function.vis) => check(&function.sig.ident, &function.attrs),
                        syn::ImplItem::Const(constant) if is_public(&constant.vis) => check(&constant.ident, &constant.attrs),
                        _ => {}
                    }
                }
            }
            // The head of its file documents a module that has one.
            syn::Item::Mod(syn::ItemMod { content: Some((_, inner)), .. }) => visit_items(inner, check),
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
            (file, "mod inner { pub const A: u8 = 1; }", &["docs@2"]),
        ],
    );
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
        ],
    );
}
