//! Tables for people.

use hawkeye_pipeline::parser::{Element, ElementKind};
use std::fmt::Write as _;
use unicode_width::UnicodeWidthStr;

const HEADINGS: [&str; 6] = ["ID", "TYPE", "BBOX (X Y W H)", "CLICK", "SCORE", "TEXT"];
/// Columns whose values are flush right.
const RIGHT: [bool; 6] = [true, false, true, false, false, false];

/// One line per element.
pub fn render(elements: &[Element]) -> String {
    let rows: Vec<[String; 6]> = elements.iter().map(cells).collect();
    columns(HEADINGS, RIGHT, &rows)
}

/// The headings and the rows, columns aligned by display width, those of `right` at the right; ends in a line break.
pub fn columns<const N: usize>(headings: [&str; N], right: [bool; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(UnicodeWidthStr::width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut out = String::new();
    line(&mut out, &headings.map(str::to_owned), &widths, right);
    for row in rows {
        line(&mut out, row, &widths, right);
    }
    out
}

fn cells(element: &Element) -> [String; 6] {
    let kind = match element.kind {
        ElementKind::Text => "text",
        ElementKind::Icon => "icon",
        ElementKind::InteractiveElement => "interactive_element",
    };
    let [x, y, width, height] = element.bbox;
    let words = element.caption.as_deref().or(element.content.as_deref()).unwrap_or("-");
    [
        element.element_id.to_string(),
        kind.to_owned(),
        format!("{x:>4} {y:>4} {width:>4} {height:>4}"),
        if element.interactable { "yes" } else { "no" }.to_owned(),
        format!("{:.2}", element.score),
        // What OCR reads shall not move the terminal's cursor.
        words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
    ]
}

fn line<const N: usize>(out: &mut String, cells: &[String; N], widths: &[usize; N], right: [bool; N]) {
    let mut text = String::new();
    for ((cell, width), right) in cells.iter().zip(widths).zip(right) {
        let gap = " ".repeat(width.saturating_sub(cell.width()));
        // Writing to a string cannot fail.
        if right {
            write!(text, "{gap}{cell}  ")
        } else {
            write!(text, "{cell}{gap}  ")
        }
        .unwrap_or_default();
    }
    out.push_str(text.trim_end());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawkeye_pipeline::parser::Source;

    fn element(id: usize, kind: ElementKind, caption: Option<&str>) -> Element {
        Element {
            bbox: [1, 20, 300, 4000],
            center: [151, 2020],
            confidence: 1.0,
            score: 0.876,
            kind,
            caption: caption.map(str::to_owned),
            interactable: kind != ElementKind::Text,
            content: caption.map(str::to_owned),
            source: Source::Icon,
            element_id: id,
        }
    }

    #[test]
    fn columns_line_up_whatever_the_text_is() {
        let table = render(&[
            element(0, ElementKind::Text, Some("Größe 設定")),
            element(12, ElementKind::Icon, None),
            element(3, ElementKind::Text, Some("a\u{1b}[2Jb\nc")),
        ]);
        insta::assert_snapshot!(table);
    }
}
