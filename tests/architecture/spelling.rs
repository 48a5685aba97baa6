//! American spelling, in comments, strings and the names that our code gives.
//!
//! It must not know the rules of language beyond a list of stems. Names that others gave are theirs.

use crate::{
    names::{definitions_of, words_of},
    violation::{Violation, assert_each, enforce},
    workspace::Workspace,
};

/// British beginnings of words, in small letters, and the American ones.
const STEMS: &[(&str, &str)] = &[
    ("ageing", "aging"),
    ("analyse", "analyze"),
    ("analysing", "analyzing"),
    ("artefact", "artifact"),
    ("behaviour", "behavior"),
    ("cancelled", "canceled"),
    ("cancelling", "canceling"),
    ("catalogue", "catalog"),
    ("centre", "center"),
    ("channelled", "channeled"),
    ("colour", "color"),
    ("defence", "defense"),
    ("favour", "favor"),
    ("grey", "gray"),
    ("honour", "honor"),
    ("judgement", "judgment"),
    ("labelled", "labeled"),
    ("labelling", "labeling"),
    ("licence", "license"),
    ("modelled", "modeled"),
    ("modelling", "modeling"),
    ("neighbour", "neighbor"),
    ("offence", "offense"),
    ("signalled", "signaled"),
    ("signalling", "signaling"),
    ("travelled", "traveled"),
    ("whilst", "while"),
];

/// Stems of verbs that the British write with `-ise`.
const ISE: &[&str] = &[
    "authoris",
    "canonicalis",
    "categoris",
    "customis",
    "deserialis",
    "finalis",
    "generalis",
    "initialis",
    "localis",
    "materialis",
    "maximis",
    "minimis",
    "normalis",
    "optimis",
    "organis",
    "parallelis",
    "prioritis",
    "randomis",
    "recognis",
    "reinitialis",
    "serialis",
    "specialis",
    "stabilis",
    "standardis",
    "summaris",
    "synchronis",
    "tokenis",
    "utilis",
    "visualis",
    "virtualis",
];

/// What follows `-is-` in forms of such a verb, but not in `specialist` or `parallelism`.
const ISE_ENDS: &[&str] = &["e", "ed", "er", "ers", "es", "ing", "ation", "ations", "able"];

/// Directly before a word, these make it part of an address or of somebody else's name.
const NOT_PROSE: &[char] = &['/', '@', '$'];

/// The American form of a British word.
fn american(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    let (un, verb) = word.strip_prefix("un").map_or(("", word.as_str()), |rest| ("un", rest));
    for stem in ISE {
        if let Some(end) = verb.strip_prefix(stem).filter(|end| ISE_ENDS.contains(end)) {
            return Some(format!("{un}{}z{end}", stem.trim_end_matches('s')));
        }
    }
    let stem = STEMS.iter().find(|(british, _)| word.starts_with(british));
    stem.map(|(british, american)| word.replacen(british, american, 1))
}

fn british(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in workspace.sources.iter().filter(|source| source.is_in_src()) {
        let mut report = |line, word: &str| {
            if let Some(american) = american(word) {
                let what = format!("`{word}` is British: write `{american}`");
                violations.push(Violation::new(&source.file, line, "spelling", what));
            }
        };
        for (line, text) in prose_of(&source.text) {
            words_in(&text).for_each(|word| report(line, word));
        }
        for definition in definitions_of(&source.ast) {
            words_of(&definition.name).iter().for_each(|word| report(definition.line, word));
        }
    }
    violations
}

fn words_in(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_alphanumeric();
    text.split(move |c| !is_part(c)).filter(move |word| {
        let before = (word.as_ptr() as usize).checked_sub(text.as_ptr() as usize + 1);
        !word.is_empty() && !before.and_then(|at| text.as_bytes().get(at)).is_some_and(|b| NOT_PROSE.contains(&(*b as char)))
    })
}

