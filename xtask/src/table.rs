//! Tables as text and as Markdown. Knows nothing of what the cells mean.

/// The side of its column on which a cell stands: left for words, right for numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Align {
    Left,
    Right,
}

/// A table; every row has as many cells as there are columns.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table without rows.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Appends a row: missing cells are empty, cells beyond the last column are dropped.
    pub fn push(&mut self, mut cells: Vec<String>) {
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let of = |index: usize| {
            let cells = self.rows.iter().map(|row| row[index].chars().count());
            cells.chain([self.columns[index].0.chars().count()]).max().unwrap_or_default()
        };
        (0..self.columns.len()).map(of).collect()
    }

    /// Lines for a terminal, two spaces between columns, none at the end of a line.
    pub fn text(&self) -> String {
        let widths = self.widths();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).zip(&self.columns);
            let padded: Vec<String> = padded.map(|((cell, width), (_, align))| pad(cell, *width, *align)).collect();
            padded.join("  ").trim_end().to_owned() + "\n"
        };
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rows = self.rows.iter().map(|row| line(row));
        [line(&header)].into_iter().chain(rows).collect()
    }

    /// A Markdown table; a `|` in a cell is escaped.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let header = line(self.columns.iter().map(|(name, _)| (*name).to_owned()).collect());
        let rule = |(_, align): &(&str, Align)| if *align == Align::Right { "---:" } else { "---" }.to_owned();
        let rule = line(self.columns.iter().map(rule).collect());
        let rows = self.rows.iter().map(|row| line(row.iter().map(|cell| cell.replace('|', "\\|")).collect()));
        [header, rule].into_iter().chain(rows).collect()
    }
}

fn pad(cell: &str, width: usize, align: Align) -> String {
    match align {
        Align::Left => format!("{cell:<width$}"),
        Align::Right => format!("{cell:>width$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Align, Table};

    fn table() -> Table {
        let mut table = Table::new(&[("NAME", Align::Left), ("COUNT", Align::Right), ("NOTE", Align::Left)]);
        table.push(vec!["a|b".into(), "1,200".into(), "first".into()]);
        table.push(vec!["longer".into(), "7".into()]);
        table
    }

    #[test]
    fn text_table_aligns_columns_and_ends_without_spaces() {
        assert_eq!(table().text(), "NAME    COUNT  NOTE\na|b     1,200  first\nlonger      7\n");
    }

    #[test]
    fn markdown_table_escapes_bars() {
        let expected = "| NAME | COUNT | NOTE |\n| --- | ---: | --- |\n| a\\|b | 1,200 | first |\n| longer | 7 |  |\n";
        assert_eq!(table().markdown(), expected);
    }
}
