//! One screenshot between its stages: the picture, and what is asked about its icons.

use crate::crop_cache::{CropCache, CropKey};
use crate::metrics::DeviceMetrics;
use hawkeye_pipeline::model::CaptionPrompt;
use image::RgbImage;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A decoded screenshot, with its share of the memory that is set aside for those.
#[derive(Debug)]
pub struct Screen {
    picture: RgbImage,
    memory: Option<OwnedSemaphorePermit>,
}

impl From<RgbImage> for Screen {
    fn from(picture: RgbImage) -> Self {
        Self { picture, memory: None }
    }
}

impl Screen {
    /// With a share that is given back when the picture is dropped.
    pub const fn new(picture: RgbImage, memory: OwnedSemaphorePermit) -> Self {
        Self {
            picture,
            memory: Some(memory),
        }
    }

    /// The pixels.
    pub const fn picture(&self) -> &RgbImage {
        &self.picture
    }

    /// The pixels to be drawn on, and their share; a copy only if somebody else still looks at them.
    pub fn into_parts(self: Arc<Self>) -> (RgbImage, Option<OwnedSemaphorePermit>) {
        match Arc::try_unwrap(self) {
            Ok(Self { picture, memory }) => (picture, memory),
            Err(shared) => (shared.picture.clone(), None),
        }
    }
}

/// What the devices answered.
#[derive(Debug)]
pub(super) struct Described {
    pub captions: Vec<String>,
    /// Until the first of its crops was begun with.
    pub waited: Duration,
    /// From then on.
    pub took: Duration,
}

/// The captions of one screenshot's icons, as far as they are known, and the crops that are to be described.
#[derive(Debug)]
pub(super) struct Asked {
    cache: Option<Arc<CropCache>>,
    /// By icon.
    captions: Vec<Arc<str>>,
    /// Crops that nobody has described yet, each once.
    crops: Vec<RgbImage>,
    /// Of each such crop its key, if there is a cache, and the icons that look like it.
    open: Vec<(Option<CropKey>, Vec<usize>)>,
}

impl Asked {
    /// Without a cache every crop is asked about, also the second of two that are the same.
    pub(super) fn new(crops: Vec<RgbImage>, prompt: CaptionPrompt, cache: Option<Arc<CropCache>>) -> Self {
        let mut asked = Self {
            captions: vec![Arc::from(""); crops.len()],
            crops: Vec::with_capacity(crops.len()),
            open: Vec::with_capacity(crops.len()),
            cache: None,
        };
        let Some(cache) = cache else {
            asked.open = (0..crops.len()).map(|icon| (None, vec![icon])).collect();
            asked.crops = crops;
            return asked;
        };
        let mut seen: HashMap<CropKey, usize> = HashMap::new();
        for (icon, crop) in crops.into_iter().enumerate() {
            let key = cache.key(&crop, prompt);
            if let Some(caption) = cache.get(key) {
                asked.captions[icon] = caption;
            } else if let Some(&open) = seen.get(&key) {
                asked.open[open].1.push(icon);
            } else {
                seen.insert(key, asked.open.len());
                asked.open.push((Some(key), vec![icon]));
                asked.crops.push(crop);
            }
        }
        asked.cache = Some(cache);
        asked
    }

    /// The crops that are to be described.
    pub(super) fn take_crops(&mut self) -> Vec<RgbImage> {
        std::mem::take(&mut self.crops)
    }

    /// Counts what the cache saved and what it did not.
    pub(super) fn count(&self, metrics: &DeviceMetrics) {
        if self.cache.is_some() {
            let missed = self.open.len();
            metrics.cache_misses.inc_by(missed as u64);
            metrics.cache_hits.inc_by((self.captions.len() - missed) as u64);
        }
    }

    /// Takes one caption for each of the crops.
    pub(super) fn answer(&mut self, captions: Vec<String>) {
        for ((key, icons), caption) in self.open.iter().zip(captions) {
            let caption: Arc<str> = caption.into();
            if let (Some(cache), Some(key)) = (&self.cache, key) {
                cache.insert(*key, Arc::clone(&caption));
            }
            for &icon in icons {
                self.captions[icon] = Arc::clone(&caption);
            }
        }
    }

    /// One caption for each icon.
    pub(super) fn into_captions(self) -> Vec<String> {
        self.captions.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use image::Rgb;

    const ASKED: CaptionPrompt = CaptionPrompt::Caption;

    fn crops(shades: &[u8]) -> Vec<RgbImage> {
        let crop = |&shade: &u8| RgbImage::from_pixel(64, 64, Rgb([shade; 3]));
        shades.iter().map(crop).collect()
    }

    fn answered(asked: &mut Asked) -> usize {
        let crops = asked.take_crops();
        asked.answer(crops.iter().map(|crop| crop.get_pixel(0, 0).0[0].to_string()).collect());
        crops.len()
    }

    #[test]
    fn what_looks_the_same_is_asked_about_once() {
        let cache = Arc::new(CropCache::new(100));
        let metrics = Metrics::new();
        let mut asked = Asked::new(crops(&[1, 2, 1, 1]), ASKED, Some(Arc::clone(&cache)));
        asked.count(&metrics.devices);
        assert_eq!(answered(&mut asked), 2);
        assert_eq!(asked.into_captions(), ["1", "2", "1", "1"]);
        let mut again = Asked::new(crops(&[2, 3]), ASKED, Some(Arc::clone(&cache)));
        again.count(&metrics.devices);
        assert_eq!(answered(&mut again), 1);
        assert_eq!(again.into_captions(), ["2", "3"]);
        assert_eq!(
            (metrics.devices.cache_hits.get(), metrics.devices.cache_misses.get()),
            (3, 3)
        );
        let mut other = Asked::new(crops(&[2]), CaptionPrompt::DetailedCaption, Some(cache));
        assert_eq!(answered(&mut other), 1, "another question has another answer");
    }

    #[test]
    fn without_a_cache_every_crop_is_asked_about() {
        let mut asked = Asked::new(crops(&[1, 1]), ASKED, None);
        asked.count(&Metrics::new().devices);
        assert_eq!(answered(&mut asked), 2);
        assert_eq!(asked.into_captions(), ["1", "1"]);
    }
}
