//! Differentiable binarisation: the text detector's probability map → quadrilaterals around lines of text.

use super::{
    order::reading_order,
    quad::{Point, grown, hull, measure, min_rect, ordered, spans},
};
use crate::geometry::Quad;
use image::GrayImage;
use imageproc::contours::find_contours;
use rayon::prelude::*;

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

/// A mask is searched in bands of at least this many rows.
const BAND: usize = 64;

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
    let outlines = outlines(&binarised(map, options.threshold), map.width);
    let mut lines: Vec<Quad> = outlines
        .into_par_iter()
        .take(options.max_candidates)
        .filter_map(|points| line_within(points, map, target, options))
        .collect();
    reading_order(&mut lines);
    lines
}

/// The line whose pixels these points enclose, in pixels of the picture; `None` for noise.
fn line_within(points: Vec<Point>, map: &ProbabilityMap<'_>, target: (u32, u32), options: &DbOptions) -> Option<Quad> {
    let outline = min_rect(&hull(points))?;
    if outline.short_side < MIN_SIDE || mean_inside(map, &outline.corners) < options.box_threshold {
        return None;
    }
    let (area, length) = measure(&outline.corners);
    // Clipper works on whole pixels and cuts fractions off.
    let whole = outline.corners.map(|corner| corner.map(f64::trunc));
    let line = min_rect(&hull(grown(&whole, area * options.unclip_ratio / length)))?;
    if line.short_side < MIN_SIDE + 2.0 {
        return None;
    }
    placed(line.corners, map, target)
}

/// The outlines in a mask of `width` bytes a row, inner ones as well, from top to bottom: of each the [`outermost`] points. Bands
/// between empty rows are searched side by side, for no outline crosses one.
fn outlines(mask: &[u8], width: u32) -> Vec<Vec<Point>> {
    let in_band = |(top, rows): (usize, &[u8])| -> Vec<Vec<Point>> {
        let height = (rows.len() / width as usize) as u32;
        let band = GrayImage::from_raw(width, height, rows.to_vec()).expect("whole rows");
        let contours = find_contours::<i32>(&band);
        contours
            .iter()
            .map(|contour| outermost(contour.points.iter().map(|point| (point.x, point.y + top as i32))))
            .collect()
    };
    let found: Vec<_> = bands(mask, width as usize).into_par_iter().map(in_band).collect();
    found.into_iter().flatten().collect()
}

/// A mask of `width` bytes a row cut at empty rows: the first row of each band, and its rows.
fn bands(mask: &[u8], width: usize) -> Vec<(usize, &[u8])> {
    let (mut bands, mut top) = (Vec::new(), 0);
    for (at, row) in mask.chunks_exact(width).enumerate() {
        if at - top >= BAND && row.iter().all(|&on| on == 0) {
            bands.push((top, &mask[top * width..at * width]));
            top = at;
        }
    }
    bands.push((top, &mask[top * width..]));
    bands
}

/// Of the points of each column the highest and the lowest, from left to right: no other can be a corner of a hull.
fn outermost(points: impl Iterator<Item = (i32, i32)> + Clone) -> Vec<Point> {
    let xs = points.clone().map(|(x, _)| x);
    let (Some(left), Some(right)) = (xs.clone().min(), xs.max()) else {
        return Vec::new();
    };
    let mut columns = vec![(i32::MAX, i32::MIN); (right - left) as usize + 1];
    for (x, y) in points {
        let (high, low) = &mut columns[(x - left) as usize];
        (*high, *low) = ((*high).min(y), (*low).max(y));
    }
    let columns = (left..).zip(columns).filter(|(_, (high, low))| high <= low);
    columns
        .flat_map(|(x, (high, low))| [high, low].map(|y| [f64::from(x), f64::from(y)]))
        .collect()
}

/// A byte for each pixel, not 0 where it is above the threshold; each such pixel is grown by one right and down (a 2 × 2 dilation).
fn binarised(map: &ProbabilityMap<'_>, threshold: f32) -> Vec<u8> {
    let width = map.width as usize;
    let mut mask = vec![0_u8; map.values.len()];
    let mut grown = vec![0_u8; width];
    let on = |value: f32| if value > threshold { 255 } else { 0 };
    // Row by row and without a branch, because this goes over every pixel of a screen.
    for (y, row) in map.values.chunks_exact(width).enumerate() {
        for (grown, &value) in grown.iter_mut().zip(row) {
            *grown = on(value);
        }
        for (grown, &before) in grown.iter_mut().skip(1).zip(row) {
            *grown |= on(before);
        }
        let (this, below) = mask[y * width..].split_at_mut(width);
        for (mask, &grown) in this.iter_mut().zip(&grown) {
            *mask |= grown;
        }
        for (mask, &grown) in below.iter_mut().zip(&grown) {
            *mask |= grown;
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
    fn a_pixel_grows_right_and_down_and_not_over_the_border() {
        let mut values = vec![0.0; 12];
        for at in [1, 7, 11] {
            values[at] = 0.5;
        }
        let map = ProbabilityMap {
            values: &values,
            width: 4,
            height: 3,
        };
        let rows = [[0_u8, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]];
        assert_eq!(
            binarised(&map, 0.3),
            rows.concat().iter().map(|on| on * 255).collect::<Vec<u8>>()
        );
        assert!(binarised(&map, 0.5).iter().all(|&on| on == 0));
    }

    #[test]
    fn bands_and_outermost_points_change_no_hull() {
        let (width, height) = (50_u32, 400_u32);
        // Blobs with holes, some of which touch the border, and a few empty rows between.
        let on = |x: u32, y: u32| {
            let mixed = (x / 3).wrapping_mul(0x9E37_79B1) ^ (y / 2).wrapping_mul(0x85EB_CA77);
            let noise = (mixed ^ (mixed >> 15)).wrapping_mul(0x2C1B_3C6D) >> 16;
            y % 37 < 33 && noise % 11 > 4
        };
        let mask: Vec<u8> = (0..width * height)
            .map(|at| if on(at % width, at / width) { 255 } else { 0 })
            .collect();
        assert!(bands(&mask, width as usize).len() > 3);
        let rows: usize = bands(&mask, width as usize).iter().map(|(_, rows)| rows.len()).sum();
        assert_eq!(rows, mask.len());
        let whole = find_contours::<i32>(&GrayImage::from_raw(width, height, mask.clone()).unwrap());
        let found = outlines(&mask, width);
        assert_eq!(found.len(), whole.len());
        assert!(found.len() > 100 && whole.iter().any(|contour| contour.parent.is_some()));
        for (found, contour) in found.into_iter().zip(whole) {
            let all = contour
                .points
                .iter()
                .map(|point| [f64::from(point.x), f64::from(point.y)]);
            assert_eq!(hull(found), hull(all.collect()));
        }
        assert_eq!(outermost(std::iter::empty()), [[0.0; 2]; 0]);
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
