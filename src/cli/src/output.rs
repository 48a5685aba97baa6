//! Standard output for the result, standard error for everything else; with or without color, as text or JSON. Tables and lists of
//! fields. Knows nothing of what is printed.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::failure::Result;

/// The value of `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal
    #[default]
    Auto,
    /// Also in pipes and files
    Always,
    /// Not even on a terminal
    Never,
}

impl fmt::Display for ColorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

impl FromStr for ColorChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err("write auto, always or never".to_owned()),
        }
    }
}

/// The color of a word. Color never carries meaning alone: the word says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Green: as it should be.
    Good,
    /// Red: not as it should be.
    Bad,
    /// Yellow: in progress, or worth attention.
    Notice,
    /// Dim: of secondary importance.
    Faint,
}

/// Standard output and standard error.
pub struct Output {
    /// `--json`: the result is printed as JSON.
    pub json: bool,
    /// `--quiet`: no progress.
    pub quiet: bool,
    /// Standard error is a terminal on which progress is redrawn in place.
    pub live: bool,
    color: bool,
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
}

/// The terminals and variables that color depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    pub out_is_terminal: bool,
    /// Standard error is a terminal that understands cursor movement.
    pub err_is_terminal: bool,
    /// NO_COLOR is set and not empty, or the terminal is `dumb`.
    pub no_color: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal() && !dumb,
            no_color: std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || dumb,
        }
    }

    /// Whether to use color: by the choice, else by NO_COLOR, else when both streams are terminals.
    pub fn color(self, choice: ColorChoice) -> bool {
        match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => !self.no_color && self.out_is_terminal && self.err_is_terminal,
        }
    }
}

impl Output {
    /// The streams of this process.
    pub fn of_process(json: bool, quiet: bool, choice: ColorChoice) -> Self {
        let around = Surroundings::of_process();
        Self::new(json, quiet, around, choice, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// Other streams, for tests.
    pub fn new(
        json: bool,
        quiet: bool,
        around: Surroundings,
        choice: ColorChoice,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        let color = around.color(choice);
        Self { json, quiet, live: around.err_is_terminal && !quiet, color, out: Mutex::new(out), err: Mutex::new(err) }
    }

    /// Prints the result: `value` as JSON with `--json`, else `text`.
    pub fn result(&self, value: &Value, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.json(value) } else { self.print(&text()) }
    }

    /// Prints JSON over several lines.
    pub fn json(&self, value: &Value) -> Result<()> {
        self.print(&(serde_json::to_string_pretty(value).map_err(io::Error::other)? + "\n"))
    }

    /// Prints a JSON object on one line: `{"type": kind, …}`.
    pub fn json_line(&self, kind: &str, value: Value) -> Result<()> {
        let mut line = json!({ "type": kind });
        match (&mut line, value) {
            (Value::Object(line), Value::Object(fields)) => line.extend(fields.into_iter().filter(|(name, _)| name != "type")),
            (Value::Object(line), other) => drop(line.insert(kind.to_owned(), other)),
            _ => {}
        }
        self.print(&format!("{line}\n"))
    }

    /// Prints text to standard output.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Prints a line of progress to standard error, unless `--quiet`.
    pub fn progress(&self, line: impl AsRef<str>) {
        if !self.quiet {
            self.error_line(line);
        }
    }

    /// Prints a line to standard error, also with `--quiet`. A closed standard error is ignored: there is nowhere left to report it.
    pub fn error_line(&self, line: impl AsRef<str>) {
        let mut err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
        err.write_all(format!("{}\n", line.as_ref()).as_bytes()).and_then(|()| err.flush()).ok();
    }

    /// `text` in the color of its tone.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Notice => "33",
            Tone::Faint => "2",
        };
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// The name of a state in its color.
    pub fn state(&self, state: &str) -> String {
        self.paint(tone_of(state), state)
    }
}

/// The color of a state, by its name in the API.
pub fn tone_of(state: &str) -> Tone {
    match state {
        "deployed" | "ready-to-deploy" | "healthy" | "passed" | "connected" | "pass" => Tone::Good,
        "rolled-back" | "failed" | "build-failed" | "test-failed" | "timed-out" | "exhausted" | "fail" | "lost" => Tone::Bad,
        "canceled" | "superseded" | "preempted" => Tone::Faint,
        _ => Tone::Notice,
    }
}

