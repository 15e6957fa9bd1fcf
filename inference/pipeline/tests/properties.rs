//! Properties that hold for every input: suppression, merge, letterbox, decoding limits, the parser's bounds.

use hawkeye_pipeline::{
    decode::{DecodeError, DecodeLimits, decode, from_base64},
    geometry::Rect,
    letterbox::Letterbox,
    merge::{Merged, merge},
    model::{Detection, TextLine},
    nms::suppress,
    ocr::{batch::by_width, crop::cut_line, prepare::Plan},
    overlay::encode_png,
};
use image::{Rgb, RgbImage};
use proptest::prelude::*;

fn rects() -> impl Strategy<Value = Rect> {
    (0.0_f32..900.0, 0.0_f32..700.0, 1.0_f32..300.0, 1.0_f32..200.0)
        .prop_map(|(x, y, width, height)| Rect::new(x, y, x + width, y + height))
}

fn icons() -> impl Strategy<Value = Vec<Detection>> {
    let icon = (rects(), 0.0_f32..1.0).prop_map(|(rect, score)| Detection { rect, score });
    prop::collection::vec(icon, 0..40)
}

fn lines() -> impl Strategy<Value = Vec<TextLine>> {
    let line = (rects(), "[a-z]{1,8}", 0.5_f32..1.0).prop_map(|(rect, text, score)| TextLine {
        quad: [
            [rect.x1, rect.y1],
            [rect.x2, rect.y1],
            [rect.x2, rect.y2],
            [rect.x1, rect.y2],
        ],
        text,
        score,
    });
    prop::collection::vec(line, 0..30)
}

fn same(a: &Rect, b: &Rect) -> bool {
    [(a.x1, b.x1), (a.y1, b.y1), (a.x2, b.x2), (a.y2, b.y2)]
        .iter()
        .all(|(a, b)| (a - b).abs() < 1e-2)
}

