//! Convex outlines: hulls, smallest rectangles, growing and filling. Points are pixels, `f64` within, y downwards.

pub(super) type Point = [f64; 2];

/// A rectangle in any direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct MinRect {
    /// Corners: top left, top right, bottom right, bottom left, judged by x first.
    pub corners: [Point; 4],
    /// Length of the shorter side.
    pub short_side: f64,
}

fn cross(o: Point, a: Point, b: Point) -> f64 {
    (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])
}

/// The convex hull without collinear points, in one direction of turn; fewer than three points when there is no area.
pub(super) fn hull(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    points.dedup();
    if points.len() < 3 {
        return points;
    }
    let half = |points: &mut dyn Iterator<Item = Point>| {
        let mut chain: Vec<Point> = Vec::new();
        for point in points {
            while chain.len() >= 2 && cross(chain[chain.len() - 2], chain[chain.len() - 1], point) <= 0.0 {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
        chain
    };
    let mut hull = half(&mut points.iter().copied());
    hull.extend(half(&mut points.iter().rev().copied()));
    hull
}

/// The rectangle of least area around a hull, one of its sides along a side of the hull.
///
/// Works in `f32` with the direction as difference × (1 ÷ length), like OpenCV: of several upright rectangles the one that
/// rounding made smallest wins, its corners lie a hair below whole pixels, and cutting fractions off then moves the line by a
/// pixel. Exact arithmetic would put one line in twenty a pixel beside where rapidocr finds it.
pub(super) fn min_rect(hull: &[Point]) -> Option<MinRect> {
    if hull.len() < 2 {
        return None;
    }
    let points: Vec<[f32; 2]> = hull.iter().map(|point| point.map(|value| value as f32)).collect();
    let top_edge = points.iter().map(|point| point[1]).fold(f32::INFINITY, f32::min);
    let mut best: Option<(f32, MinRect)> = None;
    for (index, from) in points.iter().enumerate() {
        let to = points[(index + 1) % points.len()];
        // OpenCV's calipers start on the top side, with exact axes.
        let is_top = [from[1], to[1]].iter().all(|y| (y - top_edge).abs() < f32::EPSILON);
        let exact = is_top.then_some([1.0, 0.0]);
        let Some([a, b]) = exact.or_else(|| direction(*from, to)) else {
            continue;
        };
        let along = |point: &&[f32; 2]| f64::from(point[0]) * f64::from(a) + f64::from(point[1]) * f64::from(b);
        let across = |point: &&[f32; 2]| f64::from(point[1]) * f64::from(a) - f64::from(point[0]) * f64::from(b);
        let (left, right) = extremes(&points, along)?;
        let (top, bottom) = extremes(&points, across)?;
        let width = (right[0] - left[0]) * a + (right[1] - left[1]) * b;
        let height = (bottom[1] - top[1]) * a - (bottom[0] - top[0]) * b;
        let area = width * height;
        if best.as_ref().is_some_and(|(least, _)| area >= *least) {
            continue;
        }
        // Where the line through `left` across the direction meets the line through `top` along it.
        let (c, d) = (a * left[0] + left[1] * b, a * top[1] - b * top[0]);
        let scale = 1.0 / (a * a + b * b);
        let corner = [(c * a - d * b) * scale, (a * d + b * c) * scale];
        let (side, down) = ([a * width, b * width], [-b * height, a * height]);
        let centre = [
            corner[0] + (side[0] + down[0]) * 0.5,
            corner[1] + (side[1] + down[1]) * 0.5,
        ];
        // OpenCV hands a rectangle on as centre, sides and angle in degrees, which rounds once more.
        let angle = f64::from(b.atan2(a).to_degrees()).to_radians();
        let (half_cos, half_sin) = (angle.cos() as f32 * 0.5, angle.sin() as f32 * 0.5);
        let (width, height) = (side[0].hypot(side[1]), down[0].hypot(down[1]));
        let top_left = [
            centre[0] + half_sin * height - half_cos * width,
            centre[1] - half_cos * height - half_sin * width,
        ];
        let bottom_left = [
            centre[0] - half_sin * height - half_cos * width,
            centre[1] + half_cos * height - half_sin * width,
        ];
        let opposite = |[x, y]: [f32; 2]| [2.0 * centre[0] - x, 2.0 * centre[1] - y];
        let corners = [top_left, opposite(bottom_left), opposite(top_left), bottom_left];
        let corners = ordered(corners.map(|corner| corner.map(f64::from)));
        best = Some((
            area,
            MinRect {
                corners,
                short_side: f64::from(width.min(height)),
            },
        ));
    }
    best.map(|(_, rect)| rect)
}

/// The unit vector between two points, turned by quarters until it points right or right and down.
fn direction(from: [f32; 2], to: [f32; 2]) -> Option<[f32; 2]> {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let length = f64::from(dx).hypot(f64::from(dy));
    if length <= 0.0 {
        return None;
    }
    let inverse = (1.0 / length) as f32;
    let (mut x, mut y) = (dx * inverse, dy * inverse);
    while !(x > 0.0 && y >= 0.0) {
        (x, y) = (y, -x);
    }
    Some([x, y])
}

/// The points with the least and the greatest key.
fn extremes(points: &[[f32; 2]], key: impl Fn(&&[f32; 2]) -> f64) -> Option<([f32; 2], [f32; 2])> {
    let low = points.iter().min_by(|a, b| key(a).total_cmp(&key(b)))?;
    let high = points.iter().max_by(|a, b| key(a).total_cmp(&key(b)))?;
    Some((*low, *high))
}

/// Corners as top left, top right, bottom right, bottom left: the two leftmost are the left ones.
pub(super) fn ordered(mut corners: [Point; 4]) -> [Point; 4] {
    corners.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [a, b, c, d] = corners;
    let (top_left, bottom_left) = if b[1] < a[1] { (b, a) } else { (a, b) };
    let (top_right, bottom_right) = if d[1] < c[1] { (d, c) } else { (c, d) };
    [top_left, top_right, bottom_right, bottom_left]
}

/// Area and perimeter of a quadrilateral.
pub(super) fn measure(corners: &[Point; 4]) -> (f64, f64) {
    let (mut area, mut length) = (0.0, 0.0);
    for (index, a) in corners.iter().enumerate() {
        let b = corners[(index + 1) % 4];
        area += a[0] * b[1] - b[0] * a[1];
        length += (b[0] - a[0]).hypot(b[1] - a[1]);
    }
    (area.abs() / 2.0, length)
}

/// The outline of a convex polygon grown by `distance` with round corners, on whole pixels as Clipper gives it.
pub(super) fn grown(corners: &[Point; 4], distance: f64) -> Vec<Point> {
    let outline = hull(corners.to_vec());
    // Clipper's default: an arc leaves the true circle by at most a quarter pixel.
    let step = if distance > 0.25 {
        2.0 * (1.0 - 0.25 / distance).acos()
    } else {
        std::f64::consts::FRAC_PI_2
    };
    let mut points = Vec::new();
    for (index, corner) in outline.iter().enumerate() {
        let before = outline[(index + outline.len() - 1) % outline.len()];
        let after = outline[(index + 1) % outline.len()];
        // `hull` turns so that the outside is on the right of each side.
        let outward = |from: Point, to: Point| (from[0] - to[0]).atan2(to[1] - from[1]);
        let start = outward(before, *corner);
        let turn = (outward(*corner, after) - start).rem_euclid(std::f64::consts::TAU);
        let steps = (turn / step).floor() as usize;
        let angles = (0..=steps).map(|at| start + step * at as f64).chain([start + turn]);
        points.extend(angles.map(|angle| {
            [
                (corner[0] + distance * angle.cos()).round(),
                (corner[1] + distance * angle.sin()).round(),
            ]
        }));
    }
    points
}

/// The spans `(y, first x, last x)` of whole pixels in a convex polygon, its border included.
pub(super) fn spans(corners: &[Point; 4]) -> Vec<(i64, i64, i64)> {
    let low = corners.iter().map(|p| p[1]).fold(f64::MAX, f64::min).floor() as i64;
    let high = corners.iter().map(|p| p[1]).fold(f64::MIN, f64::max).ceil() as i64;
    let mut spans = Vec::new();
    for y in low..=high {
        let (mut left, mut right) = (f64::MAX, f64::MIN);
        for (index, a) in corners.iter().enumerate() {
            let b = corners[(index + 1) % 4];
            let row = y as f64;
            if (a[1] - row) * (b[1] - row) > 0.0 {
                continue;
            }
            let crossing = |t: f64| a[0] + (b[0] - a[0]) * t;
            let hits = if (a[1] - b[1]).abs() < f64::EPSILON {
                [a[0], b[0]]
            } else {
                [crossing((row - a[1]) / (b[1] - a[1])); 2]
            };
            for x in hits {
                (left, right) = (left.min(x), right.max(x));
            }
        }
        if left <= right {
            spans.push((y, left.round() as i64, right.round() as i64));
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upright_outline_grows_on_every_side() {
        let corners = [[10.0, 20.0], [50.0, 20.0], [50.0, 30.0], [10.0, 30.0]];
        let (area, length) = measure(&corners);
        assert!((area - 400.0).abs() < 1e-9 && (length - 100.0).abs() < 1e-9);
        let rect = min_rect(&hull(grown(&corners, 6.4))).unwrap();
        let expected = [[4.0, 14.0], [56.0, 14.0], [56.0, 36.0], [4.0, 36.0]];
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-3;
        assert!(
            rect.corners
                .as_flattened()
                .iter()
                .zip(expected.as_flattened())
                .all(near),
            "{rect:?}"
        );
        assert!((rect.short_side - 22.0).abs() < 1e-3);
    }

    #[test]
    fn slanted_outline_keeps_its_direction() {
        let hull = hull(vec![[0.0, 0.0], [30.0, 30.0], [25.0, 35.0], [-5.0, 5.0], [10.0, 12.0]]);
        assert_eq!(hull.len(), 4);
        let rect = min_rect(&hull).unwrap();
        assert!((rect.short_side - 50_f64.sqrt()).abs() < 1e-5, "{rect:?}");
    }

    #[test]
    fn spans_cover_the_border() {
        let spans = spans(&[[1.0, 1.0], [3.0, 1.0], [3.0, 2.0], [1.0, 2.0]]);
        assert_eq!(spans, [(1, 1, 3), (2, 1, 3)]);
    }
}