/// A table without borders, never cut or wrapped, so that it can be searched. Without rows, the text `nothing`.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>, nothing: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    let mut any = false;
    let mut escapes = Vec::new();
    for row in rows {
        any = true;
        // A line break in a cell, such as a commit message, would split the row.
        table.add_row(row.map(|cell| lift_escapes(&cell.replace(['\n', '\r', '\t'], " "), &mut escapes)));
    }
    if !any {
        return format!("{nothing}\n");
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let laid_out: String = table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let mut parts = laid_out.split(ESCAPE);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.zip(escapes).fold(first, |text, (part, escape)| text + &escape + part)
}

/// Replaces an escape sequence while a table is laid out: the word joiner (U+2060) has no width.
const ESCAPE: char = '\u{2060}';

/// The cell with [`ESCAPE`] in place of each escape sequence; the sequences go to `escapes`.
fn lift_escapes(cell: &str, escapes: &mut Vec<String>) -> String {
    let (cell, mut out) = (cell.replace(ESCAPE, ""), String::new());
    let mut rest = cell.as_str();
    while let Some((before, escape, after)) = next_escape(rest) {
        out.extend([before, ESCAPE.encode_utf8(&mut [0; 4])]);
        escapes.push(escape.to_owned());
        rest = after;
    }
    out + rest
}

/// The text before the first color sequence, the sequence, and the text after it.
fn next_escape(text: &str) -> Option<(&str, &str, &str)> {
    let start = text.find("\u{1b}[")?;
    let end = start + text[start..].find('m')? + 1;
    Some((&text[..start], &text[start..end], &text[end..]))
}

/// A line for each name and value, values aligned. Empty values are left out.
pub fn info<'a>(info: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let info: Vec<_> = info.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = info.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    info.into_iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_is_used_only_on_terminals_or_when_forced() {
        let terminal = Surroundings { out_is_terminal: true, err_is_terminal: true, no_color: false };
        assert!(terminal.color(ColorChoice::Auto));
        assert!(!Surroundings { no_color: true, ..terminal }.color(ColorChoice::Auto));
        assert!(!Surroundings { out_is_terminal: false, ..terminal }.color(ColorChoice::Auto));
        assert!(Surroundings { no_color: true, ..terminal }.color(ColorChoice::Always));
        assert!(!terminal.color(ColorChoice::Never));
    }

    #[test]
    fn table_aligns_columns_and_shows_text_when_empty() {
        let rows = [["shop".to_owned(), "shop@12".to_owned()], ["billing".to_owned(), "a\nb".to_owned()]];
        insta::assert_snapshot!(table(["PIPELINE", "RELEASE"], rows, "none"), @r"
        PIPELINE  RELEASE
        shop      shop@12
        billing   a b
        ");
        assert_eq!(table(["A"], [], "there is nothing"), "there is nothing\n");
    }

    #[test]
    fn color_does_not_shift_table_columns() {
        let sink = || Box::new(io::sink());
        let output = Output::new(false, false, Surroundings::default(), ColorChoice::Always, sink(), sink());
        let rows = |state: fn(&Output, &str) -> String| {
            let row = |name: &str, is: &str| [name.to_owned(), state(&output, is), "eu/a".to_owned()];
            table(["TARGET", "STATE", "ZONE"], [row("web-1", "connected"), row("web-2", "lost"), row("web-3", "odd")], "none")
        };
        let painted = rows(|output, state| output.state(state) + ", cordoned");
        assert!(painted.contains("\u{1b}[32mconnected\u{1b}[0m, cordoned  eu/a\n"), "{painted:?}");
        assert!(painted.contains("\u{1b}[31mlost\u{1b}[0m, cordoned       eu/a\n"), "{painted:?}");
        let without =
            ["\u{1b}[32m", "\u{1b}[31m", "\u{1b}[33m", "\u{1b}[0m"].iter().fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(without, rows(|_, state| format!("{state}, cordoned")), "color must not change the layout");
    }
}