proptest! {
    #[test]
    fn suppression_keeps_the_best_and_no_overlap(candidates in icons(), iou in 0.05_f32..0.9, max in 0_usize..30) {
        let kept = suppress(candidates.clone(), iou, max);
        prop_assert!(kept.len() <= max);
        prop_assert!(kept.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for (index, a) in kept.iter().enumerate() {
            prop_assert!(candidates.contains(a));
            prop_assert!(kept[index + 1..].iter().all(|b| a.rect.iou(&b.rect) <= iou));
        }
        // Whatever went had a better rival, unless the maximum was reached.
        if kept.len() < max {
            for gone in candidates.iter().filter(|candidate| !kept.contains(candidate)) {
                prop_assert!(kept.iter().any(|a| a.score >= gone.score && a.rect.iou(&gone.rect) > iou));
            }
        }
    }

    #[test]
    fn suppression_does_not_depend_on_order(candidates in icons(), iou in 0.05_f32..0.9) {
        let mut turned = candidates.clone();
        turned.reverse();
        prop_assert_eq!(suppress(candidates, iou, 300), suppress(turned, iou, 300));
    }

    #[test]
    fn merge_loses_no_text_and_leaves_no_overlap(icons in icons(), lines in lines(), threshold in 0.05_f32..0.95) {
        let merged = merge(&icons, &lines, threshold);
        // Every line is there once as text, or in the content of every icon that holds it.
        for line in &lines {
            let held = merged.iter().filter(|entry| matches!(entry, Merged::Icon { content: Some(words), .. }
                if words.split(' ').any(|word| word == line.text)));
            let alone = merged.iter().filter(|entry| matches!(entry, Merged::Text { content, .. } if *content == line.text));
            prop_assert!(held.count() + alone.count() >= 1, "{:?} was lost", line.text);
        }
        let kept: Vec<Rect> =
            merged.iter().filter(|entry| matches!(entry, Merged::Icon { .. })).map(Merged::rect).collect();
        for (index, a) in kept.iter().enumerate() {
            prop_assert!(kept[index + 1..].iter().all(|b| a.overlap(b) <= threshold));
        }
        // Text first, then icons with words, then icons without.
        let rank = |entry: &Merged| match entry {
            Merged::Text { .. } => 0,
            Merged::Icon { content: Some(_), .. } => 1,
            Merged::Icon { content: None, .. } => 2,
        };
        prop_assert!(merged.windows(2).all(|pair| rank(&pair[0]) <= rank(&pair[1])));
    }

    #[test]
    fn boxes_survive_the_letterbox(width in 1_u32..5000, height in 1_u32..5000, rect in rects()) {
        let letterbox = Letterbox::new(width, height, 1280, 32);
        let (w, h) = letterbox.input;
        prop_assert!(w.is_multiple_of(32) && h.is_multiple_of(32) && w <= 1280 && h <= 1280 && w.max(h) == 1280, "{letterbox:?}");
        prop_assert!(letterbox.offset.0 + letterbox.scaled.0 <= w && letterbox.offset.1 + letterbox.scaled.1 <= h);
        let rect = rect.clipped(width as f32, height as f32);
        let back = letterbox.to_source(&letterbox.to_input(&rect));
        prop_assert!(same(&rect, &back), "{rect:?} {back:?}");
    }

    #[test]
    fn points_survive_the_text_plan(width in 1_u32..5000, height in 1_u32..5000) {
        let plan = Plan::new(width, height);
        prop_assert!(plan.input.0.is_multiple_of(32) && plan.input.1.is_multiple_of(32));
        prop_assert!(plan.input.0 <= 4096 && plan.input.1 <= 4096, "{plan:?}");
        let (w, h) = plan.scaled;
        let corner = plan.to_source([w as f32, (h + plan.bars) as f32]);
        prop_assert!((corner[0] - width as f32).abs() < 0.5 && (corner[1] - height as f32).abs() < 0.5);
        prop_assert!(plan.to_source([0.0, plan.bars as f32]).iter().all(|v| *v < 1e-6));
    }

    #[test]
    fn every_line_is_in_one_batch(widths in prop::collection::vec(1_u32..4000, 0..60), size in 0_usize..20) {
        let batches = by_width(&widths, size);
        let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.lines.iter().copied()).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..widths.len()).collect::<Vec<_>>());
        for batch in &batches {
            prop_assert!(!batch.lines.is_empty() && batch.lines.len() <= size.max(1));
            prop_assert!(batch.lines.iter().all(|&line| widths[line] <= batch.width));
        }
    }

    #[test]
    fn any_quad_can_be_cut(corners in prop::array::uniform4((-20.0_f32..120.0, -20.0_f32..120.0))) {
        let picture = RgbImage::new(100, 80);
        let line = cut_line(&picture, &corners.map(|(x, y)| [x, y]));
        prop_assert!(line.width() >= 1 && line.height() >= 1);
    }

    #[test]
    fn limits_hold_for_every_size(width in 1_u32..80, height in 1_u32..80, max_side in 1_u32..80, max_pixels in 1_u64..6400) {
        let file = encode_png(&RgbImage::from_pixel(width, height, Rgb([9, 8, 7]))).unwrap();
        let limits = DecodeLimits { max_side, max_pixels, ..DecodeLimits::default() };
        let fits = width.max(height) <= max_side && u64::from(width * height) <= max_pixels;
        match decode(&file, &limits) {
            Ok(picture) => prop_assert!(fits && picture.dimensions() == (width, height)),
            Err(DecodeError::TooLarge(_)) => prop_assert!(!fits),
            Err(DecodeError::BadImage(message)) => prop_assert!(false, "{message}"),
        }
        let limits = DecodeLimits { max_bytes: file.len() - 1, ..DecodeLimits::default() };
        prop_assert!(matches!(decode(&file, &limits), Err(DecodeError::TooLarge(_))));
    }

    #[test]
    fn noise_is_a_bad_image_and_never_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..400), text in ".{0,80}") {
        let limits = DecodeLimits::default();
        prop_assert!(decode(&bytes, &limits).is_err());
        prop_assert!(from_base64(&text, &limits).and_then(|file| decode(&file, &limits)).is_err());
        // Behind a real signature, so that the decoder itself sees it.
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        file.extend(&bytes);
        prop_assert!(decode(&file, &limits).is_err());
    }
}