/// The comments and string literals of a source, line by line.
fn prose_of(text: &str) -> Vec<(usize, String)> {
    let mut scanner = Scanner { rest: text, line: 1, found: Vec::new(), after_name: false };
    while !scanner.rest.is_empty() {
        scanner.step();
    }
    scanner.found
}

/// Tells comments, strings, characters and lifetimes apart; everything else is code.
struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    found: Vec<(usize, String)>,
    /// Whether what precedes is part of a name, so that an `r` does not begin a raw string.
    after_name: bool,
}

impl Scanner<'_> {
    fn step(&mut self) {
        let after_name = std::mem::take(&mut self.after_name);
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.prose(end);
        } else if self.rest.starts_with("/*") {
            let end = self.rest.find("*/").map_or(self.rest.len(), |at| at + 2);
            self.prose(end);
        } else if let Some(hashes) = (!after_name).then(|| raw_string_hashes(self.rest)).flatten() {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = self.rest.find('"').map_or(0, |at| at + 1);
            let end = self.rest[start..].find(&close).map_or(self.rest.len(), |at| start + at + close.len());
            self.prose(end);
        } else if self.rest.starts_with('"') {
            self.prose(string_end(self.rest));
        } else if let Some(end) = character_end(self.rest) {
            self.skip(end);
        } else {
            let first = self.rest.chars().next().map_or(1, char::len_utf8);
            self.after_name = self.rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            self.skip(first);
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    fn prose(&mut self, bytes: usize) {
        let lines = self.rest[..bytes].split('\n').enumerate().map(|(at, text)| (self.line + at, text.to_owned()));
        self.found.extend(lines);
        self.skip(bytes);
    }
}

/// The number of `#` where a raw string begins.
fn raw_string_hashes(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let quote = after.find(|c| c != '#')?;
    after[quote..].starts_with('"').then_some(quote)
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    let close = text.char_indices().skip(1).find(|(_, c)| {
        let is_close = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        is_close
    });
    close.map_or(text.len(), |(at, _)| at + 1)
}

/// The end of a character literal; nothing for a lifetime.
fn character_end(text: &str) -> Option<usize> {
    let after = text.strip_prefix('\'')?;
    if let Some(escape) = after.strip_prefix('\\') {
        let skipped = escape.chars().next().map_or(0, char::len_utf8);
        return escape[skipped..].find('\'').map(|at| 2 + skipped + at + 1);
    }
    let first = after.chars().next()?.len_utf8();
    after[first..].starts_with('\'').then_some(first + 2)
}

#[test]
fn spelling_is_american() {
    enforce(british);
}

#[test]
fn planted_british_spelling_is_caught() {
    let file = "src/raft/src/x.rs";
    assert_each(
        british,
        &[
            (file, "// The behaviour of others.", &["spelling@2"]),
            (file, "/// Cancelled by a person.\nfn f() {}", &["spelling@2"]),
            (file, "/* a\n licence */", &["spelling@3"]),
            (file, "fn f() { \"not \\\" initialised\"; }", &["spelling@2"]),
            (file, "fn f() { r#\"a\n\"colour\" \"#; }", &["spelling@3"]),
            (file, "fn f() { g('\"'); } // honours", &["spelling@2"]),
            (file, "fn normalise() {}", &["spelling@2"]),
            (file, "enum E { BuildCancelled }", &["spelling@2"]),
            (file, "// unrecognised, unauthorised", &["spelling@2", "spelling@2"]),
            (file, "fn f<'a>(s: &'a str) -> &'a str { s } // catalogue", &["spelling@2"]),
        ],
    );
}

#[test]
fn american_spelling_and_names_of_others_pass() {
    let file = "src/raft/src/x.rs";
    assert_each(
        british,
        &[
            (
                file,
                "// behavior, color, canceled, cancellation, specialist, parallelism, optimistic, analysis, promise, greedy",
                &[],
            ),
            (file, "// see https://example.org/catalogue", &[]),
            (file, "fn f() { token.cancelled(); Serializer::serialise(x); }", &[]),
            (file, "impl Others for S { fn initialise(&self) {} }", &[]),
        ],
    );
}
