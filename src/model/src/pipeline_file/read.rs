//! Reads a TOML tree value by value and collects every problem on the way, instead of stopping at the first.
//! Knows TOML, positions and units; knows nothing of what the keys mean.
//!
//! A reader of a section asks for each key that may stand there; [`Section::finish`] then reports the keys nobody asked
//! for. So the vocabulary is written down once, by the code that uses it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    str::FromStr,
};

use toml::de::{DeTable, DeValue};

use crate::pipeline_file::{diagnostic::Diagnostic, quantities::Thousandths};
use crate::units::{Amount, BasisPoints, ByteSize, Millis};

/// More problems than this are not collected: nobody reads them.
pub(super) const DIAGNOSTICS_MAX: usize = 100;

/// The longest text value, in bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// A stretch of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub line: u32,
    pub column: u32,
    pub end_column: u32,
}

/// Where each key path stands in the source. Two files are equal however they were written, so all marks are equal.
#[derive(Clone, Default)]
pub(super) struct Marks(pub BTreeMap<String, Place>);

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Marks(of {} keys)", self.0.len())
    }
}

impl PartialEq for Marks {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Marks {}

impl Marks {
    /// The place of `path`, or of the nearest part of it that was written.
    pub fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.0.get(path) {
                return *place;
            }
            match path.rfind('.') {
                Some(dot) => path = &path[..dot],
                None => return Place::default(),
            }
        }
    }

    /// A problem at `path`.
    pub fn diagnostic(&self, path: &str, code: &'static str, message: String, help: Option<String>) -> Diagnostic {
        let Place { line, column, end_column } = self.place(path);
        Diagnostic { line, column, end_column, path: path.to_owned(), message, help, code }
    }
}

/// Turns byte offsets into lines and columns.
pub(super) struct Source<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Source<'t> {
    pub fn new(text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, line_starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// The place of a span of bytes; one that runs over several lines ends with its first.
    pub fn place(&self, span: Range<usize>) -> Place {
        let (start, end) = (self.text.floor_char_boundary(span.start), self.text.floor_char_boundary(span.end));
        let line = self.line_starts.partition_point(|line_start| *line_start <= start) - 1;
        let line_start = self.line_starts[line];
        let rest = &self.text[line_start..];
        let line_end = line_start + rest.find('\n').unwrap_or(rest.len());
        let column = self.text[line_start..start].chars().count() as u32 + 1;
        let width = self.text[start..end.clamp(start, line_end.max(start))].chars().count() as u32;
        Place { line: line as u32 + 1, column, end_column: column + width.max(1) }
    }
}

/// The state of reading one file.
pub(super) struct Reader<'t> {
    pub source: Source<'t>,
    found: RefCell<Vec<Diagnostic>>,
    marks: RefCell<BTreeMap<String, Place>>,
}

impl<'t> Reader<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { source: Source::new(text), found: RefCell::default(), marks: RefCell::default() }
    }

    /// Adds a problem with a stretch of the source.
    pub fn report(&self, span: Range<usize>, path: &str, code: &'static str, message: String, help: Option<String>) {
        let mut found = self.found.borrow_mut();
        if found.len() < DIAGNOSTICS_MAX {
            let Place { line, column, end_column } = self.source.place(span);
            found.push(Diagnostic { line, column, end_column, path: path.to_owned(), message, help, code });
        }
    }

    /// What was found, and where each key stands.
    pub fn into_parts(self) -> (Vec<Diagnostic>, Marks) {
        (self.found.into_inner(), Marks(self.marks.into_inner()))
    }
}

/// A value with where it stands.
#[derive(Clone)]
pub(super) struct Value<'r> {
    reader: &'r Reader<'r>,
    pub path: String,
    span: Range<usize>,
    key_span: Range<usize>,
    value: &'r DeValue<'r>,
}

impl<'r> Value<'r> {
    /// Adds a problem with this value.
    pub fn report(&self, code: &'static str, message: String, help: Option<String>) {
        self.reader.report(self.span.clone(), &self.path, code, message, help);
    }

