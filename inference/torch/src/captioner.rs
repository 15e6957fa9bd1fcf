//! The captioner: Florence-2 in three TorchScript modules, greedy, a batch of crops at a time.

mod network;
mod sizes;

use crate::{
    LoadError, LoadedModel,
    device::Device,
    graphs::{Failure, Graphs, failed},
    module::{Inference, backend, is_out_of_memory, pictures, single},
    shim::{GraphPool, trim_memory},
};
use hawkeye_pipeline::{
    bundle::{Bundle, DType, Model},
    device::DeviceKind,
    model::{CaptionPrompt, Captioner, ModelError},
    parser::CAPTION_CROP,
};
use image::RgbImage;
use network::Network;
use sizes::{size_for, sizes_up_to};
use std::time::Duration;
use tch::{Kind, TchError, Tensor};
use tokenizers::Tokenizer;

/// Describes icons with the bundle's captioner.
#[derive(Debug)]
pub struct TorchCaptioner {
    generator: Generator,
    tokenizer: Tokenizer,
}

/// The network and how it runs on its device.
#[derive(Debug)]
struct Generator {
    // First: graphs go before the weights that they work on.
    /// By the rows that a batch is padded to.
    graphs: Option<Graphs<(usize, CaptionPrompt)>>,
    network: Network,
    on_gpu: bool,
}

impl TorchCaptioner {
    /// Loads a captioner, every file only after its sha256 was found right. On the CPU `float16` becomes `float32`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(bundle: &Bundle, model: &Model, wanted: DType, device: &Device) -> Result<Self, LoadError> {
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
            // Memory of its own, so that all of it goes back to the device when a batch does not fit.
            graphs: device.has_graphs().then(|| Graphs::new(GraphPool::default())),
            network: Network::load(bundle, model, spec, wanted, device)?,
            on_gpu: device.kind() != DeviceKind::Cpu,
        };
        Ok(Self { generator, tokenizer })
    }

    /// What runs, for reports.
    pub(crate) fn describe(&self) -> LoadedModel {
        self.generator.network.first().describe()
    }

    /// How many CUDA graphs there are; `None` where captions do without.
    pub fn graphs(&self) -> Option<usize> {
        self.generator.graphs.as_ref().map(Graphs::len)
    }

    /// The tokens of each crop's caption, in the crops' order, forced and special ones included. All crops are one batch.
    ///
    /// # Errors
    /// [`ModelError`] when a crop is no square of [`CAPTION_CROP`] pixels, or libtorch fails; out of memory after all memory that
    /// can be spared was given back to the device, so that a smaller batch finds it free.
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
        self.generator.tokens(crops, prompt).map_err(backend("captioner"))
    }

    /// What one step of `crops` captions at a time takes on a processor: the least of a few. Pictures and questions cost the same
    /// for each crop in batches of any size; steps do not.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails.
    pub fn step_time(&mut self, crops: usize) -> Result<Duration, ModelError> {
        let measured = Inference::begin().and_then(|_inference| self.generator.network.step_time(crops));
        measured.map_err(backend("captioner"))
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

    /// Records the CUDA graphs of all batches up to the size. Without CUDA graphs nothing happens.
    fn prepare(&mut self, batch_size: usize, prompt: CaptionPrompt) -> Result<(), ModelError> {
        self.generator.prepare(batch_size, prompt).map_err(backend("captioner"))
    }
}

impl Generator {
    fn tokens(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, TchError> {
        if crops.is_empty() {
            return Ok(Vec::new());
        }
        let _inference = Inference::begin()?;
        let bytes = pictures(crops)?;
        if !self.on_gpu {
            return self.network.compacting(&bytes, prompt);
        }
        let outcome = self.on_device(&bytes, prompt);
        self.with_room(outcome)
    }

    /// The tokens of (B, 64, 64, 3) bytes on the host, by a GPU.
    fn on_device(&mut self, bytes: &Tensor, prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, TchError> {
        let Self { graphs, network, .. } = self;
        if let Some(recorded) = graphs {
            let rows = bytes.size().first().copied().unwrap_or_default();
            let size = size_for(rows as usize);
            let inputs = [bytes.shallow_clone()];
            let outcome = recorded.run(&(size, prompt), &inputs, || blank(network, size), work(network, prompt));
            // It waits for the graph, so a failure of the device shows here.
            let tokens = outcome.and_then(|outputs| {
                let outputs = outputs.as_deref();
                outputs
                    .map(|all| network.ended(&single(all)?.f_narrow(0, 0, rows)?))
                    .transpose()
            });
            match tokens {
                Ok(Some(tokens)) => return Ok(tokens),
                Ok(None) => {}
                Err(error) => self.do_without(error)?,
            }
        }
        let bytes = bytes.f_to_device(self.network.device())?;
        self.network.ended(&self.network.unrolled(&bytes, prompt)?)
    }

    fn prepare(&mut self, batch_size: usize, prompt: CaptionPrompt) -> Result<(), TchError> {
        let _inference = Inference::begin()?;
        for size in sizes_up_to(batch_size) {
            let Self { graphs, network, .. } = self;
            let Some(recorded) = graphs else { return Ok(()) };
            let outcome = recorded.prepare(&(size, prompt), || blank(network, size), work(network, prompt));
            if let Err(error) = outcome {
                let outcome = self.do_without(error);
                self.with_room(outcome)?;
            }
        }
        Ok(())
    }

    /// Gives up graphs where they do not work; that memory is short is the caller's, for single kernels take as much.
    fn do_without(&mut self, error: TchError) -> Result<(), TchError> {
        match failed("captioner", &error) {
            Failure::Memory => Err(error),
            Failure::Graphs => {
                self.graphs = None;
                Ok(())
            }
        }
    }

    /// The outcome, after all memory that can be spared was given back if it is that memory was short.
    fn with_room<T>(&mut self, outcome: Result<T, TchError>) -> Result<T, TchError> {
        if outcome.as_ref().is_err_and(is_out_of_memory) {
            if let Some(graphs) = &mut self.graphs {
                graphs.clear();
            }
            if let Err(error) = trim_memory() {
                tracing::debug!(%error, "captions: no memory was given back");
            }
        }
        outcome
    }
}

/// What is recorded.
fn work(network: &Network, prompt: CaptionPrompt) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>, TchError> {
    move |crops| Ok(vec![network.unrolled(single(crops)?, prompt)?])
}

/// The input of a graph: (size, 64, 64, 3) bytes.
fn blank(network: &Network, size: usize) -> Result<Vec<Tensor>, TchError> {
    let pixels = i64::from(CAPTION_CROP);
    let crops = Tensor::f_zeros([size as i64, pixels, pixels, 3], (Kind::Uint8, network.device()))?;
    Ok(vec![crops])
}
