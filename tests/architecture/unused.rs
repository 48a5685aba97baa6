//! What is public is used by product code: `pub` hides dead code from the compiler, and tests keep it alive.
//!
//! By counting names across the workspace, so an item that shares its name with a used one is not found. It must not know
//! what the items do.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

use crate::{
    violation::{Violation, enforce, found_in},
    workspace::Workspace,
};

/// Methods that custom asks for beside another one: `len` and `is_empty`.
const CUSTOMARY: &[&str] = &["is_empty"];

fn only_for_tests(workspace: &Workspace) -> Vec<Violation> {
    let mut product = Mentions::default();
    let mut tests = Mentions::default();
    for source in &workspace.sources {
        product.visit_file(&source.product);
        tests.visit_file(&source.ast);
    }
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src()) {
        let mut items = Vec::new();
        public_items(&source.product.items, &mut items);
        for name in items {
            let text = name.to_string();
            if product.names.contains(&text) || CUSTOMARY.contains(&text.as_str()) {
                continue;
            }
            let way_out = if tests.names.contains(&text) {
                "only tests use it: move it to them, or behind `#[cfg(any(test, feature = \"testing\"))]`"
            } else {
                "nothing uses it: delete it"
            };
            let what = format!("`{text}` is public, and {way_out}");
            violations.push(Violation::new(&source.file, name.span().start().line, "unused", what));
        }
    }
    violations
}

/// The names of public items and of public methods of our own.
fn public_items<'a>(items: &'a [syn::Item], found: &mut Vec<&'a syn::Ident>) {
    let is_public = |visibility: &syn::Visibility| matches!(visibility, syn::Visibility::Public(_));
    for item in items {
        match item {
            syn::Item::Const(i) if is_public(&i.vis) && i.ident != "_" => found.push(&i.ident),
            syn::Item::Enum(i) if is_public(&i.vis) => found.push(&i.ident),
            syn::Item::Fn(i) if is_public(&i.vis) => found.push(&i.sig.ident),
            syn::Item::Static(i) if is_public(&i.vis) => found.push(&i.ident),
            syn::Item::Struct(i) if is_public(&i.vis) => found.push(&i.ident),
            syn::Item::Trait(i) if is_public(&i.vis) => found.push(&i.ident),
            syn::Item::Type(i) if is_public(&i.vis) => found.push(&i.ident),
            syn::Item::Impl(i) if i.trait_.is_none() => {
                for item in &i.items {
                    match item {
                        syn::ImplItem::Fn(function) if is_public(&function.vis) => found.push(&function.sig.ident),
                        syn::ImplItem::Const(constant) if is_public(&constant.vis) => found.push(&constant.ident),
                        _ => {}
                    }
                }
            }
            syn::Item::Mod(syn::ItemMod { content: Some((_, inner)), .. }) => public_items(inner, found),
            _ => {}
        }
    }
}

/// Every name that is mentioned, but for definitions, re-exports, and what an item says of itself.
#[derive(Default)]
struct Mentions {
    names: BTreeSet<String>,
    /// The items around, whose own mention does not count.
    own: Vec<String>,
}

impl Mentions {
    fn add(&mut self, name: &str) {
        if !self.own.iter().any(|own| own == name) {
            self.names.insert(name.to_owned());
        }
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.own.push(name);
        visit(self);
        self.own.pop();
    }

    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(ident) => self.add(&ident.to_string()),
                TokenTree::Literal(literal) => self.text(&literal.to_string()),
                TokenTree::Punct(_) => {}
            }
        }
    }

    /// Names within text: of attributes (`default = "Plan::first"`) and of formats (`"{LIMIT}"`).
    fn text(&mut self, text: &str) {
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|name| !name.is_empty()).for_each(|name| self.add(name));
    }
}