    fn wrong<T>(&self, expected: impl fmt::Display) -> Option<T> {
        let found = match self.value {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.report("wrong_type", format!("`{}` must be {expected}, found {found}", self.path), None);
        None
    }

    fn bad<T>(&self, message: impl fmt::Display) -> Option<T> {
        self.report("bad_value", format!("`{}`: {message}", self.path), None);
        None
    }

    fn out_of_range<T>(&self, least: impl fmt::Display, most: impl fmt::Display) -> Option<T> {
        let message = format!("`{}` is out of range", self.path);
        self.report("out_of_range", message, Some(format!("from {least} to {most} is possible")));
        None
    }

    pub fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub fn is_list(&self) -> bool {
        self.value.is_array()
    }

    /// A text that says something.
    pub fn text(&self, example: &str) -> Option<String> {
        match self.value.as_str() {
            None => self.wrong(format_args!("a text such as {example}")),
            Some(text) if text.trim().is_empty() => self.bad(format_args!("an empty text; write one such as {example}")),
            Some(_) => self.any_text(),
        }
    }

    /// A text that may be empty (the value of a variable).
    pub fn any_text(&self) -> Option<String> {
        let Some(text) = self.value.as_str() else { return self.wrong("a text in quotes") };
        if text.contains('\0') {
            return self.bad("a text cannot contain the character NUL");
        }
        if text.len() > TEXT_BYTES_MAX {
            return self.bad(format_args!("longer than {} KiB", TEXT_BYTES_MAX >> 10));
        }
        Some(text.to_owned())
    }

    /// A text that its type can read; the type's own error says what was expected.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&self, example: &str) -> Option<T> {
        match self.value.as_str() {
            None => self.wrong(format_args!("a text such as {example}")),
            Some(text) => text.parse().map_or_else(|error: T::Err| self.bad(clip(&error.to_string())), Some),
        }
    }

    /// A length of time within bounds.
    pub fn duration(&self, least: Millis, most: Millis) -> Option<Millis> {
        let length: Millis = self.parsed(r#""30s""#)?;
        if (least..=most).contains(&length) { Some(length) } else { self.out_of_range(least, most) }
    }

    /// A size within bounds.
    pub fn size(&self, least: ByteSize, most: ByteSize) -> Option<ByteSize> {
        let size: ByteSize = self.parsed(r#""2GiB""#)?;
        if (least..=most).contains(&size) { Some(size) } else { self.out_of_range(least, most) }
    }

    pub fn share(&self) -> Option<BasisPoints> {
        self.parsed(r#""99.5%""#)
    }

    /// A count or a share.
    pub fn amount(&self) -> Option<Amount> {
        match self.value {
            DeValue::Integer(_) => Some(Amount::Count(self.integer(0, u64::from(u32::MAX))? as u32)),
            DeValue::String(_) => self.parsed(""),
            _ => self.wrong(r#"a count such as 3 or a share such as "10%""#),
        }
    }

    pub fn integer(&self, least: u64, most: u64) -> Option<u64> {
        let Some(number) = self.value.as_integer() else {
            return self.wrong(format_args!("a whole number from {least} to {most}"));
        };
        let number = u64::from_str_radix(number.as_str().trim_start_matches('+'), number.radix());
        match number {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => self.out_of_range(least, most),
        }
    }

    /// A number with up to three decimals.
    pub fn decimal(&self, least: Thousandths, most: Thousandths) -> Option<Thousandths> {
        let text = match self.value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return self.wrong("a number such as 1.5"),
        };
        let number: Thousandths = match text.parse() {
            Ok(number) => number,
            Err(error) => return self.bad(error),
        };
        if (least..=most).contains(&number) { Some(number) } else { self.out_of_range(least, most) }
    }

    pub fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong("true or false, without quotes"))
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let listed = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let listed = if words.len() == 1 { listed } else { format!("one of {listed}") };
        let Some(text) = self.value.as_str() else { return self.wrong(listed) };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meaning);
        }
        let help = nearest(text, words.iter().map(|(word, _)| *word)).map(|word| format!("did you mean \"{word}\"?"));
        self.report("bad_value", format!("`{}` must be {listed}", self.path), help);
        None
    }

    /// The items of a list, at most `most`.
    pub fn items(&self, expected: &str, most: usize) -> Option<Vec<Value<'r>>> {
        let Some(list) = self.value.as_array() else { return self.wrong(expected) };
        if list.len() > most {
            self.report("too_many", format!("`{}` has {} entries, at most {most} are possible", self.path, list.len()), None);
            return None;
        }
        let item = |(index, item): (usize, &'r toml::Spanned<DeValue<'r>>)| {
            let path = format!("{}[{index}]", self.path);
            self.reader.marks.borrow_mut().insert(path.clone(), self.reader.source.place(item.span()));
            Value { reader: self.reader, path, span: item.span(), key_span: item.span(), value: item.get_ref() }
        };
        Some(list.iter().enumerate().map(item).collect())
    }

    /// A list of texts that each say something.
    pub fn texts(&self, example: &str, most: usize) -> Option<Vec<String>> {
        let items = self.items(&format!("a list of texts such as {example}"), most)?;
        let count = items.len();
        let texts: Vec<String> = items.iter().filter_map(|item| item.text(example)).collect();
        (texts.len() == count).then_some(texts)
    }

    /// A table.
    pub fn section(&self) -> Option<Section<'r>> {
        let DeValue::Table(table) = self.value else { return self.wrong("a table of keys and values") };
        Some(Section {
            reader: self.reader,
            path: self.path.clone(),
            span: self.key_span.clone(),
            table,
            known: RefCell::default(),
        })
    }

    /// The entries of a table whose keys are names that the file gives, at most `most`. Keys that are no such name are reported.
    pub fn entries<K: FromStr<Err: fmt::Display> + Ord>(&self, most: usize) -> Option<BTreeMap<K, Value<'r>>> {
        let section = self.section()?;
        if section.table.len() > most {
            let message = format!("`{}` has {} entries, at most {most} are possible", self.path, section.table.len());
            self.reader.report(section.span, &self.path, "too_many", message, None);
            return None;
        }
        let mut entries = BTreeMap::new();
        for key in section.table.keys() {
            let name: &str = key.get_ref();
            match (name.parse(), section.get(name)) {
                (Ok(parsed), Some(value)) => drop(entries.insert(parsed, value)),
                (Err(error), _) => {
                    let message = clip(&K::Err::to_string(&error));
                    self.reader.report(key.span(), &join(&self.path, name), "bad_name", message, None);
                }
                (Ok(_), None) => {}
            }
        }
        Some(entries)
    }
}

