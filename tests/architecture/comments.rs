//! Doc comments and help texts add what the name does not say: meaning, unit, bound, who sets it.
//!
//! It must not know which names there are; docs.rs sees to it that what needs a comment has one.

use syn::visit::Visit;

use crate::{
    violation::{Violation, assert_each, enforce},
    workspace::{Source, Workspace},
};

/// A comment of fewer words says no more than a name does.
const WORDS_MIN: usize = 3;

/// A first sentence that begins so and ends within this many further words is a riddle: "Whose.", "What was tried."
const RIDDLE_STARTS: &[&str] =
    &["Which", "Whose", "What", "Who", "How", "When", "Where", "Why", "It", "Its", "Of which", "In which", "By whom", "To whom"];
const RIDDLE_WORDS_MAX: usize = 3;

/// The derives of clap that turn doc comments into help texts.
const HELP_DERIVES: &[&str] = &["Parser", "Args", "Subcommand"];

/// What marks a field or variant that has no help text of its own.
const WITHOUT_HELP: &[&str] = &["flatten", "subcommand", "skip", "hide", "external_subcommand"];

/// Consecutive lines of one doc comment.
struct Comment {
    line: usize,
    text: String,
}

/// By lines of text rather than by attributes, so that those in macros are found too.
fn comments_of(text: &str) -> Vec<Comment> {
    let mut comments: Vec<Comment> = Vec::new();
    let mut open: Option<&str> = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let marker = ["///", "//!"].into_iter().find(|marker| line.starts_with(marker) && !line.starts_with("////"));
        if let Some(marker) = marker {
            let text = line[marker.len()..].trim();
            match comments.last_mut().filter(|_| open == Some(marker)) {
                Some(comment) => comment.text = format!("{}\n{text}", comment.text),
                None => comments.push(Comment { line: at + 1, text: text.to_owned() }),
            }
        }
        open = marker;
    }
    comments
}

/// What is wrong with a text, as the way out of it.
fn flaw(text: &str) -> Option<String> {
    let text = text.trim();
    let shown = text.lines().next().unwrap_or_default();
    if text.split_whitespace().count() < WORDS_MIN {
        return Some(format!("\"{shown}\" adds nothing to the name: say meaning, unit, bound or who sets it, or leave it out"));
    }
    is_riddle(text).then(|| format!("\"{shown}\" is a riddle: begin with a noun phrase or a verb in the third person"))
}

fn is_riddle(text: &str) -> bool {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = text.split_once(". ").map_or(text.strip_suffix('.'), |(first, _)| Some(first));
    let Some(sentence) = sentence else { return false };
    let rests = RIDDLE_STARTS.iter().filter_map(|start| sentence.strip_prefix(start));
    rests.filter(|rest| rest.is_empty() || rest.starts_with(' ')).any(|rest| {
        let is_word = |word: &str| word.chars().all(|c| c.is_alphanumeric() || "_'`".contains(c));
        rest.split_whitespace().count() <= RIDDLE_WORDS_MAX && rest.split_whitespace().all(is_word)
    })
}

fn riddles(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src()) {
        let help: Vec<usize> = help_texts(source).into_iter().map(|help| help.line).collect();
        for comment in comments_of(&source.text).iter().filter(|comment| !help.contains(&comment.line)) {
            if let Some(flaw) = flaw(&comment.text) {
                violations.push(Violation::new(&source.file, comment.line, "riddle", flaw));
            }
        }
    }
    violations
}

/// The help text of an argument or a command.
struct Help {
    line: usize,
    /// Nothing where there is none.
    text: Option<String>,
    name: String,
}

fn help_texts(source: &Source) -> Vec<Help> {
    let mut finder = HelpFinder(Vec::new());
    finder.visit_file(&source.product);
    finder.0
}

struct HelpFinder(Vec<Help>);

impl HelpFinder {
    fn add(&mut self, name: &syn::Ident, attributes: &[syn::Attribute]) {
        let settings: Vec<String> = attributes
            .iter()
            .filter(|attribute| ["arg", "command", "clap"].iter().any(|name| attribute.path().is_ident(name)))
            .filter_map(|attribute| attribute.meta.require_list().ok())
            .flat_map(|list| list.tokens.clone())
            .filter_map(|token| if let proc_macro2::TokenTree::Ident(ident) = token { Some(ident.to_string()) } else { None })
            .collect();
        let has = |names: &[&str]| settings.iter().any(|setting| names.contains(&setting.as_str()));
        if has(WITHOUT_HELP) || has(&["help", "about"]) {
            return;
        }
        let docs: Vec<(usize, String)> = attributes.iter().filter_map(doc_line).collect();
        let line = docs.first().map_or_else(|| name.span().start().line, |(line, _)| *line);
        let text = docs.iter().map(|(_, text)| text.trim()).collect::<Vec<_>>().join("\n");
        self.0.push(Help { line, text: (!docs.is_empty()).then_some(text), name: name.to_string() });
    }

    fn add_fields(&mut self, fields: &syn::Fields) {
        for field in fields {
            if let Some(name) = &field.ident {
                self.add(name, &field.attrs);
            }
        }
    }
}

