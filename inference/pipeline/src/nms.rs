//! Non-maximum suppression of detector candidates.

use crate::model::Detection;

/// The IoU above which OmniParser's detector call drops the weaker of two candidates.
pub const DETECTOR_IOU: f32 = 0.1;
/// The most candidates that ultralytics keeps after suppression.
pub const MAX_DETECTIONS: usize = 300;
/// The most candidates that ultralytics looks at, best first.
const MAX_CANDIDATES: usize = 30_000;

/// Keeps the best candidates, highest score first: a candidate goes when its IoU with a kept one is above `iou`.
///
/// Equal scores are ordered by place (top, left, bottom, right), so the answer does not depend on the order of the input.
/// Candidates with a score or edge that is not finite are dropped.
pub fn suppress(mut candidates: Vec<Detection>, iou: f32, max: usize) -> Vec<Detection> {
    candidates.retain(|candidate| {
        let rect = candidate.rect;
        [candidate.score, rect.x1, rect.y1, rect.x2, rect.y2]
            .iter()
            .all(|value| value.is_finite())
    });
    candidates.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then(a.rect.y1.total_cmp(&b.rect.y1))
            .then(a.rect.x1.total_cmp(&b.rect.x1))
            .then(a.rect.y2.total_cmp(&b.rect.y2))
            .then(a.rect.x2.total_cmp(&b.rect.x2))
    });
    candidates.truncate(MAX_CANDIDATES);
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in candidates {
        if kept.len() == max {
            break;
        }
        if kept.iter().all(|better| better.rect.iou(&candidate.rect) <= iou) {
            kept.push(candidate);
        }
    }
    kept
}
