//! The detector's input: the screenshot scaled into a box and padded to the model's stride, as ultralytics does.

use crate::{geometry::Rect, resize::resize_exact};
use image::RgbImage;

/// Grey of the padding.
pub const PAD: u8 = 114;

/// How a screenshot is placed in the detector's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Letterbox {
    /// Size of the screenshot in pixels.
    pub source: (u32, u32),
    /// Size of the scaled screenshot within the input, in pixels.
    pub scaled: (u32, u32),
    /// Size of the input in pixels, multiples of the stride.
    pub input: (u32, u32),
    /// Pixels of padding left of and above the scaled screenshot.
    pub offset: (u32, u32),
    /// Input pixels per screenshot pixel.
    pub scale: f64,
}

impl Letterbox {
    /// Fits `width` × `height` into a square of `size` pixels, scaling up or down, then pads each side to the next multiple of
    /// `stride` (the smallest such rectangle, not the square).
    ///
    /// Uneven padding puts the odd pixel right and below: ultralytics rounds half the padding −0.1 and +0.1.
    pub fn new(width: u32, height: u32, size: u32, stride: u32) -> Self {
        let scale = (f64::from(size) / f64::from(height)).min(f64::from(size) / f64::from(width));
        let scaled_side = |side: u32| ((f64::from(side) * scale).round_ties_even() as u32).max(1);
        let (scaled_width, scaled_height) = (scaled_side(width), scaled_side(height));
        // numpy's mod of the gap to the square.
        let gap = |side: u32| f64::from((i64::from(size) - i64::from(side)).rem_euclid(i64::from(stride)) as u32) / 2.0;
        let (gap_x, gap_y) = (gap(scaled_width), gap(scaled_height));
        let before = |gap: f64| (gap - 0.1).round_ties_even().max(0.0) as u32;
        let after = |gap: f64| (gap + 0.1).round_ties_even() as u32;
        Self {
            source: (width, height),
            scaled: (scaled_width, scaled_height),
            input: (
                scaled_width + before(gap_x) + after(gap_x),
                scaled_height + before(gap_y) + after(gap_y),
            ),
            offset: (before(gap_x), before(gap_y)),
            scale,
        }
    }

    /// The input picture.
    pub fn apply(&self, screenshot: &RgbImage) -> RgbImage {
        let scaled = resize_exact(screenshot, self.scaled.0, self.scaled.1);
        if self.scaled == self.input {
            return scaled;
        }
        let row = |pixels: u32| 3 * pixels as usize;
        let mut bytes = vec![PAD; row(self.input.0) * self.input.1 as usize];
        // Whole rows, because this is every pixel of a screen.
        let rows = bytes.chunks_exact_mut(row(self.input.0)).skip(self.offset.1 as usize);
        for (to, from) in rows.zip(scaled.chunks_exact(row(self.scaled.0))) {
            to[row(self.offset.0)..][..from.len()].copy_from_slice(from);
        }
        RgbImage::from_raw(self.input.0, self.input.1, bytes).expect("the bytes of this size")
    }

    /// A box of the input, in its pixels → the same box on the screenshot. It may reach over the edge: suppression
    /// compares uncut boxes, as ultralytics does.
    pub fn to_source(&self, rect: &Rect) -> Rect {
        let (left, top) = (self.offset.0 as f32, self.offset.1 as f32);
        let scale = self.scale as f32;
        Rect::new(
            (rect.x1 - left) / scale,
            (rect.y1 - top) / scale,
            (rect.x2 - left) / scale,
            (rect.y2 - top) / scale,
        )
    }

    /// A box of the screenshot, in its pixels → the same box in the input.
    pub fn to_input(&self, rect: &Rect) -> Rect {
        let (left, top) = (self.offset.0 as f32, self.offset.1 as f32);
        let scale = self.scale as f32;
        Rect::new(
            rect.x1 * scale + left,
            rect.y1 * scale + top,
            rect.x2 * scale + left,
            rect.y2 * scale + top,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn usual_screens() {
        // Sizes that ultralytics logs for these screens.
        let full_hd = Letterbox::new(1920, 1080, 1280, 32);
        assert_eq!(
            (full_hd.scaled, full_hd.input, full_hd.offset),
            ((1280, 720), (1280, 736), (0, 8))
        );
        assert_eq!(Letterbox::new(1280, 960, 1280, 32).input, (1280, 960));
        assert_eq!(Letterbox::new(640, 480, 1280, 32).input, (1280, 960));
        // 1366 × 768 → 1280 × 720 (719.65): 16 rows of padding.
        assert_eq!(Letterbox::new(1366, 768, 1280, 32).offset, (0, 8));
        // An odd row of padding goes below.
        let odd = Letterbox::new(1280, 719, 1280, 32);
        assert_eq!((odd.offset, odd.input), ((0, 8), (1280, 736)));
    }

    #[test]
    fn padding_is_grey_and_the_picture_is_whole() {
        let letterbox = Letterbox::new(1920, 1080, 1280, 32);
        let input = letterbox.apply(&RgbImage::from_pixel(1920, 1080, Rgb([1, 2, 3])));
        assert_eq!(input.dimensions(), (1280, 736));
        for (y, expected) in [(7, [PAD; 3]), (8, [1, 2, 3]), (727, [1, 2, 3]), (728, [PAD; 3])] {
            assert_eq!(input.get_pixel(640, y).0, expected, "{y}");
        }
    }
}
