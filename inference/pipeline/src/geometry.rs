//! Boxes in pixels of the screenshot, origin top left.

/// A quadrilateral's corners, clockwise from top left, `[x, y]` in pixels.
pub type Quad = [[f32; 2]; 4];

/// An axis-aligned box: `x1 ≤ x2`, `y1 ≤ y2`, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub x1: f32,
    /// Top edge.
    pub y1: f32,
    /// Right edge.
    pub x2: f32,
    /// Bottom edge.
    pub y2: f32,
}

impl Rect {
    /// A box from its edges, in pixels.
    pub const fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// The smallest box around a quadrilateral's corners.
    pub fn around(quad: &Quad) -> Self {
        let mut rect = Self::new(f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for [x, y] in quad {
            rect.x1 = rect.x1.min(*x);
            rect.y1 = rect.y1.min(*y);
            rect.x2 = rect.x2.max(*x);
            rect.y2 = rect.y2.max(*y);
        }
        rect
    }

    /// Width in pixels; never negative.
    pub fn width(&self) -> f32 {
        (self.x2 - self.x1).max(0.0)
    }

    /// Height in pixels; never negative.
    pub fn height(&self) -> f32 {
        (self.y2 - self.y1).max(0.0)
    }

    /// Area in square pixels.
    pub fn area(&self) -> f32 {
        self.width() * self.height()
    }

    /// Area shared with `other`, in square pixels.
    pub fn intersection(&self, other: &Self) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        width * height
    }

    /// Intersection over union, 0–1; 0 when both are empty.
    pub fn iou(&self, other: &Self) -> f32 {
        let shared = self.intersection(other);
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }

    /// The share of this box that lies in `other`, 0–1; 0 for an empty box.
    pub fn share_inside(&self, other: &Self) -> f32 {
        let area = self.area();
        if area > 0.0 {
            self.intersection(other) / area
        } else {
            0.0
        }
    }

    /// OmniParser's overlap: the largest of IoU and the two shares, so a small box inside a big one counts as 1.
    pub fn overlap(&self, other: &Self) -> f32 {
        if self.area() <= 0.0 || other.area() <= 0.0 {
            return 0.0;
        }
        self.iou(other)
            .max(self.share_inside(other))
            .max(other.share_inside(self))
    }

    /// This box cut to an image of `width` × `height` pixels.
    #[must_use]
    pub fn clipped(&self, width: f32, height: f32) -> Self {
        Self {
            x1: self.x1.clamp(0.0, width),
            y1: self.y1.clamp(0.0, height),
            x2: self.x2.clamp(0.0, width),
            y2: self.y2.clamp(0.0, height),
        }
    }
}

/// A box on whole pixels, as the REST API reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelRect {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl PixelRect {
    /// Edges truncated to whole pixels inside an image of `width` × `height`, as OmniParser does; `None` when nothing is left.
    pub fn from_rect(rect: &Rect, width: u32, height: u32) -> Option<Self> {
        let cut = rect.clipped(width as f32, height as f32);
        let (x1, y1, x2, y2) = (cut.x1 as u32, cut.y1 as u32, cut.x2 as u32, cut.y2 as u32);
        (x2 > x1 && y2 > y1).then(|| Self {
            x: x1,
            y: y1,
            width: x2 - x1,
            height: y2 - y1,
        })
    }

    /// Right edge, exclusive.
    pub fn right(&self) -> u32 {
        self.x + self.width
    }

    /// Bottom edge, exclusive.
    pub fn bottom(&self) -> u32 {
        self.y + self.height
    }

    /// The same box as a [`Rect`].
    pub fn to_rect(self) -> Rect {
        Rect::new(self.x as f32, self.y as f32, self.right() as f32, self.bottom() as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_of_a_contained_box_is_one() {
        let outer = Rect::new(0.0, 0.0, 100.0, 100.0);
        let inner = Rect::new(10.0, 10.0, 20.0, 20.0);
        assert!((outer.overlap(&inner) - 1.0).abs() < 1e-6);
        assert!((outer.iou(&inner) - 0.01).abs() < 1e-6);
        assert!((outer.share_inside(&inner) - 0.01).abs() < 1e-6);
    }

    #[test]
    fn pixel_boxes_truncate_and_vanish_when_empty() {
        let rect = Rect::new(-3.0, 1.9, 10.9, 5.1);
        assert_eq!(
            PixelRect::from_rect(&rect, 8, 8),
            Some(PixelRect {
                x: 0,
                y: 1,
                width: 8,
                height: 4
            })
        );
        assert_eq!(PixelRect::from_rect(&Rect::new(1.1, 1.0, 1.9, 5.0), 8, 8), None);
    }
}
