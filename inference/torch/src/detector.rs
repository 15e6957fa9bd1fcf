//! The icon detector: YOLO in TorchScript.

use crate::{
    LoadError,
    device::memory,
    module::{LoadedModule, backend, values},
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
    module: LoadedModule,
    size: u32,
    stride: u32,
}

impl TorchDetector {
    pub(crate) fn new(module: LoadedModule) -> Result<Self, LoadError> {
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
        Ok(Self { module, size, stride })
    }

    fn run(&self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<Detection>, TchError> {
        let _guard = tch::no_grad_guard();
        let letterbox = Letterbox::new(screenshot.width(), screenshot.height(), self.size, self.stride);
        let input = self.module.input(&[letterbox.apply(screenshot)])?;
        // (1, 5, N): centre x, centre y, width, height in pixels of the input, score.
        let output = self.module.forward(&input)?.f_select(0, 0)?;
        let likely = output
            .f_select(0, 4)?
            .f_gt(f64::from(min_score))?
            .f_nonzero()?
            .f_reshape([-1])?;
        let chosen: Vec<f32> = values(&output.f_index_select(1, &likely)?.f_transpose(0, 1)?)?;
        let detections = chosen.chunks_exact(5).map(|row| {
            let [x, y, width, height, score] = [row[0], row[1], row[2], row[3], row[4]];
            let half = (width / 2.0, height / 2.0);
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
        memory(self.module.options().1)
    }
}