/// A table of known keys that is being read.
pub(super) struct Section<'r> {
    reader: &'r Reader<'r>,
    pub path: String,
    span: Range<usize>,
    table: &'r DeTable<'r>,
    known: RefCell<BTreeSet<String>>,
}

impl<'r> Section<'r> {
    /// The whole file.
    pub fn root(reader: &'r Reader<'r>, table: &'r DeTable<'r>) -> Self {
        Self { reader, path: String::new(), span: 0..0, table, known: RefCell::default() }
    }

    /// The value of a key that may stand here.
    pub fn get(&self, key: &str) -> Option<Value<'r>> {
        self.known.borrow_mut().insert(key.to_owned());
        let (name, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        let path = join(&self.path, key);
        // A table stands where its name does; a value where the value does.
        let span = if value.get_ref().is_table() { name.span() } else { value.span() };
        self.reader.marks.borrow_mut().insert(path.clone(), self.reader.source.place(span.clone()));
        Some(Value { reader: self.reader, path, span, key_span: name.span(), value: value.get_ref() })
    }

    /// What `read` makes of the key's value, or `default` where there is none or it is wrong (which was then reported).
    pub fn or<T>(&self, key: &str, default: T, read: impl FnOnce(Value<'r>) -> Option<T>) -> T {
        self.get(key).and_then(read).unwrap_or(default)
    }

    /// What `read` makes of the key's value.
    pub fn opt<T>(&self, key: &str, read: impl FnOnce(Value<'r>) -> Option<T>) -> Option<T> {
        self.get(key).and_then(read)
    }

    /// What `read` makes of a key that must stand here.
    pub fn required<T: Default>(&self, key: &str, example: &str, read: impl FnOnce(Value<'r>) -> Option<T>) -> T {
        match self.get(key) {
            Some(value) => read(value).unwrap_or_default(),
            None => {
                let message = format!("`{}` has no `{key}`", self.path);
                self.report("missing_key", message, Some(format!("add a line such as `{key} = {example}`")));
                T::default()
            }
        }
    }

    /// Adds a problem with this section as a whole.
    pub fn report(&self, code: &'static str, message: String, help: Option<String>) {
        self.reader.report(self.span.clone(), &self.path, code, message, help);
    }

    /// Reports each key that nobody asked for, with the known one that is most like it.
    pub fn finish(self) {
        self.report_unknown();
    }

    /// As [`Section::finish`].
    pub fn report_unknown(&self) {
        let known = self.known.borrow();
        for key in self.table.keys().filter(|key| !known.contains(key.get_ref().as_ref())).take(DIAGNOSTICS_MAX) {
            let name = clip(key.get_ref());
            let place = if self.path.is_empty() { String::new() } else { format!(" in `{}`", self.path) };
            let help = match nearest(&name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.iter().cloned().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("unknown key `{name}`{place}");
            self.reader.report(key.span(), &join(&self.path, key.get_ref()), "unknown_key", message, Some(help));
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What people wrote goes into messages, but not by the page.
fn clip(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 200;
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The word most like `given`, if any is like it enough to be what was meant.
pub(super) fn nearest<'w>(given: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // The measure is quadratic in length; nothing long is a slip of the finger.
    if given.len() > 64 {
        return None;
    }
    words
        .map(|word| (strsim::damerau_levenshtein(given, word), word))
        .filter(|(distance, word)| *distance <= (word.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}