impl<'ast> Visit<'ast> for Mentions {
    /// An identifier counts, unless it is a definition's, which the visits below leave out.
    fn visit_ident(&mut self, ident: &'ast syn::Ident) {
        self.add(&ident.to_string());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        match &attribute.meta {
            syn::Meta::List(list) => self.tokens(list.tokens.clone()),
            syn::Meta::NameValue(pair) => self.visit_expr(&pair.value),
            syn::Meta::Path(_) => {}
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if matches!(item.vis, syn::Visibility::Inherited) {
            syn::visit::visit_item_use(self, item);
        }
    }

    /// A function's name is a definition; its body may call another of that name.
    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.visit_generics(&signature.generics);
        signature.inputs.iter().for_each(|input| self.visit_fn_arg(input));
        self.visit_return_type(&signature.output);
    }

    /// A binding is a definition; a constant in a pattern is a mention.
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        if pattern.ident.to_string().starts_with(char::is_uppercase) {
            self.visit_ident(&pattern.ident);
        }
        pattern.subpat.iter().for_each(|(_, inner)| self.visit_pat(inner));
    }

    /// A field is no item.
    fn visit_member(&mut self, _: &'ast syn::Member) {}

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_item_struct(mentions, item));
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_item_enum(mentions, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_item_trait(mentions, item));
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_item_type(mentions, item));
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_item_const(mentions, item));
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_item_static(mentions, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.within(item.ident.to_string(), |mentions| syn::visit::visit_impl_item_const(mentions, item));
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let own = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
            _ => None,
        };
        self.within(own.unwrap_or_default(), |mentions| syn::visit::visit_item_impl(mentions, item));
    }

    /// The names of fields, variants and bindings are definitions.
    fn visit_field(&mut self, field: &'ast syn::Field) {
        field.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
        self.visit_type(&field.ty);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        variant.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
        self.visit_fields(&variant.fields);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        module.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
        module.content.iter().flat_map(|(_, items)| items).for_each(|item| self.visit_item(item));
    }
}

#[test]
fn public_items_are_used_by_product_code() {
    enforce(only_for_tests);
}

#[test]
fn planted_items_without_a_user_are_caught() {
    let cases = [
        "pub fn f() {}",
        "pub fn f() {}\nfn g(f: u8) { let f = s.f; T { f: 1 } }",
        "pub struct S;\nimpl S { fn g() -> S { S } }\nimpl std::fmt::Debug for S { fn fmt(&self) {} }",
        "pub enum E { A }",
        "pub const LIMIT: usize = 1;\nmod a { pub use super::LIMIT; }",
        "/// Uses `f`.\npub fn f() {}",
        "pub fn f() {}\n#[cfg(test)]\nmod tests { fn g() { super::f(); } }",
        "pub fn f() {}\n#[cfg(feature = \"testing\")]\nmod testing { fn g() { super::f(); } }",
        "impl Log {\n    pub fn f() {}\n}",
    ];
    for text in cases {
        let found = found_in(only_for_tests, &[("src/raft/src/x.rs", text)]);
        let [only] = &found[..] else { panic!("{found:?} in {text}") };
        assert!(only.starts_with("unused@"), "{found:?} in {text}");
    }
}

#[test]
fn used_and_private_items_pass() {
    let user = ("src/agent/src/x.rs", "use swell_raft::Log;\nfn g() { Log::open().f(); log!(\"{LIMIT}\", h()) }");
    let cases = [
        "pub struct Log;\nimpl Log { pub fn open() {}\npub fn f(&self) {} }",
        "pub const LIMIT: usize = 1;\npub fn h() {}",
        "fn private() {}\npub(crate) fn inner() {}",
        "#[derive(Deserialize)]\nstruct P {\n    #[serde(default = \"first\")]\n    a: u8,\n}\npub fn first() {}",
        "impl Display for Log { fn unheard_of() {} }",
        "impl Log { pub fn is_empty() {} }",
        "#[cfg(any(test, feature = \"testing\"))]\npub fn plant() {}",
        "pub type Id = u8;\nfn k(_: Id) {}",
    ];
    for text in cases {
        assert_eq!(found_in(only_for_tests, &[user, ("src/raft/src/x.rs", text)]), [""; 0], "{text}");
    }
    let leaf = ("xtask/src/main.rs", "fn main() { swell_raft::f(); }");
    assert_eq!(found_in(only_for_tests, &[leaf, ("src/raft/src/x.rs", "pub fn f() {}")]), [""; 0]);
}
