//! Sizes of the text detector's input, as rapidocr chooses them.

/// A longer side than this is scaled down first, in pixels.
const MAX_SIDE: u32 = 2000;
/// A shorter side than this is scaled up first, in pixels.
const MIN_SIDE: u32 = 30;
/// The shorter side of the detector's input is at least this, in pixels.
const DETECTOR_MIN_SIDE: u32 = 736;
/// Screenshots wider than this many heights get bars above and below.
const MAX_ASPECT: f64 = 8.0;
/// Both sides of the detector's input are multiples of this.
const STRIDE: f64 = 32.0;
/// Nothing is scaled up beyond this side: a strip that is very long and thin stays thin. rapidocr has no such bound.
const LONGEST_SIDE: f64 = 4096.0;

/// The way from a screenshot to the text detector's input; all sizes in pixels, width first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Size of the screenshot.
    pub source: (u32, u32),
    /// Size after scaling; lines are cropped from this one.
    pub scaled: (u32, u32),
    /// Black rows added above and below.
    pub bars: u32,
    /// Size of the detector's input, stretched to multiples of 32.
    pub input: (u32, u32),
}

impl Plan {
    /// The plan for a screenshot of `width` × `height`.
    pub fn new(width: u32, height: u32) -> Self {
        let mut scaled = (width.max(1), height.max(1));
        if scaled.0.max(scaled.1) > MAX_SIDE {
            scaled = to_stride(scaled, f64::from(MAX_SIDE) / f64::from(scaled.0.max(scaled.1)));
        }
        if scaled.0.min(scaled.1) < MIN_SIDE {
            let (short, long) = (f64::from(scaled.0.min(scaled.1)), f64::from(scaled.0.max(scaled.1)));
            scaled = to_stride(scaled, (f64::from(MIN_SIDE) / short).min(LONGEST_SIDE / long));
        }
        let (w, h) = scaled;
        let bars = if h <= MIN_SIDE || f64::from(w) / f64::from(h) > MAX_ASPECT {
            let wanted = ((f64::from(w) / MAX_ASPECT) as u32).max(MIN_SIDE) * 2;
            wanted.abs_diff(h) / 2
        } else {
            0
        };
        let padded = (w, h + 2 * bars);
        let short = padded.0.min(padded.1);
        let grow = if short < DETECTOR_MIN_SIDE {
            f64::from(DETECTOR_MIN_SIDE) / f64::from(short)
        } else {
            1.0
        };
        let ratio = grow.min((LONGEST_SIDE / f64::from(padded.0.max(padded.1))).max(1.0));
        Self {
            source: (width, height),
            scaled,
            bars,
            input: to_stride(padded, ratio),
        }
    }

    /// Size of the picture that lines are cropped from: scaled, with bars.
    pub const fn padded(&self) -> (u32, u32) {
        (self.scaled.0, self.scaled.1 + 2 * self.bars)
    }

    /// A point of the padded picture → the same point on the screenshot, cut to it; pixels.
    pub fn to_source(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let (width, height) = (self.source.0 as f32, self.source.1 as f32);
        let x = x * width / self.scaled.0 as f32;
        let y = (y - self.bars as f32) * height / self.scaled.1 as f32;
        [x.clamp(0.0, width), y.clamp(0.0, height)]
    }
}

/// Both sides times `ratio`, rounded to multiples of 32, at least 32.
fn to_stride((width, height): (u32, u32), ratio: f64) -> (u32, u32) {
    let side = |side: u32| {
        let scaled = (f64::from(side) * ratio).floor();
        ((scaled / STRIDE).round_ties_even() * STRIDE).max(STRIDE) as u32
    };
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_screens() {
        // Reference values worked out by hand from rapidocr's rules.
        assert_eq!(Plan::new(1920, 1080).input, (1920, 1088));
        assert_eq!(Plan::new(1280, 960).input, (1280, 960));
        let uhd = Plan::new(3840, 2160);
        assert_eq!((uhd.scaled, uhd.input), ((1984, 1120), (1984, 1120)));
        assert_eq!(Plan::new(640, 480).input, (992, 736));
        assert_eq!(
            uhd.to_source([1984.0, 560.0]).map(f32::round).map(|v| v as u32),
            [3840, 1080]
        );
    }

    #[test]
    fn strips_get_bars_and_stay_bounded() {
        let strip = Plan::new(1600, 40);
        assert_eq!((strip.bars, strip.padded()), (180, (1600, 400)));
        assert_eq!(strip.to_source([10.0, 200.0]).map(|v| v as u32), [10, 20]);
        for (width, height) in [(1, 1), (16_384, 1), (1, 16_384), (2000, 31), (275, 1)] {
            let plan = Plan::new(width, height);
            assert!(plan.input.0.max(plan.input.1) <= 4096, "{plan:?}");
            assert_eq!((plan.input.0 % 32, plan.input.1 % 32), (0, 0));
        }
    }
}
