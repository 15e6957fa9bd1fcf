//! Joins icons and lines of text into one list, with the meaning of OmniParser's `remove_overlap_new`.

use crate::{
    geometry::Rect,
    model::{Detection, TextLine},
};

/// The share of a box that must lie in another for it to count as inside.
const INSIDE: f32 = 0.80;

/// What a merged entry is, and where its words come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Merged {
    /// A line of text that no icon took.
    Text {
        /// Place on the screenshot, in pixels.
        rect: Rect,
        /// What it says.
        content: String,
        /// Mean character probability, 0–1.
        score: f32,
    },
    /// An icon.
    Icon {
        /// Place on the screenshot, in pixels.
        rect: Rect,
        /// The text inside it, lines joined with a space.
        content: Option<String>,
        /// Detector confidence, 0–1.
        score: f32,
    },
}

impl Merged {
    /// Place on the screenshot, in pixels.
    pub const fn rect(&self) -> Rect {
        match self {
            Self::Text { rect, .. } | Self::Icon { rect, .. } => *rect,
        }
    }

    /// Whether it has words of its own.
    pub const fn has_content(&self) -> bool {
        match self {
            Self::Text { .. } => true,
            Self::Icon { content, .. } => content.is_some(),
        }
    }
}

/// Merges `icons` (already suppressed, best first) and `lines`.
///
/// - Of two icons that overlap by more than `threshold` (the largest of IoU and both shares) the larger goes; of two equally
///   large ones the later goes.
/// - An icon that lies in a line of text (more than 0.8 of it) goes, and the text stays. OmniParser loses text here when such an
///   icon also holds another line; this does not.
/// - Text that lies in a surviving icon becomes that icon's content and is no entry of its own.
///
/// Order: text, icons with content, icons without; each in the order of the input.
pub fn merge(icons: &[Detection], lines: &[TextLine], threshold: f32) -> Vec<Merged> {
    let boxes: Vec<Rect> = lines.iter().map(|line| Rect::around(&line.quad)).collect();
    let mut taken = vec![false; lines.len()];
    let mut with_content = Vec::new();
    let mut without = Vec::new();
    for (index, icon) in icons.iter().enumerate() {
        if is_beaten(icons, index, threshold) {
            continue;
        }
        let holds = |line: &Rect| line.share_inside(&icon.rect) > INSIDE;
        // Text of the icon's own size is inside it and holds it: the icon wins, as in OmniParser, which asks that first.
        if boxes
            .iter()
            .any(|line| !holds(line) && icon.rect.share_inside(line) > INSIDE)
        {
            continue;
        }
        let mut words = Vec::new();
        for (line, rect) in boxes.iter().enumerate() {
            if holds(rect) {
                taken[line] = true;
                words.push(lines[line].text.trim());
            }
        }
        let content = words.join(" ");
        let content = (!content.trim().is_empty()).then_some(content);
        let list = if content.is_some() {
            &mut with_content
        } else {
            &mut without
        };
        list.push(Merged::Icon {
            rect: icon.rect,
            content,
            score: icon.score,
        });
    }
    let text = lines.iter().zip(&boxes).zip(&taken).filter(|(_, taken)| !**taken);
    let mut merged: Vec<Merged> = text
        .map(|((line, rect), _)| Merged::Text {
            rect: *rect,
            content: line.text.clone(),
            score: line.score,
        })
        .collect();
    merged.append(&mut with_content);
    merged.append(&mut without);
    merged
}

/// Whether another icon takes the place of `icons[index]`.
fn is_beaten(icons: &[Detection], index: usize, threshold: f32) -> bool {
    let rect = icons[index].rect;
    icons.iter().enumerate().any(|(other, rival)| {
        let smaller = rival.rect.area() < rect.area();
        let equal_and_earlier = rival.rect.area().total_cmp(&rect.area()).is_eq() && other < index;
        other != index && (smaller || equal_and_earlier) && rect.overlap(&rival.rect) > threshold
    })
}
