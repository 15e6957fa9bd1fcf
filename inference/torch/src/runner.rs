//! Work on a device that has the same steps for every input of one shape, so that it can be recorded for each shape.

use crate::{
    device::Device,
    graphs::{Failure, Graphs, failed},
    module::{Inference, LoadedModule, is_out_of_memory},
    shim::trim_memory,
};
use tch::{TchError, Tensor};

/// What is done with a module and inputs on its device. It must ask nothing of the host.
pub(crate) type Work = fn(&LoadedModule, &[Tensor]) -> Result<Vec<Tensor>, TchError>;

/// A module and what is done with it.
#[derive(Debug)]
pub(crate) struct Runner {
    // First: graphs go before the weights that they work on.
    graphs: Option<Graphs<Vec<Vec<i64>>>>,
    module: LoadedModule,
    work: Work,
}

impl Runner {
    pub(crate) fn new(module: LoadedModule, device: &Device, work: Work) -> Self {
        Self {
            graphs: device.graph_pool().map(Graphs::new),
            module,
            work,
        }
    }

    pub(crate) const fn module(&self) -> &LoadedModule {
        &self.module
    }

    /// The outcome for inputs on the host, on the device; good until the next call of any model. When memory is short, that comes after
    /// all memory that can be spared was given back to the device, so that a smaller batch finds it free.
    pub(crate) fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let _inference = Inference::begin()?;
        let Self { graphs, module, work } = self;
        if let Some(recorded) = graphs {
            let blank = || on_device(module, inputs);
            match recorded.run(&shapes(inputs), inputs, blank, |inputs| work(module, inputs)) {
                Ok(Some(outputs)) => return Ok(outputs),
                Ok(None) => {}
                Err(error) => self.do_without(&error)?,
            }
        }
        let outcome = on_device(&self.module, inputs).and_then(|inputs| (self.work)(&self.module, &inputs));
        if outcome.as_ref().is_err_and(is_out_of_memory) {
            if let Some(graphs) = &mut self.graphs {
                graphs.clear();
            }
            if let Err(error) = trim_memory() {
                tracing::debug!(%error, "no memory was given back");
            }
        }
        outcome
    }

    /// Records the graph for inputs of these shapes, on the host, at once. Without CUDA graphs, or memory for this one, nothing
    /// happens.
    pub(crate) fn prepare(&mut self, inputs: &[Tensor]) -> Result<(), TchError> {
        let _inference = Inference::begin()?;
        let Self { graphs, module, work } = self;
        let Some(recorded) = graphs else { return Ok(()) };
        let blank = || on_device(module, inputs);
        match recorded.prepare(&shapes(inputs), blank, |inputs| work(module, inputs)) {
            Ok(()) => Ok(()),
            Err(error) => self.do_without(&error),
        }
    }

    fn do_without(&mut self, error: &TchError) -> Result<(), TchError> {
        match failed(&self.module.model().name, error) {
            Failure::Memory => {
                if let Some(graphs) = &mut self.graphs {
                    graphs.make_room();
                }
                trim_memory()
            }
            Failure::Graphs => {
                self.graphs = None;
                Ok(())
            }
        }
    }
}

fn shapes(inputs: &[Tensor]) -> Vec<Vec<i64>> {
    inputs.iter().map(Tensor::size).collect()
}

fn on_device(module: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let (_, device) = module.options();
    inputs.iter().map(|input| input.f_to_device(device)).collect()
}
