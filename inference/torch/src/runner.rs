//! Work on a device that has the same steps for every input of one shape. On a GPU it is recorded once for each shape as a CUDA
//! graph, which spares the launch of hundreds of small kernels with every call.

use crate::{
    batch::is_out_of_memory,
    device::Device,
    module::{Inference, LoadedModule},
    shim::{Graph, GraphPool, trim_memory},
};
use tch::{TchError, Tensor};

/// The most shapes that are kept as graphs; the one that was not used for longest makes way.
const MOST_GRAPHS: usize = 48;

/// What is done with a module and inputs on its device. It must ask nothing of the host.
pub(crate) type Work = fn(&LoadedModule, &[Tensor]) -> Result<Vec<Tensor>, TchError>;

/// A module and what is done with it.
#[derive(Debug)]
pub(crate) struct Runner {
    // First: graphs go before the weights that they work on.
    graphs: Option<Graphs>,
    module: LoadedModule,
    work: Work,
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
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    last_used: u64,
}

impl Runner {
    pub(crate) fn new(module: LoadedModule, device: &Device, work: Work) -> Self {
        let graphs = device.graph_pool().map(|pool| Graphs {
            pool,
            recorded: Vec::new(),
            calls: 0,
        });
        Self { graphs, module, work }
    }

    pub(crate) const fn module(&self) -> &LoadedModule {
        &self.module
    }

    pub(crate) const fn has_graphs(&self) -> bool {
        self.graphs.is_some()
    }

    /// The outcome for inputs on the host, on the device; good until the next call of any model.
    pub(crate) fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let _inference = Inference::begin()?;
        if let Some(graphs) = &mut self.graphs {
            match graphs.run(&self.module, self.work, inputs) {
                Ok(outputs) => return Ok(outputs),
                Err(error) if is_out_of_memory(&error) => {
                    tracing::warn!(
                        model = self.module.model().name,
                        "no memory for another CUDA graph; all are given up"
                    );
                    graphs.recorded.clear();
                    trim_memory()?;
                }
                Err(error) => {
                    // A device that has failed says so again when the kernels are launched one by one.
                    tracing::warn!(model = self.module.model().name, %error, "CUDA graphs do not work; going on without them, more slowly");
                    self.graphs = None;
                }
            }
        }
        (self.work)(&self.module, &on_device(&self.module, inputs)?)
    }
}

impl Graphs {
    fn run(&mut self, module: &LoadedModule, work: Work, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        self.calls += 1;
        let is_like = |entry: &Recorded| {
            let mut pairs = entry.inputs.iter().zip(inputs);
            pairs.all(|(known, input)| known.size() == input.size())
        };
        let place = match self.recorded.iter().position(is_like) {
            Some(place) => place,
            None => self.record(module, work, inputs)?,
        };
        let entry = &mut self.recorded[place];
        entry.last_used = self.calls;
        for (known, input) in entry.inputs.iter_mut().zip(inputs) {
            known.f_copy_(input)?;
        }
        entry.graph.replay()?;
        Ok(entry.outputs.iter().map(Tensor::shallow_clone).collect())
    }

    /// The place of a new graph for inputs of these shapes.
    fn record(&mut self, module: &LoadedModule, work: Work, inputs: &[Tensor]) -> Result<usize, TchError> {
        let inputs = on_device(module, inputs)?;
        // Once as it is: kernels are loaded and workspaces allocated, which a recording must not do.
        drop(work(module, &inputs)?);
        // What that leaves is not used by a recording, which has memory of its own.
        trim_memory()?;
        let (graph, outputs) = Graph::record(self.pool, || work(module, &inputs))?;
        if self.recorded.len() >= MOST_GRAPHS {
            let oldest = (0..self.recorded.len()).min_by_key(|&at| self.recorded[at].last_used);
            oldest.map(|at| self.recorded.swap_remove(at));
        }
        self.recorded.push(Recorded {
            graph,
            inputs,
            outputs,
            last_used: 0,
        });
        Ok(self.recorded.len() - 1)
    }
}

fn on_device(module: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let (_, device) = module.options();
    inputs.iter().map(|input| input.f_to_device(device)).collect()
}
