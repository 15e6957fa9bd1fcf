//! The icon detector: YOLO in TorchScript.

use crate::{
    LoadError,
    device::{Device, memory},
    module::{LoadedModule, backend, pictures, single, values},
    runner::Runner,
};
use hawkeye_pipeline::{
    geometry::Rect,
    letterbox::Letterbox,
    model::{Detection, Detector, DeviceMemory, ModelError},
};
use image::RgbImage;
use tch::TchError;

/// Finds icons with the bundle's detector.
#[derive(Debug)]
pub struct TorchDetector {
    network: Runner,
    size: u32,
    stride: u32,
}

impl TorchDetector {
    pub(crate) fn new(module: LoadedModule, device: &Device) -> Result<Self, LoadError> {
        let model = module.model();
        let missing = |what| LoadError::Incomplete {
            name: model.name.clone(),
            what,
        };
        let size = model
            .image_size
            .filter(|size| *size > 0)
            .ok_or_else(|| missing("imageSize"))?;
        let stride = model
            .stride
            .filter(|stride| *stride > 0)
            .ok_or_else(|| missing("stride"))?;
        let network = Runner::new(module, device, LoadedModule::of_pictures);
        Ok(Self { network, size, stride })
    }

    fn run(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<Detection>, TchError> {
        let letterbox = Letterbox::new(screenshot.width(), screenshot.height(), self.size, self.stride);
        // (1, 5, N): centre x, centre y, width, height in pixels of the input, score. All of it comes to the host, which is one
        // wait for the device instead of several.
        let output = self.network.run(&[pictures(&[letterbox.apply(screenshot)])?])?;
        let output: Vec<f32> = values(single(&output)?)?;
        let candidates = output.len() / 5;
        let row = |number: usize| &output[number * candidates..][..candidates];
        let [xs, ys, widths, heights, scores] = [0, 1, 2, 3, 4].map(row);
        let likely = scores.iter().enumerate().filter(|(_, score)| **score > min_score);
        let detections = likely.map(|(at, &score)| {
            let (x, y, half) = (xs[at], ys[at], (widths[at] / 2.0, heights[at] / 2.0));
            let rect = Rect::new(x - half.0, y - half.1, x + half.0, y + half.1);
            Detection {
                rect: letterbox.to_source(&rect),
                score,
            }
        });
        Ok(detections.collect())
    }
}

impl Detector for TorchDetector {
    fn detect(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<Detection>, ModelError> {
        self.run(screenshot, min_score).map_err(backend("detector"))
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        memory(self.network.module().options().1)
    }
}
