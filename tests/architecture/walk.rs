//! What the code of a file mentions: whole paths, in `use`, in code and among the tokens of macros; calls; names of macros.
//!
//! Paths inside macro calls are found by their tokens, since a macro's body need not parse.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::{spanned::Spanned, visit::Visit};

/// How a path is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A whole path of a `use`, with the name by which it is known from there on.
    Import {
        alias: String,
        public: bool,
    },
    /// `use path::*`.
    Glob {
        public: bool,
    },
    Code,
}

#[derive(Debug)]
pub struct Mention {
    /// The inline modules around it, within the file.
    pub inside: Vec<String>,
    pub names: Vec<String>,
    pub line: usize,
    pub form: Form,
}

/// A call without arguments: `.unwrap()`, `channel()`.
#[derive(Debug)]
pub struct BareCall {
    /// Whether it is a method's.
    pub method: bool,
    pub names: Vec<String>,
    pub line: usize,
}

#[derive(Debug, Default)]
pub struct Walk {
    pub mentions: Vec<Mention>,
    pub bare_calls: Vec<BareCall>,
    /// Names of called macros and their lines.
    pub macros: Vec<(String, usize)>,
    inside: Vec<String>,
}

impl Walk {
    pub fn of(file: &syn::File) -> Self {
        let mut walk = Self::default();
        walk.visit_file(file);
        walk
    }

    fn mention(&mut self, path: &[Ident], form: Form) {
        if let Some(first) = path.first() {
            let names = path.iter().map(Ident::to_string).collect();
            self.mentions.push(Mention { inside: self.inside.clone(), names, line: first.span().start().line, form });
        }
    }

    fn macro_name(&mut self, name: &Ident) {
        self.macros.push((name.to_string(), name.span().start().line));
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_punct = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let follows_dot = at > 0 && is_punct(at - 1, '.');
                    let mut path = vec![first.clone()];
                    while is_punct(at + 1, ':')
                        && is_punct(at + 2, ':')
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        path.push(next.clone());
                        at += 3;
                    }
                    if !follows_dot {
                        self.mention(&path, Form::Code);
                    }
                    if is_punct(at + 1, '!') {
                        self.macro_name(first);
                    }
                    if matches!(tokens.get(at + 1),
                        Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis && g.stream().is_empty())
                    {
                        let names = path.iter().map(Ident::to_string).collect();
                        self.bare_calls.push(BareCall { method: follows_dot, names, line: first.span().start().line });
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

/// A whole path of a `use`, how it ends, and the name by which it is known from there on.
struct Leaf {
    path: Vec<Ident>,
    alias: Option<String>,
}

/// All whole paths of a `use`: `a::{b, c::D as E, f::*}` is `a::b`, `a::c::D`, `a::f` (of which everything).
fn flatten(tree: &syn::UseTree, prefix: &mut Vec<Ident>, found: &mut Vec<Leaf>) {
    let whole = |ident: &Ident| prefix.iter().cloned().chain([ident.clone()]).collect();
    let last = prefix.last().map(Ident::to_string);
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.clone());
            flatten(&path.tree, prefix, found);
            prefix.pop();
        }
        syn::UseTree::Name(name) if name.ident == "self" && !prefix.is_empty() => {
            found.push(Leaf { path: prefix.clone(), alias: last });
        }
        syn::UseTree::Rename(name) if name.ident == "self" && !prefix.is_empty() => {
            found.push(Leaf { path: prefix.clone(), alias: Some(name.rename.to_string()) });
        }
        syn::UseTree::Name(name) => found.push(Leaf { path: whole(&name.ident), alias: Some(name.ident.to_string()) }),
        syn::UseTree::Rename(name) => found.push(Leaf { path: whole(&name.ident), alias: Some(name.rename.to_string()) }),
        syn::UseTree::Glob(_) => found.push(Leaf { path: prefix.clone(), alias: None }),
        syn::UseTree::Group(group) => group.items.iter().for_each(|item| flatten(item, prefix, found)),
    }
}

impl<'ast> Visit<'ast> for Walk {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.inside.push(module.ident.to_string());
        syn::visit::visit_item_mod(self, module);
        self.inside.pop();
    }

    /// `pub(crate)` imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        for Leaf { path, alias } in leaves {
            let form = alias.map_or(Form::Glob { public }, |alias| Form::Import { alias, public });
            self.mention(&path, form);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let idents: Vec<Ident> = path.segments.iter().map(|segment| segment.ident.clone()).collect();
        self.mention(&idents, Form::Code);
        syn::visit::visit_path(self, path);
    }

    fn visit_meta_list(&mut self, list: &'ast syn::MetaList) {
        syn::visit::visit_meta_list(self, list);
        self.tokens(list.tokens.clone());
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        syn::visit::visit_macro(self, call);
        if let Some(last) = call.path.segments.last() {
            self.macro_name(&last.ident);
        }
        self.tokens(call.tokens.clone());
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.args.is_empty() {
            let line = call.method.span().start().line;
            self.bare_calls.push(BareCall { method: true, names: vec![call.method.to_string()], line });
        }
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(function) = &*call.func
            && call.args.is_empty()
        {
            let names = function.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.bare_calls.push(BareCall { method: false, names, line: call.span().start().line });
        }
        syn::visit::visit_expr_call(self, call);
    }
}

#[test]
fn imports_are_flattened_to_whole_paths() {
    let file = syn::parse_file("pub use a::{self, b, c::D as E, f::*};\nmod m { use super::x; }").unwrap();
    let walk = Walk::of(&file);
    let found: Vec<String> = walk.mentions.iter().map(|m| format!("{} {:?}", m.names.join("::"), m.form)).collect();
    let import = |alias: &str, public| format!("{:?}", Form::Import { alias: alias.to_owned(), public });
    assert_eq!(
        found,
        [
            format!("a {}", import("a", true)),
            format!("a::b {}", import("b", true)),
            format!("a::c::D {}", import("E", true)),
            format!("a::f {:?}", Form::Glob { public: true }),
            format!("super::x {}", import("x", false)),
        ]
    );
    assert_eq!(walk.mentions[4].inside, ["m"]);
}
