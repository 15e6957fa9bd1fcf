//! Work that is recorded as CUDA graphs, one for each key: for shapes of inputs, for example. A graph spares the launch of hundreds of
//! small kernels with every call.
//!
//! What was not announced is recorded when it comes for the second time: a recording takes longer than launching the kernels once, and
//! a screen of a size that never comes again is not worth one.

use crate::{
    module::is_out_of_memory,
    shim::{Graph, GraphPool, current_stream, trim_memory},
};
use std::collections::VecDeque;
use tch::{TchError, Tensor};

/// The most graphs that are kept; the one that was not used for longest makes way.
const MOST_GRAPHS: usize = 48;
/// Keys that are remembered as seen once.
const MOST_SIGHTS: usize = 64;

/// The graphs of one model.
#[derive(Debug)]
pub(crate) struct Graphs<K> {
    pool: GraphPool,
    recorded: Vec<Recorded<K>>,
    sights: Sights<K>,
    most: usize,
    calls: u64,
}

#[derive(Debug)]
struct Recorded<K> {
    // First, so that it goes before the tensors that it works on.
    graph: Graph,
    key: K,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    last_used: u64,
}

impl<K: PartialEq + Clone> Graphs<K> {
    pub(crate) const fn new(pool: GraphPool) -> Self {
        Self {
            pool,
            recorded: Vec::new(),
            sights: Sights(VecDeque::new()),
            most: MOST_GRAPHS,
            calls: 0,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.recorded.len()
    }

    /// What `work` makes of `inputs`, which are on the host; `None` where `key` has no graph yet. `blank` makes the inputs of a graph,
    /// on the device, at least as long in their first dimension; rows of them that `inputs` lacks keep what they had, so every row
    /// has to be on its own. The outcome is good until the next call of any model.
    pub(crate) fn run(
        &mut self,
        key: &K,
        inputs: &[Tensor],
        blank: impl FnOnce() -> Result<Vec<Tensor>, TchError>,
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, TchError>,
    ) -> Result<Option<Vec<Tensor>>, TchError> {
        let place = match self.place(key) {
            Some(place) => place,
            None if self.most > 0 && self.sights.again(key) => self.record(key, blank()?, work)?,
            None => return Ok(None),
        };
        self.calls += 1;
        let entry = &mut self.recorded[place];
        entry.last_used = self.calls;
        for (known, input) in entry.inputs.iter().zip(inputs) {
            let rows = input.size().first().copied().unwrap_or_default();
            known.f_narrow(0, 0, rows)?.f_copy_(input)?;
        }
        entry.graph.replay()?;
        Ok(Some(entry.outputs.iter().map(Tensor::shallow_clone).collect()))
    }

    /// Records `work` for `key` at once, unless there is a graph, or no room for one. `blank` as above.
    pub(crate) fn prepare(
        &mut self,
        key: &K,
        blank: impl FnOnce() -> Result<Vec<Tensor>, TchError>,
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, TchError>,
    ) -> Result<(), TchError> {
        if self.place(key).is_none() && self.recorded.len() < self.most {
            self.record(key, blank()?, work)?;
        }
        Ok(())
    }

    /// Gives up all graphs: the device's memory was short. From then on there are at most half as many.
    pub(crate) fn make_room(&mut self) {
        self.most = self.recorded.len() / 2;
        self.clear();
    }

    /// Gives up all graphs.
    pub(crate) fn clear(&mut self) {
        self.recorded.clear();
    }

    fn place(&self, key: &K) -> Option<usize> {
        self.recorded.iter().position(|entry| entry.key == *key)
    }

    /// The place of a new graph.
    fn record(
        &mut self,
        key: &K,
        inputs: Vec<Tensor>,
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, TchError>,
    ) -> Result<usize, TchError> {
        // Once as it is: kernels are loaded and workspaces allocated, which a recording must not do.
        drop(work(&inputs)?);
        // What that leaves is not used by a recording, which has memory of its own.
        trim_memory()?;
        let (graph, outputs) = Graph::record(&self.pool, || work(&inputs))?;
        if self.recorded.len() >= self.most {
            let oldest = (0..self.recorded.len()).min_by_key(|&at| self.recorded[at].last_used);
            oldest.map(|at| self.recorded.swap_remove(at));
        }
        self.recorded.push(Recorded {
            graph,
            key: key.clone(),
            inputs,
            outputs,
            last_used: self.calls,
        });
        Ok(self.recorded.len() - 1)
    }
}

/// Keys that came once, the oldest first.
#[derive(Debug)]
struct Sights<K>(VecDeque<K>);

impl<K: PartialEq + Clone> Sights<K> {
    /// Whether `key` has come before. It is forgotten then.
    fn again(&mut self, key: &K) -> bool {
        if let Some(place) = self.0.iter().position(|known| known == key) {
            self.0.remove(place);
            return true;
        }
        if self.0.len() >= MOST_SIGHTS {
            self.0.pop_front();
        }
        self.0.push_back(key.clone());
        false
    }
}

/// What becomes of a model whose graph failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The device's memory was short.
    Memory,
    /// Graphs do not work; the log says so. A device that has failed says so again when the kernels are launched one by one.
    Graphs,
}

/// Tells the two apart, and logs them with where it was.
pub(crate) fn failed(model: &str, error: &TchError) -> Failure {
    let place = current_stream().map_or_else(
        |error| format!("no GPU: {error}"),
        |(gpu, stream)| format!("GPU {gpu}, stream {stream}"),
    );
    if is_out_of_memory(error) {
        tracing::warn!(model, place, %error, "no memory for CUDA graphs: they are given up");
        return Failure::Memory;
    }
    tracing::warn!(model, place, %error, "CUDA graphs do not work; going on without them, more slowly");
    Failure::Graphs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_worth_a_recording_when_it_comes_again() {
        let mut sights = Sights(VecDeque::new());
        assert!(!sights.again(&0));
        assert!(sights.again(&0));
        assert!(!sights.again(&0), "recorded and given up, it counts anew");
        for other in 1..MOST_SIGHTS {
            assert!(!sights.again(&other));
        }
        assert!(sights.again(&0), "not forgotten yet");
        for other in 1000..1000 + MOST_SIGHTS {
            assert!(!sights.again(&other));
        }
        assert!(!sights.again(&1), "forgotten");
        assert_eq!(sights.0.len(), MOST_SIGHTS);
    }

    #[test]
    fn failures_are_told_apart() {
        let torch = |text: &str| TchError::Torch(text.to_owned());
        assert_eq!(
            failed("detector", &torch("the recorded work: CUDA out of memory.")),
            Failure::Memory
        );
        assert_eq!(
            failed("detector", &torch("operation not permitted when stream is capturing")),
            Failure::Graphs
        );
    }
}
