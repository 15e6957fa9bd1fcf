//! Lines of similar width share a batch, so that little of it is padding.

use std::ops::Range;

/// Least width of a recogniser's input in pixels; the models were trained on lines padded to this. On the reference screens 160
/// reads short lines a third faster and loses five times as many characters.
pub const MIN_WIDTH: u32 = 320;
/// A batch may be this much wider than its narrowest line, in percent.
const MAX_STRETCH: u32 = 125;

/// Lines that go through the recogniser together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Indices into the widths given.
    pub lines: Vec<usize>,
    /// Width of the batch in pixels: every line is padded to this.
    pub width: u32,
}

/// Groups lines by `widths` (after scaling to the recogniser's height, in pixels) into batches of at most `size`, narrow ones
/// first. Every line is in exactly one batch.
pub fn by_width(widths: &[u32], size: usize) -> Vec<Batch> {
    let mut order: Vec<usize> = (0..widths.len()).collect();
    order.sort_by_key(|&line| (widths[line], line));
    let padded = |line: usize| widths[line].max(MIN_WIDTH);
    let mut batches = Vec::new();
    let mut rest: Range<usize> = 0..order.len();
    while !rest.is_empty() {
        let start = rest.start;
        let limit = padded(order[start]).saturating_mul(MAX_STRETCH) / 100;
        let full = start.saturating_add(size.max(1)).min(order.len());
        let end = (start..full).find(|&at| padded(order[at]) > limit).unwrap_or(full);
        batches.push(Batch {
            lines: order[start..end].to_vec(),
            width: padded(order[end - 1]),
        });
        rest.start = end;
    }
    batches
}

/// Groups lines by `widths` (as above) into batches of few widths, so that a device meets few shapes: each line has the narrowest of
/// `buckets`, which ascend, that holds it, and a batch has at most `most` lines of that width. Lines wider than all buckets share
/// batches as [`by_width`] groups them. Every line is in exactly one batch.
pub fn by_bucket(widths: &[u32], buckets: &[u32], most: impl Fn(u32) -> usize) -> Vec<Batch> {
    let mut held = vec![Vec::new(); buckets.len()];
    let mut wider = Vec::new();
    for (line, &width) in widths.iter().enumerate() {
        match held.get_mut(buckets.partition_point(|&bucket| bucket < width)) {
            Some(lines) => lines.push(line),
            None => wider.push(line),
        }
    }
    let mut batches = Vec::new();
    for (&width, lines) in buckets.iter().zip(&held) {
        let parts = lines.chunks(most(width).max(1));
        batches.extend(parts.map(|lines| Batch {
            lines: lines.to_vec(),
            width,
        }));
    }
    let wider_widths: Vec<u32> = wider.iter().map(|&line| widths[line]).collect();
    let widest = wider_widths.iter().copied().max().unwrap_or_default();
    batches.extend(by_width(&wider_widths, most(widest)).into_iter().map(|batch| Batch {
        lines: batch.lines.iter().map(|&at| wider[at]).collect(),
        ..batch
    }));
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_widths_whatever_the_lines() {
        let most = |width| if width < 500 { 3 } else { 1 };
        let batches = by_bucket(&[900, 40, 320, 321, 2000, 100, 7, 1000], &[320, 480, 1000], most);
        let batch = |lines: &[usize], width| Batch {
            lines: lines.to_vec(),
            width,
        };
        let expected = [
            batch(&[1, 2, 5], 320),
            batch(&[6], 320),
            batch(&[3], 480),
            batch(&[0], 1000),
            batch(&[7], 1000),
            batch(&[4], 2000),
        ];
        assert_eq!(batches, expected);
        assert_eq!(by_bucket(&[], &[320], most), []);
        assert_eq!(by_bucket(&[40], &[], most), by_width(&[40], 3));
    }

    #[test]
    fn narrow_lines_first_and_little_padding() {
        let batches = by_width(&[900, 40, 330, 410, 100], 2);
        let expected = [
            Batch {
                lines: vec![1, 4],
                width: 320,
            },
            Batch {
                lines: vec![2, 3],
                width: 410,
            },
            Batch {
                lines: vec![0],
                width: 900,
            },
        ];
        assert_eq!(batches, expected);
        assert_eq!(by_width(&[], 4), []);
    }
}
