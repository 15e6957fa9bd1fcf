//! Reading order of lines.

use crate::geometry::Quad;

/// Lines whose tops are less than this many pixels below the one before stand on one row (rapidocr's value).
const ROW_GAP: f32 = 10.0;

/// Sorts quads (corners clockwise from top left, in pixels) top to bottom, and left to right within a row.
///
/// A row goes on while each next top is less than 10 pixels below the one before it.
pub fn reading_order(quads: &mut Vec<Quad>) {
    quads.sort_by(|a, b| a[0][1].total_cmp(&b[0][1]));
    let mut row = 0_usize;
    let mut previous: Option<f32> = None;
    let mut keyed: Vec<(usize, Quad)> = quads
        .drain(..)
        .map(|quad| {
            if previous.is_some_and(|top| quad[0][1] - top >= ROW_GAP) {
                row += 1;
            }
            previous = Some(quad[0][1]);
            (row, quad)
        })
        .collect();
    keyed.sort_by(|(row_a, a), (row_b, b)| row_a.cmp(row_b).then(a[0][0].total_cmp(&b[0][0])));
    quads.extend(keyed.into_iter().map(|(_, quad)| quad));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_then_columns() {
        let at = |x: f32, y: f32| [[x, y], [x + 5.0, y], [x + 5.0, y + 5.0], [x, y + 5.0]];
        let mut quads = vec![
            at(50.0, 104.0),
            at(90.0, 0.0),
            at(10.0, 100.0),
            at(5.0, 9.0),
            at(1.0, 114.0),
        ];
        reading_order(&mut quads);
        let tops: Vec<_> = quads.iter().map(|quad| quad[0]).collect();
        assert_eq!(
            tops,
            [[5.0, 9.0], [90.0, 0.0], [10.0, 100.0], [50.0, 104.0], [1.0, 114.0]]
        );
    }
}