impl<'ast> Visit<'ast> for HelpFinder {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if derives_help(&item.attrs) {
            self.add_fields(&item.fields);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        if derives_help(&item.attrs) {
            for variant in &item.variants {
                self.add(&variant.ident, &variant.attrs);
                self.add_fields(&variant.fields);
            }
        }
    }
}

fn derives_help(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("derive")).any(|attribute| {
        let mut found = false;
        let parsed = attribute.parse_nested_meta(|meta| {
            found |= meta.path.segments.last().is_some_and(|last| HELP_DERIVES.contains(&last.ident.to_string().as_str()));
            Ok(())
        });
        parsed.is_ok() && found
    })
}

fn doc_line(attribute: &syn::Attribute) -> Option<(usize, String)> {
    let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else { return None };
    pair.path.is_ident("doc").then(|| (attribute.pound_token.spans[0].start().line, text.value()))
}

fn help(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src()) {
        for Help { line, text, name } in help_texts(source) {
            let Some(text) = text else {
                let what = format!("`{name}` has no help text: say what it is, to people who have not read the code");
                violations.push(Violation::new(&source.file, line, "help", what));
                continue;
            };
            let first = text.split("\n\n").next().unwrap_or_default();
            if first.split_whitespace().count() < WORDS_MIN || is_riddle(first) {
                let what = format!("\"{first}\" does not explain `{name}`: write it as in \"Name of the target\"");
                violations.push(Violation::new(&source.file, line, "help", what));
            }
        }
    }
    violations
}

#[test]
fn doc_comments_add_to_the_name() {
    enforce(riddles);
}

#[test]
fn help_texts_explain_each_argument() {
    enforce(help);
}

#[test]
fn planted_riddles_are_caught() {
    let file = "src/raft/src/x.rs";
    assert_each(
        riddles,
        &[
            (file, "/// Which.\nstruct S;", &["riddle@2"]),
            (file, "/// Whose.\nstruct S;", &["riddle@2"]),
            (file, "struct S {\n    /// Its name.\n    name: String,\n}", &["riddle@3"]),
            (file, "/// What was tried.\nfn f() {}", &["riddle@2"]),
            (file, "/// Who did it. Never empty for a command of a person.\nfn f() {}", &["riddle@2"]),
            (file, "/// By whom it began.\nfn f() {}", &["riddle@2"]),
            (file, "/// The hash.\nfn f() {}", &["riddle@2"]),
            (file, "/// Memory\nfn f() {}", &["riddle@2"]),
            (file, "names! {\n    /// A build.\n    BuildId\n}", &["riddle@3"]),
            (file, "mod inner {\n    //! Tests.\n}", &["riddle@3"]),
            (file, "/// It.\n/// Whose turn.\nfn f() {}", &["riddle@2"]),
            (file, "#[cfg(test)]\nmod tests {\n    /// Its name.\n    fn f() {}\n}", &["riddle@4"]),
        ],
    );
}

#[test]
fn comments_that_explain_pass() {
    let file = "src/raft/src/x.rs";
    assert_each(
        riddles,
        &[
            (file, "/// Name of the target.\nstruct S;", &[]),
            (file, "/// Which of the two halves is served while the other one is written.\nfn f() {}", &[]),
            (file, "/// Its\n/// upper bound, in bytes; a build that asks for more is refused.\nfn f() {}", &[]),
            (file, "/// How many: at most 16.\nfn f() {}", &[]),
            (file, "// Why.\nfn f() {}", &[]),
            (file, "//////////\nfn f() {}", &[]),
            ("xtask/src/x.rs", "/// Which.\nstruct S;", &[]),
        ],
    );
}

#[test]
fn planted_help_is_caught() {
    let file = "src/cli/src/x.rs";
    assert_each(
        help,
        &[
            (file, "#[derive(Args)]\nstruct A {\n    /// Which\n    name: String,\n}", &["help@4"]),
            (file, "#[derive(Debug, clap::Args)]\nstruct A {\n    #[arg(long)]\n    name: String,\n}", &["help@5"]),
            (
                file,
                "#[derive(Subcommand)]\nenum A {\n    /// Show it\n    Show {\n        /// Whose rollout.\n        id: u8,\n    },\n}",
                &["help@4", "help@6"],
            ),
            (
                file,
                "#[derive(Parser)]\nstruct A {\n    /// Its name\n    ///\n    /// A longer text that is shown by --help.\n    a: u8,\n}",
                &["help@4"],
            ),
        ],
    );
}

#[test]
fn help_that_explains_passes() {
    let file = "src/cli/src/x.rs";
    assert_each(
        help,
        &[
            (file, "#[derive(Args)]\nstruct A {\n    /// Name of the target\n    name: String,\n}", &[]),
            (file, "#[derive(Args)]\nstruct A {\n    #[command(flatten)]\n    globals: Globals,\n}", &[]),
            (file, "#[derive(Args)]\nstruct A {\n    #[arg(long, help = \"Name of the target\")]\n    name: String,\n}", &[]),
            (file, "#[derive(Debug)]\nstruct A {\n    name: String,\n}", &[]),
            (file, "#[derive(Subcommand)]\nenum A {\n    /// Shows a target\n    Show(Show),\n}", &[]),
        ],
    );
}
