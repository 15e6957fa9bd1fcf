//! Tables and paragraphs that fit a terminal.

use terminal_size::{Width, terminal_size};
use unicode_width::UnicodeWidthStr;

/// Width where there is no terminal to ask.
const WIDTH: usize = 120;
/// The last column gets at least this much; where there is less, it goes to lines of its own.
const LEAST: usize = 22;
/// Between columns.
const GAP: usize = 2;

/// Columns to write in: `$COLUMNS`, else the terminal's, else 120.
pub fn width() -> usize {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || terminal_size().map(|(Width(columns), _)| usize::from(columns));
    asked.or_else(terminal).unwrap_or(WIDTH).clamp(40, 1000)
}

/// Rows under headings. The last column takes what is left of the width and wraps.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    optional: &'static [&'static str],
}

impl Table {
    /// An empty one.
    pub fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
            optional: &[],
        }
    }

    /// Columns that a narrow terminal may do without, the first to go first.
    #[must_use]
    pub fn optional(mut self, headings: &'static [&'static str]) -> Self {
        self.optional = headings;
        self
    }

    /// Adds a row, with a cell for each heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes it, each line after `indent` spaces.
    pub fn write(&self, out: &mut String, width: usize, indent: usize) {
        let widest = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            cells
                .map(|cell| cell.width())
                .chain([self.headings[at].width()])
                .max()
                .unwrap_or(0)
        };
        let mut columns: Vec<(usize, usize)> = (0..self.headings.len()).map(|at| (at, widest(at))).collect();
        let before = |columns: &[(usize, usize)]| {
            let all: usize = columns.iter().map(|(_, width)| width + GAP).sum();
            indent + all - columns.last().map_or(0, |(_, width)| width + GAP)
        };
        let enough = columns.last().map_or(0, |(_, width)| LEAST.min(*width));
        for heading in self.optional {
            if before(&columns) + enough > width {
                columns.retain(|(at, _)| self.headings[*at] != *heading);
            }
        }
        let before = before(&columns);
        let Some((last, _)) = columns.pop() else { return };
        let beside = before + enough <= width;
        let line = |out: &mut String, cells: &[String]| {
            let mut text = " ".repeat(indent);
            for (at, width) in &columns {
                let cell = &cells[*at];
                text.push_str(cell);
                text.push_str(&" ".repeat(width - cell.width() + GAP));
            }
            if beside {
                let lines = wrap(&cells[last], width - before);
                text.push_str(lines.first().map_or("", String::as_str));
                push_line(out, &text);
                for more in lines.iter().skip(1) {
                    push_line(out, &format!("{}{more}", " ".repeat(before)));
                }
            } else {
                push_line(out, &text);
                paragraph(out, &cells[last], width, indent + 2 * GAP);
            }
        };
        let headings: Vec<String> = self.headings.iter().map(|heading| (*heading).to_owned()).collect();
        line(out, &headings);
        for row in &self.rows {
            line(out, row);
        }
    }
}

/// Writes a text of any length, each line after `indent` spaces.
pub fn paragraph(out: &mut String, text: &str, width: usize, indent: usize) {
    hanging(out, text, width, indent, 0);
}

/// As [`paragraph`], the lines after the first `more` spaces further in.
pub fn hanging(out: &mut String, text: &str, width: usize, indent: usize, more: usize) {
    let lines = wrap(&clean(text), width.saturating_sub(indent + more).max(LEAST));
    for (at, line) in lines.iter().enumerate() {
        let spaces = if at == 0 { indent } else { indent + more };
        push_line(out, &format!("{}{line}", " ".repeat(spaces)));
    }
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Text from elsewhere shall not move the terminal's cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Breaks at spaces; a word that is longer than a line stays whole, so that it can be copied.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && line.width() + 1 + word.width() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// "1 node", "2 nodes".
pub fn plural(count: usize, word: &str) -> String {
    if count == 1 {
        format!("1 {word}")
    } else {
        format!("{count} {word}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: usize) -> String {
        let mut table = Table::new(&["NAME", "N", "WHY"]);
        table.row([
            "ä".into(),
            "10".into(),
            "because of this and that and much more besides".into(),
        ]);
        table.row(["b\u{1b}[2J".into(), "1".into(), String::new()]);
        let mut out = String::new();
        table.write(&mut out, width, 2);
        out
    }

    #[test]
    fn a_table_fits_its_width() {
        insta::assert_snapshot!([100, 48, 40].map(table).join("\n"));
    }

    #[test]
    fn a_narrow_terminal_does_without_some_columns() {
        let mut table = Table::new(&["A", "B", "C", "D"]).optional(&["C", "B"]);
        table.row(["a", "b".repeat(20).as_str(), "c".repeat(20).as_str(), "d"].map(str::to_owned));
        let headings = |width: usize| {
            let mut out = String::new();
            table.write(&mut out, width, 0);
            out.lines().next().unwrap().split_whitespace().collect::<String>()
        };
        assert_eq!([60, 48, 47, 26, 25].map(headings), ["ABCD", "ABCD", "ABD", "ABD", "AD"]);
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_unless_a_word_is() {
        let mut out = String::new();
        hanging(
            &mut out,
            "one two three registry.example.com/a/word/that/is/too/long four",
            32,
            2,
            4,
        );
        assert_eq!(
            out,
            "  one two three\n      registry.example.com/a/word/that/is/too/long\n      four\n"
        );
    }
}
