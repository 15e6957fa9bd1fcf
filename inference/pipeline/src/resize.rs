//! Bilinear resizing that agrees with OpenCV's `INTER_LINEAR`, which the models were trained and are compared with.

use crate::geometry::PixelRect;
use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{CroppedImage, Image, ImageRef},
};
use image::RgbImage;

/// Cuts pieces out of pictures and resizes them, without a copy of the piece between.
#[derive(Debug, Default)]
pub struct Cropper(Resizer);

impl Cropper {
    /// The piece of `picture` at `place`, which must lie in it, as `width` × `height` pixels (at least 1 × 1), as
    /// [`resize_exact`] resizes.
    pub fn crop(&mut self, picture: &RgbImage, place: &PixelRect, width: u32, height: u32) -> RgbImage {
        let (width, height) = (width.max(1), height.max(1));
        let mut target = Image::new(width, height, PixelType::U8x3);
        if place.width > 0 && place.height > 0 {
            let whole = source(picture);
            // Not the option to crop, which mixes in pixels from outside of the piece.
            let piece = CroppedImage::new(&whole, place.x, place.y, place.width, place.height)
                .expect("the piece lies in the picture");
            self.0
                .resize(&piece, &mut target, &bilinear())
                .expect("both sides are 8-bit RGB");
        }
        RgbImage::from_raw(width, height, target.into_vec()).expect("the target was made with this size")
    }
}

fn source(picture: &RgbImage) -> ImageRef<'_> {
    ImageRef::new(picture.width(), picture.height(), picture.as_raw(), PixelType::U8x3)
        .expect("an RgbImage holds three bytes a pixel")
}

fn bilinear() -> ResizeOptions {
    ResizeOptions::new().resize_alg(ResizeAlg::Interpolation(FilterType::Bilinear))
}

/// Resizes to exactly `width` × `height` pixels (at least 1 × 1), without keeping the aspect.
///
/// Two source pixels a side are mixed whatever the scale: no averaging when shrinking, as in OpenCV.
pub fn resize_exact(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (width, height) = (width.max(1), height.max(1));
    if picture.dimensions() == (width, height) || picture.width() == 0 || picture.height() == 0 {
        return if picture.dimensions() == (width, height) {
            picture.clone()
        } else {
            RgbImage::new(width, height)
        };
    }
    let mut target = Image::new(width, height, PixelType::U8x3);
    Resizer::new()
        .resize(&source(picture), &mut target, &bilinear())
        .expect("both sides are 8-bit RGB");
    RgbImage::from_raw(width, height, target.into_vec()).expect("the target was made with this size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// First planes that OpenCV 4.13 gives for the same 7 × 5 picture.
    const UP: [u8; 10] = [65, 89, 120, 151, 172, 198, 217, 80, 51, 75];
    const DOWN: [[u8; 4]; 3] = [[35, 104, 173, 156], [141, 198, 64, 153], [183, 101, 210, 96]];

    fn pattern() -> RgbImage {
        RgbImage::from_fn(7, 5, |x, y| {
            Rgb([0, 1, 2].map(|c| ((x * 37 + y * 61 + c * 83 + x * y * 7) % 256) as u8))
        })
    }

    #[test]
    fn agrees_with_opencv() {
        let up = resize_exact(&pattern(), 10, 8);
        for (x, expected) in UP.iter().enumerate() {
            assert!(up.get_pixel(x as u32, 2).0[0].abs_diff(*expected) <= 1, "{x}");
        }
        let down = resize_exact(&pattern(), 4, 3);
        for (y, row) in DOWN.iter().enumerate() {
            for (x, expected) in row.iter().enumerate() {
                assert!(
                    down.get_pixel(x as u32, y as u32).0[0].abs_diff(*expected) <= 1,
                    "{x} {y}"
                );
            }
        }
    }

    #[test]
    fn a_piece_is_resized_as_if_it_had_been_cut_out_first() {
        let picture = RgbImage::from_fn(90, 70, |x, y| Rgb([x as u8 * 2, y as u8 * 3, (x * y) as u8]));
        let mut cropper = Cropper::default();
        for (x, y, width, height) in [
            (0, 0, 90, 70),
            (13, 7, 20, 31),
            (89, 69, 1, 1),
            (5, 60, 64, 10),
            (20, 3, 64, 64),
        ] {
            let place = PixelRect { x, y, width, height };
            let cut = image::imageops::crop_imm(&picture, x, y, width, height).to_image();
            let expected = resize_exact(&cut, 64, 64);
            assert!(cropper.crop(&picture, &place, 64, 64) == expected, "{place:?}");
        }
        let nothing = PixelRect {
            x: 3,
            y: 3,
            width: 0,
            height: 4,
        };
        assert_eq!(cropper.crop(&picture, &nothing, 2, 2), RgbImage::new(2, 2));
    }

    #[test]
    fn never_empty() {
        assert_eq!(resize_exact(&pattern(), 0, 3).dimensions(), (1, 3));
        assert_eq!(resize_exact(&RgbImage::new(0, 0), 4, 3).dimensions(), (4, 3));
        assert_eq!(resize_exact(&pattern(), 7, 5), pattern());
    }
}
