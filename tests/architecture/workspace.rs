//! The manifests and the parsed sources of the repository, or of a planted one.
//!
//! It must not know the rules; it knows only which code exists for tests alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::punctuated::Punctuated;

use crate::violation::Violation;

/// The name that the binary's own package has in messages and tables.
pub const ROOT: &str = "root";

/// Folders beside `src/` that are crates.
pub const LEAVES: &[&str] = &["xtask", "benches", "loadgen", "ui"];

/// A source file.
pub struct Source {
    /// Relative to the repository.
    pub file: String,
    /// `model` for `src/model/src/ids.rs`, `xtask` for `xtask/src/main.rs`, [`ROOT`] for the binary.
    pub crate_name: String,
    /// Within the crate: `src/raft/src/log/mod.rs` is `["log"]`, `src/raft/src/lib.rs` is `[]`.
    pub module: Vec<String>,
    pub text: String,
    pub ast: syn::File,
    /// The same without the items that exist for tests alone; empty in a test's file.
    pub product: syn::File,
    pub is_test: bool,
}

impl Source {
    /// Whether it belongs to a folder of `src/` or to the binary, rather than to a development tool.
    pub fn is_in_src(&self) -> bool {
        self.file.starts_with("src/")
    }

    /// Whether other files are found through it: `lib.rs`, `main.rs` and `mod.rs`.
    pub fn is_table_of_contents(&self) -> bool {
        ["lib.rs", "main.rs", "mod.rs"].contains(&self.file.rsplit('/').next().unwrap_or_default())
    }
}

/// A `Cargo.toml`.
pub struct Manifest {
    /// Relative to the repository.
    pub file: String,
    pub crate_name: String,
    pub text: String,
    pub toml: toml::Table,
}

#[derive(Default)]
pub struct Workspace {
    pub manifests: Vec<Manifest>,
    pub sources: Vec<Source>,
    /// Every crate, with one of its files.
    pub crates: BTreeMap<String, String>,
    /// Files that cannot be parsed.
    pub broken: Vec<Violation>,
}

impl Workspace {
    /// Of the repository that the tests are compiled from; parsing every source takes seconds and can be left out.
    pub fn of_this_repository(with_sources: bool) -> Self {
        let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
        let mut files = Vec::new();
        let mut folders: Vec<PathBuf> = [&["src"], LEAVES].concat().iter().map(|folder| root.join(folder)).collect();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    let is_output = path.ends_with("node_modules") || path.ends_with("target");
                    folders.extend((!is_output).then_some(path));
                } else if path.extension().is_some_and(|extension| extension == "rs") || path.ends_with("Cargo.toml") {
                    files.push(read(&root, &path));
                }
            }
        }
        files.push(read(&root, &root.join("Cargo.toml")));
        let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
        Self::of_files(&files, with_sources)
    }

    /// A repository of these files: their paths, relative to it, and their texts.
    pub fn planted(files: &[(&str, &str)]) -> Self {
        Self::of_files(files, true)
    }

    fn of_files(files: &[(&str, &str)], with_sources: bool) -> Self {
        let mut workspace = Self::default();
        for (file, text) in files {
            workspace.crates.entry(crate_of(file).to_owned()).or_insert_with(|| (*file).to_owned());
            if file.ends_with("Cargo.toml") {
                workspace.add_manifest(file, text);
            } else if with_sources {
                workspace.add_source(file, text);
            }
        }
        workspace.separate_tests();
        workspace
    }

    pub fn manifest_of(&self, crate_name: &str) -> Option<&Manifest> {
        self.manifests.iter().find(|manifest| manifest.crate_name == crate_name)
    }

    fn add_manifest(&mut self, file: &str, text: &str) {
        match text.parse() {
            Ok(toml) => self.manifests.push(Manifest {
                file: file.to_owned(),
                crate_name: crate_of(file).to_owned(),
                text: text.to_owned(),
                toml,
            }),
            Err(error) => self.broken.push(Violation::new(file, 1, "syntax", format!("cannot be parsed: {error}"))),
        }
    }

    fn add_source(&mut self, file: &str, text: &str) {
        match syn::parse_file(text) {
            Ok(ast) => self.sources.push(Source {
                file: file.to_owned(),
                crate_name: crate_of(file).to_owned(),
                module: module_of(file),
                text: text.to_owned(),
                product: ast.clone(),
                ast,
                is_test: is_below_a_folder_of_tests(file),
            }),
            Err(error) => {
                let line = error.span().start().line;
                self.broken.push(Violation::new(file, line, "syntax", format!("cannot be parsed: {error}")));
            }
        }
    }

    /// Together for all files, because one file's `#[cfg(test)] mod x;` makes another a test.
    fn separate_tests(&mut self) {
        let mut test_modules = BTreeSet::new();
        for source in &self.sources {
            collect_test_modules(&source.crate_name, &source.module, &source.ast.items, &mut test_modules);
        }
        for source in &mut self.sources {
            let name = &source.crate_name;
            let below = |depth: usize| test_modules.contains(&(name.clone(), source.module[..depth].to_vec()));
            source.is_test |= (1..=source.module.len()).any(below) || source.ast.attrs.iter().any(is_only_for_tests);
            if source.is_test {
                source.product.items.clear();
                source.product.attrs.clear();
            } else {
                remove_tests(&mut source.product.items);
            }
        }
    }
}

fn read(root: &Path, path: &Path) -> (String, String) {
    let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    (file, fs::read_to_string(path).unwrap())
}

