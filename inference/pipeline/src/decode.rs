//! Bytes of a client → an RGB screenshot, within limits that are checked before any pixel is decoded.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::Cursor;

/// Bounds for one screenshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most bytes of the encoded file.
    pub max_bytes: usize,
    /// Most pixels (width × height).
    pub max_pixels: u64,
    /// Longest side in pixels.
    pub max_side: u32,
}

impl Default for DecodeLimits {
    /// 32 MiB, 50 million pixels (6 × 4K), 16384 pixels a side.
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 50_000_000,
            max_side: 16_384,
        }
    }
}

/// Why an image was refused.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not an image that can be read: HTTP 400.
    #[error("bad image: {0}")]
    BadImage(String),
    /// Over a limit: HTTP 413.
    #[error("image too large: {0}")]
    TooLarge(String),
}

/// Decodes PNG, JPEG, WebP or BMP (told by content, not by name) into RGB.
///
/// Alpha is dropped and palettes are expanded, as PIL's `convert("RGB")` does; EXIF rotation is not applied, as PIL does not.
///
/// # Errors
/// [`DecodeError`]; dimensions are checked before pixels are decoded.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let mut decoder = open(bytes, limits)?;
    let (width, height) = decoder.dimensions();
    // 16-bit RGBA is the widest pixel; as much again for the decoder's own buffers.
    let mut budget = Limits::default();
    budget.max_image_width = Some(limits.max_side);
    budget.max_image_height = Some(limits.max_side);
    budget.max_alloc = Some(u64::from(width) * u64::from(height) * 16 + (16 << 20));
    decoder.set_limits(budget).map_err(from_image)?;
    Ok(DynamicImage::from_decoder(decoder).map_err(from_image)?.into_rgb8())
}

/// Width and height of what [`decode`] would give, in pixels, without decoding any.
///
/// # Errors
/// [`DecodeError`].
pub fn dimensions(bytes: &[u8], limits: &DecodeLimits) -> Result<(u32, u32), DecodeError> {
    Ok(open(bytes, limits)?.dimensions())
}

/// Reads the header and checks it.
fn open<'a>(bytes: &'a [u8], limits: &DecodeLimits) -> Result<impl ImageDecoder + 'a, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::BadImage("no data".into()));
    }
    check_bytes(bytes.len(), limits)?;
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| DecodeError::BadImage(e.to_string()))?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Bmp) => {}
        _ => return Err(DecodeError::BadImage("not a PNG, JPEG, WebP or BMP file".into())),
    }
    let decoder = reader.into_decoder().map_err(from_image)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    Ok(decoder)
}

/// The image file in base64 text. Everything up to the first comma is taken for a data-URL prefix and dropped; white space is
/// ignored and padding is optional.
///
/// # Errors
/// [`DecodeError`]; the length is checked before the text is decoded.
pub fn from_base64(text: &str, limits: &DecodeLimits) -> Result<Vec<u8>, DecodeError> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let payload = text.split_once(',').map_or(text, |(_, payload)| payload).trim();
    if payload.bytes().any(|byte| byte.is_ascii_whitespace()) {
        let packed: Vec<u8> = payload.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        check_bytes(packed.len() / 4 * 3, limits)?;
        ENGINE.decode(packed)
    } else {
        check_bytes(payload.len() / 4 * 3, limits)?;
        ENGINE.decode(payload)
    }
    .map_err(|e| DecodeError::BadImage(format!("not base64: {e}")))
}

fn check_bytes(length: usize, limits: &DecodeLimits) -> Result<(), DecodeError> {
    if length > limits.max_bytes {
        return Err(DecodeError::TooLarge(format!(
            "{length} bytes, at most {} are accepted",
            limits.max_bytes
        )));
    }
    Ok(())
}

fn check_size(width: u32, height: u32, limits: &DecodeLimits) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::BadImage("the image has no pixels".into()));
    }
    if width > limits.max_side || height > limits.max_side {
        return Err(DecodeError::TooLarge(format!(
            "{width}×{height} pixels, at most {} a side are accepted",
            limits.max_side
        )));
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(DecodeError::TooLarge(format!(
            "{width}×{height} pixels, at most {} in all are accepted",
            limits.max_pixels
        )));
    }
    Ok(())
}

fn from_image(error: ImageError) -> DecodeError {
    match error {
        ImageError::Limits(limit) => DecodeError::TooLarge(limit.to_string()),
        other => DecodeError::BadImage(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::encode_png;
    use base64::engine::general_purpose::{STANDARD as PADDED, STANDARD_NO_PAD};
    use image::{Rgb, Rgba, RgbaImage};

    fn written(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn reads_four_formats_and_drops_alpha() {
        let picture = DynamicImage::from(RgbaImage::from_pixel(8, 6, Rgba([200, 100, 50, 0])));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
            let decoded = decode(&written(&picture, format), &DecodeLimits::default()).unwrap();
            assert_eq!(
                (decoded.dimensions(), decoded.get_pixel(3, 3)),
                ((8, 6), &Rgb([200, 100, 50])),
                "{format:?}"
            );
        }
        let jpeg = written(&DynamicImage::from(picture.to_rgb8()), ImageFormat::Jpeg);
        assert_eq!(decode(&jpeg, &DecodeLimits::default()).unwrap().dimensions(), (8, 6));
    }

    #[test]
    fn base64_comes_in_many_dresses() {
        let file = encode_png(&RgbImage::new(3, 2)).unwrap();
        let plain = PADDED.encode(&file);
        let broken = plain
            .as_bytes()
            .chunks(20)
            .map(|line| String::from_utf8_lossy(line).into_owned() + "\r\n")
            .collect();
        let data_url = format!("data:image/png;base64,{plain}");
        for text in [plain, STANDARD_NO_PAD.encode(&file), data_url, broken] {
            assert_eq!(from_base64(&text, &DecodeLimits::default()).unwrap(), file, "{text}");
        }
        assert_eq!(dimensions(&file, &DecodeLimits::default()).unwrap(), (3, 2));
        let error = from_base64("§§", &DecodeLimits::default()).unwrap_err();
        assert!(matches!(error, DecodeError::BadImage(_)), "{error}");
    }

    #[test]
    fn a_small_file_that_claims_many_pixels_is_too_large() {
        // A bitmap header alone: 60000 × 60000 pixels of 24 bits.
        let mut file = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        file.extend(60_000_u32.to_le_bytes());
        file.extend(60_000_u32.to_le_bytes());
        file.extend([1, 0, 24, 0]);
        file.extend([0; 24]);
        let limits = DecodeLimits {
            max_side: u32::MAX,
            ..DecodeLimits::default()
        };
        assert!(matches!(decode(&file, &limits), Err(DecodeError::TooLarge(_))));
        assert!(matches!(dimensions(&file, &limits), Err(DecodeError::TooLarge(_))));
    }

    #[test]
    fn other_formats_and_cut_files_are_bad_images() {
        let gif = b"GIF89a\x01\0\x01\0\0\0\0;";
        assert!(matches!(
            decode(gif, &DecodeLimits::default()),
            Err(DecodeError::BadImage(_))
        ));
        let file = encode_png(&RgbImage::from_fn(64, 64, |x, y| {
            Rgb([x as u8, y as u8, (x * y) as u8])
        }))
        .unwrap();
        assert!(matches!(
            decode(&file[..file.len() / 2], &DecodeLimits::default()),
            Err(DecodeError::BadImage(_))
        ));
    }
}
