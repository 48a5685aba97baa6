//! What a benchmark printed, read and laid out. Knows nothing of where it is kept.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::table::{Align, Table};

/// One measured case.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The benchmark's name, as on the command line.
    pub bench: String,
    /// What was tried, within the benchmark.
    pub case: String,
    /// Our median, in `unit`.
    pub ours: f64,
    /// The peer's median in the same run; none where there is no peer.
    pub peer: Option<f64>,
    /// Ours divided by the peer's.
    pub ratio: Option<f64>,
    /// Such as `ms` or `requests/s`.
    pub unit: String,
    /// How often each side was measured.
    pub runs: u64,
    /// Such as the peer's name and settings, or a goal.
    pub note: String,
}

/// All lines of one run.
#[derive(Debug, Default)]
pub struct Report {
    /// Programs and their versions; none until they were printed.
    pub versions: Option<BTreeMap<String, String>>,
    /// In the order in which they were printed.
    pub rows: Vec<Row>,
}

impl Report {
    /// Takes one line: the versions first, then rows.
    pub fn read(&mut self, line: &str) -> Result<()> {
        if line.trim().is_empty() {
            return Ok(());
        }
        let value: Value = serde_json::from_str(line).with_context(|| format!("`{line}` is not JSON"))?;
        if let Some(versions) = value.get("versions") {
            let versions = versions.as_object().with_context(|| format!("`versions` is no object in `{line}`"))?;
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.versions = Some(versions.iter().map(|(program, version)| (program.clone(), text(version))).collect());
            return Ok(());
        }
        ensure!(self.versions.is_some(), "a row came before `{{\"versions\": …}}`: `{line}`");
        self.rows.push(row(&value).with_context(|| format!("`{line}` is no row"))?);
        Ok(())
    }

    /// A row a case.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&[
            ("case", Align::Left),
            ("ours", Align::Right),
            ("peer", Align::Right),
            ("ratio", Align::Right),
            ("unit", Align::Left),
            ("runs", Align::Right),
            ("note", Align::Left),
        ]);
        for row in &self.rows {
            let peer = row.peer.map_or_else(|| "–".to_owned(), number);
            let ratio = row.ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
            let runs = row.runs.to_string();
            table.push(vec![row.case.clone(), number(row.ours), peer, ratio, row.unit.clone(), runs, row.note.clone()]);
        }
        table
    }
}

fn row(value: &Value) -> Result<Row> {
    let text = |name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("`{name}` is no text"));
    let optional = |name: &str| match &value[name] {
        Value::Null => Ok(None),
        found => found.as_f64().map(Some).with_context(|| format!("`{name}` is no number")),
    };
    Ok(Row {
        bench: text("bench")?,
        case: text("case")?,
        ours: value["ours"].as_f64().context("`ours` is no number")?,
        peer: optional("peer")?,
        ratio: optional("ratio")?,
        unit: text("unit")?,
        runs: value["runs"].as_u64().context("`runs` is no whole number")?,
        note: if value["note"].is_null() { String::new() } else { text("note")? },
    })
}

/// Three significant digits at least, thousands separated.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size == 0.0 || size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { format!("{sign}{grouped}") } else { format!("{sign}{grouped}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::{Report, number};

    const VERSIONS: &str = r#"{"versions": {"etcd": "3.4.23"}}"#;
    const ROW: &str = r#"{"bench": "writes", "case": "3 servers", "ours": 12345.6, "peer": 8000, "ratio": 1.5432, "unit": "commands/s", "runs": 5, "note": "fsync on"}"#;
    const ALONE: &str = r#"{"bench": "writes", "case": "memory", "ours": 0.5, "peer": null, "ratio": null, "unit": "GiB", "runs": 1, "note": null}"#;

    #[test]
    fn report_lays_out_rows_with_and_without_peer() {
        let mut report = Report::default();
        for line in [VERSIONS, "", ROW, ALONE] {
            report.read(line).unwrap();
        }
        assert_eq!(report.versions.as_ref().unwrap()["etcd"], "3.4.23");
        assert_eq!(
            report.table().text(),
            "case         ours   peer  ratio  unit        runs  note\n\
             3 servers  12,346  8,000   1.54  commands/s     5  fsync on\n\
             memory      0.500      –      –  GiB            1\n"
        );
    }

    #[test]
    fn report_refuses_rows_before_versions_and_lines_that_are_no_rows() {
        let mut report = Report::default();
        assert!(report.read(ROW).unwrap_err().to_string().contains("before"));
        report.read(VERSIONS).unwrap();
        let without_case = ROW.replace("\"case\"", "\"was\"");
        for wrong in ["starting etcd", r#"{"bench": "writes"}"#, without_case.as_str()] {
            assert!(report.read(wrong).is_err(), "{wrong}");
        }
        assert!(report.rows.is_empty());
    }

    #[test]
    fn numbers_keep_three_digits_and_separate_thousands() {
        let shown = [0.0, 0.01234, 1.2345, 12.345, 123.45, 1_234.5, 1_234_567.0, -12_345.0].map(number);
        assert_eq!(shown, ["0", "0.012", "1.23", "12.3", "123", "1,234", "1,234,567", "-12,345"]);
    }
}