/// The crate that a file, named relative to the repository, belongs to.
pub fn crate_of(file: &str) -> &str {
    let mut parts = file.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("src"), Some("roles"), _) => ROOT,
        (Some("src"), Some(name), Some(_)) => name,
        (Some(leaf), Some(_), _) if LEAVES.contains(&leaf) => leaf,
        _ => ROOT,
    }
}

/// The path of a file's module within its crate.
fn module_of(file: &str) -> Vec<String> {
    let name = crate_of(file);
    let within = if name == ROOT {
        file.strip_prefix("src/").unwrap_or(file)
    } else {
        let start = file.find(name).map_or(0, |at| at + name.len() + 1);
        let within = file.get(start..).unwrap_or(file);
        within.strip_prefix("src/").unwrap_or(within)
    };
    let within = within.strip_suffix(".rs").unwrap_or(within);
    let mut module: Vec<String> = within.split('/').map(str::to_owned).collect();
    let is_root = module.len() == 1 && ["lib", "main"].contains(&module[0].as_str());
    if is_root || module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

fn is_below_a_folder_of_tests(file: &str) -> bool {
    let mut parts = file.split('/');
    let is_crate = match parts.next() {
        Some("src") => parts.next().is_some_and(|folder| folder != "roles"),
        Some(leaf) => LEAVES.contains(&leaf),
        None => false,
    };
    is_crate && matches!(parts.next(), Some("tests" | "benches" | "examples"))
}

/// Finds `#[cfg(test)] mod name;`.
fn collect_test_modules(crate_name: &str, parent: &[String], items: &[syn::Item], found: &mut BTreeSet<(String, Vec<String>)>) {
    for item in items {
        if let syn::Item::Mod(module) = item {
            let path = [parent, &[module.ident.to_string()]].concat();
            if module.attrs.iter().any(is_only_for_tests) {
                found.insert((crate_name.to_owned(), path));
            } else if let Some((_, inner)) = &module.content {
                collect_test_modules(crate_name, &path, inner, found);
            }
        }
    }
}

fn remove_tests(items: &mut Vec<syn::Item>) {
    items.retain(|item| !attributes_of(item).iter().any(is_only_for_tests));
    for item in items {
        match item {
            syn::Item::Mod(syn::ItemMod { content: Some((_, inner)), .. }) => remove_tests(inner),
            syn::Item::Impl(block) => block.items.retain(|item| match item {
                syn::ImplItem::Fn(function) => !function.attrs.iter().any(is_only_for_tests),
                syn::ImplItem::Const(constant) => !constant.attrs.iter().any(is_only_for_tests),
                _ => true,
            }),
            _ => {}
        }
    }
}

/// Whether an attribute is `#[test]`, or a `#[cfg(…)]` that cannot hold outside tests. The feature `testing` is on in
/// dev-dependencies only.
pub fn is_only_for_tests(attribute: &syn::Attribute) -> bool {
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
            syn::Meta::NameValue(pair) => pair.path.is_ident("feature") && is_text(&pair.value, "testing"),
        }
    }
    attribute.path().is_ident("test")
        || (attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Meta>().is_ok_and(|meta| implies_test(&meta)))
}

fn is_text(expression: &syn::Expr, text: &str) -> bool {
    matches!(expression, syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(literal), .. }) if literal.value() == text)
}

pub fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
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
        syn::Item::TraitAlias(i) => &i.attrs,
        syn::Item::Type(i) => &i.attrs,
        syn::Item::Union(i) => &i.attrs,
        syn::Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

#[test]
fn files_belong_to_the_crate_and_the_module_that_their_path_names() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("src/model/src/lib.rs", "model", &[]),
        ("src/model/src/rollout/mod.rs", "model", &["rollout"]),
        ("src/model/src/rollout/plan.rs", "model", &["rollout", "plan"]),
        ("src/main.rs", ROOT, &[]),
        ("src/roles/mod.rs", ROOT, &["roles"]),
        ("src/roles/server.rs", ROOT, &["roles", "server"]),
        ("xtask/src/main.rs", "xtask", &[]),
        ("xtask/src/demo.rs", "xtask", &["demo"]),
    ];
    for (file, crate_name, module) in cases {
        assert_eq!((crate_of(file), module_of(file)), (*crate_name, module.iter().map(|m| (*m).to_owned()).collect()), "{file}");
    }
}

#[test]
fn file_declared_for_tests_is_a_test_and_no_product() {
    let workspace = Workspace::planted(&[
        ("src/raft/src/lib.rs", "pub mod log;\n#[cfg(any(test, feature = \"testing\"))]\npub mod testing;"),
        ("src/raft/src/log.rs", "fn f() {}\n#[cfg(test)]\nmod tests;\n#[cfg(all(test, unix))]\nmod more { fn g() {} }"),
        ("src/raft/src/log/tests.rs", "fn f() {}"),
        ("src/raft/src/testing/deep.rs", "fn f() {}"),
        ("src/raft/tests/whole.rs", "fn f() {}"),
        ("src/raft/src/other/tests.rs", "fn f() {}"),
    ]);
    let tests: Vec<&str> = workspace.sources.iter().filter(|s| s.is_test).map(|s| s.file.as_str()).collect();
    assert_eq!(tests, ["src/raft/src/log/tests.rs", "src/raft/src/testing/deep.rs", "src/raft/tests/whole.rs"]);
    let products: Vec<usize> = workspace.sources.iter().map(|source| source.product.items.len()).collect();
    assert_eq!(products, [1, 1, 0, 0, 0, 1]);
}
