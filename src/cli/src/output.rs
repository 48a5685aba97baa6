//! Where words go: the result to standard output, everything else to standard error; with colour or without, as text or as JSON.
//! Knows nothing of what is said.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::failure::Result;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal.
    #[default]
    Auto,
    /// Whatever the output is.
    Always,
    /// Not at all.
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

/// How something stands, in colour where there is any. The words beside it say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// At work, or worth a look.
    Notice,
    /// Beside the point.
    Faint,
}

/// The two streams.
pub struct Output {
    /// Whether the result is JSON.
    pub json: bool,
    /// Whether only the result and errors are said.
    pub quiet: bool,
    /// Whether standard error is a terminal on which lines may be drawn again.
    pub live: bool,
    color: bool,
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
}

/// What the streams are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    /// Standard output is a terminal.
    pub out_is_terminal: bool,
    /// Standard error is a terminal that can be drawn on.
    pub err_is_terminal: bool,
    /// NO_COLOR is set and not empty.
    pub no_color: bool,
}

impl Surroundings {
    /// As this process has them.
    pub fn of_process() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal() && !dumb,
            no_color: std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || dumb,
        }
    }

    /// Whether to colour: the choice, else NO_COLOR, else whether both streams are terminals.
    pub fn color(self, choice: ColorChoice) -> bool {
        match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => !self.no_color && self.out_is_terminal && self.err_is_terminal,
        }
    }
}

impl Output {
    /// The process's own streams.
    pub fn of_process(json: bool, quiet: bool, choice: ColorChoice) -> Self {
        let around = Surroundings::of_process();
        Self::new(json, quiet, around, choice, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// Any streams.
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

    /// The result: `value` as JSON, or what `text` makes of it.
    pub fn result(&self, value: &Value, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.json(value) } else { self.print(&text()) }
    }

    /// A JSON object over several lines.
    pub fn json(&self, value: &Value) -> Result<()> {
        self.print(&(serde_json::to_string_pretty(value).map_err(io::Error::other)? + "\n"))
    }

    /// A JSON object on one line, of a kind: `{"type": kind, …}`.
    pub fn json_line(&self, kind: &str, value: Value) -> Result<()> {
        let mut line = json!({ "type": kind });
        match (&mut line, value) {
            (Value::Object(line), Value::Object(fields)) => line.extend(fields.into_iter().filter(|(name, _)| name != "type")),
            (Value::Object(line), other) => drop(line.insert(kind.to_owned(), other)),
            _ => {}
        }
        self.print(&format!("{line}\n"))
    }

    /// Text to standard output.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// A line of progress to standard error.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            self.complain(line);
        }
    }

    /// A line to standard error that even the quiet hear. Where nobody listens any more, nobody is told.
    pub fn complain(&self, line: impl AsRef<str>) {
        let mut err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
        err.write_all(format!("{}\n", line.as_ref()).as_bytes()).and_then(|()| err.flush()).ok();
    }

    /// `text` in the colour of its tone.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Notice => "33",
            Tone::Faint => "2",
        };
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// The state of a build or a rollout in its colour.
    pub fn state(&self, state: &str) -> String {
        self.paint(tone_of(state), state)
    }
}

/// How a state stands.
pub fn tone_of(state: &str) -> Tone {
    match state {
        "deployed" | "ready-to-deploy" | "healthy" | "passed" | "connected" | "pass" => Tone::Good,
        "rolled-back" | "failed" | "build-failed" | "test-failed" | "timed-out" | "exhausted" | "fail" | "lost" => Tone::Bad,
        "canceled" | "superseded" | "preempted" => Tone::Faint,
        _ => Tone::Notice,
    }
}

/// A table without lines, as wide as it needs to be: what is cut or wrapped cannot be searched. Empty: `nothing`.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>, nothing: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    let mut any = false;
    let mut escapes = Vec::new();
    for row in rows {
        any = true;
        // A line break in a cell, say from a commit's message, would make two rows of one.
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

/// Stands for an escape sequence while a table is laid out: it takes no room (U+2060, word joiner), and the layout knows that.
const ESCAPE: char = '\u{2060}';

/// The cell with a mark for each of its escape sequences, which go to `escapes`.
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

/// The text before the first sequence that colours, the sequence, and the text after it.
fn next_escape(text: &str) -> Option<(&str, &str, &str)> {
    let start = text.find("\u{1b}[")?;
    let end = start + text[start..].find('m')? + 1;
    Some((&text[..start], &text[start..end], &text[end..]))
}

/// Names and values below one another, the values aligned; those without a value are left out.
pub fn info<'a>(info: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let info: Vec<_> = info.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = info.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    info.into_iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_only_where_it_is_wanted() {
        let terminal = Surroundings { out_is_terminal: true, err_is_terminal: true, no_color: false };
        assert!(terminal.color(ColorChoice::Auto));
        assert!(!Surroundings { no_color: true, ..terminal }.color(ColorChoice::Auto));
        assert!(!Surroundings { out_is_terminal: false, ..terminal }.color(ColorChoice::Auto));
        assert!(Surroundings { no_color: true, ..terminal }.color(ColorChoice::Always));
        assert!(!terminal.color(ColorChoice::Never));
    }

    #[test]
    fn tables_are_plain_and_aligned() {
        let rows = [["shop".to_owned(), "shop@12".to_owned()], ["billing".to_owned(), "a\nb".to_owned()]];
        insta::assert_snapshot!(table(["PIPELINE", "RELEASE"], rows, "none"), @r"
        PIPELINE  RELEASE
        shop      shop@12
        billing   a b
        ");
        assert_eq!(table(["A"], [], "there is nothing"), "there is nothing\n");
    }

    #[test]
    fn colour_does_not_shift_columns() {
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
        assert_eq!(without, rows(|_, state| format!("{state}, cordoned")), "on a terminal it looks as it does without colour");
    }
}
