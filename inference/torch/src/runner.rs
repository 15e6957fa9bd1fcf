//! A module that takes pictures. On a GPU each size of input is recorded once as a CUDA graph, which spares the launch of hundreds
//! of small kernels with every call.

use crate::{
    device::Device,
    module::{Inference, LoadedModule, pictures},
    shim::{Graph, GraphPool},
};
use image::RgbImage;
use tch::{Kind, TchError, Tensor};

/// The most sizes that are kept as graphs; the one that was not used for longest makes way.
const MOST_GRAPHS: usize = 32;

/// Runs a module on pictures of one size at a time.
#[derive(Debug)]
pub(crate) struct PictureRunner {
    module: LoadedModule,
    graphs: Option<Graphs>,
}

#[derive(Debug)]
struct Graphs {
    pool: GraphPool,
    recorded: Vec<Recorded>,
    calls: u64,
}

#[derive(Debug)]
struct Recorded {
    // First, so that it goes before the tensors that it works on.
    graph: Graph,
    /// (B, H, W, 3) bytes.
    input: Tensor,
    output: Tensor,
    last_used: u64,
}

impl PictureRunner {
    pub(crate) fn new(module: LoadedModule, device: &Device) -> Self {
        let graphs = device.graph_pool().map(|pool| Graphs {
            pool,
            recorded: Vec::new(),
            calls: 0,
        });
        Self { module, graphs }
    }

    /// What the module gives for a batch, as `float32` on the device; good until the next call of any model.
    pub(crate) fn run(&mut self, batch: &[RgbImage]) -> Result<Tensor, TchError> {
        let _inference = Inference::begin()?;
        let bytes = pictures(batch)?;
        if let Some(graphs) = &mut self.graphs {
            match graphs.run(&self.module, &bytes) {
                Ok(output) => return Ok(output),
                Err(error) if crate::batch::is_out_of_memory(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(model = self.module.model().name, %error, "CUDA graphs do not work; going on without them");
                    self.graphs = None;
                }
            }
        }
        let (_, device) = self.module.options();
        forward(&self.module, &bytes.f_to_device(device)?)
    }
}

impl Graphs {
    fn run(&mut self, module: &LoadedModule, bytes: &Tensor) -> Result<Tensor, TchError> {
        self.calls += 1;
        let size = bytes.size();
        let known = self.recorded.iter().position(|entry| entry.input.size() == size);
        let place = match known {
            Some(place) => place,
            None => self.record(module, bytes)?,
        };
        let entry = &mut self.recorded[place];
        entry.last_used = self.calls;
        entry.input.f_copy_(bytes)?;
        entry.graph.replay()?;
        Ok(entry.output.shallow_clone())
    }

    /// The place of a new graph for inputs like `bytes`.
    fn record(&mut self, module: &LoadedModule, bytes: &Tensor) -> Result<usize, TchError> {
        let (_, device) = module.options();
        let input = bytes.f_to_device(device)?;
        // Once as it is: kernels are loaded and workspaces allocated, which a recording must not do.
        drop(forward(module, &input)?);
        let (graph, output) = Graph::record(self.pool, || forward(module, &input))?;
        if self.recorded.len() >= MOST_GRAPHS {
            let oldest = (0..self.recorded.len()).min_by_key(|&at| self.recorded[at].last_used);
            oldest.map(|at| self.recorded.swap_remove(at));
        }
        self.recorded.push(Recorded {
            graph,
            input,
            output,
            last_used: 0,
        });
        Ok(self.recorded.len() - 1)
    }
}

fn forward(module: &LoadedModule, bytes: &Tensor) -> Result<Tensor, TchError> {
    module.call(&[&module.normalised(bytes)?])?.f_to_kind(Kind::Float)
}
