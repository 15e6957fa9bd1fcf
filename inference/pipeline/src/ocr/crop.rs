//! Cuts a line of text out of a picture and turns it upright.

use crate::geometry::Quad;
use image::{Rgb, RgbImage};
use imageproc::geometric_transformations::Projection;

/// A line this many times higher than wide runs vertically and is turned a quarter to the left.
const VERTICAL: f64 = 1.5;

/// The picture within a quadrilateral (corners clockwise from top left, in pixels), at its own size; at least 1 × 1 pixel.
///
/// Upright quads are copied; others are straightened by a perspective transform with bicubic sampling, as rapidocr does.
pub fn cut_line(picture: &RgbImage, quad: &Quad) -> RgbImage {
    let length = |a: [f32; 2], b: [f32; 2]| f64::from(a[0] - b[0]).hypot(f64::from(a[1] - b[1]));
    let width = (length(quad[0], quad[1]).max(length(quad[2], quad[3])) as u32).max(1);
    let height = (length(quad[0], quad[3]).max(length(quad[1], quad[2])) as u32).max(1);
    let line = if is_upright(quad) {
        let x = (quad[0][0].max(0.0) as u32).min(picture.width().saturating_sub(1));
        let y = (quad[0][1].max(0.0) as u32).min(picture.height().saturating_sub(1));
        cut(picture, x, y, width, height)
    } else {
        straightened(picture, quad, width, height)
    };
    if f64::from(line.height()) / f64::from(line.width().max(1)) >= VERTICAL {
        image::imageops::rotate270(&line)
    } else {
        line
    }
}

/// The part of a rectangle that lies in the picture.
fn cut(picture: &RgbImage, x: u32, y: u32, width: u32, height: u32) -> RgbImage {
    let width = width.min(picture.width().saturating_sub(x));
    let height = height.min(picture.height().saturating_sub(y));
    let mut line = RgbImage::new(width, height);
    let row = |pixels: u32| 3 * pixels as usize;
    if width > 0 {
        let rows = picture.as_raw().chunks_exact(row(picture.width())).skip(y as usize);
        for (to, from) in line.chunks_exact_mut(row(width)).zip(rows) {
            to.copy_from_slice(&from[row(x)..row(x + width)]);
        }
    }
    line
}

fn is_upright(quad: &Quad) -> bool {
    let same = |a: f32, b: f32| (a - b).abs() < 1e-3;
    same(quad[0][1], quad[1][1])
        && same(quad[1][0], quad[2][0])
        && same(quad[2][1], quad[3][1])
        && same(quad[3][0], quad[0][0])
        && quad.iter().flatten().all(|value| same(value.fract(), 0.0))
}

fn straightened(picture: &RgbImage, quad: &Quad, width: u32, height: u32) -> RgbImage {
    let (w, h) = (width as f32, height as f32);
    let flat = [(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)];
    let corners = quad.map(|[x, y]| (x, y));
    // Four corners on a line have no transform; nothing can be read there either.
    let Some(to_picture) = Projection::from_control_points(flat, corners) else {
        return RgbImage::new(width, height);
    };
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = to_picture * (x as f32, y as f32);
        bicubic(picture, x, y)
    })
}

/// OpenCV's cubic kernel (a = −0.75) over 4 × 4 pixels; the border pixels go on outside of the picture.
fn bicubic(picture: &RgbImage, x: f32, y: f32) -> Rgb<u8> {
    let (left, top) = (x.floor(), y.floor());
    let (wx, wy) = (weights(x - left), weights(y - top));
    let clamp = |value: f32, size: u32| value.clamp(0.0, size.saturating_sub(1) as f32) as usize;
    let columns: [usize; 4] = std::array::from_fn(|column| 3 * clamp(left + column as f32 - 1.0, picture.width()));
    let row_length = 3 * picture.width() as usize;
    let mut sum = [0.0_f32; 3];
    for (row, wy) in wy.iter().enumerate() {
        let y = clamp(top + row as f32 - 1.0, picture.height());
        let pixels = &picture.as_raw()[y * row_length..][..row_length];
        for (&column, wx) in columns.iter().zip(wx) {
            for (sum, &value) in sum.iter_mut().zip(&pixels[column..column + 3]) {
                *sum += f32::from(value) * wx * wy;
            }
        }
    }
    Rgb(sum.map(|value| value.round().clamp(0.0, 255.0) as u8))
}

fn weights(t: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |d: f32| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient() -> RgbImage {
        RgbImage::from_fn(60, 40, |x, y| Rgb([x as u8 * 4, y as u8 * 6, 7]))
    }

    #[test]
    fn upright_lines_are_copied() {
        let picture = gradient();
        let line = cut_line(&picture, &[[10.0, 5.0], [40.0, 5.0], [40.0, 15.0], [10.0, 15.0]]);
        assert_eq!(line.dimensions(), (30, 10));
        assert_eq!(line, image::imageops::crop_imm(&picture, 10, 5, 30, 10).to_image());
        let over_the_border = cut_line(&picture, &[[50.0, 30.0], [90.0, 30.0], [90.0, 45.0], [50.0, 45.0]]);
        assert_eq!(
            over_the_border,
            image::imageops::crop_imm(&picture, 50, 30, 10, 10).to_image()
        );
    }

    #[test]
    fn vertical_lines_are_turned_left() {
        let picture = gradient();
        let line = cut_line(&picture, &[[10.0, 5.0], [15.0, 5.0], [15.0, 35.0], [10.0, 35.0]]);
        assert_eq!(line.dimensions(), (30, 5));
        // The right column of the source becomes the top row.
        assert_eq!(line.get_pixel(0, 0), picture.get_pixel(14, 5));
    }

    #[test]
    fn slanted_lines_are_straightened() {
        let line = cut_line(&gradient(), &[[10.0, 10.0], [50.0, 14.0], [49.0, 24.0], [9.0, 20.0]]);
        assert_eq!(line.dimensions(), (40, 10));
        let [r, g, _] = line.get_pixel(0, 0).0;
        assert!(r.abs_diff(40) <= 1 && g.abs_diff(60) <= 1, "{r} {g}");
        let sum: f32 = weights(0.3).iter().sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }

    #[test]
    fn any_quad_gives_a_picture() {
        let line = cut_line(&gradient(), &[[59.0, 39.0]; 4]);
        assert!(line.width() >= 1 && line.height() >= 1);
    }
}
