//! The set-of-marks picture: every element framed and numbered.

use crate::geometry::PixelRect;
use image::{Rgb, RgbImage};

/// A picture that could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("could not encode the picture: {0}")]
pub struct EncodeError(#[from] png::EncodingError);

/// Frame and label colours, told apart also by their lightness; used in turn.
const COLOURS: [[u8; 3]; 8] = [
    [214, 39, 40],
    [31, 119, 180],
    [44, 160, 44],
    [255, 127, 14],
    [148, 103, 189],
    [23, 190, 207],
    [227, 119, 194],
    [188, 189, 34],
];
/// The share of a label that may lie over another element before the next slot is tried.
const LABEL_OVERLAP: f32 = 0.3;
/// Digits 0–9, 5 × 7 dots, one byte a row, the lowest 5 bits from left to right.
const DIGITS: [[u8; 7]; 10] = [
    [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
    [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
    [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
    [0b11110, 0b00001, 0b00001, 0b01110, 0b00001, 0b00001, 0b11110],
    [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
    [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
    [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
    [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
    [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
    [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
];
const DIGIT_WIDTH: u32 = 5;
const DIGIT_HEIGHT: u32 = 7;

/// Sizes in pixels, from the picture's width as OmniParser scales them (`width / 3200`).
#[derive(Debug, Clone, Copy)]
struct Style {
    line: u32,
    padding: u32,
    /// Pixels a side of one dot of a digit.
    dot: u32,
}

impl Style {
    fn for_width(width: u32) -> Self {
        let ratio = width as f32 / 3200.0;
        let unit = ((3.0 * ratio) as u32).max(1);
        // OpenCV's Hershey digits are 21 pixels high at scale 1; OmniParser's scale is 0.8 × ratio.
        let digit_height = 21.0 * 0.8 * ratio;
        let dot = ((digit_height / DIGIT_HEIGHT as f32 - 0.25).ceil() as u32).max(1);
        Self {
            line: unit,
            padding: unit,
            dot,
        }
    }

    fn label_size(self, label: &str) -> (u32, u32) {
        let digits = label.len() as u32;
        let width = (digits * (DIGIT_WIDTH + 1) - 1) * self.dot + 2 * self.padding;
        (width, DIGIT_HEIGHT * self.dot + 2 * self.padding)
    }
}

/// The screenshot with `marks` drawn onto it, numbered from 0 in their order.
///
/// A label takes the first free slot of: above at the left edge, beside at the left, beside at the right, above at the right
/// edge; a slot is free when it lies in the picture and no other element covers more than 0.3 of either. Without a free slot the
/// label sits above at the left edge, moved into the picture.
pub fn draw_marks(mut picture: RgbImage, marks: &[PixelRect]) -> RgbImage {
    let style = Style::for_width(picture.width());
    let colour = |index: usize| Rgb(COLOURS[index % COLOURS.len()]);
    for (index, mark) in marks.iter().enumerate() {
        draw_frame(&mut picture, mark, style.line, colour(index));
    }
    for index in 0..marks.len() {
        let label = index.to_string();
        let place = place_label(marks, index, style.label_size(&label), picture.dimensions());
        draw_label(&mut picture, place, &label, style, colour(index));
    }
    picture
}

/// Encodes a picture as PNG, fast rather than small.
///
/// # Errors
/// [`EncodeError`] for a picture without pixels.
pub fn encode_png(picture: &RgbImage) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::with_capacity(picture.as_raw().len() / 8);
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn place_label(
    marks: &[PixelRect],
    index: usize,
    (width, height): (u32, u32),
    (image_width, image_height): (u32, u32),
) -> PixelRect {
    let mark = marks[index];
    let at = |x: i64, y: i64| {
        let inside = x >= 0
            && y >= 0
            && x + i64::from(width) <= image_width.into()
            && y + i64::from(height) <= image_height.into();
        inside.then_some(PixelRect {
            x: x as u32,
            y: y as u32,
            width,
            height,
        })
    };
    let (left, top, right) = (i64::from(mark.x), i64::from(mark.y), i64::from(mark.right()));
    let above = top - i64::from(height);
    let slots = [
        at(left, above),
        at(left - i64::from(width), top),
        at(right, top),
        at(right - i64::from(width), above),
    ];
    let is_free = |slot: &PixelRect| {
        let slot = slot.to_rect();
        marks
            .iter()
            .enumerate()
            .all(|(other, mark)| other == index || slot.overlap(&mark.to_rect()) <= LABEL_OVERLAP)
    };
    slots.into_iter().flatten().find(is_free).unwrap_or_else(|| PixelRect {
        x: mark.x.min(image_width.saturating_sub(width)),
        y: mark.y.saturating_sub(height).min(image_height.saturating_sub(height)),
        width,
        height,
    })
}

fn draw_frame(picture: &mut RgbImage, mark: &PixelRect, line: u32, colour: Rgb<u8>) {
    let inner_x = mark.x + line.min(mark.width);
    let inner_y = mark.y + line.min(mark.height);
    let far_x = mark.right().saturating_sub(line).max(mark.x);
    let far_y = mark.bottom().saturating_sub(line).max(mark.y);
    fill(picture, mark.x, mark.y, mark.right(), inner_y, colour);
    fill(picture, mark.x, far_y, mark.right(), mark.bottom(), colour);
    fill(picture, mark.x, mark.y, inner_x, mark.bottom(), colour);
    fill(picture, far_x, mark.y, mark.right(), mark.bottom(), colour);
}

fn draw_label(picture: &mut RgbImage, place: PixelRect, label: &str, style: Style, colour: Rgb<u8>) {
    fill(picture, place.x, place.y, place.right(), place.bottom(), colour);
    let [red, green, blue] = colour.0.map(f32::from);
    // Rec. 601 luma: dark digits on light labels.
    let ink = if 0.299 * red + 0.587 * green + 0.114 * blue > 150.0 {
        Rgb([0, 0, 0])
    } else {
        Rgb([255, 255, 255])
    };
    let dot = style.dot;
    let mut x = place.x + style.padding;
    for digit in label.bytes().map(|byte| usize::from(byte - b'0')) {
        for (row, bits) in DIGITS[digit].iter().enumerate() {
            let y = place.y + style.padding + row as u32 * dot;
            for column in 0..DIGIT_WIDTH {
                if bits >> (DIGIT_WIDTH - 1 - column) & 1 == 1 {
                    fill(picture, x + column * dot, y, x + (column + 1) * dot, y + dot, ink);
                }
            }
        }
        x += (DIGIT_WIDTH + 1) * dot;
    }
}

/// Paints the box from `x1`, `y1` to before `x2`, `y2`, cut to the picture.
fn fill(picture: &mut RgbImage, x1: u32, y1: u32, x2: u32, y2: u32, colour: Rgb<u8>) {
    for y in y1..y2.min(picture.height()) {
        for x in x1..x2.min(picture.width()) {
            picture.put_pixel(x, y, colour);
        }
    }
}
