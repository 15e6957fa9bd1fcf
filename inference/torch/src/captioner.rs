//! The captioner: Florence-2 in three TorchScript modules, greedy, a batch of crops at a time.

mod graphs;
mod network;

use crate::{
    LoadError, LoadedModel,
    batch::{in_batches, is_out_of_memory},
    device::Device,
    module::{Inference, backend, pictures},
    shim::trim_memory,
};
use graphs::{Graphs, sizes_up_to};
use hawkeye_pipeline::{
    bundle::{Bundle, DType, Model},
    device::DeviceKind,
    model::{CaptionPrompt, Captioner, ModelError},
    parser::CAPTION_CROP,
};
use image::RgbImage;
use network::Network;
use tch::TchError;
use tokenizers::Tokenizer;

/// Describes icons with the bundle's captioner.
#[derive(Debug)]
pub struct TorchCaptioner {
    generator: Generator,
    tokenizer: Tokenizer,
    batch_size: usize,
}

/// The network and how it runs on its device.
#[derive(Debug)]
struct Generator {
    // First: graphs go before the weights that they work on.
    graphs: Option<Graphs>,
    network: Network,
    on_gpu: bool,
}

impl TorchCaptioner {
    /// Loads a captioner, every file only after its sha256 was found right. On the CPU `float16` becomes `float32`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        bundle: &Bundle,
        model: &Model,
        wanted: DType,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let missing = |what| LoadError::Incomplete {
            name: model.name.clone(),
            what,
        };
        let spec = model.captioner.as_ref().ok_or_else(|| missing("captioner"))?;
        let listed = model.tokenizer.as_ref().ok_or_else(|| missing("tokenizer"))?;
        let tokenizer = Tokenizer::from_bytes(bundle.read(&listed.path, &listed.sha256)?).map_err(|error| {
            LoadError::Tokenizer {
                path: listed.path.clone(),
                message: error.to_string(),
            }
        })?;
        let generator = Generator {
            graphs: device.graph_pool().map(Graphs::new),
            network: Network::load(bundle, model, spec, wanted, device)?,
            on_gpu: device.kind() != DeviceKind::Cpu,
        };
        Ok(Self {
            generator,
            tokenizer,
            batch_size: batch_size.max(1),
        })
    }

    /// What runs, for reports.
    pub(crate) fn describe(&self) -> LoadedModel {
        self.generator.network.first().describe()
    }

    /// Crops in one batch now: less than asked for once memory did not hold them.
    pub const fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Whether captions run as CUDA graphs.
    pub const fn has_graphs(&self) -> bool {
        self.generator.graphs.is_some()
    }

    /// Records the graphs of all batches up to the batch size, so that no request waits for it. Without CUDA graphs nothing
    /// happens. When memory does not hold the largest batch, it shrinks.
    ///
    /// # Errors
    /// [`ModelError`] when not even a batch of one runs.
    pub fn prepare(&mut self, prompt: CaptionPrompt) -> Result<(), ModelError> {
        let generator = &mut self.generator;
        loop {
            match generator.prepare(self.batch_size, prompt) {
                Ok(()) => return Ok(()),
                Err(error) if self.batch_size > 1 && is_out_of_memory(&error) => {
                    self.batch_size = self.batch_size.div_ceil(2);
                    generator.make_room(self.batch_size);
                }
                Err(error) => return Err(backend("captioner")(error)),
            }
        }
    }

    /// The tokens of each crop's caption, in the crops' order, forced and special ones included.
    ///
    /// # Errors
    /// [`ModelError`] when a crop is no square of [`CAPTION_CROP`] pixels, or libtorch fails.
    pub fn tokens(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, ModelError> {
        if let Some(crop) = crops
            .iter()
            .find(|crop| crop.dimensions() != (CAPTION_CROP, CAPTION_CROP))
        {
            let (width, height) = crop.dimensions();
            return Err(ModelError::Backend {
                model: "captioner",
                message: format!("a crop has {width}×{height} pixels, not {CAPTION_CROP}×{CAPTION_CROP}"),
            });
        }
        in_batches(
            &mut self.generator,
            crops,
            &mut self.batch_size,
            |generator, batch| generator.tokens(batch, prompt),
            Generator::make_room,
        )
        .map_err(backend("captioner"))
    }

    fn text(&self, tokens: &[i64]) -> Result<String, ModelError> {
        // Every token comes from an argmax or from the checked rules, so it is no negative number.
        let tokens: Vec<u32> = tokens.iter().filter_map(|&token| u32::try_from(token).ok()).collect();
        let text = self
            .tokenizer
            .decode(&tokens, true)
            .map_err(|error| ModelError::Backend {
                model: "captioner",
                message: error.to_string(),
            })?;
        Ok(text.trim().to_owned())
    }
}

impl Captioner for TorchCaptioner {
    fn caption(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<String>, ModelError> {
        let tokens = self.tokens(crops, prompt)?;
        tokens.iter().map(|tokens| self.text(tokens)).collect()
    }
}

impl Generator {
    fn tokens(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, TchError> {
        let _inference = Inference::begin()?;
        let bytes = pictures(crops)?;
        if !self.on_gpu {
            return self.network.compacting(&bytes, prompt);
        }
        if let Some(graphs) = &mut self.graphs {
            match graphs
                .run(&self.network, &bytes, prompt)
                .and_then(|tokens| self.network.ended(&tokens))
            {
                Err(error) if !is_out_of_memory(&error) => self.give_up_graphs(&error),
                outcome => return outcome,
            }
        }
        let bytes = bytes.f_to_device(self.network.device())?;
        self.network.ended(&self.network.unrolled(&bytes, prompt)?)
    }

    fn prepare(&mut self, batch_size: usize, prompt: CaptionPrompt) -> Result<(), TchError> {
        let _inference = Inference::begin()?;
        for size in sizes_up_to(batch_size) {
            let Some(graphs) = &mut self.graphs else {
                return Ok(());
            };
            match graphs.prepare(&self.network, size, prompt) {
                Err(error) if !is_out_of_memory(&error) => self.give_up_graphs(&error),
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    /// A device that has failed says so again when the kernels are launched one by one.
    fn give_up_graphs(&mut self, error: &TchError) {
        tracing::warn!(%error, "captions: CUDA graphs do not work; going on without them, more slowly");
        self.graphs = None;
    }

    fn make_room(&mut self, batch_size: usize) {
        tracing::warn!(
            batch_size,
            "captions: the device's memory does not hold the batch; it is made smaller"
        );
        if let Some(graphs) = &mut self.graphs {
            graphs.keep_up_to(batch_size);
        }
        if let Err(error) = trim_memory() {
            tracing::debug!(%error, "captions: no memory was given back");
        }
    }
}
