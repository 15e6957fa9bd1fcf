//! Differentiable binarisation: the text detector's probability map → quadrilaterals around lines of text.

use super::{
    order::reading_order,
    quad::{Point, grown, hull, measure, min_rect, ordered, spans},
};
use crate::geometry::Quad;
use image::{GrayImage, Luma};
use imageproc::contours::find_contours;

/// rapidocr 3.10's defaults for PP-OCRv6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DbOptions {
    /// A pixel above this probability belongs to text.
    pub threshold: f32,
    /// An outline below this mean probability is no text.
    pub box_threshold: f32,
    /// How far an outline grows: area × ratio ÷ perimeter, in pixels of the map.
    pub unclip_ratio: f64,
    /// Most outlines that are looked at.
    pub max_candidates: usize,
}

impl Default for DbOptions {
    fn default() -> Self {
        Self {
            threshold: 0.3,
            box_threshold: 0.5,
            unclip_ratio: 1.6,
            max_candidates: 1000,
        }
    }
}

/// Outlines with a shorter side than this are noise, in pixels of the map.
const MIN_SIDE: f64 = 3.0;
/// Lines of at most this width or height are noise, in pixels of the picture.
const MIN_LINE: f64 = 3.0;

/// A probability map, row by row.
#[derive(Debug, Clone, Copy)]
pub struct ProbabilityMap<'a> {
    /// `width × height` probabilities, 0–1.
    pub values: &'a [f32],
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Finds lines of text: corners clockwise from top left in pixels of a picture of `target` (width, height), in reading order.
///
/// A map whose length does not fit its size gives no lines.
pub fn find_lines(map: &ProbabilityMap<'_>, target: (u32, u32), options: &DbOptions) -> Vec<Quad> {
    if map.values.len() != map.width as usize * map.height as usize || map.values.is_empty() {
        return Vec::new();
    }
    let mask = binarised(map, options.threshold);
    let mut lines = Vec::new();
    for contour in find_contours::<i32>(&mask).into_iter().take(options.max_candidates) {
        let points = contour
            .points
            .iter()
            .map(|point| [f64::from(point.x), f64::from(point.y)])
            .collect();
        let Some(outline) = min_rect(&hull(points)) else {
            continue;
        };
        if outline.short_side < MIN_SIDE || mean_inside(map, &outline.corners) < options.box_threshold {
            continue;
        }
        let (area, length) = measure(&outline.corners);
        // Clipper works on whole pixels and cuts fractions off.
        let whole = outline.corners.map(|corner| corner.map(f64::trunc));
        let Some(line) = min_rect(&hull(grown(&whole, area * options.unclip_ratio / length))) else {
            continue;
        };
        if line.short_side < MIN_SIDE + 2.0 {
            continue;
        }
        lines.extend(placed(line.corners, map, target));
    }
    reading_order(&mut lines);
    lines
}

/// Pixels above the threshold, each grown by one pixel right and down (a 2 × 2 dilation).
fn binarised(map: &ProbabilityMap<'_>, threshold: f32) -> GrayImage {
    let mut mask = GrayImage::new(map.width, map.height);
    for (row, y) in map.values.chunks_exact(map.width as usize).zip(0_u32..) {
        for (&value, x) in row.iter().zip(0_u32..) {
            if value > threshold {
                for (x, y) in [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)] {
                    if x < map.width && y < map.height {
                        mask.put_pixel(x, y, Luma([255]));
                    }
                }
            }
        }
    }
    mask
}

/// Mean probability of the pixels in an outline.
fn mean_inside(map: &ProbabilityMap<'_>, corners: &[Point; 4]) -> f32 {
    let whole = corners.map(|corner| corner.map(f64::trunc));
    let (mut sum, mut count) = (0.0_f64, 0_usize);
    for (y, left, right) in spans(&whole) {
        if y < 0 || y >= i64::from(map.height) {
            continue;
        }
        let left = left.clamp(0, i64::from(map.width) - 1) as usize;
        let right = right.clamp(0, i64::from(map.width) - 1) as usize;
        let row = y as usize * map.width as usize;
        let pixels = &map.values[row + left..=row + right];
        sum += pixels.iter().copied().map(f64::from).sum::<f64>();
        count += pixels.len();
    }
    if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
}

/// Corners of the map → whole pixels of the picture; `None` for what is too small there.
fn placed(corners: [Point; 4], map: &ProbabilityMap<'_>, (width, height): (u32, u32)) -> Option<Quad> {
    let (width, height) = (f64::from(width), f64::from(height));
    let corners = corners.map(|[x, y]| {
        let x = (x / f64::from(map.width) * width).round_ties_even();
        let y = (y / f64::from(map.height) * height).round_ties_even();
        [
            x.clamp(0.0, (width - 1.0).max(0.0)),
            y.clamp(0.0, (height - 1.0).max(0.0)),
        ]
    });
    let corners = ordered(corners);
    let distance = |a: Point, b: Point| (a[0] - b[0]).hypot(a[1] - b[1]).floor();
    let big = distance(corners[0], corners[1]) > MIN_LINE && distance(corners[0], corners[3]) > MIN_LINE;
    big.then(|| corners.map(|[x, y]| [x as f32, y as f32]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_with(boxes: &[(usize, usize, usize, usize, f32)]) -> Vec<f32> {
        let mut values = vec![0.01; 200 * 100];
        for &(x1, y1, x2, y2, value) in boxes {
            for y in y1..y2 {
                values[y * 200 + x1..y * 200 + x2].fill(value);
            }
        }
        values
    }

    #[test]
    fn a_bar_becomes_a_grown_box() {
        let values = map_with(&[(20, 30, 100, 40, 0.9), (5, 5, 7, 7, 0.9), (120, 60, 180, 70, 0.4)]);
        let map = ProbabilityMap {
            values: &values,
            width: 200,
            height: 100,
        };
        // 80 × 10 pixels, dilated to 81 × 11: outline 80 × 10, distance 800 × 1.6 ÷ 180 = 7.1; the second is too small, the
        // third too faint.
        let lines = find_lines(&map, (400, 200), &DbOptions::default());
        assert_eq!(lines, [[[26.0, 46.0], [214.0, 46.0], [214.0, 94.0], [26.0, 94.0]]]);
    }

    #[test]
    fn an_empty_map_has_no_lines() {
        let values = map_with(&[]);
        let map = ProbabilityMap {
            values: &values,
            width: 200,
            height: 100,
        };
        assert!(find_lines(&map, (200, 100), &DbOptions::default()).is_empty());
        let wrong = ProbabilityMap {
            values: &values,
            width: 7,
            height: 7,
        };
        assert!(find_lines(&wrong, (200, 100), &DbOptions::default()).is_empty());
    }
}
