//! Captions by what is seen: the same icon with the same question gets the same words without asking a device.

use hawkeye_pipeline::model::CaptionPrompt;
use image::RgbImage;
use quick_cache::sync::Cache;
use std::sync::Arc;
use twox_hash::XxHash3_128;

/// Hash of a crop's pixels and of the question about it.
pub type CropKey = u128;

/// A bounded number of captions; those that were of least use make room.
#[derive(Debug)]
pub struct CropCache {
    captions: Cache<CropKey, Arc<str>>,
    /// Another one in every process, so that nobody can prepare two pictures of one hash.
    seed: u64,
}

impl CropCache {
    /// Room for `entries` captions, at least one. One takes about 200 bytes.
    pub fn new(entries: usize) -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        Self {
            captions: Cache::new(entries.max(1)),
            seed: RandomState::new().hash_one(0),
        }
    }

    /// The key of a crop and a question; crops are all of one size.
    pub fn key(&self, crop: &RgbImage, prompt: CaptionPrompt) -> CropKey {
        let question = match prompt {
            CaptionPrompt::Caption => 0,
            CaptionPrompt::DetailedCaption => 1,
        };
        XxHash3_128::oneshot_with_seed(self.seed ^ question, crop.as_raw())
    }

    /// The caption, if it is known.
    pub fn get(&self, key: CropKey) -> Option<Arc<str>> {
        self.captions.get(&key)
    }

    /// Remembers a caption.
    pub fn insert(&self, key: CropKey, caption: Arc<str>) {
        self.captions.insert(key, caption);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn it_tells_pixels_and_questions_apart_and_stays_small() {
        let cache = CropCache::new(64);
        let crop = |shade: u32| {
            RgbImage::from_fn(64, 64, |x, y| {
                Rgb([x as u8, y as u8, if x + y == 0 { shade as u8 } else { 0 }])
            })
        };
        let key = |shade| cache.key(&crop(shade), CaptionPrompt::Caption);
        assert_eq!(key(1), key(1));
        assert_ne!(key(1), key(2), "one pixel differs");
        assert_ne!(key(1), cache.key(&crop(1), CaptionPrompt::DetailedCaption));
        cache.insert(key(1), "a gear".into());
        assert_eq!(cache.get(key(1)).as_deref(), Some("a gear"));
        for other in 0..10_000_u128 {
            cache.insert(other, "x".into());
        }
        let kept = (0..10_000_u128).filter(|&other| cache.get(other).is_some()).count();
        assert!((1..=64).contains(&kept), "{kept}");
    }
}
