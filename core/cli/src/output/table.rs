//! Columns and fields, lined up.

use super::text::one_line;
use std::fmt;

/// How a column is lined up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl Into<Vec<(&'static str, Align)>>) -> Table {
        Table { columns: columns.into(), rows: Vec::new() }
    }

    /// One more row, with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    /// A row for each item.
    pub fn rows<T, const N: usize>(mut self, items: &[T], cells: impl Fn(&T) -> [String; N]) -> Table {
        items.iter().for_each(|item| self.row(cells(item)));
        self
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let width =
            |column: usize| lines().filter_map(|line| line.get(column)).map(|cell| width_of(cell)).max();
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        for line in lines() {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate().take(self.columns.len()) {
                let padding = " ".repeat(widths[column] - width_of(cell));
                if column > 0 {
                    text.push_str("  ");
                }
                match self.columns[column].1 {
                    Align::Left => text.extend([cell.as_str(), &padding]),
                    Align::Right => text.extend([padding.as_str(), cell]),
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// One object, a line for each thing that is worth saying about it.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    fields: Vec<(&'static str, String)>,
}

impl Fields {
    /// None yet.
    pub fn new() -> Fields {
        Fields::default()
    }

    /// One more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Fields {
        self.fields.push((name, one_line(&value.to_string())));
        self
    }

    /// One more, if there is something to say.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl fmt::Display>) -> Fields {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// A field for each value, the name beside the first only.
    #[must_use]
    pub fn with_each(self, name: &'static str, values: impl IntoIterator<Item = String>) -> Fields {
        let mut names = std::iter::once(name).chain(std::iter::repeat(""));
        values.into_iter().fold(self, |fields, value| fields.with(names.next().unwrap_or(""), value))
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in &self.fields {
            writeln!(f, "{}", format!("{name:width$}  {value}").trim_end())?;
        }
        Ok(())
    }
}

fn width_of(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_to_the_left_numbers_to_the_right() {
        let mut table = Table::new([("NAME", Align::Left), ("SIZE", Align::Right), ("STATE", Align::Left)]);
        table.row(["a".into(), "10GiB".into(), "ok".into()]);
        table.row(["a-longer-name".into(), "4KiB".into(), String::new()]);
        let expected = "\
NAME            SIZE  STATE
a              10GiB  ok
a-longer-name   4KiB
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_table_without_rows_shows_its_headings() {
        assert_eq!(Table::new([("A", Align::Left), ("B", Align::Right)]).to_string(), "A  B\n");
    }

    #[test]
    fn a_hostile_cell_stays_in_its_place() {
        let mut table = Table::new([("A", Align::Left), ("B", Align::Left)]);
        table.row(["x\u{1b}[2J\ny".into(), "z".into()]);
        assert_eq!(table.to_string(), "A              B\nx\\u{1b}[2J\\ny  z\n");
    }

    #[test]
    fn fields_are_lined_up() {
        let fields = Fields::new().with("name", "x").with_some("why", None::<String>);
        let fields = fields.with_each("labels", ["a=1".to_owned(), "b=2".to_owned()]);
        assert_eq!(fields.to_string(), "name    x\nlabels  a=1\n        b=2\n");
    }
}
