//! What is wrong with a pipeline file, and where: one problem each, shown with its line. Knows nothing of the rules.

use std::fmt::Write as _;

use serde::Serialize;

/// One problem in a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The line, from 1; 0 when it is not known (a file read back from state has no lines).
    pub line: u32,
    /// The first column, from 1, in characters.
    pub column: u32,
    /// The column after the last one; on the same line, greater than `column`.
    pub end_column: u32,
    /// Where in the tree of keys: `service.api.health.port`. Empty for the file as a whole.
    pub path: String,
    /// What is wrong: lower case, without full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The kind of problem: stable, for programs.
    pub code: &'static str,
}

impl Diagnostic {
    /// The problem as people read it, with its line from `text` and a caret below:
    ///
    /// ```text
    /// error[unknown_key]: unknown key `memroy` in `build`
    ///   --> swell.toml:4:1
    ///    |
    ///  4 | memroy = "4GiB"
    ///    | ^^^^^^
    ///    = help: did you mean `memory`?
    /// ```
    ///
    /// Plain text, ends with a line break. `text` must be what was parsed.
    pub fn render(&self, file_name: &str, text: &str) -> String {
        let mut out = format!("error[{}]: {}\n", self.code, self.message);
        let source_line = self.line.checked_sub(1).and_then(|index| text.lines().nth(index as usize));
        // Writing to a String cannot fail.
        let mut put = |line: std::fmt::Arguments<'_>| out.write_fmt(line).unwrap_or_default();
        match source_line {
            Some(source_line) => {
                let number = self.line.to_string();
                let margin = " ".repeat(number.len() + 1);
                let (shown, pad) = clip(source_line, self.column);
                let width = (self.end_column.saturating_sub(self.column)).clamp(1, SHOWN_COLUMNS_MAX as u32) as usize;
                let width = width.min(shown.chars().count().saturating_sub(pad.chars().count()).max(1));
                put(format_args!("{margin}--> {file_name}:{}:{}\n{margin} |\n", self.line, self.column));
                put(format_args!(" {number} | {shown}\n{margin} | {pad}{}\n", "^".repeat(width)));
                if let Some(help) = &self.help {
                    put(format_args!("{margin} = help: {help}\n"));
                }
            }
            None => {
                put(format_args!("  --> {file_name}\n"));
                if let Some(help) = &self.help {
                    put(format_args!("  = help: {help}\n"));
                }
            }
        }
        out
    }
}

/// Longer lines are cut around the problem.
const SHOWN_COLUMNS_MAX: usize = 160;

/// The part of the line to show, and white space as wide as what stands before the column in it. Tabs stay tabs, so that
/// the caret stands right whatever the terminal's tab stops; other control characters are not sent to a terminal.
fn clip(line: &str, column: u32) -> (String, String) {
    let column = (column.max(1) - 1) as usize;
    let skipped = if column > SHOWN_COLUMNS_MAX * 3 / 4 { column - SHOWN_COLUMNS_MAX / 4 } else { 0 };
    let visible = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    let shown: String = line.chars().skip(skipped).take(SHOWN_COLUMNS_MAX).map(visible).collect();
    let pad = shown.chars().take(column - skipped).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    (shown, pad)
}

/// All problems one after the other, with how many there are at the end.
pub fn render_all(diagnostics: &[Diagnostic], file_name: &str, text: &str) -> String {
    let mut out: String = diagnostics.iter().map(|diagnostic| diagnostic.render(file_name, text) + "\n").collect();
    let count = diagnostics.len();
    out.push_str(&format!("{file_name}: {count} problem{}\n", if count == 1 { "" } else { "s" }));
    out
}
